"""Preferences: which directions of the knowledge tell what users like, learned from their past in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kser_tf.layers.catalogue import with_fixed_signs
from kser_tf.layers.knowledge_lookup import KnowledgeLookup
from kser_tf.layers.knowledge_profile import KnowledgeProfile

# `l`, in shares of the greatest eigenvalue.
_RIDGE = 0.1
# Examples of the average item that each item's own mean is mixed with.
_PRIOR_EXAMPLES = 10
# Labels whose surprising part has a smaller variance tell nothing but rounding.
_SMALLEST = 1e-12


class Past(NamedTuple):
    """A batch of examples, as `adapt_to_preferences` takes them.

    Args:
        candidate: int32 `(batch,)`. The candidates' rows in the store, -1 for none.
        history: int32 `(batch, length)`. The rows of what the user did before.
        there: bool `(batch, length)`. Where there is something in the history.
        feedback: `(batch, length, n)`. What the user thought of each; `n` may be 0.
        labels: `(batch,)`. Of the candidates.
    """

    candidate: Any
    history: Any
    there: Any
    feedback: Any
    labels: Any


def adapt_to_preferences(profile: KnowledgeProfile, lookup: KnowledgeLookup, examples: Iterable[Past]) -> int:
    """Makes profiles alike whose entities the same users like, instead of those whose texts are alike in any way.

    With the parts `x` of an entity's knowledge (`KnowledgeProfile.parts`: of each field its own), a candidate `i`, a history of
    entities `j` and each number `v` of the feedback `r_j`, whose mean over the history is `m`,

        u_v = sum_j (r_jv - m_v) x_j / sqrt(length)
        C_v = E[(y - y') x_i u_v^T]
        A = S^-1 (sum_v w_v C_v) S^-1        with S = E[x_i x_i^T] + l I

    says how surprising labels `y` depend on products of what the candidate's texts say and those of the past; `y'` is what the
    candidate's own mean and the user's mean feedback explain. What each feedback is worth, `w`, is the foremost left singular
    vector of all `C_v`, one a row: the weights with which they are most alike; of both signs the one by which users like what is
    like the things they liked. Without any feedback it counts what is in the history. The directions are the foremost
    eigenvectors of `(A + A^T) / 2` times the roots of their eigenvalues: the product of two profiles is then what `A` says of
    their entities. Since it goes by texts, it holds for entities that no user has seen. It needs no user ids, and two runs on
    the same examples learn the same.

    Args:
        profile: The layer, adapted to the store.
        lookup: What looks up the store's chunks.
        examples: Of training, iterated over twice, in any order. A hundred thousand are enough; of some twenty thousand (3 % of
            MovieLens-1M's users) less was learned than the texts say as they are.

    Returns:
        From how many examples the directions were learned: those with a known candidate and a history. 0 where they tell
        nothing; the directions then stay as they were.

    Raises:
        ValueError: There is not one label for each candidate.

    Example:

    >>> profile.adapt(store)
    >>> batch = Past(lookup.rows(movie), lookup.rows(history), history != "", stars[..., None], labels)
    >>> adapt_to_preferences(profile, lookup, [batch])

    References:
        - [Kulis, Metric Learning: A Survey, 2013](https://doi.org/10.1561/2200000019)
        - [Izenman, Reduced-rank regression for the multivariate linear model,
          1975](https://doi.org/10.1016/0047-259X(75)90042-1)
    """
    explained = _Explained(examples)
    products: Any = 0.0
    covariance: Any = 0.0
    count, surprise = 0, 0.0
    for batch in map(_usable, examples):
        candidate, users = _candidates_and_users(profile, lookup, batch)
        surprising = batch.labels - explained.of(batch)
        products += np.stack([(surprising[:, None] * candidate).T @ user for user in users])
        covariance += candidate.T @ candidate
        count += len(surprising)
        surprise += (surprising**2).sum()
    if surprise <= _SMALLEST * count:
        return 0
    worth = np.linalg.svd(products.reshape(len(products), -1), full_matrices=False)[0][:, 0]
    inverse = _inverse(covariance / count)
    metric = inverse @ np.tensordot(worth, products / count, 1) @ inverse
    metric = (metric + metric.T) * np.sign(np.trace(metric))
    values, vectors = np.linalg.eigh(metric)
    foremost = slice(None, -profile.directions.shape[1] - 1, -1)
    strength = np.sqrt(np.maximum(values[foremost], 0))
    if not strength.any():
        return 0
    # Profiles have unit length, so only their shares count.
    profile.set_directions(with_fixed_signs(vectors[:, foremost] * (strength / strength.max())))
    return count


def _usable(batch: Past) -> Past:
    """The rows, as NumPy, that have a candidate with knowledge and a history; without what stands behind `there`."""
    candidate, history, there, feedback, labels = (np.asarray(each) for each in batch)
    if labels.size != candidate.size:
        raise ValueError(
            f"there is to be one label for each candidate. Received: labels of shape {labels.shape}, candidates of shape "
            f"{candidate.shape}"
        )
    rows = (candidate >= 0) & there.any(1)
    feedback = np.where(there[..., None], feedback, 0)
    labels = labels.reshape(-1).astype(np.float64)
    return Past(*(each[rows] for each in (candidate, history, there, feedback, labels)))


class _Explained:
    """What an item's own mean and a user's mean feedback say of the label, learned from examples."""

    def __init__(self, examples: Iterable[Past]) -> None:
        batches = [(batch.candidate, batch.labels, _mean_feedback(batch)) for batch in map(_usable, examples)]
        if not batches:
            return
        items, labels, feedback = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        self._mean = labels.mean() if len(labels) else 0.0
        self._items, numbers = np.unique(items, return_inverse=True)
        left = labels - self._mean
        self._of_items = np.bincount(numbers, left) / (np.bincount(numbers) + _PRIOR_EXAMPLES)
        self._mean_feedback = feedback.mean(0) if len(feedback) else np.zeros(feedback.shape[1])
        centred = feedback - self._mean_feedback
        ridge = _PRIOR_EXAMPLES * np.eye(feedback.shape[1])
        self._of_feedback = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (left - self._of_items[numbers]))

    def of(self, batch: Past) -> np.ndarray:
        """Returns it for each row, float64 `(rows,)`; of items that were not among the examples, as of a mean item."""
        places = np.minimum(np.searchsorted(self._items, batch.candidate), len(self._items) - 1)
        known = self._items[places] == batch.candidate if len(self._items) else np.zeros(0, bool)
        of_item = np.where(known, self._of_items[places], 0.0)
        explained: np.ndarray = self._mean + of_item + (_mean_feedback(batch) - self._mean_feedback) @ self._of_feedback
        return explained


def _mean_feedback(batch: Past) -> np.ndarray:
    mean: np.ndarray = batch.feedback.sum(1, dtype=np.float64) / batch.there.sum(1, keepdims=True)
    return mean


def _candidates_and_users(
    profile: KnowledgeProfile, lookup: KnowledgeLookup, batch: Past
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The candidates' parts, and for each number of the feedback what the users' past adds up to; each float64 `(rows, parts)`."""
    count = len(batch.candidate)
    rows, places = np.unique(np.concatenate([batch.candidate, batch.history.ravel()]), return_inverse=True)
    parts = tf.cast(profile.parts(*lookup.lookup_rows(tf.constant(rows, tf.int32))), tf.float64)
    of_history = places.ravel()[count:].reshape(batch.history.shape)
    scale = np.sqrt(batch.there.sum(1, keepdims=True))

    def summed(weights: np.ndarray) -> np.ndarray:
        owners, positions = np.nonzero(weights)
        indices = np.stack([owners, of_history[owners, positions]], 1)
        values = weights[owners, positions].astype(np.float64)
        sparse = tf.SparseTensor(indices, values, (count, len(rows)))
        total: np.ndarray = tf.sparse.sparse_dense_matmul(sparse, parts).numpy() / scale
        return total

    everything, mean = summed(batch.there), _mean_feedback(batch)
    users = [summed(batch.feedback[..., v]) - mean[:, v : v + 1] * everything for v in range(mean.shape[1])]
    return parts.numpy()[places.ravel()[:count]], users or [everything]


def _inverse(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    inverse: np.ndarray = vectors / (values + _RIDGE * max(values[-1], _SMALLEST)) @ vectors.T
    return inverse
