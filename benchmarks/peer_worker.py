"""What the workers of `peer_speed.py` share: each runs in a peer's own environment, where neither TensorFlow nor kser_tf is needed.

A worker says in a line of JSON what it has built, and then answers each line on standard input, a number of steps, with the seconds that
they took.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of what every worker is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--width", required=True, type=int)
    parser.add_argument("--hidden-units", required=True, type=int, nargs="+")
    parser.add_argument("--attention-units", required=True, type=int)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--loading-workers", required=True, type=int, help="0: the training process loads")
    parser.add_argument("--cached", action="store_true", help="one batch again and again, in place of the loader")
    return parser


def begin(threads: int) -> TextIO:
    """Sets seed and threads, and returns where the answers go: whatever a peer prints is none."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    return answers


def answer(answers: TextIO, built: dict[str, Any], step: Callable[[Any], float], batches: Iterator[Any]) -> None:
    """Says what was built, then trains as many steps as each line on standard input asks for, until there is none."""
    print(json.dumps(built), file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            loss = step(next(batches))
        assert math.isfinite(loss)
        print(time.perf_counter() - started, file=answers, flush=True)


def endless(loader: Iterable[dict[str, Any]], label: str, batch_size: int, *, cached: bool) -> Iterator[dict[str, Any]]:
    """Yields whole batches of a loader for ever, or always its first one."""
    if cached:
        batch = next(iter(loader))
        while True:
            yield batch
    while True:
        yield from (batch for batch in loader if len(batch[label]) == batch_size)
