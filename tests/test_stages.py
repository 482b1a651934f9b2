"""Stages: each trains what it says, and the whole is what the stages are one after the other."""

import numpy as np
import pytest
import tensorflow as tf
from test_learning_rates import Model

import kser_tf


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(16, 1, 2, 4)).astype("float32")
    return {"id": np.arange(16) % 5, "chunks": chunks}, rng.normal(size=(16, 1)).astype("float32")


def make(data):
    tf.keras.utils.set_random_seed(1)
    model = Model()
    model(data[0])
    return model


def test_stages_are_what_they_would_be_by_hand(data):
    by_hand, staged = make(data), make(data)
    adam = tf.keras.optimizers.Adam
    core = by_hand.core.get_weights()
    kser_tf.extractor_only(by_hand)
    by_hand.compile(adam(0.01), loss="mse")
    by_hand.fit(*data, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(core[0], by_hand.core.get_weights()[0])
    with pytest.warns(UserWarning, match="compile"):
        kser_tf.all_parameters(by_hand)
    by_hand.compile(adam(0.001), loss="mse")
    by_hand.fit(*data, epochs=1, shuffle=False, verbose=0)

    stages = [
        kser_tf.Stage(extractor_only=True, epochs=2, optimizer=adam(0.01)),
        kser_tf.Stage(epochs=1, optimizer=lambda model: kser_tf.learning_rates(adam(0.001), model, extractor=1.0)),
    ]
    histories = kser_tf.fit_in_stages(staged, stages, *data, compile_options={"loss": "mse"}, shuffle=False, verbose=0)
    assert [history.epoch for history in histories] == [[0, 1], [2]]
    for ours, theirs in zip(staged.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_daily_refresh_leaves_the_backbone_as_it_is(data):
    model = make(data)
    backbone = [layer.get_weights() for layer in (model.table, model.core, model.output_layer)]
    extractor = model.extractor.get_weights()
    for day in range(3):
        inputs = {**data[0], "chunks": data[0]["chunks"] + day}
        stage = kser_tf.Stage(extractor_only=True, also=(), epochs=1, optimizer=tf.keras.optimizers.Adam(0.01))
        kser_tf.fit_in_stages(model, [stage], inputs, data[1], compile_options={"loss": "mse"}, verbose=0)
    for layer, before in zip((model.table, model.core, model.output_layer), backbone, strict=True):
        for ours, theirs in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert any(not np.array_equal(a, b) for a, b in zip(extractor, model.extractor.get_weights(), strict=True))


def test_wrong_arguments(data):
    with pytest.raises(ValueError, match="`stages` is empty"):
        kser_tf.fit_in_stages(make(data), [], *data)
    stage = kser_tf.Stage(epochs=1, optimizer="adam")
    with pytest.raises(ValueError, match="leave epochs out"):
        kser_tf.fit_in_stages(make(data), [stage], *data, epochs=3)
