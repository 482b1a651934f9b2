"""Keeps what a benchmark found: `summary.json` without what takes room, and its tables in Markdown.

    kser-tf benchmark configs/benchmark-movielens-1m.yaml --data FOLDER --work WORK --summary
    .venv/bin/python benchmarks/keep.py WORK/summary.json

Writes `benchmarks/results/<the configuration's name>.json` and prints, for each split and backbone, the AUC of every variant and its
paired difference to what it is compared with: the mean over the seeds, with half of Student's 95 % interval, or a star where that
excludes 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path)
    parser.add_argument("--notice", help="what is to be known of how it was measured")
    parser.add_argument("--without-speed", action="store_true", help="the runs had the machine not for themselves")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<name>.json")
    given = parser.parse_args()
    summary = json.loads(given.summary.read_text())
    print("\n".join(tables(summary)))
    output = given.output or Path(__file__).parent / "results" / f"{summary['name']}.json"
    kept = shortened(summary, speed=not given.without_speed) | {"notice": given.notice or summary["notice"]}
    output.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    print(f"written: {output}", file=sys.stderr)  # the tables are what is printed


def shortened(summary: dict[str, Any], *, speed: bool) -> dict[str, Any]:
    """The summary with five decimals, of each epoch the validation AUC, of what made a run its commit, and the last run's versions."""
    kept = {key: value for key, value in summary.items() if speed or key != "speed"}
    kept["goals"] = [goal for goal in summary["goals"] if speed or "rows per second" not in goal["goal"]]
    kept["runs"] = [
        {
            **{key: value for key, value in run.items() if speed or "second" not in key},
            "curve": [epoch["val_auc"] for epoch in run["curve"]],
            "made_by": {key: run["made_by"][key] for key in ("commit", "finished")},
        }
        for run in summary["runs"]
    ]
    versions = max(summary["runs"], key=lambda run: run["made_by"]["finished"])["made_by"]["versions"]
    rounded: dict[str, Any] = json.loads(json.dumps(kept), parse_float=lambda digits: round(float(digits), 5))
    return rounded | {"versions": versions}


def tables(summary: dict[str, Any]) -> Iterator[str]:
    """The lines of all tables."""
    places = dict.fromkeys(place(each) for each in summary["runs"])
    for where in places:
        runs = [run for run in summary["runs"] if place(run) == where]
        slices = [name for name in SLICES if name in runs[0]["metrics"]]
        header = f"| seeds | {' | '.join(SLICES[name] for name in slices)} |"
        rule = "| --- " * (len(slices) + 2) + "|"
        yield from ("", f"| {where}, test AUC {header}", rule)
        for variant in dict.fromkeys(run["variant"] for run in runs):
            of_variant = [run["metrics"] for run in runs if run["variant"] == variant]
            means = (statistics.fmean(metrics[name]["auc"] for metrics in of_variant) for name in slices)
            yield f"| {variant} | {len(of_variant)} | {' | '.join(f'{mean:.4f}' for mean in means)} |"
        yield from ("", f"| {where}, difference {header}", rule)
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for each in summary["comparisons"]:
            if place(each) == where and each["metric"] == "auc":
                found.setdefault((each["variant"], each["against"]), {})[each["slice"]] = each
        for (variant, against), differences in found.items():
            if "all" in differences:
                values = (difference(differences[name]) if name in differences else "" for name in slices)
                yield f"| {variant} to {against} | {differences['all']['seeds']} | {' | '.join(values)} |"


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
