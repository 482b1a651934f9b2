"""DCN-v2: explicit feature crosses beside a deep part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from kser_tf.models.backbone import crossed, in_turn
from kser_tf.models.field_backbone import FieldBackbone


class DCNv2(FieldBackbone):
    """Deep and Cross Network v2, in parallel: TFRS' `Cross` layers on one side, dense layers on the other.

    Args:
        cross_layers: int. Number of cross layers. Defaults to `3`.
        projection_dim: int. Rank of the cross layers' matrices. Defaults to `64`.
        **kwargs: See `FieldBackbone`.

    References:
        - [Wang et al., DCN V2: Improved Deep & Cross Network, 2021](https://arxiv.org/abs/2008.13535)
    """

    any_width = True
    title = "DCN-v2"

    def __init__(self, *args: Any, cross_layers: int = 3, projection_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crosses = [
            tfrs.layers.dcn.Cross(projection_dim=projection_dim, name=f"cross_{i}") for i in range(cross_layers)
        ]
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        first = tf.concat(self.field_vectors(embeddings, masks), -1)
        return tf.concat([crossed(self._crosses, first), in_turn(self._deep, first)], -1)
