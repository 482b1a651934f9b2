"""Two workers on the loopback address train an attached TFRS model on the same batches as one worker.

    .venv/bin/python benchmarks/distributed.py

Each run is a process, or two, of its own, with a small and with a large knowledge store: MultiWorkerMirroredStrategy splits each
batch between its workers, and what comes out must be what one worker makes of it. Prints and writes the largest difference of
weights and predictions, rows per second, bytes of a checkpoint, and the memory that is each worker's own (`Private_Dirty`, which
leaves out mapped pages that the kernel can drop and read again). Writes `benchmarks/results/distributed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from local_workers import worker_configs
from results import write_results

from kser_tf import KnowledgeStore

MOVIES, USERS, FIELDS, CHUNKS, WIDTH = 3000, 2000, 3, 2, 64
_AT_ONCE = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="rows of a batch, of all workers together")
    parser.add_argument("--steps", type=int, default=40, help="steps of an epoch; the first of two epochs is not timed")
    parser.add_argument("--large-rows", type=int, default=300_000, help="entities of the large store")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "distributed.json"))
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # store, result
    given = parser.parse_args()
    if given.train:
        train(given, *map(Path, given.train))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in {"small": MOVIES, "large": given.large_rows}.items():
            store = write_store(Path(folder) / name, rows)
            one, *_ = one_worker = run(given, store, Path(folder), workers=1)
            two = run(given, store, Path(folder), workers=2)
            figures[name] = {
                "store_mb": round(store.vectors.nbytes / 1e6, 1),
                "largest_difference_of_weights": max(difference(one, worker, "weight/") for worker in two),
                "largest_difference_of_predictions": max(difference(one, worker, "predictions") for worker in two),
                "largest_change_of_weights_in_training": float(one["change"]),
                "one_worker": [told(worker) for worker in one_worker],
                "two_workers": [told(worker) for worker in two],
            }
            print(name, json.dumps(figures[name], indent=2), flush=True)
    arguments = {key: value for key, value in vars(given).items() if key != "train"}
    write_results(given.output, arguments, figures)


def write_store(path: Path, rows: int) -> KnowledgeStore:
    """Random knowledge; no example names an entity behind the first `MOVIES`."""
    generator = np.random.default_rng(0)
    chunks = np.empty((rows, FIELDS, CHUNKS, WIDTH), np.float16)
    for start in range(0, rows, _AT_ONCE):
        part = chunks[start : start + _AT_ONCE]
        part[:] = generator.standard_normal(part.shape, np.float32)
    mask = np.ones(chunks.shape[:-1], bool)
    fields = [f"field_{i}" for i in range(FIELDS)]
    return KnowledgeStore.write(path, np.arange(rows), chunks, mask, fields=fields, encoder="random", dtype="float16")


def run(given: argparse.Namespace, store: KnowledgeStore, folder: Path, *, workers: int) -> list[dict[str, Any]]:
    """Trains with so many workers; returns what each of them found."""
    started, outputs = [], [folder / f"{Path(store.path).name}-{workers}-{worker}.npz" for worker in range(workers)]
    try:
        for config, output in zip(worker_configs(workers), outputs, strict=True):
            command = [sys.executable, __file__, "--batch", str(given.batch), "--steps", str(given.steps)]
            command += ["--train", str(store.path), str(output)]
            started.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}))
        for process in started:
            if process.wait():
                raise SystemExit(f"a worker ended with status {process.returncode}")
    finally:
        for process in started:
            process.kill()
    found = []
    for output in outputs:
        with np.load(output) as arrays:
            found.append(dict(arrays))
    return found


def difference(one: dict[str, Any], other: dict[str, Any], prefix: str) -> float:
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


def told(worker: dict[str, Any]) -> dict[str, float]:
    return {
        name: round(float(worker[name]), 1)
        for name in ("rows_per_second", "checkpoint_bytes", "own_mb", "grown_in_training_mb")
    }


def train(given: argparse.Namespace, store_path: Path, output: Path) -> None:
    """One worker's part; TF_CONFIG says which it is."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # first, before TensorFlow starts
    import kser_tf

    store = KnowledgeStore.open(store_path)
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make_model(tf, given.batch)
        model({"movie": tf.constant([1]), "user": tf.constant([1])})
        kser_tf.attach(model, into={"movie_model": store}, verbose=False)
        model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    before, private = [weight.numpy() for weight in model.weights], private_mb()
    examples = make_examples(tf, given.batch, given.steps)
    model.fit(examples, epochs=1, verbose=0)
    began = time.monotonic()
    model.fit(examples, epochs=1, verbose=0)
    seconds = time.monotonic() - began
    result = {f"weight/{i}": weight.numpy() for i, weight in enumerate(model.weights)}
    change = max(float(np.abs(result[f"weight/{i}"] - old).max()) for i, old in enumerate(before))
    ids = {"movie": tf.range(2000, dtype=tf.int64) % MOVIES, "user": tf.range(2000, dtype=tf.int64) % USERS}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(tf.train.Checkpoint(model=model).save(str(Path(folder) / "at")))
        size = sum(file.stat().st_size for file in checkpoint.parent.glob(f"{checkpoint.name}*"))
    np.savez(
        output,
        **result,
        change=change,
        predictions=model(ids).numpy(),
        rows_per_second=given.batch * given.steps / seconds,
        checkpoint_bytes=size,
        own_mb=private_mb(),
        grown_in_training_mb=private_mb() - private,
    )


def make_model(tf: Any, batch: int) -> Any:
    import tensorflow_recommenders as tfrs

    class Ranker(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie_model = tf.keras.Sequential(
                [
                    tf.keras.layers.IntegerLookup(vocabulary=list(range(MOVIES - 500))),
                    tf.keras.layers.Embedding(MOVIES, 32),
                ]
            )
            self.user_model = tf.keras.layers.Embedding(USERS, 32)
            self.rating_model = tf.keras.Sequential(
                [tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(32, "relu"), tf.keras.layers.Dense(1)]
            )
            # As TensorFlow's guide to custom losses has it: the sum, over the size of the whole batch.
            self.task = tfrs.tasks.Ranking(
                loss=tf.keras.losses.BinaryCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.SUM)
            )

        def call(self, features: Any) -> Any:
            both = [self.movie_model(features["movie"]), self.user_model(features["user"])]
            return self.rating_model(tf.concat(both, -1))

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            features, labels = inputs
            loss = self.task(labels=labels[:, None], predictions=self(features), compute_metrics=False)
            return loss / batch

    return Ranker()


def make_examples(tf: Any, batch: int, steps: int) -> Any:
    generator = np.random.default_rng(2)
    movies, users = generator.integers(0, MOVIES, batch * steps), generator.integers(0, USERS, batch * steps)
    labels = (generator.random(batch * steps) < 0.5).astype("float32")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    examples = tf.data.Dataset.from_tensor_slices(({"movie": movies, "user": users}, labels))
    return examples.batch(batch, drop_remainder=True).with_options(options)


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Private_Dirty:"))) / 1e3


if __name__ == "__main__":
    main()
