"""Training strategies: which part of a model is trained. They set `trainable` on sub-layers and nothing else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kser_tf.layers import AlignmentAttention, ESFNet, KnowledgeExtractor, OutputCorrection

# The parts of a backbone that extractor-only training may train beside the extractor.
BACKBONE_PARTS = ("embedding", "output")
_EXTRACTOR_LAYERS = (OutputCorrection, KnowledgeExtractor, ESFNet, AlignmentAttention)


@dataclass(frozen=True)
class TrainableReport:
    """What of a model is trained.

    Args:
        trained: For each trained weight its name and its number of parameters.
        frozen: Likewise what is not trained.
        compile_again: bool. Whether the model was compiled before `trainable` changed: `fit` ignores the change until it is
            compiled again.
    """

    trained: dict[str, int]
    frozen: dict[str, int]
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
        if self.compile_again:
            lines.append("The model was compiled before: call `compile()` again, with a new optimizer.")
        return "\n".join(lines)


def trainable_report(model: Any) -> TrainableReport:
    """Returns which weights of a built model are trained, by name and number of parameters."""
    trained = {id(weight) for weight in model.trainable_weights}
    parts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for weight in model.weights:
        part = parts[id(weight) in trained]
        name = _unique(getattr(weight, "path", weight.name), part)
        part[name] = math.prod(weight.shape)
    return TrainableReport(parts[True], parts[False])


def all_parameters(model: Any) -> TrainableReport:
    """Trains extractor and backbone together. Compile the model after it.

    Args:
        model: A built model.

    Returns:
        What is trained now.
    """
    _require_built(model)
    _train_everything(model)
    return _changed(model)


def extractor_only(
    model: Any, *, also: Sequence[str] = BACKBONE_PARTS, embedding: Any = None, output: Any = None
) -> TrainableReport:
    """Trains the extractor and, of the backbone, its embedding and output layers; the core stays frozen.

    Frozen layers behave as frozen: BatchNormalization uses and keeps its moving averages. Compile the model after it: Keras
    fixes what is trained in `compile`, and ignores a later change in silence; this function warns of it.

    Args:
        model: A built model with a `KnowledgeExtractor`, or `ESFNet` and `AlignmentAttention`, somewhere in it.
        also: Which parts of the backbone are trained too: `"embedding"` and `"output"`. `()` trains the extractor alone, and
            every weight of the backbone stays bit-identical. Defaults to both.
        embedding: The backbone's embedding layers, one or a list. Defaults to every `tf.keras.layers.Embedding` in the
            model, or, where the model has an attribute `embedding`, that layer.
        output: The backbone's output layers, one or a list. Defaults to the model's attribute `output_layer`.

    Returns:
        What is trained now.

    Raises:
        ValueError: The model is not built, has no extractor, a part to be trained cannot be found, or a layer around a
            trained one has weights of its own, which Keras cannot freeze by themselves.
    """
    unknown = set(also) - set(BACKBONE_PARTS)
    if unknown:
        raise ValueError(f"`also` may name {' and '.join(BACKBONE_PARTS)}. Received: also={tuple(also)}")
    _require_built(model)
    chosen = extractor_layers(model)
    if not chosen:
        raise ValueError(
            "the model has no KnowledgeExtractor, ESFNet or AlignmentAttention: there is no extractor to train."
        )
    if "embedding" in also:
        chosen += _embedding_layers(model, embedding)
    if "output" in also:
        chosen += _output_layers(model, output)

    inside = {id(inner) for layer in chosen for inner in [layer, *_layers_below(layer)]}
    around = {id(layer) for layer in _layers_below(model) if any(id(inner) in inside for inner in _layers_below(layer))}
    for layer in [model, *_layers_below(model)]:
        if (layer is model or id(layer) in around) and id(layer) not in inside and _own_weights(layer):
            names = ", ".join(str(weight.name) for weight in _own_weights(layer))
            raise ValueError(
                f"layer {layer.name!r} holds a layer that is to be trained and weights of its own ({names}), which Keras cannot "
                "freeze by themselves. Move them into a sub-layer."
            )
    # Setting a layer's `trainable` to false sets that of all below it: first everything, then what is to be frozen.
    _train_everything(model)
    for layer in _layers_below(model):
        if id(layer) not in inside and id(layer) not in around:
            layer.trainable = False
    return _changed(model)


def extractor_layers(model: Any) -> list[Any]:
    """Returns the layers of a model that make up the knowledge extractor, those inside one another too."""
    return [layer for layer in _layers_below(model) if isinstance(layer, _EXTRACTOR_LAYERS)]


def _changed(model: Any) -> TrainableReport:
    report = trainable_report(model)
    if not (model._is_compiled if hasattr(model, "_is_compiled") else getattr(model, "compiled", False)):
        return report
    warnings.warn(
        "the model was compiled before its `trainable` changed: call `compile()` again, with a new optimizer, or `fit` trains "
        "what it trained before.",
        stacklevel=3,
    )
    return TrainableReport(report.trained, report.frozen, compile_again=True)


def _train_everything(model: Any) -> None:
    # One by one: a Keras 3 model that was set to what it is already does not hand it down.
    for layer in [model, *_layers_below(model)]:
        layer.trainable = True


def _require_built(model: Any) -> None:
    if not model.built or not model.weights:
        raise ValueError("the model has no weights yet: call it on a batch once, then choose the strategy.")


def _layers_below(layer: Any) -> list[Any]:
    """All layers in `layer`, at any depth, in either Keras."""
    return list(layer._flatten_layers(include_self=False, recursive=True))


def _own_weights(layer: Any) -> list[Any]:
    below = {id(weight) for inner in _layers_below(layer) for weight in inner.weights}
    return [weight for weight in layer.trainable_weights if id(weight) not in below]


def _embedding_layers(model: Any, given: Any) -> list[Any]:
    if given is not None:
        return _listed(given)
    found = [layer for layer in _layers_below(model) if isinstance(layer, tf.keras.layers.Embedding)]
    if isinstance(getattr(model, "embedding", None), tf.keras.layers.Layer):
        found = [model.embedding]
    if not found:
        raise ValueError(
            "no embedding layer was found in the model. Name it: extractor_only(model, embedding=model.<layer>)."
        )
    return found


def _output_layers(model: Any, given: Any) -> list[Any]:
    if given is not None:
        return _listed(given)
    found = getattr(model, "output_layer", None)
    if not isinstance(found, tf.keras.layers.Layer):
        raise ValueError(
            "the model has no attribute `output_layer`. Name it: extractor_only(model, output=model.<layer>)."
        )
    return [found]


def _listed(layers: Any) -> list[Any]:
    return list(layers) if isinstance(layers, list | tuple) else [layers]


def _unique(name: str, taken: dict[str, int]) -> str:
    if name not in taken:
        return name
    return next(f"{name}#{i}" for i in range(2, len(taken) + 2) if f"{name}#{i}" not in taken)
