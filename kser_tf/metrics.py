"""How good predicted probabilities are: AUC, GAUC, log loss and calibration, on slices, and intervals of differences.

NumPy alone, in float64. Whatever is not defined (an AUC where one class is missing, a mean over no rows) is NaN where a
function returns a float, and `None` where it returns something that is meant for JSON.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kser_tf.errors import DataError

# An item with fewer training rows than this is a tail item.
TAIL_TRAINING_ROWS = 50

# Lower edges of the popularity bins, in training rows of the item. 0 alone is what was never trained on; 50 is where
# the tail ends.
POPULARITY_EDGES = (0, 1, 10, TAIL_TRAINING_ROWS, 200, 1000)

# Enough to see where a curve bends, few enough that a slice of a few thousand rows still has hundreds in each.
CALIBRATION_BINS = 20

# Of every interval in this module.
CONFIDENCE = 0.95

# Of the bootstrap over users. A matrix of so many users by as many takes 32 MB.
_MOST_USERS_IN_A_MATRIX = 2048
# Rows in a block that is counted as a whole, how many blocks there are at most, and pairs that are counted singly at a time (32 MB).
_SMALLEST_BLOCK, _MOST_BLOCKS, _PAIRS_AT_ONCE = 64, 1024, 1 << 22

_Floats: TypeAlias = NDArray[np.float64]
_Integers: TypeAlias = NDArray[np.int64]
_Booleans: TypeAlias = NDArray[np.bool_]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Returns the area under the ROC curve.

    This is the share of all pairs of a positive and a negative row in which the positive one has the higher score; a
    tie counts half. It is computed from the ranks (Mann and Whitney's U), in the time of one sort.

    Args:
        labels: (rows,), 0 or 1.
        scores: (rows,), any monotone function of the probability; logits keep more ties apart than probabilities.

    Returns:
        A number from 0 to 1; NaN if all labels are equal, or there is no row.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, or a score is NaN.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    positive, scores = _labels_and("scores", labels, scores)
    return float(_auc_of_groups(positive, scores, np.zeros(len(positive), np.int64), 1)[0])


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Returns the AUC within users, averaged with each user's number of rows as weight.

    Users whose rows are all of one class have no AUC; they are left out, weight and all. This is the "user weighted
    AUC" of Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (2018), with impressions as weights.

    Args:
        labels: (rows,), 0 or 1.
        scores: (rows,).
        groups: (rows,) integers or strings, the user of each row.

    Returns:
        A number from 0 to 1; NaN if no user has both classes.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, or a score is NaN.
    """
    positive, scores = _labels_and("scores", labels, scores)
    codes, users = _codes("groups", groups, len(positive))
    return _gauc(positive, scores, codes, users)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Returns the mean negative log-likelihood, in nats.

    A probability of exactly 0 or 1 on the wrong side would cost infinity; probabilities are therefore clipped by the
    machine epsilon of the type that they come in (1.2e-7 for float32, 2.2e-16 for float64), as scikit-learn does. From
    logits nothing has to be clipped: see `log_loss_from_logits`.

    Args:
        labels: (rows,), 0 or 1.
        probabilities: (rows,), from 0 to 1.

    Returns:
        A number of at least 0; NaN if there is no row.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, or a probability is NaN or outside 0 to 1.
    """
    given = np.asarray(probabilities)
    epsilon = float(np.finfo(given.dtype if np.issubdtype(given.dtype, np.floating) else np.float64).eps)
    positive, clean = _labels_and_probabilities(labels, probabilities)
    clipped = np.clip(clean, epsilon, 1.0 - epsilon)
    return _mean(-np.where(positive, np.log(clipped), np.log1p(-clipped)))


def log_loss_from_logits(labels: ArrayLike, logits: ArrayLike) -> float:
    """Returns the mean negative log-likelihood, in nats, of probabilities that are given as logits.

    This is log(1 + exp(-logit)) for a positive row and log(1 + exp(logit)) for a negative one, computed without
    overflow.

    Args:
        labels: (rows,), 0 or 1.
        logits: (rows,).

    Returns:
        A number of at least 0; NaN if there is no row, infinity if a logit is infinite on the wrong side.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, or a logit is NaN.
    """
    positive, logits = _labels_and("logits", labels, logits)
    return _mean(np.logaddexp(0.0, np.where(positive, -logits, logits)))


def calibration_curve(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS
) -> list[dict[str, float | int]]:
    """Returns what was predicted and what happened, in bins of equally many rows.

    Rows are put in order of their probability and cut into `bins` bins. Rows of equal probability stay together, in the
    bin of their middle rank, so that the result does not depend on the order of the rows; bins that this leaves empty
    are left out.

    Args:
        labels: (rows,), 0 or 1.
        probabilities: (rows,), from 0 to 1.
        bins: int. Number of bins, at least 1. Defaults to 20.

    Returns:
        For each bin, in rising order, `{"predicted": mean probability, "observed": share of positives, "rows": int}`.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, a probability is NaN or outside 0 to 1, or `bins` is less than
            1.
    """
    if bins < 1:
        raise DataError(f"`bins` must be at least 1. Received: `bins={bins}`")
    positive, probabilities = _labels_and_probabilities(labels, probabilities)
    if not len(positive):
        return []
    # Middle ranks run from 1 to n; that of a single row less one half is the middle of its place among n.
    place = (_mid_ranks(probabilities) - 0.5) / len(positive)
    bin_of_row = np.minimum((place * bins).astype(np.int64), bins - 1)
    rows = np.bincount(bin_of_row, minlength=bins)
    predicted = np.bincount(bin_of_row, weights=probabilities, minlength=bins)
    observed = np.bincount(bin_of_row, weights=positive, minlength=bins)
    return [
        {"predicted": float(predicted[i] / rows[i]), "observed": float(observed[i] / rows[i]), "rows": int(rows[i])}
        for i in np.flatnonzero(rows)
    ]


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Returns the expected calibration error: how far apart predicted and observed frequencies are, on average.

    sum over bins of (rows in the bin / all rows) * |mean probability - share of positives|, of Naeini, Cooper and
    Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015), with bins of equal mass instead
    of equal width, as Nixon et al., "Measuring Calibration in Deep Learning" (2019), and Roelofs et al., "Mitigating
    Bias in Calibration Error Estimation" (2022), recommend: click probabilities crowd in few bins of equal width. The
    bins are those of `calibration_curve`.

    Args:
        labels: (rows,), 0 or 1.
        probabilities: (rows,), from 0 to 1.
        bins: int. Number of bins, at least 1. Defaults to 20.

    Returns:
        A number from 0 to 1; NaN if there is no row.

    Raises:
        DataError: As `calibration_curve`.
    """
    curve = calibration_curve(labels, probabilities, bins)
    rows = sum(point["rows"] for point in curve)
    if not rows:
        return math.nan
    return math.fsum(point["rows"] / rows * abs(point["predicted"] - point["observed"]) for point in curve)


def auc_by_popularity(
    labels: ArrayLike, scores: ArrayLike, training_rows: ArrayLike, edges: Sequence[int] = POPULARITY_EDGES
) -> list[dict[str, float | int | None]]:
    """Returns the AUC by how often the candidate item was seen in training.

    Args:
        labels: (rows,), 0 or 1.
        scores: (rows,).
        training_rows: (rows,) int, the number of training rows of each row's item.
        edges: Rising lower edges of the bins, the first at most 0; the last bin has no upper edge. Defaults to
            (0, 1, 10, 50, 200, 1000).

    Returns:
        For each bin `{"low": int, "high": int | None, "rows": int, "positives": int, "auc": float | None}`, with
        `low <= training rows < high`. All bins are listed, so that the results of two models match position by
        position.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, a score is NaN, edges do not rise, or a value is below the
            first edge.
    """
    positive, scores = _labels_and("scores", labels, scores)
    counts = _column("training_rows", training_rows, len(positive))
    if not len(edges) or any(low >= high for low, high in itertools.pairwise(edges)):
        raise DataError(
            f"`edges` must be rising numbers of training rows, at least one. Received: `edges={tuple(edges)}`"
        )
    if len(counts) and counts.min() < edges[0]:
        raise DataError(f"`training_rows` holds {counts.min()}, which is below the first of `edges={tuple(edges)}`.")
    bin_of_row = np.searchsorted(np.asarray(edges), counts, side="right") - 1
    values = _auc_of_groups(positive, scores, bin_of_row, len(edges))
    rows = np.bincount(bin_of_row, minlength=len(edges))
    positives = np.bincount(bin_of_row[positive], minlength=len(edges))
    return [
        {
            "low": int(edges[i]),
            "high": int(edges[i + 1]) if i + 1 < len(edges) else None,
            "rows": int(rows[i]),
            "positives": int(positives[i]),
            "auc": _or_none(values[i]),
        }
        for i in range(len(edges))
    ]


def slice_rows(
    users: ArrayLike, item_training_rows: ArrayLike, item_is_cold: ArrayLike, user_interactions: ArrayLike
) -> dict[str, _Booleans]:
    """Returns for each slice which rows belong to it, bool (rows,).

    | slice | rows |
    | --- | --- |
    | `all` | all |
    | `warm` | of items that were not held out of training (`head` and `tail` together) |
    | `head` | of warm items with at least 50 training rows |
    | `tail` | of warm items with fewer |
    | `cold` | of items that were taken out of training altogether |
    | `active_users` | of users with more interactions than the median user of these rows |
    | `quiet_users` | of the other users |

    Args:
        users: (rows,) integers or strings, the user of each row.
        item_training_rows: (rows,) int, the number of training rows of the row's item.
        item_is_cold: (rows,) bool.
        user_interactions: (rows,) int, the number of interactions of the row's user in the log; the same for all rows
            of a user.

    Raises:
        DataError: Lengths differ.
    """
    rows = len(_flat("users", users))
    codes, number_of_users = _codes("users", users, rows)
    cold = _column("item_is_cold", item_is_cold, rows).astype(np.bool_)
    tail = ~cold & (_column("item_training_rows", item_training_rows, rows) < TAIL_TRAINING_ROWS)
    active = _is_active(codes, number_of_users, _column("user_interactions", user_interactions, rows))
    return {
        "all": np.ones(rows, np.bool_),
        "warm": ~cold,
        "head": ~cold & ~tail,
        "tail": tail,
        "cold": cold,
        "active_users": active,
        "quiet_users": ~active,
    }


def evaluate_slices(
    labels: ArrayLike,
    logits: ArrayLike,
    *,
    users: ArrayLike,
    item_training_rows: ArrayLike,
    item_is_cold: ArrayLike,
    user_interactions: ArrayLike,
    further: Mapping[str, ArrayLike] | None = None,
    bins: int = CALIBRATION_BINS,
) -> dict[str, dict[str, float | int | None]]:
    """Returns all metrics on all rows and on slices of them.

    The slices are those of `slice_rows`, and behind them further ones.

    Args:
        labels: (rows,), 0 or 1.
        logits: (rows,). Probabilities are their sigmoid.
        users: (rows,) integers or strings, the user of each row.
        item_training_rows: (rows,) int, the number of training rows of the row's item.
        item_is_cold: (rows,) bool.
        user_interactions: (rows,) int, the number of interactions of the row's user in the log; the same for all rows
            of a user.
        further: For each further slice which rows belong to it, bool (rows,).
        bins: int. Bins of the calibration error. Defaults to 20.

    Returns:
        For each slice `{"rows": int, "positives": int, "auc": .., "gauc": .., "log_loss": .., "calibration_error":
        ..}`. What is not defined (no row, one class alone) is `None`.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, a logit is NaN, or a further slice has the name of another.
    """
    positive, logits = _labels_and("logits", labels, logits)
    codes, number_of_users = _codes("users", users, len(positive))
    slices = slice_rows(users, item_training_rows, item_is_cold, user_interactions)
    for name, rows in (further or {}).items():
        if name in slices:
            raise DataError(f"a slice called {name!r} is always there. Give the further one another name.")
        slices[name] = _column(name, rows, len(positive)).astype(np.bool_)
    return {
        name: _all_metrics(positive[chosen], logits[chosen], codes[chosen], number_of_users, bins)
        for name, chosen in slices.items()
    }


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Returns 1 / (1 + exp(-logit)) in float64, without overflow."""
    probabilities: _Floats = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return probabilities


def paired_difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float | int | None]:
    """Returns the mean difference over seeds, with its 95 % interval by Student's t for paired samples.

    The interval is about the chance in training (initial weights, order of batches) on the rows that were evaluated,
    not about the choice of those rows; for that see `bootstrap_auc_difference`.

    Args:
        ours: One figure a seed. `None` or NaN: not defined.
        theirs: The other model's, of the same seeds in the same order.

    Returns:
        `{"difference": mean of ours - theirs, "low": .., "high": .., "seeds": int}`. All but `seeds` are `None` if a
        figure is not defined or there is none; `low` and `high` are `None` if there is only one seed.

    Raises:
        DataError: The two are not of one length.
    """
    first, second = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(
            f"`ours` and `theirs` must hold one figure for each seed. Received: shapes {first.shape} and {second.shape}"
        )
    seeds = len(first)
    differences = first - second
    if not seeds or np.isnan(differences).any():
        return {"difference": None, "low": None, "high": None, "seeds": seeds}
    mean = float(differences.mean())
    if seeds == 1:
        return {"difference": mean, "low": None, "high": None, "seeds": 1}
    half_width = student_t_quantile(seeds - 1) * float(differences.std(ddof=1)) / math.sqrt(seeds)
    return {"difference": mean, "low": mean - half_width, "high": mean + half_width, "seeds": seeds}


def student_t_quantile(degrees_of_freedom: int, confidence: float = CONFIDENCE) -> float:
    """Returns the t that |T| stays below with probability `confidence`, for Student's T.

    For a whole number of degrees of freedom the distribution function is a finite sum in the angle arctan(t /
    sqrt(degrees)) (Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4); the angle is found
    by bisection, to the last bit or so. This saves a dependency on SciPy for one number.

    Args:
        degrees_of_freedom: int, at least 1.
        confidence: float, above 0 and below 1. Defaults to 0.95.

    Raises:
        DataError: An argument is out of range.

    Example:
        >>> round(student_t_quantile(4), 3)
        2.776
    """
    if degrees_of_freedom < 1 or not 0 < confidence < 1:
        raise DataError(
            "`degrees_of_freedom` must be at least 1 and `confidence` between 0 and 1. "
            f"Received: `degrees_of_freedom={degrees_of_freedom}`, `confidence={confidence}`"
        )
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _probability_within(middle, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(middle) * math.sqrt(degrees_of_freedom)


def bootstrap_auc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    users: ArrayLike,
    repetitions: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Returns the difference of two models' AUC on the same rows, with a 95 % interval from resampling users.

    Rows of one user depend on each other, so whole users are drawn, with replacement, as many as there are; a user
    drawn twice counts twice. The interval is about the choice of users, for these two trained models as they are; for
    chance in training see `paired_difference`. It is the percentile interval of Efron and Tibshirani, "An Introduction
    to the Bootstrap" (1993), chapter 13.

    The rows are sorted once. A repetition is then a product of a matrix and a vector, and with more than 2,048 users a
    cumulative sum over the rows (1,000 repetitions over 88,000 rows: 0.3 seconds, and 11).

    Args:
        labels: (rows,), 0 or 1.
        scores_a: (rows,), of our model.
        scores_b: (rows,), of the one that it is compared with.
        users: (rows,) integers or strings, the user of each row.
        repetitions: int. Defaults to 1000.
        seed: int. Equal seeds give equal intervals. Defaults to 0.

    Returns:
        `{"difference": AUC of a - AUC of b on the rows themselves, "low": .., "high": ..}`, all `None` if one class is
        missing. `low` and `high` are `None` if there is only one user. Repetitions that happen to draw one class alone
        are left out.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, a score is NaN, or `repetitions` is less than 1.
    """
    if repetitions < 1:
        raise DataError(f"`repetitions` must be at least 1. Received: `repetitions={repetitions}`")
    positive, first = _labels_and("scores_a", labels, scores_a)
    _, second = _labels_and("scores_b", labels, scores_b)
    codes, number_of_users = _codes("users", users, len(positive))
    difference = auc(positive, first) - auc(positive, second)
    if math.isnan(difference):
        return {"difference": None, "low": None, "high": None}
    if number_of_users == 1:
        return {"difference": difference, "low": None, "high": None}

    drawn = [_drawn_auc(positive, scores, codes, number_of_users, repetitions, seed) for scores in (first, second)]
    low, high = percentile_interval(drawn[0] - drawn[1])
    return {"difference": difference, "low": low, "high": high}


def bootstrap_auc(
    labels: ArrayLike, scores: ArrayLike, users: ArrayLike, repetitions: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Returns the AUC on each of many redrawn sets of users: what `bootstrap_auc_difference` subtracts.

    Equal users and seeds give equal draws, so for models that were evaluated on the same rows the results are paired: any two
    of them can be subtracted, and those of several seeds of one model averaged, long after the predictions are gone.

    Args:
        labels: (rows,), 0 or 1.
        scores: (rows,).
        users: (rows,) integers or strings, the user of each row. As many are drawn, with replacement, as there are.
        repetitions: int. Defaults to 1000.
        seed: int. Defaults to 0.

    Returns:
        float64 (repetitions,); NaN for a draw that has one class alone.

    Raises:
        DataError: As `bootstrap_auc_difference`.
    """
    if repetitions < 1:
        raise DataError(f"`repetitions` must be at least 1. Received: `repetitions={repetitions}`")
    positive, numbers = _labels_and("scores", labels, scores)
    codes, number_of_users = _codes("users", users, len(positive))
    return _drawn_auc(positive, numbers, codes, number_of_users, repetitions, seed)


def percentile_interval(drawn: ArrayLike) -> tuple[float | None, float | None]:
    """Returns the 95 % percentile interval of a bootstrap's figures; NaN among them are left out; `None` if no other is there."""
    figures = np.asarray(drawn, np.float64)
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return None, None
    low, high = np.quantile(figures, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _drawn_auc(
    positive: _Booleans, scores: _Floats, codes: _Integers, number_of_users: int, repetitions: int, seed: int
) -> _Floats:
    if not number_of_users:
        return np.full(repetitions, np.nan)
    generator = np.random.default_rng(seed)
    few = number_of_users <= _MOST_USERS_IN_A_MATRIX
    auc_under = (_AucByUsers if few else _WeightedAuc)(positive, scores, codes)
    drawn = np.empty(repetitions)
    for i in range(repetitions):
        times_drawn = np.bincount(generator.integers(number_of_users, size=number_of_users), minlength=number_of_users)
        drawn[i] = auc_under(times_drawn.astype(np.float64))
    return drawn


class _AucByUsers:
    """AUC of fixed scores under changing weights of few users: counts once, for each two users, the pairs of rows that are won.

    A call is then a product of a matrix and a vector, whatever the number of rows. Gives what `_WeightedAuc` gives.
    """

    def __init__(self, positive: _Booleans, scores: _Floats, users: _Integers) -> None:
        number = int(users.max()) + 1
        order = np.argsort(scores[~positive])
        negative_scores, negative_users = scores[~positive][order], users[~positive][order]
        self._positives = np.bincount(users[positive], minlength=number).astype(np.float64)
        self._negatives = np.bincount(negative_users, minlength=number).astype(np.float64)
        lower = np.searchsorted(negative_scores, scores[positive], side="left")
        lower_or_equal = np.searchsorted(negative_scores, scores[positive], side="right")
        self._won = _pairs_below(users[positive], lower, negative_users, number)
        if not np.array_equal(lower, lower_or_equal):
            self._won += _pairs_below(users[positive], lower_or_equal, negative_users, number)
            self._won /= 2

    def __call__(self, weights: _Floats) -> float:
        """Returns the AUC where each row of user u counts `weights[u]` times; NaN if one class has no weight."""
        pairs = float(weights @ self._positives) * float(weights @ self._negatives)
        return float(weights @ self._won @ weights) / pairs if pairs else math.nan


def _pairs_below(users: _Integers, below: _Integers, sorted_users: _Integers, number: int) -> _Floats:
    """Counts for each two users u and v the pairs of a row of u and one of the sorted rows before its place that is of v.

    Args:
        users: (rows,), the user of each row.
        below: (rows,), how many of the sorted rows lie before its place.
        sorted_users: (sorted rows,), the user of each sorted row.
        number: How many users there are.

    Returns:
        float64 (number, number).
    """
    # Whole blocks of sorted rows are counted by a product of matrices, what is left of the last block pair by pair.
    block = max(_SMALLEST_BLOCK, math.ceil(len(sorted_users) / _MOST_BLOCKS))
    blocks = len(sorted_users) // block + 1
    in_block = np.bincount(np.arange(len(sorted_users)) // block * number + sorted_users, minlength=blocks * number)
    before_block = np.zeros((blocks + 1, number))
    np.cumsum(in_block.reshape(blocks, number), axis=0, out=before_block[1:])
    whole = np.bincount(users * (blocks + 1) + below // block, minlength=number * (blocks + 1))
    pairs: _Floats = whole.reshape(number, blocks + 1).astype(np.float64) @ before_block
    rest = below % block
    at_once = max(1, _PAIRS_AT_ONCE // block)
    for start in range(0, len(users), at_once):
        chosen = slice(start, start + at_once)
        row = np.repeat(np.arange(len(rest[chosen])), rest[chosen])
        first = (below - rest)[chosen] - (np.cumsum(rest[chosen]) - rest[chosen])
        place = np.arange(len(row)) + first[row]
        single = np.bincount(users[chosen][row] * number + sorted_users[place], minlength=number * number)
        pairs += single.reshape(number, number)
    return pairs


class _WeightedAuc:
    """AUC of fixed scores under changing weights of the users: sorts once, then takes one cumulative sum a call."""

    def __init__(self, positive: _Booleans, scores: _Floats, users: _Integers) -> None:
        order = np.argsort(scores[~positive])
        negative_scores = scores[~positive][order]
        self._negative_users = users[~positive][order]
        self._positive_users = users[positive]
        # For each positive row the number of negative rows with a lower score, and with a lower or equal one.
        self._lower = np.searchsorted(negative_scores, scores[positive], side="left")
        self._lower_or_equal = np.searchsorted(negative_scores, scores[positive], side="right")
        self._has_ties = not np.array_equal(self._lower, self._lower_or_equal)
        # In rising order, so that the look-ups below run through memory once.
        order = np.argsort(self._lower)
        self._positive_users, self._lower = self._positive_users[order], self._lower[order]
        self._lower_or_equal = self._lower_or_equal[order]
        self._mass_below = np.zeros(len(negative_scores) + 1)

    def __call__(self, weights: _Floats) -> float:
        """Returns the AUC where each row of user u counts `weights[u]` times; NaN if one class has no weight."""
        np.cumsum(weights[self._negative_users], out=self._mass_below[1:])
        positive_weights = weights[self._positive_users]
        pairs = float(positive_weights.sum() * self._mass_below[-1])
        if not pairs:
            return math.nan
        won = positive_weights @ self._mass_below[self._lower]
        if self._has_ties:
            won = (won + positive_weights @ self._mass_below[self._lower_or_equal]) / 2
        return float(won) / pairs


def _labels_and(name: str, labels: ArrayLike, values: ArrayLike) -> tuple[_Booleans, _Floats]:
    """Returns labels as booleans and values as float64, both (rows,), checked."""
    given = _flat("labels", labels)
    positive = given == 1
    wrong = ~(positive | (given == 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"`labels` must be 0 or 1. Received: {given.tolist()[row]!r} at row {row}. "
            "Make a binary label first (`prepare` has rules)."
        )
    numbers = _flat(name, values).astype(np.float64)
    if numbers.shape != positive.shape:
        raise DataError(
            f"`labels` and `{name}` must be of one length. Received: {len(positive)} and {len(numbers)} rows"
        )
    not_a_number = np.isnan(numbers)
    if not_a_number.any():
        raise DataError(
            f"`{name}` must be numbers. Received: NaN in {int(not_a_number.sum())} of {len(numbers)} rows, the first "
            f"at row {int(np.argmax(not_a_number))}. A model that predicts NaN has diverged: lower its learning rate, "
            "and look for NaN in its inputs."
        )
    return positive, numbers


def _labels_and_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[_Booleans, _Floats]:
    positive, numbers = _labels_and("probabilities", labels, probabilities)
    outside = (numbers < 0) | (numbers > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"`probabilities` must be from 0 to 1. Received: {numbers[row]} at row {row}. "
            "Are they logits? Pass `sigmoid(logits)`."
        )
    return positive, numbers


def _flat(name: str, values: ArrayLike) -> NDArray[Any]:
    """Returns (rows,), from (rows,) or from the (rows, 1) that Keras predicts."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"`{name}` must be of shape (rows,) or (rows, 1). Received: shape {array.shape}")
    return array


def _column(name: str, values: ArrayLike, rows: int) -> NDArray[Any]:
    array = _flat(name, values)
    if len(array) != rows:
        raise DataError(f"`{name}` must have one value for each row. Received: {len(array)} values for {rows} rows")
    return array


def _codes(name: str, groups: ArrayLike, rows: int) -> tuple[_Integers, int]:
    """Numbers groups from 0; returns each row's number and how many groups there are."""
    array = _column(name, groups, rows)
    if array.dtype == object:  # sorting fixed-width strings is several times faster than sorting Python objects
        array = array.astype(str)
    values, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64), len(values)


def _mid_ranks(values: _Floats) -> _Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    order = np.argsort(values)
    ranks = np.empty(len(values))
    ranks[order] = _mid_ranks_of_sorted(values[order])
    return ranks


def _mid_ranks_of_sorted(*keys: NDArray[Any]) -> _Floats:
    """Ranks from 1 of rows that are sorted by `keys`; rows that are equal in all keys share the mean of their ranks."""
    rows = len(keys[0])
    starts_run = np.ones(rows, np.bool_)
    if rows:
        starts_run[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    starts = np.flatnonzero(starts_run)
    ends = np.append(starts[1:], rows)
    return np.repeat((starts + ends + 1) / 2, ends - starts)


def _auc_of_groups(positive: _Booleans, scores: _Floats, codes: _Integers, groups: int) -> _Floats:
    """AUC of each of the groups 0 to `groups` - 1, NaN where it has one class or no row. One sort for all of them."""
    order = np.lexsort((scores, codes)) if groups > 1 else np.argsort(scores)
    positive, scores, codes = positive[order], scores[order], codes[order]
    rows = np.bincount(codes, minlength=groups)
    positives = np.bincount(codes[positive], minlength=groups)
    negatives = rows - positives
    ranks = _mid_ranks_of_sorted(codes, scores) - (np.cumsum(rows) - rows)[codes]
    rank_sums = np.bincount(codes[positive], weights=ranks[positive], minlength=groups)
    pairs = positives.astype(np.float64) * negatives
    won = rank_sums - positives * (positives + 1) / 2
    return np.divide(won, pairs, out=np.full(groups, np.nan), where=pairs > 0)


def _gauc(positive: _Booleans, scores: _Floats, codes: _Integers, groups: int) -> float:
    values = _auc_of_groups(positive, scores, codes, groups)
    has_both = ~np.isnan(values)
    weights = np.bincount(codes, minlength=groups)[has_both]
    if not len(weights):
        return math.nan
    return float(values[has_both] @ weights / weights.sum())


def _is_active(codes: _Integers, groups: int, interactions: NDArray[Any]) -> _Booleans:
    """Whether each row's user has more interactions than the median user; each user counts once in the median."""
    if not groups:
        return np.zeros(0, np.bool_)
    of_user = np.zeros(groups, np.float64)
    of_user[codes] = interactions
    return np.asarray(of_user[codes] > np.median(of_user))


def _all_metrics(
    positive: _Booleans, logits: _Floats, codes: _Integers, groups: int, bins: int
) -> dict[str, float | int | None]:
    return {
        "rows": len(positive),
        "positives": int(positive.sum()),
        "auc": _or_none(auc(positive, logits)),
        "gauc": _or_none(_gauc(positive, logits, codes, groups)),
        "log_loss": _or_none(log_loss_from_logits(positive, logits)),
        "calibration_error": _or_none(calibration_error(positive, sigmoid(logits), bins)),
    }


def _probability_within(angle: float, degrees_of_freedom: int) -> float:
    """P(|T| < tan(angle) * sqrt(degrees)), Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2
    term = cosine if odd else 1.0
    total = term if degrees_of_freedom > 1 else 0.0
    for k in range(3 if odd else 2, degrees_of_freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _mean(values: _Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _or_none(value: float) -> float | None:
    """What JSON can hold: `None` for NaN and the infinities."""
    return float(value) if math.isfinite(value) else None
