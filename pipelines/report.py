"""The report of a run: `report.json` for machines, `report.html` for people, a short text for the terminal.

The page is one file, without scripts or links to anything outside, in light and dark, for a desk and for a telephone.
Its numbers stand in `<data value="...">` elements with all their digits. What it says is made in `report_figures.py`,
`report_tables.py` and `report_plots.py`, and set in `report.html.jinja`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kser_tf.errors import MissingExtraError
from kser_tf.files import write_json, write_text
from kser_tf.pipelines import report_plots as plots
from kser_tf.pipelines import report_tables as tables
from kser_tf.pipelines.report_figures import (
    SLICES,
    VARIANTS,
    ReportFigures,
    backbone_name,
    four_digits,
    plural,
    signed,
    slice_name,
    tone,
    variant_name,
)

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"

_TEMPLATE = "report.html.jinja"

# The columns that fit into a terminal of 80 characters.
_TERMINAL_SLICES = ("all", "warm", "tail", "cold")


def require_report_extra() -> None:
    """Checks that a page can be rendered, so that a long job finds out before it begins.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    for module in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise MissingExtraError(module, "report") from None


def write_report(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes `report.json` and `report.html`, both of the same figures.

    Both are made before the first is written. NaN and infinity become null (what is not defined, such as the AUC of
    rows of one class, and what a diverged run has left) and are shown as a dash; NumPy numbers and arrays become plain
    ones. `report.json` holds what was given and `means`: for each backbone, variant, slice and metric the mean over the
    seeds, as the page shows it.

    Args:
        folder: Where to; made if need be.
        report: The figures. All but `title` and `runs` may be missing, `None` or empty; the page leaves out what is not
            there. Texts may hold any characters.

            - `title`: str. `notice`: str, shown in a box at the top. `summary`: list of sentences.
            - `data`: `{"splits": {name: {"rows", "positives"}}, "protocol": {..}, "features": [{"name", "kind",
              "dtype", "length", "vocabulary", "entity"}]}`.
            - `store`: for each entity what `KnowledgeStore.describe` returns.
            - `runs`: list of `{"name", "backbone", "variant", "seed", "metrics": {slice: {"rows", "positives", "auc",
              "gauc", "log_loss", "calibration_error"}}, "curve": [{"epoch", "loss", "val_loss", "val_auc"}],
              "trained_parameters", "total_parameters", "seconds", "rows_per_second", "best_epoch", "popularity":
              [{"low", "high", "rows", "auc"}], "calibration": [{"predicted", "observed", "rows"}]}`, with slices and
              bins as from `kser_tf.metrics`. The variant `"base"` is the one that others are compared with.
            - `comparisons`: list of `{"backbone", "variant", "against", "slice", "metric", "difference", "low", "high",
              "how", "seeds"}`. Those of the AUC against the base stand in the first table, coloured where 0 lies
              outside low to high.
            - `weights`: `{"fields": [{"entity", "field", "mean", "quantiles": {"0.05", "0.25", "0.5", "0.75", "0.95"},
              "edges", "counts"}], "chunks": [{"entity", "field", "position", "mean", "count"}], "run"}`. Positions
              count from 0, here and below; people read them from 1.
            - `filtered`, `kept`: lists of `{"entity", "id", "name", "field", "position", "weight", "text", "fault"}`.
            - `faults`: `{"auc", "good_mean_weight", "kinds": {kind: {"auc", "mean_weight", "chunks"}}, "run"}`.
            - `export`: `{"path", "bytes", "version", ..}`. `check`: what `CheckResult.as_dict` returns, `{"ok",
              "checks": [{"name", "ok", "detail"}], "measurements"}`.
            - `steps`: list of `{"job", "seconds", "skipped"}`. `versions`: `{package: version}`. `command`,
              `finished`: str.

    Returns:
        The page's path.

    Raises:
        DataError: `title` or `runs` is missing, or a value is none that JSON can hold.
        MissingExtraError: jinja2 or matplotlib is not installed.
        FileError: The folder cannot be written to.
    """
    require_report_extra()
    figures = ReportFigures(report)
    html = rendered(_TEMPLATE, _page(figures))
    folder = Path(folder)
    write_json(folder / REPORT_JSON, figures.json)
    write_text(folder / REPORT_HTML, html)
    return folder / REPORT_HTML


def text_summary(report: Mapping[str, Any]) -> str:
    """Returns the report's main table as plain text: AUC by backbone, variant and slice, and differences to the base.

    Args:
        report: As for `write_report`. This needs neither jinja2 nor matplotlib.

    Returns:
        Lines with a final newline, the table's of about 80 characters. A star marks a difference whose interval
        excludes 0.

    Raises:
        DataError: As `write_report`.
    """
    figures = ReportFigures(report)
    blocks = [[figures.json["title"], "=" * len(figures.json["title"])]]
    blocks[0] += [figures.part("notice")] if figures.part("notice") else []
    blocks[0] += figures.part("summary") or []
    slices = [name for name in figures.slices if name in _TERMINAL_SLICES] or figures.slices[: len(_TERMINAL_SLICES)]
    for backbone, variants in figures.runs.items() if slices else ():
        seeds = plural(max(len(runs) for runs in variants.values()), "seed")
        rows = [["", *(slice_name(name) for name in slices)]]
        rows += [[variant_name(v), *(_auc_text(figures, backbone, v, name) for name in slices)] for v in variants]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        blocks.append([f"{backbone_name(backbone)}: AUC, mean of {seeds}, and difference to the base"])
        blocks[-1] += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if figures.part("comparisons"):
        blocks[-1] += ["* The 95 % interval of the difference excludes 0."]
    if figures.part("faults"):
        blocks.append([tables.fault_sentence(figures.part("faults"))])
    if figures.part("check"):
        blocks.append([tables.check_sentence(figures.part("check"))])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _auc_text(figures: ReportFigures, backbone: str, variant: str, name: str) -> str:
    mean = figures.mean(backbone, variant, name, "auc")
    if mean is None:
        return "-"
    difference = figures.difference(backbone, variant, name)
    if difference is None:
        return four_digits(mean["mean"])
    return f"{four_digits(mean['mean'])} {signed(difference['difference'])}{'*' if tone(difference) else ''}"


def _page(figures: ReportFigures) -> dict[str, Any]:
    """All that the template shows; what is empty is left out of the page."""
    weights, data, check = figures.part("weights"), figures.part("data"), figures.part("check")
    filtered, kept = figures.part("filtered") or [], figures.part("kept") or []
    return {
        "title": figures.json["title"],
        "notice": figures.part("notice"),
        "summary": figures.part("summary"),
        "finished": figures.part("finished"),
        "several_seeds": figures.several_seeds,
        "headline": tables.headline_tables(figures),
        "intervals": sorted({c["how"] for c in figures.part("comparisons") if c.get("how")}),
        "differences": plots.difference_panel(figures),
        "meanings": [(variant_name(v), VARIANTS[v][1]) for v in figures.variants if v in VARIANTS]
        + [SLICES[name] for name in figures.slices if name in SLICES and SLICES[name][1]],
        "metrics": tables.metric_tables(figures),
        "comparisons": tables.comparison_table(figures.part("comparisons")),
        "popularity": plots.popularity_panel(figures),
        "calibration": plots.calibration_panel(figures),
        "curves": plots.curve_panel(figures),
        "training": tables.training_tables(figures),
        "runs": tables.run_table(figures.json["runs"]),
        "weights_run": weights.get("run"),
        "field_weights": plots.field_weight_panel(weights.get("fields") or []),
        "field_weight_table": tables.field_weight_table(weights.get("fields") or []),
        "positions": tables.position_table(weights.get("chunks") or []),
        "faults_run": figures.part("faults").get("run"),
        "fault_sentence": tables.fault_sentence(figures.part("faults")) if figures.part("faults") else "",
        "faults": tables.fault_table(figures.part("faults")),
        "filtered": tables.examples(filtered),
        "kept": tables.examples(kept),
        "more_examples": max(len(filtered), len(kept)) > tables.EXAMPLES_SHOWN,
        "splits": tables.split_table(data.get("splits") or {}),
        "protocol": tables.facts(data.get("protocol") or {}),
        "stores": [
            (
                entity,
                tables.facts({key: value for key, value in store.items() if key != "coverage"}),
                tables.coverage_table(store.get("coverage") or {}),
            )
            for entity, store in figures.part("store").items()
        ],
        "features": tables.feature_table(data.get("features") or []),
        "check_sentence": tables.check_sentence(check) if check else "",
        "check": tables.check_table(check.get("checks") or []),
        "measurements": tables.facts(check.get("measurements") or {}),
        "export": tables.facts(figures.part("export")),
        "command": figures.part("command"),
        "steps": tables.step_table(figures.part("steps")),
        "versions": tables.facts(figures.part("versions")),
    }


def rendered(template: str, page: Mapping[str, Any]) -> str:
    """Returns a page, from a template, by its path from this folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # said outright: from a name that ends in .jinja it would not be concluded
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html: str = environment.get_template(template).render(page)
    return html
