"""Memory of training with a small and with a large knowledge store: the store is mapped, not copied.

    .venv/bin/python benchmarks/memory.py --prepared runs/movielens-1m/prepared --store runs/movielens-1m/stores/movie

The large store is the given one and random filler under ids that no example names. Each is trained with for some steps in a process
of its own; the figure is the largest memory that is the process's own (`Private_Dirty` of /proc/self/smaps_rollup), which leaves out
mapped pages that the kernel can drop and read again. Writes `benchmarks/results/memory.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from results import write_results

from kser_tf import KnowledgeStore

_BATCH = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--store", required=True, help="knowledge store with integer ids")
    parser.add_argument("--filler-rows", type=int, default=500_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--train-with", help=argparse.SUPPRESS)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "memory.json"))
    given = parser.parse_args()
    if given.train_with:
        print(json.dumps(train_with(given)))
        return
    figures = {}
    with tempfile.TemporaryDirectory(dir=Path(given.store).parent) as folder:
        write_large(given, Path(folder) / "large")
        for name, path in {"small": given.store, "large": str(Path(folder) / "large")}.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--train-with", path]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            figures[name] = json.loads(lines[-1])
            print(name, figures[name], flush=True)
    growth = {key: figures["large"][key] - figures["small"][key] for key in ("store_mb", "own_mb")}
    print("growth", growth)
    write_results(
        given.output, {k: v for k, v in vars(given).items() if k != "train_with"}, {**figures, "growth": growth}
    )


def write_large(given: argparse.Namespace, path: Path) -> None:
    small = KnowledgeStore.open(given.store)
    rng = np.random.default_rng(0)
    shape = (small.chunks_per_field, small.width)

    def batches():
        yield small.ids, *small.lookup(small.ids)
        first = int(np.max(small.ids)) + 1
        for start in range(0, given.filler_rows, _BATCH):
            rows = min(_BATCH, given.filler_rows - start)
            chunks = rng.normal(size=(rows, len(small.fields), *shape)).astype(np.float32)
            yield np.arange(first + start, first + start + rows), chunks, np.ones(chunks.shape[:-1], bool)

    KnowledgeStore.write(path, batches=batches(), fields=small.fields, encoder="filler", dtype=small.dtype)


def train_with(given: argparse.Namespace) -> dict[str, int]:
    import tensorflow as tf

    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.schema import DatasetSchema

    schema = DatasetSchema.load(given.prepared)
    entity = schema.feature(schema.item_id).entity
    stores = {entity: KnowledgeStore.open(given.train_with, verify=False)}
    model = RankingModel(schema, None, stores)
    model.make_weights()
    model.adapt(stores)
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-3))
    examples = IndexedExamples(given.prepared, "train", stores)
    iterator, step = iter(examples.shuffled_batches(1024, seed=1, epochs=1000)), model.make_train_function()
    peak = 0
    for _ in range(given.steps):
        step(iterator)
        peak = max(peak, own_bytes())
    store_bytes = stores[entity].describe()["bytes"]
    return {
        "store_mb": store_bytes >> 20,
        "own_mb": peak >> 20,
        "statistics_mb": stores[entity].mask.size * 12 >> 20,
    }


def own_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty:"))


if __name__ == "__main__":
    main()
