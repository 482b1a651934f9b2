"""StatisticsAtHand: ESFNet's statistics of a whole store, computed once, for training."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.esf_net import ESFNet
from kser_tf.layers.knowledge_lookup import KnowledgeLookup
from kser_tf.layers.on_host import on_host

# Entities at once: 12 chunks of 384 numbers each are 38 MB then.
_ROWS_AT_ONCE = 2048
# Of what is kept in memory: 1.8 million entities of 12 chunks. Of larger stores the statistics are computed in each step.
_MOST_BYTES = 1 << 28


# Whether this thread runs a model's `train_step`. TFRS calls the model there without saying that it is trained.
_steps = threading.local()


@contextlib.contextmanager
def training_step() -> Iterator[None]:
    """Marks what runs in the block as a step of training."""
    outer = in_training_step()
    _steps.running = True
    try:
        yield
    finally:
        _steps.running = outer


def in_training_step() -> bool:
    """Says whether this runs in a block of `training_step`."""
    return getattr(_steps, "running", False)


class StatisticsAtHand:
    """Gives a training step the statistics of the chunks that it looked up, without computing them.

    They depend on the store and on the catalogue's average that the ESFNet was adapted to. They are computed at the first
    call, for the whole store; should the ESFNet have another average later, as after loading weights, then in each step.
    Whoever can say when weights may have changed calls `refresh` then, and `of_rows` in the steps, which compares nothing:
    at 1,024 rows a step the comparison and its branch take a twentieth of it.

    Args:
        lookup: What looks up the chunks.
        esf_net: What takes their statistics. It must be built at the first call.
        values: float32 `(rows, fields, chunks, 3)`, where they are known already, for the ESFNet as it is now.
    """

    def __init__(self, lookup: KnowledgeLookup, esf_net: ESFNet, values: np.ndarray | None = None) -> None:
        self._lookup = lookup
        self._esf_net = esf_net
        self._known: tuple[Any, Any] | None = None
        if values is not None:
            self._remember(values)

    def __call__(self, rows: Any, chunks: Any, mask: Any) -> Any:
        """Returns the statistics of the chunks of rows, `(n, fields, chunks, 3)`; `None` if the store is too large.

        Args:
            rows: int32 `(n,)`, from the look-up; -1 for no knowledge.
            chunks: What it returned for them.
            mask: Likewise.
        """
        if self._known is None:
            if 4 * 3 * len(self._lookup.tables().ids) * np.prod(self._lookup.shape[:-1]) > _MOST_BYTES:
                return None
            with tf.init_scope():
                self._remember(statistics_of_store(self._lookup, self._esf_net))
        assert self._known is not None
        _, mean = self._known
        return tf.cond(
            self._is_still(mean),
            lambda: tf.cast(self.of_rows(rows), chunks.dtype),
            lambda: self._esf_net.statistics(chunks, mask),
        )

    def of_rows(self, rows: Any) -> Any:
        """Returns the statistics of rows, float32 `(n, fields, chunks, 3)`, as they were when last refreshed.

        Args:
            rows: int32 `(n,)`, from the look-up; -1 for no knowledge: then those of some other row.
        """
        assert self._known is not None
        with on_host():
            return tf.gather(self._known[0], tf.maximum(rows, 0))

    def refresh(self) -> None:
        """Computes the statistics anew if the ESFNet has another average than they were computed with."""
        if self._known is not None and not self._is_still(self._known[1]):
            self._remember(statistics_of_store(self._lookup, self._esf_net))

    def _is_still(self, mean: Any) -> Any:
        return tf.reduce_all(tf.equal(mean, tf.cast(self._esf_net.catalogue_mean, tf.float32)))

    def _remember(self, values: Any) -> None:
        with tf.device("CPU:0"):
            mean = tf.cast(tf.convert_to_tensor(self._esf_net.catalogue_mean), tf.float32)
            if self._known is None:
                # Variables: a step that was traced reads what they hold by then.
                self._known = tuple(tf.Variable(value, trainable=False) for value in (values, mean))
            else:
                for variable, value in zip(self._known, (values, mean), strict=True):
                    variable.assign(value)


def statistics_of_store(lookup: KnowledgeLookup, esf_net: ESFNet) -> Any:
    """Returns the statistics of all chunks of a look-up's store, float32 `(rows, fields, chunks, 3)`."""
    count = max(len(lookup.tables().ids), 1)  # an empty store has a row to read for unknown ids
    compute = tf.function(
        lambda rows: tf.cast(esf_net.statistics(*lookup.lookup_rows(rows)), tf.float32),
        input_signature=[tf.TensorSpec([None], tf.int32)],
        autograph=False,
    ).get_concrete_function()
    return tf.concat(
        [compute(tf.range(start, min(start + _ROWS_AT_ONCE, count))) for start in range(0, count, _ROWS_AT_ONCE)], 0
    )
