"""The layer by hand, in both Kerases, and exported with the model that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import KERAS_2, MOVIES, MOVIES_WITHOUT_KNOWLEDGE, Stores, cases, make_stores, raw_features

import kser_tf
from kser_tf.layers import KnowledgeEmbedding

TITLES = tf.constant(MOVIES)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def functional(store: Any, mode: str) -> Any:
    title = tf.keras.Input((), dtype="string")
    index = tf.keras.layers.StringLookup(vocabulary=MOVIES)(title)
    movie = tf.keras.layers.Embedding(len(MOVIES) + 1, 4)(index)
    movie = KnowledgeEmbedding(store, mode, extractor={"output_initializer": "ones", "units": 3}, name="knowledge")(
        movie, title
    )
    return tf.keras.Model(title, tf.keras.layers.Dense(1)(movie))


@pytest.mark.parametrize("mode", ["residual", "append"])
def test_a_functional_model_by_hand_is_saved_and_loaded(stores: Stores, tmp_path: Path, mode: str) -> None:
    model = functional(stores.movies, mode)
    assert model.get_layer("knowledge").output.shape[-1] == (4 if mode == "residual" else 8)
    expected = model(TITLES).numpy()
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("knowledge").extractor.units == 3
    with pytest.raises(ValueError, match="has no store"):
        loaded(TITLES)
    loaded.get_layer("knowledge").connect(stores.movies)
    np.testing.assert_array_equal(loaded(TITLES).numpy(), expected)


def test_append_puts_the_knowledge_beside_the_embedding(stores: Stores) -> None:
    embedded = tf.random.stateless_normal((len(MOVIES), 4), (1, 2))
    side = KnowledgeEmbedding(stores.movies, "append", extractor={"output_initializer": "ones"})
    result = side(embedded, TITLES)
    np.testing.assert_array_equal(result[:, :4], embedded)
    np.testing.assert_array_equal(result[:, 4:], side.aligned(embedded, TITLES))
    without = [title in MOVIES_WITHOUT_KNOWLEDGE for title in MOVIES]
    np.testing.assert_array_equal((result[:, 4:].numpy() == 0).all(1), without)


def test_the_mask_of_the_embeddings_passes(stores: Stores) -> None:
    ids = tf.constant([[9, 0, 10]])
    embedded = tf.keras.layers.Embedding(40, 4, mask_zero=True)(ids)
    result = KnowledgeEmbedding(stores.movie_numbers)(embedded, tf.cast(ids, tf.int64))
    np.testing.assert_array_equal(result._keras_mask, [[True, False, True]])


def test_indices_that_stand_for_ids(stores: Stores) -> None:
    knowledge = KnowledgeEmbedding()
    knowledge.connect(
        stores.movies, index_ids=np.array([None, MOVIES[9], "no such title", MOVIES[0], MOVIES[10]], object)
    )
    expected = stores.movies.rows([MOVIES[9], MOVIES[10]])
    # An index below 0 or from 5 on stands for nothing.
    np.testing.assert_array_equal(
        knowledge.rows(tf.constant([0, 1, 2, 3, 4, 5, -1, 99])), [-1, expected[0], -1, -1, expected[1], -1, -1, -1]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: k(tf.ones((2, 4)), tf.constant([["a", "b"], ["c", "d"]])), "one dimension more than the ids"),
        (lambda k: k(tf.ones((2, 4)), tf.constant([1, 2])), "store's ids are string, the ids looked up are int32"),
        (lambda k: KnowledgeEmbedding(mode="beside"), "`mode` must be one of residual, append"),
        (
            lambda k: KnowledgeEmbedding()(tf.ones((2, 4)), tf.constant(["a", "b"])),
            "has no store, nor the shape of one",
        ),
    ],
)
def test_wrong_arguments(stores: Stores, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(KnowledgeEmbedding(stores.movies))


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("case", [case for case in cases() if case.name in ("tutorial_ranking", "functional")])
def test_an_attached_model_is_exported_with_its_knowledge(case: Any, stores: Stores, tmp_path: Path) -> None:
    """`kser_tf.check` loads it as TF Serving does, and compares with the model's own answers."""
    model = case.attached(stores, output_initializer="glorot_uniform")
    raw = raw_features(64)
    assert (case.scores(model, raw) != case.scores(case.built(), raw)).any()
    features = {name: raw[name] for name in ("movie_title", "user_name")}
    result = kser_tf.export(
        model,
        tmp_path / "ranker",
        inputs={name: tf.TensorSpec([None], tf.string, name=name) for name in features},
        examples=features,
    )
    assert kser_tf.check(result.path).ok
    after = case.scores(model, raw)
    np.testing.assert_array_equal(after, case.scores(model, raw))


@pytest.mark.skipif(not KERAS_2, reason="MirroredStrategy trains under Keras 2 here")
def test_attached_in_the_scope_of_the_models_strategy(stores: Stores) -> None:
    case = next(case for case in cases() if case.name == "functional_numbers")
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = case.built()
    model = case.attached(stores, model)
    kser_tf.extractor_only(model, also=())
    with strategy.scope():
        case.compile(model, tf.keras.optimizers.SGD(0.1))
    before = [weight.copy() for weight in model.attached_knowledge.get_weights()]
    case.fit(model)
    assert any((one != other).any() for one, other in zip(before, model.attached_knowledge.get_weights(), strict=True))
