"""Writes what a benchmark measured, with what made it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kser_tf.files import write_json

_PACKAGES = ("tensorflow", "tf-keras", "keras", "tensorflow-recommenders", "sentence-transformers", "torch", "numpy")


def write_results(path: str | Path, arguments: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes figures beside the command, the commit, the versions and the processor that made them."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    write_json(
        path,
        {
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}"]),
            "arguments": {
                key: value for key, value in arguments.items() if key not in ("output", "prepared", "store", "table")
            },
            "commit": commit.stdout.strip() or None,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "processor": _processor(),
            "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
            **figures,
        },
    )
    print(f"written: {path}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
