"""ESFNet: a weight for every knowledge chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers.shaped_layer import ShapedLayer

SIGHTS = ("chunk", "neighbours", "catalogue", "context")
GATES = ("sigmoid", "softmax", "top_k")
# Per chunk: largest and mean cosine to the entity's other chunks, cosine to the catalogue's average.
_STATISTICS = 3
_NEIGHBOUR_STATISTICS = 2
# Keeps the length of a zero vector from dividing by zero; far below the squared length of any float16 vector that is not zero.
_TINY = 1e-12


@tf.keras.utils.register_keras_serializable("kser_tf")
class ESFNet(ShapedLayer):
    """Embedding Selection Filter Network: weighs the chunks of an entity's knowledge, each by itself.

    Text that a language model wrote about an item or a user is in parts wrong (hallucination), repeated (redundant) or the same for
    all (homogeneous). ESFNet gives every chunk of every field a weight, learned from the recommender's own loss, and multiplies the
    chunk by it. With chunk `e`, its statistics `s` and the recommender's context `x`,

        score  = v . relu(W_e e + W_s s + W_x stop_gradient(x) + b) + b_field
        weight = 2 sigmoid(score)                                            (`gate="sigmoid"`)
               = n exp(score) / sum over the entity's n chunks               (`gate="softmax"`)
               = 2 sigmoid(score) for the k largest scores, 0 elsewhere      (`gate="top_k"`)

    `v` and `b_field` start at zero, so every weight is exactly 1 at the start and the model begins as it would without a filter (equal
    scores all count among the k largest). Masked chunks have weight 0 and pass no gradient, whatever their vectors hold.

    The statistics of a chunk are its largest and its mean cosine to the entity's other chunks (`"neighbours"`) and its cosine to the
    catalogue's average chunk (`"catalogue"`), which `adapt` sets; before that it is zero and so is the cosine. They depend on the
    knowledge alone: compute them once with `statistics` and pass them, and a training step is spared `chunks^2 * width`
    multiplications an entity.

    Built from the published description of KSER (see References), which does not give the equations.

    Args:
        units: int. Width of the hidden layer. Defaults to `16`.
        gate: `"sigmoid"`, `"softmax"` or `"top_k"`. Defaults to `"sigmoid"`.
        top_k: int. How many chunks of an entity `gate="top_k"` keeps. Required there, refused elsewhere.
        sees: What the score is made from, of `"chunk"`, `"neighbours"`, `"catalogue"`, `"context"`. Defaults to all. Context is used
            where the call passes one.
        activation: Activation of the hidden layer. Defaults to `"relu"`.
        kernel_initializer: Initializer of the hidden layer's kernels. Defaults to `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the hidden layer's kernels. Defaults to `None`.

    Call arguments:
        chunks: `(batch, fields, chunks, width)`, floating point.
        mask: `(batch, fields, chunks)` bool. True where there is a chunk. Defaults to all true.
        context: `(batch, n)`. The recommender's features of the entity or the request; its gradient is stopped. Optional, but a layer
            built with it must be given it.
        statistics: `(batch, fields, chunks, 3)`, from `statistics`. Computed from the chunks where not given.

    Returns:
        The weighted chunks, `(batch, fields, chunks, width)`, and the weights, `(batch, fields, chunks)`.

    Raises:
        ValueError: An argument is out of its range, or a call's tensors do not have the shapes above.

    Example:

    >>> chunks = tf.random.normal((2, 3, 4, 384))
    >>> weighted, weights = kser_tf.layers.ESFNet()(chunks)
    >>> weights.shape
    TensorShape([2, 3, 4])

    References:
        - [Wang et al., Selection and Exploitation of High-Quality Knowledge from Large Language Models for Recommendation,
          2025](https://arxiv.org/abs/2508.07223)
    """

    shaped_arguments = ("chunks", "context")

    def __init__(
        self,
        units: int = 16,
        *,
        gate: str = "sigmoid",
        top_k: int | None = None,
        sees: Sequence[str] = SIGHTS,
        activation: Any = "relu",
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1. Received: units={units}")
        if gate not in GATES:
            raise ValueError(f"`gate` must be one of {', '.join(GATES)}. Received: gate={gate!r}")
        if (gate == "top_k") != (top_k is not None):
            raise ValueError(
                f"`top_k` goes with gate='top_k', and only with it. Received: gate={gate!r}, top_k={top_k}"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        if not sees or set(sees) - set(SIGHTS):
            raise ValueError(f"`sees` must name one or more of {', '.join(SIGHTS)}. Received: sees={list(sees)}")
        # Passed args.
        self.units = units
        self.gate = gate
        self.top_k = top_k
        self.sees = tuple(sight for sight in SIGHTS if sight in sees)
        self.activation = tf.keras.activations.get(activation)
        self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.supports_masking = True

    def build(self, chunks_shape: Any, context_shape: Any = None) -> None:
        shape = tuple(chunks_shape)
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                f"`chunks` must be (batch, fields, chunks, width) with only the batch unknown. Received: shape={shape}"
            )
        _, fields, chunks, width = shape
        self._chunk_kernel = self._kernel("chunk_kernel", width) if "chunk" in self.sees else None
        used = {"neighbours": slice(0, _NEIGHBOUR_STATISTICS), "catalogue": slice(_NEIGHBOUR_STATISTICS, _STATISTICS)}
        self._used_statistics = tuple(
            i for sight, part in used.items() if sight in self.sees for i in range(_STATISTICS)[part]
        )
        self._statistics_kernel = (
            self._kernel("statistics_kernel", len(self._used_statistics)) if self._used_statistics else None
        )
        self._context_kernel = None
        if context_shape is not None and "context" in self.sees:
            context = tuple(context_shape)
            if len(context) != 2 or context[-1] is None:
                raise ValueError(f"`context` must be (batch, n) with n known. Received: shape={context}")
            self._context_kernel = self._kernel("context_kernel", context[-1])
        self._bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self._score_kernel = self.add_weight(name="score_kernel", shape=(self.units, 1), initializer="zeros")
        self._field_bias = self.add_weight(name="field_bias", shape=(fields, 1), initializer="zeros")
        # Knowledge about the catalogue, not a parameter of the model: no gradient, no weight decay.
        self._catalogue_mean = self.add_weight(
            name="catalogue_mean", shape=(width,), initializer="zeros", trainable=False
        )
        self._shape = (fields, chunks, width)

    def _kernel(self, name: str, rows: int) -> Any:
        initializer = self.kernel_initializer.__class__.from_config(self.kernel_initializer.get_config())
        return self.add_weight(
            name=name, shape=(rows, self.units), initializer=initializer, regularizer=self.kernel_regularizer
        )

    def adapt(self, mean: Any) -> None:
        """Sets the catalogue's average chunk, which `"catalogue"` compares with.

        Args:
            mean: `(width,)`. Mean over the chunks of all entities (`KnowledgeStore.mean()`). The layer must be built.

        Raises:
            ValueError: The layer is not built, or the width differs.
        """
        if not self.built:
            raise ValueError("ESFNet.adapt needs a built layer: call the layer once, or `build(chunks_shape)`, before.")
        width = self._shape[-1]
        if tuple(mean.shape) != (width,):
            raise ValueError(
                f"`mean` must have shape ({width},), the chunks' width. Received: shape={tuple(mean.shape)}"
            )
        self._catalogue_mean.assign(tf.cast(mean, self._catalogue_mean.dtype))

    def statistics(self, chunks: Any, mask: Any = None) -> Any:
        """Returns what is compared of each chunk with its neighbours and the catalogue.

        Args:
            chunks: `(batch, fields, chunks, width)`.
            mask: `(batch, fields, chunks)` bool, or `None`.

        Returns:
            `(batch, fields, chunks, 3)`, the largest and the mean cosine to the entity's other chunks (0 where there is none) and the
            cosine to the catalogue's average; 0 for masked chunks. In the chunks' dtype.
        """
        chunks, mask = self._checked(chunks, mask)
        chunks = tf.where(mask[..., None], chunks, tf.zeros_like(chunks))
        fields, per_field, width = self._shape
        unit = tf.reshape(
            chunks * tf.math.rsqrt(tf.reduce_sum(chunks * chunks, -1, keepdims=True) + _tiny(chunks)),
            (-1, fields * per_field, width),
        )
        flat = tf.reshape(mask, (-1, fields * per_field))
        cosines = tf.matmul(unit, unit, transpose_b=True)
        other = flat[:, None, :] & flat[:, :, None] & ~tf.eye(fields * per_field, dtype=tf.bool)[None]
        has_other = tf.reduce_any(other, -1)
        others = tf.maximum(tf.reduce_sum(tf.cast(other, chunks.dtype), -1), 1)
        largest = tf.where(
            has_other, tf.reduce_max(tf.where(other, cosines, -tf.ones_like(cosines)), -1), tf.zeros_like(others)
        )
        mean = tf.reduce_sum(tf.where(other, cosines, tf.zeros_like(cosines)), -1) / others
        average = tf.cast(self._catalogue_mean, chunks.dtype)
        average = average * tf.math.rsqrt(tf.reduce_sum(average * average) + _tiny(chunks))
        to_catalogue = tf.reduce_sum(unit * average, -1)
        return tf.reshape(tf.stack([largest, mean, to_catalogue], -1), (-1, fields, per_field, _STATISTICS))

    def call(self, chunks: Any, mask: Any = None, context: Any = None, statistics: Any = None) -> tuple[Any, Any]:
        chunks, mask = self._checked(chunks, mask)
        # A masked chunk may hold anything, NaN too: it is replaced before it meets a weight, so that its gradient is 0 and not NaN.
        chunks = tf.where(mask[..., None], chunks, tf.zeros_like(chunks))
        weights = self.weigh(chunks, mask, context, statistics)
        return chunks * weights[..., None], weights

    def weigh(self, chunks: Any, mask: Any, context: Any = None, statistics: Any = None) -> Any:
        """Returns the weights alone, `(batch, fields, chunks)`; the arguments are those of the call, with zeros in masked chunks."""
        fields, per_field, width = self._shape
        if self._context_kernel is not None and context is None:
            raise ValueError("this ESFNet was built with a context and must be called with one. Received: context=None")
        terms = []
        if self._chunk_kernel is not None:
            terms.append(_projected(chunks, self._chunk_kernel))
        if self._statistics_kernel is not None:
            if statistics is None:
                statistics = self.statistics(chunks, mask)
            used = tf.gather(tf.cast(statistics, chunks.dtype), self._used_statistics, axis=-1)
            terms.append(_projected(used, self._statistics_kernel))
        if self._context_kernel is not None:
            context = tf.stop_gradient(tf.cast(context, chunks.dtype))
            terms.append(_projected(context, self._context_kernel)[:, None, None, :])
        hidden = self.activation(sum(terms, tf.cast(self._bias, chunks.dtype)))
        score = _projected(hidden, self._score_kernel)[..., 0] + tf.cast(self._field_bias, chunks.dtype)
        # Where only the context is seen, or nothing, the score is the same for all chunks up to here.
        score += tf.zeros(tf.shape(mask), score.dtype)
        return self._gated(score, mask)

    def _gated(self, score: Any, mask: Any) -> Any:
        zero = tf.zeros_like(score)
        if self.gate == "sigmoid":
            return tf.where(mask, 2 * tf.sigmoid(score), zero)
        fields, per_field, _ = self._shape
        count = fields * per_field
        flat, flat_mask = tf.reshape(score, (-1, count)), tf.reshape(mask, (-1, count))
        lowest = tf.where(flat_mask, flat, tf.fill(tf.shape(flat), flat.dtype.min))
        if self.gate == "softmax":
            raised = tf.where(
                flat_mask,
                tf.exp(flat - tf.stop_gradient(tf.reduce_max(lowest, -1, keepdims=True))),
                tf.zeros_like(flat),
            )
            there = tf.reduce_sum(tf.cast(flat_mask, flat.dtype), -1, keepdims=True)
            total = tf.reduce_sum(raised, -1, keepdims=True)
            weights = raised * there / tf.where(there > 0, total, tf.ones_like(total))
            return tf.reshape(weights, (-1, fields, per_field))
        smallest_kept = tf.math.top_k(lowest, k=min(self.top_k or count, count)).values[:, -1:]
        keep = tf.reshape(lowest >= smallest_kept, (-1, fields, per_field)) & mask
        return tf.where(keep, 2 * tf.sigmoid(score), zero)

    def _checked(self, chunks: Any, mask: Any) -> tuple[Any, Any]:
        chunks = tf.convert_to_tensor(chunks)
        if tuple(chunks.shape[1:]) != self._shape:
            raise ValueError(
                f"`chunks` must be (batch, {', '.join(map(str, self._shape))}), as built. Received: shape={tuple(chunks.shape)}"
            )
        chunks = tf.cast(chunks, self.compute_dtype)
        if mask is None:
            return chunks, tf.ones(tf.shape(chunks)[:-1], tf.bool)
        mask = tf.convert_to_tensor(mask)
        if mask.shape.rank != 3 or tuple(mask.shape[1:]) != self._shape[:2]:
            raise ValueError(
                f"`mask` must be (batch, {self._shape[0]}, {self._shape[1]}). Received: shape={tuple(mask.shape)}"
            )
        return chunks, tf.cast(mask, tf.bool)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            units=self.units,
            gate=self.gate,
            top_k=self.top_k,
            sees=list(self.sees),
            activation=tf.keras.activations.serialize(self.activation),
            kernel_initializer=tf.keras.initializers.serialize(self.kernel_initializer),
            kernel_regularizer=tf.keras.regularizers.serialize(self.kernel_regularizer),
        )
        return config


def _projected(values: Any, kernel: Any) -> Any:
    """`values` times `kernel` over the last axis, as one flat product: a batch of small ones is several times slower."""
    rows, units = kernel.shape
    flat = tf.matmul(tf.reshape(values, (-1, rows)), tf.cast(kernel, values.dtype))
    return tf.reshape(flat, tf.concat([tf.shape(values)[:-1], [units]], 0))


def _tiny(like: Any) -> Any:
    return tf.cast(_TINY if like.dtype != tf.float16 else 6e-8, like.dtype)
