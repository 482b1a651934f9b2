"""MoE: a mixture of linear experts behind a principal component analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.catalogue import batches_of, main_directions, require_shape
from kser_tf.models.adaptor import Adaptor, Placement, field_means, linear, where_known
from kser_tf.models.config import RankingModelConfig

# What UniSRec adds to the deviation of the gate's noise.
_LEAST_NOISE = 1e-2
# UniSRec's deviation of the experts' first weights.
_FIRST_DEVIATION = 0.02


class MoE(Adaptor):
    """UniSRec's mixture-of-experts adaptor, with a principal component analysis in front.

    The mean vectors of all fields side by side, `x`, are reduced to their first principal components, which `adapt` finds
    over the catalogue; they are weights that are not trained. Then each expert shifts and maps them (UniSRec's parametric
    whitening), and one gate mixes the experts:

        z = (x - m) P        g = softmax(G z + noise)        vector = sum over k of g_k W_k (dropout(z) - b_k)

    In training, the noise is normally distributed with deviation `softplus(N z) + 0.01`. Noise and dropout are told by the
    batch, so that a run that is resumed draws the same. Until `adapt` was called, `P` takes the first numbers of `x`.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"residual"`, where UniSRec has it.
        experts: int. Defaults to `8`.
        components: int. Principal components; at most as many as `x` has numbers. Defaults to `64`.
        dropout: float. Of the experts' inputs. Defaults to `0.2`.
        noise: bool. Whether the gate is noisy in training. Defaults to `True`.
        **kwargs: See `Adaptor`.

    Raises:
        ValueError: A number is out of its range.

    References:
        - [Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems,
          2022](https://arxiv.org/abs/2206.05941), section 2.1.2
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        placement: Placement = "residual",
        experts: int = 8,
        components: int = 64,
        dropout: float = 0.2,
        noise: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, placement, **kwargs)
        for name, value in (("experts", experts), ("components", components)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1. Received: dropout={dropout}")
        self.experts = experts
        self.components = components
        self.dropout = dropout
        self.noise = noise

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes gate, experts and the principal components."""
        inputs = shape[0] * shape[2]
        components, units = min(self.components, inputs), self.config.embedding_width
        self._center = self.add_weight(name="center", shape=(inputs,), initializer="zeros", trainable=False)
        self._axes = self.add_weight(
            name="axes", shape=(inputs, components), initializer=tf.keras.initializers.Identity(), trainable=False
        )
        self._gate = self.add_kernel("gate", components, self.experts, initializer="zeros")
        self._noise: Any = None
        if self.noise:
            self._noise = self.add_kernel("noise", components, self.experts, initializer="zeros")
        self._shift = self.add_weight(name="shift", shape=(self.experts, components), initializer="zeros")
        self._kernel = self.add_kernel(
            "kernel",
            self.experts,
            components,
            units,
            initializer=tf.keras.initializers.RandomNormal(0, _FIRST_DEVIATION),
        )

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the mixture: see `Adaptor`."""
        means = field_means(chunks, mask)
        x = tf.reshape(means, [-1, means.shape[1] * means.shape[2]])
        z = linear(x - tf.cast(self._center, x.dtype), self._axes)
        score = linear(z, self._gate)
        inputs = z[:, None]
        if training:
            drawn_by = tf.reduce_sum(tf.bitcast(tf.cast(z, tf.float32), tf.int32))
            if self._noise is not None:
                deviation = tf.nn.softplus(linear(z, self._noise)) + _LEAST_NOISE
                score += deviation * tf.random.stateless_normal(tf.shape(score), [drawn_by, 0], dtype=score.dtype)
            if self.dropout:
                inputs = tf.repeat(inputs, self.experts, axis=1)
                kept = tf.random.stateless_uniform(tf.shape(inputs), [drawn_by, 1]) >= self.dropout
                inputs = tf.where(kept, inputs / (1 - self.dropout), tf.zeros_like(inputs))
        inputs -= tf.cast(self._shift, z.dtype)
        told = tf.einsum("bec,ecu->beu", inputs, tf.cast(self._kernel, z.dtype))
        mixed = tf.einsum("be,beu->bu", tf.nn.softmax(score), told)
        return where_known(mixed, mask)[:, None]

    def adapt(self, store: Any) -> None:
        """Finds the principal components of all entities of which there is a chunk. Reads the store once."""
        self._require_built("adapt")
        require_shape(self.name, self._shape, store)
        inputs, components = self._axes.shape
        count, total, products = 0, np.zeros(inputs), np.zeros((inputs, inputs))
        for chunks, mask in batches_of(store):
            known = mask.any((1, 2))
            x = field_means(tf.constant(chunks[known]), tf.constant(mask[known])).numpy().astype(np.float64)
            x = x.reshape(len(x), inputs)
            count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
        if not count:
            return
        mean = total / count
        self._center.assign(mean)
        self._axes.assign(main_directions(products / count - np.outer(mean, mean), components))

    def begin_at_zero(self) -> None:
        """Sets the experts' maps to 0, and the gate to tell them apart in their place: see `Adaptor`."""
        self._kernel.assign(tf.zeros_like(self._kernel))
        self._gate.assign(tf.random.normal(self._gate.shape, stddev=_FIRST_DEVIATION))
