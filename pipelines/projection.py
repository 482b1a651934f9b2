"""Fewer dimensions for text vectors: the projection that keeps most of their cosines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kser_tf.errors import ConfigError
from kser_tf.pipelines.encoder import normalised


class SecondMoment:
    """Sums up vectors, a block at a time, for the projection that keeps most of them.

    The projection is a principal component analysis without centring: onto the leading eigenvectors of the sum of
    `v v^T`. It is the best there is at keeping inner products, which are cosines here (Eckart and Young). Centred
    components keep distances from the mean text instead, and lose more of the cosines: their first component is not the
    catalogue's common direction, which most of each cosine lies in.

    Args:
        width: int. The vectors' width.
    """

    def __init__(self, width: int) -> None:
        self._sum = np.zeros((width, width))

    def add(self, vectors: np.ndarray) -> None:
        """Adds vectors `(n, width)`."""
        exact = vectors.astype(np.float64)
        self._sum += exact.T @ exact

    def projection(self, dimensions: int) -> Projection:
        """Returns the projection to `dimensions`.

        Raises:
            ConfigError: `dimensions` is not below the vectors' width.
        """
        width = len(self._sum)
        if not 1 <= dimensions < width:
            raise ConfigError(
                f"`dimensions` must be at least 1 and below the encoder's width, which is {width}. Received: "
                f"{dimensions}. Leave it out to keep all."
            )
        values, components = np.linalg.eigh(self._sum)
        kept = components[:, ::-1][:, :dimensions]
        # An eigenvector may as well point the other way: the largest component is made positive.
        signs = np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dimensions)])
        total = values.sum()
        explained = float(values[::-1][:dimensions].sum() / total) if total > 0 else 1.0
        return Projection((kept * signs).astype(np.float32), explained)


@dataclass(frozen=True)
class Projection:
    """A projection of text vectors to fewer dimensions.

    Args:
        matrix: `(width, dimensions)`, float32, with orthonormal columns.
        explained: float. The share of the vectors' squared length that is kept.
    """

    matrix: np.ndarray
    explained: float

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Projects vectors `(n, width)` and makes them of unit length again: float32 `(n, dimensions)`."""
        return normalised(vectors @ self.matrix)


def mean_cosine_change(vectors: np.ndarray, projected: np.ndarray) -> float:
    """Returns the mean absolute change of the cosines of all pairs of different vectors.

    Args:
        vectors: `(n, width)`, of unit length; at least two.
        projected: `(n, dimensions)`, the same, projected.
    """
    pairs = np.triu_indices(len(vectors), k=1)
    return float(np.abs(vectors @ vectors.T - projected @ projected.T)[pairs].mean())
