"""The two ways to attach as one: both at once, in either order, taken off, connected, saved, and their options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import tensorflow as tf

import kser_tf
from kser_tf.errors import AttachError
from kser_tf.model_parts import with_layers_below

CASES = {
    case.name: case for case in zoo.cases() if case.name in ("tutorial_ranking", "functional", "functional_numbers")
}
FEATURE = {"tutorial_ranking": "movie_title", "functional": "movie_title", "functional_numbers": "movie_id"}
ORDERS = [("into", "at_output"), ("at_output", "into"), ("both",)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> zoo.Stores:
    return zoo.make_stores(tmp_path_factory.mktemp("stores"))


def at_output(case: zoo.Case, stores: zoo.Stores) -> dict[str, Any]:
    return {FEATURE[case.name]: stores.movie_numbers if case.name == "functional_numbers" else stores.movies}


def attached(case: zoo.Case, stores: zoo.Stores, model: Any, order: tuple[str, ...] = ("both",), **options: Any) -> Any:
    ways = {"into": case.into(model, stores), "at_output": at_output(case, stores)}
    for way in order:
        given = ways if way == "both" else {way: ways[way]}
        model = kser_tf.attach(model, **given, verbose=False, **options)
    return model


def state(model: Any) -> dict[str, np.ndarray]:
    return {f"{i} {getattr(w, 'path', w.name)}": w.numpy().copy() for i, w in enumerate(model.weights)}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


@pytest.mark.parametrize(
    ("case", "order"),
    [
        pytest.param(case, order, id=f"{name}-{'-'.join(order)}")
        for name, case in CASES.items()
        for order in ORDERS
        if name == "functional_numbers" or order == ("both",)
    ],
)
def test_attached_in_any_order_and_taken_off(case: zoo.Case, stores: zoo.Stores, order: tuple[str, ...]) -> None:
    backbone = case.built()
    frozen = [layer for layer in with_layers_below(backbone) if isinstance(layer, tf.keras.layers.Dense)][-1]
    frozen.trainable = False  # by the user, before
    features, unknown = zoo.raw_features(32), zoo.raw_features(32, without_knowledge=True)
    before, before_unknown = case.scores(backbone, features), case.scores(backbone, unknown)
    kind, weights = type(backbone), state(backbone)
    trained = [weight.name for weight in backbone.trainable_weights]

    model = attached(case, stores, backbone, order)
    np.testing.assert_array_equal(case.scores(model, features), before)
    kser_tf.extractor_only(model, also=())
    case.compile(model, tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    extractors = [model.attached_knowledge.get_weights(), model.output_correction.get_weights()]
    case.fit(model, epochs=2)
    for old, layer in zip(extractors, (model.attached_knowledge, model.output_correction), strict=True):
        assert any((one != other).any() for one, other in zip(old, layer.get_weights(), strict=True))
    np.testing.assert_array_equal(case.scores(model, unknown), before_unknown)
    assert (case.scores(model, features) != before).mean() > 0.3

    places = kser_tf.attachments(model).places
    assert [place.mode for place in places] == ["residual"] * (len(places) - 1) + ["at output"]
    assert places[-1].path == FEATURE[case.name]
    assert all(place.calls for place in places)
    assert places[-1].rows == len(zoo.MOVIES) - len(zoo.MOVIES_WITHOUT_KNOWLEDGE)

    ours = kser_tf.detach(model)
    assert ours is backbone
    assert type(ours) is kind
    assert_same(state(ours), weights)
    assert [weight.name for weight in ours.trainable_weights] == trained
    assert not [name for name in vars(ours) if name.startswith(("attached", "output_corr", "_correction", "_kser_tf"))]
    np.testing.assert_array_equal(case.scores(ours, features), before)
    assert not kser_tf.attachments(ours).places
    with pytest.raises(AttachError, match="nothing is attached"):
        kser_tf.detach(ours)
    # And once more, as if it had never been.
    np.testing.assert_array_equal(case.scores(attached(case, stores, ours, order), features), before)


def test_detaching_gives_back_what_was_trained_and_dropout(stores: zoo.Stores) -> None:
    """A strategy froze the backbone, and switched its dropout off with it."""

    class Dropping(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie, self.score = tf.keras.layers.Embedding(40, 8), tf.keras.layers.Dense(1)
            self.dropout, self.frozen_dropout = tf.keras.layers.Dropout(0.5), tf.keras.layers.Dropout(0.5)
            self.frozen_dropout.trainable = False  # which Keras does not look at

        def call(self, ids: Any, training: bool | None = None) -> Any:
            hidden = self.frozen_dropout(self.dropout(self.movie(ids), training=training), training=training)
            return self.score(hidden)

    ids = tf.range(8, 40, dtype=tf.int64)
    model = Dropping()
    model(ids)
    kser_tf.attach(model, into={"movie": stores.movie_numbers}, verbose=False)
    kser_tf.extractor_only(model, also=())
    kept = model(ids, training=True)
    np.testing.assert_array_equal(kept, model(ids, training=True))  # no dropout
    kser_tf.detach(model)
    flags = {layer.name: layer.trainable for layer in with_layers_below(model)}
    assert [name for name, trained in flags.items() if not trained] == [model.frozen_dropout.name]
    for layer in (model.dropout, model.frozen_dropout):
        assert (layer(tf.ones(1000), training=True).numpy() == 0).sum() > 300
        assert "call" not in vars(layer)


@pytest.mark.parametrize("way", ["into", "at_output", "both"])
def test_a_sequential_model(stores: zoo.Stores, way: str) -> None:
    case = next(case for case in zoo.cases() if case.name == "sequential")
    # One id a row, so that it is that of the score.
    model = tf.keras.Sequential(
        [
            tf.keras.Input((1,), dtype="int64"),
            tf.keras.layers.Embedding(40, 8, name="movie"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(1),
        ]
    )
    ids = tf.range(40, dtype=tf.int64)[:, None]
    before = model(ids).numpy()
    ways = {"into": {"movie": stores.movie_numbers}, "at_output": {0: stores.movie_numbers}}
    made = kser_tf.attach(model, **(ways if way == "both" else {way: ways[way]}), verbose=False)
    np.testing.assert_array_equal(made(ids), before)
    kser_tf.extractor_only(made, also=())
    made.compile("sgd", case.loss)
    made.fit(ids, tf.ones((40, 1)), epochs=3, verbose=0)
    changed = (made(ids).numpy() != before)[:, 0]
    assert not changed[: len(zoo.MOVIES_WITHOUT_KNOWLEDGE)].any()
    assert changed[len(zoo.MOVIES_WITHOUT_KNOWLEDGE) :].all()
    assert kser_tf.detach(made) is model
    np.testing.assert_array_equal(model(ids), before)
    assert len(model.trainable_weights) == 3


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_a_keras_file_holds_both_and_goes_on(stores: zoo.Stores, tmp_path: Path, order: tuple[str, ...]) -> None:
    case, features = CASES["functional_numbers"], zoo.raw_features(20)
    straight = attached(case, stores, case.built(), order)
    kser_tf.extractor_only(straight, also=())
    case.compile(straight, tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    case.fit(straight)
    expected = case.scores(straight, features)
    straight.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(case.scores(straight, features), expected)
    case.fit(straight)

    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert str(kser_tf.attachments(loaded)).count("none: connect one") == 2
    kser_tf.connect(loaded, {"movie": stores.movie_numbers, "movie_id": stores.movie_numbers})
    np.testing.assert_array_equal(case.scores(loaded, features), expected)
    assert len(loaded.trainable_weights) == len(straight.trainable_weights)
    case.fit(loaded)  # it is compiled, with the optimizer's state
    assert_same(state_values(loaded), state_values(straight))
    detached = kser_tf.detach(loaded)
    assert type(detached) is type(case.built())
    # Trained was all of it before attaching, which the file tells.
    assert len(detached.trainable_weights) == len(case.built().trainable_weights)


def state_values(model: Any) -> dict[str, np.ndarray]:
    return {str(i): value for i, value in enumerate(model.get_weights())}


LOAD_ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf
import kser_tf
model = tf.keras.models.load_model(sys.argv[1])
table = kser_tf.attachments(model)
assert [place.mode for place in table.places] == ["residual", "at output"]
assert str(table).count("none: connect one") == 2
store = kser_tf.KnowledgeStore.open(sys.argv[2])
kser_tf.connect(model, {"movie": store, "movie_id": store})
features = {name: tf.constant(values) for name, values in np.load(sys.argv[3]).items()}
np.save(sys.argv[4], model(features))
"""


def test_import_kser_tf_is_enough_to_load_a_keras_file(stores: zoo.Stores, tmp_path: Path) -> None:
    case = CASES["functional_numbers"]
    model = attached(case, stores, case.built())
    kser_tf.extractor_only(model, also=())
    case.compile(model, tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    case.fit(model)
    model.save(tmp_path / "model.keras")
    features = case.inputs(zoo.raw_features(20))
    np.savez(tmp_path / "features.npz", **features)
    paths = [tmp_path / "model.keras", stores.movie_numbers.path, tmp_path / "features.npz", tmp_path / "scores.npy"]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(paths[-1]), model(zoo.tensors(features)), rtol=1e-5, atol=1e-6)


def other_store(stores: zoo.Stores, path: Path) -> Any:
    """The same movies, and what is said of them is another."""
    store = stores.movie_numbers
    chunks, mask = store.lookup(store.ids)
    return kser_tf.KnowledgeStore.write(
        path, store.ids, chunks[::-1] + 0.5, mask, fields=["story", "craft"], encoder="test", dtype="float32"
    )


def test_connecting_another_store_adapts_only_when_asked(stores: zoo.Stores, tmp_path: Path) -> None:
    case, features = CASES["functional_numbers"], zoo.raw_features(64)
    model = attached(case, stores, case.built())
    kser_tf.extractor_only(model, also=())
    case.compile(model)
    case.fit(model, epochs=2)
    before, weights = case.scores(model, features), state(model)
    extractors = [model.attached_knowledge.movie.extractor, *model.output_correction.extractors.values()]
    store = other_store(stores, tmp_path / "other")

    assert kser_tf.connect(model, {"movie": store, "movie_id": store}) is model
    assert_same(state(model), weights)
    assert (case.scores(model, features) != before).any()
    assert {place.store for place in kser_tf.attachments(model).places} == {str(store.path)}
    case.fit(model)  # compiled as before
    for extractor in extractors:
        assert np.abs(extractor.esf_net.catalogue_mean - _mean(store)).max() > 0.3

    kser_tf.connect(model, {"movie": store, "movie_id": store}, adapt=True)
    for extractor in extractors:
        np.testing.assert_allclose(extractor.esf_net.catalogue_mean, _mean(store), rtol=1e-5, atol=1e-5)
    kser_tf.connect(model, {"movie": stores.movie_numbers})
    assert len({place.store for place in kser_tf.attachments(model).places}) == 2
    with pytest.raises(AttachError, match="nothing is attached at 'film'; attached is: 'movie', 'movie_id'"):
        kser_tf.connect(model, {"film": store})
    with pytest.raises(AttachError, match="attached is: nothing"):
        kser_tf.connect(case.built(), {"movie": store})


def _mean(store: Any) -> np.ndarray:
    chunks, mask = store.lookup(store.ids)
    return chunks[mask].mean(0)


def test_options_go_to_the_way_that_they_are_for(stores: zoo.Stores) -> None:
    case = CASES["functional_numbers"]
    model = attached(
        case, stores, case.built(), num_heads=2, units=5, output_initializer="ones", width=6, context=[], xla=True
    )
    inner, outer = model.attached_knowledge.movie.extractor, model.output_correction.extractor_0
    for extractor in (inner, outer):
        assert (extractor.num_heads, extractor.units) == (2, 5)
    assert isinstance(inner.output_initializer, type(tf.keras.initializers.get("ones")))
    assert isinstance(outer.output_initializer, type(tf.keras.initializers.get("glorot_uniform")))
    assert (model.output_correction.width, model.output_correction.xla) == (6, True)


@pytest.mark.parametrize(
    ("ways", "options", "message"),
    [
        (("into",), {"num_head": 2}, "attach has no option 'num_head'. Did you mean 'num_heads'?"),
        (("into", "at_output"), {"outputs": 2}, "attach has no option 'outputs'. Did you mean 'output'?"),
        (("into",), {"zzz": 2}, "attach has no option 'zzz'. It has: adapt, backbone_logit"),
        (("into",), {"context": ["age"]}, "the option 'context' is one of the way at the output"),
        (("at_output",), {"output_initializer": "ones"}, "'output_initializer' is one of the way into embeddings"),
        (("at_output",), {"mode": "append"}, "`mode` is for `into`"),
        (("into", "at_output"), {"output_kind": "odds"}, "`output_kind` must be one of"),
    ],
)
def test_options_that_are_refused_leave_the_model_as_it_was(
    stores: zoo.Stores, ways: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    case = CASES["functional_numbers"]
    model = case.built()
    kind, given = type(model), {"into": case.into(model, stores), "at_output": at_output(case, stores)}
    with pytest.raises(AttachError) as caught:
        kser_tf.attach(model, **{way: given[way] for way in ways}, verbose=False, **options)
    assert message in str(caught.value)
    assert type(model) is kind
    assert not kser_tf.attachments(model).places


def test_the_table_knows_both_ways(stores: zoo.Stores, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["functional"]
    model = case.built()
    kser_tf.attach(model, into=case.into(model, stores), at_output=at_output(case, stores))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["path", "layer", "ids", "width", "mode", "store", "covered"]
    assert table[1].startswith("movie_embedding  Embedding")
    assert "24 of 32 ids (75.0%)" in table[1]
    assert table[3].startswith("movie_title")
    assert "the output, a logit" in table[3]
    assert "at output" in table[3]
    assert f"{stores.movies.path} (32 entities)" in table[3]
