"""Where knowledge helps and where it hurts: differences of the log loss, item by item and group by group."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd

from kser_tf.metrics import CONFIDENCE, student_t_quantile

_quantile = functools.lru_cache(maxsize=None)(student_t_quantile)


def row_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the log loss of each row, float64 `(rows,)`."""
    logits = np.asarray(logits, np.float64)
    return np.logaddexp(0, logits) - np.asarray(labels, np.float64) * logits


def differences_by_group(groups: np.ndarray, users: np.ndarray, base: np.ndarray, model: np.ndarray) -> pd.DataFrame:
    """Returns for each group the mean loss of two models, and their difference with its 95 % interval.

    A user's rows are not independent of each other, so the interval is about the choice of users (Student's t on the
    linearised mean, clustered by user). With one row a user it is the paired t interval over the rows.

    With the difference `d` over a group's `n` rows, each user's sum `s_u` of differences over `n_u` rows, and `m` users,

        variance = m / (m - 1) sum over the users of (s_u - d n_u)^2 / n^2

    Args:
        groups: `(rows,)`, the group of each row. Rows of -1 are in none.
        users: `(rows,)`, the user of each row.
        base: `(rows,)`, loss of the base on each row.
        model: `(rows,)`, loss of the model.

    Returns:
        A row a group, by the group: `rows`, `users`, `base`, `model`, `difference` (model - base: below zero is better), its
        standard error `error`, `low` and `high`, NaN where there is only one user.
    """
    frame = pd.DataFrame(
        {"group": groups, "user": pd.factorize(users)[0], "base": base, "model": model, "difference": model - base}
    )
    frame = frame[frame["group"] >= 0]
    figures = frame.groupby("group").agg(
        rows=("base", "size"), base=("base", "mean"), model=("model", "mean"), difference=("difference", "mean")
    )
    by_user = frame.groupby(["group", "user"])["difference"].agg(["sum", "size"]).reset_index()
    centre = figures["difference"].loc[by_user["group"]].to_numpy()
    by_user["squared"] = (by_user["sum"] - centre * by_user["size"]) ** 2
    per_group = by_user.groupby("group")["squared"].agg(["sum", "size"])
    figures.insert(1, "users", per_group["size"])
    users_of = figures["users"].to_numpy()
    corrected = per_group["sum"].to_numpy() * users_of / np.maximum(users_of - 1, 1)
    error = np.where(users_of > 1, np.sqrt(corrected) / figures["rows"].to_numpy(), np.nan)
    figures["error"] = error
    half_width = error * np.array([_quantile(max(int(count) - 1, 1)) for count in users_of])
    figures["low"], figures["high"] = figures["difference"] - half_width, figures["difference"] + half_width
    return figures


def count_worse(figures: pd.DataFrame, least_users: int) -> dict[str, Any]:
    """Returns how many of the groups are worse with knowledge, and how many of these beyond chance.

    Returns:
        `groups` with at least so many users, `too_small`, the number of the others, `worse` and `better` by the difference,
        `surely_worse` and `surely_better` by the interval, `by_chance`, how many on each side would look sure if knowledge
        changed nothing, and `worse_of_all` and `better_of_all` by intervals so wide that in 95 of 100 such comparisons of all
        groups not one would look sure (Bonferroni).
    """
    enough = figures[figures["users"] >= least_users]
    confidence = 1 - (1 - CONFIDENCE) / max(len(enough), 1)
    widths = enough["error"] * np.array([_quantile(max(int(count) - 1, 1), confidence) for count in enough["users"]])
    return {
        "groups": len(enough),
        "too_small": len(figures) - len(enough),
        "worse": int((enough["difference"] > 0).sum()),
        "better": int((enough["difference"] < 0).sum()),
        "surely_worse": int((enough["low"] > 0).sum()),
        "surely_better": int((enough["high"] < 0).sum()),
        "by_chance": (1 - CONFIDENCE) / 2 * len(enough),
        "worse_of_all": int((enough["difference"] > widths).sum()),
        "better_of_all": int((enough["difference"] < -widths).sum()),
    }


def most_sure(figures: pd.DataFrame, least_users: int, count: int, *, worse: bool) -> pd.DataFrame:
    """Returns the groups that are worse (or better) with knowledge by most, so far as that is sure.

    They are in the order of the interval's end that is nearer to zero, so that few rows with a wild mean do not come
    first; groups whose interval holds zero are left out.
    """
    enough = figures[figures["users"] >= least_users]
    if worse:
        return enough[enough["low"] > 0].sort_values("low", ascending=False, kind="stable").head(count)
    return enough[enough["high"] < 0].sort_values("high", kind="stable").head(count)
