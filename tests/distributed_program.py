"""Trains attached TFRS models, local or as one of several workers (TF_CONFIG): FOLDER OUTPUT local|workers.

Local: each training strategy on one device and mirrored on two, and last with a large store, on one device and on two. All in
one process, because to start one takes longer than to train. Writes weights, what moved, and bytes to OUTPUT, an .npz file.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

ROWS, BATCH, MOVIES, VOCABULARY = 64, 16, 50, 40
STRATEGIES = ("all_parameters", "extractor_only", "extractor_alone")
LARGE_ROWS, LARGE_WIDTH = 80_000, 256  # 82 MB


def main(folder: Path, output: Path, distribution: str) -> None:
    result: dict[str, Any] = {}
    if distribution == "workers":
        scope = tf.distribute.MultiWorkerMirroredStrategy()  # first, before TensorFlow starts
        trained = train(make_store(folder / f"store-{output.stem}"), "all_parameters", scope)
        result = {f"workers/all_parameters/{name}": value for name, value in trained.items()}
    else:
        devices = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        scopes = {"one": None, "mirrored": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
        store, large = make_store(folder / "store"), make_store(folder / "large", LARGE_ROWS, LARGE_WIDTH)
        for strategy in STRATEGIES:
            for name, scope in scopes.items():
                for key, value in train(store, strategy, scope).items():
                    result[f"{name}/{strategy}/{key}"] = value
        result["table_bytes"] = np.array(large.vectors.nbytes)
        for name, scope in scopes.items():
            result |= {f"{name}/large/{key}": value for key, value in train(large, "extractor_alone", scope).items()}
    np.savez(output, **result)


def train(store: Any, strategy: str, scope: Any) -> dict[str, Any]:
    import kser_tf

    tf.keras.backend.clear_session()  # so that names are counted from the start
    tf.keras.utils.set_random_seed(1)
    with contextlib.nullcontext() if scope is None else scope.scope():
        model = make_model()
        model({"movie": tf.constant(["m1"])})
        kser_tf.attach(
            model, into={"movie_model": store}, at_output={"movie": store}, output_kind="score", verbose=False
        )
        if strategy == "extractor_only":
            kser_tf.extractor_only(model)
        elif strategy == "extractor_alone":
            kser_tf.extractor_only(model, also=())
        model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    before, private = [weight.numpy() for weight in model.weights], private_bytes()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    model.fit(make_examples().with_options(options), epochs=2, verbose=0)
    result = {
        "replicas": np.array(1 if scope is None else scope.num_replicas_in_sync),
        "grown_bytes": np.array(private_bytes() - private),
        "checkpoint_bytes": np.array(
            checkpoint_bytes(model, Path(store.path).parent / f"checkpoint-{Path(store.path).name}")
        ),
    }
    for weight, old in zip(model.weights, before, strict=True):
        result[f"weight/{weight.name}"] = weight.numpy()
        result[f"moved/{weight.name}"] = np.array(not np.array_equal(old, weight.numpy()))
    return result


def private_bytes() -> int:
    """What of the memory is the process's own: without the mapped pages of a store, which the kernel can drop."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Private_Dirty:")))


def checkpoint_bytes(model: Any, folder: Path) -> int:
    path = Path(tf.train.Checkpoint(model=model).save(str(folder / "at")))
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def make_store(path: Path, rows: int = MOVIES, width: int = 8) -> Any:
    import kser_tf

    chunks = np.random.default_rng(0).normal(size=(rows, 1, 1, width)).astype("float32")
    ids = [f"m{i + 5}" for i in range(rows)]  # the first five films are unknown
    mask = np.ones(chunks.shape[:3], bool)
    return kser_tf.KnowledgeStore.write(path, ids, chunks, mask, fields=["story"], encoder="test", dtype="float32")


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
