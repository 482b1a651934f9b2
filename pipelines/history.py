"""Behaviour sequences built from a log: for an interaction, what the same user did strictly before it."""

from __future__ import annotations

import numpy as np

from kser_tf.pipelines.log_columns import ranges


class TimeOrder:
    """A log's interactions by user, then time, then their order in the log.

    Args:
        users: int, one an interaction: codes of the users.
        times: int64, one an interaction; `None` if the log's order is the order of time.
    """

    def __init__(self, users: np.ndarray, times: np.ndarray | None) -> None:
        size = len(users)
        if times is None:
            times = np.arange(size)
        # A stable sort: equal times of one user keep their order in the log.
        self.rows = np.lexsort((times, users))
        sorted_users, sorted_times = users[self.rows], times[self.rows]
        self.positions = np.empty(size, dtype=np.int64)
        self.positions[self.rows] = np.arange(size)
        new_user = np.ones(size, dtype=bool)
        new_user[1:] = sorted_users[1:] != sorted_users[:-1]
        new_time = new_user.copy()
        new_time[1:] |= sorted_times[1:] != sorted_times[:-1]
        # For each place in the order: where its user begins, and where the first interaction of the same user and time
        # stands.
        self.user_starts = _last_true(new_user)
        self.past_ends = _last_true(new_time)

    @property
    def ranks(self) -> np.ndarray:
        """For each interaction its number (from 0) among its user's, in time order."""
        return self.positions - self.user_starts[self.positions]


class History:
    """Looks up the past of interactions, the most recent first.

    The past of an interaction is what the same user did at a strictly smaller time: an interaction at an equal time is
    not the past.

    Args:
        order: The log in order of time.
        length: int. The most interactions of a past.
        keep: bool, one an interaction: those that may enter a past. Defaults to all.
    """

    def __init__(self, order: TimeOrder, length: int, keep: np.ndarray | None = None) -> None:
        kept = np.ones(len(order.rows), dtype=bool) if keep is None else keep[order.rows]
        kept_before = np.concatenate([[0], np.cumsum(kept)])
        self._length = length
        self._positions = order.positions
        self._rows = order.rows[kept]
        self._starts = kept_before[order.user_starts]
        self._ends = kept_before[order.past_ends]

    def before(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pasts of some rows of the log.

        Args:
            rows: int64 (n,).

        Returns:
            Offsets, int64 (n + 1), and the rows of the log that make up the pasts, end to end.
        """
        positions = self._positions[rows]
        ends = self._ends[positions]
        counts = np.minimum(ends - self._starts[positions], self._length)
        offsets, within = ranges(counts)
        return offsets, self._rows[np.repeat(ends, counts) - 1 - within]


def _last_true(flags: np.ndarray) -> np.ndarray:
    """For each place the nearest place at or before it where `flags` is true."""
    return np.maximum.accumulate(np.where(flags, np.arange(len(flags)), 0))
