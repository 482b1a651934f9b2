"""FieldBackbone: a backbone that sees every feature as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import FLAT_KINDS, Backbone, masked_mean
from kser_tf.schema import FieldKind


class FieldBackbone(Backbone):
    """A backbone for papers whose rows are fields: each feature is one vector, all of one width.

    Histories are pooled without regard to the candidate: each place's features through one dense layer (so that an item and
    its rating can meet), then averaged over the places that there are. A group of histories is one field.

    Where a paper adds logits (a linear term, a factorization machine's sum), a subclass returns the terms as further columns
    and the output layer weighs them. For the linear term, in which each value has a weight `w` of its own, these are the
    field vectors themselves: the output layer makes `w = u . v` of a value's embedding `v`, with one `u` a field.

    Args:
        **kwargs: See `Backbone`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place: dict[str, Any] = {}

    def build(self, input_shape: Any) -> None:
        for group, features in self.schema.groups().items():
            width = input_shape[features[0].name][-1]
            self._place[group] = tf.keras.layers.Dense(width, activation="relu", name=f"{group}_place")
        super().build(input_shape)

    def field_count(self) -> int:
        """Returns the number of fields."""
        return sum(feature.kind in FLAT_KINDS for feature in self.schema.features) + len(self.schema.groups())

    def field_vectors(
        self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], kinds: Sequence[FieldKind] = FLAT_KINDS
    ) -> list[Any]:
        """Returns the fields' vectors, each `(batch, width)`: the features in the schema's order, then the histories."""
        vectors = self.flat_fields(embeddings, kinds)
        for group, features in self.schema.groups().items():
            place = tf.concat([embeddings[feature.name] for feature in features], -1)
            vectors.append(masked_mean(self._place[group](place), masks[group]))
        return vectors


def square_matrices(layer: Any, name: str, count: int, width: int) -> Any:
    """Adds a weight `(count, width, width)` to a layer, each of whose matrices starts as Glorot's uniform of its own size.

    Keras' initializer would take the whole for one convolution's kernel, and begin with much smaller numbers.
    """
    limit = math.sqrt(6 / (width + width))
    return layer.add_weight(
        name=name,
        shape=(count, width, width),
        initializer=tf.keras.initializers.RandomUniform(-limit, limit),
    )
