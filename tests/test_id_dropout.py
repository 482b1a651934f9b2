"""Some entities are taken for unknown in training, so that the extractor meets those that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import MOVIE_VOCABULARY, MOVIES, MOVIES_WITHOUT_KNOWLEDGE, Stores, make_stores

import kser_tf
from kser_tf.errors import AttachError
from kser_tf.layers import KnowledgeEmbedding

layers = tf.keras.layers
TITLES = tf.constant(MOVIES)
HAS_KNOWLEDGE = np.array([title not in MOVIES_WITHOUT_KNOWLEDGE for title in MOVIES])
# So near to 1 that every draw falls below it.
ALL = 1 - 1e-9


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def one(movie: Any, ids: Any = TITLES) -> Any:
    """A built model that, as most of TFRS, does not hand `training` on."""

    class One(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie = movie
            self.head = layers.Dense(1)

        def call(self, ids: Any) -> Any:
            return self.head(self.movie(ids))

    model = One()
    model(ids)
    return model


def strings() -> Any:
    return tf.keras.Sequential(
        [layers.StringLookup(vocabulary=MOVIE_VOCABULARY, name="ids"), layers.Embedding(33, 4, name="table")]
    )


def test_what_is_drawn(stores: Stores) -> None:
    knowledge = KnowledgeEmbedding(stores.movies, id_dropout=0.5)
    ids = np.array(MOVIES * 3)  # at three places each
    embedded = tf.reshape(tf.range(len(ids) * 4, dtype=tf.float32), [-1, 4])
    unknown = tf.constant([-1.0, -2.0, -3.0, -4.0])
    # What is aligned begins as 0, so the result is what the knowledge would be added to.
    drawn = np.asarray(knowledge(embedded, tf.constant(ids), unknown=unknown, training=True))
    as_unknown = (drawn == unknown.numpy()).all(-1)
    np.testing.assert_array_equal(drawn[~as_unknown], embedded.numpy()[~as_unknown])
    first, second, third = as_unknown.reshape(3, -1)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert not first[~HAS_KNOWLEDGE].any()
    share = first[HAS_KNOWLEDGE].mean()
    assert 0.2 < share < 0.8, share
    again = knowledge(embedded, tf.constant(ids), unknown=unknown, training=True)
    np.testing.assert_array_equal(again, drawn)
    other = np.asarray(knowledge(embedded[:-1], tf.constant(ids[:-1]), unknown=unknown, training=True))
    assert ((other == unknown.numpy()).all(-1) != as_unknown[:-1]).any(), "another batch, another draw"
    np.testing.assert_array_equal(knowledge(embedded, tf.constant(ids), unknown=unknown, training=False), embedded)
    np.testing.assert_array_equal(knowledge(embedded, tf.constant(ids)), embedded)
    with pytest.raises(ValueError, match=r"was not given the embedding of an unknown id. Hand it in"):
        knowledge(embedded, tf.constant(ids), training=True)


def test_ragged_ids(stores: Stores) -> None:
    knowledge = KnowledgeEmbedding(stores.movies, id_dropout=ALL)
    ids = tf.RaggedTensor.from_row_lengths(tf.constant(MOVIES[:4]), [3, 0, 1])
    embedded = tf.RaggedTensor.from_row_lengths(tf.ones((4, 2)), [3, 0, 1])
    drawn = knowledge(embedded, ids, unknown=tf.zeros(2), training=True)
    np.testing.assert_array_equal(drawn.flat_values[:, 0], np.where(HAS_KNOWLEDGE[:4], 0.0, 1.0))


@pytest.mark.parametrize("kind", ["stack", "inner", "index", "hashing"])
def test_fit_goes_on_with_the_embedding_of_the_unknown_id(stores: Stores, kind: str) -> None:
    if kind == "hashing":
        ids, store = tf.range(len(MOVIES), dtype=tf.int64), stores.movie_numbers
        model = one(tf.keras.Sequential([layers.Hashing(16), layers.Embedding(16, 4, name="table")]), ids)
        into: Any = kser_tf.Attachment(store, unknown=999_983)
        unknown = model.movie(tf.constant([999_983]))
    elif kind == "index":
        ids, store = tf.range(1, len(MOVIES) + 1), stores.movies
        model = one(layers.Embedding(64, 4), ids)
        into = kser_tf.Attachment(store, vocabulary=[None, *MOVIES], unknown=0)
        unknown = model.movie(tf.constant([0]))
    else:
        ids, into = TITLES, stores.movies
        model = one(strings())
        unknown = model.movie(tf.constant(["nobody knows this"]))
    before = model(ids).numpy()
    expected = np.where(HAS_KNOWLEDGE[:, None], model.head(unknown), before)
    path = "movie.table" if kind == "inner" else "movie"
    model = kser_tf.attach(model, into={path: into}, id_dropout=ALL, verbose=False)
    model.compile(tf.keras.optimizers.SGD(0.0), loss="mse")
    labels = tf.constant(np.arange(len(MOVIES), dtype=np.float32)[:, None])
    history = model.fit(ids, labels, batch_size=len(MOVIES), shuffle=False, verbose=0).history
    assert not np.allclose(expected, before)
    np.testing.assert_allclose(history["loss"][0], np.mean((expected - labels) ** 2), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(ids, verbose=0), before)
    np.testing.assert_allclose(model.evaluate(ids, labels, verbose=0), np.mean((before - labels) ** 2), rtol=1e-6)


def test_it_is_saved_with_the_model(stores: Stores, tmp_path: Path) -> None:
    inputs = tf.keras.Input((), dtype=tf.string)
    model = tf.keras.Model(inputs, layers.Dense(1)(strings()(inputs)))
    path = model.layers[1].name
    model = kser_tf.attach(model, into={path: stores.movies}, id_dropout=0.25, verbose=False)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    loaded = kser_tf.attach(loaded, into={path: stores.movies}, verbose=False)
    (knowledge,) = (x for x in loaded._flatten_layers(recursive=True) if isinstance(x, KnowledgeEmbedding))
    assert knowledge.id_dropout == 0.25
    loaded.compile("sgd", loss="mse")
    loaded.fit(TITLES, np.zeros((len(MOVIES), 1)), verbose=0)


def test_refused(stores: Stores) -> None:
    ids = tf.range(len(MOVIES), dtype=tf.int64)
    hashed = one(tf.keras.Sequential([layers.Hashing(16), layers.Embedding(16, 4)]), ids)
    with pytest.raises(AttachError, match=r"'movie' is called with for an entity .*Attachment\(store, unknown="):
        kser_tf.attach(hashed, into={"movie": stores.movie_numbers}, id_dropout=0.3, verbose=False)
    listed = one(layers.Embedding(64, 4), ids)
    into = {"movie": kser_tf.Attachment(stores.movies, vocabulary=list(MOVIES))}
    with pytest.raises(AttachError, match=r"\(indices of a list\). Say it"):
        kser_tf.attach(listed, into=into, id_dropout=0.3, verbose=False)
    assert not kser_tf.attachments(listed).places
    with pytest.raises(ValueError, match=r"at least 0 and below 1. Received: id_dropout=1"):
        kser_tf.attach(one(strings()), into={"movie": stores.movies}, id_dropout=1, verbose=False)
    with pytest.raises(AttachError, match="at the output there is no embedding"):
        kser_tf.attach(one(strings()), at_output={"id": stores.movies}, id_dropout=0.3)
