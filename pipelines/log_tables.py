"""Reads tables (Parquet, CSV), and turns columns into numbers, texts and lists with errors that name the cell."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from kser_tf.errors import DataError
from kser_tf.schema import MISSING_INTEGER

_PARQUET_SUFFIXES = (".parquet", ".pq")
_CSV_SUFFIXES = (".csv", ".tsv", ".txt")
_COMPRESSED_SUFFIXES = (".gz", ".bz2")

# A whole number as text; "12.0" is how pandas writes 12 into a CSV column that has gaps.
_WHOLE_NUMBER = r"^[+-]?\d+(\.0*)?$"
_TRUE_AND_FALSE = {"true": 1.0, "false": 0.0}
_MICROSECONDS = pa.timestamp("us", "UTC")
# Whole numbers beyond this do not survive a float64.
_LARGEST_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True)
class Table:
    """A table in memory, and where its rows came from.

    Args:
        data: The columns that were asked for.
        files: For each file its name and its number of rows, in order.
    """

    data: pa.Table
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return self.data.num_rows

    @property
    def name(self) -> str:
        """What to call the table in a message."""
        return self.files[0][0] if len(self.files) == 1 else f"{self.files[0][0]} and {len(self.files) - 1} more"

    def head(self, rows: int) -> Table:
        """Returns the first `rows` rows."""
        return dataclasses.replace(self, data=self.data.slice(0, rows))

    def row(self, number: int) -> str:
        """Says where row `number` (from 0) is: its file, and its row there, counted from 1 without a header."""
        for name, rows in self.files:
            if number < rows:
                return f"{name}, row {number + 1}"
            number -= rows
        raise IndexError(number)

    def place(self, column: str) -> Place:
        """Returns what says where a column's cells are."""
        return Place(self, column)

    def column(self, name: str) -> pa.Array:
        """Returns a column as one array.

        Raises:
            DataError: There is none of that name, or more than one.
        """
        check_columns([name], self.data.column_names, self.name)
        column = self.data.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if _is_text(column.type):
            column = column.cast(pa.large_string())  # 64-bit offsets: a long log has more than 2 GiB of text
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


@dataclass(frozen=True)
class Place:
    """Where values came from, for messages: "clicks.csv, row 3, column `age`".

    Args:
        table: The table.
        column: str. Its column.
        rows: int64. For each value its row, where that is not the value's own number.
    """

    table: Table
    column: str
    rows: np.ndarray | None = None

    def __call__(self, number: int) -> str:
        """Says where value `number` is."""
        return f"{self.table.row(number if self.rows is None else int(self.rows[number]))}, column `{self.column}`"

    def __str__(self) -> str:
        return f"{self.table.name}, column `{self.column}`"


def check_columns(wanted: Iterable[str], there: Sequence[str], table: str) -> None:
    """Raises a `DataError` that suggests the near miss where a wanted column is not there, or is there twice."""
    for name in wanted:
        if there.count(name) > 1:
            raise DataError(f"{table}: {there.count(name)} columns are called `{name}`. Rename or remove the others.")
        if name not in there:
            raise DataError(f"{table}: no column is called `{name}`. {near_miss(name, there)}")


def near_miss(name: str, there: Sequence[str]) -> str:
    """Returns a sentence that suggests the one of `there` that is nearest to `name`, or lists them."""
    near = [other for other in there if other.lower() == name.lower()] or difflib.get_close_matches(name, there, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"It has: {', '.join(there)}."


def find_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the files that `paths` names: a file, several, or a folder's Parquet and CSV files by name.

    Raises:
        DataError: Something is not there, or a folder holds no table.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.is_file() and _format_of(file))
            if not inside:
                raise DataError(f"{path}: the folder holds no Parquet or CSV file.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder.")
    if not found:
        raise DataError("no file is given to read.")
    return found


@dataclass(frozen=True)
class CsvFormat:
    """How CSV files are written.

    Args:
        delimiter: str. Between the columns. Defaults to a comma, in `.tsv` files a tab.
        encoding: str. Defaults to `"utf-8"`.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"

    def read_options(self) -> pa.csv.ReadOptions:
        """Returns the half that Arrow calls reading."""
        return pa.csv.ReadOptions(encoding=self.encoding)

    def parse_options(self, path: Path) -> pa.csv.ParseOptions:
        """Returns the half that Arrow calls parsing."""
        delimiter = self.delimiter or ("\t" if _format_of(path) == ".tsv" else ",")
        return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def read_table(paths: str | Path | Sequence[str | Path], columns: Iterable[str], csv: CsvFormat) -> Table:
    """Reads columns of one table from one or several files.

    All columns of a CSV file are read as text, so that an id such as 007 stays what it is; an empty cell is a missing
    value.

    Args:
        paths: A file, several, or a folder: `.parquet`, `.csv`, `.tsv`, CSV also compressed (`.csv.gz`).
        columns: Names of the columns.
        csv: How CSV files are written.

    Raises:
        DataError: A file is missing or unreadable, a column is not in it, or there is not one row.
    """
    columns = list(dict.fromkeys(columns))
    files = find_files(paths)
    parts = [_read_file(file, columns, csv) for file in files]
    table = Table(
        _concatenate(parts), tuple((str(file), part.num_rows) for file, part in zip(files, parts, strict=True))
    )
    if len(table) == 0:
        raise DataError(f"{table.name}: not one row.")
    return table


def first_null(array: pa.Array) -> int:
    """Returns the number of an array's first missing value; -1 if it has none."""
    return int(pc.index(pc.is_null(array), pa.scalar(True)).as_py())


def column_names(paths: str | Path | Sequence[str | Path], csv: CsvFormat) -> list[str]:
    """Returns the names of all columns of a table's first file.

    Raises:
        DataError: The file is missing or unreadable.
    """
    return _read_names(find_files(paths)[0], csv)


def to_integers(array: pa.Array, place: Place) -> pa.Array:
    """Returns an int64 array; missing values (also NaN, the empty text, and -1) are null.

    Raises:
        DataError: A value is not a whole number, or is negative: -1 stands for a missing value in requests.
    """
    array = _without_empty(array)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.large_string())
    if _is_text(array.type):
        array = pc.utf8_trim_whitespace(array)
        _refuse_first(
            pc.invert(pc.match_substring_regex(array, _WHOLE_NUMBER)),
            array,
            place,
            "a whole number (int64)",
            _DECLARE_STRING,
        )
        array = pc.replace_substring_regex(array, r"\.0*$", "")
    elif pa.types.is_floating(array.type):
        whole = pc.and_(pc.equal(pc.round(array), array), pc.less_equal(pc.abs(array), _LARGEST_EXACT_FLOAT))
        _refuse_first(pc.invert(whole), array, place, "a whole number (int64)", _DECLARE_STRING)
    elif not (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type) or pa.types.is_null(array.type)):
        raise DataError(f"{place}: a column of type {array.type} cannot be read as int64. {_DECLARE_STRING}")
    try:
        integers = array.cast(pa.int64())
    except pa.ArrowInvalid:  # some value is beyond 64 bits
        limits = np.iinfo(np.int64)
        beyond = [value is not None and not limits.min <= int(value) <= limits.max for value in array.to_pylist()]
        _refuse_first(pa.array(beyond), array, place, "a whole number of 64 bits", _DECLARE_STRING)
        raise
    _refuse_first(
        pc.less(integers, MISSING_INTEGER), integers, place, "an int64 of 0 or more (-1 means missing)", _DECLARE_STRING
    )
    return pc.if_else(pc.equal(integers, MISSING_INTEGER), None, integers)


def to_strings(array: pa.Array, place: Place) -> pa.Array:
    """Returns a text array; missing values (also NaN and the empty text) are null. Whole numbers have no point."""
    array = _without_empty(array)
    try:
        return array.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{place}: a column of type {array.type} cannot be read as string.") from None


def to_floats(array: pa.Array, place: Place) -> np.ndarray:
    """Returns a float64 array; missing values are NaN. False and true are 0 and 1, as texts too.

    Raises:
        DataError: A value is not a number, or not a finite one as float32, which is what models take.
    """
    array = _without_empty(array)
    if _is_text(array.type):
        texts = pc.utf8_trim_whitespace(array).to_numpy(zero_copy_only=False)
        numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64, copy=True)
        for number in np.flatnonzero(np.isnan(numbers) & pc.is_valid(array).to_numpy(zero_copy_only=False)):
            text = str(texts[number]).lower()
            if text not in _TRUE_AND_FALSE and text != "nan":
                raise DataError(f"{place(int(number))}: {texts[number]!r} is not a number.")
            numbers[number] = _TRUE_AND_FALSE.get(text, np.nan)
    elif pa.types.is_boolean(array.type) or pa.types.is_null(array.type):
        numbers = array.cast(pa.int8()).cast(pa.float64()).to_numpy(zero_copy_only=False)
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        raise DataError(f"{place}: a column of type {array.type} cannot be read as numbers.")
    beyond = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if len(beyond):
        raise DataError(
            f"{place(int(beyond[0]))}: {array[int(beyond[0])].as_py()!r} is not a finite float32. Leave the cell "
            "empty if the value is unknown."
        )
    return numbers


def to_labels(array: pa.Array, place: Place) -> np.ndarray:
    """Returns an int8 array of 0 and 1.

    Raises:
        DataError: A value is missing or anything else.
    """
    numbers = to_floats(array, place)
    wrong = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(wrong):
        value = array[int(wrong[0])].as_py()
        raise DataError(
            f"{place(int(wrong[0]))}: a label is 0 or 1 (or false, true). Received: {value!r}. "
            "For a label that follows from other values, declare `label: {rule: ...}`."
        )
    return numbers.astype(np.int8)


def to_times(array: pa.Array, place: Place) -> np.ndarray:
    """Returns an int64 array that keeps the order of time.

    Whole numbers stay as they are; datetimes become microseconds since 1970 (UTC). If one number has a fraction, all
    are multiplied by 1,000,000 before they are rounded.

    Raises:
        DataError: A time is missing, or is neither a number nor an ISO 8601 datetime.
    """
    array = _without_empty(array)
    if array.null_count:
        raise DataError(
            f"{place(first_null(array))}: the time is missing. Remove the row, or leave `timestamp` out of the "
            "schema: then the rows' order is the order of time."
        )
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        zone = _MICROSECONDS if getattr(array.type, "tz", None) else pa.timestamp("us")
        return array.cast(zone, safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_signed_integer(array.type):
        return array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if _is_text(array.type):
        try:
            return pc.utf8_trim_whitespace(array).cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            texts = pd.Series(array.to_numpy(zero_copy_only=False), dtype=object)
        numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
        if np.isnan(numbers[0]):
            return _iso_times(texts, place)
    else:
        numbers, texts = to_floats(array, place), pd.Series(array.to_numpy(zero_copy_only=False), dtype=object)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise DataError(
            f"{place(int(wrong[0]))}: {texts[int(wrong[0])]!r} is not a number, as the times before it are."
        )
    whole = bool(np.all(numbers == np.floor(numbers)))
    return (numbers if whole else np.round(numbers * 1e6)).astype(np.int64)


def to_lists(
    array: pa.Array,
    place: Place,
    *,
    separator: str | None,
    convert: Callable[[pa.Array, Place], pa.Array],
    drop_missing: bool,
) -> tuple[np.ndarray, pa.Array]:
    """Returns a column of lists as offsets (rows + 1) and the converted values of all lists in a row.

    Args:
        array: Lists, or text in which `separator` stands between the values.
        place: Says where a cell is.
        separator: str. For text.
        convert: `to_integers` or `to_strings`.
        drop_missing: bool. Whether missing values are left out of the lists.

    Raises:
        DataError: The column holds something else, or a value cannot be converted.
    """
    if _is_text(array.type):
        if separator is None:
            raise DataError(f"{place}: the column is text, not lists. Declare the `separator` between its values.")
        array = pc.split_pattern(_without_empty(array), separator)
    elif pa.types.is_null(array.type):
        array = array.cast(pa.list_(pa.null()))
    elif not (
        pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    ):
        raise DataError(f"{place}: a column of type {array.type} holds no lists.")
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(array)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if _is_text(values.type):
        values = pc.utf8_trim_whitespace(values)
    parents = np.repeat(np.arange(len(counts)), counts)
    values = convert(values, dataclasses.replace(place, rows=parents))
    if drop_missing and values.null_count:
        there = pc.is_valid(values).to_numpy(zero_copy_only=False)
        counts = np.bincount(parents[there], minlength=len(counts))
        values = values.drop_null()
    return np.concatenate([[0], np.cumsum(counts)]), values


_DECLARE_STRING = "If this is what the log means, declare dtype: string."


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _without_empty(array: pa.Array) -> pa.Array:
    """Turns what means "no value" (the empty text, NaN) into null."""
    if _is_text(array.type):
        return pc.if_else(pc.equal(array, ""), None, array)
    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_nan(array), None, array)
    return array


def _refuse_first(wrong: pa.Array, array: pa.Array, place: Place, expected: str, mend: str) -> None:
    position = pc.index(wrong, pa.scalar(True)).as_py()
    if position >= 0:
        raise DataError(f"{place(position)}: {array[position].as_py()!r} is not {expected}. {mend}")


def _iso_times(texts: pd.Series[Any], place: Place) -> np.ndarray:
    times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    wrong = np.flatnonzero(times.isna().to_numpy())
    if len(wrong):
        raise DataError(
            f"{place(int(wrong[0]))}: {texts[int(wrong[0])]!r} is neither a number nor an ISO 8601 datetime such as "
            "2024-03-31T18:05:00."
        )
    return times.dt.as_unit("us").astype("int64").to_numpy()


def _format_of(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PARQUET_SUFFIXES:
        return "parquet"
    if suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _CSV_SUFFIXES else None


def read_csv(source: Any, columns: list[str], *, read: pa.csv.ReadOptions, parse: pa.csv.ParseOptions) -> pa.Table:
    """Reads columns of a CSV file as text (an empty cell is null).

    Args:
        source: A path or an open file.
        columns: Names of the columns.
        read: How to read; its `column_names` stand for a header.
        parse: How to take lines apart.
    """
    convert = pa.csv.ConvertOptions(
        include_columns=columns,
        column_types={column: pa.large_string() for column in columns},
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[""],
    )
    return pa.csv.read_csv(source, read_options=read, parse_options=parse, convert_options=convert)


def _read_file(path: Path, columns: list[str], csv: CsvFormat) -> pa.Table:
    check_columns(columns, _read_names(path, csv), str(path))
    with _telling_what_is_unreadable(path):
        if _format_of(path) == "parquet":
            return pa.parquet.read_table(path, columns=columns, partitioning=None)
        return read_csv(str(path), columns, read=csv.read_options(), parse=csv.parse_options(path))


def _read_names(path: Path, csv: CsvFormat) -> list[str]:
    if _format_of(path) is None:
        raise DataError(
            f"{path}: cannot tell the format from its name. Expected one of: "
            f"{', '.join(_PARQUET_SUFFIXES + _CSV_SUFFIXES)} (CSV also .gz)."
        )
    with _telling_what_is_unreadable(path):
        if _format_of(path) == "parquet":
            return list(pa.parquet.read_schema(path).names)
        with pa.csv.open_csv(
            str(path), read_options=csv.read_options(), parse_options=csv.parse_options(path)
        ) as reader:
            return list(reader.schema.names)


@contextlib.contextmanager
def _telling_what_is_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, LookupError, UnicodeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
        if _format_of(path) == "parquet":
            raise DataError(f"{path}: not a readable Parquet file: {error}.") from None
        raise DataError(
            f"{path}: not a readable CSV file: {error}. Check `delimiter` and `encoding` in the schema, and the quotes."
        ) from None


def _concatenate(parts: list[pa.Table]) -> pa.Table:
    """Joins the files' rows. Where the files disagree on a column's type, it becomes text."""
    parts = [part.select(parts[0].column_names) for part in parts]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    for position, name in enumerate(parts[0].column_names):
        if len({part.schema.field(name).type for part in parts}) > 1:
            parts = [part.set_column(position, name, part.column(name).cast(pa.large_string())) for part in parts]
    return pa.concat_tables(parts)
