"""Optimizers that train each part of a model at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kser_tf.model_parts import EMBEDDING, OUTPUT, PARTS, model_parts, with_layers_below


def learning_rates(
    optimizer: Any,
    model: Any,
    *,
    extractor: float = 1.0,
    embedding: float = 1.0,
    output: float = 1.0,
    core: float = 1.0,
    layers: Mapping[str, Any] | None = None,
) -> Any:
    """Has an optimizer train the parts of a model at learning rates of their own.

    The rate of each weight is the optimizer's own, whatever schedule or callback sets it, times the multiplier of its part.
    Everything else is the optimizer's: slots, weight decay, clipping, loss scaling, distribution.

    Multipliers are not saved with the optimizer: call this again after loading a model with `load_model`, before `fit`.

    Args:
        optimizer: A `tf.keras.optimizers.Optimizer` of the Keras that is active (not a legacy one), not used before.
        model: A built model with an extractor.
        extractor: float. What the rate of the extractor's weights is multiplied with. Defaults to 1.
        embedding: float. Likewise for the backbone's embedding layers.
        output: float. Likewise for its output layers.
        core: float. Likewise for its core.
        layers: For `"embedding"` and `"output"` the layers of that part, as `extractor_only` takes them. Defaults to what is
            found.

    Returns:
        The optimizer.

    Raises:
        ValueError: A multiplier is below 0, a part that it is for cannot be told, or the optimizer is a legacy one, which
            has no rate for each weight.

    Example:

    >>> optimizer = kser_tf.learning_rates(tf.keras.optimizers.Adam(1e-3), model, extractor=5.0, embedding=0.2)
    >>> model.compile(optimizer=optimizer)
    """
    multipliers = dict(zip(PARTS, (extractor, embedding, output, core), strict=True))
    for part, multiplier in multipliers.items():
        if not multiplier >= 0:
            raise ValueError(f"`{part}` must be at least 0. Received: {multiplier}")
    if unknown := set(layers or {}) - {EMBEDDING, OUTPUT}:
        raise ValueError(f"`layers` names those of {EMBEDDING} and {OUTPUT}. Received: {', '.join(sorted(unknown))}")
    if not hasattr(optimizer, "update_step") or not hasattr(optimizer, "_var_key"):
        raise ValueError(
            f"{type(optimizer).__module__}.{type(optimizer).__name__} has no learning rate for each weight. Take one of "
            "tf.keras.optimizers."
        )
    required = [part for part, multiplier in multipliers.items() if multiplier != 1]
    parts = model_parts(model, **dict(layers or {}), required=required)
    by_weight = {
        optimizer._var_key(weight): multipliers[part]
        for part in reversed(PARTS)  # the extractor last: a ranking model's embedding layer holds it
        for layer in getattr(parts, part).values()
        for inner in with_layers_below(layer)
        for weight in inner.trainable_weights
    }
    kind = type(optimizer)
    if not issubclass(kind, _PerWeight):
        # Of the same name, so that it is saved and loaded as what it was.
        optimizer.__class__ = type(kind.__name__, (_PerWeight, kind), {"__module__": kind.__module__})
    optimizer._kser_tf_multipliers = _Hidden(by_weight)
    return optimizer


class _PerWeight:
    """Goes before an optimizer's class: multiplies its learning rate, weight by weight."""

    _kser_tf_multipliers: Any
    _kser_tf_multiplier: float = 1.0

    def update_step(self, gradient: Any, variable: Any, *learning_rate: Any) -> Any:
        multiplier = self._kser_tf_multipliers.value.get(self._var_key(variable), 1.0)  # type: ignore[attr-defined]
        if learning_rate:  # Keras 3 hands it in
            return super().update_step(gradient, variable, learning_rate[0] * multiplier)  # type: ignore[misc]
        self._kser_tf_multiplier = multiplier  # Keras 2 reads the property below
        try:
            return super().update_step(gradient, variable)  # type: ignore[misc]
        finally:
            self._kser_tf_multiplier = 1.0

    @property
    def learning_rate(self) -> Any:
        rate = super().learning_rate  # type: ignore[misc]
        return rate if self._kser_tf_multiplier == 1.0 else rate * self._kser_tf_multiplier

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        super(_PerWeight, type(self)).learning_rate.fset(self, value)  # type: ignore[misc]


class _Hidden:
    """Hides a value from an optimizer's tracking."""

    __slots__ = ("value",)

    def __init__(self, value: Mapping[Any, float]) -> None:
        self.value = value
