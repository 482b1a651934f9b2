"""Hyper-parameters of a ranking model; TensorFlow is not imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RankingModelConfig:
    """Hyper-parameters of a ranking model.

    Args:
        backbone: Name of a module in `kser_tf.models.backbones`, or "package.module:Class".
        backbone_options: The backbone's own hyper-parameters, such as `{cross_layers: 4}`; its class tells them.
        adaptor: What makes of an entity's knowledge what the backbone computes with: name of a module in
            `kser_tf.models.adaptors`, or "package.module:Class".
        adaptor_options: The adaptor's own hyper-parameters, such as `{placement: field}`; its class tells them.
        embedding_width: Width of every feature's embedding.
        embedding_l2: Weight of the L2 penalty on the embedding tables.
        id_dropout: Share of the entities that a training step takes for unknown, so that the model learns what to say of cold
            ones, and the extractor to speak for them.
        hidden_units: Widths of the deep part's layers.
        dropout: Dropout in the deep part.
        num_heads: Heads of the alignment attention; this and what follows is for the adaptors that have it.
        gate_units: Width of ESFNet's hidden layer.
        gate: ESFNet's gate: sigmoid, softmax or top_k.
        top_k: Chunks kept by the gate top_k.
        gate_sees: What ESFNet's gate sees: chunk, neighbours, catalogue, context.
        user_knowledge: Whether the logit is corrected by what the user thought of the items whose knowledge is like the
            candidate's (`UserKnowledge`), and what is alike: `texts`, as they are, or `preferences`, what the training users'
            past shows to be liked together (`adapt_to_preferences`; with few of them `texts` are better). Defaults to `false`.
        backbone_history: How many places of a history the backbone sees, the most recent ones; `UserKnowledge` sees them all.
            Ids are learned from what is recent; what is known of the items is there to be compared, however long ago it was,
            at a small part of the cost. One number for all groups of histories, or by group each its own, 0 for none of it:
            `{first: 0}`. None, and of groups that are not named: all.
        extractor_l2: Weight of the L2 penalty on the adaptor's kernels.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    backbone: str = "din"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    adaptor: str = "kser"
    adaptor_options: dict[str, Any] = field(default_factory=dict)
    embedding_width: int = 32
    embedding_l2: float = 0.0
    id_dropout: float = 0.0
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    num_heads: int = 1
    gate_units: int = 8
    gate: str = "sigmoid"
    top_k: int | None = None
    gate_sees: tuple[str, ...] = ("chunk", "neighbours", "catalogue", "context")
    user_knowledge: Literal[False, "texts", "preferences"] = False
    backbone_history: int | dict[str, int] | None = None
    extractor_l2: float = 0.0
