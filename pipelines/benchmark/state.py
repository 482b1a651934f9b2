"""How far a benchmark is: which cells are done, what they found, what went wrong."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kser_tf.errors import DataError
from kser_tf.files import read_json, sha256_of_json, write_json
from kser_tf.pipelines.benchmark.matrix import BenchmarkMatrix, Cell
from kser_tf.pipelines.evaluate import evaluation_inputs
from kser_tf.pipelines.job import current_result
from kser_tf.pipelines.train import TrainConfig, training_inputs

State = Literal["done", "failed", "begun", "waiting"]


class BenchmarkState:
    """What is there of a benchmark, asked anew each time; a cell counts as done only as it is configured now.

    Args:
        matrix: The benchmark's cells.
    """

    def __init__(self, matrix: BenchmarkMatrix) -> None:
        self._matrix = matrix
        # A cell that is done stays done.
        self._trained: dict[Cell, dict[str, Any]] = {}

    def state(self, cell: Cell) -> State:
        """How far a cell is; `begun`: it is being trained, or was stopped."""
        if (self.trained(cell) if cell.trial is not None else self.evaluated(cell)) is not None:
            return "done"
        if self.failure(cell) is not None:
            return "failed"
        return "begun" if self._matrix.folder(cell).exists() else "waiting"

    def training(self, cell: Cell) -> TrainConfig | None:
        """How a cell is trained; `None` as long as that hangs on trials that have not ended."""
        setting, base = self.setting(cell), self._matrix.base(cell)
        if setting is None:
            return None
        if base is not None and cell.trial is not None:
            base = self.best_trial(base)
            if base is None:
                return None
        return self._matrix.training(cell, setting, None if base is None else str(self._matrix.folder(base)))

    def setting(self, cell: Cell) -> Mapping[str, Any] | None:
        """What a trial tries, or what the trials found for a cell's variant; `None` as long as they have not ended."""
        if cell.trial is not None:
            return self._matrix.settings[cell.variant][cell.trial]
        if not self._matrix.trials(cell):
            return {}
        best = self.best_trial(cell)
        return None if best is None else self.setting(best)

    def best_trial(self, cell: Cell) -> Cell | None:
        """The trial with the highest validation AUC among those of a cell's variant; `None` if one has not ended, or all failed."""
        found: dict[Cell, float] = {}
        for trial in self._matrix.trials(cell):
            result = self.trained(trial)
            if result is not None:
                found[trial] = result["validation_auc"]
            elif self.failure(trial) is None:
                return None
        return max(found, key=found.__getitem__) if found else None

    def trained(self, cell: Cell) -> dict[str, Any] | None:
        """What `train` says of a cell, if it is done."""
        if cell not in self._trained:
            training = self.training(cell)
            try:
                inputs = None if training is None else training_inputs(training)
            except DataError:  # what it reads is not there yet
                inputs = None
            if training is None or inputs is None:
                return None
            result = current_result(training.output, job="train", config=training, inputs=inputs)
            if result is None:
                return None
            self._trained[cell] = result
        return self._trained[cell]

    def evaluated(self, cell: Cell) -> dict[str, Any] | None:
        """What `evaluate` says of a cell, if it is done."""
        if self.trained(cell) is None:
            return None
        evaluation = self._matrix.evaluation(cell)
        try:
            inputs = evaluation_inputs(evaluation)
        except DataError:
            return None
        return current_result(evaluation.folder, job="evaluate", config=evaluation, inputs=inputs)

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """What went wrong with a cell when it was last tried as it is configured now."""
        path, training = self._failure_file(cell), self.training(cell)
        if training is None or not path.is_file():
            return None
        noted: dict[str, Any] = read_json(path)
        return noted if noted["config"] == _fingerprint(training) else None

    def note_failure(self, cell: Cell, error: Exception) -> None:
        """Keeps an error, beside the cells."""
        training = self.training(cell)
        assert training is not None, "a cell without a configuration was tried"
        write_json(
            self._failure_file(cell),
            {
                "cell": cell.name,
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
                "config": _fingerprint(training),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )

    def forget_failure(self, cell: Cell) -> None:
        """A cell that is tried again starts without a blot."""
        self._failure_file(cell).unlink(missing_ok=True)

    def _failure_file(self, cell: Cell) -> Path:
        return self._matrix.config.folder / "failures" / f"{cell.name}.json"


def _fingerprint(training: TrainConfig) -> str:
    return sha256_of_json(dataclasses.asdict(training))
