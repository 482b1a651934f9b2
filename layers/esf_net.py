"""ESFNet: a weight for every knowledge chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers.known_statistics import known_statistics
from kser_tf.layers.shaped_layer import ShapedLayer, checked_chunks, cloned, with_shape

SIGHTS = ("chunk", "neighbours", "catalogue", "context")
GATES = ("sigmoid", "softmax", "top_k")
# Per chunk: largest and mean cosine to the entity's other chunks, cosine to the catalogue's average.
_STATISTICS = 3
_STATISTICS_OF_SIGHT = {"neighbours": (0, 1), "catalogue": (2,)}
# Squared lengths below this have no direction: their reciprocals would be at the end of float32's range. Far below the
# squared length of any float16 vector that is not zero.
_NO_LENGTH = 1e-30


@tf.keras.utils.register_keras_serializable("kser_tf")
class ESFNet(ShapedLayer):
    """Embedding Selection Filter Network: weighs the chunks of an entity's knowledge, each by itself.

    Text that a language model wrote about an item or a user is in parts wrong (hallucination), repeated (redundant) or
    the same for all (homogeneous). ESFNet gives every chunk of every field a weight, learned from the recommender's
    own loss, and multiplies the chunk by it. With chunk `e`, its statistics `s` and the recommender's context `x`,

        score  = v . relu(W_e e + W_s s + W_x stop_gradient(x) + b) + b_field
        weight = 2 sigmoid(score)                                            (`gate="sigmoid"`)
               = n exp(score) / sum over the entity's n chunks               (`gate="softmax"`)
               = 2 sigmoid(score) for the k largest scores, 0 elsewhere      (`gate="top_k"`)

    `v` and `b_field` start at zero, so every weight is exactly 1 at the start and the model begins as it would without
    a filter (equal scores all count among the k largest). Masked chunks have weight 0 and pass no gradient, whatever
    their vectors hold.

    The statistics of a chunk are its largest and its mean cosine to the entity's other chunks (`"neighbours"`) and its
    cosine to the catalogue's average chunk (`"catalogue"`). `adapt` sets that average (before, it is zero and so is the
    cosine), and how the three are standardised before they enter the score. They depend on the knowledge alone: compute
    them once with `statistics` and pass them, and a training step is spared `chunks^2 * width` multiplications an
    entity.

    Built from the published description of KSER (see References), which does not give the equations.

    Args:
        units: int. Width of the hidden layer. Defaults to `16`.
        gate: `"sigmoid"`, `"softmax"` or `"top_k"`. Defaults to `"sigmoid"`.
        top_k: int. How many chunks of an entity `gate="top_k"` keeps. Required there, refused elsewhere.
        sees: What the score is made from, of `"chunk"`, `"neighbours"`, `"catalogue"`, `"context"`. Defaults to all.
            Context is used where the layer is built with one.
        activation: Activation of the hidden layer. Defaults to `"relu"`.
        kernel_initializer: Initializer of the hidden layer's kernels. Defaults to `"glorot_uniform"`.
        kernel_regularizer: Regularizer of the hidden layer's kernels. Defaults to `None`.

    Call arguments:
        chunks: `(batch, fields, chunks, width)`, floating point.
        mask: `(batch, fields, chunks)` bool. True where there is a chunk. Defaults to the Keras mask of the chunks, or
            else to all true.
        context: `(batch, n)`. The recommender's features of the entity or the request; its gradient is stopped.
            Optional, but a layer that was built with it must be given it, and one that was built without it must not
            (unless `sees` leaves it out: then it is ignored).
        statistics: `(batch, fields, chunks, 3)`, from `statistics`. Computed from the chunks where not given.

    Returns:
        The weighted chunks, `(batch, fields, chunks, width)`, and the weights, `(batch, fields, chunks)`, both in the
        layer's compute dtype.

    Raises:
        ValueError: An argument is out of its range, or a call's tensors do not have the shapes above.

    Example:

    >>> chunks = tf.random.normal((2, 3, 4, 384))
    >>> weighted, weights = kser_tf.layers.ESFNet()(chunks)
    >>> weights.shape
    TensorShape([2, 3, 4])

    References:
        - [Wang et al., Selection and Exploitation of High-Quality Knowledge from Large Language Models for
          Recommendation, 2025](https://arxiv.org/abs/2508.07223)
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
        if isinstance(sees, str) or not sees or set(sees) - set(SIGHTS):
            raise ValueError(f"`sees` must be a list of one or more of {', '.join(SIGHTS)}. Received: sees={sees!r}")
        # Passed args.
        self.units = units
        self.gate = gate
        self.top_k = top_k
        self.sees = tuple(sight for sight in SIGHTS if sight in sees)
        self.activation = tf.keras.activations.get(activation)
        self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        # Derived.
        self._used_statistics = tuple(i for sight in self.sees for i in _STATISTICS_OF_SIGHT.get(sight, ()))
        self.supports_masking = True

    def build(self, chunks_shape: Any, context_shape: Any = None) -> None:
        shape = tuple(chunks_shape)
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                f"`chunks` must be (batch, fields, chunks, width) with only the batch unknown. Received: shape={shape}"
            )
        fields, chunks, width = shape[1:]
        self._chunk_kernel = self._add_kernel("chunk_kernel", width) if "chunk" in self.sees else None
        self._statistics_kernel = None
        if self._used_statistics:
            self._statistics_kernel = self._add_kernel("statistics_kernel", len(self._used_statistics))
        self._context_kernel = None
        if context_shape is not None and "context" in self.sees:
            context = tuple(context_shape)
            if len(context) != 2 or context[-1] is None:
                raise ValueError(f"`context` must be (batch, n) with n known. Received: shape={context}")
            self._context_kernel = self._add_kernel("context_kernel", context[-1])
        self._bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self._score_kernel = self.add_weight(name="score_kernel", shape=(self.units, 1), initializer="zeros")
        self._field_bias = self.add_weight(name="field_bias", shape=(fields, 1), initializer="zeros")
        # Knowledge about the catalogue, not a parameter of the model: no gradient, no weight decay.
        self._catalogue_mean = self.add_weight(
            name="catalogue_mean", shape=(width,), initializer="zeros", trainable=False
        )
        self._center = self.add_weight(name="center", shape=(_STATISTICS,), initializer="zeros", trainable=False)
        self._scale = self.add_weight(name="scale", shape=(_STATISTICS,), initializer="ones", trainable=False)
        self._shape = (fields, chunks, width)
        self._remember_shapes(chunks=chunks_shape, context=context_shape)

    def _add_kernel(self, name: str, rows: int) -> Any:
        return self.add_weight(
            name=name,
            shape=(rows, self.units),
            initializer=cloned(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
        )

    @property
    def catalogue_mean(self) -> Any:
        """The catalogue's average chunk, `(width,)`, which `adapt` sets. The layer must be built."""
        return self._catalogue_mean

    def adapt(self, mean: Any, *, center: Any = None, scale: Any = None) -> None:
        """Sets what the gate knows of the catalogue as a whole: not trained, saved with the weights.

        `KnowledgeExtractor.adapt(store)` finds all three.

        Args:
            mean: `(width,)`. Mean over the chunks of all entities, which `"catalogue"` compares with. The layer must be
                built.
            center: `(3,)`. Mean of the statistics over all chunks, subtracted before they enter the score. Cosines of a
                catalogue differ by a tenth or so around a common value, which a gate that starts from zero would take
                long to make out. Defaults to 0.
            scale: `(3,)`. Their standard deviation, divided by. Defaults to 1.

        Raises:
            ValueError: The layer is not built, a shape differs, or `scale` is not above 0. Nothing is set then.
        """
        self._require_built("adapt")
        center = tf.zeros(_STATISTICS) if center is None else center
        scale = tf.ones(_STATISTICS) if scale is None else scale
        weights = {"mean": self._catalogue_mean, "center": self._center, "scale": self._scale}
        values = {"mean": mean, "center": center, "scale": scale}
        values = {name: tf.cast(tf.convert_to_tensor(value), self.variable_dtype) for name, value in values.items()}
        for name, value in values.items():
            if value.shape != weights[name].shape:
                raise ValueError(
                    f"`{name}` must have shape {tuple(weights[name].shape)}. Received: shape={tuple(value.shape)}"
                )
        if not tf.reduce_all(values["scale"] > 0):
            raise ValueError(f"`scale` must be above 0. Received: {values['scale'].numpy().tolist()}")
        for name, value in values.items():
            weights[name].assign(value)

    def statistics(self, chunks: Any, mask: Any = None) -> Any:
        """Returns what is compared of each chunk with its neighbours and the catalogue.

        Args:
            chunks: `(batch, fields, chunks, width)`.
            mask: `(batch, fields, chunks)` bool, or `None`.

        Returns:
            `(batch, fields, chunks, 3)`, the largest and the mean cosine to the entity's other chunks (0 where there
            is none) and the cosine to the catalogue's average; 0 for masked chunks. In the layer's compute dtype.

        Raises:
            ValueError: The layer is not built, or was built for other shapes.
        """
        self._require_built("statistics")
        return self._statistics(*checked_chunks(chunks, mask, self._shape, self.compute_dtype))

    def weigh(self, chunks: Any, mask: Any = None, context: Any = None, statistics: Any = None) -> Any:
        """Returns the weights alone, `(batch, fields, chunks)`. The layer must be built; the arguments are the call's.

        Raises:
            ValueError: As the call, or the layer is not built.
        """
        self._require_built("weigh")
        chunks, mask = checked_chunks(chunks, mask, self._shape, self.compute_dtype)
        return self.weights_of_checked(chunks, mask, context, self.checked_statistics(statistics, mask))

    def call(self, chunks: Any, mask: Any = None, context: Any = None, statistics: Any = None) -> tuple[Any, Any]:
        if statistics is None:
            statistics = known_statistics(self, chunks, mask)
        chunks, mask = checked_chunks(chunks, mask, self._shape, self.compute_dtype)
        weights = self.weights_of_checked(chunks, mask, context, self.checked_statistics(statistics, mask))
        return chunks * weights[..., None], weights

    def checked_statistics(self, statistics: Any, mask: Any) -> Any:
        """Returns given statistics in the compute dtype, 0 where masked, or `None` if there are none."""
        if statistics is None:
            return None
        statistics = tf.cast(with_shape("statistics", statistics, (*self._shape[:2], _STATISTICS)), self.compute_dtype)
        return tf.where(mask[..., None], statistics, tf.zeros_like(statistics))

    def weights_of_checked(self, chunks: Any, mask: Any, context: Any, statistics: Any) -> Any:
        """Returns the weights, for layers that check chunks and statistics once for all.

        Chunks and statistics must be finite, and of the compute dtype; what they hold where masked does not matter.
        """
        hidden = tf.cast(self._bias, chunks.dtype)
        if self._statistics_kernel is not None:
            if statistics is None:
                statistics = self._statistics(chunks, mask)
            kernel, shift = self._kernel_of_raw_statistics(chunks.dtype)
            hidden = self._projected(statistics, kernel) + (hidden - shift)
        if self._chunk_kernel is not None:
            hidden = hidden + self._projected(chunks, self._chunk_kernel)
        if self._context_kernel is not None:
            hidden = hidden + self._projected_context(context, self._context_kernel, chunks.dtype)
        elif context is not None and "context" in self.sees:
            raise ValueError(f"{self.name} was built without a context and must be called without one.")
        hidden = self.activation(hidden)
        if self._chunk_kernel is None and self._statistics_kernel is None:  # the same for all chunks up to here
            hidden = tf.broadcast_to(hidden, tf.concat([tf.shape(mask), [self.units]], 0))
        score = self._projected(hidden, self._score_kernel)[..., 0] + tf.cast(self._field_bias, chunks.dtype)
        return self._gated(score, mask)

    def _kernel_of_raw_statistics(self, dtype: Any) -> tuple[Any, Any]:
        """Kernel `(3, units)` and shift `(units,)` that standardise the statistics and project them, in one product."""
        kernel = tf.cast(self._statistics_kernel, dtype)
        if len(self._used_statistics) < _STATISTICS:
            kernel = tf.scatter_nd([[i] for i in self._used_statistics], kernel, (_STATISTICS, self.units))
        kernel = kernel / tf.cast(self._scale, dtype)[:, None]
        return kernel, tf.linalg.matvec(kernel, tf.cast(self._center, dtype), transpose_a=True)

    def _projected_context(self, context: Any, kernel: Any, dtype: Any) -> Any:
        if context is None:
            raise ValueError(
                f"{self.name} was built with a context and must be called with one. Received: context=None"
            )
        context = tf.stop_gradient(tf.cast(with_shape("context", context, (kernel.shape[0],)), dtype))
        return tf.matmul(context, tf.cast(kernel, dtype))[:, None, None, :]

    def _projected(self, values: Any, kernel: Any) -> Any:
        """`values` times `kernel` over the last axis, as one flat product: many small ones take longer."""
        rows, units = kernel.shape
        flat = tf.matmul(tf.reshape(values, (-1, rows)), tf.cast(kernel, values.dtype))
        return tf.reshape(flat, (-1, *self._shape[:2], units))

    def _statistics(self, chunks: Any, mask: Any) -> Any:
        """The statistics of chunks that `checked_chunks` returned."""
        fields, per_field, width = self._shape
        count = fields * per_field
        # The squares of a float16 vector of unit length are partly below what float16 can hold.
        wide = tf.float32 if chunks.dtype.size < tf.float32.size else chunks.dtype
        unit = _unit(tf.reshape(tf.cast(chunks, wide), (-1, count, width)))
        flat_mask = tf.reshape(mask, (-1, count))
        other = flat_mask[:, None, :] & flat_mask[:, :, None] & ~tf.eye(count, dtype=tf.bool)
        cosines = tf.matmul(unit, unit, transpose_b=True)
        largest = tf.reduce_max(tf.where(other, cosines, tf.fill(tf.shape(cosines), cosines.dtype.min)), -1)
        largest = tf.where(tf.reduce_any(other, -1), largest, tf.zeros_like(largest))
        others = tf.reduce_sum(tf.cast(other, wide), -1)
        mean = tf.reduce_sum(tf.where(other, cosines, tf.zeros_like(cosines)), -1) / tf.maximum(others, 1)
        to_catalogue = tf.linalg.matvec(unit, _unit(tf.cast(self._catalogue_mean, wide)))
        statistics = tf.stack([largest, mean, to_catalogue], -1)
        return tf.cast(tf.reshape(statistics, (-1, fields, per_field, _STATISTICS)), chunks.dtype)

    def _gated(self, score: Any, mask: Any) -> Any:
        zero = tf.zeros_like(score)
        if self.gate == "sigmoid":
            return tf.where(mask, 2 * tf.sigmoid(score), zero)
        fields, per_field, _ = self._shape
        count = fields * per_field
        flat, flat_mask = tf.reshape(score, (-1, count)), tf.reshape(mask, (-1, count))
        lowest = tf.where(flat_mask, flat, tf.fill(tf.shape(flat), flat.dtype.min))
        if self.gate == "softmax":
            below_largest = flat - tf.stop_gradient(tf.reduce_max(lowest, -1, keepdims=True))
            # Masked scores may be far above the largest one that counts: their exponential would be infinite.
            raised = tf.exp(tf.where(flat_mask, below_largest, tf.zeros_like(flat))) * tf.cast(flat_mask, flat.dtype)
            there = tf.reduce_sum(tf.cast(flat_mask, flat.dtype), -1, keepdims=True)
            total = tf.reduce_sum(raised, -1, keepdims=True)
            # Not n * softmax: n * (1 / n) is not always 1.
            weights = raised * there / tf.where(there > 0, total, tf.ones_like(total))
            return tf.reshape(weights, (-1, fields, per_field))
        smallest_kept = tf.math.top_k(lowest, k=min(self.top_k or count, count)).values[:, -1:]
        keep = tf.reshape(lowest >= smallest_kept, (-1, fields, per_field)) & mask
        return tf.where(keep, 2 * tf.sigmoid(score), zero)

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


def _unit(vectors: Any) -> Any:
    """`vectors` at length 1; those of length 0 stay, and pass no gradient."""
    squares = tf.reduce_sum(vectors * vectors, -1, keepdims=True)
    has_length = squares > _NO_LENGTH
    reciprocals = tf.math.rsqrt(tf.where(has_length, squares, tf.ones_like(squares)))
    return vectors * tf.where(has_length, reciprocals, tf.zeros_like(squares))
