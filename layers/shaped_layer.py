"""Building from the shapes of several call arguments, alike in Keras 2 and Keras 3."""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf


class ShapedLayer(tf.keras.layers.Layer):
    """A layer whose weights depend on the shapes of more than its first argument.

    Keras 2 hands `build` the first argument's shape alone, Keras 3 hands it those whose names it finds in `build`'s signature. This
    base finds the shapes itself, before Keras would, and remembers them for loading. Subclasses name the arguments of `call` in
    `shaped_arguments` and write `build(self, <argument>_shape, ...)`, with `None` for an argument that was not given.
    """

    shaped_arguments: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.built:
            given = inspect.signature(self.call).bind_partial(*args, **kwargs).arguments
            shapes = {name: _shape(given.get(name)) for name in self.shaped_arguments}
            self._build_from(shapes)
        return super().__call__(*args, **kwargs)

    def _build_from(self, shapes: dict[str, tuple[int | None, ...] | None]) -> None:
        with tf.name_scope(self.name):
            self.build(**{f"{name}_shape": shape for name, shape in shapes.items()})
        self._built_from = {name: None if shape is None else list(shape) for name, shape in shapes.items()}
        self.built = True

    def get_build_config(self) -> dict[str, Any]:
        return (
            {"shapes": {name: shape and list(shape) for name, shape in self._built_from.items()}} if self.built else {}
        )

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config:
            self._build_from({name: shape and tuple(shape) for name, shape in config["shapes"].items()})

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        # What comes out is no sequence any more.
        return None


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """The static shape of a tensor, KerasTensor or array, its first dimension unknown."""
    if value is None:
        return None
    shape = value.shape if hasattr(value, "shape") else tf.convert_to_tensor(value).shape
    return (None, *tuple(shape)[1:])
