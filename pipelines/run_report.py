"""What a run's report says: gathers the figures of all its models, and looks inside the extractor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.metrics import bootstrap_auc_difference, paired_difference, slice_rows
from kser_tf.pipelines.evaluate import LOGITS_FILE
from kser_tf.pipelines.inspect.weights import chunk_texts, look_at_weights
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.provenance import command
from kser_tf.schema import ITEM_IS_COLD, ITEM_TRAINING_ROWS, LABEL, USER_INTERACTIONS, DatasetSchema

BASE = "base"


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

    ranking_model = load_model(model.folder)
    weighed = [entity for entity, adaptor in ranking_model.extractors.items() if adaptor.esf_net is not None]
    stores = {entity: KnowledgeStore.open(encode_configs[entity].output) for entity in weighed}
    return look_at_weights(
        ranking_model,
        stores,
        {entity: chunk_texts(encode_configs[entity], store) for entity, store in stores.items()},
        {entity: names[entity].read() for entity in weighed if entity in names},
        run=f"{model.backbone}/{model.variant}/seed-{model.seed}",
    )


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
