"""What is known of an entity as one vector: the mean of its chunks."""

from __future__ import annotations

import numpy as np


def chunk_means(chunks: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean of each entity's chunks, float64 `(n, width)`; 0 where there is none.

    Args:
        chunks: `(n, fields, chunks, width)`, from `KnowledgeStore.lookup`.
        mask: bool `(n, fields, chunks)`.
    """
    weights = mask[..., None].astype(np.float64)
    means: np.ndarray = (chunks * weights).sum((1, 2)) / np.maximum(weights.sum((1, 2)), 1)
    return means
