"""DCN-v2: explicit feature crosses beside a deep part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from kser_tf.models.backbone import Backbone, masked_mean


class DCNv2(Backbone):
    """Deep and Cross Network v2, in parallel: TFRS' `Cross` layers on one side, dense layers on the other.

    Histories are pooled without regard to the candidate: each place's features through one dense layer (so that an item and
    its rating can meet), then averaged.

    Args:
        cross_layers: int. Number of cross layers. Defaults to `3`.
        projection_dim: int. Rank of the cross layers' matrices. Defaults to `64`.
        **kwargs: See `Backbone`.

    References:
        - [Wang et al., DCN V2: Improved Deep & Cross Network, 2021](https://arxiv.org/abs/2008.13535)
    """

    def __init__(self, *args: Any, cross_layers: int = 3, projection_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crosses = [
            tfrs.layers.dcn.Cross(projection_dim=projection_dim, name=f"cross_{i}") for i in range(cross_layers)
        ]
        self._place: dict[str, Any] = {}
        self._deep = self.deep_layers()

    def build(self, input_shape: Any) -> None:
        for group, features in self.groups().items():
            width = input_shape[features[0].name][-1]
            self._place[group] = tf.keras.layers.Dense(width, activation="relu", name=f"{group}_place")
        super().build(input_shape)

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.flat_fields(embeddings)
        for group, features in self.groups().items():
            place = tf.concat([embeddings[feature.name] for feature in features], -1)
            vectors.append(masked_mean(self._place[group](place), masks[group]))
        first = tf.concat(vectors, -1)
        crossed = first
        for layer in self._crosses:
            crossed = layer(first, crossed)
        deep = first
        for layer in self._deep:
            deep = layer(deep)
        return tf.concat([crossed, deep], -1)
