"""Small real models and stores for the tests of export and check."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

import kser_tf
from kser_tf.layers import KnowledgeExtractor, KnowledgeLookup

WIDTH = 8
FIELDS = ("story", "craft")
CHUNKS = 3
STRING_IDS = np.array(["Amélie", "天国", "tt0001", "tt0002", "Ран", "x" * 300], dtype=object)
INTEGER_IDS = np.array([7, 3, 2**40, 11, 5, 100])


def write_store(
    path: Any, *, ids: np.ndarray = STRING_IDS, dtype: str = "int8", seed: int = 0
) -> kser_tf.KnowledgeStore:
    generator = np.random.default_rng(seed)
    chunks = generator.normal(size=(len(ids), len(FIELDS), CHUNKS, WIDTH)).astype(np.float32)
    mask = generator.random((len(ids), len(FIELDS), CHUNKS)) < 0.8
    mask[1] = False  # known, without any knowledge
    return kser_tf.KnowledgeStore.write(path, ids, chunks, mask, fields=FIELDS, encoder="test", dtype=dtype)


class Ranker(tf.keras.Model):
    """Item id, user country and a number -> logit; the item with its knowledge."""

    def __init__(self, store: kser_tf.KnowledgeStore, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if store.id_dtype == "string":
            self.item_index = tf.keras.layers.StringLookup(vocabulary=list(store.ids[:4]))
        else:
            self.item_index = tf.keras.layers.IntegerLookup(vocabulary=list(store.ids[:4]))
        self.item_embedding = tf.keras.layers.Embedding(8, 4)
        self.country_index = tf.keras.layers.StringLookup(vocabulary=["de", "jp"])
        self.country_embedding = tf.keras.layers.Embedding(4, 4)
        # In places where Keras does not look by itself: a dict in a list, in a plain attribute.
        self.knowledge = [{"item": KnowledgeLookup(store, name="item_lookup")}]
        self.extractor = KnowledgeExtractor(2, 4, output_initializer="glorot_uniform")
        self.batch_norm = tf.keras.layers.BatchNormalization()
        self.score = tf.keras.layers.Dense(1)

    def call(self, features: Any, training: bool | None = None) -> Any:
        item = self.item_embedding(self.item_index(features["item_id"]))
        chunks, mask = self.knowledge[0]["item"](features["item_id"])
        item += self.extractor(item[:, None, :], chunks, mask=mask)[:, 0]
        country = self.country_embedding(self.country_index(features["country"]))
        price = tf.reshape(features["price"], (-1, 1))
        return self.score(self.batch_norm(tf.concat([item, country, price], axis=-1), training=training))


def ranker(store: kser_tf.KnowledgeStore, *, seed: int = 0) -> Ranker:
    """A built ranker, every weight of it random."""
    model = Ranker(store, name="ranker")
    model(rows(4, store=store))
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 1.0, weight.shape) for weight in model.get_weights()])
    return model


def inputs(store: kser_tf.KnowledgeStore) -> dict[str, tf.TensorSpec]:
    return {
        "item_id": tf.TensorSpec((None,), tf.as_dtype(store.id_dtype)),
        "country": tf.TensorSpec((None,), tf.string),
        "price": tf.TensorSpec((None,), tf.float32),
    }


def rows(count: int, *, store: kser_tf.KnowledgeStore, seed: int = 1) -> dict[str, np.ndarray]:
    """Known and unknown items, known, unknown and missing countries."""
    generator = np.random.default_rng(seed)
    unknown = ["unbekannt", ""] if store.id_dtype == "string" else [-1, 999]
    return {
        "item_id": generator.choice(np.array([*store.ids, *unknown], dtype=store.ids.dtype), count),
        "country": generator.choice(np.array(["de", "jp", "zz", ""]), count),
        "price": generator.normal(size=count).astype(np.float32),
    }
