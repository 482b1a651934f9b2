"""What small tables do to a model's predictions: AUC and logits on the test examples, with the tables and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.metrics import auc
from kser_tf.serving.baking import BakeType

_BATCH = 8192


def baking_effect(model: Any, prepared: str | Path, dtypes: Sequence[BakeType]) -> dict[str, Any]:
    """Compares a ranking model's own predictions with those that its baked tables give.

    Args:
        model: A `RankingModel` with knowledge.
        prepared: Folder that `prepare` wrote; its test examples are predicted, as a request would hold them.
        dtypes: The tables' dtypes to try: `"float32"`, `"float16"`, `"int8"`.

    Returns:
        `rows`; `auc`, of the model itself, `None` where all labels are equal; and for each dtype `auc`,
        `auc_difference` to the model's own, and the `largest` and `mean` difference of a logit.

    Raises:
        DataError: The examples have other features or vocabularies than those the model was trained on.
    """
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.serving.baking import logits_when_baked

    examples = IndexedExamples(prepared, "test")
    examples.require_same_schema(model.schema)
    own = np.concatenate([model.serve(batch)["logit"].numpy() for batch in examples.raw_batches(_BATCH)])
    own_auc = _auc(examples.labels, own)
    effect: dict[str, Any] = {"rows": len(own), "auc": own_auc}
    for dtype in dtypes:
        logits = logits_when_baked(model, examples.raw_batches(_BATCH), dtype)
        difference = np.abs(logits.astype(np.float64) - own)
        baked_auc = _auc(examples.labels, logits)
        effect[dtype] = {
            "auc": baked_auc,
            "auc_difference": None if own_auc is None or baked_auc is None else baked_auc - own_auc,
            "largest": float(difference.max()),
            "mean": float(difference.mean()),
        }
    return effect


def _auc(labels: np.ndarray, logits: np.ndarray) -> float | None:
    value = auc(labels, logits)
    return None if np.isnan(value) else float(value)
