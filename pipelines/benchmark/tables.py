"""The tables of a benchmark's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kser_tf.pipelines.benchmark.figures import BenchmarkFigures, compared, in_order, where
from kser_tf.pipelines.report_figures import (
    BASE,
    duration,
    four_digits,
    plural,
    slice_name,
    variant_name,
    whole,
)
from kser_tf.pipelines.report_tables import MISSING, Cell, Head, Table, comparison_of, number_cell, table, words


def goal_table(figures: BenchmarkFigures) -> Table | None:
    """Each goal where it was measured."""
    rows = [
        [
            Cell(figures.group(goal)),
            Cell(variant_name(goal["variant"])),
            Cell(variant_name(goal["against"])),
            Cell(where(goal)),
            Cell(goal["goal"]),
            Cell(goal["found"], passed=goal["reached"], note=plural(goal["seeds"], "seed")),
        ]
        for goal in figures.summary["goals"]
    ]
    return table("Goals", ("Where", "Variant", "Against", "Slice", "Goal", "Found"), rows)


def peer_tables(figures: BenchmarkFigures) -> list[Table]:
    """For each group the differences between variants with knowledge: comparisons down, slices across."""
    tables = []
    for group in figures.groups:
        entries = [entry for entry in figures.of_group("comparisons", group) if entry["against"] != BASE]
        slices = in_order(list(dict.fromkeys(entry["slice"] for entry in entries)))
        by_pair: dict[str, dict[str, Mapping[str, Any]]] = {}
        for entry in entries:
            by_pair.setdefault(compared(entry), {})[entry["slice"]] = entry
        rows = [[Cell(pair), *(_difference_cell(of.get(name)) for name in slices)] for pair, of in by_pair.items()]
        if rows:
            tables.append(Table(group, [Head("Difference of AUC"), *(Head(slice_name(name)) for name in slices)], rows))
    return tables


def comparison_table(figures: BenchmarkFigures) -> Table | None:
    """Every comparison, with both intervals."""
    rows = [
        [
            Cell(figures.group(entry)),
            Cell(f"{100 * entry['training_users']:g} %"),
            Cell(compared(entry)),
            Cell(where(entry)),
            Cell(comparison=comparison_of(entry)),
            Cell(comparison=comparison_of({**entry, "low": entry["users_low"], "high": entry["users_high"]})),
            number_cell(entry["seeds"], whole),
        ]
        for entry in figures.summary["comparisons"]
    ]
    names = ("Where", "Users", "Comparison", "Slice", "Over seeds", "Over users", "Seeds")
    return table("Comparisons", names, rows)


def speed_tables(figures: BenchmarkFigures) -> list[Table]:
    """For each group how fast its variants train."""
    tables = []
    for group in figures.groups:
        entries = figures.of_group("speed", group)
        top = max((entry["rows_per_second"] for entry in entries), default=0)
        rows = [
            [
                Cell(variant_name(entry["variant"])),
                number_cell(entry["rows_per_second"], whole, top=top),
                number_cell(entry["ratio"], lambda ratio: f"{ratio:.2f}"),
                _time_to_base(entry),
                number_cell(entry["seconds"], duration),
                number_cell(entry["epochs"], lambda epochs: f"{epochs:.3g}"),
                number_cell(entry["trained_parameters"], whole),
            ]
            for entry in entries
        ]
        names = (
            "",
            "Rows per second",
            "Of the base's",
            "Time to the base's best validation AUC",
            "Whole training",
            "Epochs",
            "Trained parameters",
        )
        if rows:
            tables.append(Table(group, [Head(name) for name in names], rows))
    return tables


def tuning_table(figures: BenchmarkFigures) -> Table | None:
    """What the search tried and chose."""
    tuning = figures.summary["tuning"]
    rows = []
    for search in tuning["searches"] if tuning else ():
        aucs = [tried["validation_auc"] for tried in search["tried"]]
        present = [auc for auc in aucs if auc is not None]
        chosen = search["chosen"]
        rows.append(
            [
                Cell(figures.group(search)),
                Cell(variant_name(search["variant"])),
                Cell(MISSING if chosen is None else words(chosen) or "as configured"),
                number_cell(max(present, default=None), four_digits),
                number_cell(aucs[0], four_digits),
                Cell(f"{len(present)} of {len(aucs)}"),
            ]
        )
    names = ("Where", "Variant", "Chosen", "Its validation AUC", "As configured", "Trials done")
    return table("Search of settings", names, rows)


def progress_table(figures: BenchmarkFigures) -> Table | None:
    """For each part how many of its cells are done."""
    rows = [
        [Cell(name.replace("_", " ")), number_cell(part["done"], whole), number_cell(part["cells"], whole)]
        for name, part in figures.summary["progress"]["by_part"].items()
    ]
    return table("Progress", ("Part", "Done", "Cells"), rows)


def failure_table(figures: BenchmarkFigures) -> Table | None:
    """The cells that failed."""
    rows = [[Cell(failure["cell"]), Cell(failure["error"])] for failure in figures.summary["failures"]]
    return table("Failures", ("Cell", "Error"), rows)


def _difference_cell(entry: Mapping[str, Any] | None) -> Cell:
    return Cell(MISSING) if entry is None else Cell(comparison=comparison_of(entry))


def _time_to_base(entry: Mapping[str, Any]) -> Cell:
    cell = number_cell(entry["seconds_to_base"], duration)
    if entry["reached"] == entry["seeds"]:
        return cell
    return Cell(cell.text, cell.number, note=f"reached in {entry['reached']} of {plural(entry['seeds'], 'seed')}")
