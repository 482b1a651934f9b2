"""FieldAttention: self-attention between the fields of a row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class FieldAttention(tf.keras.layers.Layer):
    """Multi-head self-attention between the fields of a row, with a residual connection: AutoInt's interacting layer.

    With the vector `e_m` of field `m` and matrices of its own for each head,

        a_mk = softmax over k of <W_query e_m, W_key e_k>
        output_m = relu(concat over the heads of sum over k of a_mk W_value e_k + W_residual e_m)

    Keras' `MultiHeadAttention` is not this: it multiplies the concatenated heads with a further matrix.

    Args:
        num_heads: int. Number of heads.
        head_width: int. Width of each head's query, key and value.
        **kwargs: See `tf.keras.layers.Layer`.

    Call arguments:
        fields: `(batch, fields, width)`.

    Returns:
        `(batch, fields, num_heads * head_width)`.

    References:
        - [Song et al., AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks,
          2018](https://arxiv.org/abs/1810.11921), equations 5 to 8
    """

    def __init__(self, num_heads: int, head_width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_width = head_width
        self._query, self._key, self._value, self._residual = (
            tf.keras.layers.Dense(num_heads * head_width, use_bias=False, name=name)
            for name in ("query", "key", "value", "residual")
        )

    def call(self, fields: Any) -> Any:
        query, key, value = (self._heads(layer(fields)) for layer in (self._query, self._key, self._value))
        weights = tf.nn.softmax(tf.einsum("bmhw,bkhw->bhmk", query, key))
        residual = self._residual(fields)
        attended = tf.einsum("bhmk,bkhw->bmhw", weights, value)
        return tf.nn.relu(tf.reshape(attended, tf.shape(residual)) + residual)

    def _heads(self, projected: Any) -> Any:
        return tf.reshape(projected, [-1, projected.shape[1], self.num_heads, self.head_width])
