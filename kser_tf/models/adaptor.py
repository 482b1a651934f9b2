"""What an adaptor is: the way from an entity's knowledge to what a ranking model computes with."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from kser_tf.errors import ConfigError
from kser_tf.layers.shaped_layer import ShapedLayer, checked_chunks
from kser_tf.models.config import RankingModelConfig

Placement = Literal["residual", "field"]


class Adaptor(ShapedLayer):
    """Makes vectors of an entity's knowledge. One subclass, in one module of `kser_tf.models.adaptors`, is one adaptor.

    What it makes goes to one of two places:

    - `"residual"`: one vector, added to the entity's embedding wherever the entity stands, as candidate or in a history.
    - `"field"`: one or more further fields of the backbone, beside the embedding of the feature that names the candidate.

    A subclass says in its `__init__` which one is its default, writes `make_weights` and `vectors_of_checked`, and where
    it makes other than one vector of the embeddings' width, `outputs`. Entities without knowledge must get exactly 0.

    Args:
        config: The ranking model's hyper-parameters.
        placement: `"residual"` or `"field"`.
        any_width: bool. Whether the backbone takes further fields of any width. Otherwise they must have the embeddings'.
            Defaults to `False`.
        kernel_regularizer: Regularizer of the kernels. Defaults to `None`.

    Call arguments:
        query: `(batch, 1, embedding width)`. The entity's embedding.
        chunks: `(batch, fields, chunks, width)`.
        mask: `(batch, fields, chunks)` bool. Defaults to all true.

    Returns:
        `(batch, vectors, width of each)`, as `outputs` has it: what predictions see, without anything random.

    Raises:
        ConfigError: The placement is none of the two.
    """

    shaped_arguments: tuple[str, ...] = ("query", "chunks")

    def __init__(
        self,
        config: RankingModelConfig,
        placement: Placement,
        *,
        any_width: bool = False,
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if placement not in get_args(Placement):
            raise ConfigError(
                f"adaptor_options: `placement` must be {' or '.join(get_args(Placement))}. Received: {placement!r}"
            )
        # What weighs the chunks, where the adaptor has that. (As an attribute of the class, it would hide the layer that a
        # subclass sets from Keras 2, which takes such names for properties, and its weights would be trained by nobody.)
        self.esf_net: Any = None
        self.config = config
        self.placement = placement
        self.any_width = any_width
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)

    def outputs(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Returns how many vectors come from knowledge of shape `(fields, chunks, width)`, and how wide each is."""
        return 1, self.config.embedding_width

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes the weights, for queries of a width and knowledge of shape `(fields, chunks, width)`."""
        raise NotImplementedError

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Does the call's work on chunks that are finite everywhere, as `KnowledgeLookup` gives them.

        What masked chunks hold must not matter. The layer must be built.

        Args:
            query: As of the call, like all others in the compute dtype.
            chunks: As of the call.
            mask: As of the call.
            statistics: From `ESFNet.statistics`, where they are at hand; only adaptors with an ESFNet look at them.
            training: bool. Whether what is random in training is to be drawn.

        Returns:
            As the call.
        """
        raise NotImplementedError

    def adapt(self, store: Any) -> np.ndarray | None:
        """Tells the adaptor about the catalogue as a whole, before training. The layer must be built.

        Args:
            store: A `kser_tf.KnowledgeStore`, or anything with its `ids` and `lookup`.

        Returns:
            ESFNet's statistics of all chunks, float32 `(rows, fields, chunks, 3)`; `None` without an ESFNet.
        """
        return None

    def begin_at_zero(self) -> None:
        """Sets the weights so that a residual adaptor adds nothing at first, which a trained base asks for.

        Those that begin so in any case have nothing to do. The layer must be built.
        """

    def build(self, query_shape: Any, chunks_shape: Any) -> None:
        self._shape = tuple(chunks_shape)[1:]
        self.make_weights(tuple(query_shape)[-1], self._shape)
        self._remember_shapes(query=query_shape, chunks=chunks_shape)

    def call(self, query: Any, chunks: Any, mask: Any = None) -> Any:
        chunks, mask = checked_chunks(chunks, mask, self._shape, self.compute_dtype)
        return self.vectors_of_checked(tf.cast(query, chunks.dtype), chunks, mask)

    def add_kernel(self, name: str, *shape: int, initializer: Any = "glorot_uniform") -> Any:
        """Adds a kernel, under the regularizer of all kernels."""
        return self.add_weight(name=name, shape=shape, initializer=initializer, regularizer=self.kernel_regularizer)


def chunk_mean(chunks: Any, mask: Any) -> Any:
    """Returns the mean of each entity's chunks, `(batch, width)`; 0 where there is none."""
    present = tf.cast(mask, chunks.dtype)
    return weighted_sum(chunks, present / tf.maximum(tf.reduce_sum(present, [1, 2], keepdims=True), 1))


def field_means(chunks: Any, mask: Any) -> Any:
    """Returns the mean of each field's chunks, `(batch, fields, width)`; 0 where there is none."""
    fields, per_field, width = chunks.shape[1:]
    present = tf.cast(mask, chunks.dtype)
    shares = present / tf.maximum(tf.reduce_sum(present, 2, keepdims=True), 1)
    # All fields of an entity in one product, each with zeros for the chunks of the others.
    shares = tf.eye(fields, dtype=chunks.dtype)[None, :, :, None] * shares[:, None]
    count = fields * per_field
    return tf.matmul(tf.reshape(shares, [-1, fields, count]), tf.reshape(chunks, [-1, count, width]))


def weighted_sum(chunks: Any, weights: Any) -> Any:
    """Returns the sum of each entity's chunks, `(batch, width)`, each times its weight, `(batch, fields, chunks)`."""
    fields, per_field, width = chunks.shape[1:]
    count = fields * per_field
    return tf.matmul(tf.reshape(weights, [-1, 1, count]), tf.reshape(chunks, [-1, count, width]))[:, 0]


def linear(values: Any, kernel: Any, bias: Any = None) -> Any:
    """Returns `values kernel + bias`, in the dtype of the values."""
    made = tf.matmul(values, tf.cast(kernel, values.dtype))
    return made if bias is None else made + tf.cast(bias, values.dtype)


def where_known(vectors: Any, mask: Any) -> Any:
    """Returns `(batch, ...)` vectors, and 0 for entities of which there is no chunk."""
    known = tf.reshape(tf.reduce_any(mask, [1, 2]), [-1, *[1] * (len(vectors.shape) - 1)])
    return tf.where(known, vectors, tf.zeros_like(vectors))
