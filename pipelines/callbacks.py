"""Keras callbacks of the job `train`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.metrics import auc, log_loss_from_logits


class ValidationAUC(tf.keras.callbacks.Callback):
    """Adds the exact AUC and the log loss on validation examples to each epoch's log, as `val_auc` and `val_loss`.

    Keras' own AUC sums over 200 thresholds and would be computed on every training step too. Stands before all callbacks
    that read the log.

    Args:
        examples: `IndexedExamples`.
        batch_size: int. Rows predicted at once.
    """

    def __init__(self, examples: Any, batch_size: int) -> None:
        super().__init__()
        self._labels = examples.labels
        self._batches = examples.batches(batch_size)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Predicts all validation examples."""
        logits = predict_logits(self.model, self._batches)
        if logs is not None:
            logs["val_auc"] = auc(self._labels, logits)
            logs["val_loss"] = log_loss_from_logits(self._labels, logits)


class EpochTimer(tf.keras.callbacks.Callback):
    """Adds to each epoch's log its `seconds` and `rows_per_second`, of the training steps alone.

    The first step of a run, in which TensorFlow traces the model, is in the seconds but not in the rows per second.

    Args:
        batch_size: int. Rows a step.
        steps: int. Steps an epoch.
    """

    def __init__(self, batch_size: int, steps: int) -> None:
        super().__init__()
        self._batch_size, self._steps = batch_size, steps
        self._begin = self._after_first = self._end = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the time."""
        self._end = time.perf_counter()
        if batch == 0:
            self._after_first = self._end

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stops the clock."""
        if logs is not None:
            logs["seconds"] = self._end - self._begin
            timed = (self._steps - 1) * self._batch_size, self._end - self._after_first
            logs["rows_per_second"] = timed[0] / timed[1] if self._steps > 1 else self._batch_size / logs["seconds"]


class HistoricalRefresh(tf.keras.callbacks.Callback):
    """Makes the memory of historical embeddings anew at each epoch's start, so that an epoch depends on the weights alone.

    A run that was stopped then goes on as it would have. Stands after `EpochTimer`, which counts the time.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Aligns all entities; nothing where the model keeps no historical embeddings."""
        self.model.embedding.refresh_historical_embeddings()


class ResumedEarlyStopping(tf.keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping, which knows the epochs before the run was stopped.

    Args:
        curve: The logs of those epochs.
        **kwargs: See `tf.keras.callbacks.EarlyStopping`.
    """

    def __init__(self, curve: list[dict[str, float]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._curve = curve

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts from the best value so far, and from how long ago it was."""
        super().on_train_begin(logs)
        values = [epoch[self.monitor] for epoch in self._curve]
        if values:
            best = int(np.argmax(values))
            self.best, self.wait = values[best], len(values) - 1 - best


def predict_logits(model: Any, batches: Any) -> np.ndarray:
    """Returns the logits of all rows of a dataset of `(features, labels)`, float32 `(rows,)`."""
    return model.predict(batches.map(lambda features, labels: features), verbose=0)[:, 0]
