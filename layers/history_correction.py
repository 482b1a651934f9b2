"""HistoryCorrection: what a user's past adds to a logit, seen through the knowledge about the candidate and the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers.bakeable_vectors import BakeableVectors
from kser_tf.layers.entity_profiles import EntityProfiles
from kser_tf.layers.history_likeness import HistoryLikeness, joined_feedback
from kser_tf.layers.knowledge_lookup import UNKNOWN_ROW, KnowledgeLookup
from kser_tf.layers.preferences import Past
from kser_tf.layers.untracked import Untracked


class HistoryCorrection(tf.keras.layers.Layer):
    """`HistoryLikeness` of raw ids: it looks up the knowledge about candidate and history, and reads the feedback.

    What the look-up does not hold, such as the id that pads a history, counts as nothing there.

    Args:
        lookup: What looks up the knowledge of the candidate and of the history.
        feedback: For each feature that says what the user thought of what is in the history: `None` where it is a number
            (squashed, `sign(x) log(1 + |x|)`, 0 where it is no number), or the list of its values: then one number for each
            of them, 1 where it stands, and one for all others. Without any, the likeness alone counts.

    Call arguments:
        candidate: `(batch,)`. The rows of the candidates, as `rows` gives them.
        history: `(batch, length)`. Those of what the user did before.
        feedback: For each feature of feedback its values, `(batch, length)`.
        training: bool. Whether profiles may be taken from those kept for training.

    Returns:
        `(batch,)`; 0 at the start, and always where nothing is known of the candidate.

    Raises:
        ValueError: Values are of another kind than those listed.
    """

    def __init__(self, lookup: KnowledgeLookup, feedback: Sequence[Sequence[Any] | None] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lookup = lookup
        # Past Keras 2, which would track the lists.
        self._kinds: Any = Untracked([None if values is None else list(values) for values in feedback])
        self.profiles = EntityProfiles(lookup, dtype=self.dtype_policy, name="profiles")
        self.likeness = HistoryLikeness(dtype=self.dtype_policy, name="likeness")
        # While a model is exported: the profiles of all ids.
        self._baked: Any = Untracked()

    @property
    def kinds(self) -> list[list[Any] | None]:
        """For each feature of feedback its values; `None` for numbers."""
        return self._kinds.value

    def build(self, input_shape: Any = None) -> None:
        """Makes all weights. Their shapes follow from the arguments, so it can be called without any."""
        if self.profiles.built:
            return
        width = sum(1 if values is None else len(values) + 1 for values in self.kinds)
        with tf.name_scope(self.profiles.name):
            self.profiles.build((None, *self.lookup.shape))
        with tf.name_scope(self.likeness.name):
            profile = self.profiles.width
            self.likeness.build((None, profile), (None, None, profile), (None, None, width))
        self.built = True

    def rows(self, ids: Any, find: Any = None) -> Any:
        """Returns what stands for ids, int32: rows of the store, or while baked of the table.

        Args:
            ids: `(batch,)`, or `(batch, length)`, which may be ragged.
            find: What finds the store's rows. Defaults to the look-up.
        """
        if isinstance(ids, tf.RaggedTensor):
            return ids.with_flat_values(self.rows(ids.flat_values, find)).to_tensor(self._nothing)
        if self._baked.value is not None:
            return self._baked.value.rows(tf.cast(ids, tf.int64) if ids.dtype.is_integer else ids)
        return (find or self.lookup.rows)(ids)

    @property
    def _nothing(self) -> int:
        """The row of ids that are not known."""
        return UNKNOWN_ROW if self._baked.value is None else 0

    def call(self, candidate: Any, history: Any, feedback: Sequence[Any] = (), training: bool | None = None) -> Any:
        there = history != self._nothing
        correction = self.likeness(
            self._profiles(candidate, bool(training)),
            self._profiles(history, bool(training)),
            self._feedback(feedback, there),
            mask=there,
        )
        return correction[:, 0]

    def past(self, candidate: Any, history: Any, feedback: Sequence[Any], labels: Any) -> Past:
        """Returns examples as `adapt_to_preferences` takes them.

        Args:
            candidate: As of the call.
            history: `(batch, length)`, ids, which may be ragged.
            feedback: As of the call.
            labels: `(batch,)`.
        """
        rows = self.rows(history)
        there = rows != self._nothing
        return Past(candidate, rows, there, self._feedback(feedback, there), labels)

    def _feedback(self, feedback: Sequence[Any], there: Any) -> Any:
        read = [self._read(number, values) for number, values in enumerate(feedback)]
        return joined_feedback(read, there, self.compute_dtype)

    def _profiles(self, rows: Any, training: bool) -> Any:
        if self._baked.value is not None:
            return self._baked.value.gather(rows, self.compute_dtype)
        return self.profiles.of_rows(rows, training=training)

    def _read(self, number: int, given: Any) -> Any:
        """The feedback `number` of each place in numbers, `(batch, length, n)`."""
        given = given.to_tensor() if isinstance(given, tf.RaggedTensor) else given
        values = self.kinds[number]
        if values is None:
            numbers = tf.cast(given, self.compute_dtype)[..., None]
            numbers = tf.where(tf.math.is_finite(numbers), numbers, tf.zeros_like(numbers))
            return tf.sign(numbers) * tf.math.log1p(tf.abs(numbers))
        try:
            known = tf.constant(values, given.dtype)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name}: the values of the feedback are listed as {values!r}, and the feature holds "
                f"{given.dtype.name} values."
            ) from None
        same = given[..., None] == known
        return tf.cast(tf.concat([same, ~tf.reduce_any(same, -1, keepdims=True)], -1), self.compute_dtype)

    def bakeable(self, name: str) -> BakeableVectors:
        """Returns the profiles as what can be computed ahead, called `name`: see `kser_tf.serving.baking`."""

        def compute(ids: Any) -> Any:
            return self.profiles.of_rows(self.lookup.rows(ids))

        def use(table: Any | None) -> None:
            self._baked.value = table

        def describe(ids: Any) -> dict[str, Any]:
            profiles = tf.cast(self._profiles(self.rows(ids), False), tf.float32)
            return {"embedding": profiles, "aligned": profiles}

        ids = self.lookup.tables().ids
        return BakeableVectors(name, self.lookup, ids, self.profiles.width, compute=compute, use=use, describe=describe)
