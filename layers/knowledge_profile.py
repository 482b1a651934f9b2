"""KnowledgeProfile: what an entity's knowledge says as a whole, in one short vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.catalogue import batches_of, main_directions, require_shape
from kser_tf.layers.shaped_layer import ShapedLayer, checked_chunks


@tf.keras.utils.register_keras_serializable("kser_tf")
class KnowledgeProfile(ShapedLayer):
    """One vector of unit length for each entity, to be compared with other entities'.

    With the chunks `v` of an entity's field `f`, the number `n` of its chunks in all fields, the catalogue's mean `c` and
    directions `P` of each field,

        x_f = sum_(v in f) (v - c) / n        profile = sum_f x_f P_f / |sum_f x_f P_f|

    so the cosine of two profiles, their product, says how like two entities are within this catalogue: of raw text vectors
    all are alike. `adapt` learns from a store `c`, the mean of the entities' mean chunks, and `P`, the same for all fields, in
    which those differ most, by principal component analysis. `adapt_to_preferences` learns from training examples such `P` that
    entities are alike which the same users like: each field then counts as much as it tells. No gradient trains them.

    Args:
        dims: int. Width of a profile; at most that of the chunks. Defaults to `32`.

    Call arguments:
        chunks: `(batch, fields, chunks, width)`.
        mask: `(batch, fields, chunks)` bool. Defaults to the Keras mask of the chunks, or else to all true.

    Returns:
        `(batch, dims)`, in the layer's compute dtype; 0 for entities of which there is no chunk.

    Raises:
        ValueError: A shape differs from what the layer was built for.

    Example:

    >>> profile = kser_tf.layers.KnowledgeProfile(dims=2)
    >>> profile.build((None, 3, 2, 384))
    >>> profile.adapt(store)
    >>> profile(*store.lookup(["Alien", "Aliens", "Amelie"]))  # three vectors; the first two point the same way
    """

    shaped_arguments = ("chunks",)

    def __init__(self, dims: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dims < 1:
            raise ValueError(f"`dims` must be at least 1. Received: dims={dims}")
        self.dims = dims
        self.supports_masking = True

    def build(self, chunks_shape: Any) -> None:
        shape = tuple(chunks_shape)
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                f"`chunks` must be (batch, fields, chunks, width) with only the batch unknown. Received: shape={shape}"
            )
        self._shape = shape[1:]
        width = shape[-1]
        self._center = self.add_weight(name="center", shape=(width,), initializer="zeros", trainable=False)
        self._directions = self.add_weight(
            name="directions", shape=(shape[1], width, self.width_for(width)), initializer=_identities, trainable=False
        )
        self._remember_shapes(chunks=chunks_shape)

    def width_for(self, width: int) -> int:
        """Returns the width of the profiles of chunks of some width."""
        return min(self.dims, width)

    def adapt(self, store: Any) -> None:
        """Learns the catalogue's mean and main directions. Reads the store twice, batch by batch.

        Args:
            store: A `kser_tf.KnowledgeStore`, or anything with its `ids` and `lookup`. The layer must be built.

        Raises:
            ValueError: The layer is not built, or was built for knowledge of another shape.
        """
        self._require_built("adapt")
        require_shape(self.name, self._shape, store)
        width = self._shape[-1]
        total, count = np.zeros(width), 0
        for means in _means(store):
            total += means.sum(0)
            count += len(means)
        center, scatter = total / max(count, 1), np.zeros((width, width))
        for means in _means(store):
            scatter += (means - center).T @ (means - center)
        self._center.assign(center)
        directions = main_directions(scatter, self.width_for(width))
        self._directions.assign(np.broadcast_to(directions, self._directions.shape))

    @property
    def parts_width(self) -> int:
        """Of `parts`."""
        fields, _, width = self._shape
        return fields * width

    def parts(self, chunks: Any, mask: Any = None) -> Any:
        """Returns `x` of every field, side by side, `(batch, fields * width)`. The arguments are the call's."""
        chunks, mask = checked_chunks(chunks, mask, self._shape, self.compute_dtype)
        present = tf.cast(mask, chunks.dtype)
        shares = present / tf.maximum(tf.reduce_sum(present, [1, 2], keepdims=True), 1)
        of_fields = tf.matmul(shares[:, :, None], chunks)[:, :, 0]
        of_fields -= tf.reduce_sum(shares, 2)[..., None] * tf.cast(self._center, chunks.dtype)
        return tf.reshape(of_fields, (-1, self.parts_width))

    @property
    def directions(self) -> np.ndarray:
        """Those of all fields, one below the other, `(parts_width, dims)`."""
        directions: np.ndarray = self._directions.numpy().reshape(self.parts_width, -1)
        return directions

    def set_directions(self, directions: Any) -> None:
        """Takes other `directions`."""
        self._directions.assign(np.reshape(directions, self._directions.shape))

    def call(self, chunks: Any, mask: Any = None) -> Any:
        parts = self.parts(chunks, mask)
        directions = tf.reshape(tf.cast(self._directions, parts.dtype), (self.parts_width, -1))
        return tf.math.l2_normalize(tf.matmul(parts, directions), -1)

    def compute_output_shape(self, chunks_shape: Any) -> Any:
        return (chunks_shape[0], self.width_for(chunks_shape[-1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dims": self.dims}


def _identities(shape: Any, dtype: Any = None, **_: Any) -> Any:
    """The first dimensions of each field as they are."""
    fields, width, dims = shape
    return tf.tile(tf.eye(width, dims, dtype=dtype)[None], (fields, 1, 1))


def _means(store: Any) -> Any:
    """Yields the mean chunk of the entities that have any, float64 `(n, width)`."""
    for chunks, mask in batches_of(store):
        there = mask.any((1, 2))
        weights = mask[there, ..., None].astype(np.float64)
        yield (np.where(weights > 0, chunks[there], 0) * weights).sum((1, 2)) / weights.sum((1, 2))
