"""Which interactions are examples, in which part each lies, and which items are kept out of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kser_tf.errors import ConfigError, DataError
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.history import TimeOrder
from kser_tf.pipelines.log import Log
from kser_tf.schema import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))
# The part of an interaction that gives no example.
NO_PART = -1

# Independent random numbers from one seed, one stream for each use.
_USER_STREAM, _COLD_ITEM_STREAM = range(2)
# Far above the error of a product such as 30 * 0.1, far below one interaction.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How examples are divided into train, validation and test.

    Args:
        by: `"user"` (every user is in one part), `"time"` (validation is later than all of train, test later still) or
            `"column"` (the log says so itself). Defaults to `"user"`.
        fractions: Of the users, or of the examples in order of time: train, validation, test; they sum to 1. Defaults
            to 0.8, 0.1, 0.1.
        column: str. For `"column"`: the log's column with the values train, validation and test, or none for what gives no
            example (of MovieLens: a column of `rows.parquet` beside the ratings, one row each). Where it names no validation
            rows, the test rows of some users become those, a share of them by `fractions`.
    """

    __pydantic_config__ = STRICT_KEYS

    by: Literal["user", "time", "column"] = "user"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    column: str | None = None

    def __post_init__(self) -> None:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > _ROUNDING:
            raise ConfigError(
                f"`fractions` are three numbers above 0 that sum to 1. Received: {list(self.fractions)}, which sum to "
                f"{sum(self.fractions):g}."
            )
        if (self.by == "column") != (self.column is not None):
            raise ConfigError(
                "`column` goes with `by: column`, and only with it: it names the log's column with the values train, "
                "validation and test."
            )


@dataclass(frozen=True, kw_only=True)
class HistoryOnlyConfig:
    """The first interactions of each user that serve as history alone: min(ceil(n * fraction), at_most) of n.

    Args:
        fraction: float. Of a user's interactions, from 0 (none) to below 1. Defaults to 0.
        at_most: int. The most interactions of a user. Defaults to no limit.
    """

    __pydantic_config__ = STRICT_KEYS

    fraction: float = 0.0
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"`fraction` must be at least 0 and below 1. Received: {self.fraction}")
        if self.at_most is not None and self.at_most < 0:
            raise ConfigError(f"`at_most` must not be negative. Received: {self.at_most}")


@dataclass(frozen=True)
class Division:
    """Which part each interaction of a log lies in.

    Args:
        parts: int8, one an interaction: the number of its part (in the order of `SPLITS`), or `NO_PART`.
        is_cold: bool, one for each of the item column's values: taken out of training.
        order: The log in order of time.
        interactions: int64, one an interaction: how many its user has.
        training_rows: int64, one for each of the item column's values.
        gives_example: bool, one an interaction: whether it lies after the first interactions of its user, which give no
            example. (That of a cold item is dropped from train and validation nevertheless.)
        dropped_cold_rows: int. Examples of cold items that were dropped from train and validation.
    """

    parts: np.ndarray
    is_cold: np.ndarray
    order: TimeOrder
    interactions: np.ndarray
    training_rows: np.ndarray
    gives_example: np.ndarray
    dropped_cold_rows: int

    def rows(self, part: int) -> np.ndarray:
        """Returns the rows of the log that make up a part, in the log's order."""
        return np.flatnonzero(self.parts == part)

    def history_only(self) -> np.ndarray:
        """Returns the rows of the log, by user and in order of time, that lie before all examples of their users.

        An interaction that gives no example but has the time of one is not among them: whoever knew it could have known the
        example.
        """
        order, gives = self.order, self.gives_example[self.order.rows]
        places = np.arange(len(gives))
        # For each place in the order, where its user's first example stands; a user without one has no place to come to.
        first = np.full(len(gives), len(gives), dtype=np.int64)
        np.minimum.at(first, order.user_starts, np.where(gives, places, len(gives)))
        first = first[order.user_starts]
        has_example = first < len(gives)
        ends = np.where(has_example, order.past_ends[np.minimum(first, len(gives) - 1)], 0)
        found: np.ndarray = order.rows[places < ends]
        return found

    def counts(self, part: int, labels: np.ndarray) -> dict[str, int]:
        """Returns the numbers of rows and of positives of a part."""
        inside = labels[self.parts == part]
        return {"rows": len(inside), "positives": int(inside.sum())}


def divide(
    log: Log,
    split: SplitConfig,
    history_only: HistoryOnlyConfig,
    *,
    named_parts: np.ndarray | None,
    cold_items: float,
    seed: int,
    name: str,
) -> Division:
    """Divides a log into training, validation and test examples.

    Args:
        log: The log.
        split: How.
        history_only: The first interactions of each user that give no example.
        named_parts: int8, one an interaction: its part, where a column of the log says so.
        cold_items: float. Fraction of the items that are taken out of train and validation.
        seed: int.
        name: str. What to call the log in a message.

    Raises:
        DataError: A part is left without examples, without a positive or without a negative.
    """
    users, items = log.users.sorted_codes(), log.items.codes
    order = TimeOrder(users, log.times)
    interactions = np.bincount(users)[users]
    examples = find_examples(order.ranks, interactions, history_only)
    _check_labels(log.labels[examples], f"{name}: the {'examples' if history_only.fraction else 'log'}")
    if named_parts is not None:
        parts = np.where(examples, named_parts, NO_PART)
        if not (parts == VALIDATION).any():
            parts = take_validation_from_test(users, parts, split.fractions, seed)
    elif split.by == "user":
        parts = split_by_user(users, examples, split.fractions, seed)
    else:
        parts = split_by_time(log.times, examples, split.fractions)
    sorted_items = log.items.sorted_codes()
    is_cold = np.zeros(len(log.items.values), dtype=bool)
    is_cold[items[np.isin(sorted_items, choose_cold_items(sorted_items, examples, cold_items, seed))]] = True
    dropped = is_cold[items] & ((parts == TRAIN) | (parts == VALIDATION))
    parts = np.where(dropped, NO_PART, parts).astype(np.int8)
    for part, part_name in enumerate(SPLITS):
        _check_labels(log.labels[parts == part], f"{name}: the {part_name} part (split by {split.by})")
    return Division(
        parts=parts,
        is_cold=is_cold,
        order=order,
        interactions=interactions,
        training_rows=np.bincount(items[parts == TRAIN], minlength=len(is_cold)),
        gives_example=examples,
        dropped_cold_rows=int(dropped.sum()),
    )


def find_examples(ranks: np.ndarray, interactions: np.ndarray, history_only: HistoryOnlyConfig) -> np.ndarray:
    """Says for each interaction whether it gives an example.

    Args:
        ranks: int, one an interaction: its number among its user's in order of time.
        interactions: int, one an interaction: how many its user has.
        history_only: The prefix that gives none.
    """
    prefix = np.ceil(interactions * history_only.fraction - _ROUNDING)
    return ranks >= (prefix if history_only.at_most is None else np.minimum(prefix, history_only.at_most))


def split_by_user(
    users: np.ndarray, examples: np.ndarray, fractions: tuple[float, float, float], seed: int
) -> np.ndarray:
    """Deals users to the parts at random.

    Args:
        users: int, one an interaction: the user's number in the sorted list of all users, so that the order of the log
            does not matter.
        examples: bool, one an interaction.
        fractions: Of the users that have examples.
        seed: int.

    Returns:
        int8, one an interaction: its part, or `NO_PART`.

    Raises:
        DataError: There are fewer users with examples than parts.
    """
    dealt = _drawn(users, users[examples], seed, _USER_STREAM)
    validation, test = (max(1, round(len(dealt) * fraction)) for fraction in fractions[1:])
    train = len(dealt) - validation - test
    if train < 1:
        raise DataError(
            f"the log has {len(dealt)} user(s) with examples, and a split by user needs at least one each for train, "
            "validation and test. Split by time or by a column: split: {by: time}"
        )
    part_of_user = np.full(int(users.max()) + 1, NO_PART, dtype=np.int8)
    part_of_user[dealt] = np.repeat([TRAIN, VALIDATION, TEST], [train, validation, test])
    return np.where(examples, part_of_user[users], NO_PART)


def take_validation_from_test(
    users: np.ndarray, parts: np.ndarray, fractions: tuple[float, float, float], seed: int
) -> np.ndarray:
    """Makes the test rows of some users validation rows: they are as clean as the others, which training rows need not be.

    Args:
        users: int, one an interaction, as of `split_by_user`.
        parts: int8, one an interaction.
        fractions: Of the users with test rows as many are taken as validation has of validation and test.
        seed: int.

    Returns:
        The parts.
    """
    dealt = _drawn(users, users[parts == TEST], seed, _USER_STREAM)
    if len(dealt) < 2:
        return parts
    count = round(len(dealt) * fractions[VALIDATION] / (fractions[VALIDATION] + fractions[TEST]))
    taken = np.isin(users, dealt[: min(max(1, count), len(dealt) - 1)])
    return np.where((parts == TEST) & taken, VALIDATION, parts)


def split_by_time(times: np.ndarray | None, examples: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """Cuts the examples in order of time. Examples of one time stay together, in the later part.

    Args:
        times: int64, one an interaction; `None` if the log's order is the order of time.
        examples: bool, one an interaction.
        fractions: Of the examples.

    Returns:
        int8, one an interaction: its part, or `NO_PART`.
    """
    times = np.arange(len(examples)) if times is None else times
    ordered = np.sort(times[examples])
    ends = np.round(np.cumsum(fractions[:2]) * len(ordered)).astype(np.int64)
    boundaries = ordered[np.minimum(ends, len(ordered) - 1)]
    return np.where(examples, np.searchsorted(boundaries, times, side="right"), NO_PART).astype(np.int8)


def choose_cold_items(items: np.ndarray, examples: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws the items that are kept out of training, among those that have examples.

    Args:
        items: int, one an interaction: the item's number in the sorted list of all items, so that the order of the log
            does not matter.
        examples: bool, one an interaction.
        fraction: float. Of the items that have examples.
        seed: int.

    Returns:
        The numbers of the items drawn.
    """
    drawn = _drawn(items, items[examples], seed, _COLD_ITEM_STREAM)
    return drawn[: round(len(drawn) * fraction)]


def _drawn(all_numbers: np.ndarray, wanted: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """The different numbers in `wanted` in random order.

    All are shuffled before the wanted ones are picked out: one more or less wanted does not change the others' order.
    """
    drawn = np.random.default_rng([seed, stream]).permutation(np.unique(all_numbers))
    return drawn[np.isin(drawn, wanted)]


def _check_labels(labels: np.ndarray, what: str) -> None:
    positives = int(labels.sum())
    if not len(labels):
        raise DataError(f"{what} has no examples. Give more rows, or change `split`, `history_only` or `cold_items`.")
    if positives in (0, len(labels)):
        lacking = "positive" if positives == 0 else "negative"
        raise DataError(
            f"{what} has {len(labels)} example(s) and not one {lacking}; a model cannot be trained or measured on one "
            "kind alone. Check the label (or its rule), or give more rows."
        )
