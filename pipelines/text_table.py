"""Reads tables of text (Parquet, CSV, JSON lines) row by row, with errors that name the cell."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from kser_tf.errors import DataError
from kser_tf.pipelines.log_tables import check_columns

IdType = Literal["int64", "string"]

_PARQUET_SUFFIXES = (".parquet", ".pq")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_COMPRESSED_SUFFIX = ".gz"

# CSV has no missing value of its own; these are what pandas, R, spreadsheets and data bases write for one.
_MISSING_IN_CSV = frozenset(
    {"", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "N/A", "n/a", "#N/A", "<NA>", "\\N"}
)
# A cell may hold a book; the csv module's own limit is 131,072 characters.
_LONGEST_CSV_CELL = 2**31 - 1

# A column of missing values alone may have the type null.
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)

_ROWS_PER_READ = 1024
# An integer as it is written: "7" and "-7"; "007" and "1e3" are names.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_INT64 = np.iinfo(np.int64)
_NAMED_IDS = 5  # as many are named in a message


# A file, and a row there from 1; of CSV and JSON lines, the line.
Place = tuple[str, int]


class Row(NamedTuple):
    """One row of a table.

    Args:
        place: Where it is.
        values: One for each column that was asked for; `None` for a missing one.
    """

    place: Place
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return _at(self.place)


def format_of(file: Path) -> Literal["parquet", "csv", "jsonl"] | None:
    """Returns a file's format by its name; `None` for one that is not read."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] == [_COMPRESSED_SUFFIX]:
        suffixes.pop()
    elif suffixes and suffixes[-1] in _PARQUET_SUFFIXES:
        return "parquet"
    if suffixes and suffixes[-1] in _DELIMITERS:
        return "csv"
    return "jsonl" if suffixes and suffixes[-1] in _JSON_SUFFIXES else None


def find_tables(path: str | Path) -> list[Path]:
    """Returns the table at `path`, or those in the folder `path`, by name.

    Raises:
        DataError: There is nothing there, or nothing of a known format.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and format_of(file) is not None)
        if not files:
            raise DataError(f"{path}: the folder holds no Parquet, CSV or JSON lines file.")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    if format_of(path) is None:
        raise DataError(
            f"{path}: not a known format. Expected a name that ends in .parquet, .csv, .tsv or .jsonl (the last three "
            "also with .gz)."
        )
    return [path]


def read_rows(files: Sequence[Path], columns: Sequence[str], *, text_columns: Sequence[str]) -> Iterator[Row]:
    """Reads columns of a table, row by row; of Parquet, some rows are in memory at a time.

    Args:
        files: From `find_tables`.
        columns: The columns to read.
        text_columns: Those of them that hold text.

    Raises:
        DataError: A file cannot be read, a column is missing, or a text is something else.
    """
    for file in files:
        read = _READERS[format_of(file) or ""]
        try:
            for row in read(file, columns, text_columns):
                for column, value in zip(columns, row.values, strict=True):
                    if column in text_columns and value is not None and not isinstance(value, str):
                        raise DataError(
                            f"{row}: `{column}` is {_shown(value)}, a {type(value).__name__}; expected text. Write it "
                            "as a string, or choose another column."
                        )
                yield row
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 at byte {error.start}. Save the table as UTF-8.") from None
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error


def check_id(value: Any, row: Row, column: str) -> None:
    """Raises a `DataError` for an id that is missing, or neither an integer nor a string."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{row}: `{column}`, the id, is missing. Give each row an id, or leave the row out.")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{row}: `{column}`, the id, is {_shown(value)}, a {type(value).__name__}; expected an integer or a "
            "string. Convert the column."
        )


def as_id_array(ids: Sequence[int | str], places: Sequence[Place], column: str, id_type: IdType | None) -> np.ndarray:
    """Returns ids as an array, int64 or of `str`.

    Args:
        ids: As they were read (from CSV, all are `str`), each seen by `check_id`.
        places: For each id, where it was read.
        column: str. The column's name, for messages.
        id_type: What they are to be. Defaults to what they are; from CSV, int64 where all of them are integers, written
            as Python would.

    Raises:
        DataError: Some ids are integers and some strings, or an id is not an integer that int64 holds.
    """
    if id_type is None:
        integers = [isinstance(value, int) for value in ids]
        if len(set(integers)) > 1:
            odd = integers.index(not integers[0])
            raise DataError(
                f"{_at(places[odd])}: `{column}` is {ids[odd]!r}, but {ids[0]!r} in {_at(places[0])}: ids must be all "
                "integers or all strings. Convert them, or set `id_dtype: string`."
            )
        is_csv = all(format_of(Path(file)) == "csv" for file in {place[0] for place in places})
        numeric = all(integers) or (is_csv and all(_INTEGER.fullmatch(str(value)) for value in ids))
        id_type = "int64" if numeric else "string"
    if id_type == "string":
        strings = np.empty(len(ids), dtype=object)
        strings[:] = [str(value) for value in ids]
        return strings
    for value, place in zip(ids, places, strict=True):
        if isinstance(value, str) and not _INTEGER.fullmatch(value):
            raise DataError(f"{_at(place)}: `{column}` is {value!r}; expected an integer. Set `id_dtype: string`.")
        if not _INT64.min <= int(value) <= _INT64.max:
            raise DataError(f"{_at(place)}: `{column}` is {value}, which int64 cannot hold. Set `id_dtype: string`.")
    return np.array([int(value) for value in ids], dtype=np.int64)


def check_unique(ids: np.ndarray, places: Sequence[Place], column: str) -> None:
    """Raises a `DataError` that names the ids which occur more than once."""
    first: dict[Any, int] = {}
    repeated: dict[Any, tuple[int, int]] = {}
    for place, value in enumerate(ids.tolist()):
        if first.setdefault(value, place) != place:
            repeated.setdefault(value, (first[value], place))
    if repeated:
        named = [
            f"{value!r} ({_at(places[one])} and {_at(places[other])})"
            for value, (one, other) in list(repeated.items())[:_NAMED_IDS]
        ]
        more = f", and {len(repeated) - _NAMED_IDS} more" if len(repeated) > _NAMED_IDS else ""
        raise DataError(
            f"`{column}` must hold each id once; more than once are {', '.join(named)}{more}. Remove the repeated "
            "rows, or give a table of one row a chunk (`field_column` and `text_column`)."
        )


def _open_text(file: Path) -> IO[str]:
    # utf-8-sig: spreadsheets put a byte order mark in front.
    if file.suffix.lower() == _COMPRESSED_SUFFIX:
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return open(file, encoding="utf-8-sig", newline="")


def _parquet_rows(file: Path, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Row]:
    with pa.parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        check_columns(columns, schema.names, str(file))
        for column in text_columns:
            found = schema.field(column).type
            plain = found.value_type if pa.types.is_dictionary(found) else found
            if not any(check(plain) for check in _TEXT_TYPES):
                raise DataError(
                    f"{file}: the column `{column}` holds {found}; expected text (string). Choose another column, or "
                    "write it as strings."
                )
        number = 0
        for batch in table.iter_batches(_ROWS_PER_READ, columns=list(columns)):
            # By name: a file may hold its columns in another order than they are asked for.
            for values in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                number += 1
                yield Row((str(file), number), values)


def _csv_rows(file: Path, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Row]:
    delimiter = _DELIMITERS[next(suffix for suffix in map(str.lower, reversed(file.suffixes)) if suffix in _DELIMITERS)]
    csv.field_size_limit(_LONGEST_CSV_CELL)
    with _open_text(file) as opened:
        reader = csv.reader(opened, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            check_columns(columns, header, str(file))
            places = [header.index(column) for column in columns]
            is_text = [column in text_columns for column in columns]
            for cells in reader:
                if not cells:  # an empty line
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{file}, row {reader.line_num}: {len(cells)} cells; expected {len(header)}, as in the first "
                        "line. Put cells that hold commas, quotes or line breaks in quotes."
                    )
                found = [cells[place] for place in places]
                values = (
                    None if text and cell.strip() in _MISSING_IN_CSV else cell
                    for cell, text in zip(found, is_text, strict=True)
                )
                yield Row((str(file), reader.line_num), tuple(values))
        except csv.Error as error:
            raise DataError(
                f"{file}, row {reader.line_num}: not valid CSV: {error}. Expected commas between cells, and double "
                "quotes, doubled inside, around those that hold commas, quotes or line breaks."
            ) from None


def _json_rows(file: Path, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[Row]:
    seen: dict[str, None] = {}
    rows = 0
    with _open_text(file) as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{file}, row {number}: not valid JSON: {error}. Expected one JSON object on each line."
                ) from None
            if not isinstance(content, dict):
                raise DataError(
                    f"{file}, row {number}: a JSON {type(content).__name__}; expected one JSON object on each line, "
                    "with the columns as its keys."
                )
            seen.update(dict.fromkeys(content))
            rows += 1
            values = (content.get(column) for column in columns)
            # NaN stands for a missing text where pandas wrote the lines.
            yield Row((str(file), number), tuple(None if value != value else value for value in values))
    if rows:
        check_columns(columns, list(seen), str(file))


_READERS = {"parquet": _parquet_rows, "csv": _csv_rows, "jsonl": _json_rows}


def _at(place: Place) -> str:
    return f"{place[0]}, row {place[1]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
