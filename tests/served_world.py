"""Ranking models on small_world with random weights, exported, and their signatures called through the session loader."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import small_world as world
import tensorflow as tf

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.schema import DatasetSchema, Feature
from kser_tf.serving import contract


def schema(vocabulary: list[str] = world.ITEMS[:10]) -> DatasetSchema:
    return DatasetSchema(
        features=(
            Feature("item", "categorical", "string", vocabulary="item", entity="item"),
            Feature("past_item", "sequence", "string", length=5, vocabulary="item", entity="item", group="past"),
            Feature("past_stars", "sequence", "int64", length=5, vocabulary="stars", group="past"),
            Feature("place", "categorical", "string", vocabulary="place"),
            Feature("tags", "multi", "string", length=3, vocabulary="tags"),
            Feature("price", "numeric", "float32", mean=1.0, std=2.0),
        ),
        user_id="user",
        item_id="item",
        vocabularies={
            "item": list(vocabulary),
            "stars": [1, 2, 3, 4, 5],
            "place": ["web", "app"],
            "tags": ["red", "blue", "new"],
        },
    )


def ranking_model(store: KnowledgeStore | None, backbone: str = "din", **config: Any) -> Any:
    """A model whose every weight is random, the same for the same arguments, whatever rows the store has."""
    from kser_tf import RankingModel
    from kser_tf.models.config import RankingModelConfig

    stores = {} if store is None else {"item": store}
    model = RankingModel(
        schema(), RankingModelConfig(backbone=backbone, embedding_width=4, hidden_units=(8,), **config), stores
    )
    model.make_weights()
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.normal(0, 0.4 if backbone == "din" else 0.2, weight.shape) for weight in model.get_weights()]
    )
    return model


def rows(count: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Known items, items that only the store holds or that nobody does, missing values, histories of any length."""
    rng = np.random.default_rng(seed)
    items = np.array([*world.ITEMS, "никто", "", "x" * 5000], object)
    past = rng.choice(items, (count, 5))
    past[np.arange(5) >= rng.integers(0, 6, count)[:, None]] = ""
    stars = rng.integers(1, 7, (count, 5))
    stars[past == ""] = -1
    return {
        "item": rng.choice(items, count),
        "past_item": past,
        "past_stars": stars,
        "place": rng.choice(np.array(["web", "app", "tv", ""], object), count),
        "tags": rng.choice(np.array(["red", "blue", "old", ""], object), (count, 3)),
        "price": rng.choice(np.array([1.0, 2.5, np.nan], np.float32), count),
    }


class Served:
    """A SavedModel in TensorFlow's session loader, which is TF Serving's."""

    def __init__(self, path: Path) -> None:
        with tf.Graph().as_default():
            self._session = tf.compat.v1.Session()
            loaded = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        self.signatures = {n: s for n, s in loaded.signature_def.items() if not n.startswith("__")}

    def __call__(self, signature: str = "serving_default", **inputs: Any) -> dict[str, np.ndarray]:
        found = self.signatures[signature]
        feeds = {found.inputs[name].name: values for name, values in inputs.items()}
        assert feeds.keys() == {info.name for info in found.inputs.values()}
        return self._session.run({name: info.name for name, info in found.outputs.items()}, feeds)


def own(model: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    """The model's own logits."""
    return model.serve({name: tf.constant(values) for name, values in given.items()})["logit"].numpy()


class Exported:
    """A ranking model with knowledge, exported with all its signatures. Shared by the tests: nothing writes there."""

    def __init__(self, folder: Path, backbone: str, bake: Any) -> None:
        self.store = KnowledgeStore.open(world.make_store(folder))
        self.model = ranking_model(self.store, backbone)
        self.rows = rows()
        self.own = own(self.model, self.rows)
        self.result = kser_tf.export(self.model, folder / "served", examples=self.rows, bake=bake)
        self.description = json.loads((self.result.path / contract.DESCRIPTION_FILE).read_text())

    @functools.cached_property
    def serve(self) -> Served:
        return Served(self.result.path)


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import served_world as served
import kser_tf
from kser_tf.serving import baking
baking.ROWS_AT_ONCE = 256
model, base = served.ranking_model(kser_tf.KnowledgeStore.open({store!r})), {base!r}
print("ready", flush=True)
{call}
"""


def killed(call: str, store: Path, base: Path, delay: float) -> None:
    """Has another process do something with a `model` and a `base`, and kills it so many seconds after it began."""
    script = _KILLED.format(tests=str(Path(__file__).parent), store=str(store), base=str(base), call=call)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
