"""EntityProfiles: the profiles of a store's entities, computed or kept at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.knowledge_lookup import KnowledgeLookup
from kser_tf.layers.knowledge_profile import KnowledgeProfile
from kser_tf.layers.on_host import on_host
from kser_tf.layers.untracked import Untracked
from kser_tf.layers.xla import xla_compiles_this

# Entities profiled at once: 9 chunks of 384 numbers each are 57 MB then.
_ROWS_AT_ONCE = 4096
# Of what is kept in memory for training: 2 million entities of 32 numbers. Of larger stores they are computed in each step.
_MOST_BYTES = 1 << 28


class EntityProfiles(KnowledgeProfile):
    """`KnowledgeProfile` of the entities of one store, by their rows.

    Profiles change with the store alone, so training reads them from a table. Predictions compute them from the chunks.

    Args:
        lookup: What looks up the chunks.
        dims: int. See `KnowledgeProfile`.
    """

    def __init__(self, lookup: KnowledgeLookup, dims: int = 32, **kwargs: Any) -> None:
        super().__init__(dims, **kwargs)
        self._lookup = lookup
        self._at_hand: Any = Untracked()
        self._made_with: Any = Untracked()

    @property
    def width(self) -> int:
        """Of a profile."""
        return self.width_for(self._lookup.shape[-1])

    def of_rows(self, rows: Any, *, training: bool = False) -> Any:
        """Returns the profiles of store rows, `(*rows.shape, width)`; 0 for row -1.

        Args:
            rows: int32, of any shape.
            training: bool. Whether they may be those that `remember` has put at hand.
        """
        if training and self._at_hand.value is not None:
            with on_host():  # The table has one row more, for row -1.
                return tf.cast(tf.gather(self._at_hand.value, rows + 1), self.compute_dtype)
        flat = tf.reshape(rows, [-1])
        # XLA has no `unique`: it profiles an entity wherever it stands.
        distinct, places = (flat, None) if xla_compiles_this() else tf.unique(flat)
        profiles = self(*self._lookup.lookup_rows(distinct))
        profiles = profiles if places is None else tf.gather(profiles, places)
        return tf.reshape(profiles, tf.concat([tf.shape(rows), [self.width]], 0))

    @property
    def is_at_hand(self) -> bool:
        """Whether `remember` has put the profiles at hand."""
        return self._at_hand.value is not None

    def forget(self) -> None:
        """Undoes `remember`: the look-up has another store. Models must be traced anew."""
        self._at_hand.value = self._made_with.value = None

    def remember(self) -> None:
        """Computes the profiles of the whole store for training, with the weights as they are."""
        count = len(self._lookup.tables().ids)
        if 4 * count * self.width > _MOST_BYTES:
            return
        parts = [tf.zeros([1, self.width], self.compute_dtype)]
        for start in range(0, count, _ROWS_AT_ONCE):
            parts.append(self(*self._lookup.lookup_rows(tf.range(start, min(start + _ROWS_AT_ONCE, count)))))
        table = tf.cast(tf.concat(parts, 0), tf.float32)
        if self._at_hand.value is None:
            with tf.device("CPU:0"):
                # A variable: a step that was traced reads what it holds by then.
                self._at_hand.value = tf.Variable(table, trainable=False)
        else:
            self._at_hand.value.assign(table)
        self._made_with.value = self.get_weights()

    def refresh(self) -> None:
        """Computes them anew if they have been put at hand with other weights than there are now."""
        if self._at_hand.value is not None and not all(map(np.array_equal, self._made_with.value, self.get_weights())):
            self.remember()
