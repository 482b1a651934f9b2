"""The mean of paired differences over several backbones, texts and seeds at once, from what `keep.py` kept of a benchmark.

    .venv/bin/python benchmarks/pooled.py benchmarks/results/benchmark-movielens-1m.json \
        --pairs kser:esf_net_only kser_mpnet:esf_net_only_mpnet --backbones din dcn_v2

Prints for each slice the mean difference of test AUC over all pairs, backbones and seeds, with half of Student's 95 % interval over
them: it knows of chance in training, and not that other users might have been tested.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keep import SLICES

from kser_tf.metrics import paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--pairs", required=True, nargs="+", metavar="VARIANT:AGAINST")
    parser.add_argument("--backbones", nargs="+", default=["din", "dcn_v2"])
    parser.add_argument("--split", default="by_user")
    given = parser.parse_args()

    runs = {
        (run["backbone"], run["variant"], run["seed"]): run["metrics"]
        for run in json.loads(given.kept.read_text())["runs"]
        if run["split"] == given.split and run["training_users"] == 1
    }
    for name, title in SLICES.items():
        scores = list(paired_scores(runs, given, name))
        if len(scores) < 2:
            parser.error(f"fewer than two runs have both variants of a pair among {', '.join(given.pairs)}.")
        found = paired_difference(*zip(*scores, strict=True))
        half = (found["high"] - found["low"]) / 2
        print(f"{title}: {found['difference']:+.4f} (± {half:.4f}), {found['seeds']} differences")


def paired_scores(
    runs: dict[tuple[str, str, int], dict[str, Any]], given: argparse.Namespace, slice_name: str
) -> Iterator[tuple[float, float]]:
    """Yields the AUC of both variants of each pair, for each backbone and seed that has both."""
    for pair in given.pairs:
        variant, against = pair.split(":")
        for (backbone, name, seed), metrics in runs.items():
            other = runs.get((backbone, against, seed))
            if name == variant and backbone in given.backbones and other is not None:
                yield metrics[slice_name]["auc"], other[slice_name]["auc"]


if __name__ == "__main__":
    main()
