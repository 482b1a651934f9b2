"""DCN: feature crosses by vectors beside a deep part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import crossed, in_turn
from kser_tf.models.field_backbone import FieldBackbone


class DCN(FieldBackbone):
    """Deep and Cross Network, its first version: crosses by one vector a layer on one side, dense layers on the other.

    With all field vectors side by side as `x_0`, a cross layer makes

        x_next = x_0 (x . w) + b + x

    and the crosses' last `x` goes to the output layer beside the deep part. (TFRS' `Cross` has a matrix in place of `w`: it is
    the second version's, see `dcn_v2`.)

    Args:
        cross_layers: int. Number of cross layers. Defaults to `6`, the paper's best.
        **kwargs: See `FieldBackbone`.

    References:
        - [Wang et al., Deep & Cross Network for Ad Click Predictions, 2017](https://arxiv.org/abs/1708.05123), equation 3
    """

    any_width = True

    def __init__(self, *args: Any, cross_layers: int = 6, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crosses = [_VectorCross(name=f"cross_{i}") for i in range(cross_layers)]
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        first = tf.concat(self.field_vectors(embeddings, masks), -1)
        return tf.concat([crossed(self._crosses, first), in_turn(self._deep, first)], -1)


class _VectorCross(tf.keras.layers.Layer):
    """One cross layer: `first (x . w) + b + x`."""

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        self._kernel = self.add_weight(name="kernel", shape=(width, 1), initializer="glorot_uniform")
        self._bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
        super().build(input_shape)

    def call(self, first: Any, x: Any) -> Any:
        return first * tf.matmul(x, self._kernel) + self._bias + x
