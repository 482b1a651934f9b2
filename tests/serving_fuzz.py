"""Random requests, well and ill formed, from several threads: `python tests/serving_fuzz.py FOLDER SECONDS`.

In a process of its own, so that a crash is a finding and not the end of the tests, and memory is that of serving alone.
Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from kser_tf.serving import contract
from kser_tf.serving.loaded_model import LoadedModel

THREADS = 4
REQUESTS = 1000
ILL_FORMED = 0.3
BATCH_SIZES = (1, 1, 2, 7, 64, 200)
SCRIPTS = ("影片", "фильм", "फ़िल्म", "film", "\0", "🎬", "é", "")
LONG = 10**6

Rows = dict[str, np.ndarray]


def well_formed(kept: Rows, rng: np.random.Generator) -> Rows:
    """Kept rows, shuffled, some of their strings unknown, some numbers missing, infinite or huge."""
    size = int(rng.choice(BATCH_SIZES))
    rows = {name: values[rng.integers(len(values), size=size)] for name, values in kept.items()}
    for name, values in rows.items():
        odd = rng.random(values.shape) < 0.2
        if values.dtype.kind == "S":
            strings = values.astype(object)
            strings[odd] = ["".join(rng.choice(SCRIPTS, 5)).encode() for _ in range(int(odd.sum()))]
            if rng.random() < 0.02:
                strings.flat[0] = b"x" * LONG
            rows[name] = strings
        elif values.dtype.kind == "f":
            rows[name] = np.where(odd, rng.choice([np.nan, np.inf, -np.inf, 0, 3e38], values.shape), values)
            rows[name] = rows[name].astype(values.dtype)
        elif values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            rows[name] = np.where(odd, rng.integers(limits.min, limits.max, values.shape), values).astype(values.dtype)
    return rows


def ill_formed(kept: Rows, rng: np.random.Generator) -> Rows:
    """A request that is wrong in one way."""
    rows = well_formed(kept, rng)
    name = str(rng.choice(list(rows)))
    wrongs: list[Callable[[], Any]] = [
        lambda: rows.pop(name),
        lambda: rows.update({name: np.zeros(rows[name].shape, np.complex64)}),
        lambda: (
            rows.update({name: np.full(rows[name].shape, b"text", object)})
            if rows[name].dtype.kind != "O"
            else rows.update({name: np.zeros(rows[name].shape, np.int64)})
        ),
        lambda: rows.update({name: rows[name][..., None, None]}),
        lambda: rows.update({name: rows[name].reshape(-1)[0]}),
        lambda: rows.update({name: np.concatenate([rows[name], rows[name], rows[name]])}),
    ]
    wrongs[rng.integers(len(wrongs))]()
    return rows


def fuzz(folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Sends requests for so many seconds, and says what came back."""
    rng = np.random.default_rng(seed)
    kept, _ = contract.load_examples(folder / contract.EXAMPLES_FILE)
    with LoadedModel(folder) as model:
        call = model.direct(contract.SIGNATURE)
        requests = [
            (True, well_formed(kept, rng)) if rng.random() >= ILL_FORMED else (False, ill_formed(kept, rng))
            for _ in range(REQUESTS)
        ]
        alone = [_answer(call, rows) if well else None for well, rows in requests]
        _hammer(call, requests, alone, min(seconds / 4, 10))  # threads, arenas and caches are there
        before = _resident()
        found = _hammer(call, requests, alone, seconds)
        found |= {"resident_before": before, "resident_after": _resident()}
    found["well_formed"] = sum(well for well, _ in requests)
    found["refused_alone"] = sum(answer is None for (well, _), answer in zip(requests, alone, strict=True) if well)
    return found


def _hammer(call: Any, requests: list[tuple[bool, Rows]], alone: list[Any], seconds: float) -> dict[str, Any]:
    counts = {"calls": 0, "refused": 0, "answered_ill_formed": 0, "identical": 0, "compared": 0}
    largest, problems = [0.0], []
    lock = threading.Lock()
    ends = time.monotonic() + seconds

    def caller(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < ends:
            number = int(rng.integers(len(requests)))
            well, rows = requests[number]
            answer = _answer(call, rows)
            with lock:
                counts["calls"] += 1
                if not well:
                    counts["refused" if answer is None else "answered_ill_formed"] += 1
                elif answer is None or alone[number] is None:
                    problems.append(f"request {number}: well formed, and refused")
                else:
                    counts["compared"] += 1
                    difference = max(_difference(answer[name], alone[number][name]) for name in answer)
                    counts["identical"] += difference == 0
                    largest[0] = max(largest[0], difference)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts | {"largest_difference": largest[0], "problems": problems[:5]}


def _answer(call: Any, rows: Rows) -> dict[str, np.ndarray] | None:
    """The answer, or None where the request is refused; any other end is one for the process."""
    try:
        return call(rows)
    except (KeyError, tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError):
        return None


def _difference(values: np.ndarray, expected: np.ndarray) -> float:
    same = (values == expected) | (np.isnan(values) & np.isnan(expected))
    difference = np.where(same, 0, np.abs(values - expected) / np.maximum(1, np.abs(expected)))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(fuzz(Path(sys.argv[1]), float(sys.argv[2]))))
