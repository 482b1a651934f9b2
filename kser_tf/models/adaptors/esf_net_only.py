"""ESFNetOnly: KSER without its alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers import ESFNet
from kser_tf.layers.catalogue import adapt_esf_net, require_shape
from kser_tf.layers.known_statistics import known_statistics
from kser_tf.models.adaptor import Adaptor, Placement, linear, weighted_sum
from kser_tf.models.config import RankingModelConfig


class ESFNetOnly(Adaptor):
    """ESFNet without the alignment attention: what the attention adds is the difference to `kser`.

    With the weights `w_c` that ESFNet gives an entity's `n` chunks `e_c`,

        vector = W (sum over c of w_c e_c) / n

    The mean is not taken over the weights: what is filtered out leaves less, as in `kser`. ESFNet's hyper-parameters are
    those of `RankingModelConfig`.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"residual"`, which begins by adding nothing, as in `kser`.
        **kwargs: See `Adaptor`.
    """

    def __init__(self, config: RankingModelConfig, *, placement: Placement = "residual", **kwargs: Any) -> None:
        super().__init__(config, placement, **kwargs)
        self.esf_net = ESFNet(
            config.gate_units,
            gate=config.gate,
            top_k=config.top_k,
            sees=config.gate_sees,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="esf_net",
        )

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes ESFNet's weights and `W`."""
        with tf.name_scope(self.esf_net.name):
            self.esf_net.build(chunks_shape=(None, *shape), context_shape=(None, query_width))
        initializer = "zeros" if self.placement == "residual" else "glorot_uniform"
        self._kernel = self.add_kernel("kernel", shape[-1], self.config.embedding_width, initializer=initializer)

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the mapped mean of the weighted chunks: see `Adaptor`."""
        if statistics is None:
            statistics = known_statistics(self.esf_net, chunks, mask)
        weights = self.esf_net.weights_of_checked(chunks, mask, tf.reduce_mean(query, 1), statistics)
        present = tf.reduce_sum(tf.cast(mask, chunks.dtype), [1, 2], keepdims=True)
        return linear(weighted_sum(chunks, weights / tf.maximum(present, 1)), self._kernel)[:, None]

    def adapt(self, store: Any) -> np.ndarray:
        """Tells ESFNet about the catalogue, as `kser_tf.layers.KnowledgeExtractor.adapt` does."""
        self._require_built("adapt")
        require_shape(self.name, self._shape, store)
        return adapt_esf_net(self.esf_net, store)

    def weigh(self, query: Any, chunks: Any, mask: Any = None) -> Any:
        """Returns the chunk weights, `(batch, fields, chunks)`, for a look; the arguments are the call's."""
        return self.esf_net.weigh(chunks, mask, tf.reduce_mean(tf.cast(query, self.compute_dtype), 1))
