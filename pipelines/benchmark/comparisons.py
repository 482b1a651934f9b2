"""What the cells of a benchmark say of each other: differences with intervals, speed, and whether goals are reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kser_tf.metrics import paired_difference, percentile_interval
from kser_tf.pipelines.benchmark.config import BenchmarkConfig, Goal
from kser_tf.pipelines.benchmark.matrix import Cell

# Split, share of the training users, backbone.
Place = tuple[str, float, str]


@dataclass(frozen=True)
class Measured:
    """A cell that is done.

    Args:
        cell: Which.
        training: What `train` says.
        metrics: What `evaluate` says.
        drawn: For each slice the AUC on each of the redrawn sets of users; none without a bootstrap.
        made_by: What made it.
    """

    cell: Cell
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    drawn: Mapping[str, np.ndarray] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Where it can be compared."""
        return self.cell.split, self.cell.training_users, self.cell.backbone

    def auc(self, name: str) -> float | None:
        """Test AUC on a slice."""
        value: float | None = self.metrics["slices"].get(name, {}).get("auc")
        return value


def compare(config: BenchmarkConfig, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Returns the difference in test AUC of each variant to each one that it is compared with, slice by slice.

    Two intervals of 95 %, about two kinds of chance: `low` to `high` by Student's t over the seeds, paired, about initial
    weights and the order of examples (on a split divided by seed also about who is tested); `users_low` to `users_high` by a
    bootstrap over the test users, paired. In the bootstrap each draw's figure is the mean over the seeds of the difference in AUC,
    which is the figure that the table shows. The AUC of the seeds' mean prediction would be that of another model, an ensemble,
    which gains the more the less its seeds agree.

    Returns:
        `{"split", "training_users", "backbone", "variant", "against", "slice", "metric", "difference", "low", "high",
        "users_low", "users_high", "seeds", "by_seed", "how"}`; an end that is not defined (one seed, no bootstrap) is `None`.
    """
    return [
        {
            "split": place[0],
            "training_users": place[1],
            "backbone": place[2],
            "variant": variant,
            "against": against,
            "metric": "auc",
            **difference,
        }
        for place, variants in _by_place(measured).items()
        for variant, ours in variants.items()
        for against in config.compared_with(variant)
        for difference in _differences(
            ours, variants.get(against, {}), "divisions" if config.splits[place[0]].divided_by_seed else "seeds"
        )
    ]


def _differences(ours: Mapping[int, Measured], theirs: Mapping[int, Measured], over: str) -> Iterable[dict[str, Any]]:
    """The difference on each slice where all seeds that both have, have an AUC."""
    pairs = {seed: (ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))}
    for name in next(iter(pairs.values()))[0].metrics["slices"] if pairs else ():
        aucs = {seed: (a.auc(name), b.auc(name)) for seed, (a, b) in pairs.items()}
        by_seed = {seed: a - b for seed, (a, b) in aucs.items() if a is not None and b is not None}
        if len(by_seed) < len(pairs):
            continue
        difference = paired_difference([a for a, _ in aucs.values()], [b for _, b in aucs.values()])
        redrawn = [a.drawn[name] - b.drawn[name] for a, b in pairs.values() if name in a.drawn and name in b.drawn]
        users = percentile_interval(np.mean(redrawn, axis=0)) if len(redrawn) == len(pairs) else (None, None)
        yield {
            "slice": name,
            **difference,
            "users_low": users[0],
            "users_high": users[1],
            "by_seed": {str(seed): each for seed, each in by_seed.items()},
            "how": f"Student's t over {len(pairs)} {over}",
        }


def speeds(config: BenchmarkConfig, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Returns how fast each variant trains, and how long it takes to the best validation AUC of what it is compared with.

    Returns:
        `{"split", "training_users", "backbone", "variant", "against", "rows_per_second", "ratio", "seconds_to_base", "reached",
        "seeds", "seconds", "epochs", "trained_parameters"}`, means over the seeds. `ratio` and `seconds_to_base` are paired by
        seed; `reached` counts the seeds that came to that AUC, over which `seconds_to_base` is the mean. Seconds are of
        training steps; extractor-only's begin after its base's. Cells of which a record is all that is left have none.
    """
    found = []
    timed = [each for each in measured if "rows_per_second" in each.training]
    for place, variants in _by_place(timed).items():
        for variant, ours in variants.items():
            against = (config.compared_with(variant) or [variant])[0]
            pairs = [(ours[seed], variants[against][seed]) for seed in ours if seed in variants.get(against, {})]
            times = [seconds_until(a.training["curve"], b.training["validation_auc"]) for a, b in pairs]
            reached = [seconds for seconds in times if seconds is not None]
            found.append(
                {
                    "split": place[0],
                    "training_users": place[1],
                    "backbone": place[2],
                    "variant": variant,
                    "against": against,
                    "rows_per_second": _mean(each.training["rows_per_second"] for each in ours.values()),
                    "ratio": _mean(a.training["rows_per_second"] / b.training["rows_per_second"] for a, b in pairs),
                    "seconds_to_base": _mean(reached),
                    "reached": len(reached),
                    "seeds": len(ours),
                    "seconds": _mean(each.training["training_seconds"] for each in ours.values()),
                    "epochs": _mean(each.training["epochs"] for each in ours.values()),
                    "trained_parameters": next(iter(ours.values())).training["trained_parameters"],
                }
            )
    return found


def seconds_until(curve: Iterable[Mapping[str, float]], validation_auc: float) -> float | None:
    """Returns the seconds of training up to the end of the first epoch with at least this validation AUC."""
    seconds = 0.0
    for epoch in curve:
        seconds += epoch["seconds"]
        if epoch["val_auc"] >= validation_auc:
            return seconds
    return None


def judge_goals(
    config: BenchmarkConfig, comparisons: Sequence[Mapping[str, Any]], speed: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns for each goal and each place where it can be measured, on all training users, whether it is reached.

    Returns:
        `{"split", "backbone", "variant", "against", "slice", "goal", "found", "reached"}`, the goal and what was found in words.
    """
    found = []
    for goal in config.goals:
        for comparison in comparisons:
            if (
                all(comparison[key] == getattr(goal, key) for key in ("variant", "against", "slice"))
                and comparison["training_users"] == 1
                and (goal.splits is None or comparison["split"] in goal.splits)
            ):
                verdicts = list(_verdicts(goal, comparison, comparisons, speed))
                found.append(
                    {
                        **{
                            key: comparison[key]
                            for key in ("split", "backbone", "variant", "against", "slice", "seeds")
                        },
                        "goal": "; ".join(wanted for wanted, _, _ in verdicts),
                        "found": "; ".join(what for _, what, _ in verdicts),
                        "reached": all(reached for _, _, reached in verdicts),
                    }
                )
    return found


def _verdicts(
    goal: Goal,
    comparison: Mapping[str, Any],
    comparisons: Iterable[Mapping[str, Any]],
    speed: Iterable[Mapping[str, Any]],
) -> Iterable[tuple[str, str, bool]]:
    """What is wanted, what was found, and whether that is enough."""
    difference, low = comparison["difference"], comparison["low"]
    if goal.at_least is not None:
        yield f"at least {goal.at_least:+.4f}", f"{difference:+.4f}", difference >= goal.at_least
    if goal.within is not None:
        yield f"within {goal.within:.4f}", f"{difference:+.4f}", abs(difference) <= goal.within
    if goal.above_zero:
        what = "one seed, no interval" if low is None else f"from {low:+.4f}"
        yield "interval above zero", what, low is not None and low > 0
    if goal.kept_of is not None and goal.share is not None:
        whole = _same(comparison, comparisons, variant=goal.kept_of, against=goal.against, slice=goal.slice)
        kept = difference / whole["difference"] if whole and whole["difference"] > 0 else math.nan
        what = f"{kept:.2f}" if not math.isnan(kept) else f"{goal.kept_of} has no gain here"
        yield f"at least {goal.share:.2f} of {goal.kept_of}'s gain", what, kept >= goal.share
    if goal.speed is not None:
        figures = [_same(comparison, speed, variant=name) for name in (goal.variant, goal.against)]
        ratio = figures[0]["rows_per_second"] / figures[1]["rows_per_second"] if all(figures) else math.nan  # type: ignore[index]
        yield f"at least {goal.speed:.2f} of its rows per second", f"{ratio:.2f}", ratio >= goal.speed


def _same(place: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any] | None:
    """The entry of the same place with what is wanted."""
    wanted |= {key: place[key] for key in ("split", "training_users", "backbone")}
    return next((entry for entry in entries if wanted.items() <= entry.items()), None)


def _by_place(measured: Iterable[Measured]) -> dict[Place, dict[str, dict[int, Measured]]]:
    """Place -> variant -> seed -> cell."""
    grouped: dict[Place, dict[str, dict[int, Measured]]] = {}
    for each in measured:
        grouped.setdefault(each.place, {}).setdefault(each.cell.variant, {})[each.cell.seed] = each
    return grouped


def _mean(values: Iterable[float]) -> float | None:
    present = list(values)
    return statistics.fmean(present) if present else None
