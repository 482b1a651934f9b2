"""Keeps what a benchmark found: `summary.json` without what takes room, and its tables in Markdown.

    kser-tf benchmark configs/benchmark-movielens-1m.yaml --data FOLDER --work WORK --summary
    .venv/bin/python benchmarks/keep.py WORK/summary.json

Writes `benchmarks/results/<the configuration's name>.json` and prints, for each split and backbone, the AUC of every variant and its
paired difference to what it is compared with: the mean over the seeds, with half of Student's 95 % interval, or a star where that
excludes 0. With `--by-variant` there is a table for each variant, with a row for each backbone, split and share of the users.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SLICES = {
    "all": "all rows",
    "warm": "warm",
    "tail": "tail",
    "cold": "cold",
    "active_users": "active users",
    "quiet_users": "quiet users",
}
# What a comparison is of, beside its slice.
COMPARED = ("split", "training_users", "backbone", "variant", "against", "metric")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path)
    parser.add_argument("--notice", help="what is to be known of how it was measured")
    parser.add_argument("--without-speed", action="store_true", help="the runs had the machine not for themselves")
    parser.add_argument("--by-variant", action="store_true", help="a row for each place, a table for each variant")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<name>.json")
    given = parser.parse_args()
    summary = json.loads(given.summary.read_text())
    print("\n".join(tables_by_variant(summary) if given.by_variant else tables(summary)))
    output = given.output or Path(__file__).parent / "results" / f"{summary['name']}.json"
    kept = shortened(summary, speed=not given.without_speed) | {"notice": given.notice or summary["notice"]}
    output.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    print(f"written: {output}", file=sys.stderr)  # the tables are what is printed


def shortened(summary: dict[str, Any], *, speed: bool) -> dict[str, Any]:
    """The summary with five decimals, of each epoch the validation AUC, of what made a run its commit, and the last run's versions.

    How many rows a slice has stands in the records of the cells; a difference seed by seed is that of the runs' metrics.
    """
    kept = {key: value for key, value in summary.items() if speed or key != "speed"}
    kept["goals"] = [goal for goal in summary["goals"] if speed or "rows per second" not in goal["goal"]]
    kept["comparisons"] = by_slice(without(each, "by_seed", "how") for each in summary["comparisons"])
    kept["runs"] = [
        {
            **{key: value for key, value in run.items() if speed or "second" not in key},
            "metrics": {name: without(metrics, "rows", "positives") for name, metrics in run["metrics"].items()},
            "curve": [epoch["val_auc"] for epoch in run["curve"]],
            "made_by": {key: run["made_by"][key] for key in ("commit", "finished")},
        }
        for run in summary["runs"]
    ]
    versions = max(summary["runs"], key=lambda run: run["made_by"]["finished"])["made_by"]["versions"]
    rounded: dict[str, Any] = json.loads(json.dumps(kept), parse_float=lambda digits: round(float(digits), 5))
    return rounded | {"versions": versions}


def by_slice(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons with one entry for all slices of the same two, in place of one each."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in comparisons:
        of = {key: each[key] for key in COMPARED}
        entry = found.setdefault(tuple(of.values()), {**of, "slices": {}})
        entry["slices"][each["slice"]] = without(each, *COMPARED, "slice")
    return list(found.values())


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def tables(summary: dict[str, Any]) -> Iterator[str]:
    """The lines of all tables."""
    places, found = dict.fromkeys(place(each) for each in summary["runs"]), differences_of(summary)
    for where in places:
        runs = [run for run in summary["runs"] if place(run) == where]
        slices = [name for name in SLICES if name in runs[0]["metrics"]]
        yield from head(f"{where}, test AUC", slices)
        for variant in dict.fromkeys(run["variant"] for run in runs):
            of_variant = [run["metrics"] for run in runs if run["variant"] == variant]
            means = (statistics.fmean(metrics[name]["auc"] for metrics in of_variant) for name in slices)
            yield f"| {variant} | {len(of_variant)} | {' | '.join(f'{mean:.4f}' for mean in means)} |"
        yield from head(f"{where}, difference", slices)
        for (found_where, variant, against), differences in found.items():
            if found_where == where:
                yield row(f"{variant} to {against}", differences, slices)


def tables_by_variant(summary: dict[str, Any]) -> Iterator[str]:
    """The lines of a table for each variant and what it is compared with, a row a place, and before them the AUC of that one there."""
    found = differences_of(summary)
    for compared in dict.fromkeys((variant, against) for _, variant, against in found):
        yield from head(f"{compared[0]} to {compared[1]}, which has on all rows", list(SLICES))
        for (where, *names), differences in found.items():
            if tuple(names) == compared:
                theirs = [
                    run["metrics"]["all"]["auc"]
                    for run in summary["runs"]
                    if place(run) == where and run["variant"] == compared[1]
                ]
                yield row(f"{where}: {statistics.fmean(theirs):.4f}", differences, list(SLICES))


def differences_of(summary: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Place, variant and what it is compared with -> slice -> comparison."""
    return {
        (place(each), each["variant"], each["against"]): each["slices"]
        for each in by_slice(summary["comparisons"])
        if each["metric"] == "auc" and "all" in each["slices"]
    }


def head(title: str, slices: list[str]) -> tuple[str, str, str]:
    names = " | ".join(SLICES[name] for name in slices)
    return "", f"| {title} | seeds | {names} |", "| --- " * (len(slices) + 2) + "|"


def row(title: str, differences: dict[str, Any], slices: list[str]) -> str:
    values = (difference(differences[name]) if name in differences else "" for name in slices)
    return f"| {title} | {differences['all']['seeds']} | {' | '.join(values)} |"


def place(each: dict[str, Any]) -> str:
    users = "" if each["training_users"] == 1 else f", {each['training_users']:.0%} of the training users"
    return f"{each['backbone']}, {each['split']}{users}"


def difference(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    text = f"{found['difference']:+.4f}".replace("-", "\N{MINUS SIGN}")
    if low is None or found["seeds"] == 1:
        return text
    return f"{text}*" if low > 0 or high < 0 else f"{text} (± {(high - low) / 2:.4f})"


if __name__ == "__main__":
    main()
