"""What the package relies on in Keras 2 and Keras 3, watched here, and the layers in users' models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import KERAS, export, randomise, session_outputs

from kser_tf.layers import AlignmentAttention, ESFNet, KnowledgeExtractor

pytestmark = pytest.mark.usefixtures("seed")

ITEMS, FIELDS, CHUNKS, WIDTH, WIDTH_R = 12, 2, 3, 8, 4
WEIGHTS = 1 + (9 + 3) + 9 + 3 + 2  # of `Ranker`: embedding, extractor, ESFNet, alignment, logit


@tf.keras.utils.register_keras_serializable("tests")
class Ranker(tf.keras.Model):
    """A user's model: subclassed, the layers in its own `call`, one of them in a list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = tf.keras.layers.Embedding(ITEMS, WIDTH_R)
        self.extractor = KnowledgeExtractor(2, output_initializer="glorot_uniform")
        self.more = [ESFNet(4), AlignmentAttention(2)]
        self.logit = tf.keras.layers.Dense(1)

    def call(self, inputs: dict[str, Any]) -> Any:
        query = self.embedding(inputs["ids"])[:, None]
        query += self.extractor(query, inputs["chunks"], mask=inputs["mask"])
        weighted, _ = self.more[0](inputs["chunks"], mask=inputs["mask"], context=query[:, 0])
        query += self.more[1](query, weighted, mask=inputs["mask"])
        return self.logit(query[:, 0])


def request() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {
        "ids": np.arange(ITEMS, dtype="int32"),
        "chunks": generator.normal(size=(ITEMS, FIELDS, CHUNKS, WIDTH)).astype("float32"),
        "mask": generator.random((ITEMS, FIELDS, CHUNKS)) < 0.7,
    }


def random_ranker() -> Ranker:
    model = Ranker()
    model(request())
    extractor = model.extractor
    layers = [model.embedding, extractor.esf_net, extractor.alignment, *model.more, model.logit]
    for number, layer in enumerate(layers):  # one by one: the Kerases order a whole model's weights differently
        randomise(layer, number)
    return model


def test_the_active_keras_is_the_one_that_the_variable_names() -> None:
    assert (os.environ["TF_USE_LEGACY_KERAS"].lower() in ("1", "true")) == (KERAS == 2)


def test_layers_of_a_subclassed_model_are_tracked_and_trained() -> None:
    model = random_ranker()
    assert len(model.weights) == WEIGHTS
    assert len(model.trainable_weights) == WEIGHTS - 2 * 3  # what ESFNet knows of the catalogue is not trained
    before = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(request(), np.ones((ITEMS, 1)), batch_size=5, verbose=0)
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.array_equal(old, new) != weight.trainable, weight.name


def test_a_subclassed_model_that_is_built_while_fit_traces_it() -> None:
    model = Ranker()
    model.compile("sgd", "mse")
    model.fit(request(), np.ones((ITEMS, 1)), batch_size=ITEMS, verbose=0)
    assert len(model.weights) == WEIGHTS
    names = {getattr(weight, "path", weight.name) for weight in model.extractor.weights}
    assert len(names) == 9 + 3
    assert all(model.extractor.name in name for name in names)
    assert np.isfinite(model.predict(request(), verbose=0)).all()


def test_files_of_a_subclassed_model(tmp_path: Path) -> None:
    model = random_ranker()
    expected = model.predict(request(), verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(request(), verbose=0), expected)
    fresh = Ranker()
    fresh(request())
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh.predict(request(), verbose=0), expected)


def test_errors_come_through_a_functional_model_too() -> None:
    chunks, mask = tf.keras.Input((FIELDS, CHUNKS, WIDTH)), tf.keras.Input((FIELDS * CHUNKS,), dtype="bool")
    with pytest.raises(ValueError, match=r"`mask` must have shape \(batch, 2, 3\)"):
        ESFNet()(chunks, mask=mask)


WRITE_WITH_KERAS_2 = """
import os, sys
os.environ.pop("TF_USE_LEGACY_KERAS", None)
import tensorflow as tf
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # after the import, before the first `tf.keras.<anything>`
sys.path.insert(0, sys.argv[1])
from test_two_kerases import KERAS, np, random_ranker, request
assert KERAS == 2
model = random_ranker()
model.save_weights(sys.argv[2])
np.save(sys.argv[3], model.predict(request(), verbose=0))
"""


@pytest.mark.skipif(KERAS == 2, reason="the file is written by another process under Keras 2, and read under Keras 3")
def test_weights_move_from_keras_2_to_keras_3_exactly(tmp_path: Path) -> None:
    """And the variable is read at the first access of `tf.keras`, not when TensorFlow is imported."""
    weights, expected = tmp_path / "model.weights.h5", tmp_path / "expected.npy"
    command = [sys.executable, "-c", WRITE_WITH_KERAS_2, str(Path(__file__).parent), str(weights), str(expected)]
    subprocess.run(command, check=True, capture_output=True)
    model = Ranker()
    model(request())
    model.load_weights(weights)
    for one, other in zip(random_ranker().get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(model.predict(request(), verbose=0), np.load(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(KERAS == 2, reason="what happens under Keras 3")
def test_tfrs_refuses_keras_3_and_names_the_variable() -> None:
    with pytest.raises(ImportError, match="TF_USE_LEGACY_KERAS=1"):
        import tensorflow_recommenders  # noqa: F401


@pytest.mark.tfrs
def test_the_layers_in_a_tfrs_model() -> None:
    import tensorflow_recommenders as tfrs

    class TfrsRanker(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.ranker = Ranker()
            self.task = tfrs.tasks.Ranking(tf.keras.losses.BinaryCrossentropy(from_logits=True))

        def call(self, features: dict[str, Any]) -> Any:
            return self.ranker(features)

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            features, labels = inputs
            return self.task(labels=labels, predictions=self(features))

    model = TfrsRanker()
    model.compile("sgd")
    data = tf.data.Dataset.from_tensor_slices((request(), np.ones((ITEMS, 1)))).batch(5)
    first = model.fit(data, verbose=0).history["loss"][0]
    assert model.fit(data, epochs=5, verbose=0).history["loss"][-1] < first
    assert len(model.weights) == WEIGHTS


def test_a_keras_2_layer_in_a_keras_3_model_is_lost_in_silence() -> None:
    """Why the layers are written on `tf.keras`, the one that is active, and never on `tf_keras` or `keras`."""
    import keras
    import tf_keras

    class Mixed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.lost = tf_keras.layers.Dense(3)
            self.tracked = keras.layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.tracked(self.lost(inputs))

    model = Mixed()
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert len(model.weights) == 2
    assert issubclass(KnowledgeExtractor, tf_keras.layers.Layer if KERAS == 2 else keras.layers.Layer)


def test_trainable_counts_when_the_model_is_compiled_again() -> None:
    def changed_by_a_step(model: Any) -> bool:
        before = model.extractor.get_weights()
        model.fit(request(), np.ones((ITEMS, 1)), batch_size=ITEMS, verbose=0)
        return any(not np.array_equal(*pair) for pair in zip(before, model.extractor.get_weights(), strict=True))

    model = random_ranker()
    model.compile("sgd", "mse")
    assert changed_by_a_step(model)
    model.extractor.trainable = False
    assert changed_by_a_step(model)  # not before it is compiled again
    model.compile("sgd", "mse")
    assert not changed_by_a_step(model)
    optimizer = model.optimizer
    model.extractor.trainable = True
    model.compile(optimizer, "mse")
    with pytest.raises((KeyError, ValueError)):  # an optimizer does not take variables that it did not begin with
        changed_by_a_step(model)


def test_an_export_archive_is_what_the_session_loader_reads(tmp_path: Path) -> None:
    model = random_ranker()
    expected = model.predict(request(), verbose=0)

    def serve(tensors: Any) -> dict[str, Any]:
        return {"logit": model(tensors)}

    export(tmp_path / "archive", serve, request(), model)
    np.testing.assert_allclose(
        session_outputs(tmp_path / "archive", request())["logit"], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif(KERAS == 2, reason="under Keras 2 it is right")
def test_saving_a_keras_3_model_without_an_archive_makes_what_tf_serving_refuses(tmp_path: Path) -> None:
    model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    module = tf.Module()
    module.model = model
    signature = tf.TensorSpec((None, 2), name="inputs")
    module.serve = tf.function(lambda inputs: {"logit": model(inputs)}, input_signature=[signature])
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures=module.serve)
    loaded = tf.saved_model.load(str(tmp_path / "plain"))
    assert loaded.serve(tf.ones((1, 2)))["logit"].shape == (1, 1)
    with pytest.raises(tf.errors.FailedPreconditionError, match="Could not find variable"):
        session_outputs(tmp_path / "plain", {"inputs": np.ones((1, 2))})
