"""A log's columns as codes into a list of values: cheap to gather examples from, and to count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kser_tf.schema import MISSING_INTEGER, MISSING_STRING

# The code of "no value" in every column.
MISSING_CODE = 0


@dataclass(frozen=True)
class Piece:
    """Some rows of an `Encoded` column.

    Args:
        codes: int32, one a value.
        offsets: int64 (rows + 1): where each row's values begin among the codes; `None` where each row has one value.
    """

    codes: np.ndarray
    offsets: np.ndarray | None = None

    def without(self, unwanted: np.ndarray) -> Piece:
        """Returns the piece without some values: they become missing, and leave lists altogether.

        Args:
            unwanted: bool, one a value.
        """
        if self.offsets is None:
            return Piece(np.where(unwanted, MISSING_CODE, self.codes))
        kept_before = np.concatenate([[0], np.cumsum(~unwanted)])
        return Piece(self.codes[~unwanted], kept_before[self.offsets])


@dataclass(frozen=True)
class Encoded:
    """A categorical, multi or sequence column.

    Args:
        values: What the codes stand for; the first is the missing value.
        codes: int32, one a value.
        offsets: int64: for lists, where each row's values begin among the codes.
        rows: int64: for a column of a side table, for each row of the log the row there; -1 where it has none.
    """

    values: pa.Array
    codes: np.ndarray
    offsets: np.ndarray | None = None
    rows: np.ndarray | None = None

    @classmethod
    def of(cls, array: pa.Array, *, offsets: np.ndarray | None = None, rows: np.ndarray | None = None) -> Encoded:
        """Encodes an int64 or text array whose missing values are null."""
        encoded = pc.dictionary_encode(array)
        missing = pa.array([MISSING_INTEGER if pa.types.is_integer(array.type) else MISSING_STRING], array.type)
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False) + np.int32(1)
        return cls(pa.concat_arrays([missing, encoded.dictionary]), codes, offsets, rows)

    @property
    def counts(self) -> np.ndarray:
        """For lists, how many values each row has."""
        assert self.offsets is not None
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Piece:
        """Returns the values of some rows of the log."""
        unknown = None
        if self.rows is not None:
            rows = self.rows[rows]
            unknown = rows < 0
        if self.offsets is None:
            codes = self.codes[rows]
            return Piece(codes if unknown is None else np.where(unknown, MISSING_CODE, codes))
        starts, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        if unknown is not None:
            counts = np.where(unknown, 0, counts)
        offsets, within = ranges(counts)
        return Piece(self.codes[np.repeat(starts, counts) + within], offsets)

    def decode(self, piece: Piece) -> pa.Array:
        """Returns a piece's values as they are written to a file."""
        values = self.values.take(pa.array(piece.codes))
        if pa.types.is_large_string(values.type):
            values = values.cast(pa.string())
        return (
            values if piece.offsets is None else pa.ListArray.from_arrays(pa.array(piece.offsets, pa.int32()), values)
        )

    def sorted_codes(self) -> np.ndarray:
        """Returns the codes (int64) as if the values were sorted: then the order of the log's rows does not matter."""
        places = np.empty(len(self.values), dtype=np.int64)
        places[pc.array_sort_indices(self.values).to_numpy()] = np.arange(len(self.values))
        return places[self.codes]

    def is_among(self, wanted: pa.Array) -> np.ndarray:
        """Returns for each of this column's values whether it is among `wanted`."""
        return pc.is_in(self.values, value_set=wanted).to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Numbers:
    """A numeric column.

    Args:
        values: float32; missing values are NaN.
        rows: int64: for a column of a side table, for each row of the log the row there; -1 where it has none.
    """

    values: np.ndarray
    rows: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the values of some rows of the log."""
        if self.rows is None:
            return self.values[rows]
        rows = self.rows[rows]
        return np.where(rows < 0, np.float32("nan"), self.values[rows])


def ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets of ranges of these lengths, and the numbers 0, 1, ... within each range, end to end."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return offsets, np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)


def trim(offsets: np.ndarray, length: int, *, newest_last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the most recent values of lists, the most recent first.

    Args:
        offsets: int64 (rows + 1).
        length: int. The most values of a list.
        newest_last: bool. Whether the lists end in the most recent value.

    Returns:
        The new offsets, and for each value that is kept its place among the old ones.
    """
    counts = np.minimum(np.diff(offsets), length)
    trimmed, within = ranges(counts)
    if newest_last:
        return trimmed, np.repeat(offsets[1:], counts) - 1 - within
    return trimmed, np.repeat(offsets[:-1], counts) + within
