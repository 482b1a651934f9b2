"""AlignmentAttention against multi-head attention that projects each key and value, and its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import randomise, run_layer_test, trainable_variables, weights_by_name

from kser_tf.layers import AlignmentAttention

pytestmark = pytest.mark.usefixtures("seed")

BATCH, QUERIES, WIDTH_R, FIELDS, CHUNKS, WIDTH, HEADS = 4, 2, 5, 2, 3, 8, 3


@pytest.fixture
def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Four entities: a full one, one with gaps, one with a single chunk, one with none."""
    mask = np.ones((BATCH, FIELDS, CHUNKS), bool)
    mask[1, :, 1] = False
    mask[2] = False
    mask[2, 1, 2] = True
    mask[3] = False
    return {
        "query": rng.normal(size=(BATCH, QUERIES, WIDTH_R)).astype("float32"),
        "chunks": rng.normal(size=(BATCH, FIELDS, CHUNKS, WIDTH)).astype("float32"),
        "mask": mask,
    }


def called(layer: AlignmentAttention, inputs: dict[str, Any]) -> Any:
    return layer(inputs["query"], inputs["chunks"], mask=inputs["mask"], weights=inputs.get("weights"))


def softmax(score: np.ndarray) -> np.ndarray:
    raised = np.exp(score - score.max())
    return raised / raised.sum()


def test_layer(inputs: dict[str, np.ndarray], rng: np.random.Generator, tmp_path: Path) -> None:
    run_layer_test(
        AlignmentAttention,
        {
            "num_heads": HEADS,
            "field_bias": True,
            "query_initializer": tf.keras.initializers.RandomNormal(stddev=0.1),
            "output_initializer": tf.keras.initializers.RandomNormal(stddev=0.2),
            "kernel_regularizer": tf.keras.regularizers.L2(0.01),
        },
        {**inputs, "weights": rng.uniform(0, 2, inputs["mask"].shape).astype("float32")},
        output_shapes=[(QUERIES, WIDTH_R)],
        weight_shapes=[
            ("query_kernel", (WIDTH_R, HEADS * WIDTH)),
            ("output_kernel", (HEADS * WIDTH, WIDTH_R)),
            ("field_bias", (HEADS, FIELDS)),
        ],
        tmp_path=tmp_path,
    )


def test_equals_attention_that_projects_each_key_and_value(
    inputs: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    key_width, value_width = 4, 6
    query_projection = rng.normal(size=(HEADS, WIDTH_R, key_width))
    key_projection = rng.normal(size=(HEADS, WIDTH, key_width)) / key_width**0.5
    value_projection = rng.normal(size=(HEADS, WIDTH, value_width))
    output_projection = rng.normal(size=(HEADS, value_width, WIDTH_R))
    bias = rng.normal(size=(HEADS, FIELDS))

    expected = np.zeros((BATCH, QUERIES, WIDTH_R))
    for entity, there in enumerate(inputs["mask"]):
        places = np.argwhere(there)
        for query in range(QUERIES if len(places) else 0):
            for head in range(HEADS):
                vectors = np.stack([inputs["chunks"][entity, field, chunk] for field, chunk in places]).astype(
                    "float64"
                )
                keys, values = vectors @ key_projection[head], vectors @ value_projection[head]
                asked = inputs["query"][entity, query].astype("float64") @ query_projection[head]
                attention = softmax(keys @ asked + bias[head, places[:, 0]])
                expected[entity, query] += attention @ values @ output_projection[head]

    layer = AlignmentAttention(HEADS)
    called(layer, inputs)
    weights = weights_by_name(layer)
    absorbed = np.einsum("hrd,hwd->rhw", query_projection, key_projection)
    weights["query_kernel"].assign(absorbed.reshape(WIDTH_R, HEADS * WIDTH))
    absorbed = np.einsum("hwv,hvr->hwr", value_projection, output_projection)
    weights["output_kernel"].assign(absorbed.reshape(HEADS * WIDTH, WIDTH_R))
    weights["field_bias"].assign(bias)
    np.testing.assert_allclose(called(layer, inputs), expected, atol=5e-5, rtol=5e-5)


def test_equals_keras_multi_head_attention(inputs: dict[str, np.ndarray]) -> None:
    keras_attention = tf.keras.layers.MultiHeadAttention(HEADS, key_dim=4, value_dim=6, use_bias=False)
    flat, mask = inputs["chunks"].reshape(BATCH, -1, WIDTH), inputs["mask"].reshape(BATCH, 1, -1)
    expected = keras_attention(inputs["query"], flat, attention_mask=mask).numpy()
    query, key, value, output = keras_attention.get_weights()  # (r, h, d), (w, h, d), (w, h, v), (h, v, r)

    layer = AlignmentAttention(HEADS, field_bias=False)
    called(layer, inputs)
    assert set(weights_by_name(layer)) == {"query_kernel", "output_kernel"}
    query_kernel = np.einsum("rhd,whd->rhw", query, key) / 4**0.5
    output_kernel = np.einsum("whv,hvr->hwr", value, output)
    layer.set_weights([query_kernel.reshape(WIDTH_R, -1), output_kernel.reshape(-1, WIDTH_R)])
    some = inputs["mask"].any((1, 2))  # where there is none, Keras attends to the masked ones
    np.testing.assert_allclose(called(layer, inputs)[some], expected[some], rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    """One head, width 1: scores 0 and log 3, so attention 1/4 and 3/4; values 10 and 30; out 2 * (2.5 + 22.5)."""
    layer = AlignmentAttention(1)
    query, chunks = tf.constant([[[0.0]]]), tf.constant([[[[10.0]], [[30.0]]]])
    layer(query, chunks)
    weights = weights_by_name(layer)
    weights["field_bias"].assign([[0.0, np.log(3)]])
    weights["output_kernel"].assign([[2.0]])
    assert layer(query, chunks).numpy().item() == pytest.approx(50, rel=1e-6)
    # Weight 0 takes away the second one's value and not its place: its score is what an all-zero chunk has.
    weighted = layer(query, chunks, weights=tf.constant([[[1.0], [0.0]]]))
    assert weighted.numpy().item() == pytest.approx(2 * 2.5, rel=1e-6)


def test_weights_are_as_multiplied_chunks(inputs: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    layer = AlignmentAttention(HEADS)
    called(layer, inputs)
    randomise(layer)
    weights = rng.uniform(0, 2, inputs["mask"].shape).astype("float32")
    given = called(layer, {**inputs, "weights": weights})
    multiplied = called(layer, {**inputs, "chunks": inputs["chunks"] * weights[..., None]})
    np.testing.assert_allclose(given, multiplied, rtol=1e-5, atol=1e-5)
    assert np.abs(given - called(layer, inputs)).max() > 0.1


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_chunks_and_their_weights_do_not_matter_to_a_bit(
    garbage: float, inputs: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    layer = AlignmentAttention(HEADS)
    called(layer, inputs)
    randomise(layer)
    weights = rng.uniform(0, 2, inputs["mask"].shape).astype("float32")
    results = []
    for filling in (0.0, garbage):
        mask, query = inputs["mask"], tf.constant(inputs["query"])
        chunks = tf.constant(np.where(mask[..., None], inputs["chunks"], np.float32(filling)))
        given = tf.constant(np.where(mask, weights, np.float32(filling)))
        with tf.GradientTape() as tape:
            tape.watch([query, chunks, given])
            aligned = layer(query, chunks, mask=mask, weights=given)
            loss = tf.reduce_sum(aligned**2)
        gradients = tape.gradient(loss, [query, chunks, given, *trainable_variables(layer)])
        np.testing.assert_array_equal(aligned[3], np.zeros((QUERIES, WIDTH_R)))  # no chunk at all: exactly 0
        np.testing.assert_array_equal(gradients[0][3], np.zeros((QUERIES, WIDTH_R)))
        for gradient in gradients[1:3]:
            np.testing.assert_array_equal(gradient.numpy()[~mask], 0)
        results.append([aligned, *gradients])
    for clean, with_garbage in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, with_garbage)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_entity_without_chunks_gets_exactly_zero(
    policy: str, jit_compile: bool, inputs: dict[str, np.ndarray]
) -> None:
    layer = AlignmentAttention(HEADS, dtype=policy)
    called(layer, inputs)
    randomise(layer)
    inputs["mask"][:] = False
    query = tf.constant(inputs["query"])

    @tf.function(jit_compile=jit_compile)
    def step() -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(query)
            aligned = called(layer, {**inputs, "query": query})
            loss = tf.reduce_sum(tf.cast(aligned, tf.float32) + 1)
        return aligned, tape.gradient(loss, [query, *trainable_variables(layer)], unconnected_gradients="zero")

    aligned, gradients = step()
    np.testing.assert_array_equal(aligned, np.zeros_like(inputs["query"]))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_the_order_of_chunks_within_a_field_does_not_matter_but_the_field_does(
    inputs: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    layer = AlignmentAttention(HEADS)
    called(layer, inputs)
    randomise(layer)
    order = rng.permutation(CHUNKS)
    permuted = {**inputs, "chunks": inputs["chunks"][:, :, order], "mask": inputs["mask"][:, :, order]}
    np.testing.assert_allclose(called(layer, permuted), called(layer, inputs), rtol=1e-5, atol=1e-5)
    swapped = {**inputs, "chunks": inputs["chunks"][:, ::-1], "mask": inputs["mask"][:, ::-1]}
    assert np.abs(called(layer, swapped)[0] - called(layer, inputs)[0]).max() > 1e-3


def test_queries_do_not_see_each_other(inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS)
    together = called(layer, inputs)
    for query in range(QUERIES):
        alone = called(layer, {**inputs, "query": inputs["query"][:, query : query + 1]})
        np.testing.assert_allclose(alone[:, 0], together[:, query], rtol=1e-5, atol=1e-5)


def test_an_unknown_number_of_queries(inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS)
    signature = [tf.TensorSpec((None, None, WIDTH_R)), tf.TensorSpec((None, FIELDS, CHUNKS, WIDTH))]
    function = tf.function(layer, input_signature=signature)
    for queries in (1, QUERIES):
        query = inputs["query"][:, :queries]
        np.testing.assert_allclose(
            function(query, inputs["chunks"]), layer(query, inputs["chunks"]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_zeros_in_the_output_projection_give_exactly_zero(policy: str, inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS, output_initializer="zeros", dtype=policy)
    np.testing.assert_array_equal(called(layer, inputs), np.zeros_like(inputs["query"]))


def test_keras_masks_that_of_the_chunks_counts_that_of_the_query_does_not(inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS)
    query = tf.keras.layers.Embedding(10, WIDTH_R, mask_zero=True)(tf.constant([[1, 0], [0, 0], [2, 3], [4, 0]]))
    plain = tf.identity(query)
    np.testing.assert_array_equal(layer(query, inputs["chunks"]), layer(plain, inputs["chunks"]))
    with_mask = called(layer, {**inputs, "query": plain})
    np.testing.assert_array_equal(layer(query, inputs["chunks"], mask=inputs["mask"]), with_mask)
    chunks = tf.keras.layers.Masking(0.0)(tf.constant(np.where(inputs["mask"][..., None], inputs["chunks"], 0)))
    np.testing.assert_array_equal(layer(query, chunks), with_mask)


def test_keras_mask_of_the_query_in_a_functional_model(inputs: dict[str, np.ndarray]) -> None:
    ids, chunks = tf.keras.Input((QUERIES,), dtype="int32"), tf.keras.Input((FIELDS, CHUNKS, WIDTH))
    embedding, layer = tf.keras.layers.Embedding(10, WIDTH_R, mask_zero=True), AlignmentAttention(HEADS)
    model = tf.keras.Model([ids, chunks], layer(embedding(ids), chunks))
    values = np.array([[1, 0], [0, 0], [2, 3], [4, 0]], "int32")
    expected = layer(tf.identity(embedding(values)), inputs["chunks"])
    np.testing.assert_allclose(model([values, inputs["chunks"]]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": (BATCH, QUERIES, 10)}, r"`query` must have shape \(batch, any, 5\).* Received: shape=\(4, 2, 10\)"),
        ({"query": (BATCH, WIDTH_R)}, r"`query` must have shape \(batch, any, 5\).* Received: shape=\(4, 5\)"),
        ({"chunks": (BATCH, CHUNKS, FIELDS, WIDTH)}, r"`chunks` must have shape \(batch, 2, 3, 8\)"),
        ({"mask": (BATCH, QUERIES)}, r"`mask` must have shape \(batch, 2, 3\).* Received: shape=\(4, 2\)"),
        ({"weights": (BATCH, FIELDS)}, r"`weights` must have shape \(batch, 2, 3\).* Received: shape=\(4, 2\)"),
    ],
)
def test_tensors_of_other_shapes(changed: dict[str, Any], message: str, inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS)
    called(layer, inputs)
    wrong = {name: np.ones(shape, "float32") for name, shape in changed.items()}
    with pytest.raises(ValueError, match=message):
        called(layer, {**inputs, **wrong})


def test_what_cannot_be_built(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"`num_heads` must be at least 1. Received: num_heads=0"):
        AlignmentAttention(0)
    with pytest.raises(ValueError, match=r"`query` must be \(batch, queries, width\).* Received: shape=\(None, 5\)"):
        AlignmentAttention()(inputs["query"][:, 0], inputs["chunks"])
    with pytest.raises(ValueError, match=r"`chunks` must be \(batch, fields, chunks, width\).* shape=\(None, 3, 8\)"):
        AlignmentAttention()(inputs["query"], inputs["chunks"][:, 0])


def test_all_arguments_by_name(inputs: dict[str, np.ndarray]) -> None:
    layer = AlignmentAttention(HEADS)
    np.testing.assert_array_equal(
        layer(query=inputs["query"], chunks=inputs["chunks"], mask=inputs["mask"]), called(layer, inputs)
    )
