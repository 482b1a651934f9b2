"""Writes what a benchmark measured, with what made it."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

from kser_tf.files import write_json
from kser_tf.pipelines.provenance import commit, processor

_PACKAGES = ("tensorflow", "tf-keras", "keras", "tensorflow-recommenders", "sentence-transformers", "torch", "numpy")


def write_results(path: str | Path, arguments: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes figures beside the command, the commit, the versions and the processor that made them."""
    write_json(
        path,
        {
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}"]),
            "arguments": {
                key: value for key, value in arguments.items() if key not in ("output", "prepared", "store", "table")
            },
            "commit": commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "processor": processor(),
            "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
            **figures,
        },
    )
    print(f"written: {path}")
