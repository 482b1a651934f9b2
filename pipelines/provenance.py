"""What made a result: the command, the commit of the code, and the processor."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from pathlib import Path

_FOLDER_FLAGS = ("--data", "--work", "--records")
_ROOT = Path(__file__).resolve().parent.parent


def command() -> str:
    """Returns the command line of this process, to be typed elsewhere: `--data`, `--work` and `--records` are folders of one machine."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    for i, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag in _FOLDER_FLAGS and equals:
            words[i] = f"{flag}=FOLDER"
        elif words[max(0, i - 1)] in _FOLDER_FLAGS:
            words[i] = "FOLDER"
    return shlex.join(words)


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
