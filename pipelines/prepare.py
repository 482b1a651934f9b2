"""The job `prepare`: from a log of interactions to tables of examples for training, validation and test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydantic
from tqdm import tqdm

from kser_tf.errors import ConfigError, DataError
from kser_tf.files import new_directory, sha256_of_json
from kser_tf.pipelines.config import STRICT_KEYS, read_yaml
from kser_tf.pipelines.history import History, TimeOrder
from kser_tf.pipelines.job import current_result, fingerprint_of, read_job, write_job
from kser_tf.pipelines.log import (
    Built,
    Log,
    Source,
    check_built_sequences,
    interpret,
    log_columns,
    read_split_column,
    side_columns,
)
from kser_tf.pipelines.log_columns import MISSING_CODE, Encoded, Numbers, Piece
from kser_tf.pipelines.log_schema import LogSchema
from kser_tf.pipelines.log_tables import CsvFormat, Table, column_names, find_files, read_table
from kser_tf.pipelines.movielens import TFDS_NAME, MovieLensConfig, movielens_files, read_movielens, read_tfds
from kser_tf.pipelines.split import (
    NO_PART,
    TRAIN,
    VALIDATION,
    HistoryOnlyConfig,
    SplitConfig,
    choose_cold_items,
    find_examples,
    split_by_time,
    split_by_user,
)
from kser_tf.schema import (
    ITEM_IS_COLD,
    ITEM_TRAINING_ROWS,
    LABEL,
    SPLITS,
    TIMESTAMP,
    USER_INTERACTIONS,
    DatasetSchema,
    Feature,
)

# Enough rows that a reader is not held up by row groups, few enough that one of them is small in memory (about 30 MB
# with two histories of 20).
ROWS_PER_GROUP = 65536


def _read_schema_file(value: Any) -> Any:
    return read_yaml(value) if isinstance(value, str | Path) else value


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Makes examples for training, validation and test from a log of interactions.

    Args:
        output: Folder that the prepared data set is written to. One that this job wrote before is replaced; any other
            is left alone.
        source: `log` (your own Parquet or CSV files, with a schema), `movielens` (a folder of MovieLens-1M or 100K as
            GroupLens publishes it) or `tfds` (movielens/1m-ratings of tensorflow-datasets). Defaults to `log`.
        data: The log: a file, a list of files, or a folder of them; the MovieLens folder; for tfds its data directory
            (optional).
        items: Table of items, joined by the item's id (source log).
        users: Table of users, joined by the user's id (source log).
        schema: What the log's columns are (source log): a mapping, or the path of a YAML file that holds one.
        movielens: Choices in the built-in schema of MovieLens (sources movielens and tfds): label, history_length,
            min_count.
        split: How examples are divided: by user, time or column. Defaults to by user, 0.8, 0.1, 0.1.
        history_only: The first interactions of each user that give no example: fraction, at_most. Defaults to none.
        cold_items: Fraction of the items that are taken out of training altogether (and out of validation), to be
            tested on. Defaults to 0.
        seed: Of the split by user and the choice of cold items. Defaults to 1.
        max_rows: Reads only the first rows of the log, for a trial. Defaults to all.
    """

    __pydantic_config__ = STRICT_KEYS

    output: str
    source: Literal["log", "movielens", "tfds"] = "log"
    data: str | list[str] | None = None
    items: str | None = None
    users: str | None = None
    schema: Annotated[LogSchema | None, pydantic.BeforeValidator(_read_schema_file)] = None
    movielens: MovieLensConfig | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    history_only: HistoryOnlyConfig = field(default_factory=HistoryOnlyConfig)
    cold_items: float = 0.0
    seed: int = 1
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.cold_items < 1:
            raise ConfigError(f"`cold_items` is a fraction, at least 0 and below 1. Received: {self.cold_items}")
        if self.seed < 0:
            raise ConfigError(f"`seed` must not be negative. Received: {self.seed}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"`max_rows` must be at least 1. Received: {self.max_rows}")
        if self.data is None and self.source != "tfds":
            raise ConfigError(
                f"`data` is missing: it names the {'log' if self.source == 'log' else 'MovieLens folder'}."
            )
        if self.source == "log":
            self._check_log_keys()
        else:
            self._check_movielens_keys()

    def _check_log_keys(self) -> None:
        if self.schema is None:
            raise ConfigError("`schema` is missing: it says what the log's columns are.")
        if self.movielens is not None:
            raise ConfigError(
                "`movielens` goes with the sources movielens and tfds. Leave it out, or choose one of them."
            )
        for key, path, side in (("items", self.items, self.schema.items), ("users", self.users, self.schema.users)):
            if side is not None and path is None:
                raise ConfigError(f"`{key}` is missing: it names the table that `schema.{key}` describes.")
            if side is None and path is not None:
                raise ConfigError(f"`schema.{key}` is missing: it says which features the table {path} has.")

    def _check_movielens_keys(self) -> None:
        if isinstance(self.data, list):
            raise ConfigError(f"`data` is one folder for the source {self.source}. Received: {self.data}")
        for key in ("items", "users", "schema"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"`{key}` goes with the source log; the columns of MovieLens are known. Leave it out."
                )


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Makes examples from a log: reads it, builds histories, divides it, learns the vocabularies, writes a folder.

    The folder is a prepared data set: `dataset.json`, `vocabularies/`, `train.parquet`, `validation.parquet`,
    `test.parquet` (`kser_tf.schema.DatasetSchema` tells of them) and `job.json`. It is there whole or not at all. If it
    is there already, from this configuration and these inputs, nothing is done. Rows are in the log's order.

    A history holds interactions of the same user at a strictly smaller time. Vocabularies, means and deviations are
    learned from the training rows alone.

    Args:
        config: What to read and how to divide it.

    Returns:
        Counts of rows, users, items, examples and positives, and the sizes of the vocabularies.

    Raises:
        ConfigError: The configuration contradicts itself, or the output folder holds something else.
        DataError: The log cannot be read, or cannot be divided as wished.

    Example:
        ```python
        prepare(PrepareConfig(source="movielens", data="ml-1m", output="runs/ml-1m/dataset", cold_items=0.15))
        ```
    """
    started = time.monotonic()
    _refuse_foreign_folder(Path(config.output))
    inputs = prepare_inputs(config)
    if (done := current_result(config.output, job="prepare", config=config, inputs=inputs)) is not None:
        return done
    source = read_source(config)
    log = interpret(source)
    plan = _divide(log, source.log, config)
    cutter = _Cutter(source.schema, log, plan)
    with new_directory(config.output, overwrite=True) as folder:
        progress = tqdm(
            total=int((plan.parts != NO_PART).sum()), desc="prepare", unit="rows", unit_scale=True, disable=None
        )
        with progress:
            for part, name in enumerate(SPLITS):
                cutter.write(part, folder / f"{name}.parquet", progress)
        splits = {name: plan.counts(part, log.labels) for part, name in enumerate(SPLITS)}
        protocol = _protocol(config, source.schema)
        schema = cutter.learned_schema(splits, protocol)
        schema.save(folder)
        result = {
            "rows": len(log.labels),
            "users": len(np.unique(log.users.codes)),
            "items": len(np.unique(log.items.codes)),
            "examples": sum(counts["rows"] for counts in splits.values()),
            "history_only_rows": plan.history_only_rows,
            "cold_items": int(plan.is_cold.sum()),
            "dropped_cold_rows": plan.dropped_cold_rows,
            "splits": splits,
            "vocabularies": {name: len(values) for name, values in schema.vocabularies.items()},
            "dataset_fingerprint": schema.fingerprint,
        }
        write_job(
            folder, job="prepare", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
        )
    return result


def prepare_inputs(config: PrepareConfig) -> dict[str, str]:
    """Returns the fingerprints of what the job reads, by the key of the configuration that names it.

    Raises:
        DataError: A file is not there.
    """
    if config.source == "tfds":
        return {"data": TFDS_NAME}
    if config.source == "movielens":
        return {"data": _fingerprint(list(movielens_files(str(config.data))))}
    paths = {"data": config.data, "items": config.items, "users": config.users}
    return {key: _fingerprint(find_files(path)) for key, path in paths.items() if path is not None}


def read_source(config: PrepareConfig) -> Source:
    """Reads the log and its side tables.

    Raises:
        DataError: A file is missing or unreadable, or a column is not in it.
        MissingExtraError: tensorflow-datasets is asked for and not installed.
    """
    if config.source == "log":
        source = _read_log(config)
    elif config.source == "movielens":
        source = read_movielens(str(config.data), config.movielens or MovieLensConfig())
    else:
        source = read_tfds(config.data if isinstance(config.data, str) else None, config.movielens or MovieLensConfig())
    if config.max_rows is not None:
        source = dataclasses.replace(source, log=source.log.head(config.max_rows))
    return source


def _read_log(config: PrepareConfig) -> Source:
    schema = config.schema
    assert schema is not None  # PrepareConfig sees to both
    assert config.data is not None
    csv = CsvFormat(schema.delimiter, schema.encoding)
    check_built_sequences(schema, column_names(config.data, csv), str(config.data))
    columns = log_columns(schema) + ([config.split.column] if config.split.column else [])
    side_tables: dict[str, Table | None] = {}
    for key, path, side, id_column in (
        ("items", config.items, schema.items, schema.item_id.column),
        ("users", config.users, schema.users, schema.user_id.column),
    ):
        side_tables[key] = read_table(path, side_columns(side, id_column), csv) if path and side else None
    return Source(log=read_table(config.data, columns, csv), schema=schema, **side_tables)


def _fingerprint(files: list[Path]) -> str:
    return sha256_of_json([[file.name, fingerprint_of(file)] for file in files])


def _refuse_foreign_folder(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    job = read_job(folder) if folder.is_dir() else None
    if job is None or job.get("job") != "prepare":
        raise ConfigError(
            f"output: {folder} holds something that `prepare` did not write, and is not replaced. Choose another "
            "folder, or remove it."
        )


@dataclass(frozen=True)
class _Plan:
    """Which part each interaction of a log lies in.

    Args:
        parts: int8, one an interaction: the number of its part, or `NO_PART`.
        is_cold: bool, one for each of the item column's values: taken out of training.
        order: The log in order of time.
        interactions: int64, one an interaction: how many its user has.
        training_rows: int64, one for each of the item column's values.
        history_only_rows: int. Interactions that give no example.
        dropped_cold_rows: int. Examples of cold items that were dropped from train and validation.
    """

    parts: np.ndarray
    is_cold: np.ndarray
    order: TimeOrder
    interactions: np.ndarray
    training_rows: np.ndarray
    history_only_rows: int
    dropped_cold_rows: int

    def rows(self, part: int) -> np.ndarray:
        """Returns the rows of the log that make up a part, in the log's order."""
        return np.flatnonzero(self.parts == part)

    def counts(self, part: int, labels: np.ndarray) -> dict[str, int]:
        """Returns the numbers of rows and of positives of a part."""
        inside = labels[self.parts == part]
        return {"rows": len(inside), "positives": int(inside.sum())}


def _divide(log: Log, table: Table, config: PrepareConfig) -> _Plan:
    users, items = log.users.sorted_codes(), log.items.codes
    order = TimeOrder(users, log.times)
    interactions = np.bincount(users)[users]
    examples = find_examples(order.ranks, interactions, config.history_only)
    _check_labels(log.labels[examples], f"{table.name}: the {'examples' if config.history_only.fraction else 'log'}")
    if config.split.by == "user":
        parts = split_by_user(users, examples, config.split.fractions, config.seed)
    elif config.split.by == "time":
        parts = split_by_time(log.times, examples, config.split.fractions)
    else:
        parts = np.where(examples, read_split_column(table, str(config.split.column)), NO_PART)
    sorted_items = log.items.sorted_codes()
    cold = choose_cold_items(sorted_items, examples, config.cold_items, config.seed)
    is_cold = np.zeros(len(log.items.values), dtype=bool)
    is_cold[items[np.isin(sorted_items, cold)]] = True
    dropped = is_cold[items] & ((parts == TRAIN) | (parts == VALIDATION))
    parts = np.where(dropped, NO_PART, parts).astype(np.int8)
    for part, name in enumerate(SPLITS):
        _check_labels(log.labels[parts == part], f"{table.name}: the {name} part (split by {config.split.by})")
    return _Plan(
        parts=parts,
        is_cold=is_cold,
        order=order,
        interactions=interactions,
        training_rows=np.bincount(items[parts == TRAIN], minlength=len(is_cold)),
        history_only_rows=int((~examples).sum()),
        dropped_cold_rows=int(dropped.sum()),
    )


def _check_labels(labels: np.ndarray, what: str) -> None:
    positives = int(labels.sum())
    if not len(labels):
        raise DataError(f"{what} has no examples. Give more rows, or change `split`, `history_only` or `cold_items`.")
    if positives in (0, len(labels)):
        lacking = "positive" if positives == 0 else "negative"
        raise DataError(
            f"{what} has {len(labels)} example(s) and not one {lacking}; a model cannot be trained or measured on one "
            "kind alone. Check the label (or its rule), or give more rows."
        )


class _Cutter:
    """Cuts examples from a log, and learns from those of the training part.

    Args:
        schema: What the log's columns are.
        log: The log.
        plan: Which part each interaction lies in.
    """

    def __init__(self, schema: LogSchema, log: Log, plan: _Plan) -> None:
        self._schema = schema
        self._log = log
        self._plan = plan
        self._features = schema.resolve()
        self._columns: dict[str, Encoded] = {
            **{name: column for name, column in log.columns.items() if isinstance(column, Encoded)},
            **{name: built.of for name, built in log.built.items()},
        }
        self._counts = {name: np.zeros(len(column.values), dtype=np.int64) for name, column in self._columns.items()}
        self._cold_values = self._find_cold_values()
        self._histories: dict[tuple[str | None, int, bool], History] = {}
        self._lengths = {feature.name: feature.length or 0 for feature in self._features}

    def write(self, part: int, path: Path, progress: tqdm[Any]) -> None:
        """Writes the examples of one part to a Parquet file; values of the training part are counted on the way."""
        rows = self._plan.rows(part)
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
        log, plan = self._log, self._plan
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
        columns[ITEM_TRAINING_ROWS] = pa.array(plan.training_rows[items], pa.int32())
        columns[ITEM_IS_COLD] = pa.array(plan.is_cold[items], pa.bool_())
        columns[USER_INTERACTIONS] = pa.array(plan.interactions[rows], pa.int32())
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
        key = (built.where, length, part == TRAIN)
        if key not in self._histories:
            keep = built.keep
            if False:
                warm = ~self._plan.is_cold[self._log.items.codes]
                keep = warm if keep is None else keep & warm
            self._histories[key] = History(self._plan.order, length, keep)
        return self._histories[key]

    def _find_cold_values(self) -> dict[str, np.ndarray]:
        """For each feature that names items (it shares the candidate's vocabulary) which of its values are cold.

        The candidate and the histories built of it are not among them: interactions with cold items have been left out
        of those already.
        """
        cold = self._log.items.values.filter(pa.array(self._plan.is_cold))
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
        least = self._schema.min_counts()
        return {
            name: sorted(
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
        values = column.take(self._plan.rows(TRAIN)).astype(np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            return feature
        return dataclasses.replace(feature, mean=float(values.mean()), std=float(values.std()) or 1.0)


def _protocol(config: PrepareConfig, schema: LogSchema) -> dict[str, Any]:
    """What was done to the log, for the record."""
    label: Mapping[str, Any] = dataclasses.asdict(schema.label)
    return {
        "source": config.source,
        "label": {key: value for key, value in label.items() if value is not None},
        "split": {**dataclasses.asdict(config.split), "fractions": list(config.split.fractions)},
        "history_only": dataclasses.asdict(config.history_only),
        "cold_items": config.cold_items,
        "seed": config.seed,
        "max_rows": config.max_rows,
        "min_counts": schema.min_counts(),
    }
