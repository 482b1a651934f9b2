"""The report of a run: `report.json` for machines, `report.html` for people, a short text for the terminal.

The page is one file without scripts or links to anything outside, in light and dark, for a desk and for a telephone. Its numbers stand in
`<data value="...">` elements with all their digits. It is made in three steps, which are the three parts of this module: the figures
(`_plain`, `_means`), what the page says (`_page`: tables, lists and plots), and how a plot is drawn (`_draw`). How all that is set is in
`report.html.jinja`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import DataError, MissingExtraError
from kser_tf.files import write_json, write_text

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"

BASE = "base"

# More are not read; the rest is in report.json.
EXAMPLES_SHOWN = 12
EXAMPLE_CHARACTERS = 400

MISSING = "–"

_METRICS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "Log loss", "calibration_error": "Calibration error"}
_LOWER_IS_BETTER = ("log_loss", "calibration_error")

# Known slices, in the order of the page: name and meaning.
_SLICES = {
    "all": ("All rows", ""),
    "warm": ("Warm items", "items that were not held out of training"),
    "head": ("Head items", "warm items with at least 50 training rows"),
    "tail": ("Tail items", "warm items with fewer than 50 training rows"),
    "cold": ("Cold items", "items taken out of training altogether"),
    "active_users": ("Active users", "users with more interactions than the median user"),
    "quiet_users": ("Quiet users", "the other users"),
}
# The columns that fit into a terminal of 80 characters.
_TERMINAL_SLICES = ("all", "warm", "tail", "cold")

# Known variants: name and meaning. Others are shown by the name they come with.
_VARIANTS = {
    BASE: ("base", "the backbone without knowledge"),
    "all_parameters": ("all parameters", "extractor and backbone trained together"),
    "extractor_only": (
        "extractor only",
        "starting from a trained base: the extractor, the embedding layers and the output layer are trained, the core is frozen",
    ),
    "placebo": ("placebo", "the same model on shuffled knowledge, each entity with another one's text: what it gains is not knowledge"),
}


def require_report_extra() -> None:
    """Checks that a page can be rendered, so that a long job finds out before it begins.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    for module in ("jinja2", "matplotlib"):
        try:
            __import__(module)
        except ImportError:
            raise MissingExtraError(module, "report") from None


def write_report(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes `report.json` and `report.html`, both of the same figures.

    Both are rendered before the first is written. NaN and infinity become null (what is not defined, such as the AUC of rows of one class,
    and what a diverged run has left), and are shown as a dash. NumPy numbers and arrays become plain ones. `report.json` holds what was
    given and `means`: for each backbone, variant, slice and metric the mean over the seeds, as the page shows it.

    Args:
        folder: Where to; made if need be.
        report: The figures. All but `title` and `runs` may be missing, `None` or empty; the page leaves out what is not there. Texts may hold
            any characters.

            - `title`: str.
            - `notice`: str, shown in a box at the top (such as that clicks are simulated).
            - `summary`: list of sentences.
            - `data`: `{"splits": {name: {"rows", "positives"}}, "protocol": {..}, "features": [{"name", "kind", "dtype", ..}]}`.
            - `store`: for each entity what `KnowledgeStore.describe` returns.
            - `runs`: a list of `{"name", "backbone", "variant", "seed", "metrics": {slice: {"rows", "positives", "auc", "gauc", "log_loss",
              "calibration_error"}}, "curve": [{"epoch", "loss", "val_loss", "val_auc"}], "trained_parameters", "total_parameters",
              "seconds", "rows_per_second", "best_epoch", "popularity": [{"low", "high", "rows", "auc"}], "calibration": [{"predicted",
              "observed", "rows"}]}`. The variant `"base"` is what others are compared with. The slices, bins and metrics are those of
              `kser_tf.metrics`.
            - `comparisons`: a list of `{"backbone", "variant", "against", "slice", "metric", "difference", "low", "high", "how", "seeds"}`.
              Those of the AUC against the base are shown in the first table; coloured where 0 lies outside low to high.
            - `weights`: `{"fields": [{"entity", "field", "mean", "quantiles": {"0.05", "0.25", "0.5", "0.75", "0.95"}, "edges",
              "counts"}], "chunks": [{"entity", "field", "position" (from 0), "mean", "count"}], "run"}`.
            - `filtered`, `kept`: lists of `{"entity", "id", "name", "field", "position" (from 0), "weight", "text", "fault"}`.
            - `faults`: `{"auc", "good_mean_weight", "kinds": {kind: {"auc", "mean_weight", "chunks"}}, "run"}`.
            - `export`: `{"path", "bytes", "version", ..}`; `check`: `{"ok", "checks": [{"name", "ok", "detail"}]}`.
            - `steps`: a list of `{"job", "seconds", "skipped"}`; `versions`: `{package: version}`; `command`, `finished`: str.

    Returns:
        The page's path.

    Raises:
        DataError: `title` or `runs` is missing, or a value is none that JSON can hold.
        MissingExtraError: jinja2 or matplotlib is not installed.
        FileError: The folder cannot be written to.
    """
    require_report_extra()
    figures = _figures(report)
    html = _render(_page(figures))
    folder = Path(folder)
    write_json(folder / REPORT_JSON, figures)
    write_text(folder / REPORT_HTML, html)
    return folder / REPORT_HTML


def text_summary(report: Mapping[str, Any]) -> str:
    """Returns the report's main table as plain text: AUC by backbone, variant and slice, with the difference to the base.

    Args:
        report: As for `write_report`. Needs neither jinja2 nor matplotlib.

    Returns:
        Lines of at most about 80 characters, with a final newline. A star marks differences whose interval excludes 0.

    Raises:
        DataError: As `write_report`.
    """
    figures = _figures(report)
    lines = [figures["title"], "=" * len(figures["title"])]
    if figures.get("notice"):
        lines += [figures["notice"]]
    lines += figures.get("summary") or []
    for backbone, variants in _runs_by_variant(figures).items():
        slices = _slices_of(figures)
        slices = [s for s in slices if s in _TERMINAL_SLICES] or slices[: len(_TERMINAL_SLICES)]
        if not slices:
            continue
        seeds = max(len(runs) for runs in variants.values())
        lines += ["", f"{backbone}: AUC, mean over {_plural(seeds, 'seed')}, and difference to the base (* 95 % interval excludes 0)"]
        rows = [["", *(_slice_name(s) for s in slices)]]
        for variant in variants:
            rows += [[_variant_name(variant), *(_text_cell(figures, backbone, variant, s) for s in slices)]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if figures.get("faults"):
        lines += ["", _faults_sentence(figures["faults"])]
    if figures.get("check"):
        lines += ["", _check_sentence(figures["check"])]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------- figures


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report as JSON will hold it, with the means over seeds."""
    for key in ("title", "runs"):
        if key not in report:
            raise DataError(f"the report has no `{key}`. It must have `title` and `runs`; got: {', '.join(map(str, report)) or 'nothing'}.")
    figures: dict[str, Any] = _plain(report, "report")
    figures["runs"] = figures["runs"] or []
    figures["means"] = _means(figures["runs"])
    return figures


def _plain(value: Any, where: str) -> Any:
    """Turns a value into what JSON can hold; `where` names it in messages."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # half of a surrogate pair, from a broken escape in JSON, cannot be written as UTF-8
        return value.encode("utf-8", "replace").decode("utf-8") if not value.isascii() else value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"`{where}` has the key {key!r}. Keys must be strings: JSON has no others.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise DataError(f"`{where}` is a {type(value).__name__}, which JSON cannot hold. Give numbers, strings, lists or mappings.")


def _means(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each backbone, variant, slice and metric."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for run in runs:
        for name, of_slice in (run.get("metrics") or {}).items():
            for metric in _METRICS:
                if of_slice.get(metric) is not None:
                    key = (run.get("backbone") or "", run.get("variant") or "", name, metric)
                    values.setdefault(key, []).append(of_slice[metric])
    return [
        {
            "backbone": backbone,
            "variant": variant,
            "slice": name,
            "metric": metric,
            "mean": statistics.fmean(of_seeds),
            "standard_deviation": statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
            "seeds": len(of_seeds),
        }
        for (backbone, variant, name, metric), of_seeds in values.items()
    ]


def _runs_by_variant(figures: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Backbone -> variant -> its runs, one for each seed. The base comes first, the others as they come."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in sorted(figures["runs"], key=lambda run: run.get("variant") != BASE):
        grouped.setdefault(run.get("backbone") or "", {}).setdefault(run.get("variant") or "", []).append(run)
    return grouped


def _variants_of(figures: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(variant for variants in _runs_by_variant(figures).values() for variant in variants))


def _slices_of(figures: Mapping[str, Any]) -> list[str]:
    """The slices that any run has, known ones first and in their order."""
    found = dict.fromkeys(name for run in figures["runs"] for name in run.get("metrics") or {})
    return [name for name in _SLICES if name in found] + [name for name in found if name not in _SLICES]


def _mean_of(figures: Mapping[str, Any], backbone: str, variant: str, slice_name: str, metric: str) -> dict[str, Any] | None:
    wanted = {"backbone": backbone, "variant": variant, "slice": slice_name, "metric": metric}
    return next((mean for mean in figures["means"] if wanted.items() <= mean.items()), None)


def _difference_to_base(figures: Mapping[str, Any], backbone: str, variant: str, slice_name: str) -> dict[str, Any] | None:
    """The comparison of the AUC with the base's, if there is one with a figure in it."""
    wanted = {"backbone": backbone, "variant": variant, "slice": slice_name, "metric": "auc", "against": BASE}
    for comparison in figures.get("comparisons") or []:
        if wanted.items() <= comparison.items() and comparison.get("difference") is not None:
            return dict(comparison)
    return None


def _tone(comparison: Mapping[str, Any]) -> str:
    """`"better"` or `"worse"` where the interval excludes 0, else nothing."""
    low, high = comparison.get("low"), comparison.get("high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) != (comparison.get("metric") in _LOWER_IS_BETTER) else "worse"


def _mean_band(columns: Iterable[Sequence[float | None]]) -> tuple[list[float], list[float], list[float]]:
    """Mean, lowest and highest over the seeds at each place; NaN at a place where no seed has a figure."""
    mean, low, high = [], [], []
    for column in columns:
        present = [value for value in column if value is not None]
        mean.append(statistics.fmean(present) if present else math.nan)
        low.append(min(present, default=math.nan))
        high.append(max(present, default=math.nan))
    return mean, low, high


# --------------------------------------------------------------------------------------------------- what the page says


@dataclass(frozen=True)
class _Number:
    """A figure with all its digits, and as it is read."""

    value: float
    text: str


@dataclass(frozen=True)
class _Cell:
    """What stands in a table's cell: words or a figure, and below it a difference with its interval."""

    text: str = ""
    number: _Number | None = None
    spread: _Number | None = None
    difference: _Number | None = None
    low: _Number | None = None
    high: _Number | None = None
    tone: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class _Table:
    caption: str
    head: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[_Cell]]


@dataclass(frozen=True)
class _Plot:
    title: str
    alt: str
    view_box: str
    body: str


@dataclass(frozen=True)
class _Panel:
    """Plots side by side, with one legend and one explanation."""

    plots: Sequence[_Plot]
    legend: Sequence[tuple[str, int, str]] = ()


def _page(figures: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows; an empty value means that the part is left out."""
    weights = figures.get("weights") or {}
    data = figures.get("data") or {}
    check = figures.get("check") or {}
    return {
        "title": figures["title"],
        "notice": figures.get("notice") or "",
        "summary": figures.get("summary") or [],
        "finished": figures.get("finished") or "",
        "headline": _headline_tables(figures),
        "intervals": sorted({c["how"] for c in figures.get("comparisons") or [] if c.get("how")}),
        "variants": [(_variant_name(v), _VARIANTS[v][1]) for v in _variants_of(figures) if v in _VARIANTS],
        "slices": [_SLICES[s] for s in _slices_of(figures) if s in _SLICES and _SLICES[s][1]],
        "differences": _difference_panel(figures),
        "metrics": _metric_tables(figures),
        "comparisons": _comparison_table(figures),
        "popularity": _popularity_panel(figures),
        "curves": _curve_panel(figures),
        "calibration": _calibration_panel(figures),
        "training": _training_tables(figures),
        "runs": _run_table(figures),
        "weights_run": weights.get("run") or "",
        "weight_fields": _field_weight_panel(weights.get("fields") or []),
        "weight_field_table": _field_weight_table(weights.get("fields") or []),
        "weight_positions": _position_table(weights.get("chunks") or []),
        "filtered": _examples(figures.get("filtered") or []),
        "kept": _examples(figures.get("kept") or []),
        "more_examples": max(len(figures.get("filtered") or []), len(figures.get("kept") or [])) > EXAMPLES_SHOWN,
        "faults": _faults_table(figures.get("faults") or {}),
        "faults_sentence": _faults_sentence(figures["faults"]) if figures.get("faults") else "",
        "splits": _split_table(data.get("splits") or {}),
        "protocol": _facts(data.get("protocol") or {}),
        "features": _feature_table(data.get("features") or []),
        "stores": [
            (entity, _facts({k: v for k, v in store.items() if k != "coverage"}), _coverage_table(store.get("coverage") or {}))
            for entity, store in (figures.get("store") or {}).items()
        ],
        "export": _facts(figures.get("export") or {}),
        "check": _check_table(check),
        "check_sentence": _check_sentence(check) if check else "",
        "steps": _step_table(figures.get("steps") or []),
        "versions": _facts(figures.get("versions") or {}),
        "command": figures.get("command") or "",
    }


def _headline_tables(figures: Mapping[str, Any]) -> list[_Table]:
    slices = _slices_of(figures)
    if not slices:
        return []
    tables = []
    for backbone, variants in _runs_by_variant(figures).items():
        rows = []
        for variant, runs in variants.items():
            cells = [_headline_cell(figures, backbone, variant, name) for name in slices]
            rows.append([_Cell(f"{_variant_name(variant)} ({_plural(len(runs), 'seed')})"), *cells])
        tables.append(_Table(backbone, [("AUC", ""), *_slice_head(variants, slices)], rows))
    return tables


def _headline_cell(figures: Mapping[str, Any], backbone: str, variant: str, slice_name: str) -> _Cell:
    mean = _mean_of(figures, backbone, variant, slice_name, "auc")
    if mean is None:
        return _Cell(MISSING)
    cell = _Cell(number=_Number(mean["mean"], _digits(mean["mean"])))
    comparison = _difference_to_base(figures, backbone, variant, slice_name)
    if comparison is None:
        return cell
    return dataclasses.replace(cell, tone=_tone(comparison), **_interval(comparison))


def _interval(comparison: Mapping[str, Any]) -> dict[str, _Number]:
    return {
        key: _Number(comparison[key], _signed(comparison[key]))
        for key in ("difference", "low", "high")
        if comparison.get(key) is not None
    }


def _slice_head(variants: Mapping[str, Sequence[Mapping[str, Any]]], slices: Sequence[str]) -> list[tuple[str, str]]:
    """A column's name and the number of its rows, which is the same for all runs on the same split."""
    head = []
    for name in slices:
        rows = {(run.get("metrics") or {}).get(name, {}).get("rows") for runs in variants.values() for run in runs} - {None}
        head.append((_slice_name(name), f"{rows.pop():,} rows" if len(rows) == 1 else ""))
    return head


def _metric_tables(figures: Mapping[str, Any]) -> list[tuple[str, list[_Table]]]:
    """For each backbone a table for each metric: variants down, slices across."""
    slices = _slices_of(figures)
    result = []
    for backbone, variants in _runs_by_variant(figures).items():
        tables = []
        for metric, metric_name in _METRICS.items():
            means = {v: [_mean_of(figures, backbone, v, name, metric) for name in slices] for v in variants}
            if any(mean for row in means.values() for mean in row):
                rows = [[_Cell(_variant_name(v)), *(_mean_cell(mean) for mean in row)] for v, row in means.items()]
                tables.append(_Table(metric_name, [("", ""), *((_slice_name(name), "") for name in slices)], rows))
        if tables:
            result.append((backbone, tables))
    return result


def _mean_cell(mean: Mapping[str, Any] | None) -> _Cell:
    if mean is None:
        return _Cell(MISSING)
    spread = mean["standard_deviation"]
    return _Cell(
        number=_Number(mean["mean"], _digits(mean["mean"])),
        spread=None if spread is None else _Number(spread, _digits(spread)),
    )


def _comparison_table(figures: Mapping[str, Any]) -> _Table | None:
    rows = [
        [
            _Cell(comparison.get("backbone") or ""),
            _Cell(f"{_variant_name(comparison.get('variant') or '')} – {_variant_name(comparison.get('against') or '')}"),
            _Cell(_slice_name(comparison.get("slice") or "")),
            _Cell(_METRICS.get(comparison.get("metric") or "", comparison.get("metric") or "")),
            _Cell(tone=_tone(comparison), **_interval(comparison)),
            _Cell(comparison.get("how") or ""),
        ]
        for comparison in figures.get("comparisons") or []
    ]
    head = [("Backbone", ""), ("Difference of", ""), ("Slice", ""), ("Metric", ""), ("Difference", "95 % interval"), ("How", "")]
    return _Table("All comparisons", head, rows) if rows else None


def _training_tables(figures: Mapping[str, Any]) -> list[_Table]:
    """What training cost, for each backbone, averaged over the seeds."""
    columns = (
        ("trained_parameters", "Trained parameters", _whole),
        ("total_parameters", "All parameters", _whole),
        ("best_epoch", "Best epoch", lambda value: f"{value:.1f}"),
        ("seconds", "Time", _duration),
        ("rows_per_second", "Rows per second", _whole),
    )
    tables = []
    for backbone, variants in _runs_by_variant(figures).items():
        rows = []
        for variant, runs in variants.items():
            cells = []
            for key, _, text in columns:
                present = [run[key] for run in runs if run.get(key) is not None]
                mean = statistics.fmean(present) if present else None
                cells.append(_Cell(MISSING) if mean is None else _Cell(number=_Number(mean, text(mean))))
            rows.append([_Cell(_variant_name(variant)), *cells])
        if any(cell.number for row in rows for cell in row):
            tables.append(_Table(backbone, [("", ""), *((name, "") for _, name, _ in columns)], rows))
    return tables


def _run_table(figures: Mapping[str, Any]) -> _Table | None:
    rows = []
    for run in figures["runs"]:
        overall = (run.get("metrics") or {}).get("all") or {}
        rows.append(
            [
                _Cell(run.get("name") or f"{run.get('backbone')}/{run.get('variant')}/{run.get('seed')}"),
                *(_number_cell(overall.get(metric), _digits) for metric in _METRICS),
                _number_cell(run.get("best_epoch"), _whole),
                _number_cell(run.get("seconds"), _duration),
            ]
        )
    head = [("Run", ""), *((name, "") for name in _METRICS.values()), ("Best epoch", ""), ("Time", "")]
    return _Table("All runs, on all rows", head, rows) if rows else None


def _field_weight_table(fields: Sequence[Mapping[str, Any]]) -> _Table | None:
    quantiles = ("0.05", "0.25", "0.5", "0.75", "0.95")
    rows = [
        [
            _Cell(_field_name(field)),
            _number_cell(field.get("mean"), _weight),
            *(_number_cell((field.get("quantiles") or {}).get(q), _weight) for q in quantiles),
        ]
        for field in fields
    ]
    head = [("Field", ""), ("Mean", ""), *((f"{100 * float(q):g} %", "") for q in quantiles)]
    return _Table("Weight by field: mean and quantiles", head, rows) if rows else None


def _position_table(chunks: Sequence[Mapping[str, Any]]) -> _Table | None:
    """Mean weight by a chunk's place in its field."""
    fields = list(dict.fromkeys(_field_name(chunk) for chunk in chunks))
    positions = sorted({chunk["position"] for chunk in chunks if chunk.get("position") is not None})
    means = {(_field_name(chunk), chunk.get("position")): chunk.get("mean") for chunk in chunks}
    top = max((mean for mean in means.values() if mean is not None), default=0)
    rows = []
    for field in fields:
        cells = [_number_cell(means.get((field, position)), _weight, top=top) for position in positions]
        rows.append([_Cell(field), *cells])
    head = [("Field", ""), *((f"Chunk {position + 1}", "") for position in positions)]
    return _Table("Mean weight by the chunk's place in its field", head, rows) if rows else None


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for example in examples[:EXAMPLES_SHOWN]:
        position = example.get("position")
        name = example.get("name")
        shown.append(
            {
                "name": str(example.get("id", "") if name in (None, "") else name),
                "place": _field_name(example) + ("" if position is None else f", chunk {position + 1}"),
                "weight": _number_cell(example.get("weight"), _weight),
                "text": _shortened(example.get("text") or "", EXAMPLE_CHARACTERS),
                "fault": example.get("fault") or "",
            }
        )
    return shown


def _faults_table(faults: Mapping[str, Any]) -> _Table | None:
    kinds = faults.get("kinds") or {}
    if not kinds:
        return None
    good = faults.get("good_mean_weight")
    top = max((w for w in (good, *(kind.get("mean_weight") for kind in kinds.values())) if w is not None), default=0)
    rows = [[_Cell("good chunks"), _number_cell(good, _weight, top=top), _Cell(MISSING), _Cell(MISSING)]]
    for name, kind in kinds.items():
        rows.append(
            [
                _Cell(name.replace("_", " ")),
                _number_cell(kind.get("mean_weight"), _weight, top=top),
                _number_cell(kind.get("auc"), _digits),
                _number_cell(kind.get("chunks"), _whole),
            ]
        )
    return _Table("Planted faults", [("Kind", ""), ("Mean weight", ""), ("AUC of weight against fault", ""), ("Chunks", "")], rows)


def _faults_sentence(faults: Mapping[str, Any]) -> str:
    auc = faults.get("auc")
    if auc is None:
        return "Planted faults: no AUC of weight against fault."
    return (
        f"Planted faults: in {_percent(auc)} of all pairs of a good chunk and a planted fault, ESFNet gives the fault less weight "
        f"(AUC of weight against fault {_digits(auc)}; {_digits(0.5)} is chance)."
    )


def _split_table(splits: Mapping[str, Mapping[str, Any]]) -> _Table | None:
    rows = []
    for name, split in splits.items():
        size, positives = split.get("rows"), split.get("positives")
        share = positives / size if size and positives is not None else None
        rows.append([_Cell(name), _number_cell(size, _whole), _number_cell(positives, _whole), _number_cell(share, _percent)])
    return _Table("Rows", [("Split", ""), ("Rows", ""), ("Positives", ""), ("Share of positives", "")], rows) if rows else None


def _feature_table(features: Sequence[Any]) -> _Table | None:
    """Features as mappings (what `dataset.json` holds), or names alone."""
    columns = ("name", "kind", "dtype", "length", "vocabulary", "entity")
    described = [feature if isinstance(feature, Mapping) else {"name": feature} for feature in features]
    present = [column for column in columns if any(feature.get(column) is not None for feature in described)]
    rows = [[_value_cell(column, feature.get(column)) for column in present] for feature in described]
    return _Table("Features", [(column.capitalize(), "") for column in present], rows) if rows else None


def _coverage_table(coverage: Mapping[str, Any]) -> _Table | None:
    rows = [[_Cell(field), _number_cell(share, _percent, top=1)] for field, share in coverage.items()]
    return _Table("Coverage", [("Field", ""), ("Entities with text", "")], rows) if rows else None


def _check_table(check: Mapping[str, Any]) -> _Table | None:
    rows = [
        [
            _Cell(str(item.get("name") or "")),
            _Cell("passed" if item.get("ok") else "failed", tone="better" if item.get("ok") else "worse"),
            _Cell(_words(item.get("detail"))),
        ]
        for item in check.get("checks") or []
    ]
    return _Table("Checks", [("Check", ""), ("Result", ""), ("Detail", "")], rows) if rows else None


def _check_sentence(check: Mapping[str, Any]) -> str:
    checks = check.get("checks") or []
    passed = sum(bool(item.get("ok")) for item in checks)
    return f"Check of the exported model: {'passed' if check.get('ok') else 'FAILED'} ({passed} of {_plural(len(checks), 'check')})."


def _step_table(steps: Sequence[Mapping[str, Any]]) -> _Table | None:
    rows = [
        [
            _Cell(str(step.get("job") or "")),
            _number_cell(step.get("seconds"), _duration),
            _Cell("skipped: nothing had changed" if step.get("skipped") else "done"),
        ]
        for step in steps
    ]
    return _Table("Steps", [("Step", ""), ("Time", ""), ("", "")], rows) if rows else None


def _facts(mapping: Mapping[str, Any]) -> list[tuple[str, _Cell]]:
    return [(key.replace("_", " "), _value_cell(key, value)) for key, value in mapping.items() if value is not None]


def _value_cell(key: str, value: Any) -> _Cell:
    """A cell for a value of which nothing is known but its name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _Cell(_words(value))
    if key == "bytes":
        return _Cell(number=_Number(value, _size(value)))
    return _Cell(number=_Number(value, _whole(value) if isinstance(value, int) else f"{value:.6g}"))


def _number_cell(value: float | None, text: Callable[[float], str], top: float = 0) -> _Cell:
    """A figure; with `top`, also a bar, which is full at `top`."""
    if value is None:
        return _Cell(MISSING)
    return _Cell(number=_Number(value, text(value)), bar=max(0.0, min(1.0, value / top)) if top > 0 else None)


def _words(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _text_cell(figures: Mapping[str, Any], backbone: str, variant: str, slice_name: str) -> str:
    mean = _mean_of(figures, backbone, variant, slice_name, "auc")
    if mean is None:
        return MISSING
    comparison = _difference_to_base(figures, backbone, variant, slice_name)
    if comparison is None:
        return _digits(mean["mean"])
    return f"{_digits(mean['mean'])} {comparison['difference']:+.4f}{'*' if _tone(comparison) else ''}"


def _variant_name(variant: str) -> str:
    return _VARIANTS[variant][0] if variant in _VARIANTS else variant.replace("_", " ")


def _slice_name(name: str) -> str:
    return _SLICES[name][0] if name in _SLICES else name.replace("_", " ")


def _field_name(chunk: Mapping[str, Any]) -> str:
    return " · ".join(str(chunk[key]) for key in ("entity", "field") if chunk.get(key))


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _digits(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _weight(value: float) -> str:
    return f"{value:.3f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            break
        size /= 1000
    else:
        unit = "TB"
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------------------------------------- plots
#
# matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables: so a plot follows the page into dark mode.
# Every plot is as wide as a telephone, and a wide screen shows several side by side: so its letters are of one size everywhere.

_WIDTH, _HEIGHT = 360, 240  # in points, which are the units of the SVG

_INK, _MUTED, _LINE = "#f0f0e0", "#f0f0e1", "#f0f0e2"
_FIXED_COLOURS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)"}
_SERIES_COLOURS = [f"#f0f0f{i}" for i in range(8)]  # 0 is the base's; the page defines --series-0 to --series-7
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("p", "⬟"), ("*", "★"))
_BAND_OPACITY = 0.15

_STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the page's font
    "svg.hashsalt": "kser-tf",  # equal figures give equal files
    "text.parse_math": False,  # a `$` in a name is a dollar
    "axes.unicode_minus": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def _draw(key: str, title: str, alt: str, draw: Callable[[Any], None], height: float = _HEIGHT) -> _Plot:
    """Draws one plot.

    Args:
        key: str. Unique on the page, of letters, digits and `-`: begins the SVG's ids.
        title: str. Stands above the plot.
        alt: str. What there is to see, for those who do not see it.
        draw: Draws into the matplotlib axes that it is given.
        height: float. In points.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font that measures has not all scripts; the browser has.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = re.search(r"<svg\b[^>]*>(.*)</svg>", file.getvalue(), re.DOTALL)
    assert root is not None
    body = re.sub(r"<style\b[^>]*>.*?</style>", "", root.group(1), flags=re.DOTALL)  # it would apply to the whole page
    body = re.sub(r"<[^>]*>", lambda tag: _adapted_tag(tag.group(), key), body)
    return _Plot(title, alt, f"0 0 {_WIDTH} {height:g}", body)


def _adapted_tag(tag: str, key: str) -> str:
    """Makes an SVG tag's ids unique on the page, and its colours the page's."""
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{key}-", tag)
    for colour, variable in _FIXED_COLOURS.items():
        tag = tag.replace(colour, variable)
    return re.sub(r"#f0f0f(\d)", r"var(--series-\1)", tag)


def _series(figures: Mapping[str, Any], variant: str) -> tuple[int, str]:
    """A variant's number, which decides its colour, and its marker: the same in all plots."""
    others = [name for name in _variants_of(figures) if name != BASE]
    number = 0 if variant == BASE else 1 + others.index(variant) % (len(_SERIES_COLOURS) - 1)
    return number, _MARKERS[number][0]


def _legend(figures: Mapping[str, Any], variants: Iterable[str]) -> list[tuple[str, int, str]]:
    legend = []
    for variant in variants:
        number, _ = _series(figures, variant)
        legend.append((_variant_name(variant), number, _MARKERS[number][1]))
    return legend


def _difference_panel(figures: Mapping[str, Any]) -> _Panel | None:
    """Differences of the AUC to the base's, with their intervals: slices down, variants below each other in each."""
    plots = []
    shown: dict[str, None] = {}
    for n, (backbone, variants) in enumerate(_runs_by_variant(figures).items()):
        differences = {
            (variant, name): comparison
            for variant in variants
            for name in _slices_of(figures)
            if (comparison := _difference_to_base(figures, backbone, variant, name)) is not None
        }
        if not differences:
            continue
        names = [name for name in _slices_of(figures) if any(key[1] == name for key in differences)]
        compared = [variant for variant in variants if any(key[0] == variant for key in differences)]
        shown.update(dict.fromkeys(compared))

        def draw(axes: Any, differences: Any = differences, names: Any = names, compared: Any = compared) -> None:
            for (variant, name), comparison in differences.items():
                place = names.index(name) + 0.7 * ((compared.index(variant) + 0.5) / len(compared) - 0.5)
                number, marker = _series(figures, variant)
                if comparison.get("low") is not None and comparison.get("high") is not None:
                    axes.plot([comparison["low"], comparison["high"]], [place, place], color=_SERIES_COLOURS[number])
                axes.plot([comparison["difference"]], [place], marker=marker, color=_SERIES_COLOURS[number])
            axes.axvline(0, color=_INK, linewidth=1)
            axes.set_yticks(range(len(names)), [_slice_name(name) for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=5)

        alt = "; ".join(
            f"{_variant_name(variant)}, {_slice_name(name)}: {_signed(c['difference'])}" for (variant, name), c in differences.items()
        )
        height = 50 + len(names) * max(24, 10 * len(compared))
        plots.append(_draw(f"difference-{n}", backbone, f"Difference of the AUC to the base, {backbone}. {alt}.", draw, height))
    return _Panel(plots, _legend(figures, shown)) if plots else None


def _popularity_panel(figures: Mapping[str, Any]) -> _Panel | None:
    """AUC by the item's training rows, and how far the variants are from the base there."""
    plots = []
    shown: dict[str, None] = {}
    for n, (backbone, variants) in enumerate(_runs_by_variant(figures).items()):
        bins = [_bin_name(b) for b in next((run["popularity"] for runs in variants.values() for run in runs if run.get("popularity")), [])]
        by_seed = {
            variant: {
                run.get("seed"): [b.get("auc") for b in run["popularity"]]
                for run in runs
                if [_bin_name(b) for b in run.get("popularity") or []] == bins
            }
            for variant, runs in variants.items()
        }
        by_seed = {variant: seeds for variant, seeds in by_seed.items() if seeds}
        if not bins or not by_seed:
            continue
        shown.update(dict.fromkeys(by_seed))
        levels = {variant: _mean_band(zip(*seeds.values(), strict=True)) for variant, seeds in by_seed.items()}
        plots.append(_popularity_plot(figures, f"popularity-{n}", f"{backbone}: AUC", bins, levels))

        paired = {
            variant: [_differences(seeds[seed], by_seed[BASE][seed]) for seed in seeds if seed in by_seed[BASE]]
            for variant, seeds in by_seed.items()
            if variant != BASE and BASE in by_seed
        }
        gaps = {variant: _mean_band(zip(*rows, strict=True)) for variant, rows in paired.items() if rows}
        if gaps:
            plots.append(_popularity_plot(figures, f"popularity-gap-{n}", f"{backbone}: difference to the base", bins, gaps))
    return _Panel(plots, _legend(figures, shown)) if plots else None


def _popularity_plot(figures: Mapping[str, Any], key: str, title: str, bins: list[str], bands: Mapping[str, Any]) -> _Plot:
    def draw(axes: Any) -> None:
        for variant, band in bands.items():
            _draw_band(axes, _series(figures, variant), range(len(bins)), band)
        if BASE not in bands:
            axes.axhline(0, color=_INK, linewidth=1)
        axes.set_xticks(range(len(bins)), bins)
        axes.set_xlabel("training rows of the item")
        axes.locator_params(axis="y", nbins=5)

    text = _signed if BASE not in bands else _digits
    alt = "; ".join(
        f"{_variant_name(variant)}: "
        + ", ".join(f"{text(value)} at {name}" for name, value in zip(bins, mean, strict=True) if not math.isnan(value))
        for variant, (mean, _, _) in bands.items()
    )
    return _draw(key, title, f"{title}, by the training rows of the item. {alt}.", draw)


def _bin_name(popularity: Mapping[str, Any]) -> str:
    low, high = popularity["low"], popularity.get("high")
    if high is None:
        return f"{low:,}+"
    return f"{low}" if high - low == 1 else f"{low}–{high - 1}"


def _differences(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)]


def _draw_band(axes: Any, series: tuple[int, str], x: Sequence[float], band: tuple[list[float], list[float], list[float]]) -> None:
    """A line through the means, with the band from the lowest to the highest seed."""
    number, marker = series
    mean, low, high = band
    colour = _SERIES_COLOURS[number]
    if low != high:
        axes.fill_between(x, low, high, color=colour, alpha=_BAND_OPACITY, linewidth=0)
    axes.plot(x, mean, color=colour, marker=marker, linestyle="--" if number == 0 else "-")


def _curve_panel(figures: Mapping[str, Any]) -> _Panel | None:
    """Learning curves: AUC on the validation rows, and the losses."""
    plots = []
    shown: dict[str, None] = {}
    for n, (backbone, variants) in enumerate(_runs_by_variant(figures).items()):
        for key, title in (("val_auc", "AUC on validation rows"), ("val_loss", "loss on validation rows"), ("loss", "loss in training")):
            with_curve = {v: [r for r in runs if any(e.get(key) is not None for e in r.get("curve") or [])] for v, runs in variants.items()}
            with_curve = {variant: runs for variant, runs in with_curve.items() if runs}
            if with_curve:
                shown.update(dict.fromkeys(with_curve))
                plots.append(_curve_plot(figures, f"curve-{key.replace('_', '-')}-{n}", f"{backbone}: {title}", key, with_curve))
    return _Panel(plots, _legend(figures, shown)) if plots else None


def _curve_plot(figures: Mapping[str, Any], name: str, title: str, key: str, variants: Mapping[str, Any]) -> _Plot:
    alt = []
    lines = {}
    for variant, runs in variants.items():
        curves = [{e["epoch"]: e.get(key) for e in run["curve"]} for run in runs]
        # As far as all seeds were trained: beyond, the mean would jump whenever one stops.
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        best = [(run["best_epoch"], curve[run["best_epoch"]]) for run, curve in zip(runs, curves, strict=True) if run.get("best_epoch") in curve]
        lines[variant] = (epochs, _mean_band([curve[epoch] for curve in curves] for epoch in epochs), best)
        if epochs:
            mean = lines[variant][1][0]
            alt.append(f"{_variant_name(variant)}: {mean[0]:.4f} after epoch {epochs[0]}, {mean[-1]:.4f} after epoch {epochs[-1]}")

    def draw(axes: Any) -> None:
        for variant, (epochs, band, best) in lines.items():
            number, marker = _series(figures, variant)
            _draw_band(axes, (number, ""), epochs, band)
            present = [(epoch, value) for epoch, value in best if value is not None]
            if present:
                axes.plot(*zip(*present, strict=True), linestyle="", marker=marker, color=_SERIES_COLOURS[number])
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.locator_params(axis="y", nbins=5)

    return _draw(name, title, f"{title}, by epoch. {'; '.join(alt)}.", draw)


def _calibration_panel(figures: Mapping[str, Any]) -> _Panel | None:
    """How much more, or less, happened than was predicted."""
    plots = []
    shown: dict[str, None] = {}
    for n, (backbone, variants) in enumerate(_runs_by_variant(figures).items()):
        lines = {}
        for variant, runs in variants.items():
            curves = [run["calibration"] for run in runs if run.get("calibration")]
            # Seeds are averaged bin by bin; ties can leave a seed with fewer bins than the others, which then does not match.
            curves = [curve for curve in curves if len(curve) == max(len(c) for c in curves)]
            if curves:
                predicted = _mean_band([b["predicted"] for b in bins] for bins in zip(*curves, strict=True))[0]
                lines[variant] = (predicted, _mean_band([_gap(b) for b in bins] for bins in zip(*curves, strict=True)))
        if not lines:
            continue
        shown.update(dict.fromkeys(lines))

        def draw(axes: Any, lines: Any = lines) -> None:
            for variant, (predicted, band) in lines.items():
                number, _ = _series(figures, variant)
                _draw_band(axes, (number, ""), predicted, band)
            axes.axhline(0, color=_INK, linewidth=1)
            axes.set_xlabel("predicted probability")
            axes.locator_params(axis="y", nbins=5)

        alt = "; ".join(
            f"{_variant_name(v)}: from {_signed(min(band[0]))} to {_signed(max(band[0]))}" for v, (_, band) in lines.items()
        )
        title = f"{backbone}: observed − predicted"
        plots.append(_draw(f"calibration-{n}", title, f"{title}, by predicted probability. {alt}.", draw))
    return _Panel(plots, _legend(figures, shown)) if plots else None


def _gap(bin_: Mapping[str, Any]) -> float | None:
    return _differences([bin_.get("observed")], [bin_.get("predicted")])[0]


def _field_weight_panel(fields: Sequence[Mapping[str, Any]]) -> _Panel | None:
    """For each field how the weights are spread: a silhouette of their histogram, and below it quantiles and mean."""
    fields = [field for field in fields if field.get("mean") is not None]
    if not fields:
        return None

    def draw(axes: Any) -> None:
        for row, field in enumerate(fields):
            quantiles, counts, edges = field.get("quantiles") or {}, field.get("counts") or [], field.get("edges") or []
            if counts and max(counts) > 0 and len(edges) == len(counts) + 1:
                # 0 is the base line; the y axis points down.
                heights = [row - 0.55 * count / max(counts) for count in counts]
                axes.stairs(heights, edges, baseline=row, fill=True, color=_SERIES_COLOURS[1], alpha=2 * _BAND_OPACITY)
            for low, high, width in (("0.05", "0.95", 1.2), ("0.25", "0.75", 4.5)):
                if quantiles.get(low) is not None and quantiles.get(high) is not None:
                    axes.plot(
                        [quantiles[low], quantiles[high]], [row + 0.12] * 2, color=_SERIES_COLOURS[1], linewidth=width, solid_capstyle="butt"
                    )
            axes.plot([field["mean"]], [row + 0.12], marker="o", color=_INK)
            axes.annotate(
                _shortened(_field_name(field), 40), (0, row - 0.62), xycoords=("axes fraction", "data"), va="bottom", ha="left", annotation_clip=False
            )
        axes.axvline(1, color=_INK, linewidth=1, linestyle=":")
        axes.set_ylim(len(fields) - 0.7, -0.95)
        axes.set_yticks([])
        axes.set_xlabel("weight")

    alt = "; ".join(f"{_field_name(field)}: mean {_weight(field['mean'])}" for field in fields)
    plot = _draw("weights", "Weight of chunks by field", f"Weight of chunks by field. {alt}.", draw, 50 + 60 * len(fields))
    return _Panel([plot])


# ------------------------------------------------------------------------------------------------------------------ page


def _render(page: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # said outright: by its name, `report.html.jinja` would not be recognised as HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template("report.html.jinja").render(page)
    return text
