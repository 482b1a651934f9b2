"""AlignmentOnly: KSER without its filter."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kser_tf.layers import AlignmentAttention
from kser_tf.models.adaptor import Adaptor, Placement
from kser_tf.models.config import RankingModelConfig


class AlignmentOnly(Adaptor):
    """The alignment attention without ESFNet: every chunk has weight 1. What ESFNet adds is the difference to `kser`.

    The number of heads is `RankingModelConfig.num_heads`.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"residual"`, which begins by adding nothing, as in `kser`.
        **kwargs: See `Adaptor`.
    """

    def __init__(self, config: RankingModelConfig, *, placement: Placement = "residual", **kwargs: Any) -> None:
        super().__init__(config, placement, **kwargs)
        self.alignment = AlignmentAttention(
            config.num_heads,
            output_initializer="zeros" if placement == "residual" else "glorot_uniform",
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="alignment",
        )

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes those of the attention."""
        with tf.name_scope(self.alignment.name):
            self.alignment.build(query_shape=(None, 1, query_width), chunks_shape=(None, *shape))

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the aligned knowledge: see `Adaptor`."""
        return self.alignment.align_checked(query, chunks, mask, tf.cast(mask, chunks.dtype))
