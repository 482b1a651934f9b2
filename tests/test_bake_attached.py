"""Attached models are baked at export: what their knowledge adds is a row of a table, and the answers stay the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import served_world as served
import tensorflow as tf

import kser_tf
from kser_tf.layers.knowledge_embedding import APPEND
from kser_tf.serving import contract

CASES = {
    case.name: case for case in zoo.cases() if case.name in ("tutorial_ranking", "functional", "functional_numbers")
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# How many vectors of each place are baked: one for each id (or index) that the store holds, and one for all others.
MOVIES = len(zoo.MOVIES) - len(zoo.MOVIES_WITHOUT_KNOWLEDGE)
USERS = len(zoo.USERS) - len(zoo.USERS_WITHOUT_KNOWLEDGE)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> zoo.Stores:
    return zoo.make_stores(tmp_path_factory.mktemp("stores"))


def randomise(layer: Any, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.uniform(0.1, 0.6, weight.shape) for weight in layer.get_weights()])


def rows_of(case: zoo.Case) -> dict[str, np.ndarray]:
    return case.inputs(zoo.raw_features(64))


def specs(rows: dict[str, np.ndarray]) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec((None, *values.shape[1:]), tf.string if values.dtype == object else tf.int64)
        for name, values in rows.items()
    }


def predicted(model: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.ravel(model.predict(zoo.tensors(rows), verbose=0, batch_size=64))


def table_rows(path: Path) -> dict[str, int]:
    """For each baked table its rows, from the file that ships."""
    shapes = dict(tf.train.list_variables(str(path / "variables" / "variables")))
    assert not any(len(shape) > 2 for shape in shapes.values()), "no chunks ship"
    description = json.loads((path / contract.DESCRIPTION_FILE).read_text())
    assert description["baking"]["how"] == "baked"
    return {name: description["baking"]["bytes"][f"table of {name}"] for name in description["baking"]["tables"]}


@pytest.mark.usefixtures("check_in_process")
@each
def test_into_embeddings(case: zoo.Case, stores: zoo.Stores, tmp_path: Path) -> None:
    backbone = predicted(case.built(), rows := rows_of(case))
    model = case.attached(stores)
    randomise(model.attached_knowledge)
    own = predicted(model, rows)
    assert np.abs(own - backbone).max() > 0.1
    result = kser_tf.export(model, tmp_path / "baked", inputs=specs(rows), examples=rows)
    if case.name != "functional_numbers":  # which fails with ids that its embedding has no row for, attached or not
        found = kser_tf.check(result.path)
        assert found.ok, found.text()
    np.testing.assert_allclose(served.Served(result.path)(**rows)["logit"], own, atol=1e-5, rtol=1e-5)
    sizes = table_rows(result.path)
    a_row = 4 * zoo.WIDTH_R
    # Called with indices, "functional" has no row for what its vocabulary lacks; called with ids, the store's all have one.
    lost = len(set(zoo.MOVIES_WITHOUT_EMBEDDING)), len(zoo.USERS) - len(zoo.USER_VOCABULARY)
    movies, users = (MOVIES - lost[0], USERS - lost[1]) if case.name == "functional" else (MOVIES, USERS)
    by_entity = {"movie": (movies + 1) * a_row, "user": (users + 1) * a_row}
    assert sizes == {name: by_entity["movie" if "movie" in name else "user"] for name in sizes}
    assert len(sizes) == (1 if case.name == "functional_numbers" else 2)

    np.testing.assert_array_equal(predicted(model, rows), own)  # the model computes again
    unbaked = kser_tf.export(model, tmp_path / "unbaked", inputs=specs(rows), examples=rows, bake=None, signatures=())
    assert unbaked.baking["how"] == "precomputed"
    np.testing.assert_allclose(served.Served(unbaked.path)(**rows)["logit"], own, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("check_in_process")
@each
def test_at_the_output_and_both(case: zoo.Case, stores: zoo.Stores, tmp_path: Path) -> None:
    rows, feature = rows_of(case), "movie_id" if case.name == "functional_numbers" else "movie_title"
    store = stores.movie_numbers if case.name == "functional_numbers" else stores.movies
    model = case.built()
    backbone = predicted(model, rows)
    into = {} if case.name == "functional" else {"into": case.into(model, stores)}
    kser_tf.attach(model, at_output={feature: store}, **into, verbose=False)
    randomise(model.output_correction)
    if into:
        randomise(model.attached_knowledge, 1)
    own = predicted(model, rows)
    assert np.abs(own - backbone).max() > 0.1
    kinds = None if case.name == "functional" else ()
    result = kser_tf.export(model, tmp_path / "baked", inputs=specs(rows), examples=rows, signatures=kinds)
    if case.name == "functional":
        found = kser_tf.check(result.path)
        assert found.ok, found.text()
    np.testing.assert_allclose(served.Served(result.path)(**rows)["logit"], own, atol=1e-5, rtol=1e-5)
    # Whether there is knowledge, and a vector of 16.
    assert table_rows(result.path)[f"correction_{feature}"] == (MOVIES + 1) * 4 * 17
    np.testing.assert_array_equal(predicted(model, rows), own)


def test_append(stores: zoo.Stores, tmp_path: Path) -> None:
    class Ranker(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie, self.score = tf.keras.layers.Embedding(40, 8), tf.keras.layers.Dense(1)

        def call(self, features: Any) -> Any:
            return self.score(self.movie(features["movie_id"]))

    model = kser_tf.attach(Ranker(), into={"movie": stores.movie_numbers}, mode=APPEND, verbose=False)
    rows = {"movie_id": np.arange(40)}
    model(zoo.tensors(rows))
    randomise(model.attached_knowledge)
    own = predicted(model, rows)
    result = kser_tf.export(model, tmp_path, inputs=specs(rows), examples=rows, signatures=["embeddings"])
    serve = served.Served(result.path)
    np.testing.assert_allclose(serve(**rows)["logit"], own, atol=1e-5, rtol=1e-5)
    seen = serve("embeddings", movie_id=rows["movie_id"])
    np.testing.assert_array_equal(seen["embedding"][:, :8], model.movie.embeddings.numpy())
    np.testing.assert_array_equal(seen["embedding"][:, 8:], seen["aligned"])
    assert (seen["aligned"].any(1) == (rows["movie_id"] >= len(zoo.MOVIES_WITHOUT_KNOWLEDGE))).all()


def test_the_vectors_can_be_asked_for(stores: zoo.Stores, tmp_path: Path) -> None:
    case = CASES["functional_numbers"]
    model = case.attached(stores)
    randomise(model.attached_knowledge)
    rows = rows_of(case)
    ids = np.arange(45)  # from 40 on, the embedding has no row either: only the knowledge of known ones is asked for
    result = kser_tf.export(model, tmp_path, inputs=specs(rows), examples=rows, signatures=["embeddings"])
    seen = served.Served(result.path)("embeddings", movie_id=ids[:40])
    table = model.get_layer("movie")
    np.testing.assert_allclose(seen["embedding"], table(ids[:40]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen["embedding"] - seen["aligned"], table.embeddings.numpy(), rtol=1e-5, atol=1e-6)
