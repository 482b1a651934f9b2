"""model_parts: which layers of a model are extractor, embedding, output and core."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kser_tf.layer_paths import find_layer, is_embedding, is_stack, layer_paths
from kser_tf.layers import (
    AlignmentAttention,
    ESFNet,
    HistoryLikeness,
    KnowledgeEmbedding,
    KnowledgeExtractor,
    KnowledgeProfile,
    OutputCorrection,
)
from kser_tf.models.adaptor import Adaptor
from kser_tf.models.user_knowledge import UserKnowledge

EXTRACTOR, EMBEDDING, OUTPUT, CORE = PARTS = ("extractor", "embedding", "output", "core")
_EXTRACTOR_LAYERS = (
    OutputCorrection,
    Adaptor,
    UserKnowledge,
    KnowledgeExtractor,
    ESFNet,
    AlignmentAttention,
    HistoryLikeness,
    KnowledgeProfile,
)
# What the one unit behind everything is called in models that have further layers of one unit, such as an attention's.
_OUTPUT_NAMES = ("output", "outputs", "output_layer", "logit", "logits", "logit_layer", "head", "score", "rating")


@dataclass(frozen=True)
class ModelParts:
    """The layers of a model that a training strategy tells apart, each by its path.

    Args:
        extractor: What aligns knowledge: `KnowledgeExtractor`, or `ESFNet` and `AlignmentAttention`; of a ranking model
            its adaptor, whichever it is.
        embedding: The backbone's embedding layers.
        output: The backbone's output layers.
        core: All other layers of the backbone that have weights of their own, or behave otherwise in training.
    """

    extractor: dict[str, Any]
    embedding: dict[str, Any]
    output: dict[str, Any]
    core: dict[str, Any]

    def __str__(self) -> str:
        parts = ((part, ", ".join(getattr(self, part)) or "none") for part in PARTS)
        return "\n".join(f"{part:<9}  {paths}" for part, paths in parts)


def model_parts(
    model: Any, *, embedding: Any = None, output: Any = None, required: Sequence[str] = (EMBEDDING, OUTPUT)
) -> ModelParts:
    """Finds the parts of a model.

    Embedding layers are `tf.keras.layers.Embedding` and other layers that are called so, or the model's attribute
    `embedding`. The output layer is the model's attribute `output_layer`; of a functional model what its outputs come
    from; else the layer of one unit, where there is one only or one that is named `output`, `logit`, `head`, `score` or
    `rating`.

    Args:
        model: A built model with an extractor somewhere in it.
        embedding: The backbone's embedding layers where they are others: a layer, its path, a pattern over paths
            (`"*_embedding"`, as for file names), or a list of those.
        output: Likewise its output layers.
        required: Parts that have to be found.

    Returns:
        The parts. A layer within another of the same part is not named by itself.

    Raises:
        ValueError: There is no extractor, a required part cannot be told, or a pattern fits no layer.
        LayerPathError: There is no layer at a path that is named.
    """
    paths = layer_paths(model)
    extractor = _topmost({path: layer for path, layer in paths.items() if isinstance(layer, _EXTRACTOR_LAYERS)})
    if not extractor:
        raise ValueError(
            "the model has no KnowledgeExtractor, ESFNet or AlignmentAttention: there is no extractor to train. Attach one "
            "with kser_tf.attach."
        )
    taken = {id(inner) for layer in extractor.values() for inner in with_layers_below(layer)}
    # What holds an extractor for an embedding is called an embedding too, and is none of the backbone.
    around = [layer for layer in paths.values() if isinstance(layer, KnowledgeEmbedding)]
    taken |= {id(inner) for layer in around for inner in with_layers_below(layer)}
    backbone = {path: layer for path, layer in paths.items() if id(layer) not in taken}
    found = {
        EMBEDDING: _embedding_layers(model, backbone, embedding, EMBEDDING in required),
        OUTPUT: _output_layers(model, backbone, output, OUTPUT in required),
    }
    for layers in found.values():
        taken |= {id(inner) for layer in layers.values() for inner in with_layers_below(layer)}
    core = {
        path: layer
        for path, layer in backbone.items()
        if id(layer) not in taken and (own_weights(layer) or is_noise(layer))
    }
    return ModelParts(extractor, found[EMBEDDING], found[OUTPUT], core)


def extractor_layers(model: Any) -> list[Any]:
    """Returns the layers of a model that make up the knowledge extractor, those inside one another too."""
    return [layer for layer in with_layers_below(model) if isinstance(layer, _EXTRACTOR_LAYERS)]


def with_layers_below(layer: Any) -> Iterator[Any]:
    """Yields a layer and all layers in it, at any depth, in either Keras."""
    return iter(layer._flatten_layers(include_self=True, recursive=True))


def own_weights(layer: Any) -> list[Any]:
    """Returns the weights that a layer has beside those of the layers in it."""
    below = {id(weight) for inner in with_layers_below(layer) if inner is not layer for weight in inner.weights}
    return [weight for weight in layer.weights if id(weight) not in below]


def is_noise(layer: Any) -> bool:
    """Says whether a layer without weights draws at random in training: dropout, and noise."""
    return not layer.weights and any(
        base.__name__.endswith("Dropout") or base.__name__.startswith("Gaussian") for base in type(layer).__mro__
    )


def _embedding_layers(model: Any, backbone: dict[str, Any], given: Any, required: bool) -> dict[str, Any]:
    if given is not None:
        return _named("embedding", model, backbone, given)
    if isinstance(getattr(model, "embedding", None), tf.keras.layers.Layer):
        return {"embedding": model.embedding}
    found = _topmost({path: layer for path, layer in backbone.items() if is_embedding(layer)})
    if not found and required:
        raise ValueError(
            "no embedding layer was found in the model. Name it, such as extractor_only(model, embedding='movie_model'), or "
            f'leave "embedding" out of `also`. The model\'s layers: {_listed(backbone)}.'
        )
    return found


def _output_layers(model: Any, backbone: dict[str, Any], given: Any, required: bool) -> dict[str, Any]:
    if given is not None:
        return _named("output", model, backbone, given)
    if isinstance(getattr(model, "output_layer", None), tf.keras.layers.Layer):
        return {"output_layer": model.output_layer}
    if is_stack(model):
        ends = {id(tensor._keras_history[0]) for tensor in tf.nest.flatten(model.outputs)}
        found = {path: layer for path, layer in backbone.items() if id(layer) in ends and layer.weights}
        if found:
            return found
    single = {path: layer for path, layer in backbone.items() if getattr(layer, "units", None) == 1 and layer.weights}
    named = {path: layer for path, layer in single.items() if _is_output_name(path) or _is_output_name(layer.name)}
    for choice in (single, named):
        if len(choice) == 1:
            return choice
    if not required:
        return {}
    what = f"several may be it: {_listed(single)}" if single else f"none has one unit. Its layers: {_listed(backbone)}"
    example = next(iter(single or backbone), "rating_model")
    raise ValueError(
        f"the model's output layer cannot be told; {what}. Name it, such as extractor_only(model, output={example!r}), or "
        'leave "output" out of `also`.'
    )


def _is_output_name(path: str) -> bool:
    return path.rpartition(".")[2].strip("_") in _OUTPUT_NAMES


def _named(part: str, model: Any, backbone: dict[str, Any], given: Any) -> dict[str, Any]:
    """The layers that a user named: by themselves, by paths or by patterns."""
    found: dict[str, Any] = {}
    for one in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(one, str):
            path = next((path for path, layer in backbone.items() if layer is one), None)
            if path is None:
                raise ValueError(f"`{part}`: {one!r} is no layer of the model's backbone.")
            found[path] = one
        elif any(sign in one for sign in "*?["):
            fitting = {path: layer for path, layer in backbone.items() if fnmatch.fnmatchcase(path, one)}
            if not fitting:
                raise ValueError(
                    f"`{part}`: no layer fits the pattern {one!r}. The model's layers: {_listed(backbone)}."
                )
            found |= fitting
        else:
            found[one] = find_layer(model, one)
    return _topmost(found)


def _topmost(layers: dict[str, Any]) -> dict[str, Any]:
    """Those of `layers` that are in none of the others."""
    below = {id(inner) for layer in layers.values() for inner in with_layers_below(layer) if inner is not layer}
    return {path: layer for path, layer in layers.items() if id(layer) not in below}


def _listed(paths: Any) -> str:
    return ", ".join(repr(path) for path in paths) or "none"
