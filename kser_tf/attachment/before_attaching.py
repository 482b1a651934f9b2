"""BeforeAttaching: what of a model `attach` and the strategies after it change, and `detach` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kser_tf.compiled import forget_traces
from kser_tf.errors import AttachError
from kser_tf.layers.untracked import Untracked
from kser_tf.model_parts import with_layers_below
from kser_tf.strategies import heeds_trainable, ignore_trainable

_ATTRIBUTE = "_kser_tf_before_attaching"


@dataclass
class BeforeAttaching:
    """How a model was.

    Args:
        layers: The model and all layers in it.
        trainable: Whether each of them was to be trained.
        heeding: Those whose dropout a strategy had switched off with their training.
        sequential: The Sequential model that the model was made from, if it was.
    """

    layers: list[Any]
    trainable: list[bool]
    heeding: list[Any]
    sequential: Any = None


def remember(model: Any, *, sequential: Any = None) -> None:
    """Notes how a model is, unless something is attached to it already."""
    if (noted := before(model)) is not None:
        if noted.sequential is not None:  # its layers are those that are attached to
            forget_traces(noted.sequential)
    else:
        layers = list(with_layers_below(model))
        trainable = [bool(layer.trainable) for layer in layers]
        noted = BeforeAttaching(layers, trainable, [x for x in layers if heeds_trainable(x)], sequential)
        # Past Keras, which would take the layers for others than those of the model.
        object.__setattr__(model, _ATTRIBUTE, Untracked(noted))


def before(model: Any) -> BeforeAttaching | None:
    """Returns how a model was before anything was attached to it; `None` if nothing is."""
    noted = vars(model).get(_ATTRIBUTE)
    return None if noted is None else noted.value


def give_back(model: Any) -> Any:
    """Makes a model that nothing is attached to any more what it was; returns the object that it was."""
    noted = vars(model).pop(_ATTRIBUTE).value
    heeding = {id(layer) for layer in noted.heeding}
    for layer in noted.layers:
        if id(layer) not in heeding:
            ignore_trainable(layer)
    set_trainable(noted.layers, noted.trainable)
    if noted.sequential is None:
        return model
    forget_traces(noted.sequential)
    return noted.sequential


def set_trainable(layers: list[Any], trainable: list[bool]) -> None:
    """Sets which layers are trained. Lists of different lengths are of different models: nothing is set then."""
    if len(layers) != len(trainable):
        return
    # Setting it on a layer sets it on all in it, so what is inside comes out right after what is around it has.
    for _ in layers:
        wrong = [pair for pair in zip(layers, trainable, strict=True) if bool(pair[0].trainable) != pair[1]]
        if not wrong:
            return
        for layer, wanted in wrong:
            layer.trainable = wanted


def functional_of(model: Any) -> Any:
    """Returns the model itself; for a Sequential, which holds nothing but its stack, a functional one of its layers."""
    if not isinstance(model, tf.keras.Sequential):
        return model
    if not model.built:
        raise AttachError(
            "a Sequential model must be built before knowledge can be attached to it: call it on a batch once. (For "
            "mode='append', write it as a subclass of tf.keras.Model, or with kser_tf.layers.KnowledgeEmbedding.)"
        )
    functional = tf.keras.Model(model.inputs, model.outputs[0], name=model.name)
    remember(functional, sequential=model)
    return functional
