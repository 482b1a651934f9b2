"""Draws that a batch tells by itself."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def drawn_by_batch(keys: Any, batch: Any, share: float) -> Any:
    """Draws a share of `keys` at random, told by `batch`: a run that is resumed draws the same.

    Args:
        keys: Of any shape.
        batch: int32 `(n,)`, what tells the draw.
        share: float. How likely it is that a key is drawn.

    Returns:
        Which keys were drawn, bool, of the shape of `keys`.
    """
    seed = tf.stack([tf.reduce_sum(batch), tf.size(batch)])
    return tf.random.stateless_uniform(tf.shape(keys), seed=seed) < share
