"""What made a result: the command, the commit of the code, and the processor."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def command() -> str:
    """Returns the command line of this process, as it would be typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@functools.cache
def commit() -> str | None:
    """Returns the commit of this code, with `-dirty` behind it where files have changed since; `None` outside its repository."""
    if not (_ROOT / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=_ROOT,
            check=False,
        )
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
