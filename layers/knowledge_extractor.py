"""KnowledgeExtractor: ESFNet, then the alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.alignment_attention import AlignmentAttention
from kser_tf.layers.catalogue import adapt_esf_net, require_shape
from kser_tf.layers.esf_net import SIGHTS, ESFNet
from kser_tf.layers.known_statistics import known_statistics
from kser_tf.layers.shaped_layer import ShapedLayer, checked_chunks


@tf.keras.utils.register_keras_serializable("kser_tf")
class KnowledgeExtractor(ShapedLayer):
    """What the recommender takes from an entity's knowledge: `ESFNet` weighs it, `AlignmentAttention` aligns it.

    The result is that of the two layers one after the other; the weights are applied inside the attention, so the
    weighted chunks are never made. With `output_initializer="zeros"`, the default here, the extractor starts by adding
    nothing: attached to a trained model, it leaves the model's predictions as they are until it has learned something.

    The two layers are the attributes `esf_net` and `alignment`.

    Args:
        num_heads: int. Heads of the alignment attention. Defaults to `4`.
        units: int. Width of ESFNet's hidden layer. Defaults to `16`.
        gate: ESFNet's gate, `"sigmoid"`, `"softmax"` or `"top_k"`. Defaults to `"sigmoid"`.
        top_k: int. For `gate="top_k"`.
        sees: What ESFNet's gate sees. Defaults to all.
        output_initializer: Initializer of the attention's output projection. Defaults to `"zeros"`.
        kernel_regularizer: Regularizer of the kernels of both. Defaults to `None`.

    Call arguments:
        query: `(batch, queries, width_r)`. The recommender's feature embeddings.
        chunks: `(batch, fields, chunks, width)`.
        mask: `(batch, fields, chunks)` bool. Defaults to the Keras mask of the chunks, or else to all true. (A Keras
            mask of the query is not looked at.)
        context: `(batch, n)`. What ESFNet sees of the recommender. Defaults to the mean of the queries.
        statistics: `(batch, fields, chunks, 3)`, from `ESFNet.statistics`, where they are at hand.
        return_weights: bool. Whether the chunk weights are returned too. Defaults to `False`.

    Returns:
        `(batch, queries, width_r)`; with `return_weights` also the weights, `(batch, fields, chunks)`. Both in the
        layer's compute dtype.

    Raises:
        ValueError: As the two layers.

    Example:

    >>> query, chunks = tf.random.normal((2, 1, 32)), tf.random.normal((2, 3, 4, 384))
    >>> aligned, weights = kser_tf.layers.KnowledgeExtractor()(query, chunks, return_weights=True)
    >>> aligned.shape, weights.shape
    (TensorShape([2, 1, 32]), TensorShape([2, 3, 4]))

    References:
        - [Wang et al., Selection and Exploitation of High-Quality Knowledge from Large Language Models for
          Recommendation, 2025](https://arxiv.org/abs/2508.07223)
    """

    shaped_arguments: tuple[str, ...] = ("query", "chunks", "context")

    def __init__(
        self,
        num_heads: int = 4,
        units: int = 16,
        *,
        gate: str = "sigmoid",
        top_k: int | None = None,
        sees: Sequence[str] = SIGHTS,
        output_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Passed args.
        self.num_heads = num_heads
        self.units = units
        self.gate = gate
        self.top_k = top_k
        self.sees = tuple(sees)
        self.output_initializer = tf.keras.initializers.get(output_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.supports_masking = True

        self.esf_net = ESFNet(
            units,
            gate=gate,
            top_k=top_k,
            sees=sees,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="esf_net",
        )
        self.alignment = AlignmentAttention(
            num_heads,
            output_initializer=self.output_initializer,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="alignment",
        )

    def build(self, query_shape: Any, chunks_shape: Any, context_shape: Any = None) -> None:
        query = tuple(query_shape)
        if len(query) != 3 or query[-1] is None:
            raise ValueError(f"`query` must be (batch, queries, width) with the width known. Received: shape={query}")
        context = (None, query[-1]) if context_shape is None else tuple(context_shape)
        for layer, shapes in (
            (self.esf_net, {"chunks_shape": chunks_shape, "context_shape": context}),
            (self.alignment, {"query_shape": query_shape, "chunks_shape": chunks_shape}),
        ):
            with tf.name_scope(layer.name):
                layer.build(**shapes)
        self._shape = tuple(chunks_shape)[1:]
        self._remember_shapes(query=query_shape, chunks=chunks_shape, context=context_shape)

    def call(
        self,
        query: Any,
        chunks: Any,
        mask: Any = None,
        context: Any = None,
        statistics: Any = None,
        return_weights: bool = False,
    ) -> Any:
        if statistics is None:
            statistics = known_statistics(self.esf_net, chunks, mask)
        chunks, mask = checked_chunks(chunks, mask, self._shape, self.compute_dtype)
        statistics = self.esf_net.checked_statistics(statistics, mask)
        aligned, weights = self.extract_checked(query, chunks, mask, context, statistics)
        return (aligned, weights) if return_weights else aligned

    def extract_checked(
        self, query: Any, chunks: Any, mask: Any, context: Any = None, statistics: Any = None
    ) -> tuple[Any, Any]:
        """Does the call's work on chunks and statistics that are finite everywhere, as `KnowledgeLookup` gives them.

        It spares passes over them: what masked ones hold does not matter, their weights are 0. The layer must be built,
        and statistics be in its compute dtype. Returns the aligned vectors and the chunk weights.
        """
        if statistics is None:
            statistics = known_statistics(self.esf_net, chunks, mask)
        weights = self.esf_net.weights_of_checked(chunks, mask, self._context(query, context), statistics)
        return self.alignment.align_checked(query, chunks, mask, weights), weights

    def adapt(self, store: Any) -> np.ndarray:
        """Tells ESFNet about the catalogue as a whole: its average chunk, and how its chunks' statistics are spread.

        Reads the store twice, batch by batch. Worth a call before training: without it the gate has no homogeneous text
        to compare with, and learns slowly.

        Args:
            store: A `kser_tf.KnowledgeStore`, or anything with its `ids` and `lookup`. The layer must be built.

        Returns:
            The statistics of all chunks, float32 `(rows, fields, chunks, 3)`: to pass to the call in training, row by
            row.

        Raises:
            ValueError: The layer is not built, or was built for knowledge of another shape.
        """
        self._require_built("adapt")
        require_shape(self.name, self._shape, store)
        return adapt_esf_net(self.esf_net, store)

    def weigh(self, query: Any, chunks: Any, mask: Any = None, context: Any = None, statistics: Any = None) -> Any:
        """Returns the chunk weights, `(batch, fields, chunks)`, for a look and for a plot.

        The layer must be built; the arguments are those of the call.

        Raises:
            ValueError: As the call, or the layer is not built.
        """
        self._require_built("weigh")
        return self.esf_net.weigh(chunks, mask, self._context(query, context), statistics)

    def _context(self, query: Any, context: Any) -> Any:
        return tf.reduce_mean(tf.cast(query, self.compute_dtype), axis=1) if context is None else context

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            units=self.units,
            gate=self.gate,
            top_k=self.top_k,
            sees=list(self.sees),
            output_initializer=tf.keras.initializers.serialize(self.output_initializer),
            kernel_regularizer=tf.keras.regularizers.serialize(self.kernel_regularizer),
        )
        return config
