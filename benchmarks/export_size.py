"""Export and serving of many entities: seconds, memory, size, load time.

    .venv/bin/python benchmarks/export_size.py --entities 1000000

Writes a knowledge store of random vectors, exports an untrained DIN with it, its tables baked in float16 and in int8, and loads each
export through TensorFlow's session loader, which is TF Serving's; every step in a process of its own. What is served is
`serving_default` alone: vocabulary, baked table, backbone. `measured` holds what was measured; `arithmetic` multiplies the bytes of
a row (its vector, its id) up to 10 million entities and adds the rest as it is. Writes `benchmarks/results/export_size.json`.
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
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from results import write_results

from kser_tf import KnowledgeStore

_BATCH = 20_000
_FIELDS, _CHUNKS, _TEXT_WIDTH = ("a", "b", "c"), 2, 64
_MANY = 10_000_000
_REQUEST_ROWS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=100_000, help="entities that the backbone knows by their id")
    parser.add_argument("--width", type=int, default=64, help="of a baked vector")
    parser.add_argument("--bake", nargs="+", default=["float16", "int8"])
    parser.add_argument("--work", help="folder for store and exports; default a temporary one")
    parser.add_argument("--step", choices=["export", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "export_size.json"))
    given = parser.parse_args()
    if given.step:
        print(json.dumps({"export": export, "serve": serve}[given.step](given)))
        return
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        given.work = folder
        began = time.monotonic()
        write_store(given)
        measured: dict[str, Any] = {"store_seconds": round(time.monotonic() - began, 1)}
        for bake in given.bake:
            measured[bake] = {**step("export", given, bake), **step("serve", given, bake)}
            print(bake, measured[bake], flush=True)
        arithmetic = {bake: for_many(measured[bake], given.entities) for bake in given.bake}
    arguments = {key: value for key, value in vars(given).items() if key not in ("work", "step")}
    write_results(given.output, arguments, {"measured": measured, "arithmetic": arithmetic})


def step(name: str, given: argparse.Namespace, bake: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, "--bake", bake, "--work", given.work]
    for key in ("entities", "vocabulary", "width"):
        command += [f"--{key}", str(getattr(given, key))]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return json.loads(lines[-1])


def entity_id(number: int) -> str:
    return f"item-{number:09d}"


def write_store(given: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    shape = (len(_FIELDS), _CHUNKS, _TEXT_WIDTH)

    def batches() -> Any:
        for start in range(0, given.entities, _BATCH):
            rows = min(_BATCH, given.entities - start)
            chunks = rng.standard_normal((rows, *shape), dtype=np.float32)
            ids = np.array([entity_id(i) for i in range(start, start + rows)], object)
            yield ids, chunks, np.ones(chunks.shape[:-1], bool)

    KnowledgeStore.write(Path(given.work) / "store", batches=batches(), fields=_FIELDS, encoder="random", dtype="int8")


def export(given: argparse.Namespace) -> dict[str, Any]:
    import kser_tf
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.schema import DatasetSchema, Feature

    schema = DatasetSchema(
        features=(
            Feature("item", "categorical", "string", vocabulary="item", entity="item"),
            Feature("past_item", "sequence", "string", length=20, vocabulary="item", entity="item", group="past"),
            Feature("price", "numeric", "float32"),
        ),
        user_id="user",
        item_id="item",
        vocabularies={"item": [entity_id(i) for i in range(given.vocabulary)]},
    )
    store = KnowledgeStore.open(Path(given.work) / "store", verify=False)
    model = kser_tf.RankingModel(schema, RankingModelConfig(embedding_width=given.width), {"item": store})
    model.make_weights()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.1, weight.shape) for weight in model.get_weights()])
    before, began = memory("VmRSS"), time.monotonic()
    result = kser_tf.export(model, Path(given.work) / given.bake[0], bake=given.bake[0], signatures=())
    seconds = time.monotonic() - began
    return {
        "export_seconds": round(seconds, 1),
        "of_it_baking": round(result.baking["seconds"], 1),
        "entities_a_second_baked": round(given.entities / result.baking["seconds"]),
        "mb_before_export": before,
        "peak_mb_of_export": memory("VmHWM"),
        "mb": {"export": result.bytes >> 20, **{part: size >> 20 for part, size in result.baking["bytes"].items()}},
        "bytes": result.bytes,
        "id_bytes": len(entity_id(0)),
        "vector_bytes": result.baking["bytes"]["table of item"] / (given.entities + 2),
    }


def serve(given: argparse.Namespace) -> dict[str, Any]:
    import tensorflow as tf

    before = memory("VmRSS")
    rng = np.random.default_rng(1)

    def ids(*shape: int) -> np.ndarray:
        numbers = rng.integers(0, given.entities, shape)
        return np.array([entity_id(number) for number in numbers.ravel()], object).reshape(shape)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        began = time.monotonic()
        path = str(Path(given.work) / given.bake[0] / "1")
        signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], path).signature_def["serving_default"]
        seconds, loaded = time.monotonic() - began, memory("VmRSS")
        fetches = signature.outputs["logit"].name
        values = {"item": ids(_REQUEST_ROWS), "past_item": ids(_REQUEST_ROWS, 20), "price": np.zeros(_REQUEST_ROWS)}
        feeds = {signature.inputs[name].name: value for name, value in values.items()}
        times = []
        for _ in range(50):
            start = time.monotonic()
            session.run(fetches, feeds)
            times.append(time.monotonic() - start)
        return {
            "load_seconds": round(seconds, 2),
            "mb_of_tensorflow_alone": before,
            "mb_after_loading": loaded,
            "mb_while_serving": memory("VmRSS"),
            "peak_mb_of_serving": memory("VmHWM"),
            "milliseconds_a_batch_of_512": round(1000 * float(np.median(times[5:])), 2),
        }


def for_many(measured: dict[str, Any], entities: int) -> dict[str, Any]:
    """What 10 million entities would take, if each took what one of those measured took."""
    more = _MANY - entities
    grown = (measured["mb_while_serving"] - measured["mb_of_tensorflow_alone"]) / entities
    return {
        "entities": _MANY,
        "mb_of_export": round((measured["bytes"] + more * (measured["vector_bytes"] + measured["id_bytes"])) / 2**20),
        "baking_minutes": round(_MANY / measured["entities_a_second_baked"] / 60, 1),
        "load_seconds": round(measured["load_seconds"] / entities * _MANY, 1),
        "mb_while_serving": round(measured["mb_of_tensorflow_alone"] + grown * _MANY),
    }


def memory(key: str) -> int:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
