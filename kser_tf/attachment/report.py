"""AttachReport: what is attached to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

AT_OUTPUT = "at output"
NO_STORE = "none: connect one"
_COLUMNS = ("path", "layer", "ids", "width", "mode", "store", "covered")


@dataclass(frozen=True)
class AttachedPlace:
    """One embedding layer, or one id feature, with knowledge.

    Args:
        path: str. The layer's path, or the feature's name.
        layer: str. The layer's class, or for a feature what of the model's output is corrected.
        ids: str. What the layer is called with, or what the feature holds.
        width: int. The width of the backbone's embedding, or of the feature's aligned vectors.
        mode: str. `"residual"` or `"append"`; `"at output"` for a feature.
        store: str. The store, or `"none: connect one"` after loading from a file.
        rows: int. How many entities the store holds.
        vocabulary: int. For how many ids the layer has vectors, where that is known.
        covered: int. How many of those the store has knowledge of, where that is known.
        calls: int. How often the layer, or for a feature the model, was called since, traces included. Where it stays 0 in
            training, the model reads the layer's table without calling the layer, and the knowledge has no effect.
    """

    path: str
    layer: str
    ids: str
    width: int
    mode: str
    store: str
    rows: int | None
    vocabulary: int | None
    covered: int | None
    calls: int

    @property
    def coverage(self) -> float | None:
        """The share of the layer's ids that the store has knowledge of, where it is known."""
        return None if self.covered is None or not self.vocabulary else self.covered / self.vocabulary


@dataclass(frozen=True)
class AttachReport:
    """What is attached to a model, place by place; `str` makes a table of it.

    Args:
        places: The embedding layers with knowledge, then the features whose knowledge corrects the output.
    """

    places: Sequence[AttachedPlace]

    def __str__(self) -> str:
        rows = [_COLUMNS] + [
            (
                place.path,
                place.layer,
                place.ids,
                str(place.width),
                place.mode,
                place.store if place.rows is None else f"{place.store} ({place.rows:,} entities)",
                _covered(place),
            )
            for place in self.places
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def store_name(store: Any) -> str:
    """Returns what a store is called in the table."""
    return str(getattr(store, "path", type(store).__name__))


def _covered(place: AttachedPlace) -> str:
    if place.covered is None or place.vocabulary is None:
        return "unknown"
    share = "" if place.coverage is None else f" ({place.coverage:.1%})"
    return f"{place.covered:,} of {place.vocabulary:,} ids{share}"
