"""DeepFM: a factorization machine beside a deep part, on the same embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_backbone import FieldBackbone


class DeepFM(FieldBackbone):
    """DeepFM: the inner products of all pairs of fields, a linear term, and dense layers, on one set of embeddings.

    The paper adds three logits, of which the factorization machine's pairs are, with the field vectors `v_i`,

        sum over i < j of <v_i, v_j> = (|sum over i of v_i|^2 - sum over i of |v_i|^2) / 2

    Here they are columns for the output layer to weigh: the field vectors (the linear term, see `FieldBackbone`), the pairs'
    sum as one column (whose weight the paper fixes at 1), and the deep part.

    Args:
        **kwargs: See `FieldBackbone`.

    References:
        - [Guo et al., DeepFM: A Factorization-Machine based Neural Network for CTR Prediction,
          2017](https://arxiv.org/abs/1703.04247)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.field_vectors(embeddings, masks)
        flat = tf.concat(vectors, -1)
        squares = tf.square(tf.add_n(vectors)) - tf.add_n([tf.square(vector) for vector in vectors])
        pairs = tf.reduce_sum(squares, -1, keepdims=True) / 2
        return tf.concat([flat, pairs, in_turn(self._deep, flat)], -1)
