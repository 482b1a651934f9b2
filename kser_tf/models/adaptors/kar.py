"""KAR: the hybrid-expert adaptor of KAR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kser_tf.models.adaptor import Adaptor, Placement, field_means, linear
from kser_tf.models.config import RankingModelConfig


class KAR(Adaptor):
    """KAR's hybrid-expert adaptor: for each field of knowledge a mixture of experts, some of them shared by all fields.

    With the mean `x_f` of field `f`'s chunks, experts `E` (dense layers, each with ReLU, the last one too) and one gate a
    field,

        g_f = softmax(G_f x_f + b_f)        vector_f = sum over k of g_fk E_k(x_f)

    over the shared experts and the field's own. It sees the text alone, not the recommender's features. The vectors of all
    fields go to the backbone as further fields; as a residual they go side by side through one linear map. A field of which
    an entity has no chunk gives 0.

    Weights begin uniform in `+- 1 / sqrt(inputs)`, as in the authors' code, which leaves them to PyTorch.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"field"`.
        shared_experts: int. Defaults to `2`.
        own_experts: int. Of each field. Defaults to `5`.
        hidden_units: Widths of an expert's hidden layers. A layer of the embeddings' width (in the paper 32) follows them.
            Defaults to `(128,)`.
        **kwargs: See `Adaptor`.

    Raises:
        ValueError: There is no expert.

    References:
        - [Xi et al., Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models,
          2024](https://arxiv.org/abs/2306.10933), section 3.3
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        placement: Placement = "field",
        shared_experts: int = 2,
        own_experts: int = 5,
        hidden_units: Sequence[int] = (128,),
        **kwargs: Any,
    ) -> None:
        super().__init__(config, placement, **kwargs)
        if shared_experts < 0 or own_experts < 0 or not shared_experts + own_experts:
            raise ValueError(
                f"KAR needs at least one expert. Received: shared_experts={shared_experts}, own_experts={own_experts}"
            )
        self.shared_experts = shared_experts
        self.own_experts = own_experts
        self.hidden_units = tuple(hidden_units)

    def outputs(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Returns one vector for each field, or one for all as a residual."""
        return 1 if self.placement == "residual" else shape[0], self.config.embedding_width

    def make_weights(self, query_width: int, shape: tuple[int, int, int]) -> None:
        """Makes gates and experts; `_experts[0]` are the shared ones, then come those of each field."""
        fields, _, width = shape
        experts = self.shared_experts + self.own_experts
        self._gates = [self._dense(f"gate_{field}", width, experts) for field in range(fields)]
        self._experts = [self._expert_layers("shared", self.shared_experts, width)]
        self._experts += [self._expert_layers(f"own_{field}", self.own_experts, width) for field in range(fields)]
        self._kernel: Any = None
        if self.placement == "residual":
            self._kernel = self.add_kernel("kernel", fields * self.config.embedding_width, self.config.embedding_width)

    def _expert_layers(self, name: str, experts: int, inputs: int) -> list[tuple[Any, Any]]:
        """The layers of some experts, each as kernels `(experts, inputs, units)` and biases `(experts, 1, units)`."""
        layers = []
        for number, units in enumerate((*self.hidden_units, self.config.embedding_width) if experts else ()):
            layers.append(self._dense(f"{name}_{number}", inputs, units, experts))
            inputs = units
        return layers

    def _dense(self, name: str, inputs: int, units: int, experts: int | None = None) -> tuple[Any, Any]:
        limit = 1 / math.sqrt(inputs)
        # One for each weight: an initializer that is used twice may give the same numbers twice.
        kernel, bias = (tf.keras.initializers.RandomUniform(-limit, limit) for _ in range(2))
        several = () if experts is None else (experts,)
        return (
            self.add_kernel(f"{name}_kernel", *several, inputs, units, initializer=kernel),
            self.add_weight(name=f"{name}_bias", shape=(*several, *(1 for _ in several), units), initializer=bias),
        )

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the mixed vectors: see `Adaptor`."""
        means = tf.unstack(field_means(chunks, mask), axis=1)
        mixed = []
        for field, (mean, gate) in enumerate(zip(means, self._gates, strict=True)):
            weights = tf.nn.softmax(linear(mean, *gate))
            # (experts, batch, units): one product for all experts of a kind.
            told = [_told(layers, mean) for layers in (self._experts[0], self._experts[1 + field]) if layers]
            mixed.append(tf.einsum("be,ebu->bu", weights, tf.concat(told, 0)))
        vectors = tf.stack(mixed, 1)
        vectors = tf.where(tf.reduce_any(mask, 2)[..., None], vectors, tf.zeros_like(vectors))
        if self._kernel is None:
            return vectors
        return linear(tf.reshape(vectors, [-1, self._kernel.shape[0]]), self._kernel)[:, None]

    def begin_at_zero(self) -> None:
        """Sets the linear map of a residual to 0: see `Adaptor`."""
        self._kernel.assign(tf.zeros_like(self._kernel))


def _told(layers: list[tuple[Any, Any]], values: Any) -> Any:
    """What experts make of `(batch, inputs)`: `(experts, batch, units)`."""
    for kernel, bias in layers:
        values = tf.nn.relu(linear(values, kernel, bias))
    return values
