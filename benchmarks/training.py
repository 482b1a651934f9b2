r"""Rows per second in training: base, all-parameters, extractor-only, side by side in one process, on prepared data.

    .venv/bin/python benchmarks/training.py --prepared runs/movielens-1m/prepared --store runs/movielens-1m/stores/movie

The other adaptors, and how long each takes to the base's best validation AUC, from the epochs that `kser-tf benchmark` saw it take:

    .venv/bin/python benchmarks/training.py --prepared runs/movielens-1m/prepared --store runs/movielens-1m/stores/movie \
        --variants base all_parameters extractor_only concat mlp moe kar "kar, as fields" \
        --curves benchmarks/results/benchmark-movielens-1m.json --output benchmarks/results/adaptor_speed.json

The variants take turns, some steps each, round after round, so a machine that becomes slower or faster does so for all of them;
figures are medians over the rounds, and ratios are taken round by round. Feeding from disk is compared with feeding one cached
batch in the same way. Writes `benchmarks/results/training.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import yaml
from results import write_results

from kser_tf import KnowledgeStore, all_parameters, extractor_only
from kser_tf.models.config import RankingModelConfig
from kser_tf.models.ranking_model import RankingModel
from kser_tf.pipelines.examples import IndexedExamples
from kser_tf.pipelines.fused_adam import FusedAdam
from kser_tf.schema import DatasetSchema

BASE = "base"
CONFIG = "configs/movielens-1m.yaml"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a contestant differs from the run's all-parameters model."""

    model: dict[str, Any] = field(default_factory=dict)
    strategy: Callable[[Any], Any] = all_parameters
    knowledge: bool = True
    one_of: int = 8
    like_extractor_only: bool = False
    cached: bool = False


def peer(adaptor: str, placement: str = "residual") -> Variant:
    """Another adaptor, without the user's side, as the benchmark has it."""
    options = {"adaptor": adaptor, "adaptor_options": {"placement": placement}, "user_knowledge": False}
    return Variant(model=options)


EXTRACTOR_ONLY = {"one_of": 0, "like_extractor_only": True}
VARIANTS = {
    BASE: Variant(knowledge=False),
    "all_parameters": Variant(),
    "extractor_only": Variant(strategy=extractor_only, **EXTRACTOR_ONLY),
    "all_parameters, histories from memory": Variant(one_of=0),
    "all_parameters, without historical embeddings": Variant(one_of=1),
    "extractor_alone": Variant(strategy=lambda model: extractor_only(model, also=()), **EXTRACTOR_ONLY),
    "base, one cached batch": Variant(knowledge=False, cached=True),
    "concat": peer("concat"),
    "mlp": peer("mlp"),
    "moe": peer("moe"),
    "kar": peer("kar"),
    "kar, as fields": peer("kar", "field"),
}
DEFAULT = [name for name in VARIANTS if name not in ("concat", "mlp", "moe", "kar", "kar, as fields")]
# The benchmark's batch size, and what it calls the variants.
CURVES_BATCH = 1024
CURVE_OF = {
    "all_parameters": "kser",
    "all_parameters, histories from memory": "kser_sample_0",
    "extractor_only": "kser_extractor_only",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--store", required=True, help="knowledge store of the candidate's entity")
    parser.add_argument("--backbones", nargs="+", default=["din", "dcn_v2"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument("--variants", nargs="+", default=DEFAULT, choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--curves", help="what keep.py kept of a benchmark of the same data")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows-a-round", type=int, default=65536)
    parser.add_argument(
        "--intra-op-threads",
        type=int,
        help="of TensorFlow: threads that share an operation, as TF_NUM_INTRAOP_THREADS says. Defaults to all cores",
    )
    parser.add_argument("--config", default=CONFIG, help="the run whose models these are")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "training.json"))
    given = parser.parse_args()
    if given.intra_op_threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(given.intra_op_threads)

    schema = DatasetSchema.load(given.prepared)
    entity = schema.feature(schema.item_id).entity
    store = KnowledgeStore.open(given.store, verify=False)
    curves = json.loads(Path(given.curves).read_text())["runs"] if given.curves else []
    measured = []
    for backbone in given.backbones:
        for batch_size in given.batch_sizes:
            contestants = {
                name: Contestant(given, schema, backbone, batch_size, {entity: store}, VARIANTS[name])
                for name in given.variants
            }
            speeds = take_turns(contestants, given.rounds, max(2, given.rows_a_round // batch_size))
            for name, rates in speeds.items():
                ratios = [ours / theirs for ours, theirs in zip(rates, speeds[BASE], strict=True)]
                measured.append(
                    {
                        "backbone": backbone,
                        "batch_size": batch_size,
                        "variant": name,
                        "rows_per_second": round(statistics.median(rates)),
                        "ratio_to_base": round(statistics.median(ratios), 3),
                        "lowest_ratio": round(min(ratios), 3),
                        "highest_ratio": round(max(ratios), 3),
                        **(seconds_to_base(curves, backbone, name, rates) if batch_size == CURVES_BATCH else {}),
                    }
                )
                print(measured[-1], flush=True)
            tf.keras.backend.clear_session()
            described = {key: value for key, value in store.describe().items() if key != "path"}
            write_results(given.output, vars(given), {"store": described, "measured": measured})


def seconds_to_base(curves, backbone, variant, rates) -> dict:
    """The time to the base's best validation AUC: the epochs of the benchmark's curves, at the speed measured here.

    The mean over the seeds in which it was reached, and in how many of how many that was.
    """
    runs = [run for run in curves if run["backbone"] == backbone and run["split"] == "by_user"]
    runs = [run for run in runs if run["training_users"] == 1]
    best = {run["seed"]: run["validation_auc"] for run in runs if run["variant"] == BASE}
    ours = [run for run in runs if run["variant"] == CURVE_OF.get(variant, variant) and run["seed"] in best]
    epochs = [
        next((epoch for epoch, auc in enumerate(run["curve"], start=1) if auc >= best[run["seed"]]), None)
        for run in ours
    ]
    reached = [epoch for epoch in epochs if epoch is not None]
    if not reached:
        return {}
    rows = ours[0]["training_rows"]
    return {
        "epochs_to_base": round(statistics.fmean(reached), 2),
        "seconds_to_base": round(statistics.fmean(reached) * rows / statistics.median(rates), 1),
        "seeds_that_reached_it": f"{len(reached)} of {len(epochs)}",
    }


class Contestant:
    """A model as the run's configuration has it, compiled, and its endless examples."""

    def __init__(self, given, schema, backbone, batch_size, stores, variant) -> None:
        self.batch_size = batch_size
        tf.keras.utils.set_random_seed(1)
        settings = yaml.safe_load((Path(__file__).parents[1] / given.config).read_text())["train"]
        options = dict(settings["settings"]["model"])
        if variant.like_extractor_only:
            options.update(settings["by_variant"]["extractor_only"]["model"])
        options.update(variant.model)
        stores = stores if variant.knowledge else {}
        self.model = RankingModel(schema, RankingModelConfig(backbone=backbone, **options), stores)
        self.model.make_weights()
        self.model.adapt(stores)
        if variant.one_of != 1:
            self.model.keep_historical_embeddings(variant.one_of, decoupled=variant.like_extractor_only)
        variant.strategy(self.model)
        self.model.compile(optimizer=FusedAdam(1e-3))
        examples = IndexedExamples(given.prepared, "train", stores)
        examples.prepare_for(self.model)
        batches = examples.shuffled_batches(batch_size, seed=1, epochs=1000)
        if variant.cached:
            batches = batches.skip(1).take(1).cache().repeat()
        self.batches = batches
        self.iterator = iter(batches)
        self.step = self.model.make_train_function()

    def run(self, steps: int) -> float:
        """Trains so many steps and returns rows per second."""
        started = time.perf_counter()
        for _ in range(steps):
            logs = self.step(self.iterator)
        float(logs["loss"])  # waits for the last step
        return steps * self.batch_size / (time.perf_counter() - started)


def take_turns(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Runs all contestants in turn, and returns each one's rows per second, round by round; a first round is not counted."""
    for contestant in contestants.values():
        contestant.run(3)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            speeds[name].append(contestant.run(steps))
    return speeds


if __name__ == "__main__":
    main()
