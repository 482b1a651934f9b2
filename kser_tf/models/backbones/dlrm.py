"""DLRM: dot products of all pairs of fields between a bottom and a top part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_backbone import FieldBackbone


class DLRM(FieldBackbone):
    """Deep Learning Recommendation Model: numbers made into one field by dense layers, then dot products of all fields.

        z = bottom(numeric features)        hidden = top([z, <v_i, v_j> for all i < j]), with z as one of the v

    The dot products are TFRS' `DotInteraction`, the top part is the deep part. The numeric features come as vectors that are
    multiples of learned ones, so the bottom part sees a linear map of them. Without numeric features there is no `z`.

    Args:
        bottom_units: Widths of the bottom part's hidden layers; a layer of the embeddings' width follows them. Defaults to
            `(64,)`. The paper's `(512, 256, 64)` is for 13 numeric features.
        **kwargs: See `FieldBackbone`.

    References:
        - [Naumov et al., Deep Learning Recommendation Model for Personalization and Recommendation Systems,
          2019](https://arxiv.org/abs/1906.00091)
    """

    def __init__(self, *args: Any, bottom_units: Sequence[int] = (64,), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bottom_units = tuple(bottom_units)
        self._numeric = [feature.name for feature in self.schema.features if feature.kind == "numeric"]
        self._bottom: list[Any] = []
        self._dots = tfrs.layers.feature_interaction.DotInteraction(name="dots")
        self._deep = self.deep_layers()

    def build(self, input_shape: Any) -> None:
        if self._numeric:
            units = (*self.bottom_units, input_shape[self._numeric[0]][-1])
            self._bottom = [
                tf.keras.layers.Dense(width, activation="relu", name=f"bottom_{i}") for i, width in enumerate(units)
            ]
        super().build(input_shape)

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.field_vectors(embeddings, masks, ("categorical", "multi", "knowledge"))
        dense = []
        if self._numeric:
            dense = [in_turn(self._bottom, tf.concat([embeddings[name] for name in self._numeric], -1))]
        dots = self._dots([*dense, *vectors])
        return in_turn(self._deep, tf.concat([*dense, dots], -1))
