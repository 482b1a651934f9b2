"""Building from the shapes of several call arguments, alike in Keras 2 and Keras 3."""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf


class ShapedLayer(tf.keras.layers.Layer):
    """A layer whose weights depend on the shapes of more than its first argument.

    Keras 2 hands `build` the first argument's shape alone, Keras 3 hands it those whose names it finds in `build`'s
    signature. This base finds the shapes itself, before Keras would, and remembers them for loading. Subclasses name
    the arguments of `call` in `shaped_arguments`, write `build(self, <argument>_shape, ...)`, with `None` for an
    argument that was not given, and end it with `_remember_shapes`.
    """

    shaped_arguments: tuple[str, ...] = ()
    _call_arguments: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._call_arguments = tuple(inspect.signature(cls.call).parameters)[1:]  # without `self`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._call_arguments, args, strict=False)) | kwargs
        if not self.built:
            shapes = {f"{name}_shape": _shape(given.get(name)) for name in self.shaped_arguments}
            with tf.name_scope(self.name):
                self.build(**shapes)
        if "mask" not in given and self._call_arguments[0] != "chunks":
            # `mask` is that of the chunks; Keras 2 would fill in the one that the first argument carries.
            kwargs["mask"] = None
        return super().__call__(*args, **kwargs)

    def _remember_shapes(self, **shapes: Any) -> None:
        """Ends `build`. Takes the shapes by the names in `shaped_arguments`."""
        self._built_from = shapes
        self.built = True

    def _require_built(self, method: str) -> None:
        if not self.built:
            raise ValueError(
                f"{self.name}: `{method}` needs a built layer. Call the layer, or its `build` with the shapes, before."
            )

    def get_build_config(self) -> dict[str, Any]:
        if not self.built:
            return {}
        return {"shapes": {name: shape and [*shape] for name, shape in self._built_from.items()}}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config and not self.built:
            self.build(**{f"{name}_shape": shape and tuple(shape) for name, shape in config["shapes"].items()})

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        # Keras would hand on the chunks' mask as that of the output, which has other dimensions.
        return None


def checked_chunks(chunks: Any, mask: Any, shape: tuple[int, int, int], dtype: Any) -> tuple[Any, Any]:
    """Checks chunks and their mask, and clears the masked ones.

    A masked chunk may hold anything, NaN too. It is replaced before it meets a weight: so its gradient is 0, and the
    weight's is not NaN.

    Args:
        chunks: `(batch, fields, chunks, width)`.
        mask: `(batch, fields, chunks)`, or `None`: then it is the Keras mask of the chunks, or else all true.
        shape: `(fields, chunks, width)`, as built.
        dtype: What the chunks are cast to.

    Returns:
        The chunks, zero where masked, and the mask, bool.

    Raises:
        ValueError: The shapes are others.
    """
    if mask is None:
        mask = getattr(chunks, "_keras_mask", None)
    chunks = tf.cast(with_shape("chunks", chunks, shape), dtype)
    if mask is None:
        return chunks, tf.ones(tf.shape(chunks)[:-1], tf.bool)
    mask = tf.cast(with_shape("mask", mask, shape[:-1]), tf.bool)
    return tf.where(mask[..., None], chunks, tf.zeros_like(chunks)), mask


def cloned(initializer: Any) -> Any:
    """Returns a fresh initializer of the same kind: one that is used twice may give the same numbers twice."""
    initializer = tf.keras.initializers.get(initializer)
    if not isinstance(initializer, tf.keras.initializers.Initializer):
        return initializer
    return initializer.__class__.from_config(initializer.get_config())


def with_shape(name: str, value: Any, shape: tuple[int | None, ...]) -> Any:
    """Returns the call argument `name` as a tensor of shape `(batch, *shape)`, `None` being any size.

    Raises:
        ValueError: It has another shape. (An `InvalidArgumentError` later, where the shape is not known before.)
    """
    tensor = tf.convert_to_tensor(value)
    wanted = tf.TensorShape((None, *shape))
    if not wanted.is_compatible_with(tensor.shape):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"`{name}` must have shape (batch, {sizes}), as the layer was built. Received: shape={tensor.shape}"
        )
    return tensor if tensor.shape.rank and tensor.shape[1:].is_fully_defined() else tf.ensure_shape(tensor, wanted)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """The static shape of a tensor, KerasTensor or array, its first dimension unknown."""
    if value is None:
        return None
    shape = value.shape if hasattr(value, "shape") else tf.convert_to_tensor(value).shape
    return (None, *tuple(shape)[1:])
