"""What every layer must do, whatever it computes: `run_layer_test` puts one through it, under the active Keras."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

KERAS = 2 if tf.keras.layers.Layer.__module__.startswith("tf_keras") else 3

# How far a result in half precision may be from that in float32, for values of about 1.
HALF_TOLERANCE = {"mixed_float16": 0.02, "mixed_bfloat16": 0.1}


def run_layer_test(
    layer_class: Any,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    output_shapes: list[tuple[int, ...]],
    weight_shapes: list[tuple[str, tuple[int, ...]]],
    tmp_path: Path,
    frozen: tuple[str, ...] = (),
) -> None:
    """Puts a layer through everything that is asked of each.

    Serialization, building, an eager, a symbolic and an XLA-compiled call, a batch of one, compiled training steps with
    and without XLA, the dtype policies, files, and an export that the loader of TF Serving reads back.

    Args:
        layer_class: The class.
        arguments: Of its `__init__`.
        inputs: Of its call, by name, the first one first. The first dimension is the batch.
        output_shapes: Without the batch, one an output.
        weight_shapes: The name (its last part) and shape of each weight, in any order.
        tmp_path: A folder of the test's own.
        frozen: Names of those weights that are not trained.
    """
    layer = layer_class(**arguments)
    _check_serialization(layer_class, layer, arguments)
    expected = _check_build_and_eager_call(layer, inputs, output_shapes, weight_shapes, frozen)
    _check_xla(layer, inputs, expected)
    model = _functional(layer, inputs)
    _check_symbolic_call(model, inputs, output_shapes, expected)
    _check_files(model, layer_class, arguments, inputs, expected, tmp_path)
    _check_export(model, inputs, expected, tmp_path / "served")
    for jit_compile in (False, True):
        _check_training_step(layer_class, arguments, inputs, expected, jit_compile=jit_compile)
    for policy in HALF_TOLERANCE:
        _check_policy(layer_class, arguments, layer, inputs, expected, policy)


def call(layer: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Calls a layer as users do, the first argument by its position, and returns the outputs as a list."""
    first, *others = inputs
    return tf.nest.flatten(layer(inputs[first], **{name: inputs[name] for name in others}))


def to_numpy(outputs: list[Any]) -> list[np.ndarray]:
    return [tf.cast(output, tf.float32).numpy() for output in outputs]


def randomise(layer: Any, seed: int = 0) -> None:
    """Sets all weights to random numbers, so that none is at its neutral start; what is divided by stays above 0."""
    generator = np.random.default_rng(seed)
    values = {id(weight): 0.5 * generator.standard_normal(weight.shape) for weight in layer.weights}
    values |= {
        id(weight): 0.5 + np.abs(values[id(weight)]) for weight in layer.weights if _last_name(weight) == "scale"
    }
    layer.set_weights([values[id(weight)] for weight in layer.weights])


def weights_by_name(layer: Any) -> dict[str, Any]:
    """The variables of a layer by the last part of their names, which both Kerases have in common."""
    return {_last_name(weight): weight for weight in layer.weights}


def trainable_variables(layer: Any) -> list[tf.Variable]:
    """The trainable weights of a layer as a `tf.GradientTape` takes them; Keras 3 wraps them."""
    return [weight if KERAS == 2 else weight.value for weight in layer.trainable_weights]


def session_outputs(folder: Path, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, Any]:
    """What a SavedModel answers when it is loaded as TF Serving does it, through the session loader."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        definition = loaded.signature_def[signature]
        feed = {definition.inputs[name].name: value for name, value in inputs.items()}
        return session.run({name: output.name for name, output in definition.outputs.items()}, feed)


def export(folder: Path, function: Callable[..., Any], inputs: Mapping[str, Any], *tracked: Any) -> None:
    """Writes a SavedModel of `function`, which takes `inputs` by name, any batch size, and returns a dictionary."""
    archive = tf.keras.export.ExportArchive()
    for resource in tracked:
        archive.track(resource)
    specs = {name: tf.TensorSpec((None, *value.shape[1:]), _dtype(value), name) for name, value in inputs.items()}
    archive.add_endpoint("serve", function, [specs])
    archive.write_out(str(folder), **({} if KERAS == 2 else {"verbose": False}))


def assert_all_close(actual: list[Any], expected: list[np.ndarray], atol: float = 1e-5) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(tf.cast(one, tf.float32).numpy(), other, atol=atol, rtol=atol)


def _last_name(weight: Any) -> str:
    return weight.name.split("/")[-1].split(":")[0]


def _dtype(value: Any) -> Any:
    return tf.as_dtype(value.dtype)


def _functional(layer: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    symbols = {
        name: tf.keras.Input(value.shape[1:], dtype=_dtype(value).name, name=name) for name, value in inputs.items()
    }
    return tf.keras.Model(symbols, call(layer, symbols))


def _check_serialization(layer_class: Any, layer: Any, arguments: Mapping[str, Any]) -> None:
    config = layer.get_config()
    assert set(arguments) <= set(config)
    assert layer_class.from_config(config).get_config() == config
    serialized = json.loads(json.dumps(tf.keras.layers.serialize(layer)))
    assert serialized["registered_name"] == f"kser_tf>{layer_class.__name__}"
    again = tf.keras.layers.deserialize(serialized)
    assert type(again) is layer_class
    assert again.get_config() == config


def _check_build_and_eager_call(
    layer: Any,
    inputs: Mapping[str, np.ndarray],
    output_shapes: list[tuple[int, ...]],
    weight_shapes: list[tuple[str, tuple[int, ...]]],
    frozen: tuple[str, ...],
) -> list[np.ndarray]:
    assert not layer.built
    call(layer, inputs)
    assert layer.built
    assert sorted((_last_name(weight), tuple(weight.shape)) for weight in layer.weights) == sorted(weight_shapes)
    assert sorted(_last_name(weight) for weight in layer.non_trainable_weights) == sorted(frozen)
    randomise(layer)
    outputs = call(layer, inputs)
    batch = len(next(iter(inputs.values())))
    assert [tuple(output.shape) for output in outputs] == [(batch, *shape) for shape in output_shapes]
    assert {output.dtype for output in outputs} == {tf.float32}
    assert len(layer.weights) == len(weight_shapes)
    again = tf.keras.layers.deserialize(json.loads(json.dumps(tf.keras.layers.serialize(layer))))
    assert again.built
    assert [tuple(weight.shape) for weight in again.weights] == [tuple(weight.shape) for weight in layer.weights]
    expected = to_numpy(outputs)
    assert all(np.isfinite(output).all() and output.any() for output in expected)
    return expected


def _check_xla(layer: Any, inputs: Mapping[str, np.ndarray], expected: list[np.ndarray]) -> None:
    compiled = tf.function(lambda tensors: call(layer, tensors), jit_compile=True)
    assert_all_close(compiled({name: tf.constant(value) for name, value in inputs.items()}), expected)


def _check_symbolic_call(
    model: Any, inputs: Mapping[str, np.ndarray], output_shapes: list[tuple[int, ...]], expected: list[np.ndarray]
) -> None:
    assert [tuple(output.shape) for output in model.outputs] == [(None, *shape) for shape in output_shapes]
    predicted = tf.nest.flatten(model.predict(dict(inputs), batch_size=2, verbose=0))
    assert_all_close(predicted, expected)
    one = {name: value[:1] for name, value in inputs.items()}
    assert_all_close(tf.nest.flatten(model(one)), [output[:1] for output in expected])


def _check_files(
    model: Any,
    layer_class: Any,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    expected: list[np.ndarray],
    tmp_path: Path,
) -> None:
    model.save(tmp_path / "model.keras")
    assert_all_close(tf.nest.flatten(tf.keras.models.load_model(tmp_path / "model.keras")(dict(inputs))), expected)

    model.save_weights(tmp_path / "model.weights.h5")
    fresh = _functional(layer_class(**arguments), inputs)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_all_close(tf.nest.flatten(fresh(dict(inputs))), expected)

    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    fresh = _functional(layer_class(**arguments), inputs)
    tf.train.Checkpoint(model=fresh).read(path).assert_existing_objects_matched()
    assert_all_close(tf.nest.flatten(fresh(dict(inputs))), expected)


def _check_export(model: Any, inputs: Mapping[str, np.ndarray], expected: list[np.ndarray], folder: Path) -> None:
    names = [f"output_{i}" for i in range(len(expected))]

    def serve(tensors: Any) -> dict[str, Any]:
        return dict(zip(names, tf.nest.flatten(model(tensors)), strict=True))

    export(folder, serve, inputs, model)
    for rows in (slice(None), slice(1)):
        served = session_outputs(folder, {name: value[rows] for name, value in inputs.items()})
        assert_all_close([served[name] for name in names], [output[rows] for output in expected])


def _check_training_step(
    layer_class: Any,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    expected: list[np.ndarray],
    *,
    jit_compile: bool,
    policy: str = "float32",
) -> None:
    layer = layer_class(**arguments, dtype=policy)
    model = _functional(layer, inputs)
    randomise(layer)
    before = layer.get_weights()
    model.compile(tf.keras.optimizers.SGD(0.1), loss=["mse"] * len(expected), jit_compile=jit_compile)
    loss = tf.nest.flatten(model.train_on_batch(dict(inputs), [np.ones_like(output) for output in expected]))[0]
    assert np.isfinite(loss)
    trained = {id(weight) for weight in layer.trainable_weights}
    for weight, old, new in zip(layer.weights, before, layer.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert np.array_equal(old, new) != (id(weight) in trained), weight.name


def _check_policy(
    layer_class: Any,
    arguments: Mapping[str, Any],
    float32_layer: Any,
    inputs: Mapping[str, np.ndarray],
    expected: list[np.ndarray],
    policy: str,
) -> None:
    layer = layer_class(**arguments, dtype=policy)
    call(layer, inputs)
    layer.set_weights(float32_layer.get_weights())
    assert {tf.as_dtype(weight.dtype) for weight in layer.weights} == {tf.float32}
    outputs = call(layer, inputs)
    assert {output.dtype.name for output in outputs} == {policy.removeprefix("mixed_")}
    assert_all_close(outputs, expected, atol=HALF_TOLERANCE[policy])
    _check_training_step(layer_class, arguments, inputs, expected, jit_compile=False, policy=policy)
