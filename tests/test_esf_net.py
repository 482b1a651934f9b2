"""ESFNet against a float64 reference in NumPy, and the promises of its contract."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import randomise, run_layer_test, trainable_variables, weights_by_name

from kser_tf.layers import ESFNet
from kser_tf.layers.esf_net import SIGHTS

pytestmark = pytest.mark.usefixtures("seed")

BATCH, FIELDS, CHUNKS, WIDTH, CONTEXT, UNITS = 4, 2, 3, 8, 5, 6
GATES = ({"gate": "sigmoid"}, {"gate": "softmax"}, {"gate": "top_k", "top_k": 2})
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")


@pytest.fixture
def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Four entities: a full one, one with gaps, one with a single chunk, one with none."""
    mask = np.ones((BATCH, FIELDS, CHUNKS), bool)
    mask[1, :, 1] = False
    mask[2] = False
    mask[2, 1, 2] = True
    mask[3] = False
    return {
        "chunks": rng.normal(size=(BATCH, FIELDS, CHUNKS, WIDTH)).astype("float32"),
        "mask": mask,
        "context": rng.normal(size=(BATCH, CONTEXT)).astype("float32"),
    }


def reference_statistics(chunks: np.ndarray, mask: np.ndarray, average: np.ndarray) -> np.ndarray:
    statistics = np.zeros((*mask.shape, 3))
    for entity, there in enumerate(mask):
        places = [tuple(place) for place in np.argwhere(there)]
        for place in places:
            vector = chunks[entity][place].astype("float64")
            cosines = [_cosine(vector, chunks[entity][other]) for other in places if other != place]
            statistics[entity][place] = (
                max(cosines, default=0),
                np.mean(cosines) if cosines else 0,
                _cosine(vector, average),
            )
    return statistics


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = np.linalg.norm(one.astype("float64")) * np.linalg.norm(other.astype("float64"))
    return float(one @ other / length) if length else 0.0


def reference_weights(layer: ESFNet, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The formula of the class's docstring, chunk by chunk."""
    values = {name: weight.numpy().astype("float64") for name, weight in weights_by_name(layer).items()}
    mask = inputs["mask"]
    statistics = reference_statistics(inputs["chunks"], mask, values["catalogue_mean"])
    statistics = (statistics - values["center"]) / values["scale"]
    seen = [column for sight, column in (("neighbours", 0), ("neighbours", 1), ("catalogue", 2)) if sight in layer.sees]
    weights = np.zeros(mask.shape)
    for entity, there in enumerate(mask):
        places = [tuple(place) for place in np.argwhere(there)]
        scores = {}
        for place in places:
            hidden = values["bias"].copy()
            if "chunk" in layer.sees:
                hidden += inputs["chunks"][entity][place] @ values["chunk_kernel"]
            if seen:
                hidden += statistics[entity][place][seen] @ values["statistics_kernel"]
            if "context" in layer.sees and "context" in inputs:
                hidden += inputs["context"][entity] @ values["context_kernel"]
            field = place[0]
            scores[place] = (np.maximum(hidden, 0) @ values["score_kernel"] + values["field_bias"][field]).item()
        kept = sorted(scores.values(), reverse=True)[: layer.top_k]
        for place, score in scores.items():
            if layer.gate == "softmax":
                total = sum(np.exp(other) for other in scores.values())
                weights[entity][place] = len(scores) * np.exp(score) / total
            elif score in kept:
                weights[entity][place] = 2 / (1 + np.exp(-score))
    return weights


def called(layer: ESFNet, inputs: dict[str, Any]) -> tuple[Any, Any]:
    return layer(inputs["chunks"], **{name: value for name, value in inputs.items() if name != "chunks"})


@pytest.mark.parametrize("gate", GATES[:2], ids=lambda gate: gate["gate"])  # top_k is in the extractor's test
def test_layer(gate: dict[str, Any], inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    run_layer_test(
        ESFNet,
        {"units": UNITS, **gate, "activation": "tanh", "kernel_regularizer": tf.keras.regularizers.L2(0.01)},
        inputs,
        output_shapes=[(FIELDS, CHUNKS, WIDTH), (FIELDS, CHUNKS)],
        weight_shapes=[
            ("chunk_kernel", (WIDTH, UNITS)),
            ("statistics_kernel", (3, UNITS)),
            ("context_kernel", (CONTEXT, UNITS)),
            ("bias", (UNITS,)),
            ("score_kernel", (UNITS, 1)),
            ("field_bias", (FIELDS, 1)),
            ("catalogue_mean", (WIDTH,)),
            ("center", (3,)),
            ("scale", (3,)),
        ],
        frozen=("catalogue_mean", "center", "scale"),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate["gate"])
def test_every_weight_is_exactly_one_at_the_start(gate: dict[str, Any], policy: str, rng: np.random.Generator) -> None:
    # 49 chunks: 49 * (1 / 49) is not 1.
    chunks = rng.normal(size=(3, 7, 7, WIDTH))
    mask = rng.random((3, 7, 7)) < 0.7
    mask[0] = True
    layer = ESFNet(**gate, dtype=policy)
    for compiled in (False, True):
        weighted, weights = tf.function(layer, jit_compile=compiled)(tf.constant(chunks), mask=tf.constant(mask))
        np.testing.assert_array_equal(weights, mask.astype(weights.dtype.as_numpy_dtype))
        expected = np.where(mask[..., None], tf.cast(chunks, layer.compute_dtype), 0)
        np.testing.assert_array_equal(weighted, expected)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate["gate"])
def test_weights_are_those_of_the_formula(gate: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS, **gate)
    called(layer, inputs)
    randomise(layer)
    weighted, weights = called(layer, inputs)
    expected = reference_weights(layer, inputs)
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    np.testing.assert_allclose(weighted, expected[..., None] * inputs["chunks"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        layer.weigh(inputs["chunks"], inputs["mask"], inputs["context"]), weights, "weigh is the call's second output"
    )


@pytest.mark.parametrize("sees", [s for n in (1, 2, 3, 4) for s in itertools.combinations(SIGHTS, n)], ids="+".join)
@pytest.mark.parametrize("with_context", [True, False])
def test_any_choice_of_what_is_seen(sees: tuple[str, ...], with_context: bool, inputs: dict[str, np.ndarray]) -> None:
    if not with_context:
        del inputs["context"]
    layer = ESFNet(UNITS, sees=sees)
    called(layer, inputs)
    randomise(layer)
    _, weights = called(layer, inputs)
    assert weights.shape == inputs["mask"].shape
    np.testing.assert_allclose(weights, reference_weights(layer, inputs), atol=2e-6)
    kernels = {name.removesuffix("_kernel") for name in weights_by_name(layer) if name.endswith("_kernel")}
    assert kernels == {"score"} | (
        ({"chunk"} & set(sees))
        | ({"statistics"} if {"neighbours", "catalogue"} & set(sees) else set())
        | ({"context"} if with_context and "context" in sees else set())
    )


def test_no_mask_means_all_chunks(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS)
    layer(inputs["chunks"])
    randomise(layer)
    _, weights = layer(inputs["chunks"])
    expected = reference_weights(layer, {"chunks": inputs["chunks"], "mask": np.ones_like(inputs["mask"])})
    np.testing.assert_allclose(weights, expected, atol=2e-6)


def test_keras_mask_of_the_chunks_is_used_with_and_without_context(inputs: dict[str, np.ndarray]) -> None:
    chunks = np.where(inputs["mask"][..., None], inputs["chunks"], 0)
    masked = tf.keras.layers.Masking(0.0)(tf.constant(chunks))
    for context in ({}, {"context": inputs["context"]}):
        layer = ESFNet()
        np.testing.assert_array_equal(layer(masked, **context)[1], inputs["mask"])


def test_equal_chunks_have_cosine_one_and_a_single_chunk_has_zero() -> None:
    chunks = np.zeros((2, 1, 3, 2), "float32")
    chunks[0, 0] = [[3, 4], [6, 8], [-4, 3]]  # the second repeats the first, the third is at right angles to both
    chunks[1, 0, 0] = [1, 1]
    mask = np.array([[[True, True, True]], [[True, False, False]]])
    layer = ESFNet(2)
    layer(chunks, mask=mask)
    layer.adapt(np.array([0.0, 5.0]))
    np.testing.assert_allclose(
        layer.statistics(chunks, mask),
        [[[[1, 0.5, 0.8], [1, 0.5, 0.8], [0, 0, 0.6]]], [[[0, 0, np.sqrt(0.5)], [0, 0, 0], [0, 0, 0]]]],
        atol=1e-6,
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_statistics_are_those_of_numpy_at_any_length_of_the_vectors(
    policy: str, scale: float, inputs: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    layer = ESFNet(UNITS, dtype=policy)
    chunks = tf.cast(scale * inputs["chunks"], layer.compute_dtype)
    called(layer, inputs)
    average = scale * rng.normal(size=WIDTH)
    layer.adapt(average)
    statistics = layer.statistics(chunks, inputs["mask"])
    assert statistics.dtype == layer.compute_dtype
    expected = reference_statistics(tf.cast(chunks, tf.float64).numpy(), inputs["mask"], average)
    # Half precision: the cosines are rounded once, at the end.
    np.testing.assert_allclose(
        tf.cast(statistics, tf.float64),
        expected,
        atol={"mixed_float16": 6e-4, "mixed_bfloat16": 5e-3}.get(policy, 1e-6),
    )


def test_statistics_given_are_as_good_as_computed_ones(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS)
    called(layer, inputs)
    randomise(layer)
    statistics = layer.statistics(inputs["chunks"], inputs["mask"]).numpy()
    _, computed = called(layer, inputs)
    _, given = called(layer, {**inputs, "statistics": statistics})
    np.testing.assert_array_equal(given, computed)
    statistics[~inputs["mask"]] = np.nan  # of chunks that are not there, they may be anything
    with tf.GradientTape() as tape:
        _, given = called(layer, {**inputs, "statistics": statistics})
        loss = tf.reduce_sum(given**2)
    np.testing.assert_array_equal(given, computed)
    for gradient in tape.gradient(loss, trainable_variables(layer)):
        assert np.isfinite(gradient).all()


def test_adapt_changes_what_homogeneous_chunks_get(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(2, sees=["catalogue"])
    stock_phrase = inputs["chunks"][0, 1, 2]
    layer(inputs["chunks"])
    weights = weights_by_name(layer)
    weights["statistics_kernel"].assign([[1.0, -1.0]])
    weights["score_kernel"].assign([[-5.0], [0.0]])
    np.testing.assert_array_equal(layer(inputs["chunks"])[1], np.ones((BATCH, FIELDS, CHUNKS)))
    layer.adapt(7 * stock_phrase)
    after = layer(inputs["chunks"])[1].numpy()
    assert after[0, 1, 2] == pytest.approx(2 / (1 + np.exp(5)), rel=1e-5)
    assert after[0, 1, 2] == after.min()


def test_adapt_standardises_the_statistics(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS)
    called(layer, inputs)
    randomise(layer)
    mean, center, scale = inputs["chunks"].mean((0, 1, 2)), np.array([0.2, -0.1, 0.4]), np.array([0.3, 0.2, 2.0])
    layer.adapt(mean, center=center, scale=scale)
    _, weights = called(layer, inputs)
    np.testing.assert_allclose(weights, reference_weights(layer, inputs), atol=2e-6)
    np.testing.assert_allclose(weights_by_name(layer)["center"], center, rtol=1e-6)
    given = layer.statistics(inputs["chunks"], inputs["mask"])  # as they are, standardised in the call
    np.testing.assert_allclose(
        given, reference_statistics(inputs["chunks"], inputs["mask"], mean), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(called(layer, {**inputs, "statistics": given})[1], weights)
    layer.adapt(mean)
    np.testing.assert_array_equal(weights_by_name(layer)["scale"], np.ones(3))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate["gate"])
def test_masked_chunks_may_hold_anything(gate: dict[str, Any], garbage: float, inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS, **gate)
    called(layer, inputs)
    randomise(layer)
    results = []
    for filling in (0.0, garbage):
        chunks = tf.constant(np.where(inputs["mask"][..., None], inputs["chunks"], np.float32(filling)))
        with tf.GradientTape() as tape:
            tape.watch(chunks)
            weighted, weights = called(layer, {**inputs, "chunks": chunks})
            loss = tf.reduce_sum(weighted**2) + tf.reduce_sum(weights**3)
        gradients = tape.gradient(loss, [chunks, *trainable_variables(layer)])
        results.append([weighted, weights, *gradients])
        np.testing.assert_array_equal(weights.numpy()[~inputs["mask"]], 0)
        np.testing.assert_array_equal(weighted.numpy()[~inputs["mask"]], 0)
        np.testing.assert_array_equal(gradients[0].numpy()[~inputs["mask"]], 0)
    for clean, with_garbage in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, with_garbage)


def test_masked_scores_far_above_the_others_do_not_overflow_the_softmax() -> None:
    layer = ESFNet(2, gate="softmax", sees=["chunk"], dtype="mixed_float16")
    chunks, mask = tf.ones((1, 2, 1, 3)), tf.constant([[[True], [False]]])
    layer(chunks, mask=mask)
    weights_by_name(layer)["field_bias"].assign([[0.0], [50.0]])
    with tf.GradientTape() as tape:
        _, weights = layer(chunks, mask=mask)
        loss = tf.reduce_sum(weights)
    np.testing.assert_array_equal(weights, [[[1], [0]]])
    for gradient in tape.gradient(loss, trainable_variables(layer), unconnected_gradients="zero"):
        assert np.isfinite(gradient).all()


def test_zero_vectors_pass_no_gradient_through_the_statistics() -> None:
    layer = ESFNet(UNITS, sees=["neighbours", "catalogue"])
    chunks = tf.concat([tf.zeros((1, 1, 1, WIDTH)), tf.ones((1, 1, 1, WIDTH))], 2)
    layer(chunks)
    randomise(layer)
    with tf.GradientTape() as tape:
        tape.watch(chunks)
        _, weights = layer(chunks)
        loss = tf.reduce_sum(weights)
    np.testing.assert_array_equal(tape.gradient(loss, chunks)[0, 0, 0], np.zeros(WIDTH))


def test_context_passes_no_gradient(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS)
    called(layer, inputs)
    randomise(layer)
    context = tf.constant(inputs["context"])
    with tf.GradientTape() as tape:
        tape.watch(context)
        _, weights = called(layer, {**inputs, "context": context})
        loss = tf.reduce_sum(weights**2)
    assert tape.gradient(loss, context) is None
    _, others = called(layer, {**inputs, "context": -context})
    assert np.abs(weights - others).max() > 0.01  # it does count in the weights


def test_softmax_weights_add_up_to_the_number_of_chunks(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS, gate="softmax")
    called(layer, inputs)
    randomise(layer)
    _, weights = called(layer, inputs)
    np.testing.assert_allclose(tf.reduce_sum(weights, [1, 2]), inputs["mask"].sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 5, 100])
def test_top_k_keeps_the_k_largest_scores(top_k: int, inputs: dict[str, np.ndarray]) -> None:
    layer, sigmoid = ESFNet(UNITS, gate="top_k", top_k=top_k), ESFNet(UNITS)
    for each in (layer, sigmoid):
        called(each, inputs)
        randomise(each)
    _, weights = called(layer, inputs)
    _, ungated = called(sigmoid, inputs)
    for kept, before, there in zip(weights.numpy(), ungated.numpy(), inputs["mask"], strict=True):
        assert (kept > 0).sum() == min(top_k, there.sum())
        assert set(kept[kept > 0]) == set(sorted(before[there], reverse=True)[:top_k])


def test_a_weight_learns_to_vanish(rng: np.random.Generator) -> None:
    """Chunk 0 tells the label; chunk 1 is noise in another part of the space, and costs the model its accuracy."""
    rows = 512
    label = rng.integers(0, 2, rows)
    chunks = np.zeros((rows, 1, 2, WIDTH), "float32")
    chunks[:, 0, 0, 0] = 2 * label - 1
    chunks[:, 0, 1, 0] = rng.normal(size=rows) * 3
    chunks[:, 0, 1, 1] = 1
    inputs = tf.keras.Input((1, 2, WIDTH))
    layer = ESFNet(4, sees=["chunk"])
    weighted, _ = layer(inputs)
    pooled = tf.keras.layers.GlobalAveragePooling1D()(tf.keras.layers.Reshape((2, WIDTH))(weighted))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(1, activation="sigmoid")(pooled))
    model.compile(tf.keras.optimizers.Adam(0.05), "binary_crossentropy", jit_compile=False)
    model.fit(chunks, label, batch_size=128, epochs=60, verbose=0)
    _, weights = layer(chunks)
    assert np.mean(weights[:, 0, 1]) < 0.05
    assert np.mean(weights[:, 0, 0]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, r"`units` must be at least 1. Received: units=0"),
        ({"gate": "relu"}, r"`gate` must be one of sigmoid, softmax, top_k. Received: gate='relu'"),
        ({"gate": "top_k"}, r"`top_k` goes with gate='top_k', and only with it. Received: gate='top_k', top_k=None"),
        ({"top_k": 3}, r"`top_k` goes with gate='top_k', and only with it. Received: gate='sigmoid', top_k=3"),
        ({"gate": "top_k", "top_k": 0}, r"`top_k` must be at least 1. Received: top_k=0"),
        ({"sees": []}, r"`sees` must be a list of one or more of chunk, neighbours, catalogue, context. Received"),
        ({"sees": ["chunk", "titles"]}, r"`sees` must be a list .* Received: sees=\['chunk', 'titles'\]"),
        ({"sees": "chunk"}, r"`sees` must be a list .* Received: sees='chunk'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESFNet(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"chunks": (BATCH, FIELDS, CHUNKS, 9)},
            r"`chunks` must have shape \(batch, 2, 3, 8\), as the layer was built",
        ),
        ({"chunks": (BATCH, FIELDS * CHUNKS, WIDTH)}, r"`chunks` must have shape .* Received: shape=\(4, 6, 8\)"),
        ({"mask": (BATCH, FIELDS * CHUNKS)}, r"`mask` must have shape \(batch, 2, 3\).* Received: shape=\(4, 6\)"),
        ({"context": (BATCH, CONTEXT + 1)}, r"`context` must have shape \(batch, 5\).* Received: shape=\(4, 6\)"),
        ({"context": (BATCH, 1, CONTEXT)}, r"`context` must have shape \(batch, 5\).* Received: shape=\(4, 1, 5\)"),
        ({"context": None}, r"was built with a context and must be called with one. Received: context=None"),
        ({"statistics": (BATCH, FIELDS, CHUNKS, 2)}, r"`statistics` must have shape \(batch, 2, 3, 3\)"),
    ],
)
def test_tensors_of_other_shapes(changed: dict[str, Any], message: str, inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet()
    called(layer, inputs)
    wrong = {name: None if shape is None else np.ones(shape, "float32") for name, shape in changed.items()}
    with pytest.raises(ValueError, match=message):
        called(layer, {**inputs, **wrong})


def test_context_where_there_was_none(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet()
    layer(inputs["chunks"])
    with pytest.raises(ValueError, match="was built without a context and must be called without one"):
        called(layer, inputs)
    blind = ESFNet(sees=["chunk"])
    blind(inputs["chunks"])
    called(blind, inputs)  # what is not seen is ignored


def test_shapes_that_cannot_be_built(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(
        ValueError, match=r"`chunks` must be \(batch, fields, chunks, width\).* Received: shape=\(None, 6"
    ):
        ESFNet()(np.ones((BATCH, 6, WIDTH), "float32"))
    with pytest.raises(
        ValueError, match=r"`context` must be \(batch, n\) with n known. Received: shape=\(None, 1, 5\)"
    ):
        ESFNet()(inputs["chunks"], context=inputs["context"][:, None])


def test_methods_that_need_a_built_layer(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(name="filter")
    for method, argument in (
        (layer.adapt, np.zeros(WIDTH)),
        (layer.statistics, inputs["chunks"]),
        (layer.weigh, inputs["chunks"]),
    ):
        with pytest.raises(ValueError, match=f"filter: `{method.__name__}` needs a built layer"):
            method(argument)
    layer.build((None, FIELDS, CHUNKS, WIDTH))
    layer.adapt([1.0] * WIDTH)
    for arguments, message in (
        ({"mean": [0.0] * 9}, r"`mean` must have shape \(8,\). Received: shape=\(9,\)"),
        ({"mean": [0.0] * 8, "center": [0.0]}, r"`center` must have shape \(3,\). Received: shape=\(1,\)"),
        ({"mean": [0.0] * 8, "scale": [1.0, 0.0, 1.0]}, r"`scale` must be above 0. Received: \[1.0, 0.0, 1.0\]"),
        ({"mean": [0.0] * 8, "scale": [1.0, np.nan, 1.0]}, r"`scale` must be above 0. Received: \[1.0, nan, 1.0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.adapt(**arguments)
        np.testing.assert_array_equal(weights_by_name(layer)["catalogue_mean"], np.ones(WIDTH))  # nothing is set
    assert len(layer.weights) == 8
    layer(inputs["chunks"])
    assert len(layer.weights) == 8  # not built twice


def test_nothing_is_computed_in_float64(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet()
    called(layer, inputs)
    graph = (
        tf.function(lambda tensors: called(layer, tensors))
        .get_concrete_function({name: tf.constant(value) for name, value in inputs.items()})
        .graph
    )
    assert not [op.name for op in graph.get_operations() for output in op.outputs if output.dtype == tf.float64]


def test_a_layer_first_called_while_a_function_is_traced_outlives_it(inputs: dict[str, np.ndarray]) -> None:
    layer = ESFNet(UNITS)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}

    @tf.function
    def in_a_loop() -> Any:
        total = tf.zeros(inputs["mask"].shape)
        for _ in tf.range(2):
            total += called(layer, tensors)[1]
        return total

    np.testing.assert_array_equal(in_a_loop(), 2 * inputs["mask"])
    np.testing.assert_array_equal(called(layer, inputs)[1], inputs["mask"])
