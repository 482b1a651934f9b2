"""DIN: the history read in the light of the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.models.backbone import Backbone, in_turn, masked_mean, masked_softmax


class DIN(Backbone):
    """Deep Interest Network: each history item counts as much as the candidate makes it matter.

    With the candidate's embedding `c` and, at a place of the history, the item's embedding `h` and its further features `r`
    (a rating), the activation unit is one hidden layer over `[h, r, c, h * c]`,

        a = v . relu(W [h, r, c, h * c] + b)        history vector = sum over places of softmax(a) [h, r]

    and the deep part takes the other features' embeddings and the history vectors. `W` is applied block by block: the
    candidate's block once a row, not once a place. The softmax over the places is the library's choice; the paper leaves
    the weights unnormalised.

    Args:
        attention_units: int. Width of the activation unit. Defaults to `32`.
        **kwargs: See `Backbone`.

    References:
        - [Zhou et al., Deep Interest Network for Click-Through Rate Prediction, 2018](https://arxiv.org/abs/1706.06978)
    """

    any_width = True

    def __init__(self, *args: Any, attention_units: int = 32, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention_units = attention_units
        self._place, self._candidate, self._product, self._score = {}, {}, {}, {}
        for group in self.schema.attended_groups():
            self._place[group] = tf.keras.layers.Dense(attention_units, use_bias=False, name=f"{group}_place")
            self._candidate[group] = tf.keras.layers.Dense(attention_units, name=f"{group}_candidate")
            self._product[group] = tf.keras.layers.Dense(attention_units, use_bias=False, name=f"{group}_product")
            self._score[group] = tf.keras.layers.Dense(1, name=f"{group}_score")
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        candidate = embeddings[self.schema.item_id]
        vectors = self.flat_fields(embeddings)
        for group, features in self.schema.groups().items():
            place = tf.concat([embeddings[feature.name] for feature in features], -1)
            if group not in self._score:
                vectors.append(masked_mean(place, masks[group]))
                continue
            item = embeddings[features[0].name]
            hidden = self._place[group](place) + self._product[group](item * candidate[:, None])
            hidden = tf.nn.relu(hidden + self._candidate[group](candidate)[:, None])
            score = self._score[group](hidden)[..., 0]
            weights = masked_softmax(score, masks[group])
            vectors.append(tf.matmul(weights[:, None], place)[:, 0])
        return in_turn(self._deep, tf.concat(vectors, -1))
