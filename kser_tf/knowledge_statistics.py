"""Figures over all of a knowledge store, computed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kser_tf.knowledge_store import KnowledgeStore

# Entities looked up at once: 9 chunks of 384 numbers each are 57 MB then.
_BATCH = 4096


def chunk_batches(store: KnowledgeStore) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields chunks and masks of all entities, in the order of the store's rows."""
    for start in range(0, len(store), _BATCH):
        yield store.lookup(store.ids[start : start + _BATCH])


def mean_chunk(store: KnowledgeStore) -> np.ndarray:
    """Returns the mean over all chunks of all entities, float32 `(width,)`; zeros for a store without a chunk."""
    total, count = np.zeros(store.width, np.float64), 0
    for chunks, mask in chunk_batches(store):
        total += chunks.sum((0, 1, 2), dtype=np.float64)
        count += int(mask.sum())
    return (total / max(count, 1)).astype(np.float32)
