"""Concat: the text vectors as they are."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kser_tf.models.adaptor import Adaptor, Placement, chunk_mean, linear
from kser_tf.models.config import RankingModelConfig


class Concat(Adaptor):
    """The mean of an entity's chunk vectors, put beside the embeddings without a layer of its own.

    Where the backbone takes fields of any width (its first layer is dense over all of them side by side), the mean goes
    there raw, and that layer is the linear map that it gets. Where all fields must have one width, and as a residual, it
    is `W mean`, one linear map without a bias.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"field"`.
        projected: bool. Whether there is the map `W` also where the backbone takes fields of any width. Defaults to
            `False`.
        **kwargs: See `Adaptor`.
    """

    def __init__(
        self, config: RankingModelConfig, *, placement: Placement = "field", projected: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(config, placement, **kwargs)
        self.projected = projected or placement == "residual" or not self.any_width

    def outputs(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Returns one vector, of the chunks' width where it goes to the backbone raw."""
        return 1, self.config.embedding_width if self.projected else shape[-1]

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes `W`, if there is one."""
        self._kernel: Any = None
        if self.projected:
            self._kernel = self.add_kernel("kernel", shape[-1], self.config.embedding_width)

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the mean, or what the linear map makes of it: see `Adaptor`."""
        mean = chunk_mean(chunks, mask)
        return (mean if self._kernel is None else linear(mean, self._kernel))[:, None]

    def begin_at_zero(self) -> None:
        """Sets `W` to 0: see `Adaptor`."""
        self._kernel.assign(tf.zeros_like(self._kernel))
