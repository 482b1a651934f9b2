"""MLP: dense layers over the text vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kser_tf.models.adaptor import Adaptor, Placement, field_means, linear, where_known
from kser_tf.models.config import RankingModelConfig


class MLP(Adaptor):
    """The mean vector of each field, side by side, through dense layers: with ReLU, but for the last, which is linear.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"field"`.
        hidden_units: Widths of the hidden layers. A layer of the embeddings' width follows them. Defaults to `(128,)`.
        **kwargs: See `Adaptor`.
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        placement: Placement = "field",
        hidden_units: Sequence[int] = (128,),
        **kwargs: Any,
    ) -> None:
        super().__init__(config, placement, **kwargs)
        self.hidden_units = tuple(hidden_units)

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes the layers' kernels and biases."""
        fields, _, width = shape
        widths = [fields * width, *self.hidden_units, self.config.embedding_width]
        self._kernels = [self.add_kernel(f"kernel_{i}", *widths[i : i + 2]) for i in range(len(widths) - 1)]
        self._biases = [
            self.add_weight(name=f"bias_{i}", shape=(units,), initializer="zeros") for i, units in enumerate(widths[1:])
        ]

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns what the last layer makes: see `Adaptor`."""
        hidden = field_means(chunks, mask)
        hidden = tf.reshape(hidden, [-1, hidden.shape[1] * hidden.shape[2]])
        *inner, last = zip(self._kernels, self._biases, strict=True)
        for kernel, bias in inner:
            hidden = tf.nn.relu(linear(hidden, kernel, bias))
        return where_known(linear(hidden, *last), mask)[:, None]

    def begin_at_zero(self) -> None:
        """Sets the last layer to 0: see `Adaptor`."""
        for weight in (self._kernels[-1], self._biases[-1]):
            weight.assign(tf.zeros_like(weight))
