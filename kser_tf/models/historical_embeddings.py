"""HistoricalEmbeddings: what was last computed for each entity."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class HistoricalEmbeddings:
    """A vector for each entity of a store, as it was when it was last computed; zeros at the start.

    Not a module, so that its variable counts neither as a weight of the model nor as a part of its checkpoints.

    Args:
        rows: int. Rows of the store.
        width: int. Width of the vectors.
    """

    def __init__(self, rows: int, width: int) -> None:
        # One row more, for all entities that the store does not hold: they have no knowledge, it stays 0.
        self._unknown = rows
        with tf.init_scope():
            self._vectors = tf.Variable(tf.zeros([rows + 1, width]), trainable=False, name="historical_embeddings")

    def read(self, rows: Any) -> Any:
        """Returns the vectors of store rows, float32 `(n, width)`; 0 for row -1. They pass no gradient."""
        return tf.stop_gradient(tf.gather(self._vectors, self._places(rows)))

    def write(self, rows: Any, vectors: Any) -> None:
        """Remembers `(n, width)` vectors of store rows. Those of row -1 must be 0."""
        vectors = tf.cast(tf.stop_gradient(vectors), self._vectors.dtype)
        self._vectors.scatter_update(tf.IndexedSlices(vectors, self._places(rows)))

    def _places(self, rows: Any) -> Any:
        return tf.where(rows >= 0, rows, self._unknown)
