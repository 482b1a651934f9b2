"""Training strategies: which part of a model is trained. They set `trainable` on sub-layers and nothing else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kser_tf.compiled import is_compiled, no_longer_compiled
from kser_tf.model_parts import ModelParts, is_noise, model_parts, own_weights, with_layers_below

# The parts of a backbone that extractor-only training may train beside the extractor.
BACKBONE_PARTS = ("embedding", "output")
# Marks a dropout that a strategy has changed.
_HEEDS = "_kser_tf_heeds_trainable"


@dataclass(frozen=True, repr=False)
class TrainableReport:
    """What of a model is trained.

    Args:
        trained: For each trained weight its name and its number of parameters.
        frozen: Likewise what is not trained.
        parts: What was found to be extractor, embedding, output and core, where a strategy had to find it.
        compile_again: bool. Whether the model was compiled for other weights than are trained now: `fit` then refuses to run
            until `compile()` is called.
    """

    trained: dict[str, int]
    frozen: dict[str, int]
    parts: ModelParts | None = None
    compile_again: bool = False

    @property
    def trained_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(self.trained.values())

    @property
    def total_parameters(self) -> int:
        """Number of all parameters."""
        return self.trained_parameters + sum(self.frozen.values())

    def __str__(self) -> str:
        share = self.trained_parameters / max(self.total_parameters, 1)
        lines = [f"trained: {self.trained_parameters:,} of {self.total_parameters:,} parameters ({share:.1%})"]
        lines += [f"  trained  {count:>12,}  {name}" for name, count in self.trained.items()]
        lines += [f"  frozen   {count:>12,}  {name}" for name, count in self.frozen.items()]
        if self.parts is not None:
            lines += ["parts of the model:", *(f"  {line}" for line in str(self.parts).splitlines())]
        if self.compile_again:
            lines.append("The model was compiled before: call `compile()` again, with a new optimizer.")
        return "\n".join(lines)

    __repr__ = __str__


def trainable_report(model: Any) -> TrainableReport:
    """Prints and returns which weights of a built model are trained, by name and number of parameters."""
    report = _report(model)
    print(report)
    return report


def all_parameters(model: Any) -> TrainableReport:
    """Trains extractor and backbone together. Compile the model after it.

    Args:
        model: A built model.

    Returns:
        What is trained now.
    """
    _require_built(model)
    before = _trained_ids(model)
    _train_everything(model)
    return _changed(model, before)


def extractor_only(
    model: Any, *, also: Sequence[str] = BACKBONE_PARTS, embedding: Any = None, output: Any = None
) -> TrainableReport:
    """Trains the extractor and, of the backbone, its embedding and output layers; the core stays frozen.

    Frozen layers behave as frozen: BatchNormalization uses and keeps its moving averages, and dropout lets everything
    through. Compile the model after it, with a new optimizer: Keras fixes what is trained in `compile`, and would ignore a
    later change in silence. A model that was compiled before is therefore no longer compiled, so that `fit` says so.

    Args:
        model: A built model with an extractor somewhere in it.
        also: Which parts of the backbone are trained too: `"embedding"` and `"output"`. `()` trains the extractor alone, and
            every weight of the backbone stays bit-identical. Defaults to both.
        embedding: The backbone's embedding layers: a layer, its path, a pattern over paths, or a list of those. Defaults to
            what `kser_tf.model_parts.model_parts` finds; the report shows it.
        output: Likewise the backbone's output layers.

    Returns:
        What is trained now.

    Raises:
        ValueError: The model is not built, has no extractor, a part to be trained cannot be told, or a layer around a
            trained one has weights of its own, which Keras cannot freeze by themselves.
        LayerPathError: There is no layer at a path that is named.

    Example:

    >>> kser_tf.extractor_only(model, embedding="*_model", output="rating_model.2")
    """
    unknown = set(also) - set(BACKBONE_PARTS)
    if isinstance(also, str) or unknown:
        raise ValueError(f"`also` may name {' and '.join(BACKBONE_PARTS)}. Received: also={also!r}")
    _require_built(model)
    parts = model_parts(model, embedding=embedding, output=output, required=also)
    chosen = [layer for name in ("extractor", *also) for layer in getattr(parts, name).values()]

    inside = {id(inner) for layer in chosen for inner in with_layers_below(layer)}
    around = {
        id(layer)
        for layer in with_layers_below(model)
        if id(layer) not in inside and any(id(inner) in inside for inner in with_layers_below(layer))
    }
    for layer in with_layers_below(model):
        if id(layer) in around and (own := [weight for weight in own_weights(layer) if weight.trainable]):
            raise ValueError(
                f"layer {layer.name!r} holds a layer that is to be trained and weights of its own "
                f"({', '.join(str(weight.name) for weight in own)}), which Keras cannot freeze by themselves. Move them into "
                "a sub-layer."
            )
    before = _trained_ids(model)
    # Setting a layer's `trainable` to false sets that of all below it: first everything, then what is to be frozen.
    _train_everything(model)
    for layer in with_layers_below(model):
        if id(layer) not in inside and id(layer) not in around:
            layer.trainable = False
            if is_noise(layer):
                _heed_trainable(layer)
    return _changed(model, before, parts)


def _report(model: Any, parts: ModelParts | None = None, compile_again: bool = False) -> TrainableReport:
    trained = _trained_ids(model)
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for weight in model.weights:
        part = counts[id(weight) in trained]
        part[_unique(getattr(weight, "path", weight.name), part)] = math.prod(weight.shape)
    return TrainableReport(counts[True], counts[False], parts, compile_again)


def _trained_ids(model: Any) -> set[int]:
    return {id(weight) for weight in model.trainable_weights}


def _changed(model: Any, before: set[int], parts: ModelParts | None = None) -> TrainableReport:
    if not is_compiled(model) or _trained_ids(model) == before:
        return _report(model, parts)
    no_longer_compiled(model)
    warnings.warn(
        "the model was compiled before other weights were chosen to be trained: call `compile()` again, with a new optimizer. "
        "`fit` refuses to run before.",
        stacklevel=3,
    )
    return _report(model, parts, compile_again=True)


def _train_everything(model: Any) -> None:
    # One by one: a Keras 3 model that was set to what it is already does not hand it down.
    for layer in with_layers_below(model):
        layer.trainable = True


def heeds_trainable(layer: Any) -> bool:
    """Says whether a dropout lets everything through while its `trainable` is false. Keras' own does not look at it."""
    return hasattr(layer, _HEEDS)


def ignore_trainable(layer: Any) -> None:
    """Has a dropout behave as Keras made it."""
    if heeds_trainable(layer):
        delattr(layer, _HEEDS)
        del layer.call


def _heed_trainable(layer: Any) -> None:
    if heeds_trainable(layer):
        return
    setattr(layer, _HEEDS, True)
    call = layer.call

    def heeding(inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return call(inputs, training=training if layer.trainable else False, **kwargs)

    layer.call = heeding


def _require_built(model: Any) -> None:
    if not model.built or not model.weights:
        raise ValueError("the model has no weights yet: call it on a batch once, then choose the strategy.")


def _unique(name: str, taken: dict[str, int]) -> str:
    if name not in taken:
        return name
    return next(f"{name}#{i}" for i in range(2, len(taken) + 2) if f"{name}#{i}" not in taken)
