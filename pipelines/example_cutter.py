"""Cuts the examples of a log and writes them to Parquet files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from kser_tf.pipelines.history import History
from kser_tf.pipelines.log import Built, Log
from kser_tf.pipelines.log_columns import MISSING_CODE, Encoded, Numbers, Piece
from kser_tf.pipelines.log_schema import LogSchema
from kser_tf.pipelines.split import TRAIN, Division
from kser_tf.schema import (
    ITEM_IS_COLD,
    ITEM_TRAINING_ROWS,
    LABEL,
    TIMESTAMP,
    USER_INTERACTIONS,
    DatasetSchema,
    Feature,
)

# Enough rows that a reader is not held up by row groups, few enough that one of them is small in memory (about 30 MB
# with two histories of 20).
ROWS_PER_GROUP = 65536


class ExampleCutter:
    """Cuts examples from a log, and learns from those of the training part.

    Args:
        schema: What the log's columns are.
        log: The log.
        division: Which part each interaction lies in.
    """

    def __init__(self, schema: LogSchema, log: Log, division: Division) -> None:
        self._schema = schema
        self._log = log
        self._division = division
        self._features = schema.resolve()
        self._columns: dict[str, Encoded] = {
            **{name: column for name, column in log.columns.items() if isinstance(column, Encoded)},
            **{name: built.of for name, built in log.built.items()},
        }
        self._counts = {name: np.zeros(len(column.values), dtype=np.int64) for name, column in self._columns.items()}
        self._cold_values = self._find_cold_values()
        self._histories: dict[tuple[str | None, bool, int, bool], History] = {}
        self._lengths = {feature.name: feature.length or 0 for feature in self._features}

    def write(self, part: int, path: Path, progress: tqdm[Any]) -> None:
        """Writes the examples of one part to a Parquet file; values of the training part are counted on the way."""
        rows = self._division.rows(part)
        writer = None
        try:
            for start in range(0, len(rows), ROWS_PER_GROUP):
                table = self._cut(rows[start : start + ROWS_PER_GROUP], part)
                writer = writer or pa.parquet.ParquetWriter(path, table.schema)
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                progress.update(len(table))
        finally:
            if writer is not None:
                writer.close()

    def write_history_only(self, path: Path) -> None:
        """Writes the interactions that lie before all examples of their users to a Parquet file, in order of time."""
        log, rows = self._log, self._division.history_only()
        items = log.items.codes[rows]
        table = pa.table(
            {
                self._schema.user_name: log.users.decode(log.users.take(rows)),
                self._schema.item_name: log.items.decode(log.items.take(rows)),
                LABEL: pa.array(log.labels[rows], pa.int8()),
                ITEM_IS_COLD: pa.array(self._division.is_cold[items], pa.bool_()),
            }
        )
        pa.parquet.write_table(table, path, row_group_size=ROWS_PER_GROUP)

    def learned_schema(self, splits: dict[str, dict[str, int]], protocol: dict[str, Any]) -> DatasetSchema:
        """Returns what the prepared tables are, with what was learned from the training part."""
        return DatasetSchema(
            features=tuple(self._with_moments(feature) for feature in self._features),
            user_id=self._schema.user_name,
            item_id=self._schema.item_name,
            vocabularies=self._vocabularies(),
            splits=splits,
            protocol=protocol,
        )

    def _cut(self, rows: np.ndarray, part: int) -> pa.Table:
        log, division = self._log, self._division
        pieces = {name: self._piece(name, rows, part) for name in self._columns}
        if part == TRAIN:
            self._remove_cold_values(pieces)
            for name, piece in pieces.items():
                self._counts[name] += np.bincount(piece.codes, minlength=len(self._counts[name]))
        columns: dict[str, pa.Array] = {}
        for feature in self._features:
            column = log.columns.get(feature.name)
            if isinstance(column, Numbers):
                columns[feature.name] = pa.array(column.take(rows), pa.float32())
            else:
                columns[feature.name] = self._columns[feature.name].decode(pieces[feature.name])
        items = log.items.codes[rows]
        columns.setdefault(self._schema.user_name, log.users.decode(log.users.take(rows)))
        columns[LABEL] = pa.array(log.labels[rows], pa.int8())
        if log.times is not None:
            columns[TIMESTAMP] = pa.array(log.times[rows], pa.int64())
        columns[ITEM_TRAINING_ROWS] = pa.array(division.training_rows[items], pa.int32())
        columns[ITEM_IS_COLD] = pa.array(division.is_cold[items], pa.bool_())
        columns[USER_INTERACTIONS] = pa.array(division.interactions[rows], pa.int32())
        return pa.table(columns)

    def _piece(self, name: str, rows: np.ndarray, part: int) -> Piece:
        built = self._log.built.get(name)
        if built is None:
            return self._columns[name].take(rows)
        offsets, past = self._history(built, self._lengths[name], part).before(rows)
        return Piece(built.of.take(past).codes, offsets)

    def _remove_cold_values(self, pieces: dict[str, Piece]) -> None:
        """Takes cold items out of other features that name items, and out of the sequences that belong to those."""
        unwanted = {name: is_cold[pieces[name].codes] for name, is_cold in self._cold_values.items()}
        for feature in self._features:
            together = [
                f.name
                for f in self._features
                if f.name == feature.name or (f.group is not None and f.group == feature.group)
            ]
            masks = [unwanted[name] for name in together if name in unwanted]
            if masks:
                pieces[feature.name] = pieces[feature.name].without(np.logical_or.reduce(masks))

    def _history(self, built: Built, length: int, part: int) -> History:
        """The look-up of pasts for one part. Interactions with cold items are in no past of a training example."""
        key = (built.where, built.history_only, length, part == TRAIN)
        if key not in self._histories:
            keep = built.keep
            if built.history_only:
                begun_with = np.zeros(len(self._log.labels), np.bool_)
                begun_with[self._division.history_only()] = True
                keep = begun_with if keep is None else keep & begun_with
            if part == TRAIN and self._division.is_cold.any():
                warm = ~self._division.is_cold[self._log.items.codes]
                keep = warm if keep is None else keep & warm
            self._histories[key] = History(self._division.order, length, keep)
        return self._histories[key]

    def _find_cold_values(self) -> dict[str, np.ndarray]:
        """For each feature that names items (it shares the candidate's vocabulary) which of its values are cold.

        The candidate and the histories built of it are not among them: interactions with cold items have been left out
        of those already.
        """
        cold = self._log.items.values.filter(pa.array(self._division.is_cold))
        candidate = self._log.items
        return {
            feature.name: self._columns[feature.name].is_among(cold)
            for feature in self._features
            if len(cold)
            and feature.vocabulary == self._features[0].vocabulary
            and self._columns[feature.name] is not candidate
        }

    def _vocabularies(self) -> dict[str, list[Any]]:
        """The values of the training part, the most frequent first; equally frequent ones in their own order."""
        counted: dict[str, dict[Any, int]] = {}
        for feature in self._features:
            if feature.vocabulary is None:
                continue
            counts = self._counts[feature.name]
            counts[MISSING_CODE] = 0
            seen = np.flatnonzero(counts)
            total = counted.setdefault(feature.vocabulary, {})
            values = self._columns[feature.name].values.take(pa.array(seen)).to_pylist()
            for value, count in zip(values, counts[seen].tolist(), strict=True):
                total[value] = total.get(value, 0) + count
        least, empty = self._schema.min_counts(), self._schema.empty_vocabularies
        return {
            name: []
            if name in empty
            else sorted(
                (value for value, count in total.items() if count >= least[name]),
                key=lambda value: (-total[value], value),
            )
            for name, total in counted.items()
        }

    def _with_moments(self, feature: Feature) -> Feature:
        """A numeric feature with the mean and the deviation of its training rows, missing values left out."""
        column = self._log.columns.get(feature.name)
        if not isinstance(column, Numbers):
            return feature
        values = column.take(self._division.rows(TRAIN)).astype(np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return feature
        return dataclasses.replace(feature, mean=float(values.mean()), std=float(values.std()) or 1.0)
