"""FiGNN: the fields of a row as the nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_attention import FieldAttention
from kser_tf.models.field_backbone import FieldBackbone, square_matrices


class FiGNN(FieldBackbone):
    """Feature Interaction Graph Neural Network: fields are nodes, and tell each other what they are, step by step.

    With the field vectors `e`, the first states `h_i^1` from one layer of `FieldAttention`, and an edge from every field `j` to
    every other field `i`,

        A_ij = softmax over j, without i, of leaky_relu(w . [e_i, e_j])
        a_i = (sum over j of A_ij h_j W_out,j) W_in,i + b        h_i = GRU(h_i, a_i) + h_i^1

    The score of a row is the sum of its nodes' scores, each node weighed: `y = sum over i of s_i MLP_1(h_i)`, with `s =
    sigmoid(W [h_1, ..., h_m])`. `MLP_1` is the deep part and, behind the sum, the output layer, since that is linear.

    The steps share their matrices; the GRU is Keras'. What the paper leaves open is as in public implementations: `A` sums to
    1 over the fields that a field hears, the attention has a residual connection, the weights `s` come from all nodes
    together.

    Args:
        steps: int. How often the fields tell each other. Defaults to `3`.
        num_heads: int. Heads of the attention that makes the first states. Defaults to `2`.
        head_width: int. Width of each; together they are the width of a state. Defaults to `16`.
        **kwargs: See `FieldBackbone`.

    Raises:
        ValueError: There are fewer than two fields.

    References:
        - [Li et al., Fi-GNN: Modeling Feature Interactions via Graph Neural Networks for CTR Prediction,
          2019](https://arxiv.org/abs/1910.05552)
    """

    def __init__(self, *args: Any, steps: int = 3, num_heads: int = 2, head_width: int = 16, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.field_count() < 2:
            raise ValueError(
                f"FiGNN is a graph of fields that tell each other, and needs at least two. Received: {self.field_count()}"
            )
        self.steps = steps
        self._state = FieldAttention(num_heads, head_width, name="state")
        # [e_i, e_j] in two blocks: each field's once, not once for each edge.
        self._hears = tf.keras.layers.Dense(1, use_bias=False, name="hears")
        self._tells = tf.keras.layers.Dense(1, use_bias=False, name="tells")
        self._graph = _FieldMatrices(name="graph")
        self._update = tf.keras.layers.GRUCell(num_heads * head_width, reset_after=False, name="update")
        self._weight = tf.keras.layers.Dense(self.field_count(), activation="sigmoid", use_bias=False, name="weight")
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        fields = tf.stack(self.field_vectors(embeddings, masks), 1)
        edges = self._edges(fields)
        first = states = self._state(fields)
        count, width = states.shape[1:]
        for _ in range(self.steps):
            heard = tf.reshape(self._graph(states, edges), [-1, width])
            updated, _ = self._update(heard, [tf.reshape(states, [-1, width])])
            states = tf.reshape(updated, [-1, count, width]) + first
        weights = self._weight(tf.reshape(states, [-1, count * width]))
        return tf.einsum("bf,bfu->bu", weights, in_turn(self._deep, states))

    def _edges(self, fields: Any) -> Any:
        """How much each field hears each other one, `(batch, fields, fields)`."""
        score = tf.nn.leaky_relu(self._hears(fields) + tf.transpose(self._tells(fields), [0, 2, 1]))
        itself = tf.eye(fields.shape[1], dtype=tf.bool)[None]
        return tf.nn.softmax(tf.where(itself, tf.fill(tf.shape(score), score.dtype.min), score))


class _FieldMatrices(tf.keras.layers.Layer):
    """What the fields hear: `(sum over j of A_ij h_j W_out,j) W_in,i + b`, with two matrices for each field."""

    def build(self, input_shape: Any) -> None:
        fields, width = input_shape[1:]
        self._out = square_matrices(self, "out", fields, width)
        self._in = square_matrices(self, "in", fields, width)
        self._bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
        super().build(input_shape)

    def call(self, states: Any, edges: Any) -> Any:
        told = tf.einsum("bjd,jde->bje", states, self._out)
        return tf.einsum("bid,ide->bie", tf.matmul(edges, told), self._in) + self._bias
