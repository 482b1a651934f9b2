"""What Keras has compiled and traced of a model: whether it has, and having it forget."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf

from kser_tf.layer_paths import layer_paths

_COMPILED = ("_is_compiled", "compiled")  # Keras 2, Keras 3
_TRACED = ("train_function", "test_function", "predict_function", "train_tf_function")


def is_compiled(model: Any) -> bool:
    """Says whether `compile()` was called, and nothing since that takes it back."""
    return any(bool(vars(model).get(name)) for name in _COMPILED)


def no_longer_compiled(model: Any) -> None:
    """Has `fit` say that the model must be compiled: its optimizer knows other weights than are to be trained."""
    for name in _COMPILED:
        if name in vars(model):
            setattr(model, name, False)
    model.train_function = None


def forget_traces(model: Any, *, compiled: bool = True) -> None:
    """Has a model, and all models in it, forget what was traced: all of that knows only the layers of before.

    Args:
        model: A Keras model.
        compiled: bool. Whether they forget as well that they were compiled. Defaults to `True`.
    """
    for layer in [model, *layer_paths(model).values()]:
        if isinstance(layer, tf.keras.Model):
            for name in _TRACED:
                if getattr(layer, name, None) is not None:
                    setattr(layer, name, None)
            if compiled:
                no_longer_compiled(layer)
        _forget_functions(layer)


def _forget_functions(layer: Any) -> None:
    for base in type(layer).__mro__:
        for value in vars(base).values():
            if isinstance(value, tf.types.experimental.PolymorphicFunction):
                # A method under `@tf.function`: what it has traced for this layer is kept here, and nowhere else.
                value._descriptor_cache.pop(layer, None)
    for name, value in vars(layer).items():
        if isinstance(value, tf.types.experimental.PolymorphicFunction) and value.experimental_get_tracing_count():
            warnings.warn(
                f"`{name}` of {layer.name!r} is a tf.function that was traced before: it goes on doing what it did. Make it "
                "anew after attaching or detaching.",
                stacklevel=5,
            )
