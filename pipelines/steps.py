"""Doing jobs in a row: what is done or skipped is said on standard error, and the times are kept."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kser_tf.pipelines.job import read_job


class Steps:
    """Does jobs, says on standard error what is done or skipped, and keeps the times for the report."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []

    def do(self, job: Callable[[Any], dict[str, Any]], config: Any, output: Path) -> dict[str, Any]:
        """Calls `job(config)`, frees the graphs that it left unless it was skipped, and returns its result."""
        before = read_job(output)
        say(f"{job.__name__} {output}")
        started = time.monotonic()
        try:
            result = job(config)
        except Exception:
            forget_graphs()
            raise
        after = read_job(output)
        skipped = before is not None and after == before
        seconds = after["seconds"] if skipped and after is not None else time.monotonic() - started
        self.note(f"{job.__name__} {output}", seconds, skipped=skipped)
        if not skipped:
            forget_graphs()
        return result

    def note(self, name: str, seconds: float, *, skipped: bool = False) -> None:
        """Keeps what was done."""
        self.done.append({"job": name, "seconds": round(seconds, 2), "skipped": skipped})
        say(f"  {'unchanged, skipped' if skipped else f'done in {seconds:.1f} s'}")


def say(text: str) -> None:
    """Writes a line about the progress to standard error."""
    print(f"[kser-tf] {text}", file=sys.stderr, flush=True)


def forget_graphs() -> None:
    """Frees what Keras keeps of the models so far; nothing where TensorFlow was not needed."""
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    tf.keras.backend.clear_session()
    gc.collect()
