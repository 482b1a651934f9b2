"""How far a benchmark is: which cells are done, what they found, what went wrong."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kser_tf.errors import DataError
from kser_tf.files import read_json, sha256_of_json, write_json
from kser_tf.pipelines.benchmark.matrix import BenchmarkMatrix, Cell, Examples
from kser_tf.pipelines.benchmark.records import Records, packed, unpacked
from kser_tf.pipelines.encode import encode_inputs
from kser_tf.pipelines.evaluate import BOOTSTRAP_FILE, evaluation_inputs
from kser_tf.pipelines.job import current_result, read_job
from kser_tf.pipelines.prepare import prepare_inputs
from kser_tf.pipelines.train import TrainConfig, training_inputs
from kser_tf.version import __version__

State = Literal["done", "failed", "begun", "waiting"]

# Keys of configurations that say where something lies, not what it is.
_PLACES = ("prepared", "output", "stores", "base", "data", "items", "users", "table", "store")
# What a record says of what made it.
_MADE_BY = ("commit", "finished", "versions")


class BenchmarkState:
    """What is there of a benchmark, asked anew each time; a cell counts as done only as it is configured now.

    Args:
        matrix: The benchmark's cells.
        records: What cells found whose folders may be gone. Where a folder is there, it is looked at first.
    """

    def __init__(self, matrix: BenchmarkMatrix, records: Records | None = None) -> None:
        self._matrix = matrix
        self._records = records
        # A cell that is done stays done.
        self._trained: dict[Cell, dict[str, Any]] = {}
        self._recorded: dict[Cell, dict[str, Any]] = {}
        self._identities: dict[Cell, str] = {}
        self._examples: dict[Examples, Any] = {}
        self._knowledge: dict[str, Any] = {}

    def state(self, cell: Cell) -> State:
        """How far a cell is; `begun`: it is being trained, or was stopped."""
        if (self.trained(cell) if cell.trial is not None else self.evaluated(cell)) is not None:
            return "done"
        if self.failure(cell) is not None:
            return "failed"
        return "begun" if self._matrix.folder(cell).exists() else "waiting"

    def training(self, cell: Cell) -> TrainConfig | None:
        """How a cell is trained; `None` as long as that hangs on trials that have not ended."""
        setting, base = self.setting(cell), self.starts_from(cell)
        if setting is None or (base is None and self._matrix.base(cell) is not None):
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
        if (result := self._trained_here(cell)) is not None:
            return result
        record = self._record(cell)
        return None if record is None else record["training"]

    def has_model(self, cell: Cell) -> bool:
        """Whether a cell's model is there; of one that is done by its record it may be gone."""
        return self._trained_here(cell) is not None

    def starts_from(self, cell: Cell) -> Cell | None:
        """The cell whose model a cell is trained from, if it is; of the trials of that one the best."""
        base = self._matrix.base(cell)
        return self.best_trial(base) if base is not None and cell.trial is not None else base

    def evaluated(self, cell: Cell) -> dict[str, Any] | None:
        """What `evaluate` says of a cell, if it is done."""
        if self.trained(cell) is None:
            return None
        if (result := self._evaluated_here(cell)) is not None:
            return result
        record = self._record(cell)
        return None if record is None else record.get("metrics")

    def drawn(self, cell: Cell) -> dict[str, np.ndarray]:
        """For each slice the AUC of a cell that is done on each of the redrawn sets of users; none without a bootstrap."""
        if (result := self._evaluated_here(cell)) is not None:
            path = self._matrix.evaluation(cell).folder / BOOTSTRAP_FILE
            draws = np.load(path) if path.is_file() else None
        else:
            record = self._record(cell)
            result, text = (None, None) if record is None else (record.get("metrics"), record.get("drawn"))
            draws = None if result is None or text is None else unpacked(text, len(result["slices"]))
        return {} if result is None or draws is None else dict(zip(result["slices"], draws, strict=True))

    def made_by(self, cell: Cell) -> dict[str, Any]:
        """What made a cell that is done: keys of `job.json`."""
        if self.has_model(cell):
            return read_job(self._matrix.folder(cell)) or {}
        record = self._record(cell)
        return {} if record is None else dict(record["made_by"])

    def keep(self, cell: Cell) -> None:
        """Makes a cell's record of what lies in its folder, unless that is recorded already, or nobody asks for records."""
        if self._records is None or not self.has_model(cell):
            return
        identity = self.identity(cell)
        if identity is None:
            return
        job = read_job(self._matrix.folder(cell)) or {}
        made_by = {key: job.get(key) for key in _MADE_BY}
        record = self._records.read(cell.name, identity)
        if record is not None and record["made_by"] == made_by:
            return
        found: dict[str, Any] = {"training": self._trained_here(cell), "made_by": made_by}
        if cell.trial is None:
            metrics = self._evaluated_here(cell)
            if metrics is None:
                return
            found["metrics"] = {"slices": metrics["slices"]}
            if drawn := self.drawn(cell):
                found["drawn"] = packed(np.stack(list(drawn.values())))
        self._records.write(cell.name, identity, found)

    def identity(self, cell: Cell) -> str | None:
        """A SHA-256 of all that determines what a cell finds, wherever its folders lie; `None` as long as that is not known."""
        if cell not in self._identities:
            training, base = self.training(cell), self.starts_from(cell)
            if training is None:
                return None
            of_base = None if base is None else self.identity(base)
            if base is not None and of_base is None:
                return None
            try:
                examples = self._matrix.examples(cell)
                of_examples = self._identity_of_examples(examples)
                of_knowledge = self._identity_of_knowledge(examples, self._matrix.config.text(cell.variant))
            except DataError:  # what it reads is not there
                return None
            self._identities[cell] = sha256_of_json(
                {
                    "training": _without_places(training),
                    "examples": of_examples,
                    "knowledge": of_knowledge,
                    "base": of_base,
                    "bootstrap": self._matrix.config.bootstrap,
                    "version": __version__,
                }
            )
        return self._identities[cell]

    def _trained_here(self, cell: Cell) -> dict[str, Any] | None:
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

    def _evaluated_here(self, cell: Cell) -> dict[str, Any] | None:
        if not self.has_model(cell):
            return None
        evaluation = self._matrix.evaluation(cell)
        try:
            inputs = evaluation_inputs(evaluation)
        except DataError:
            return None
        return current_result(evaluation.folder, job="evaluate", config=evaluation, inputs=inputs)

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        if self._records is None:
            return None
        if cell not in self._recorded:
            identity = self.identity(cell)
            record = None if identity is None else self._records.read(cell.name, identity)
            if record is None:
                return None
            self._recorded[cell] = record
        return self._recorded[cell]

    def _identity_of_examples(self, examples: Examples) -> Any:
        if examples not in self._examples:
            preparation = self._matrix.preparation(examples)
            self._examples[examples] = [_without_places(preparation), prepare_inputs(preparation)]
        return self._examples[examples]

    def _identity_of_knowledge(self, examples: Examples, text: str | None) -> Any:
        if text is None:
            return None
        if text not in self._knowledge:
            self._knowledge[text] = {
                entity: [_without_places(encoding), encode_inputs(encoding)]
                for entity, encoding in self._matrix.encodings(text).items()
            }
        pooling = self._matrix.pooling(examples, text)
        return [self._knowledge[text], None if pooling is None else _without_places(pooling)]

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


def _without_places(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in _PLACES}
