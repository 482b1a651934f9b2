r"""Rows per second in training beside FuxiCTR, an open library of the field: DIN on the same rows.

    python -m venv fuxictr && fuxictr/bin/pip install fuxictr torch
    .venv/bin/python benchmarks/fuxictr_speed.py --fuxictr fuxictr/bin/python --prepared WORK/prepared/kar --store WORK/stores/llm/movie

with what `kser-tf benchmark configs/benchmark-movielens-1m.yaml --data FOLDER --work WORK --part kar` prepared: item id, first genre, a
history of 10 with ratings. FuxiCTR has its own environment and process (`fuxictr_worker.py`), its own loader with as many loading
processes as is best for it, and once no loader at all: one batch again and again. Its knowledge is one frozen vector an item, the mean of
the chunks, added to the id's embedding or concatenated to it; ours the whole of KSER, with what the user's first 30 films tell. The
contestants take turns; each waits while another trains. Widths, hidden units, batch, optimizer and threads are the same for all.

With `--intra-op-threads 1` TensorFlow gives each operation to one thread, which is what short operations need; for any program the
variable TF_NUM_INTRAOP_THREADS=1 does so. Writes `benchmarks/results/fuxictr_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from results import write_results
from training import CONFIG, EXTRACTOR_ONLY, Contestant, Variant, take_turns

from kser_tf import KnowledgeStore, extractor_only
from kser_tf.models.config import RankingModelConfig
from kser_tf.pipelines.chunk_means import chunk_means
from kser_tf.schema import DatasetSchema

THREADS = 2
ATTENTION_UNITS = 32  # DIN's own default
KAR = {"backbone_history": {"first": 0}, "id_dropout": 0.0}
OURS = {
    "base": Variant(model=KAR, knowledge=False),
    "all_parameters": Variant(model=KAR),
    "extractor_only": Variant(model=KAR, strategy=extractor_only, **EXTRACTOR_ONLY),
    "kar": Variant(
        model={**KAR, "adaptor": "kar", "adaptor_options": {"placement": "residual"}, "user_knowledge": False}
    ),
}
# What its loader leaves to be chosen; and the step alone.
THEIRS = {
    f"fuxictr, {knowledge}, {feeding}": [*usage, *options]
    for knowledge, usage in (("no vectors", []), ("sum", ["--usage", "sum"]), ("concat", ["--usage", "concat"]))
    for feeding, options in (
        ("1 loading process", ["--loading-workers", "1"]),
        ("2 loading processes", ["--loading-workers", "2"]),
        ("one cached batch", ["--loading-workers", "0", "--cached"]),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuxictr", required=True, help="the Python in whose environment FuxiCTR is")
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--store", required=True, help="knowledge store of the candidate's entity")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows-a-round", type=int, default=65536)
    parser.add_argument(
        "--intra-op-threads",
        type=int,
        default=THREADS,
        help="of TensorFlow: threads that share an operation; 1: only operations are shared out",
    )
    parser.add_argument("--config", default=CONFIG, help="the run whose models ours are")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "fuxictr_speed.json"))
    given = parser.parse_args()

    schema = DatasetSchema.load(given.prepared)
    entity = schema.feature(schema.item_id).entity
    store = KnowledgeStore.open(given.store, verify=False)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.config.threading.set_intra_op_parallelism_threads(given.intra_op_threads)
    arguments = {key: value for key, value in vars(given).items() if key != "fuxictr"}
    measured, built = [], {}
    with tempfile.TemporaryDirectory() as work:
        vectors = Path(work) / "vectors.npz"
        np.savez(vectors, key=store.ids, value=chunk_means(*store.lookup(store.ids)))
        for batch_size in given.batch_sizes:
            contestants: dict[str, Any] = {
                name: Contestant(given, schema, "din", batch_size, {entity: store}, variant)
                for name, variant in OURS.items()
            }
            for number, (name, options) in enumerate(THEIRS.items()):
                folder = Path(work) / f"{batch_size}-{number}"
                contestants[name] = Worker(given, folder, vectors, batch_size, options)
                built = contestants[name].built
            speeds = take_turns(contestants, given.rounds, max(2, given.rows_a_round // batch_size))
            for name, rates in speeds.items():
                measured.append(
                    {"batch_size": batch_size, "contestant": name, "rows_per_second": round(statistics.median(rates))}
                )
                measured[-1] |= against_the_best(speeds, name)
                print(measured[-1], flush=True)
            for contestant in contestants.values():
                if isinstance(contestant, Worker):
                    contestant.stop()
            tf.keras.backend.clear_session()
            write_results(given.output, arguments, {"fuxictr": built, "measured": measured})


def against_the_best(speeds: dict[str, list[float]], name: str) -> dict[str, float]:
    """How many times as fast as FuxiCTR where it is fastest with a loader: without vectors, and with them."""
    ratios = {}
    for what, knowledge in (("without_vectors", ("no vectors",)), ("with_vectors", ("sum", "concat"))):
        rivals = [
            rates for rival, rates in speeds.items() if "loading" in rival and any(kind in rival for kind in knowledge)
        ]
        best = max(rivals, key=statistics.median)
        times = [own / other for own, other in zip(speeds[name], best, strict=True)]
        ratios |= {
            f"times_fuxictr_{what}": round(statistics.median(times), 2),
            f"lowest_{what}": round(min(times), 2),
            f"highest_{what}": round(max(times), 2),
        }
    return ratios


class Worker:
    """FuxiCTR in a process of its own, which trains when it is asked to."""

    def __init__(
        self, given: argparse.Namespace, work: Path, vectors: Path, batch_size: int, options: list[str]
    ) -> None:
        self.batch_size = batch_size
        ours = RankingModelConfig()
        command = [given.fuxictr, str(Path(__file__).parent / "fuxictr_worker.py"), *options]
        command += [
            f"--prepared={given.prepared}",
            f"--vectors={vectors}",
            f"--work={work}",
            f"--batch-size={batch_size}",
        ]
        command += [f"--width={ours.embedding_width}", "--hidden-units", *map(str, ours.hidden_units)]
        command += [f"--attention-units={ATTENTION_UNITS}", f"--threads={THREADS}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.built = json.loads(self._answer())

    def run(self, steps: int) -> float:
        """Trains so many steps and returns rows per second."""
        print(steps, file=self.process.stdin, flush=True)
        return steps * self.batch_size / float(self._answer())

    def stop(self) -> None:
        """Ends the process, which ends when nothing more can be asked."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"FuxiCTR's process ended with code {self.process.wait()}; what it said stands above.")
        return line


if __name__ == "__main__":
    main()
