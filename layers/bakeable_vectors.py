"""BakeableVectors: vectors that depend on an entity's id alone, for a table that is computed ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.knowledge_lookup import KnowledgeLookup


class BakeableVectors:
    """A vector for each of some ids, and 0 for all others: a `Bakeable`, as `kser_tf.serving.baking` describes it.

    Args:
        name: str. Of the table.
        lookup: What the vectors are made from.
        keys: `(n,)`, integers or `str` objects: the ids that have knowledge.
        width: int. Of the vectors.
        compute: From ids `(n,)` to their vectors, `(n, width)`, from the mapped store.
        use: Takes the table that is used in place of `compute`; `None`: as before.
        describe: From ids `(n,)` to `embedding` and `aligned`, as `Bakeable` has it.
    """

    unknown_row = 0

    def __init__(
        self,
        name: str,
        lookup: KnowledgeLookup,
        keys: np.ndarray,
        width: int,
        *,
        compute: Callable[[Any], Any],
        use: Callable[[Any], None],
        describe: Callable[[Any], dict[str, Any]],
    ) -> None:
        self.name = name
        self.lookups = (lookup,)
        self.keys = keys
        self.width = width
        self.use = use
        self.describe = describe
        self.id_dtype = tf.int64 if keys.dtype.kind in "iu" else tf.string
        self._compute = compute
        self._ids = tf.constant(keys, self.id_dtype)

    def compute(self, rows: Any) -> Any:
        """Returns the vectors of rows, int32 `(n,)`: row 0 is that of all other ids."""
        if not len(self.keys):
            return tf.zeros((tf.size(rows), self.width))
        vectors = self._compute(tf.gather(self._ids, tf.maximum(rows - 1, 0)))
        return tf.where(rows[:, None] > 0, vectors, tf.zeros_like(vectors))
