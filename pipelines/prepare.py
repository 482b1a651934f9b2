"""The job `prepare`: from a log of interactions to tables of examples for training, validation and test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from tqdm import tqdm

from kser_tf.errors import ConfigError
from kser_tf.files import new_directory, sha256_of_json
from kser_tf.pipelines.config import STRICT_KEYS, read_yaml
from kser_tf.pipelines.example_cutter import ExampleCutter
from kser_tf.pipelines.job import current_result, fingerprint_of, refuse_foreign_folder, write_job
from kser_tf.pipelines.log import (
    Source,
    check_built_sequences,
    interpret,
    log_columns,
    read_split_column,
    side_columns,
)
from kser_tf.pipelines.log_schema import LogSchema
from kser_tf.pipelines.log_tables import CsvFormat, Table, column_names, find_files, read_table
from kser_tf.pipelines.movielens import (
    ROWS_FILE,
    TFDS_NAME,
    MovieLensConfig,
    movielens_files,
    movielens_schema,
    read_movielens,
    read_tfds,
    with_parts,
)
from kser_tf.pipelines.split import HistoryOnlyConfig, SplitConfig, divide
from kser_tf.schema import HISTORY_ONLY_FILE, SPLITS


def _read_schema_file(value: Any) -> Any:
    return read_yaml(value) if isinstance(value, str | Path) else value


# In YAML and on the command line a schema may also be the path of a file that holds it.
SchemaOrFile = Annotated[LogSchema | None, pydantic.BeforeValidator(_read_schema_file)]


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
            min_count, features, most_genres.
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
    schema: SchemaOrFile = None
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

    def entities(self) -> tuple[str, str | None]:
        """Returns the kinds of entities that items and users are; `None` where the user's id is no feature."""
        schema = self.schema if self.source == "log" else movielens_schema(self.movielens or MovieLensConfig())
        assert schema is not None  # __post_init__ sees to it
        return schema.item_id.entity, schema.user_id.entity

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
        if self.source == "tfds" and self.split.column is not None:
            raise ConfigError("tensorflow-datasets has no column that names parts. Split by user or by time.")
        for key in ("items", "users", "schema"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"`{key}` goes with the source log; the columns of MovieLens are known. Leave it out."
                )


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Makes examples from a log: reads it, builds histories, divides it, learns the vocabularies, writes a folder.

    The folder is a prepared data set: `dataset.json`, `vocabularies/`, `train.parquet`, `validation.parquet`,
    `test.parquet` (`kser_tf.schema.DatasetSchema` tells of them), `history_only.parquet` (what lies before all examples of
    its user, for `pool`) and `job.json`. It is there whole or not at all. If it
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
    refuse_foreign_folder(Path(config.output), job="prepare")
    inputs = prepare_inputs(config)
    if (done := current_result(config.output, job="prepare", config=config, inputs=inputs)) is not None:
        return done
    source = read_source(config)
    log = interpret(source)
    division = divide(
        log,
        config.split,
        config.history_only,
        named_parts=read_split_column(source.log, config.split.column) if config.split.column else None,
        cold_items=config.cold_items,
        seed=config.seed,
        name=source.log.name,
    )
    cutter = ExampleCutter(source.schema, log, division)
    with new_directory(config.output, overwrite=True) as folder:
        progress = tqdm(
            total=sum(len(division.rows(part)) for part in range(len(SPLITS))),
            desc="prepare",
            unit="rows",
            unit_scale=True,
            disable=None,
        )
        with progress:
            for part, name in enumerate(SPLITS):
                cutter.write(part, folder / f"{name}.parquet", progress)
        cutter.write_history_only(folder / HISTORY_ONLY_FILE)
        splits = {name: division.counts(part, log.labels) for part, name in enumerate(SPLITS)}
        protocol = _protocol(config, source.schema)
        schema = cutter.learned_schema(splits, protocol)
        schema.save(folder)
        result = {
            "rows": len(log.labels),
            "users": len(np.unique(log.users.codes)),
            "items": len(np.unique(log.items.codes)),
            "examples": sum(counts["rows"] for counts in splits.values()),
            "history_only_rows": int((~division.gives_example).sum()),
            "cold_items": int(division.is_cold.sum()),
            "dropped_cold_rows": division.dropped_cold_rows,
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
        files = list(movielens_files(str(config.data)))
        if config.split.column is not None and (rows := Path(str(config.data)) / ROWS_FILE).is_file():
            files.append(rows)
        return {"data": _fingerprint(files)}
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
        if config.split.column is not None:
            source = with_parts(source, str(config.data), config.split.column)
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
