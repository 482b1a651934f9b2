"""xDeepFM: a compressed interaction network beside a deep part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_backbone import FieldBackbone


class XDeepFM(FieldBackbone):
    """eXtreme Deep Factorization Machine: products of whole field vectors, to a higher order with each layer.

    With the field vectors as the rows of `X_0`, a layer of the compressed interaction network (CIN) makes the rows

        X_k[h] = sum over i, j of W_k[h, i, j] (X_{k-1}[i] * X_0[j])        p_k[h] = sum of the numbers of X_k[h]

    The output layer takes the field vectors (the linear term, see `FieldBackbone`), the `p` of all layers, and the deep part,
    which are the paper's three logits. As in the paper's best setting, no activation follows a CIN layer.

    Args:
        cin_units: Number of rows that each CIN layer makes. Defaults to `(100, 100)`, the paper's for one of its data sets.
        **kwargs: See `FieldBackbone`.

    References:
        - [Lian et al., xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems,
          2018](https://arxiv.org/abs/1803.05170), equations 6 to 9
    """

    title = "xDeepFM"

    def __init__(self, *args: Any, cin_units: Sequence[int] = (100, 100), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cin = [tf.keras.layers.Dense(units, use_bias=False, name=f"cin_{i}") for i, units in enumerate(cin_units)]
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.field_vectors(embeddings, masks)
        first = tf.stack(vectors, -1)  # (batch, width, fields): a layer's matrix stands for all numbers of the vectors
        rows, pooled = first, []
        for layer in self._cin:
            products = rows[..., :, None] * first[..., None, :]
            pairs = rows.shape[-1] * first.shape[-1]
            rows = layer(tf.reshape(products, [-1, first.shape[1], pairs]))
            pooled.append(tf.reduce_sum(rows, 1))
        flat = tf.concat(vectors, -1)
        return tf.concat([flat, *pooled, in_turn(self._deep, flat)], -1)
