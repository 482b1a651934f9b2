"""A benchmark's summary in the terms of a report's tables and plots, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kser_tf.pipelines.report_figures import (
    BASE,
    ReportFigures,
    backbone_name,
    duration,
    plural,
    slice_name,
    variant_name,
)

# What is asked first; the other slices follow.
FIRST_SLICES = ("all", "tail", "cold")
# With fewer, Student's interval is so wide that little can be said.
_ENOUGH_SEEDS = 5


class BenchmarkFigures:
    """A benchmark's summary, grouped for reading: a group is a backbone on a split.

    Args:
        summary: What `build_summary` returns.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary
        self._splits = list(dict.fromkeys(run["split"] for run in summary["runs"]))
        # For the tables and plots of a run's report, which know backbones alone.
        self.whole = self._as_report(training_users=1.0)
        self.every_share = self._as_report(training_users=None)

    @property
    def groups(self) -> list[str]:
        """All groups."""
        return list(dict.fromkeys(self.group(run) for run in self.summary["runs"]))

    def group(self, entry: Mapping[str, Any]) -> str:
        """The group of a run, a comparison or a speed, as it is read."""
        name = backbone_name(entry["backbone"])
        return f"{name}, {entry['split'].replace('_', ' ')}" if len(self._splits) > 1 else name

    def of_group(self, key: str, group: str, *, whole: bool = True) -> list[dict[str, Any]]:
        """The entries of a part of the summary that belong to a group; with `whole`, on all training users alone."""
        return [
            entry
            for entry in self.summary[key]
            if self.group(entry) == group and (not whole or entry["training_users"] == 1)
        ]

    def shares(self, group: str) -> list[float]:
        """The shares of the training users that a group was trained on."""
        return sorted({run["training_users"] for run in self.of_group("runs", group, whole=False)})

    def sentences(self) -> list[str]:
        """How far the benchmark is, and how many goals are reached."""
        progress, goals = self.summary["progress"], self.summary["goals"]
        first = f"{progress['done']:,} of {plural(progress['cells'], 'cell')} are done"
        details = [
            f"{progress[key]} {word}" for key, word in (("failed", "failed"), ("begun", "begun")) if progress[key]
        ]
        first += f" ({', '.join(details)})" if details else ""
        if progress["done"] < progress["cells"] and progress["remaining_seconds"] is not None:
            first += f"; about {duration(progress['remaining_seconds'])} of computing left"
        found = [first + "."]
        if goals:
            found.append(f"{sum(goal['reached'] for goal in goals)} of {plural(len(goals), 'goal')} are reached.")
        tuning = self.summary["tuning"]
        if tuning is not None:
            found.append(
                f"Every variant had the same budget: {tuning['trials']} settings, each tried once (seed {tuning['seed']}) and "
                "judged on validation AUC; the best is used for all seeds."
            )
        seeds = [comparison["seeds"] for comparison in self.summary["comparisons"]]
        if seeds and min(seeds) < _ENOUGH_SEEDS:
            found.append(f"Some differences are of fewer than {_ENOUGH_SEEDS} seeds (the fewest: {min(seeds)}).")
        return found

    def _as_report(self, training_users: float | None) -> ReportFigures:
        def chosen(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            return [
                {**entry, "backbone": self.group(entry)}
                for entry in entries
                if training_users is None or entry["training_users"] == training_users
            ]

        return ReportFigures(
            {
                "title": self.summary["title"],
                "notice": self.summary["notice"],
                "runs": chosen(self.summary["runs"]),
                "comparisons": [_with_an_interval(each) for each in chosen(self.summary["comparisons"])],
            }
        )


def in_order(slices: Sequence[str]) -> list[str]:
    """Slices, those that are asked for first in front."""
    return [name for name in FIRST_SLICES if name in slices] + [name for name in slices if name not in FIRST_SLICES]


def compared(entry: Mapping[str, Any]) -> str:
    """What a comparison compares, as it is read."""
    if entry["against"] == BASE:
        return variant_name(entry["variant"])
    return f"{variant_name(entry['variant'])} \N{MINUS SIGN} {variant_name(entry['against'])}"


def where(entry: Mapping[str, Any]) -> str:
    """The slice of an entry, as it is read."""
    return slice_name(entry["slice"])


def _with_an_interval(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison of one seed has the bootstrap's interval in place of the seeds'."""
    if comparison["low"] is not None:
        return comparison
    users = {"low": comparison["users_low"], "high": comparison["users_high"], "how": "bootstrap over users, 1 seed"}
    return {**comparison, **users}
