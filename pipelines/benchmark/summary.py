"""The figures of a benchmark as far as it is: what `summary.json` holds, and its page is made of."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kser_tf.pipelines.benchmark.comparisons import Measured, compare, judge_goals, speeds
from kser_tf.pipelines.benchmark.matrix import BenchmarkMatrix, Cell
from kser_tf.pipelines.benchmark.state import BenchmarkState
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.provenance import command, commit, processor

# Keys of `job.json` that say what made a result.
_MADE_BY = ("command", "commit", "finished", "versions")
_CURVE_KEYS = ("seconds", "rows_per_second", "loss", "val_auc", "val_loss")


def build_summary(matrix: BenchmarkMatrix, state: BenchmarkState) -> dict[str, Any]:
    """Returns what is known so far.

    Returns:
        `name`, `title`, `notice`; `progress`, how many cells are done of how many; `goals`; `runs`, one for each cell that is done, with
        its metrics by slice, its curve and what made it; `comparisons` (`compare`), `speed` (`speeds`); `tuning`, the
        budget and what was chosen; `failures`; `texts`, for each variant its text; `command`, `commit`, `processor`, `finished`.
    """
    config = matrix.config
    states = {cell: state.state(cell) for cell in matrix.cells}
    measured = [_measured(state, cell) for cell, how in states.items() if how == "done" and cell.trial is None]
    comparisons, speed = compare(config, measured), speeds(config, measured)
    counts = Counter(states.values())
    return {
        "name": config.name,
        "title": config.title or config.name,
        "notice": config.notice,
        "progress": {
            "cells": len(states),
            **{how: counts[how] for how in ("done", "failed", "begun", "waiting")},
            "remaining_seconds": _remaining_seconds(matrix, states),
            "by_part": _progress_by_part(matrix, states),
        },
        "goals": judge_goals(config, comparisons, speed),
        "comparisons": comparisons,
        "speed": speed,
        "tuning": _tuning(matrix, state),
        "texts": {variant: config.text(variant) for variant in config.variants},
        "failures": [
            {"cell": cell.name, "error": failure["error"]}
            for cell, how in states.items()
            if how == "failed" and (failure := state.failure(cell)) is not None
        ],
        "runs": [_run(each) for each in measured],
        "command": command(),
        "commit": commit(),
        "processor": processor(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _measured(state: BenchmarkState, cell: Cell) -> Measured:
    training, metrics = state.trained(cell), state.evaluated(cell)
    assert training is not None, "a cell that is done was trained"
    assert metrics is not None, "a cell that is done was evaluated"
    return Measured(cell, training, metrics, state.drawn(cell), state.made_by(cell))


def _run(each: Measured) -> dict[str, Any]:
    cell, training = each.cell, each.training
    return {
        "name": cell.name,
        "split": cell.split,
        "training_users": cell.training_users,
        "backbone": cell.backbone,
        "variant": cell.variant,
        "seed": cell.seed,
        "metrics": {name: of for name, of in each.metrics["slices"].items() if of["rows"]},
        "validation_auc": training["validation_auc"],
        "best_epoch": training["best_epoch"],
        "curve": [
            {"epoch": i + 1, **{key: epoch[key] for key in _CURVE_KEYS if key in epoch}}
            for i, epoch in enumerate(training["curve"])
        ],
        "training_rows": training["training_rows"],
        "trained_parameters": training["trained_parameters"],
        "total_parameters": training["total_parameters"],
        "rows_per_second": training.get("rows_per_second"),
        "seconds": training.get("training_seconds"),
        "made_by": {key: each.made_by.get(key) for key in _MADE_BY},
    }


def _remaining_seconds(matrix: BenchmarkMatrix, states: Mapping[Cell, str]) -> float | None:
    """What is left, if a cell takes as long as the mean of those of its variant and share that are done, or of all."""
    seconds: dict[Any, list[float]] = {}
    for cell, how in states.items():
        if how == "done" and (job := read_job(matrix.folder(cell))) is not None:
            for key in (None, (cell.variant, cell.training_users)):
                seconds.setdefault(key, []).append(job["seconds"])
    if not seconds:
        return None
    left = [cell for cell, how in states.items() if how != "done"]
    return sum(statistics.fmean(seconds.get((cell.variant, cell.training_users), seconds[None])) for cell in left)


def _progress_by_part(matrix: BenchmarkMatrix, states: Mapping[Cell, str]) -> dict[str, dict[str, int]]:
    """For each part its cells and those that are done; trials are the search's."""
    found = {}
    for name, part in matrix.config.parts.items():
        cells = matrix.cells_of(part)
        found[name] = {"cells": len(cells), "done": sum(states[cell] == "done" for cell in cells)}
    trials = [how for cell, how in states.items() if cell.trial is not None]
    if trials:
        found["tuning"] = {"cells": len(trials), "done": trials.count("done")}
    return found


def _tuning(matrix: BenchmarkMatrix, state: BenchmarkState) -> dict[str, Any] | None:
    """The budget, and for each variant in each place what was tried and chosen."""
    tuning = matrix.config.tuning
    if tuning is None:
        return None
    searches: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in matrix.cells:
        if cell.trial is not None:
            searches.setdefault((cell.split, cell.backbone, cell.variant), []).append(cell)
    found = []
    for (split, backbone, variant), trials in searches.items():
        best = state.best_trial(trials[0])
        tried = []
        for trial in trials:
            result = state.trained(trial)
            tried.append(
                {
                    "setting": matrix.settings[variant][trial.trial or 0],
                    "validation_auc": None if result is None else result["validation_auc"],
                }
            )
        chosen = None if best is None else matrix.settings[variant][best.trial or 0]
        found.append({"split": split, "backbone": backbone, "variant": variant, "chosen": chosen, "tried": tried})
    return {
        "trials": tuning.trials,
        "seed": tuning.seed,
        "keys": tuning.keys,
        "by_variant": tuning.by_variant,
        "like": tuning.like,
        "searches": found,
    }
