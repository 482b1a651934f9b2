"""KSER: ESFNet, then the alignment attention."""

from __future__ import annotations

from typing import Any

from kser_tf import layers
from kser_tf.models.adaptor import Adaptor, Placement
from kser_tf.models.config import RankingModelConfig


class KnowledgeExtractor(layers.KnowledgeExtractor, Adaptor):
    """KSER's extractor, `kser_tf.layers.KnowledgeExtractor`, as an adaptor.

    It is called as the layer is: files of weights name what lies in a model by its class. Its hyper-parameters are those
    of `RankingModelConfig`.

    Args:
        config: See `Adaptor`.
        placement: Defaults to `"residual"`, which begins by adding nothing.
        **kwargs: See `Adaptor`.

    References:
        - [Wang et al., Selection and Exploitation of High-Quality Knowledge from Large Language Models for
          Recommendation, 2025](https://arxiv.org/abs/2508.07223)
    """

    def __init__(self, config: RankingModelConfig, *, placement: Placement = "residual", **kwargs: Any) -> None:
        super().__init__(
            config.num_heads,
            config.gate_units,
            gate=config.gate,
            top_k=config.top_k,
            sees=config.gate_sees,
            output_initializer="zeros" if placement == "residual" else "glorot_uniform",
            config=config,
            placement=placement,
            **kwargs,
        )

    def vectors_of_checked(
        self, query: Any, chunks: Any, mask: Any, *, statistics: Any = None, training: bool = False
    ) -> Any:
        """Returns the aligned knowledge: see `Adaptor`."""
        return self.extract_checked(query, chunks, mask, statistics=statistics)[0]
