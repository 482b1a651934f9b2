"""What a knowledge store as a whole tells: batches of all its entities, and ESFNet's adaptation to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kser_tf.layers.esf_net import ESFNet

# Entities looked up at once: 9 chunks of 384 numbers each are 57 MB then.
_BATCH = 4096
# A statistic that is the same for all chunks is not blown up, nor is what half precision makes of it by rounding.
_SMALLEST_SPREAD = 1e-3


def batches_of(store: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields chunks and masks of all entities, in the order of the store's rows."""
    for start in range(0, len(store.ids), _BATCH):
        yield store.lookup(store.ids[start : start + _BATCH])


def require_shape(name: str, shape: tuple[int, int, int], store: Any) -> None:
    """Checks that a store has the knowledge that a layer was built for.

    Args:
        name: str. The layer's.
        shape: `(fields, chunks, width)`, as built.
        store: A `kser_tf.KnowledgeStore`, or anything with its `ids` and `lookup`.

    Raises:
        ValueError: It has knowledge of another shape.
    """
    found = store.lookup(store.ids[:0])[0].shape[1:]
    if found != shape:
        raise ValueError(
            f"{name} was built for knowledge of shape (fields, chunks, width) = {shape}, and the store has {found}. Adapt "
            "to the store that the model looks up."
        )


def main_directions(scatter: np.ndarray, count: int) -> np.ndarray:
    """Returns the directions in which vectors differ most, float64 `(width, count)`, the foremost first.

    Args:
        scatter: float64 `(width, width)`. The sum, or the mean, of the outer products of the centred vectors.
        count: int. How many.
    """
    return with_fixed_signs(np.linalg.eigh(scatter)[1][:, ::-1][:, :count])


def with_fixed_signs(directions: np.ndarray) -> np.ndarray:
    """Returns the columns, each of which may point either way, so that their largest numbers are positive on every machine."""
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    fixed: np.ndarray = directions * signs
    return fixed


def adapt_esf_net(esf_net: ESFNet, store: Any) -> np.ndarray:
    """Tells an ESFNet about a catalogue: its average chunk, and how its chunks' statistics are spread.

    Reads the store twice, batch by batch.

    Args:
        esf_net: Built, for the store's shape of knowledge.
        store: As for `require_shape`.

    Returns:
        The statistics of all chunks, float32 `(rows, fields, chunks, 3)`.
    """
    fields, per_field, width = store.lookup(store.ids[:0])[0].shape[1:]
    total, count = np.zeros(width, np.float64), 0
    for chunks, mask in batches_of(store):
        total += np.where(mask[..., None], chunks, 0).sum((0, 1, 2), dtype=np.float64)
        count += int(mask.sum())
    mean = total / max(count, 1)
    esf_net.adapt(mean)
    parts = [(esf_net.statistics(chunks, mask).numpy(), mask) for chunks, mask in batches_of(store)]
    if not parts:
        return np.zeros((0, fields, per_field, 3), np.float32)
    statistics = np.concatenate([part for part, _ in parts]).astype(np.float32)
    valid = statistics[np.concatenate([mask for _, mask in parts])].astype(np.float64)
    if len(valid):
        spread = valid.std(0)
        esf_net.adapt(mean, center=valid.mean(0), scale=np.where(spread > _SMALLEST_SPREAD, spread, 1.0))
    return statistics
