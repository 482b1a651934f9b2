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


class WithWeights(KnowledgeExtractor):
    """An extractor whose call returns the weights too, for what calls it with tensors alone."""


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
        weight_shapes={
            "chunk_kernel": (WIDTH, UNITS),
            "statistics_kernel": (2, UNITS),
            "context_kernel": (WIDTH_R, UNITS),
            "bias": (UNITS,),
            "score_kernel": (UNITS, 1),
            "field_bias": (HEADS, FIELDS),
            "catalogue_mean": (WIDTH,),
            "query_kernel": (WIDTH_R, HEADS * WIDTH),
            "output_kernel": (HEADS * WIDTH, WIDTH_R),
        },
        frozen=("catalogue_mean",),
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
        weight_shapes={
            "chunk_kernel": (WIDTH, UNITS),
            "statistics_kernel": (3, UNITS),
            "context_kernel": (7, UNITS),
            "bias": (UNITS,),
            "score_kernel": (UNITS, 1),
            "field_bias": (1, FIELDS),
            "catalogue_mean": (WIDTH,),
            "query_kernel": (WIDTH_R, WIDTH),
            "output_kernel": (WIDTH, WIDTH_R),
        },
        frozen=("catalogue_mean",),
        tmp_path=tmp_path,
    )
