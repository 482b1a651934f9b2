"""A log of interactions, read by its schema into columns that examples are cut from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kser_tf.errors import ConfigError, DataError
from kser_tf.pipelines.log_columns import Encoded, Numbers, trim
from kser_tf.pipelines.log_rule import Rule, is_missing
from kser_tf.pipelines.log_schema import IdType, LogFeature, LogSchema, SideTable
from kser_tf.pipelines.log_tables import (
    Place,
    Table,
    first_null,
    near_miss,
    to_floats,
    to_integers,
    to_labels,
    to_lists,
    to_strings,
    to_times,
)
from kser_tf.schema import LABEL, MISSING_INTEGER, SPLITS

# In a column that names parts: a row that gives no example, but stands in histories.
NO_SPLIT = "none"

_CONVERTERS: dict[str, Callable[[pa.Array, Place], pa.Array]] = {"int64": to_integers, "string": to_strings}


@dataclass(frozen=True)
class Source:
    """The tables of a log and what their columns are.

    Args:
        log: One row an interaction.
        schema: What the columns are.
        items: The table of items, if the schema has one.
        users: The table of users, if the schema has one.
    """

    log: Table
    schema: LogSchema
    items: Table | None = None
    users: Table | None = None


@dataclass(frozen=True)
class Built:
    """A sequence that is built from earlier interactions.

    Args:
        of: The column that the values are taken from.
        where: str. The rule for interactions that may enter the sequence.
        keep: bool, one an interaction: those that satisfy the rule; `None` for all.
        history_only: bool. Whether only interactions that lie before all examples of their users may enter it.
    """

    of: Encoded
    where: str | None
    keep: np.ndarray | None
    history_only: bool


@dataclass(frozen=True)
class Log:
    """A log of n interactions.

    Args:
        users: Who.
        items: What: the candidate.
        labels: int8 (n,): 0 or 1.
        times: int64 (n,); `None` if the log's order is the order of time.
        columns: The features that are there already, by name; the candidate is among them.
        built: The sequences that are built.
    """

    users: Encoded
    items: Encoded
    labels: np.ndarray
    times: np.ndarray | None
    columns: dict[str, Encoded | Numbers]
    built: dict[str, Built]


def log_columns(schema: LogSchema) -> list[str]:
    """Returns the names of the log's columns that a schema reads."""
    columns = [schema.user_id.column, schema.item_id.column]
    columns += [schema.timestamp] if schema.timestamp is not None else []
    columns += [schema.label.column] if schema.label.column is not None else list(Rule(schema.label.rule or "").columns)
    for feature in schema.features:
        if feature.of is None:
            columns.append(feature.column or feature.name)
        elif schema.source_of(feature) is None:
            columns.append(feature.of)
        if feature.where is not None:
            columns += [column for column in Rule(feature.where).columns if column != LABEL]
    return columns


def check_built_sequences(schema: LogSchema, columns: list[str], table: str) -> None:
    """Raises a `DataError` where a sequence is built of something that is neither a feature nor a column of the log."""
    for feature in schema.features:
        if feature.of is not None and schema.source_of(feature) is None and feature.of not in columns:
            sources = [other.name for other in schema.resolve() if other.kind == "categorical"]
            raise DataError(
                f"feature `{feature.name}`: `of: {feature.of}` is neither a feature nor a column of {table}. "
                f"{near_miss(feature.of, list(dict.fromkeys(sources + columns)))}"
            )


def side_columns(side: SideTable, id_column: str) -> list[str]:
    """Returns the names of a side table's columns that a schema reads."""
    return [side.id or id_column, *(feature.column or feature.name for feature in side.features)]


def interpret(source: Source) -> Log:
    """Reads the columns of a log by its schema.

    Raises:
        DataError: A value cannot be what the schema says; a user, an item or a label is missing; a side table names an
            id twice.
    """
    schema, table = source.schema, source.log
    users = _read_ids(table, schema.user_id.column, schema.user_id.dtype, "user")
    items = _read_ids(table, schema.item_id.column, schema.item_id.dtype, "item")
    labels = _read_labels(source)
    times = None
    if schema.timestamp is not None:
        times = to_times(table.column(schema.timestamp), table.place(schema.timestamp))
    columns: dict[str, Encoded | Numbers] = {schema.item_name: items}
    if schema.user_id.entity is not None:
        columns[schema.user_name] = users
    for side, side_table, ids, id_column, dtype in (
        (schema.items, source.items, items, schema.item_id.column, schema.item_id.dtype),
        (schema.users, source.users, users, schema.user_id.column, schema.user_id.dtype),
    ):
        if side is not None and side_table is not None:
            rows = _join(ids, side_table, side.id or id_column, dtype)
            columns |= {feature.name: _read_feature(feature, side_table, rows) for feature in side.features}
    columns |= {feature.name: _read_feature(feature, table, None) for feature in schema.features if feature.of is None}
    _check_groups_have_equal_lengths(schema.features, columns, table)
    built = {
        feature.name: _plan(feature, schema, columns, table, labels)
        for feature in schema.features
        if feature.of is not None
    }
    return Log(users, items, labels, times, columns, built)


def read_split_column(table: Table, column: str) -> np.ndarray:
    """Returns for each row the number of its part (in the order of `SPLITS`), -1 for none, from a column that names it."""
    values = to_strings(table.column(column), table.place(column))
    parts = pc.index_in(values, value_set=pa.array([*SPLITS, NO_SPLIT], values.type))
    if parts.null_count:
        wrong = first_null(parts)
        raise DataError(
            f"{table.place(column)(wrong)}: {values[wrong].as_py()!r} is not a part. Expected one of: "
            f"{', '.join(SPLITS)}, {NO_SPLIT}."
        )
    numbers = parts.to_numpy(zero_copy_only=False).astype(np.int8)
    return np.where(numbers == len(SPLITS), np.int8(-1), numbers)


def _read_ids(table: Table, column: str, dtype: IdType, what: str) -> Encoded:
    place = table.place(column)
    array = _CONVERTERS[dtype](table.column(column), place)
    if array.null_count:
        first = first_null(array)
        value = table.column(column)[first].as_py()
        if str(value).strip() == str(MISSING_INTEGER):
            raise DataError(
                f"{place(first)}: -1 cannot be an id: it stands for a missing value. If it is one, declare dtype: "
                "string; if not, remove the row."
            )
        raise DataError(f"{place(first)}: the {what}'s id is missing. Remove such rows from the log.")
    return Encoded.of(array)


def _read_labels(source: Source) -> np.ndarray:
    label, table = source.schema.label, source.log
    if label.column is not None:
        return to_labels(table.column(label.column), table.place(label.column))
    rule = Rule(label.rule or "")
    columns = _rule_columns(rule, table, None)
    for name, values in columns.items():
        missing = np.flatnonzero(is_missing(values))
        if len(missing):
            raise DataError(
                f"{table.place(name)(int(missing[0]))}: the value is missing, and the label's rule {rule.text!r} "
                "needs it. Remove the row."
            )
    return rule(columns).astype(np.int8)


def _rule_columns(rule: Rule, table: Table, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """The columns that a rule reads; `label` is the label where there is one already."""
    columns = {}
    for name, kind in rule.columns.items():
        if name == LABEL and labels is not None:
            if kind is str:
                raise ConfigError(f"the rule {rule.text!r} compares `{name}` with a string. It is 0 or 1.")
            columns[name] = labels.astype(np.float64)
        elif kind is float:
            columns[name] = to_floats(table.column(name), table.place(name))
        else:
            columns[name] = to_strings(table.column(name), table.place(name)).to_numpy(zero_copy_only=False)
    return columns


def _read_feature(feature: LogFeature, table: Table, rows: np.ndarray | None) -> Encoded | Numbers:
    column = feature.column or feature.name
    array, place = table.column(column), table.place(column)
    if feature.kind == "numeric":
        return Numbers(to_floats(array, place).astype(np.float32), rows)
    convert = _CONVERTERS[feature.dtype or "string"]
    if feature.kind == "categorical":
        return Encoded.of(convert(array, place), rows=rows)
    # A set has no use for missing values; in a sequence they keep the places of its group.
    drop_missing = feature.kind == "multi"
    offsets, values = to_lists(array, place, separator=feature.separator, convert=convert, drop_missing=drop_missing)
    offsets, kept = trim(offsets, feature.length or 0, newest_last=feature.newest == "last")
    return Encoded.of(values.take(pa.array(kept)), offsets=offsets, rows=rows)


def _join(ids: Encoded, side: Table, column: str, dtype: IdType) -> np.ndarray:
    """For each row of the log the row of the side table with its id, or -1."""
    keys = _CONVERTERS[dtype](side.column(column), side.place(column))
    if keys.null_count:
        raise DataError(f"{side.place(column)(first_null(keys))}: the id is missing. Remove the row.")
    first = pc.index_in(keys, value_set=keys).to_numpy(zero_copy_only=False)
    again = np.flatnonzero(first != np.arange(len(keys)))
    if len(again):
        key, earlier = keys[int(again[0])].as_py(), int(first[again[0]])
        raise DataError(
            f"{side.place(column)(int(again[0]))}: the id {key!r} is there already ({side.row(earlier)}). A side "
            "table has one row an id."
        )
    rows = pc.fill_null(pc.index_in(ids.values, value_set=keys), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return rows[ids.codes]


def _plan(
    feature: LogFeature, schema: LogSchema, columns: dict[str, Encoded | Numbers], table: Table, labels: np.ndarray
) -> Built:
    name = schema.source_of(feature)
    if name is None:
        column = str(feature.of)
        source = Encoded.of(_CONVERTERS[feature.dtype or "string"](table.column(column), table.place(column)))
    else:
        of = columns[name]
        assert isinstance(of, Encoded)  # the schema refuses sequences of numeric features
        source = of
    keep = None
    if feature.where is not None:
        rule = Rule(feature.where)
        keep = rule(_rule_columns(rule, table, labels))
    return Built(source, feature.where, keep, feature.history_only)


def _check_groups_have_equal_lengths(
    features: tuple[LogFeature, ...], columns: dict[str, Encoded | Numbers], table: Table
) -> None:
    first: dict[str, LogFeature] = {}
    for feature in features:
        if feature.group is None or feature.of is not None:
            continue
        other = first.setdefault(feature.group, feature)
        lists, other_lists = columns[feature.name], columns[other.name]
        assert isinstance(lists, Encoded)  # groups are of sequences alone
        assert isinstance(other_lists, Encoded)
        differ = np.flatnonzero(lists.counts != other_lists.counts)
        if len(differ):
            raise DataError(
                f"{table.place(feature.column or feature.name)(int(differ[0]))}: the sequences `{other.name}` and "
                f"`{feature.name}` of the group `{feature.group}` are of different lengths there. They belong together "
                "position by position."
            )
