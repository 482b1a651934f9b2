"""The tables, lists and sentences of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kser_tf.pipelines.report_figures import (
    METRICS,
    ReportFigures,
    backbone_name,
    duration,
    field_name,
    four_digits,
    percent,
    plural,
    shortened,
    signed,
    size,
    slice_name,
    three_digits,
    tone,
    variant_name,
    whole,
)

MISSING = "\N{EN DASH}"

# More is not read on a page; all of it is in report.json.
EXAMPLES_SHOWN = 12
_EXAMPLE_CHARACTERS = 400

_QUANTILES = ("0.05", "0.25", "0.5", "0.75", "0.95")


@dataclass(frozen=True)
class Number:
    """A figure with all its digits, and as it is read."""

    value: float
    text: str


@dataclass(frozen=True)
class Comparison:
    """A difference with its interval, if it has one, and whether that says better or worse."""

    difference: Number
    low: Number | None
    high: Number | None
    tone: str


@dataclass(frozen=True)
class Cell:
    """What stands in a table's cell: words or a figure, and what goes with it.

    Args:
        text: str. Words.
        number: A figure.
        note: str. Small words below.
        spread: The figure's standard deviation.
        comparison: A difference, below the figure.
        bar: float. From 0 to 1: a bar of that length before the figure.
        passed: bool. A tick or a cross after the words.
    """

    text: str = ""
    number: Number | None = None
    note: str = ""
    spread: Number | None = None
    comparison: Comparison | None = None
    bar: float | None = None
    passed: bool | None = None

    @property
    def holds_words(self) -> bool:
        """Whether it is set flush left, as words are."""
        return self.number is None and self.comparison is None and self.text not in ("", MISSING)


@dataclass(frozen=True)
class Head:
    """A column's name, and small words below it."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it."""

    caption: str
    head: Sequence[Head]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Example:
    """A chunk of text, whose it is, and the weight that it was given."""

    name: str
    place: str
    weight: Cell
    text: str
    fault: str


def headline_tables(figures: ReportFigures) -> list[Table]:
    """For each backbone the AUC of variants (down) on slices (across), and its difference to the base."""
    if not figures.slices:
        return []
    return [
        Table(
            backbone_name(backbone),
            [Head("AUC"), *(Head(slice_name(name), _rows_of(variants, name)) for name in figures.slices)],
            [
                [
                    Cell(variant_name(variant), note=plural(len(runs), "seed")),
                    *(_headline_cell(figures, backbone, variant, name) for name in figures.slices),
                ]
                for variant, runs in variants.items()
            ],
        )
        for backbone, variants in figures.runs.items()
    ]


def _headline_cell(figures: ReportFigures, backbone: str, variant: str, name: str) -> Cell:
    mean = figures.mean(backbone, variant, name, "auc")
    if mean is None:
        return Cell(MISSING)
    difference = figures.difference(backbone, variant, name)
    return Cell(
        number=Number(mean["mean"], four_digits(mean["mean"])),
        comparison=comparison_of(difference) if difference else None,
    )


def _rows_of(variants: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> str:
    """A slice's number of rows, which is the same for all runs that were evaluated on the same split."""
    rows = {(run.get("metrics") or {}).get(name, {}).get("rows") for runs in variants.values() for run in runs} - {None}
    return plural(rows.pop(), "row") if len(rows) == 1 else ""


def comparison_of(comparison: Mapping[str, Any]) -> Comparison | None:
    """Returns a difference with its interval as a table shows it; `None` where there is no figure."""
    numbers = [
        None if comparison.get(key) is None else Number(comparison[key], signed(comparison[key]))
        for key in ("difference", "low", "high")
    ]
    return None if numbers[0] is None else Comparison(numbers[0], numbers[1], numbers[2], tone(comparison))


def metric_tables(figures: ReportFigures) -> list[tuple[str, list[Table]]]:
    """For each backbone a table for each metric: variants down, slices across."""
    result = []
    for backbone, variants in figures.runs.items():
        tables = []
        for metric, metric_name in METRICS.items():
            means = {v: [figures.mean(backbone, v, name, metric) for name in figures.slices] for v in variants}
            if any(mean for row in means.values() for mean in row):
                head = [Head(""), *(Head(slice_name(name)) for name in figures.slices)]
                rows = [[Cell(variant_name(v)), *(_mean_cell(mean) for mean in row)] for v, row in means.items()]
                tables.append(Table(metric_name, head, rows))
        if tables:
            result.append((backbone_name(backbone), tables))
    return result


def _mean_cell(mean: Mapping[str, Any] | None) -> Cell:
    if mean is None:
        return Cell(MISSING)
    spread = mean["standard_deviation"]
    return Cell(
        number=Number(mean["mean"], four_digits(mean["mean"])),
        spread=None if spread is None else Number(spread, four_digits(spread)),
    )


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> Table | None:
    """All comparisons, one a row."""
    names = ("Backbone", "Variant", "Against", "Slice", "Metric", "Difference", "How")
    rows = [
        [
            Cell(backbone_name(comparison.get("backbone") or "")),
            Cell(variant_name(comparison.get("variant") or "")),
            Cell(variant_name(comparison.get("against") or "")),
            Cell(slice_name(comparison.get("slice") or "")),
            Cell(METRICS.get(comparison.get("metric") or "", comparison.get("metric") or "")),
            Cell(comparison=comparison_of(comparison)),
            Cell(comparison.get("how") or ""),
        ]
        for comparison in comparisons
    ]
    return table("Comparisons", names, rows)


def training_tables(figures: ReportFigures) -> list[Table]:
    """What training cost, for each backbone, averaged over the seeds."""
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "trained_parameters": ("Trained parameters", whole),
        "total_parameters": ("All parameters", whole),
        "best_epoch": ("Best epoch", lambda epoch: f"{epoch:.3g}"),
        "seconds": ("Time", duration),
        "rows_per_second": ("Rows per second", whole),
    }
    tables = []
    for backbone, variants in figures.runs.items():
        rows = []
        for variant, runs in variants.items():
            row = [Cell(variant_name(variant))]
            for key, (_, text) in columns.items():
                present = [run[key] for run in runs if run.get(key) is not None]
                row.append(number_cell(sum(present) / len(present) if present else None, text))
            rows.append(row)
        if any(cell.number for row in rows for cell in row):
            head = [Head(""), *(Head(name) for name, _ in columns.values())]
            tables.append(Table(backbone_name(backbone), head, rows))
    return tables


def run_table(runs: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each run on all rows."""
    rows = []
    for run in runs:
        overall = (run.get("metrics") or {}).get("all") or {}
        name = run.get("name") or " ".join(words(run.get(key)) for key in ("backbone", "variant", "seed"))
        rows.append(
            [
                Cell(name),
                *(number_cell(overall.get(metric), four_digits) for metric in METRICS),
                number_cell(run.get("best_epoch"), whole),
                number_cell(run.get("seconds"), duration),
            ]
        )
    return table("All runs, on all rows", ("Run", *METRICS.values(), "Best epoch", "Time"), rows)


def field_weight_table(fields: Sequence[Mapping[str, Any]]) -> Table | None:
    """Mean and quantiles of the weights, one field a row."""
    rows = [
        [
            Cell(field_name(field)),
            number_cell(field.get("mean"), three_digits),
            *(number_cell((field.get("quantiles") or {}).get(quantile), three_digits) for quantile in _QUANTILES),
        ]
        for field in fields
    ]
    names = ("Field", "Mean", *(f"{100 * float(quantile):g} %" for quantile in _QUANTILES))
    return table("Weight by field: mean and quantiles", names, rows)


def position_table(chunks: Sequence[Mapping[str, Any]]) -> Table | None:
    """Mean weight by a chunk's place in its field: fields down, places across."""
    means = {(field_name(chunk), chunk["position"]): chunk.get("mean") for chunk in chunks}
    places = sorted({place for _, place in means})
    top = _largest(means.values())
    rows = [
        [Cell(field), *(number_cell(means.get((field, place)), three_digits, top=top) for place in places)]
        for field in dict.fromkeys(field for field, _ in means)
    ]
    return table("Mean weight by the chunk's place in its field", ("Field", *(f"Chunk {p + 1}" for p in places)), rows)


def examples(chunks: Sequence[Mapping[str, Any]]) -> list[Example]:
    """The first of some chunks, their texts cut to what is read."""
    return [
        Example(
            name=words(chunk.get("id") if chunk.get("name") in (None, "") else chunk["name"]),
            place=field_name(chunk) + (f", chunk {chunk['position'] + 1}" if chunk.get("position") is not None else ""),
            weight=number_cell(chunk.get("weight"), three_digits),
            text=shortened(chunk.get("text") or "", _EXAMPLE_CHARACTERS),
            fault=chunk.get("fault") or "",
        )
        for chunk in chunks[:EXAMPLES_SHOWN]
    ]


def fault_table(faults: Mapping[str, Any]) -> Table | None:
    """The weights of good chunks and of each kind of planted fault."""
    kinds = faults.get("kinds") or {}
    if not kinds:
        return None
    good = faults.get("good_mean_weight")
    top = _largest([good, *(kind.get("mean_weight") for kind in kinds.values())])
    rows = [[Cell("good chunks"), number_cell(good, three_digits, top=top), Cell(MISSING), Cell(MISSING)]]
    rows += [
        [
            Cell(name.replace("_", " ")),
            number_cell(kind.get("mean_weight"), three_digits, top=top),
            number_cell(kind.get("auc"), four_digits),
            number_cell(kind.get("chunks"), whole),
        ]
        for name, kind in kinds.items()
    ]
    return table("Planted faults", ("Kind", "Mean weight", "AUC of weight against fault", "Chunks"), rows)


def fault_sentence(faults: Mapping[str, Any]) -> str:
    """What ESFNet made of the planted faults, in words."""
    auc = faults.get("auc")
    if auc is None:
        return "There is no AUC of weight against planted fault."
    return (
        f"In {percent(auc)} of all pairs of a good chunk and a planted fault, ESFNet gives the fault less weight "
        f"(AUC of weight against fault {four_digits(auc)}; 0.5 is chance)."
    )


def split_table(splits: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Rows and positives of train, validation and test."""
    rows = []
    for name, split in splits.items():
        number, positives = split.get("rows"), split.get("positives")
        share = positives / number if number and positives is not None else None
        rows.append(
            [Cell(name), number_cell(number, whole), number_cell(positives, whole), number_cell(share, percent)]
        )
    return table("Rows", ("Split", "Rows", "Positives", "Share of positives"), rows)


def feature_table(features: Sequence[Any]) -> Table | None:
    """The model's inputs, given as mappings (what `dataset.json` holds) or by their names alone."""
    described = [feature if isinstance(feature, Mapping) else {"name": feature} for feature in features]
    columns = [
        column
        for column in ("name", "kind", "dtype", "length", "vocabulary", "entity")
        if any(feature.get(column) is not None for feature in described)
    ]
    rows = [[_value_cell(column, feature.get(column)) for column in columns] for feature in described]
    return table("Features", [column.capitalize() for column in columns], rows)


def coverage_table(coverage: Mapping[str, Any]) -> Table | None:
    """The share of entities that have text, by field."""
    rows = [[Cell(field), number_cell(share, percent, top=1)] for field, share in coverage.items()]
    return table("Coverage", ("Field", "Entities with text"), rows)


def check_table(checks: Sequence[Mapping[str, Any]]) -> Table | None:
    """What was checked of the exported model."""
    results = {True: "passed", False: "failed", None: "could not be looked at"}
    rows = [
        [
            Cell(words(check.get("name"))),
            Cell(results[check.get("ok")], passed=check.get("ok")),
            Cell(words(check.get("detail"))),
        ]
        for check in checks
    ]
    return table("Checks", ("Check", "Result", "Detail"), rows)


def check_sentence(check: Mapping[str, Any]) -> str:
    """Whether the exported model passed, in words."""
    verdict = "passed" if check.get("ok") else "FAILED"
    results = [item.get("ok") for item in check.get("checks") or []]
    counts = [f"{results.count(True)} passed", f"{results.count(False)} failed"]
    counts += [f"{results.count(None)} could not be looked at"] if None in results else []
    return f"Check of the exported model: {verdict} ({', '.join(counts)})."


def step_table(steps: Sequence[Mapping[str, Any]]) -> Table | None:
    """The run's jobs and their times."""
    rows = [
        [
            Cell(words(step.get("job"))),
            number_cell(step.get("seconds"), duration),
            Cell("skipped: nothing had changed" if step.get("skipped") else "done"),
        ]
        for step in steps
    ]
    return table("Steps", ("Step", "Time", ""), rows)


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """A mapping of which nothing is known but its keys, as pairs of name and value."""
    return [(key.replace("_", " "), _value_cell(key, value)) for key, value in mapping.items() if value is not None]


def number_cell(value: float | None, text: Callable[[float], str], top: float = 0) -> Cell:
    """A figure, or a dash if it is not defined; with `top`, also a bar, which is full at `top`."""
    if value is None:
        return Cell(MISSING)
    return Cell(number=Number(value, text(value)), bar=max(0.0, min(1.0, value / top)) if top > 0 else None)


def words(value: Any) -> str:
    """Any value of a JSON file in words."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')}: {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(words(item) for item in value)
    return str(value)


def _value_cell(key: str, value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(words(value))
    if key == "bytes":
        return Cell(number=Number(value, size(value)))
    if key in ("rows", "chunks"):
        return Cell(number=Number(value, whole(value)))
    # Without separators: it may be a year or an id.
    return Cell(number=Number(value, str(value) if isinstance(value, int) else f"{value:.6g}"))


def _largest(values: Any) -> float:
    return max((value for value in values if value is not None), default=0)


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table | None:
    """Returns a table with plain column names, or `None` if it has no row."""
    return Table(caption, [Head(name) for name in names], rows) if rows else None
