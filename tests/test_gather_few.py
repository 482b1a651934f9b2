"""gather_few against tf.gather, forward and backward."""

import numpy as np
import pytest
import tensorflow as tf

from kser_tf.layers.gather_few import gather_few


@pytest.mark.parametrize("shape", [(5,), (4, 3), (0,)])
def test_values_and_gradient_are_those_of_a_gather(shape):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(6, 4)).astype(np.float32)
    indices = rng.integers(0, 6, shape).astype(np.int32)
    upstream = rng.normal(size=(*shape, 4)).astype(np.float32)
    by_hand = np.zeros((6, 4))
    for index, value in zip(indices.reshape(-1), upstream.reshape(-1, 4), strict=True):
        by_hand[index] += value

    variable = tf.Variable(table)

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            rows = gather_few(variable, indices)
            loss = tf.reduce_sum(rows * upstream)
        return rows, tape.gradient(loss, variable)

    rows, gradient = run()
    assert np.array_equal(rows, table[indices])
    assert not isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-5)


def test_mixed_precision_keeps_the_tables_dtype():
    rows = gather_few(tf.cast([[1.0, 2.0], [3.0, 4.0]], tf.bfloat16), tf.constant([1, 1, 0]))
    assert rows.dtype == tf.bfloat16
    assert np.array_equal(tf.cast(rows, tf.float32), [[3, 4], [3, 4], [1, 2]])
