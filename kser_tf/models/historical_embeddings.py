"""HistoricalEmbeddings: what was last computed for each entity, so that a training step need not compute all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Of the candidates, where histories are not sampled.
_ONE_OF_CANDIDATES = 2


class HistoricalEmbeddings:
    """The aligned vector of each entity of a store, as it was when it was last computed; zeros at the start.

    An entity that stands in a batch as a candidate is aligned anew and remembered, and so is one in `one_of` of those that
    stand only in histories; the gradient through these counts `one_of` times, so that the extractor's gradient is on average
    that of all. The others take the aligned vector remembered of them, and pass no gradient into the extractor; their own
    embeddings are trained as ever.

    Without a sample of the histories (`one_of=0`) these take all of theirs from memory, a candidate's too, so that they do not
    wait for the extractor. What they tell of an entity that is aligned as a candidate still reaches the extractor.

    With `decoupled` too, for extractor-only training, it does not: the extractor's work and the histories' then wait neither
    forwards nor backwards for each other. And of the candidates every other one is aligned, and counts twice.

    Not a module, so that its variable counts neither as a weight of the model nor as a part of its checkpoints.

    Args:
        rows: int. Rows of the store.
        width: int. Width of the vectors.
        one_of: int. 0 for no sample of the histories.
        decoupled: bool. Whether, without a sample, histories tell the extractor nothing. Defaults to `False`.

    References:
        - [Chen et al., Stochastic Training of Graph Convolutional Networks with Variance Reduction,
          2018](https://arxiv.org/abs/1710.10568): a few neighbours computed, the others from memory
        - [Fey et al., GNNAutoScale: Scalable and Expressive Graph Neural Networks via Historical Embeddings,
          2021](https://arxiv.org/abs/2106.05609)
    """

    def __init__(self, rows: int, width: int, one_of: int = 0, *, decoupled: bool = False) -> None:
        self.one_of = one_of
        self.decoupled = decoupled
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

    def embed(self, base: Any, rows: Any, candidates: Any, align: Callable[[Any, Any], Any]) -> tuple[Any, Any | None]:
        """Returns the vectors of a batch's entities, with their knowledge, in a training step.

        Args:
            base: `(n, width)`, what the recommender has of each distinct entity without its knowledge.
            rows: int32 `(n,)`, their store rows, -1 for none.
            candidates: int32, how many of them, the first ones, are candidates.
            align: Makes the aligned vectors of such a `base` and `rows`.

        Returns:
            The candidates' vectors (others may follow), and those of all as histories see them; `None` in place of the second
            where the first holds all, the same for both.
        """
        if not self.one_of:
            remembered = tf.cast(self.read(rows), base.dtype)
            candidate, rows = base[:candidates], rows[:candidates]
            if self.decoupled:
                aligned = self._aligned_or_remembered(candidate, rows, _ONE_OF_CANDIDATES, align)
            else:
                aligned = self._aligned_anew(candidate, rows, align)
                remembered = _with_gradient_of(aligned, remembered)
            return candidate + aligned, base + remembered
        # Split, since the gradient of two slices would be two tensors of the whole size, and their sum.
        sizes = tf.stack([candidates, tf.size(rows) - candidates])
        (base, base_in_histories), (anew, in_histories) = tf.split(base, sizes), tf.split(rows, sizes)
        remembered = self.read(in_histories)
        sampled = self._sample(rows, sizes[1], self.one_of)
        aligned = self._aligned_anew(
            tf.concat([base, tf.gather(base_in_histories, sampled)], 0),
            tf.concat([anew, tf.gather(in_histories, sampled)], 0),
            align,
        )
        aligned, aligned_in_sample = tf.split(aligned, [candidates, tf.size(sampled)])
        aligned_in_histories = _in_place_of(remembered, sampled, aligned_in_sample, self.one_of)
        return tf.concat([base + aligned, base_in_histories + aligned_in_histories], 0), None

    def _aligned_or_remembered(self, base: Any, rows: Any, one_of: int, align: Callable[[Any, Any], Any]) -> Any:
        """The aligned vectors, one in so many anew, the others as they are remembered."""
        sampled = self._sample(rows, tf.size(rows), one_of)
        aligned = self._aligned_anew(tf.gather(base, sampled), tf.gather(rows, sampled), align)
        return _in_place_of(self.read(rows), sampled, aligned, one_of)

    def _aligned_anew(self, base: Any, rows: Any, align: Callable[[Any, Any], Any]) -> Any:
        aligned = align(base, rows)
        self.write(rows, aligned)
        return aligned

    def _sample(self, rows: Any, size: Any, one_of: int) -> Any:
        """One in so many of `size` places."""
        return tf.range(tf.minimum(self._sample_offset(rows, one_of), size), size, one_of)

    def _sample_offset(self, rows: Any, one_of: int) -> Any:
        """Where a sample begins: told by the batch's rows, so that a run that is resumed draws the same."""
        return tf.math.floormod(tf.reduce_sum(rows), one_of)

    def _places(self, rows: Any) -> Any:
        return tf.where(rows >= 0, rows, self._unknown)


def _in_place_of(remembered: Any, sampled: Any, aligned: Any, one_of: int) -> Any:
    """`remembered`, but in the sampled places what was aligned there, whose gradient counts for those that were not."""

    @tf.custom_gradient
    def counted(values: Any) -> tuple[Any, Any]:
        return tf.identity(values), lambda gradient: gradient * tf.cast(one_of, gradient.dtype)

    return tf.tensor_scatter_nd_update(tf.cast(remembered, aligned.dtype), sampled[:, None], counted(aligned))


def _with_gradient_of(aligned: Any, remembered: Any) -> Any:
    """`remembered`, whose gradient is passed to what was aligned of the same entities, the first ones."""

    @tf.custom_gradient
    def as_remembered(values: Any) -> tuple[Any, Any]:
        return tf.identity(remembered), lambda gradient: gradient[: tf.shape(values)[0]]

    return as_remembered(aligned)
