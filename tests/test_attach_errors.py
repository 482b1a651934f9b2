"""What a user of `attach` is told who has mistaken something: what came, what was expected, and the mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import MOVIE_VOCABULARY, MOVIES, Stores, make_stores

import kser_tf

layers = tf.keras.layers
TITLES = tf.constant(MOVIES)
LABELS = np.zeros((len(MOVIES), 1), np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def model() -> Any:
    movie_id = tf.keras.Input((), dtype=tf.string, name="movie_id")
    table = [layers.StringLookup(vocabulary=MOVIE_VOCABULARY), layers.Embedding(33, 4)]
    return tf.keras.Model(movie_id, layers.Dense(1, name="score")(tf.keras.Sequential(table, name="table")(movie_id)))


def attached(stores: Stores, **options: Any) -> Any:
    return kser_tf.attach(model(), into={"table": stores.movies}, verbose=False, **options)


def of_two_outputs(stores: Stores) -> Any:
    class Two(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie = tf.keras.Sequential(
                [layers.StringLookup(vocabulary=MOVIE_VOCABULARY), layers.Embedding(33, 4)]
            )
            self.click, self.like = layers.Dense(1), layers.Dense(1)

        def call(self, ids: Any) -> Any:
            embedded = self.movie(ids)
            return self.click(embedded) + self.like(embedded)

    two = kser_tf.attach(Two(), into={"movie": stores.movies}, verbose=False)
    two(TITLES)
    return two


MISTAKES: dict[str, tuple[Callable[[Stores], Any], str]] = {
    "a wrong name": (
        lambda s: kser_tf.attach(model(), into={"tabel": s.movies}),
        r"has no layer 'tabel'. Near it: 'table'. Its embedding layers: 'table.embedding",
    ),
    "the input's name": (
        lambda s: kser_tf.attach(model(), into={"movie_id": s.movies}),
        r"'movie_id' is an input of .*, not an embedding layer. Name the embedding.*at_output=\{'movie_id': store\}.*: 'table.embedding",
    ),
    "ids of another type": (
        lambda s: kser_tf.attach(model(), into={"table": s.movie_numbers}),
        r"'table' is called with string ids .*int64 ids. Write the store with string ids",
    ),
    "a path for a store": (
        lambda s: kser_tf.attach(model(), at_output={"movie_id": "stores/movies"}),
        r"at_output\['movie_id'\] must be a kser_tf.KnowledgeStore, or a kser_tf.Attachment with one. Received: str. \(Open a",
    ),
    "a misspelt option": (
        lambda s: attached(s, num_head=2),
        r"attach has no option 'num_head'. Did you mean 'num_heads'\?",
    ),
    "a mode at the output": (
        lambda s: kser_tf.attach(model(), at_output={"movie_id": s.movies}, mode="append"),
        r"`mode` is for `into`.*Received: mode='append'",
    ),
    "other options the second time": (
        lambda s: kser_tf.attach(attached(s), into={"table": s.movies}, num_heads=2, id_dropout=0.3),
        r"with id_dropout=0.0, not 0.3, num_heads=4, not 2: it takes a new store, not other options.*kser_tf.detach",
    ),
    "an output that cannot be told": (
        lambda s: kser_tf.extractor_only(of_two_outputs(s)),
        r"output layer cannot be told; several may be it: 'click', 'like'. Name it, such as extractor_only\(model, output=",
    ),
    "no extractor": (
        lambda s: kser_tf.extractor_only(model()),
        r"no extractor to train. Attach one with kser_tf.attach",
    ),
    "a file that is not there": (
        lambda s: kser_tf.warm_start(model(), "nowhere.weights.h5"),
        r"nowhere.weights.h5 is not there",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(stores: Stores, mistake: str) -> None:
    run, message = MISTAKES[mistake]
    with pytest.raises((ValueError, LookupError, RuntimeError), match=message):
        run(stores)


def test_a_model_without_weights() -> None:
    class Unbuilt(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie = tf.keras.Sequential(
                [layers.StringLookup(vocabulary=MOVIE_VOCABULARY), layers.Embedding(33, 4)]
            )

        def call(self, ids: Any) -> Any:
            return self.movie(ids)

    with pytest.raises(ValueError, match="has no weights yet: call it on a batch once, then choose the strategy"):
        kser_tf.extractor_only(Unbuilt())


def test_a_store_of_another_width(stores: Stores, tmp_path: Path) -> None:
    shape = (len(MOVIES), 2, 2)
    wide = kser_tf.KnowledgeStore.write(
        tmp_path / "wide",
        list(MOVIES),
        np.ones((*shape, 11), np.float32),
        np.ones(shape, bool),
        fields=["a", "b"],
        encoder="x",
    )
    with pytest.raises(
        ValueError, match=r"\(2, 2, 6\), and the store .*wide has \(2, 2, 11\). Take a store that was encoded"
    ):
        kser_tf.attach(attached(stores), into={"table": wide}, verbose=False)


def test_fit_before_compile(stores: Stores) -> None:
    fresh = model()
    fresh.compile("sgd", loss="mse")
    kser_tf.attach(fresh, into={"table": stores.movies}, verbose=False)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        fresh.fit(TITLES, LABELS, verbose=0)
    fresh.compile("sgd", loss="mse")
    with pytest.warns(UserWarning, match=r"call `compile\(\)` again"):
        kser_tf.extractor_only(fresh, also=())
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        fresh.fit(TITLES, LABELS, verbose=0)


def test_the_same_options_the_second_time(stores: Stores) -> None:
    """As in a script that loads a model and attaches it with the options that it was made with."""
    options: dict[str, Any] = {"num_heads": 2, "kernel_regularizer": tf.keras.regularizers.L2(1e-3), "id_dropout": 0.3}
    again = kser_tf.attach(attached(stores, **options), into={"table": stores.movies}, verbose=False, **options)
    assert len(kser_tf.attachments(again).places) == 1
