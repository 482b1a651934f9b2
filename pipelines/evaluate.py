"""The job `evaluate`: how well a trained model predicts, on all examples of a split and on slices of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kser_tf.errors import ConfigError, DataError
from kser_tf.files import new_directory, read_json, write_array, write_json
from kser_tf.metrics import (
    auc_by_popularity,
    bootstrap_auc,
    calibration_curve,
    evaluate_slices,
    sigmoid,
    slice_rows,
)
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.job import current_result, fingerprint_of, write_job
from kser_tf.schema import ITEM_IS_COLD, ITEM_TRAINING_ROWS, USER_INTERACTIONS

METRICS_FILE = "metrics.json"
LOGITS_FILE = "logits.npy"
# float64 (slices, draws of the users), the slices in the order of the metrics file.
BOOTSTRAP_FILE = "bootstrap.npy"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measures a trained model: AUC, GAUC, log loss and calibration error, on all rows and on slices.

    Args:
        model: Folder that `train` wrote.
        prepared: Folder that `prepare` wrote.
        split: Which examples: `test`, `validation` or `train`. Choose models on validation; use test once.
        output: Folder for metrics.json and the logits. Defaults to `<model>/evaluation-<split>`.
        batch_size: Rows predicted at once.
        item_slices: JSON file with further slices, for each name a list of items' ids; beside those of
            `kser_tf.metrics.slice_rows`. Defaults to none.
        bootstrap: How many times the users are redrawn; the AUC of each draw goes into bootstrap.npy, from which the
            intervals of differences between models are made. Defaults to 0.
    """

    __pydantic_config__ = STRICT_KEYS

    model: str
    prepared: str
    split: Literal["test", "validation", "train"] = "test"
    output: str | None = None
    batch_size: int = 8192
    item_slices: str | None = None
    bootstrap: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}. Received: {getattr(self, name)}")

    @property
    def folder(self) -> Path:
        """Where the metrics go."""
        return Path(self.output) if self.output is not None else Path(self.model) / f"evaluation-{self.split}"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Does what `EvaluateConfig` says.

    Returns:
        What `metrics.json` holds: `slices` (for each its rows, positives and metrics), `popularity` (AUC by the number of
        training rows of the item), `calibration` (predicted and observed rates) and the predicted rows per second.

    Raises:
        KerasVersionError: Keras 3 is active.
        DataError, StoreError: An input is missing, damaged or does not fit.
    """
    inputs = evaluation_inputs(config)
    if (done := current_result(config.folder, job="evaluate", config=config, inputs=inputs)) is not None:
        return done
    from kser_tf.models.model_folder import load_model, store_references
    from kser_tf.pipelines.callbacks import predict_logits
    from kser_tf.pipelines.examples import IndexedExamples

    started = time.monotonic()
    model = load_model(config.model)
    stores = {entity: reference.open() for entity, reference in store_references(config.model).items()}
    examples = IndexedExamples(config.prepared, config.split, stores)
    examples.require_same_schema(model.schema)
    further = _item_slices(config.item_slices, examples.column(model.schema.item_id)) if config.item_slices else {}
    predicting = time.monotonic()
    logits = predict_logits(model, examples.batches(config.batch_size))
    seconds = time.monotonic() - predicting

    labels, training_rows = examples.labels, examples.column(ITEM_TRAINING_ROWS)
    columns: dict[str, Any] = {
        "users": examples.column(model.schema.user_id),
        "item_training_rows": training_rows,
        "item_is_cold": examples.column(ITEM_IS_COLD),
        "user_interactions": examples.column(USER_INTERACTIONS),
    }
    result = {
        "split": config.split,
        "slices": evaluate_slices(labels, logits, **columns, further=further),
        "popularity": auc_by_popularity(labels, logits, training_rows),
        "calibration": calibration_curve(labels, sigmoid(logits)),
        "rows_per_second": len(labels) / seconds,
    }
    with new_directory(config.folder, overwrite=True) as folder:
        write_json(folder / METRICS_FILE, result)
        write_array(folder / LOGITS_FILE, logits.astype(np.float32))
        if config.bootstrap:
            slices = {**slice_rows(**columns), **further}
            drawn = [
                bootstrap_auc(labels[rows], logits[rows], columns["users"][rows], config.bootstrap)
                for rows in slices.values()
            ]
            write_array(folder / BOOTSTRAP_FILE, np.stack(drawn))
        write_job(
            folder, job="evaluate", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
        )
    return result


def evaluation_inputs(config: EvaluateConfig) -> dict[str, str]:
    """Returns the fingerprints of what an evaluation reads."""
    inputs = {"model": fingerprint_of(config.model), "prepared": fingerprint_of(config.prepared)}
    if config.item_slices is not None:
        inputs["item_slices"] = fingerprint_of(config.item_slices)
    return inputs


def _item_slices(path: str, items: np.ndarray) -> dict[str, np.ndarray]:
    """Reads further slices; for each which rows belong to it, bool `(rows,)`."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(ids, list) for ids in content.values()):
        raise DataError(f"{path}: expected a mapping of slices' names to lists of items' ids.")
    # As text: JSON's numbers and a log's texts may be the same ids.
    found = pd.Series(items).astype(str)
    return {name: found.isin([str(item) for item in ids]).to_numpy() for name, ids in content.items()}
