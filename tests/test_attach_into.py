"""Every model of the zoo: attached into its embeddings, the extractor alone trained, taken off again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import Case, Stores, cases, make_stores, raw_features, tensors

import kser_tf

BATCHES = (1, 7, 1024)


def each(*names: str) -> Any:
    chosen = [case for case in cases() if not names or case.name in names]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def weights(model: Any) -> dict[str, np.ndarray]:
    return {f"{i} {getattr(w, 'path', w.name)}": w.numpy().copy() for i, w in enumerate(model.weights)}


def assert_same_weights(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


def scores(case: Case, model: Any, *, xla: bool = False) -> list[np.ndarray]:
    """Of batches of all sizes: as the model is called and traced, or compiled."""
    if xla:
        compiled = tf.function(lambda inputs: model(inputs), jit_compile=True)
        return [case.scores(model, raw_features(rows), compiled) for rows in BATCHES]
    calls = model, case.traced(model)
    return [case.scores(model, raw_features(rows), call) for rows in BATCHES for call in calls]


@each()
def test_first_predictions_are_the_old_ones_to_the_last_bit(case: Case, stores: Stores) -> None:
    model = case.built()
    before = scores(case, model)
    after = scores(case, case.attached(stores, model))
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@each()
def test_first_predictions_with_xla(case: Case, stores: Stores) -> None:
    if not case.xla:
        pytest.skip(f"{case.name} looks up strings or hashes, which XLA cannot: TensorFlow ends the process")
    model = case.built()
    before = scores(case, model, xla=True)
    after = scores(case, case.attached(stores, model), xla=True)
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@each()
def test_the_extractor_alone_is_trained_and_taken_off_again(case: Case, stores: Stores) -> None:
    backbone = case.built()
    case.compile(backbone)
    kind, before_weights = type(backbone), weights(backbone)
    features, unknown = raw_features(32), raw_features(32, without_knowledge=True)
    before, before_unknown = case.scores(backbone, features), case.scores(backbone, unknown)

    model = case.attached(stores, backbone)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        case.fit(model)  # it was compiled, but for the layers of before
    report = kser_tf.extractor_only(model, also=())
    assert len(report.frozen) >= len(before_weights)
    case.compile(model, run_eagerly=True)  # many short trainings: tracing would take longer; see the last test
    for _ in range(3):
        case.fit(model)
        np.testing.assert_array_equal(case.scores(model, unknown), before_unknown)
    assert (case.scores(model, features) != before).mean() > 0.3, "the knowledge has an effect where there is some"
    assert all(place.calls for place in kser_tf.attachments(model).places)

    ours = kser_tf.detach(model)
    assert ours is backbone
    assert type(ours) is kind
    assert_same_weights(weights(ours), before_weights)
    np.testing.assert_array_equal(case.scores(ours, features), before)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        case.fit(ours)
    assert not kser_tf.attachments(ours).places


@each("tutorial_ranking", "functional")
def test_predict_is_traced_anew_and_training_goes_on_after_detaching(case: Case, stores: Stores) -> None:
    model, inputs = case.built(), case.inputs(tensors(raw_features(32)))
    case.compile(model)
    case.fit(model)
    before = case.score(model.predict(inputs, verbose=0))
    model = case.attached(stores, model)
    np.testing.assert_array_equal(case.score(model.predict(inputs, verbose=0)), before)
    kser_tf.extractor_only(model, also=())
    case.compile(model)
    case.fit(model, epochs=2)
    assert (case.score(model.predict(inputs, verbose=0)) != before).any()
    model = kser_tf.detach(model)
    np.testing.assert_array_equal(case.score(model.predict(inputs, verbose=0)), before)
    kser_tf.all_parameters(model)
    case.compile(model)
    case.fit(model)
    assert (case.score(model.predict(inputs, verbose=0)) != before).any()
