"""Paths are those that a model's author would write, in both Kerases."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from kser_tf.errors import LayerPathError
from kser_tf.layer_paths import find_layer, layer_paths

layers = tf.keras.layers


class Tower(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.lookup = layers.StringLookup(vocabulary=["a", "b"])
        self._table = layers.Embedding(3, 4)


class Everything(tf.keras.Model):
    """A model that holds its layers in all the ways that Keras tracks."""

    def __init__(self) -> None:
        super().__init__()
        self.movie_model = tf.keras.Sequential(
            [layers.StringLookup(vocabulary=["a"], name="ids"), layers.Embedding(2, 4, name="table")], name="movies"
        )
        self.towers = [Tower(), Tower()]
        self.tables = {"movie": layers.Embedding(2, 4), "by_size": {8: layers.Embedding(2, 8)}}
        self.pair = (layers.Dense(1), [layers.Dense(2)])
        self._private = layers.Dense(3)
        self.shared = self.towers[1]._table
        self.seen = tf.keras.metrics.Mean()
        inputs = tf.keras.Input((4,), name="given")
        self.head = tf.keras.Model(inputs, layers.Dense(1, name="logit")(inputs))


EVERYTHING = [
    "movie_model",
    "towers.0",
    "towers.1",
    "tables.movie",
    "tables.by_size.8",
    "pair.0",
    "pair.1.0",
    "shared",
    "head",
    "_private",
    "movie_model.ids",
    "movie_model.table",
    "towers.0.lookup",
    "towers.0._table",
    "towers.1.lookup",
    "head.logit",
]


@pytest.fixture
def model() -> Everything:
    return Everything()


def test_every_layer_once_under_the_path_that_its_author_would_write(model: Everything) -> None:
    paths = layer_paths(model)
    assert list(paths) == EVERYTHING
    assert paths["tables.by_size.8"] is model.tables["by_size"][8]
    assert paths["movie_model.table"] is model.movie_model.layers[1]
    assert paths["shared"] is model.towers[1]._table


def test_a_compiled_model_has_the_same_paths(model: Everything) -> None:
    model.compile("sgd", loss=tf.keras.losses.MeanSquaredError(), metrics=["mae"])
    assert list(layer_paths(model)) == EVERYTHING


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("towers.1._table", "shared"),
        ("movie_model.layers.1", "movie_model.table"),
        ("head.logit", "head.logit"),
        ("pair.1.0", "pair.1.0"),
    ],
)
def test_all_ways_to_a_layer_are_understood(model: Everything, path: str, same: str) -> None:
    assert find_layer(model, path) is layer_paths(model)[same]


@pytest.mark.parametrize("built", [False, True])
def test_sequential_and_functional_models_by_layer_names(built: bool) -> None:
    inner = tf.keras.Sequential([layers.Dense(2, name="first"), layers.Dense(1, name="second")], name="core")
    if built:
        inner(tf.zeros((1, 4)))
    assert list(layer_paths(inner)) == ["first", "second"]
    inputs = tf.keras.Input((4,))
    functional = tf.keras.Model(inputs, inner(layers.Dense(4, name="bottom")(inputs)))
    assert list(layer_paths(functional)) == ["bottom", "core", "core.first", "core.second"]


def test_a_subclass_of_a_functional_model_keeps_its_attribute_names() -> None:
    class Scorer(tf.keras.Model):
        def __init__(self) -> None:
            inputs = tf.keras.Input((4,))
            dense = layers.Dense(1, name="dense_of_mine")
            super().__init__(inputs=inputs, outputs=dense(inputs))
            self.scale = dense

    scorer = Scorer()
    assert list(layer_paths(scorer)) == ["scale"]
    assert find_layer(scorer, "dense_of_mine") is scorer.scale


def test_layers_that_refer_to_each_other() -> None:
    class Child(layers.Layer):
        def __init__(self, parent: Any) -> None:
            super().__init__()
            self.parent = parent

    model = Tower()
    model.child = Child(model)
    assert list(layer_paths(model)) == ["lookup", "child", "_table"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("movie_modle", r"Everything has no layer 'movie_modle'\. Near it: 'movie_model'"),
        ("model.tabel", r"Near it: .*'movie_model.table'"),
        ("nothing_like_it", r"Its embedding layers: 'tables.movie', 'tables.by_size.8', 'shared', 'movie_model.table'"),
        ("towers.7", "Near it: 'towers.1', 'towers.0'"),
        ("", "has no layer ''"),
    ],
)
def test_errors_name_what_comes_near_and_the_embeddings(model: Everything, path: str, message: str) -> None:
    with pytest.raises(LayerPathError, match=message):
        find_layer(model, path)


@pytest.mark.tfrs
def test_tasks_and_their_metrics_are_not_part_of_the_model() -> None:
    import tensorflow_recommenders as tfrs

    class Retrieval(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie_model = tf.keras.Sequential([layers.Embedding(5, 4, name="table")])
            candidates = tf.data.Dataset.range(5).batch(2).map(self.movie_model)
            self.task = tfrs.tasks.Retrieval(metrics=tfrs.metrics.FactorizedTopK(candidates=candidates))
            self.rating_task: tf.keras.layers.Layer = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
            )

    assert list(layer_paths(Retrieval())) == ["movie_model", "movie_model.table"]
