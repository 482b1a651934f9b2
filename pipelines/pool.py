"""The job `pool`: from knowledge about items, and what users liked and disliked at first, to knowledge about users."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kser_tf.errors import DataError
from kser_tf.files import move_up, new_directory, sha256_of_json
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.pipelines.chunk_means import chunk_means
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.job import current_result, fingerprint_of, refuse_foreign_folder, write_job
from kser_tf.schema import HISTORY_ONLY_FILE, ITEM_IS_COLD, LABEL, DatasetSchema
from kser_tf.store_format import VectorType

FIELDS = ("liked", "disliked")

# Entities looked up, or users pooled, at once.
_BATCH = 4096
# Shorter means point nowhere: what the likes have in common with the catalogue is all there is.
_NO_LENGTH = 1e-6


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Makes a knowledge store of users: what the items say that each of them liked, and disliked, at first.

    Args:
        prepared: Folder that `prepare` wrote, with `history_only`: the interactions that give no example are what is pooled.
        store: Knowledge store of the items.
        output: Folder of the users' store. One that this job wrote before is replaced; any other is left alone.
        centred: Whether the mean over all items is taken off, and what is left, in which users differ, is brought to length 1.
            Defaults to false: on MovieLens-1M it made the validation AUC worse, 0.794 in place of 0.797 (one seed): what sets a
            user apart is then large enough to be learned by heart.
        dtype: How vectors are stored: int8, float16 or float32. Defaults to float32.
    """

    __pydantic_config__ = STRICT_KEYS

    prepared: str
    store: str
    output: str
    centred: bool = False
    dtype: VectorType = "float32"


def pool(config: PoolConfig) -> dict[str, Any]:
    """Does what `PoolConfig` says.

    With the mean `m_i` of an item's chunks, a user who liked the `n` items `L` among the first interactions has

        liked = sum over L of m_i / n
              = sum over L of (m_i - c) / |sum over L of (m_i - c)|        (`centred`; c: the mean over the store's items)

    and likewise `disliked`; both fields have one chunk. All this lies strictly before every example of the user, so it knows
    nothing of them, whatever the split. Items that were taken out of training (cold ones) do not count. A user who liked
    nothing has no chunk there; one who neither liked nor disliked anything that something is known of is not in the store.

    Returns:
        Counts: `users`, and of them those with each field; `interactions`, and how many of these were of cold items or of items
        without knowledge.

    Raises:
        ConfigError: The output folder holds something else.
        DataError: The data set has no interactions that give no example.
        StoreError: The store is missing or damaged, or has ids of another type than the data set's items.
    """
    started = time.monotonic()
    refuse_foreign_folder(config.output, job="pool")
    inputs = {"prepared": fingerprint_of(config.prepared), "store": fingerprint_of(config.store)}
    if (done := current_result(config.output, job="pool", config=config, inputs=inputs)) is not None:
        return done
    schema, store = DatasetSchema.load(config.prepared), KnowledgeStore.open(config.store)
    early = _early(Path(config.prepared))
    items, codes = _vectors_of_items(store, early[schema.item_id].to_numpy(), centred=config.centred)
    counted = ~early[ITEM_IS_COLD].to_numpy() & (codes >= 0)
    users = early[schema.user_id].to_numpy()[counted]
    with new_directory(config.output, overwrite=True) as folder:
        written = KnowledgeStore.write(
            folder / "store",
            batches=_pooled(users, codes[counted], early[LABEL].to_numpy()[counted], items, to_unit=config.centred),
            fields=FIELDS,
            encoder=f"pooled: {store.manifest['encoder']}",
            dtype=config.dtype,
            # Not of a text: of what was pooled.
            text_hash=sha256_of_json(inputs),
        )
        result = {
            "users": len(written),
            **dict(zip(FIELDS, written.mask.any(2).sum(0).tolist(), strict=True)),
            "interactions": len(early),
            "of_cold_items": int(early[ITEM_IS_COLD].sum()),
            "without_knowledge": int((codes < 0).sum()),
        }
        move_up(written.path)
        write_job(folder, job="pool", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started)
    return result


def _early(prepared: Path) -> pd.DataFrame:
    """The interactions before all examples of their users."""
    path = prepared / HISTORY_ONLY_FILE
    if not path.is_file():
        raise DataError(
            f"{path} is not there: an earlier version wrote this data set. Prepare it anew, in another folder."
        )
    early = pd.read_parquet(path)
    if not len(early):
        raise DataError(
            f"{prepared} has no interactions that lie before all examples of their users, so there is nothing to pool. Prepare "
            "it with `history_only`, such as {fraction: 0.5, at_most: 30}."
        )
    return early


def _vectors_of_items(store: KnowledgeStore, ids: np.ndarray, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Means of items' chunks, float64 `(n, width)`, and for each of `ids` which of them it is, -1 without knowledge."""
    rows = store.rows(ids)
    needed, places = np.unique(rows, return_inverse=True)
    vectors = np.zeros((len(needed), store.width))
    known = np.zeros(len(needed), np.bool_)
    total, count = np.zeros(store.width), 0
    for start in range(0, len(store), _BATCH):
        block = np.arange(start, min(start + _BATCH, len(store)))
        chunks, mask = store.lookup(store.ids[block])
        there: np.ndarray = np.any(mask, axis=(1, 2))
        means = chunk_means(chunks, mask)
        total, count = total + means[there].sum(0), count + int(there.sum())
        wanted = (needed >= start) & (needed < start + len(block))
        vectors[wanted], known[wanted] = means[needed[wanted] - start], there[needed[wanted] - start]
    if centred:
        vectors -= total / max(count, 1)
    return vectors, np.where(known[places], places, -1).reshape(-1)


def _pooled(
    users: np.ndarray, codes: np.ndarray, labels: np.ndarray, items: np.ndarray, *, to_unit: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields users with their chunks `(n, 2, 1, width)` and the mask of these, in the order in which they first stand there."""
    numbers, ids = pd.factorize(users)
    order = np.argsort(numbers, kind="stable")
    numbers, codes, labels = numbers[order], codes[order], labels[order]
    if not len(ids):
        raise DataError("none of the items that users began with has knowledge. Is it the store of these items?")
    for start in range(0, len(ids), _BATCH):
        first, last = np.searchsorted(numbers, [start, min(start + _BATCH, len(ids))])
        of_batch = slice(first, last)
        sums = np.zeros((min(_BATCH, len(ids) - start), len(FIELDS), items.shape[1]))
        counts = np.zeros((len(sums), len(FIELDS), 1))
        places = (numbers[of_batch] - start, np.where(labels[of_batch] == 1, 0, 1))
        np.add.at(sums, places, items[codes[of_batch]])
        np.add.at(counts, places, 1)
        divisors: np.ndarray = np.linalg.norm(sums, axis=-1, keepdims=True) if to_unit else counts
        mask: np.ndarray = np.greater(divisors, _NO_LENGTH if to_unit else 0)
        chunks = (sums / np.where(mask, divisors, 1)).astype(np.float32)
        there = mask.any((1, 2))
        batch = ids[start : start + len(sums)]
        yield batch[there], chunks[there][:, :, None], mask[there]
