"""Sub-layers of models that are built already: giving them one, and taking it back, in either Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def set_layer(owner: Any, name: str, layer: Any) -> None:
    """Makes `layer` the attribute `name`, and with it a sub-layer."""
    with _unlocked(owner):
        setattr(owner, name, layer)


def delete_layer(owner: Any, name: str) -> None:
    """Undoes `set_layer`."""
    tracker: Any = getattr(owner, "_tracker", None)
    with _unlocked(owner):
        if tracker is not None:  # Keras 3 does not untrack what is deleted
            tracker.untrack(getattr(owner, name))
        delattr(owner, name)


@contextlib.contextmanager
def _unlocked(layer: Any) -> Iterator[None]:
    """Keras 3 takes no more layers into a built one, unless told to, as its own `enable_lora` does."""
    tracker: Any = getattr(layer, "_tracker", None)
    locked = tracker is not None and tracker.locked
    if locked:
        tracker.unlock()
    try:
        yield
    finally:
        if locked:
            tracker.lock()
