"""DIEN: how the interest that the history tells of evolves towards the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import Backbone, in_turn, masked_mean, masked_softmax


class DIEN(Backbone):
    """Deep Interest Evolution Network: a GRU reads the history, a second one keeps of it what leads to the candidate.

    The history is read from its oldest place to its latest. With a place's features `i_t` side by side and the candidate's
    embedding `c`,

        h_t = GRU(i_t, h_{t-1})                          interest extractor, Keras' GRU
        a_t = softmax over t of h_t W c                  attention
        u_t, r_t, n_t = the gates and the new state of a GRU at h_t, h'_{t-1}
        h'_t = (1 - a_t u_t) h'_{t-1} + a_t u_t n_t      interest evolution, AUGRU

    and the deep part takes the other features' embeddings and the last `h'`. Groups of sequences without items of the
    candidate's vocabulary are averaged.

    With `auxiliary_loss`, training adds so many times the mean over all places with a next one of

        -log sigmoid(h_t . i_{t+1}) - log(1 - sigmoid(h_t . j_{t+1}))

    where `j` is the history of the next row in the batch, a negative sample that depends on the batch alone: a run that is
    resumed draws the same.

    Args:
        auxiliary_loss: float. Weight of the auxiliary loss, in the authors' code 1. Defaults to `0.0`, without.
        **kwargs: See `Backbone`.

    References:
        - [Zhou et al., Deep Interest Evolution Network for Click-Through Rate Prediction,
          2018](https://arxiv.org/abs/1809.03672)
    """

    any_width = True

    def __init__(self, *args: Any, auxiliary_loss: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.auxiliary_loss = auxiliary_loss
        self._interest: dict[str, Any] = {}
        self._relevance: dict[str, Any] = {}
        self._evolution: dict[str, Any] = {}
        self._deep = self.deep_layers()

    def build(self, input_shape: Any) -> None:
        for group in self.schema.attended_groups():
            # The interest is as wide as a place, so that the two can be multiplied in the auxiliary loss.
            width = sum(input_shape[feature.name][-1] for feature in self.schema.groups()[group])
            candidate = input_shape[self.schema.item_id][-1]
            self._interest[group] = tf.keras.layers.GRU(width, return_sequences=True, name=f"{group}_interest")
            self._relevance[group] = tf.keras.layers.Dense(candidate, use_bias=False, name=f"{group}_relevance")
            self._evolution[group] = tf.keras.layers.RNN(_AttentionalGRUCell(width), name=f"{group}_evolution")
        super().build(input_shape)

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        candidate = embeddings[self.schema.item_id]
        vectors = self.flat_fields(embeddings)
        for group, features in self.schema.groups().items():
            place = tf.concat([embeddings[feature.name] for feature in features], -1)
            if group not in self._interest:
                vectors.append(masked_mean(place, masks[group]))
                continue
            # Sequences come with the most recent first; the GRUs want it last.
            place, mask = tf.reverse(place, [1]), tf.reverse(masks[group], [1])
            interest = self._interest[group](place, mask=mask)
            if training and self.auxiliary_loss:
                self.add_loss(self.auxiliary_loss * _auxiliary_loss(interest, place, mask))
            score = tf.linalg.matvec(self._relevance[group](interest), candidate)
            weighted = tf.concat([interest, masked_softmax(score, mask)[..., None]], -1)
            vectors.append(self._evolution[group](weighted, mask=mask))
        return in_turn(self._deep, tf.concat(vectors, -1))


class _AttentionalGRUCell(tf.keras.layers.Layer):
    """A GRU whose update gate is multiplied with the attention, the last number of the inputs (AUGRU)."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state_size = units
        self.output_size = units

    def build(self, input_shape: Any) -> None:
        units = self.state_size
        self._kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1] - 1, 3 * units), initializer="glorot_uniform"
        )
        self._recurrent = self.add_weight(name="recurrent", shape=(units, 3 * units), initializer="orthogonal")
        self._bias = self.add_weight(name="bias", shape=(3 * units,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: Any, states: Any) -> tuple[Any, list[Any]]:
        [before] = states
        attention = inputs[:, -1:]
        from_input = tf.split(tf.matmul(inputs[:, :-1], self._kernel) + self._bias, 3, -1)
        from_state = tf.split(tf.matmul(before, self._recurrent), 3, -1)
        update = attention * tf.sigmoid(from_input[0] + from_state[0])
        reset = tf.sigmoid(from_input[1] + from_state[1])
        new = tf.tanh(from_input[2] + reset * from_state[2])
        after = (1 - update) * before + update * new
        return after, [after]


def _auxiliary_loss(interest: Any, place: Any, mask: Any) -> Any:
    """The loss of telling the next place from that of another row, a mean over the places. Sequences end with the latest."""
    known = mask[:, :-1] & mask[:, 1:]
    # A row that is alone in its batch has no other one.
    other = tf.roll(mask, -1, 0)[:, 1:] & (tf.shape(mask)[0] > 1)
    total = _following_loss(interest, place, known, 1.0) + _following_loss(
        interest, tf.roll(place, -1, 0), known & other, 0.0
    )
    return total / tf.maximum(tf.reduce_sum(tf.cast(known, tf.float32)), 1)


def _following_loss(interest: Any, place: Any, counted: Any, label: float) -> Any:
    """The cross-entropy of "this place follows that interest", summed over the places that are counted."""
    logit = tf.cast(tf.reduce_sum(interest[:, :-1] * place[:, 1:], -1), tf.float32)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.fill(tf.shape(logit), label), logits=logit)
    return tf.reduce_sum(tf.where(counted, loss, tf.zeros_like(loss)))
