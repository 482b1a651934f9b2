"""Untracked: an attribute that Keras and TensorFlow do not look into."""

from __future__ import annotations

from typing import Any


class Untracked:
    """Hides a value in an attribute from Keras and `tf.Module`, which would take its variables for weights.

    Args:
        value: Anything; may be set anew.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __deepcopy__(self, memo: Any) -> Untracked:
        return self
