"""What a run's report says: gathers the figures of all its models, and looks inside the extractor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.metrics import auc, bootstrap_auc_difference, paired_difference, slice_rows
from kser_tf.pipelines.evaluate import LOGITS_FILE
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.provenance import command
from kser_tf.schema import ITEM_IS_COLD, ITEM_TRAINING_ROWS, LABEL, USER_INTERACTIONS, DatasetSchema

# Row in the store, field, position in the field.
Place = tuple[int, int, int]

BASE = "base"
# Column of a table of chunks that says which fault was planted there; no encoder and no model sees it.
FAULT_COLUMN = "fault"
_EXAMPLES = 12
_HISTOGRAM_BINS = 40
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BATCH = 4096


class Chunk(NamedTuple):
    """A chunk's text, and the fault that was planted there, if one is on record."""

    text: str
    fault: str | None


def build_report(
    config: Any, models: Sequence[Any], served: Any, encode_configs: dict[str, Any], prepared: Path
) -> dict[str, Any]:
    """Returns the report's figures, but for export, check and steps.

    Args:
        config: The `RunConfig`.
        models: The `Trained` models.
        served: The one of them that is exported, and looked inside.
        encode_configs: For each kind of entity how its texts were encoded.
        prepared: Folder of the prepared data set.
    """
    schema = DatasetSchema.load(prepared)
    comparisons = compare(models, prepared, schema)
    job = read_job(prepared)
    report: dict[str, Any] = {
        "title": config.title or config.name,
        "notice": config.notice,
        "data": {
            "splits": schema.splits,
            "protocol": schema.protocol,
            "features": [
                {"name": f.name, "kind": f.kind, "vocabulary": f.vocabulary, "entity": f.entity}
                for f in schema.features
            ],
        },
        "store": {
            entity: KnowledgeStore.open(c.output, verify=False).describe() for entity, c in encode_configs.items()
        },
        "runs": [run_figures(model) for model in models],
        "comparisons": comparisons,
        "versions": job["versions"] if job else {},
        "command": command(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with_knowledge = next((m for m in [served, *models] if m.variant in ("all_parameters", "extractor_only")), None)
    if with_knowledge is not None:
        report |= look_inside(with_knowledge, encode_configs, config.names)
    report["summary"] = summary(report)
    return report


def compare(models: Sequence[Any], prepared: Path, schema: DatasetSchema) -> list[dict[str, Any]]:
    """Returns the difference in AUC of each variant to the base, slice by slice.

    Over several seeds: paired differences with Student's t interval. With one seed: a bootstrap over users, which tells how
    sure the difference is on these users, not how it would vary from one training to the next.
    """
    found = []
    pairs = sorted({(model.backbone, model.variant) for model in models if model.variant != BASE})
    table = pq.read_table(
        prepared / "test.parquet", columns=[LABEL, schema.user_id, ITEM_IS_COLD, ITEM_TRAINING_ROWS, USER_INTERACTIONS]
    )
    columns = {name: table[name].to_numpy() for name in table.column_names}
    slices = slice_rows(
        columns[schema.user_id], columns[ITEM_TRAINING_ROWS], columns[ITEM_IS_COLD], columns[USER_INTERACTIONS]
    )
    for backbone, variant in pairs:
        ours = {m.seed: m for m in models if (m.backbone, m.variant) == (backbone, variant)}
        bases = {m.seed: m for m in models if (m.backbone, m.variant) == (backbone, BASE)}
        seeds = sorted(set(ours) & set(bases))
        if not seeds:
            continue
        for name, rows in slices.items():
            if len(seeds) > 1:
                aucs = [[by_seed[seed].metrics["slices"][name]["auc"] for seed in seeds] for by_seed in (ours, bases)]
                difference = paired_difference(aucs[0], aucs[1])
                how = f"t interval over {len(seeds)} seeds"
            else:
                scores = [
                    np.load(m.folder / "evaluation-test" / LOGITS_FILE)[rows] for m in (ours[seeds[0]], bases[seeds[0]])
                ]
                difference = bootstrap_auc_difference(
                    columns[LABEL][rows], scores[0], scores[1], columns[schema.user_id][rows]
                )
                how = "bootstrap over users, 1 seed"
            found.append(
                {
                    "backbone": backbone,
                    "variant": variant,
                    "against": BASE,
                    "slice": name,
                    "metric": "auc",
                    **{key: difference[key] for key in ("difference", "low", "high")},
                    "how": how,
                    "seeds": len(seeds),
                }
            )
    return found


def look_inside(model: Any, encode_configs: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Returns what ESFNet does: its weights by field and chunk, what it filters out and keeps, planted faults.

    Args:
        model: A `Trained` model with knowledge.
        encode_configs: For each kind of entity how its texts were encoded; the texts are read again for the examples.
        names: For some kinds of entities the `NameTable` of their names.
    """
    from kser_tf.models.model_folder import load_model

    name = f"{model.backbone}/{model.variant}/seed-{model.seed}"
    ranking_model = load_model(model.folder)
    inside: dict[str, Any] = {
        "weights": {"fields": [], "chunks": [], "run": name},
        "filtered": [],
        "kept": [],
        "faults": None,
    }
    for entity, adaptor in ranking_model.extractors.items():
        if adaptor.esf_net is None:  # nothing weighs the chunks
            continue
        store = KnowledgeStore.open(encode_configs[entity].output)
        weights = chunk_weights(ranking_model, entity, len(store))
        mask = np.asarray(store.mask)
        inside["weights"]["fields"] += _field_figures(entity, store, weights, mask)
        inside["weights"]["chunks"] += _position_figures(entity, store, weights, mask)
        texts = chunk_texts(encode_configs[entity], store)
        named = _names(names.get(entity), store)
        for key, heaviest in (("kept", True), ("filtered", False)):
            inside[key] += _examples(entity, store, weights, mask, texts, named, heaviest=heaviest)
        faults = fault_figures(weights, mask, texts)
        if faults is not None:
            inside["faults"] = {**faults, "run": name, "entity": entity}
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


def summary(report: dict[str, Any]) -> list[str]:
    """Returns the report's first sentences, made from its figures."""
    lines = []
    for comparison in report["comparisons"]:
        if comparison["slice"] in ("all", "cold") and None not in (comparison["difference"], comparison["low"]):
            where = "all test rows" if comparison["slice"] == "all" else "cold items"
            lines.append(
                f"{comparison['backbone']}, {comparison['variant']} against {comparison['against']}, {where}: "
                f"AUC {comparison['difference']:+.4f} [{comparison['low']:+.4f}, {comparison['high']:+.4f}] ({comparison['how']})."
            )
    faults = report.get("faults")
    if faults:
        lines.append(
            f"ESFNet gives a good chunk more weight than a planted fault with probability {faults['auc']:.2f} "
            "(0.5 would be chance)."
        )
    return lines


def run_figures(model: Any) -> dict[str, Any]:
    """Returns what a report says of one `Trained` model."""
    training, metrics = model.training, model.metrics
    curve = [
        {"epoch": i + 1, **{key: epoch[key] for key in ("loss", "val_loss", "val_auc") if key in epoch}}
        for i, epoch in enumerate(training["curve"])
    ]
    return {
        "name": f"{model.backbone}/{model.variant}/seed-{model.seed}",
        "backbone": model.backbone,
        "variant": model.variant,
        "seed": model.seed,
        "metrics": metrics["slices"],
        "curve": curve,
        "popularity": metrics["popularity"],
        "calibration": metrics["calibration"],
        "trained_parameters": training["trained_parameters"],
        "total_parameters": training["total_parameters"],
        "seconds": training["training_seconds"],
        "rows_per_second": training["rows_per_second"],
        "best_epoch": training["best_epoch"],
    }


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
                "mean": float(values.mean()),
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
                figures.append(
                    {
                        "entity": entity,
                        "field": field,
                        "position": position,
                        "mean": float(values.mean()),
                        "count": len(values),
                    }
                )
    return figures


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


def _names(table: Any, store: KnowledgeStore) -> dict[int, str]:
    """The names of a store's entities, by row."""
    if table is None:
        return {}
    path = Path(table.table)
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    rows = store.rows(frame[table.id_column].to_numpy())
    return {int(row): str(name) for row, name in zip(rows, frame[table.name_column], strict=True) if row >= 0}


def _examples(
    entity: str,
    store: KnowledgeStore,
    weights: np.ndarray,
    mask: np.ndarray,
    texts: Mapping[Place, Chunk],
    names: Mapping[int, str],
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
        if row not in chosen and place in texts:
            chosen[row] = {
                "entity": entity,
                "id": str(store.ids[row]),
                "name": names.get(row, str(store.ids[row])),
                "field": store.fields[field],
                "position": position,
                "weight": float(weights[place]),
                "text": texts[place].text,
                "fault": texts[place].fault,
            }
    return list(chosen.values())
