"""What ESFNet does with a store's chunks: its weights by field and place, on what they hang, what is filtered out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.metrics import auc

# Row in the store, field, position in the field.
Place = tuple[int, int, int]

# Column of a table of chunks that says which fault was planted there; no encoder and no model sees it.
FAULT_COLUMN = "fault"
# A weight below the first has taken away half of what a chunk begins with, one above the second has added half.
LOW_WEIGHT, HIGH_WEIGHT = 0.5, 1.5

_EXAMPLES = 12
_HISTOGRAM_BINS = 40
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BATCH = 4096


class Chunk(NamedTuple):
    """A chunk's text, and the fault that was planted there, if one is on record."""

    text: str
    fault: str | None


def look_at_weights(
    model: Any,
    stores: Mapping[str, KnowledgeStore],
    texts: Mapping[str, Mapping[Place, Chunk]],
    names: Mapping[str, Mapping[str, str]],
    *,
    run: str,
) -> dict[str, Any]:
    """Returns what ESFNet does: its weights by field and place, what it filters out and keeps, planted faults.

    Args:
        model: A `RankingModel`.
        stores: For each kind of entity with knowledge the store that the model looks up.
        texts: For some of them the texts of the chunks, for the examples.
        names: For some of them the entities' names, by the ids as text.
        run: str. What to call the model.

    Returns:
        `weights`, `filtered`, `kept` and `faults`, as `write_report` takes them. Kinds of entities whose chunks nothing
        weighs are left out.
    """
    inside: dict[str, Any] = {
        "weights": {"fields": [], "chunks": [], "run": run},
        "filtered": [],
        "kept": [],
        "faults": None,
    }
    for entity, store in stores.items():
        if model.extractors[entity].esf_net is None:
            continue
        weights, mask = chunk_weights(model, entity, len(store)), np.asarray(store.mask)
        inside["weights"]["fields"] += _field_figures(entity, store, weights, mask)
        inside["weights"]["chunks"] += _position_figures(entity, store, weights, mask)
        of_entity = texts.get(entity, {})
        for key, heaviest in (("kept", True), ("filtered", False)):
            inside[key] += _examples(entity, store, weights, mask, of_entity, names.get(entity, {}), heaviest=heaviest)
        faults = fault_figures(weights, mask, of_entity)
        if faults is not None:
            inside["faults"] = {**faults, "run": run, "entity": entity}
    return inside


def chunk_weights(model: Any, entity: str, rows: int) -> np.ndarray:
    """Returns ESFNet's weights for all entities of a store, float32 `(rows, fields, chunks)`."""
    found = [
        model.embedding.chunk_weights(entity, np.arange(start, min(start + _BATCH, rows), dtype=np.int32)).numpy()
        for start in range(0, rows, _BATCH)
    ]
    return np.concatenate(found) if found else np.zeros((0, 0, 0), np.float32)


def fault_figures(weights: np.ndarray, mask: np.ndarray, texts: Mapping[Place, Chunk]) -> dict[str, Any] | None:
    """Returns how well the weights tell good chunks from planted faults, or `None` where no fault is on record.

    The AUC is the probability that a good chunk weighs more than a faulty one, ties counting half.
    """
    kinds: dict[str, list[float]] = {}
    for place, chunk in texts.items():
        if mask[place]:
            kinds.setdefault(chunk.fault or "", []).append(float(weights[place]))
    good = kinds.pop("", [])
    if not good or not kinds:
        return None

    def against_good(faulty: Iterable[float]) -> float:
        faulty = list(faulty)
        return auc(np.r_[np.ones(len(good)), np.zeros(len(faulty))], np.r_[good, faulty])

    return {
        "auc": against_good(weight for faulty in kinds.values() for weight in faulty),
        "good_mean_weight": float(np.mean(good)),
        "kinds": {
            kind: {"auc": against_good(faulty), "mean_weight": float(np.mean(faulty)), "chunks": len(faulty)}
            for kind, faulty in sorted(kinds.items())
        },
    }


def weight_associations(
    entity: str,
    store: KnowledgeStore,
    weights: np.ndarray,
    statistics: np.ndarray,
    texts: Mapping[Place, Chunk],
    training_rows: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Returns how the weights go up and down with what the gate sees: Spearman's rank correlations.

    Args:
        entity: The kind of entity.
        store: Its store.
        weights: float32 `(rows, fields, chunks)`.
        statistics: float32 `(rows, fields, chunks, 3)`, from `ESFNet.statistics`.
        texts: The chunks' texts, where they are at hand.
        training_rows: `(rows,)` int, how many training rows each entity has; `None` where entities are not the
            candidates. The gate sees it through the entity's embedding alone.

    Returns:
        `{"entity", "field", "with", "correlation", "chunks"}` for each field, and over all fields under `None`. A correlation
        that is not defined, since one of the two is the same for all, is `None`.
    """
    mask = np.asarray(store.mask)
    words = np.full(mask.shape, np.nan)
    for place, chunk in texts.items():
        words[place] = len(chunk.text.split())
    seen = {
        "largest_cosine_to_neighbours": statistics[..., 0],
        "mean_cosine_to_neighbours": statistics[..., 1],
        "cosine_to_catalogue": statistics[..., 2],
        "words": words,
    }
    if training_rows is not None:
        seen["training_rows"] = np.broadcast_to(training_rows[:, None, None], mask.shape)
    found = []
    fields: list[tuple[str | None, Any]] = [(None, slice(None))]
    fields += [(field, slice(i, i + 1)) for i, field in enumerate(store.fields)]
    for field, part in fields:
        for name, values in seen.items():
            there = mask[:, part] & ~np.isnan(values[:, part])
            if there.any():
                found.append(
                    {
                        "entity": entity,
                        "field": field,
                        "with": name,
                        "correlation": spearman(weights[:, part][there], values[:, part][there]),
                        "chunks": int(there.sum()),
                    }
                )
    return found


def share_explained_by_place(weights: np.ndarray, mask: np.ndarray) -> float | None:
    """Returns how much of the weights' variance lies between the places of chunks, from 0 to 1.

    At 1 all entities' chunks at one place of a field weigh the same: nothing is told from what a chunk says.
    """
    values, places = weights[mask], np.nonzero(mask)[1] * mask.shape[2] + np.nonzero(mask)[2]
    counts = np.bincount(places)
    means = np.bincount(places, values.astype(np.float64)) / np.maximum(counts, 1)
    whole = float(np.var(values, dtype=np.float64)) if len(values) else 0.0
    if not whole:
        return None
    return float(np.average((means - values.mean(dtype=np.float64)) ** 2, weights=counts)) / whole


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation, equal values taking their mean rank; `None` where one is constant."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    length = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / length if length else None


def chunk_texts(config: Any, store: KnowledgeStore) -> dict[Place, Chunk]:
    """Returns the text of every chunk of a store, read again from the table that it was encoded from."""
    from kser_tf.pipelines.encode import read_passages

    passages = read_passages(config)
    rows, faults = store.rows(passages.ids), _faults(config, store)
    found = {}
    for entity, field, position in np.argwhere(passages.places >= 0).tolist():
        place = (int(rows[entity]), field, position)
        found[place] = Chunk(passages.texts[passages.places[entity, field, position]], faults.get(place))
    return found


def _field_figures(entity: str, store: KnowledgeStore, weights: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    top = float(weights.max(initial=2.0))
    figures = []
    for i, field in enumerate(store.fields):
        values = weights[:, i][mask[:, i]]
        if not len(values):
            continue
        counts, edges = np.histogram(values, _HISTOGRAM_BINS, (0.0, top))
        figures.append(
            {
                "entity": entity,
                "field": field,
                **_moments(values),
                "quantiles": {str(q): float(np.quantile(values, q)) for q in _QUANTILES},
                "edges": edges.tolist(),
                "counts": counts.tolist(),
            }
        )
    return figures


def _position_figures(
    entity: str, store: KnowledgeStore, weights: np.ndarray, mask: np.ndarray
) -> list[dict[str, Any]]:
    figures = []
    for i, field in enumerate(store.fields):
        for position in range(mask.shape[2]):
            values = weights[:, i, position][mask[:, i, position]]
            if len(values):
                figures.append({"entity": entity, "field": field, "position": position, **_moments(values)})
    return figures


def _moments(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "below": float((values < LOW_WEIGHT).mean()),
        "above": float((values > HIGH_WEIGHT).mean()),
        "count": len(values),
    }


def _faults(config: Any, store: KnowledgeStore) -> dict[Place, str]:
    """The planted faults that a table of one row a chunk has on record."""
    table = Path(config.table)
    if config.text_column is None or table.suffix != ".parquet" or FAULT_COLUMN not in pq.read_schema(table).names:
        return {}
    frame = pq.read_table(table, columns=[config.id_column, config.field_column, FAULT_COLUMN]).to_pandas()
    rows = store.rows(frame[config.id_column].to_numpy())
    fields = frame[config.field_column].map({field: i for i, field in enumerate(store.fields)}).to_numpy()
    positions = frame.groupby([config.id_column, config.field_column]).cumcount().to_numpy()
    return {
        (int(row), int(field), int(position)): fault
        for row, field, position, fault in zip(rows, fields, positions, frame[FAULT_COLUMN], strict=True)
        if fault
    }


def _examples(
    entity: str,
    store: KnowledgeStore,
    weights: np.ndarray,
    mask: np.ndarray,
    texts: Mapping[Place, Chunk],
    names: Mapping[str, str],
    *,
    heaviest: bool,
) -> list[dict[str, Any]]:
    """The chunks with the largest or the smallest weights, at most one an entity."""
    order = np.argsort(np.where(mask, weights, np.nan), axis=None)[: int(mask.sum())]
    chosen: dict[int, dict[str, Any]] = {}
    for place in zip(
        *(axis.tolist() for axis in np.unravel_index(order[::-1] if heaviest else order, mask.shape)), strict=True
    ):
        row, field, position = place
        if len(chosen) == _EXAMPLES:
            break
        if row not in chosen:
            chunk = texts.get(place, Chunk("", None))
            chosen[row] = {
                "entity": entity,
                "id": str(store.ids[row]),
                "name": names.get(str(store.ids[row]), str(store.ids[row])),
                "field": store.fields[field],
                "position": position,
                "weight": float(weights[place]),
                "text": chunk.text,
                "fault": chunk.fault,
            }
    return list(chosen.values())
