"""Slices of items by how much text there is about them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kser_tf.pipelines.encode import EncodeConfig, read_passages

# From the least text to the most; and items of the table that have none.
THIRDS = ("little_text", "some_text", "much_text")
NO_TEXT = "no_text"


def slices_by_text(config: EncodeConfig) -> dict[str, list[Any]]:
    """Returns the ids of a table's items, by the number of characters of their text: a third each, and those without any.

    Every item counts once, whatever its rows. Items of equal length are in the same slice.

    Args:
        config: How the text is encoded: what counts is what was encoded, all fields together.
    """
    passages = read_passages(config)
    lengths = np.array([len(text) for text in passages.texts], np.int64)
    present = passages.places >= 0
    if len(lengths):
        amounts = (lengths[passages.places] * present).sum(axis=(1, 2))
    else:
        amounts = np.zeros(len(passages.ids), np.int64)
    has_text = amounts > 0
    bounds = np.quantile(amounts[has_text], [1 / 3, 2 / 3]) if has_text.any() else np.zeros(2)
    third = np.searchsorted(bounds, amounts, side="left")
    slices = {name: passages.ids[has_text & (third == i)].tolist() for i, name in enumerate(THIRDS)}
    return {**slices, NO_TEXT: passages.ids[~has_text].tolist()}
