"""FiBiNET: bilinear products of fields, once as they are and once weighed by their importance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from kser_tf.models.backbone import in_turn
from kser_tf.models.field_backbone import FieldBackbone, square_matrices

Bilinear = Literal["all", "each", "interaction"]


class FiBiNET(FieldBackbone):
    """Feature Importance and Bilinear feature Interaction Network.

    SENET weighs each field by what the row's fields are on the whole, with the means `z` of the field vectors' numbers,

        a = relu(W_2 relu(W_1 z))        v_i = a_i e_i

    and each pair of fields i < j gives the vector `(e_i W) * e_j`, and likewise, with other matrices, `(v_i W) * v_j`. The
    matrix is the same for all pairs (`"all"`), one for each first field (`"each"`) or one for each pair (`"interaction"`). All
    pairs' vectors are the deep part's input. The field vectors go to the output layer beside it: the linear term, see
    `FieldBackbone`.

    Args:
        bilinear: `"all"`, `"each"` or `"interaction"`. Defaults to `"interaction"`.
        reduction: int. How many times fewer numbers SENET's hidden layer has than there are fields. Defaults to `3`.
        **kwargs: See `FieldBackbone`.

    Raises:
        ValueError: `bilinear` or `reduction` is none of these, or there are fewer than two fields.

    References:
        - [Huang et al., FiBiNET: Combining Feature Importance and Bilinear feature Interaction for Click-Through Rate
          Prediction, 2019](https://arxiv.org/abs/1905.09433)
    """

    def __init__(self, *args: Any, bilinear: Bilinear = "interaction", reduction: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if bilinear not in get_args(Bilinear):
            raise ValueError(f"`bilinear` must be one of {', '.join(get_args(Bilinear))}. Received: {bilinear!r}")
        if reduction < 1:
            raise ValueError(f"`reduction` must be at least 1. Received: {reduction}")
        fields = self.field_count()
        if fields < 2:
            raise ValueError(f"FiBiNET multiplies pairs of fields, and needs at least two. Received: {fields}")
        self._squeezed = tf.keras.layers.Dense(
            max(1, fields // reduction), activation="relu", use_bias=False, name="squeezed"
        )
        self._importance = tf.keras.layers.Dense(fields, activation="relu", use_bias=False, name="importance")
        self._plain = _BilinearPairs(bilinear, name="plain")
        self._weighed = _BilinearPairs(bilinear, name="weighed")
        self._deep = self.deep_layers()

    def call(self, embeddings: Mapping[str, Any], masks: Mapping[str, Any], training: bool | None = None) -> Any:
        vectors = self.field_vectors(embeddings, masks)
        fields = tf.stack(vectors, 1)
        importance = self._importance(self._squeezed(tf.reduce_mean(fields, -1)))
        pairs = [self._plain(fields), self._weighed(fields * importance[..., None])]
        return tf.concat([*vectors, in_turn(self._deep, tf.concat(pairs, -1))], -1)


class _BilinearPairs(tf.keras.layers.Layer):
    """`(v_i W) * v_j` for all i < j, side by side: `(batch, fields, width)` -> `(batch, pairs * width)`."""

    def __init__(self, bilinear: Bilinear, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bilinear = bilinear

    def build(self, input_shape: Any) -> None:
        fields, width = input_shape[1:]
        self._first, self._second = np.triu_indices(fields, 1)
        # The last field is never the first of a pair.
        count = {"all": 1, "each": fields - 1, "interaction": len(self._first)}[self.bilinear]
        self._matrices = square_matrices(self, "matrices", count, width)
        super().build(input_shape)

    def call(self, fields: Any) -> Any:
        if self.bilinear == "interaction":
            turned = tf.einsum("bpd,pde->bpe", tf.gather(fields, self._first, axis=1), self._matrices)
        else:
            firsts = fields[:, :-1]
            if self.bilinear == "each":
                turned = tf.einsum("bfd,fde->bfe", firsts, self._matrices)
            else:
                turned = tf.einsum("bfd,de->bfe", firsts, self._matrices[0])
            turned = tf.gather(turned, self._first, axis=1)
        pairs = turned * tf.gather(fields, self._second, axis=1)
        return tf.reshape(pairs, [-1, pairs.shape[1] * pairs.shape[2]])
