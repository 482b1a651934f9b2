"""A matrix of models to train: the order of its variants, and how each model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kser_tf.errors import ConfigError
from kser_tf.pipelines.config import from_mapping

if TYPE_CHECKING:
    from kser_tf.pipelines.train import TrainConfig

# As `shuffle_knowledge`: each seed has its own shuffle. What one shuffle happens to give to a few cold items is chance.
BY_SEED = "seed"


def merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mappings laid over each other, the last on top; nested mappings are laid over each other too."""
    result: dict[str, Any] = {}
    for layer in settings:
        for key, value in layer.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def bases_first(variants: Sequence[str], base_of: Mapping[str, str]) -> list[str]:
    """Returns the variants such that each comes after the one that it starts from, and otherwise in their order.

    Raises:
        ConfigError: A variant starts, over others or at once, from itself.
    """
    ordered: dict[str, None] = {}

    def add(variant: str, above: tuple[str, ...]) -> None:
        if variant in above:
            raise ConfigError(
                f"`variants`: {' starts from '.join([*above, variant])}. One of them must stand on its own."
            )
        if base_of.get(variant) in variants:
            add(base_of[variant], (*above, variant))
        ordered[variant] = None

    for variant in variants:
        add(variant, ())
    return list(ordered)


def training_config(
    *settings: Mapping[str, Any],
    backbone: str,
    seed: int,
    prepared: str,
    output: str,
    stores: Mapping[str, str],
    base: str | None,
    source: str,
) -> TrainConfig:
    """Returns how one model of a matrix is trained.

    Args:
        *settings: Keys of `TrainConfig`, the later over the earlier; `shuffle_knowledge` may be `seed`.
        backbone: Its name.
        seed: Of initial weights and order of examples, and of the shuffle if each seed has its own.
        prepared: Folder of the examples.
        output: Folder of the model.
        stores: For each kind of entity its knowledge store; not used by strategy base.
        base: Folder of the model that extractor_only starts from; not used by the other strategies.
        source: Where the settings come from, for messages.

    Raises:
        ConfigError: As `from_mapping`.
    """
    from kser_tf.pipelines.train import TrainConfig

    values = merged(*settings, {"model": {"backbone": backbone}})
    values |= {"prepared": prepared, "output": output, "seed": seed}
    strategy = values.get("strategy", "base")
    if strategy != "base":
        values["stores"] = dict(stores)
    if strategy == "extractor_only":
        values["base"] = base
    if values.get("shuffle_knowledge") == BY_SEED:
        values["shuffle_knowledge"] = seed
    return from_mapping(TrainConfig, values, source=source)
