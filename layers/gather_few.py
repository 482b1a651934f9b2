"""Rows of a small table, with a gradient that is quick."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Up to here a product with one-hot rows is quicker than adding up row by row: measured for 20,480 ratings of a history,
# 0.2 ms instead of 1.3 with 7 rows.
FEW_ROWS = 32


def gather_few(table: Any, indices: Any) -> Any:
    """Returns `tf.gather(table, indices)`, for a table of a few rows that many indices name.

    What differs is the gradient: the rows' sums are one matrix product, not a scattered addition row by row; and it is
    dense, so that the optimizer need not sort it.

    Args:
        table: `(rows, width)`, a tensor or a variable.
        indices: int32, of any shape.

    Returns:
        `(*indices.shape, width)`, in the table's dtype.
    """

    @tf.custom_gradient
    def gathered(values: Any) -> tuple[Any, Any]:
        def gradient(upstream: Any) -> Any:
            rows, width = values.shape
            places = tf.one_hot(tf.reshape(indices, [-1]), rows, dtype=upstream.dtype)
            return tf.matmul(places, tf.reshape(upstream, [-1, width]), transpose_a=True)

        return tf.gather(values, indices), gradient

    return gathered(tf.convert_to_tensor(table))
