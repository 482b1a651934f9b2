"""Rows per second in training: base, all-parameters, extractor-only, side by side in one process, on prepared data.

    .venv/bin/python benchmarks/training.py --prepared runs/movielens-1m/prepared --store runs/movielens-1m/stores/movie

The variants take turns, some steps each, round after round, so a machine that becomes slower or faster does so for all of them;
figures are medians over the rounds, and ratios are taken round by round. Feeding from disk is compared with feeding one cached
batch in the same way. Writes `benchmarks/results/training.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--store", required=True, help="knowledge store of the candidate's entity")
    parser.add_argument("--backbones", nargs="+", default=["din", "dcn_v2"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows-a-round", type=int, default=65536)
    parser.add_argument("--config", default=CONFIG, help="the run whose models these are")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "training.json"))
    given = parser.parse_args()

    schema = DatasetSchema.load(given.prepared)
    entity = schema.feature(schema.item_id).entity
    store = KnowledgeStore.open(given.store, verify=False)
    measured = []
    for backbone in given.backbones:
        for batch_size in given.batch_sizes:
            contestants = {
                BASE: Contestant(given, schema, backbone, batch_size, None, all_parameters),
                "all_parameters": Contestant(given, schema, backbone, batch_size, {entity: store}, all_parameters),
                "extractor_only": Contestant(
                    given, schema, backbone, batch_size, {entity: store}, extractor_only, one_of=0
                ),
                "all_parameters, without historical embeddings": Contestant(
                    given, schema, backbone, batch_size, {entity: store}, all_parameters, one_of=1
                ),
                "extractor_alone": Contestant(
                    given,
                    schema,
                    backbone,
                    batch_size,
                    {entity: store},
                    lambda model: extractor_only(model, also=()),
                    one_of=0,
                ),
                "base, one cached batch": Contestant(
                    given, schema, backbone, batch_size, None, all_parameters, cached=True
                ),
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
                    }
                )
                print(measured[-1], flush=True)
            tf.keras.backend.clear_session()
    write_results(
        given.output,
        vars(given),
        {"store": {k: v for k, v in store.describe().items() if k != "path"}, "measured": measured},
    )


class Contestant:
    """A model as the run's configuration has it, compiled, and its endless examples."""

    def __init__(self, given, schema, backbone, batch_size, stores, strategy, *, cached=False, one_of=8) -> None:
        self.batch_size = batch_size
        tf.keras.utils.set_random_seed(1)
        settings = yaml.safe_load((Path(__file__).parents[1] / given.config).read_text())["train"]
        options = dict(settings["settings"]["model"])
        if one_of == 0:
            options.update(settings["by_variant"]["extractor_only"]["model"])
        self.model = RankingModel(schema, RankingModelConfig(backbone=backbone, **options), stores or {})
        self.model.make_weights()
        self.model.adapt(stores or {})
        if one_of != 1:
            self.model.keep_historical_embeddings(one_of)
        strategy(self.model)
        self.model.compile(optimizer=FusedAdam(1e-3))
        examples = IndexedExamples(given.prepared, "train", stores)
        examples.prepare_for(self.model)
        batches = examples.shuffled_batches(batch_size, seed=1, epochs=1000)
        if cached:
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
