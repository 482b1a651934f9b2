"""KnowledgeExtractor: the two layers, one after the other, and nothing at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import randomise, run_layer_test, trainable_variables, weights_by_name

from kser_tf.layers import AlignmentAttention, ESFNet, KnowledgeExtractor

pytestmark = pytest.mark.usefixtures("seed")

BATCH, QUERIES, WIDTH_R, FIELDS, CHUNKS, WIDTH, HEADS, UNITS = 4, 2, 5, 2, 3, 8, 3, 6
GATES = ({"gate": "sigmoid"}, {"gate": "softmax"}, {"gate": "top_k", "top_k": 2})


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


def called(layer: KnowledgeExtractor, inputs: dict[str, Any], **others: Any) -> Any:
    return layer(inputs["query"], inputs["chunks"], mask=inputs["mask"], **others)


def random_extractor(inputs: dict[str, np.ndarray], **arguments: Any) -> KnowledgeExtractor:
    layer = KnowledgeExtractor(HEADS, UNITS, **arguments)
    called(layer, inputs)
    randomise(layer)
    return layer


def test_layer(inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    run_layer_test(
        KnowledgeExtractor,
        {
            "num_heads": HEADS,
            "units": UNITS,
            "gate": "top_k",
            "top_k": 4,
            "sees": ["chunk", "neighbours", "context"],
            "output_initializer": "zeros",
            "kernel_regularizer": tf.keras.regularizers.L2(0.01),
        },
        inputs,
        output_shapes=[(QUERIES, WIDTH_R)],
        weight_shapes=[
            ("chunk_kernel", (WIDTH, UNITS)),
            ("statistics_kernel", (2, UNITS)),
            ("context_kernel", (WIDTH_R, UNITS)),
            ("bias", (UNITS,)),
            ("score_kernel", (UNITS, 1)),
            ("field_bias", (FIELDS, 1)),
            ("field_bias", (HEADS, FIELDS)),
            ("catalogue_mean", (WIDTH,)),
            ("center", (3,)),
            ("scale", (3,)),
            ("query_kernel", (WIDTH_R, HEADS * WIDTH)),
            ("output_kernel", (HEADS * WIDTH, WIDTH_R)),
        ],
        frozen=("catalogue_mean", "center", "scale"),
        tmp_path=tmp_path,
    )


def test_layer_with_context_and_statistics(
    inputs: dict[str, np.ndarray], rng: np.random.Generator, tmp_path: Path
) -> None:
    run_layer_test(
        KnowledgeExtractor,
        {"num_heads": 1, "units": UNITS},
        {
            **inputs,
            "context": rng.normal(size=(BATCH, 7)).astype("float32"),
            "statistics": rng.uniform(-1, 1, (BATCH, FIELDS, CHUNKS, 3)).astype("float32"),
        },
        output_shapes=[(QUERIES, WIDTH_R)],
        weight_shapes=[
            ("chunk_kernel", (WIDTH, UNITS)),
            ("statistics_kernel", (3, UNITS)),
            ("context_kernel", (7, UNITS)),
            ("bias", (UNITS,)),
            ("score_kernel", (UNITS, 1)),
            ("field_bias", (FIELDS, 1)),
            ("field_bias", (1, FIELDS)),
            ("catalogue_mean", (WIDTH,)),
            ("center", (3,)),
            ("scale", (3,)),
            ("query_kernel", (WIDTH_R, WIDTH)),
            ("output_kernel", (WIDTH, WIDTH_R)),
        ],
        frozen=("catalogue_mean", "center", "scale"),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate["gate"])
def test_is_the_two_layers_one_after_the_other(
    gate: dict[str, Any], inputs: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    context = rng.normal(size=(BATCH, 7)).astype("float32")
    extractor = KnowledgeExtractor(HEADS, UNITS, **gate, output_initializer="glorot_uniform")
    called(extractor, inputs, context=context)
    randomise(extractor)
    esf_net, alignment = ESFNet(UNITS, **gate), AlignmentAttention(HEADS)
    weighted, weights = esf_net(inputs["chunks"], mask=inputs["mask"], context=context)
    alignment(inputs["query"], weighted, mask=inputs["mask"])
    esf_net.set_weights(extractor.esf_net.get_weights())
    alignment.set_weights(extractor.alignment.get_weights())

    weighted, weights = esf_net(inputs["chunks"], mask=inputs["mask"], context=context)
    expected = alignment(inputs["query"], weighted, mask=inputs["mask"])
    aligned, seen = called(extractor, inputs, context=context, return_weights=True)
    np.testing.assert_allclose(aligned, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(seen, weights)
    np.testing.assert_array_equal(called(extractor, inputs, context=context), aligned)


def test_context_is_the_mean_of_the_queries_where_none_is_given(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    mean = inputs["query"].mean(1)
    np.testing.assert_allclose(called(extractor, inputs, context=mean), called(extractor, inputs), rtol=1e-5, atol=1e-6)
    assert np.abs(called(extractor, inputs, context=-mean) - called(extractor, inputs)).max() > 1e-3


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "float64"])
def test_a_fresh_extractor_changes_no_bit(policy: str, inputs: dict[str, np.ndarray]) -> None:
    extractor = KnowledgeExtractor(dtype=policy)
    query = tf.cast(inputs["query"], extractor.compute_dtype)
    for jit_compile in (False, True):
        extract = tf.function(lambda query: called(extractor, {**inputs, "query": query}), jit_compile=jit_compile)
        assert (query + extract(query)).numpy().tobytes() == query.numpy().tobytes()


def test_a_fresh_extractor_can_learn(inputs: dict[str, np.ndarray]) -> None:
    """The output projection begins at zero, and must not stay there; nor must what lies before it."""
    extractor = KnowledgeExtractor(HEADS, UNITS)
    called(extractor, inputs)
    before = extractor.get_weights()
    optimizer = tf.keras.optimizers.SGD(1.0)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((called(extractor, inputs) - inputs["query"]) ** 2)
        gradients = tape.gradient(loss, trainable_variables(extractor))
        optimizer.apply_gradients(zip(gradients, extractor.trainable_weights, strict=True))
    for weight, old, new in zip(extractor.weights, before, extractor.get_weights(), strict=True):
        assert np.array_equal(old, new) != weight.trainable, weight.name


def test_weights_can_be_asked_for(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    aligned, weights = called(extractor, inputs, return_weights=True)
    assert aligned.shape == inputs["query"].shape
    assert weights.shape == inputs["mask"].shape
    np.testing.assert_array_equal(extractor.weigh(inputs["query"], inputs["chunks"], inputs["mask"]), weights)
    np.testing.assert_array_equal(weights.numpy()[~inputs["mask"]], 0)
    with pytest.raises(ValueError, match="extractor: `weigh` needs a built layer"):
        KnowledgeExtractor(name="extractor").weigh(inputs["query"], inputs["chunks"])


def test_weights_as_an_output_of_a_functional_model(inputs: dict[str, np.ndarray]) -> None:
    query, chunks = tf.keras.Input((QUERIES, WIDTH_R)), tf.keras.Input((FIELDS, CHUNKS, WIDTH))
    model = tf.keras.Model([query, chunks], KnowledgeExtractor()(query, chunks, return_weights=True))
    aligned, weights = model.predict([inputs["query"], inputs["chunks"]], verbose=0)
    np.testing.assert_array_equal(aligned, np.zeros_like(inputs["query"]))
    np.testing.assert_array_equal(weights, np.ones_like(inputs["mask"]))


def test_statistics_may_be_given(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    statistics = extractor.esf_net.statistics(inputs["chunks"], inputs["mask"])
    np.testing.assert_array_equal(called(extractor, inputs, statistics=statistics), called(extractor, inputs))
    others = called(extractor, inputs, statistics=1 - statistics)
    assert np.abs(others - called(extractor, inputs)).max() > 1e-3


class Arrays:
    """What `adapt` reads of a store."""

    def __init__(self, chunks: np.ndarray, mask: np.ndarray) -> None:
        self.ids, self._chunks, self._mask = np.arange(len(chunks)), chunks, mask

    def lookup(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._chunks[ids], self._mask[ids]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_adapt_reads_the_catalogue(policy: str, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kser_tf.layers.catalogue._BATCH", 3)  # the catalogue has 4: two batches
    extractor = KnowledgeExtractor(HEADS, UNITS, dtype=policy)
    called(extractor, inputs)
    chunks, mask = inputs["chunks"], inputs["mask"]
    tolerance = 1e-6 if policy == "float32" else 5e-3
    statistics = extractor.adapt(Arrays(np.where(mask[..., None], chunks, np.nan), mask))
    assert statistics.dtype == np.float32
    weights = weights_by_name(extractor.esf_net)
    np.testing.assert_allclose(weights["catalogue_mean"], chunks[mask].mean(0), rtol=1e-5, atol=1e-6)
    expected = tf.cast(extractor.esf_net.statistics(chunks, mask), tf.float32)
    np.testing.assert_allclose(statistics, expected, atol=tolerance)
    np.testing.assert_allclose(weights["center"], statistics[mask].mean(0), atol=tolerance)
    np.testing.assert_allclose(weights["scale"], statistics[mask].std(0), atol=tolerance)


def test_adapt_to_a_catalogue_that_has_no_spread_or_nothing(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    weights = weights_by_name(extractor.esf_net)
    same = np.ones((5, FIELDS, CHUNKS, WIDTH), "float32")
    extractor.adapt(Arrays(same, np.ones(same.shape[:-1], bool)))
    np.testing.assert_allclose(weights["center"], [1, 1, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(weights["scale"], [1, 1, 1])
    for rows in (5, 0):
        statistics = extractor.adapt(Arrays(same[:rows], np.zeros((rows, FIELDS, CHUNKS), bool)))
        np.testing.assert_array_equal(statistics, np.zeros((rows, FIELDS, CHUNKS, 3)))
        np.testing.assert_array_equal(weights["catalogue_mean"], np.zeros(WIDTH))
        np.testing.assert_array_equal(weights["center"], [0, 0, 0])
        np.testing.assert_array_equal(weights["scale"], [1, 1, 1])


def test_adapt_to_the_wrong_store(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs, name="extractor")
    wider = Arrays(np.ones((4, FIELDS, CHUNKS, 9)), inputs["mask"])
    with pytest.raises(ValueError, match=r"extractor was built for .* = \(2, 3, 8\), and the store has \(2, 3, 9\)"):
        extractor.adapt(wider)
    with pytest.raises(ValueError, match="extractor: `adapt` needs a built layer"):
        KnowledgeExtractor(name="extractor").adapt(wider)


def test_extract_checked_is_the_call_on_cleared_chunks(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    cleared = tf.constant(np.where(inputs["mask"][..., None], inputs["chunks"], 0))
    aligned, weights = extractor.extract_checked(inputs["query"], cleared, tf.constant(inputs["mask"]))
    expected, expected_weights = called(extractor, inputs, return_weights=True)
    np.testing.assert_array_equal(aligned, expected)
    np.testing.assert_array_equal(weights, expected_weights)


def test_weights_are_applied_without_making_weighted_chunks(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    tensors = [tf.constant(inputs[name]) for name in ("query", "chunks", "mask")]
    tensors.append(extractor.esf_net.statistics(*tensors[1:]))
    graph = tf.function(lambda q, c, m, s: extractor(q, c, mask=m, statistics=s)).get_concrete_function(*tensors).graph
    sizes = [output.shape.num_elements() for op in graph.get_operations() if op.type == "Mul" for output in op.outputs]
    assert sizes
    assert inputs["chunks"].size not in sizes


def test_keras_mask_of_the_query_is_not_taken_for_the_chunks(inputs: dict[str, np.ndarray]) -> None:
    extractor = random_extractor(inputs)
    query = tf.keras.layers.Embedding(10, WIDTH_R, mask_zero=True)(tf.constant([[1, 0], [0, 0], [2, 3], [4, 0]]))
    plain = tf.identity(query)
    np.testing.assert_array_equal(extractor(query, inputs["chunks"]), extractor(plain, inputs["chunks"]))
    chunks = tf.keras.layers.Masking(0.0)(tf.constant(np.where(inputs["mask"][..., None], inputs["chunks"], 0)))
    np.testing.assert_array_equal(extractor(query, chunks), called(extractor, {**inputs, "query": plain}))


def test_build_is_done_once(inputs: dict[str, np.ndarray]) -> None:
    extractor = KnowledgeExtractor()
    extractor.build((None, QUERIES, WIDTH_R), (None, FIELDS, CHUNKS, WIDTH))
    assert extractor.esf_net.built
    assert extractor.alignment.built
    count = len(extractor.weights)
    called(extractor, inputs)
    assert len(extractor.weights) == count == 12
    assert weights_by_name(extractor.esf_net)["context_kernel"].shape == (WIDTH_R, 16)


def test_errors_are_those_of_the_two_layers(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="`gate` must be one of"):
        KnowledgeExtractor(gate="hard")
    with pytest.raises(ValueError, match="`num_heads` must be at least 1"):
        KnowledgeExtractor(num_heads=0)
    with pytest.raises(ValueError, match=r"`query` must be \(batch, queries, width\).* Received: shape=\(None, 5\)"):
        KnowledgeExtractor()(inputs["query"][:, 0], inputs["chunks"])
    extractor = random_extractor(inputs)
    with pytest.raises(ValueError, match=r"`context` must have shape \(batch, 5\).* Received: shape=\(4, 7\)"):
        called(extractor, inputs, context=np.ones((BATCH, 7), "float32"))
    with pytest.raises(ValueError, match=r"`mask` must have shape \(batch, 2, 3\).* Received: shape=\(4, 2\)"):
        extractor(inputs["query"], inputs["chunks"], mask=np.ones((BATCH, 2), bool))
