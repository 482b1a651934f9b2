"""What a backbone is: the core of a ranking model, between the embeddings and the output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.schema import DatasetSchema, FieldKind

FLAT_KINDS: tuple[FieldKind, ...] = ("categorical", "multi", "numeric", "knowledge")


class Backbone(tf.keras.layers.Layer):
    """The core of a ranking model. One subclass, in one module of `kser_tf.models.backbones`, is one backbone.

    A subclass writes `call(self, embeddings, masks, training=None)`, which gets every feature's embedding and returns the
    last hidden representation, `(batch, units)`; the ranking model puts the output layer after it.

    Args:
        schema: The prepared data set's columns; and behind them, where an adaptor makes further fields of the candidate's
            knowledge, these, of the kind `"knowledge"`.
        hidden_units: Widths of the deep part's layers. Defaults to `(128, 64)`.
        dropout: float. Dropout after each of them. Defaults to `0.0`.

    Call arguments:
        embeddings: For each feature `(batch, width)`, for sequence features `(batch, length, width)`.
        masks: For each group of sequence features `(batch, length)` bool, true where there is a value.
    """

    # Whether knowledge may come in fields of any width: for backbones that put all flat fields side by side.
    any_width = False

    title: str
    """The name that people read. Defaults to the class's name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.title = cls.__dict__.get("title", cls.__name__)

    def __init__(
        self, schema: DatasetSchema, *, hidden_units: Sequence[int] = (128, 64), dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.schema = schema
        self.hidden_units = tuple(hidden_units)
        self.dropout = dropout

    def deep_layers(self) -> list[Any]:
        """Returns the deep part: dense layers with ReLU, each followed by dropout if there is any."""
        layers = []
        for units in self.hidden_units:
            layers.append(tf.keras.layers.Dense(units, activation="relu"))
            if self.dropout:
                layers.append(tf.keras.layers.Dropout(self.dropout))
        return layers

    def flat_fields(self, embeddings: Mapping[str, Any], kinds: Sequence[FieldKind] = FLAT_KINDS) -> list[Any]:
        """Returns the embeddings of all features of some kinds, in the schema's order: of all but the sequences."""
        return [embeddings[feature.name] for feature in self.schema.features if feature.kind in kinds]


def in_turn(layers: Sequence[Any], inputs: Any) -> Any:
    """Returns what the last of `layers` makes, each having been given what the one before it made."""
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def crossed(layers: Sequence[Any], first: Any) -> Any:
    """Returns what the last of some cross layers makes: each takes `first` and what the one before it made."""
    made = first
    for layer in layers:
        made = layer(first, made)
    return made


def masked_mean(sequence: Any, mask: Any) -> Any:
    """Returns the mean of `(batch, length, width)` over the places where `mask` is true; 0 where there is none."""
    present = tf.cast(mask, sequence.dtype)[..., None]
    return tf.reduce_sum(sequence * present, 1) / tf.maximum(tf.reduce_sum(present, 1), 1)


def masked_softmax(score: Any, mask: Any) -> Any:
    """Returns the softmax of `(batch, length)` over the places where `mask` is true, and 0 elsewhere."""
    weights = tf.nn.softmax(tf.where(mask, score, tf.fill(tf.shape(score), score.dtype.min)))
    return tf.where(mask, weights, tf.zeros_like(weights))
