"""Feature spaces of items: who is near whom in each of them, and how far two of them agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

# Items compared with all others at once: with 5,000 of those a block of similarities is 40 MB.
_ROWS_AT_ONCE = 2048
# Users whose ratings are multiplied at once.
_USERS_AT_ONCE = 2048
# Vectors shorter than this point nowhere: an extractor that begins at zero has added nothing to them.
_NO_LENGTH = 1e-12


class Space(Protocol):
    """Something that says how near items are to each other."""

    present: np.ndarray
    """bool `(items,)`: the items that have a place in the space."""

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 `(len(rows), items)`: how near each item is to the items `rows`; -inf where that is not known."""
        ...


class VectorSpace:
    """Items as vectors, near each other where the cosine is high.

    Args:
        vectors: `(items, width)`.
        present: bool `(items,)`: the items whose vectors mean something. Those without a length never do. Defaults to all.
    """

    def __init__(self, vectors: np.ndarray, present: np.ndarray | None = None) -> None:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        has_length = lengths > _NO_LENGTH
        self.present = has_length if present is None else has_length & present
        self._unit = (vectors / np.where(has_length, lengths, 1)[:, None]).astype(np.float32)

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cosines to the items `rows`."""
        found: np.ndarray = self._unit[rows] @ self._unit.T
        return found


class CoRatedSpace:
    """Items near each other where the same users liked them: the cosine of the items' columns of users.

    With the numbers of users `n_a` and `n_b` who liked an item and `n_ab` who liked both, `n_ab / sqrt(n_a n_b)`.

    Args:
        items: int `(likes,)`, the item of each like, from 0; -1 for likes of others, which do not count.
        users: `(likes,)`, who.
        count: int. How many items there are.
        least_common: int. Two items that fewer users like are not compared: chance would tell.
    """

    def __init__(self, items: np.ndarray, users: np.ndarray, count: int, *, least_common: int) -> None:
        counted = items >= 0
        codes = np.unique(users[counted], return_inverse=True)[1] if counted.any() else np.zeros(0, np.int64)
        # A user who liked an item twice is one user.
        pairs = np.unique(np.stack([codes.reshape(-1), items[counted]], 1), axis=0)
        both = np.zeros((count, count), np.float32)
        starts = np.searchsorted(pairs[:, 0], np.arange(0, int(codes.max(initial=-1)) + 2, _USERS_AT_ONCE))
        for start, end in itertools.pairwise([*starts.tolist(), len(pairs)]):
            block = pairs[start:end]
            if len(block):
                liked = np.zeros((_USERS_AT_ONCE, count), np.float32)
                liked[block[:, 0] - block[0, 0] // _USERS_AT_ONCE * _USERS_AT_ONCE, block[:, 1]] = 1
                both += liked.T @ liked
        likes = np.sqrt(np.diag(both).astype(np.float64))
        self.present = likes > 0
        scale = np.where(self.present, 1 / np.where(self.present, likes, 1), 0).astype(np.float32)
        self._similarities = np.where(both >= least_common, both * scale[:, None] * scale, -np.inf).astype(np.float32)

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cosines to the items `rows`, -inf where too few users liked both."""
        return self._similarities[rows].copy()


def nearest(space: Space, among: np.ndarray, k: int) -> np.ndarray:
    """Returns for each item the `k` that are nearest to it, int64 `(items, k)`; a row of -1 where there are not so many.

    Args:
        space: Where.
        among: bool `(items,)`: the items that are asked for and may be found. An item is not its own neighbour.
        k: int.
    """
    found = np.full((len(among), k), -1, np.int64)
    asked = np.flatnonzero(among)
    if len(asked) <= k:
        return found
    for start in range(0, len(asked), _ROWS_AT_ONCE):
        rows = asked[start : start + _ROWS_AT_ONCE]
        near = space.similarities(rows)[:, asked]
        near[np.arange(len(rows)), np.arange(start, start + len(rows))] = -np.inf
        largest = np.argpartition(-near, k - 1, axis=1)[:, :k]
        enough = np.isfinite(np.take_along_axis(near, largest, 1)).all(1)
        found[rows[enough]] = asked[largest[enough]]
    return found


def agreements(spaces: Mapping[str, Space], groups: Mapping[str, np.ndarray], k: int) -> list[dict[str, Any]]:
    """Returns how far each pair of spaces agrees on who is near: the mean share of an item's `k` nearest that both have.

    Neighbours are looked for, in both spaces, among the items that are in both: else those that one space does not know
    would be counted as disagreement. Items that have fewer than `k` neighbours in one of them are not counted.

    Args:
        spaces: By name.
        groups: By name which items belong to it, bool `(items,)`.
        k: int.

    Returns:
        `{"first", "second", "group", "overlap", "standard_error", "items", "by_chance"}` for each pair and group; `overlap` is
        `None` where no item counts, `by_chance` what two spaces that have nothing to do with each other would have.
    """
    found = []
    for (first, a), (second, b) in itertools.combinations(spaces.items(), 2):
        among = a.present & b.present
        near = [nearest(space, among, k) for space in (a, b)]
        counted = (near[0][:, 0] >= 0) & (near[1][:, 0] >= 0)
        shared = (near[0][:, :, None] == near[1][:, None, :]).any(2).mean(1)
        for name, members in groups.items():
            values = shared[counted & members]
            found.append(
                {
                    "first": first,
                    "second": second,
                    "group": name,
                    "overlap": float(values.mean()) if len(values) else None,
                    "standard_error": float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None,
                    "items": len(values),
                    "by_chance": k / (int(among.sum()) - 1) if len(values) else None,
                }
            )
    return found


def chosen_items(count: int, most: int, seed: int) -> np.ndarray:
    """Returns the numbers of the items that are compared, in order: all, or a random sample of `most`."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
