"""Attached models are saved, loaded and trained on as if they had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import Case, Stores, make_stores, raw_features
from test_attach_into import each

import kser_tf


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def new(case: Case, stores: Stores, optimizer: Any = None) -> Any:
    model = case.attached(stores)
    kser_tf.all_parameters(model)
    case.compile(model, optimizer, run_eagerly=True)  # many short trainings: tracing would take longer
    return model


def assert_equal(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@each()
def test_weights_are_loaded_into_a_freshly_attached_model(case: Case, stores: Stores, tmp_path: Path) -> None:
    one = new(case, stores)
    at_first = one.get_weights()
    case.fit(one)
    one.save_weights(tmp_path / "half.weights.h5")
    case.fit(one)
    other = new(case, stores)
    for ours, theirs in zip(other.get_weights(), at_first, strict=True):
        np.testing.assert_array_equal(ours, theirs)  # the knowledge is attached alike each time
    other.load_weights(tmp_path / "half.weights.h5")
    case.fit(other)
    assert_equal(other, one)


@each("tutorial_ranking", "dlrm", "functional_numbers", "subclassed")
def test_a_tensorflow_checkpoint_holds_the_extractor_and_its_optimizer(
    case: Case, stores: Stores, tmp_path: Path
) -> None:
    optimizers = [tf.keras.optimizers.Adam(0.01), tf.keras.optimizers.Adam(0.01)]
    one, other = (new(case, stores, optimizer) for optimizer in optimizers)
    case.fit(one)
    path = tf.train.Checkpoint(model=one, optimizer=optimizers[0]).save(str(tmp_path / "half"))
    case.fit(one)
    case.fit(other, seed=5)  # other weights and slots than those to be loaded
    tf.train.Checkpoint(model=other, optimizer=optimizers[1]).restore(path).assert_existing_objects_matched()
    case.fit(other)
    assert_equal(other, one)


# Not "subclassed": Keras 3 leaves layers in lists and dicts out of a tf.train.Checkpoint, attached or not.
@each("tutorial_ranking", "functional_numbers")
def test_an_old_checkpoint_of_the_backbone_loads_after_detaching(case: Case, stores: Stores, tmp_path: Path) -> None:
    model, features = case.built(), raw_features(16)
    before = case.scores(model, features)
    model.save_weights(tmp_path / "backbone.weights.h5")
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "backbone"))
    for load in (
        lambda model: model.load_weights(tmp_path / "backbone.weights.h5"),
        # Partial: the model has an optimizer now.
        lambda model: tf.train.Checkpoint(model=model).read(path).expect_partial(),
    ):
        model = case.attached(stores, model)
        kser_tf.all_parameters(model)
        case.compile(model, run_eagerly=True)
        case.fit(model)
        model = kser_tf.detach(model)
        assert (case.scores(model, features) != before).any()
        load(model)
        np.testing.assert_array_equal(case.scores(model, features), before)
