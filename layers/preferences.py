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
        examples: Of training, iterated over twice. A hundred thousand are enough.

    Returns:
        From how many examples the directions were learned: those with a known candidate and a history. 0 where they tell
        nothing; the directions then stay as they were.

    Example:

    >>> profile.adapt(store)
    >>> batch = Past(lookup.rows(movie), lookup.rows(history), history != "", stars[..., None], labels)
    >>> adapt_to_preferences(profile, lookup, [batch])

    References:
        - [Kulis, Metric Learning: A Survey, 2013](https://doi.org/10.1561/2200000019)
        - [Izenman, Reduced-rank regression for the multivariate linear model,
          1975](https://doi.org/10.1016/0047-259X(75)90042-1)
    """
    surprises = _surprises(examples)
    if len(surprises) == 0:
        return 0
    products: Any = 0.0
    covariance: Any = 0.0
    start = 0
    for batch in map(_usable, examples):
        stop = start + len(batch.labels)
        candidate, users = _candidates_and_users(profile, lookup, batch)
        surprising = surprises[start:stop, None] * candidate
        products += np.stack([surprising.T @ user for user in users])
        covariance += candidate.T @ candidate
        start = stop
    worth = np.linalg.svd(products.reshape(len(products), -1), full_matrices=False)[0][:, 0]
    inverse = _inverse(covariance / start)
    metric = inverse @ np.tensordot(worth, products / start, 1) @ inverse
    metric = (metric + metric.T) * np.sign(np.trace(metric))
    values, vectors = np.linalg.eigh(metric)
    foremost = slice(None, -profile.directions.shape[1] - 1, -1)
    strength = np.sqrt(np.maximum(values[foremost], 0))
    if not strength.max() > _SMALLEST:
        return 0
    # Profiles have unit length, so only their shares count.
    profile.set_directions(with_fixed_signs(vectors[:, foremost] * (strength / strength.max())))
    return start


def _usable(batch: Past) -> Past:
    """The rows, as NumPy, that have a candidate with knowledge and a history; without what stands behind `there`."""
    candidate, history, there, feedback, labels = (np.asarray(each) for each in batch)
    rows = (candidate >= 0) & there.any(1)
    feedback = np.where(there[..., None], feedback, 0)
    return Past(*(each[rows] for each in (candidate, history, there, feedback, labels.reshape(len(rows)))))


def _surprises(examples: Iterable[Past]) -> np.ndarray:
    """The part of the label that is not explained, of all usable examples, float64 `(rows,)`."""
    items, labels, means = [], [], []
    for batch in map(_usable, examples):
        items.append(batch.candidate)
        labels.append(batch.labels.astype(np.float64))
        means.append(_mean_feedback(batch))
    label = np.concatenate([np.zeros(0), *labels])
    if len(label) == 0:
        return label
    item, mean = np.concatenate(items), np.concatenate(means)
    surprise = label - label.mean()
    _, number = np.unique(item, return_inverse=True)
    surprise -= (np.bincount(number, surprise) / (np.bincount(number) + _PRIOR_EXAMPLES))[number]
    centred = mean - mean.mean(0)
    ridge = _PRIOR_EXAMPLES * np.eye(mean.shape[1])
    explained: np.ndarray = centred @ np.linalg.solve(centred.T @ centred + ridge, centred.T @ surprise)
    return surprise - explained


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
