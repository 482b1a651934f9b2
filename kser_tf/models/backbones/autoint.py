"""AutoInt: self-attention between the fields beside a deep part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_attention import FieldAttention
from kser_tf.models.field_backbone import FieldBackbone


class AutoInt(FieldBackbone):
    """AutoInt: layers of self-attention, in each of which every field takes from the fields that matter to it.

    The field vectors go through the layers of `FieldAttention`, each with

        output_m = relu(concat over the heads of sum over k of softmax(<W_query e_m, W_key e_k>) W_value e_k + W_residual e_m)

    and what comes out goes to the output layer, side by side, next to the deep part: the paper's AutoInt+. With
    `hidden_units=()` the deep part is the field vectors themselves, a linear term.

    Args:
        attention_layers: int. Number of attention layers. Defaults to `3`.
        num_heads: int. Number of heads. Defaults to `2`.
        head_width: int. Width of each head. Defaults to `32`.
        **kwargs: See `FieldBackbone`.

    References:
        - [Song et al., AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks,
          2018](https://arxiv.org/abs/1810.11921)
    """

    def __init__(
        self, *args: Any, attention_layers: int = 3, num_heads: int = 2, head_width: int = 32, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._attention = [
            FieldAttention(num_heads, head_width, name=f"attention_{i}") for i in range(attention_layers)
        ]
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.field_vectors(embeddings, masks)
        attended = in_turn(self._attention, tf.stack(vectors, 1))
        flat = tf.reshape(attended, [-1, attended.shape[1] * attended.shape[2]])
        return tf.concat([flat, in_turn(self._deep, tf.concat(vectors, -1))], -1)
