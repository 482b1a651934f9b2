"""Trains an attached TFRS model under one of TensorFlow's distribution strategies: FOLDER OUTPUT DISTRIBUTION STRATEGY."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

ROWS, BATCH, MOVIES, VOCABULARY = 64, 16, 50, 40


def main(folder: Path, output: Path, distribution: str, strategy: str) -> None:
    scope = make_scope(distribution)  # first, before TensorFlow starts
    import psutil

    import kser_tf

    store = make_store(kser_tf, folder, output.stem, big=strategy == "memory")
    tf.keras.utils.set_random_seed(1)
    with scope as entered:
        model = make_model()
        model({"movie": tf.constant(["m1"])})
        kser_tf.attach(model, into={"movie_model": store}, verbose=False)
        if strategy == "extractor_only":
            kser_tf.extractor_only(model)
        elif strategy == "extractor_alone":
            kser_tf.extractor_only(model, also=())
        model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    before = [weight.numpy() for weight in model.weights]
    private = psutil.Process().memory_full_info().uss
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    model.fit(make_examples().with_options(options), epochs=2, verbose=0)
    result = {"replicas": np.array(entered.num_replicas_in_sync if entered is not None else 1)}
    if strategy == "memory":
        checkpoint = tf.train.Checkpoint(model=model).save(str(output.with_suffix("")))
        result["grown_bytes"] = np.array(psutil.Process().memory_full_info().uss - private)
        result["checkpoint_bytes"] = np.array(sum(f.stat().st_size for f in folder.glob(f"{Path(checkpoint).name}*")))
        result["table_bytes"] = np.array(store.vectors.nbytes)
    for weight, old in zip(model.weights, before, strict=True):
        result[f"weight/{weight.name}"] = weight.numpy()
        result[f"moved/{weight.name}"] = np.array(not np.array_equal(old, weight.numpy()))
    np.savez(output, **result)


def make_scope(distribution: str) -> contextlib.AbstractContextManager:
    if distribution == "mirrored":
        devices = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    if distribution == "workers":
        assert os.environ["TF_CONFIG"]
        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    return contextlib.nullcontext()


def make_store(kser_tf, folder: Path, name: str, *, big: bool):
    rng = np.random.default_rng(0)
    rows, width = (40_000, 256) if big else (MOVIES, 8)
    chunks = rng.normal(size=(rows, 1 if big else 2, 1 if big else 2, width)).astype("float32")
    ids = [f"m{i + 5}" for i in range(rows)]  # the first five films are unknown
    path = folder / f"store-{name}"
    fields = ["story"] if big else ["story", "craft"]
    return kser_tf.KnowledgeStore.write(
        path, ids, chunks, np.ones(chunks.shape[:3], bool), fields=fields, encoder="test", dtype="float32"
    )


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
    return tf.data.Dataset.from_tensor_slices(({"movie": movies}, rng.normal(size=ROWS).astype("float32"))).batch(BATCH)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
