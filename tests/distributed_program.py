"""Trains attached TFRS models, local or as one of several workers (TF_CONFIG): STORE OUTPUT local|workers.

Local: each training strategy on one device and mirrored on two, in one process, because to start one takes longer than to train.
Writes weights, what moved, the bytes of a checkpoint, and how many rows of the store are held in memory to OUTPUT, an .npz file.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from held_rows import held_rows

ROWS, BATCH, MOVIES, VOCABULARY = 64, 16, 50, 40
STRATEGIES = ("all_parameters", "extractor_only")


def main(store: Path, output: Path, distribution: str) -> None:
    result: dict[str, Any] = {}
    if distribution == "workers":
        scope = tf.distribute.MultiWorkerMirroredStrategy()  # first, before TensorFlow starts
        for strategy in STRATEGIES:
            for key, value in train(store, strategy, scope, output).items():
                result[f"workers/{strategy}/{key}"] = value
    else:
        devices = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        scopes = {"one": None, "mirrored": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
        for strategy in STRATEGIES:
            for name, scope in scopes.items():
                for key, value in train(store, strategy, scope, output).items():
                    result[f"{name}/{strategy}/{key}"] = value
        result |= held_with_a_copy(store)
    np.savez(output, **result)


def train(path: Path, strategy: str, scope: Any, output: Path) -> dict[str, Any]:
    import kser_tf

    store = kser_tf.KnowledgeStore.open(path, verify=False)
    tf.keras.backend.clear_session()  # so that names are counted from the start
    tf.keras.utils.set_random_seed(1)
    with contextlib.nullcontext() if scope is None else scope.scope():
        model = make_model()
        model({"movie": tf.constant(["m1"])})
        at_output = {"movie": kser_tf.Attachment(store, history="past")}
        kser_tf.attach(model, into={"movie_model": store}, at_output=at_output, output_kind="score", verbose=False)
        if strategy == "extractor_only":
            kser_tf.extractor_only(model)
        model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    before = [weight.numpy() for weight in model.weights]
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    model.fit(make_examples().with_options(options), epochs=2, verbose=0)
    result = {
        "replicas": np.array(1 if scope is None else scope.num_replicas_in_sync),
        "held_rows": np.array(held_rows()),
        "checkpoint_bytes": np.array(checkpoint_bytes(model, output.with_suffix(".checkpoint"))),
    }
    for weight, old in zip(model.weights, before, strict=True):
        result[f"weight/{weight.name}"] = weight.numpy()
        result[f"moved/{weight.name}"] = np.array(not np.array_equal(old, weight.numpy()))
    return result


def held_with_a_copy(path: Path) -> dict[str, Any]:
    """What the count says of a copy of the table: that it sees one."""
    from kser_tf import KnowledgeStore

    before = held_rows()
    copy = np.array(KnowledgeStore.open(path, verify=False).vectors)
    return {"table_rows": np.array(len(copy)), "held_rows_of_a_copy": np.array(held_rows() - before)}


def checkpoint_bytes(model: Any, folder: Path) -> int:
    path = Path(tf.train.Checkpoint(model=model).save(str(folder / "at")))
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def make_model():
    import tensorflow_recommenders as tfrs

    class Model(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            vocabulary = [f"m{i}" for i in range(VOCABULARY)]
            self.movie_model = tf.keras.Sequential(
                [tf.keras.layers.StringLookup(vocabulary=vocabulary), tf.keras.layers.Embedding(VOCABULARY + 1, 8)]
            )
            self.rating_model = tf.keras.Sequential([tf.keras.layers.Dense(16, "relu"), tf.keras.layers.Dense(1)])
            # As TensorFlow's guide to custom losses has it: the sum, over the size of the whole batch.
            self.task = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.SUM)
            )

        def call(self, features):
            return self.rating_model(self.movie_model(features["movie"]))

        def compute_loss(self, inputs, training=False):
            features, labels = inputs
            loss = self.task(labels=labels[:, None], predictions=self(features), compute_metrics=False)
            return loss / BATCH

    return Model()


def make_examples() -> tf.data.Dataset:
    rng = np.random.default_rng(2)
    movies = np.array([f"m{i}" for i in rng.integers(0, MOVIES, ROWS)])
    past = np.array([f"m{i}" for i in rng.integers(0, MOVIES, ROWS * 3)]).reshape(ROWS, 3)
    labels = rng.normal(size=ROWS).astype("float32")
    return tf.data.Dataset.from_tensor_slices(({"movie": movies, "past": past}, labels)).batch(BATCH)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
