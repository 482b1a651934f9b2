"""The summary of a benchmark: `summary.json` for machines, `summary.md`, `summary.html` for people, a short text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kser_tf.files import write_json, write_text
from kser_tf.pipelines import report_plots, report_tables
from kser_tf.pipelines.benchmark import plots, tables
from kser_tf.pipelines.benchmark.figures import BenchmarkFigures, compared, in_order
from kser_tf.pipelines.report import rendered, text_summary
from kser_tf.pipelines.report_figures import SLICES, VARIANTS, four_digits, plain, signed, slice_name, variant_name
from kser_tf.pipelines.report_tables import facts

SUMMARY_JSON = "summary.json"
SUMMARY_MARKDOWN = "summary.md"
SUMMARY_HTML = "summary.html"

_TEMPLATE = "benchmark/page.html.jinja"


def write_summary(folder: str | Path, summary: Mapping[str, Any]) -> Path:
    """Writes `summary.json`, `summary.md` and `summary.html`, all of the same figures.

    Args:
        folder: Where to.
        summary: What `build_summary` returns.

    Returns:
        The page's path.
    """
    folder, content = Path(folder), plain(summary, "summary")
    figures = BenchmarkFigures(content)
    html = rendered(_TEMPLATE, _page(figures))
    write_json(folder / SUMMARY_JSON, content)
    write_text(folder / SUMMARY_MARKDOWN, markdown(figures))
    write_text(folder / SUMMARY_HTML, html)
    return folder / SUMMARY_HTML


def text_of(summary: Mapping[str, Any]) -> str:
    """Returns how far a benchmark is, and its main figures, as plain text."""
    figures = BenchmarkFigures(plain(summary, "summary"))
    lines = [text_summary(figures.whole.json), *figures.sentences()]
    lines += [f"FAILED {failure['cell']}: {failure['error']}" for failure in summary["failures"]]
    return "\n".join(lines)


def markdown(figures: BenchmarkFigures) -> str:
    """Returns the summary as Markdown: a table for each slice, and what made it."""
    summary = figures.summary
    lines = [f"# {summary['title']}", ""]
    lines += [summary["notice"], ""] if summary["notice"] else []
    lines += [f"- {sentence}" for sentence in figures.sentences()]
    if summary["goals"]:
        lines += ["", "## Goals", "", *_header("where", "variant", "against", "slice", "goal", "found", "reached")]
        lines += [
            _row(
                figures.group(goal),
                variant_name(goal["variant"]),
                variant_name(goal["against"]),
                slice_name(goal["slice"]),
                goal["goal"],
                goal["found"],
                "yes" if goal["reached"] else "no",
            )
            for goal in summary["goals"]
        ]
    for name in in_order(figures.whole.slices):
        lines += [
            "",
            f"## {slice_name(name)}",
            "",
            *_header("where", "variant", "AUC", "seeds", "difference to the base"),
        ]
        for group, variants in figures.whole.runs.items():
            for variant in variants:
                mean = figures.whole.mean(group, variant, name, "auc")
                if mean is not None:
                    entry = figures.whole.difference(group, variant, name)
                    difference = "" if entry is None else _interval(entry, "low", "high")
                    lines.append(
                        _row(group, variant_name(variant), four_digits(mean["mean"]), str(mean["seeds"]), difference)
                    )
    comparisons = [entry for entry in summary["comparisons"] if entry["training_users"] == 1]
    if comparisons:
        lines += ["", "## All differences of AUC", ""]
        lines += _header("where", "comparison", "slice", "over seeds", "over users", "seeds")
        lines += [
            _row(
                figures.group(entry),
                compared(entry),
                slice_name(entry["slice"]),
                _interval(entry, "low", "high"),
                _interval(entry, "users_low", "users_high"),
                str(entry["seeds"]),
            )
            for entry in comparisons
        ]
    if summary["failures"]:
        lines += ["", "## Failures", "", *(f"- {each['cell']}: {each['error']}" for each in summary["failures"])]
    made_by = {"command": summary["command"], "commit": summary["commit"], "processor": summary["processor"]}
    lines += ["", "## Made by", "", *(f"- {key}: {value}" for key, value in made_by.items() if value)]
    lines += [f"- {package}: {version}" for package, version in _versions(summary).items()]
    return "\n".join([*lines, f"- finished: {summary['finished']}", ""])


def _header(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    # A bar in a text would begin a cell, a line break end the table.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _interval(entry: Mapping[str, Any], low: str, high: str) -> str:
    if entry[low] is None or entry[high] is None:
        return signed(entry["difference"])
    return f"{signed(entry['difference'])} [{signed(entry[low])}, {signed(entry[high])}]"


def _versions(summary: Mapping[str, Any]) -> dict[str, str]:
    """The packages' versions, all that were used where the cells were made by several."""
    found: dict[str, dict[str, None]] = {}
    for run in summary["runs"]:
        for package, version in (run["made_by"].get("versions") or {}).items():
            found.setdefault(package, {})[version] = None
    return {package: ", ".join(versions) for package, versions in found.items()}


def _page(figures: BenchmarkFigures) -> dict[str, Any]:
    """All that the template shows."""
    summary, whole = figures.summary, figures.whole
    commits = dict.fromkeys(run["made_by"].get("commit") for run in summary["runs"])
    texts = {variant_name(variant): text for variant, text in summary["texts"].items() if text}
    return {
        "title": summary["title"],
        "notice": summary["notice"],
        "finished": summary["finished"],
        "sentences": figures.sentences(),
        "goals": tables.goal_table(figures),
        "headline": report_tables.headline_tables(whole),
        "forests": plots.forest_panels(figures, against_base=True),
        "peers": tables.peer_tables(figures),
        "peer_forests": plots.forest_panels(figures, against_base=False),
        "learning": plots.learning_panel(figures),
        "speed": tables.speed_tables(figures),
        "curves": report_plots.curve_panel(whole),
        "metrics": report_tables.metric_tables(whole),
        "comparisons": tables.comparison_table(figures),
        "tuning": tables.tuning_table(figures),
        "progress": tables.progress_table(figures),
        "failures": tables.failure_table(figures),
        "runs": report_tables.run_table(summary["runs"]),
        "meanings": [(variant_name(v), VARIANTS[v][1]) for v in whole.variants if v in VARIANTS]
        + [(name, f"knows the text {text.replace('_', ' ')}") for name, text in texts.items()]
        + [SLICES[name] for name in whole.slices if name in SLICES and SLICES[name][1]],
        "command": summary["command"],
        "made_by": facts(
            {
                "commits": [commit for commit in commits if commit],
                "processor": summary["processor"],
                **_versions(summary),
            }
        ),
    }
