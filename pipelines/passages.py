"""The passages of a table of text: which texts there are, and which of them belong to which entity and field."""

from __future__ import annotations

import difflib
import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kser_tf.errors import DataError
from kser_tf.pipelines.chunking import clean_text
from kser_tf.pipelines.text_table import IdType, Place, Row, as_id_array, check_id, check_unique, read_rows

# More than any encoder reads (8,192 tokens are about 40,000 characters of English), and little enough to tokenize.
LONGEST_PASSAGE = 100_000


@dataclass(frozen=True)
class Passages:
    """The passages of all entities of a table.

    Args:
        ids: `(entities,)`, int64 or objects that are all `str`, in the table's order.
        fields: The fields' names.
        texts: The passages, each different one once, in the table's order; the first 100,000 characters of each.
        places: `(entities, fields, chunks)`, int32: for each place of a chunk the index of its text, -1 where there is
            none.
    """

    ids: np.ndarray
    fields: tuple[str, ...]
    texts: list[str]
    places: np.ndarray

    @cached_property
    def texts_hash(self) -> str:
        """SHA-256 of the texts in their order."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps(text).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts and of whose they are."""
        digest = hashlib.sha256(self.texts_hash.encode())
        digest.update(json.dumps([self.fields, self.places.shape, self.ids.tolist()]).encode())
        digest.update(self.places.tobytes())
        return digest.hexdigest()

    def without(self, known: np.ndarray) -> Passages:
        """Returns the passages of the other entities.

        Args:
            known: `(entities,)` bool: which entities are left out.
        """
        places = self.places[~known]
        needed, numbers = np.unique(places[places >= 0], return_inverse=True)
        renumbered = np.full_like(places, -1)
        renumbered[places >= 0] = numbers
        return Passages(self.ids[~known], self.fields, [self.texts[place] for place in needed], renumbered)


def read_field_columns(
    files: Sequence[Path],
    *,
    id_column: str,
    id_type: IdType | None,
    fields: Sequence[str],
    chunks_per_field: int,
    split: Callable[[str, int], list[str]],
) -> Passages:
    """Reads a table with one row an entity and one column a field.

    Args:
        files: The table.
        id_column: str. The column of the ids.
        id_type: What the ids are to be; by default what the column holds.
        fields: The columns of the fields.
        chunks_per_field: int. The most passages of a field.
        split: Divides a text into at most so many passages.

    Raises:
        DataError: The table cannot be read, has no row, or an id is missing or occurs twice.
    """
    collector = _Collector(id_column, id_type)
    for row in _with_progress(files, [id_column, *fields], fields):
        entity = collector.new_entity(row)
        for field, text in enumerate(row.values[1:]):
            for passage in split(text, chunks_per_field) if text else []:
                collector.add(entity, field, passage)
    ids = collector.ids(files)
    check_unique(ids, collector.id_places, id_column)
    return collector.passages(ids, tuple(fields), chunks_per_field)


def read_chunk_rows(
    files: Sequence[Path],
    *,
    id_column: str,
    id_type: IdType | None,
    field_column: str,
    text_column: str,
    fields: Sequence[str] | None,
    chunks_per_field: int | None,
    may_lack_fields: bool = False,
) -> Passages:
    """Reads a table with one row a chunk. Chunks stand in the order of their rows, which need not be side by side.

    Args:
        files: The table.
        id_column: str. The column of the ids.
        id_type: What the ids are to be; by default what the column holds.
        field_column: str. The column of the fields' names.
        text_column: str. The column of the chunks' texts.
        fields: The fields to take, in this order. Defaults to all, in order of first appearance.
        chunks_per_field: int. The most chunks that a field may have. Defaults to the most that one has.
        may_lack_fields: bool. Whether some of the fields, but not all, may not occur at all: for a table of few entities
            whose fields are known from elsewhere. Defaults to `False`.

    Raises:
        DataError: The table cannot be read, has no row, an id or a field's name is missing, a field does not occur, or
            an entity has more chunks of a field than `chunks_per_field`.
    """
    collector = _Collector(id_column, id_type)
    field_numbers: dict[str, int] = {}
    for row in _with_progress(files, [id_column, field_column, text_column], [field_column, text_column]):
        _, field, text = row.values
        if not field:
            raise DataError(f"{row}: `{field_column}`, the field's name, is missing. Give each chunk its field.")
        collector.add(
            collector.known_entity(row), field_numbers.setdefault(field, len(field_numbers)), clean_text(text or "")
        )
    ids = collector.ids(files)
    names = tuple(field_numbers if fields is None else fields)
    none_occurs = not field_numbers.keys() & set(names)
    for name in names:
        if name not in field_numbers and may_lack_fields and not none_occurs:
            field_numbers[name] = len(field_numbers)
        elif name not in field_numbers:
            near = difflib.get_close_matches(name, field_numbers, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(field_numbers)}."
            raise DataError(f"{files[0]}: no chunk in `{field_column}` is of the field {name!r}. {hint}")
    if fields is not None:
        collector.keep_fields([field_numbers[name] for name in names])
    return collector.passages(ids, names, chunks_per_field)


class _Collector:
    """Gathers passages as (entity, field, text), with each text kept once."""

    def __init__(self, id_column: str, id_type: IdType | None) -> None:
        self.id_column = id_column
        self.id_type = id_type
        self.id_places: list[Place] = []
        self._ids: list[int | str] = []
        self._entities: dict[Any, int] = {}
        self._texts: dict[str, int] = {}
        # One number for each chunk: 16 bytes a chunk, where tuples would take 100.
        self._entity, self._field, self._text = array("i"), array("i"), array("q")

    def new_entity(self, row: Row) -> int:
        check_id(row.values[0], row, self.id_column)
        self._ids.append(row.values[0])
        self.id_places.append(row.place)
        return len(self._ids) - 1

    def known_entity(self, row: Row) -> int:
        """The entity of this row's id, whether it was seen before or not."""
        value = row.values[0]
        check_id(value, row, self.id_column)
        entity = self._entities.setdefault(str(value) if self.id_type else value, len(self._ids))
        return self.new_entity(row) if entity == len(self._ids) else entity

    def add(self, entity: int, field: int, passage: str) -> None:
        if not passage:
            return
        self._entity.append(entity)
        self._field.append(field)
        self._text.append(self._texts.setdefault(passage[:LONGEST_PASSAGE], len(self._texts)))

    def ids(self, files: Sequence[Path]) -> np.ndarray:
        if not self._ids:
            raise DataError(f"{files[0]}: the table has no row. Give at least one entity.")
        return as_id_array(self._ids, self.id_places, self.id_column, self.id_type)

    def keep_fields(self, numbers: list[int]) -> None:
        """Leaves only these fields, renumbered in this order, and the texts that they need."""
        renumbered = {number: place for place, number in enumerate(numbers)}
        kept = [place for place, field in enumerate(self._field) if field in renumbered]
        texts = list(self._texts)
        needed: dict[str, int] = {}
        self._entity = array("i", (self._entity[place] for place in kept))
        self._text = array("q", (needed.setdefault(texts[self._text[place]], len(needed)) for place in kept))
        self._field = array("i", (renumbered[self._field[place]] for place in kept))
        self._texts = needed

    def passages(self, ids: np.ndarray, fields: tuple[str, ...], chunks_per_field: int | None) -> Passages:
        entity, field, text = (np.asarray(numbers) for numbers in (self._entity, self._field, self._text))
        order = np.lexsort((field, entity))  # stable: chunks of one field stay in the table's order
        entity, field, text = entity[order], field[order], text[order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (entity[1:] != entity[:-1]) | (field[1:] != field[:-1])
        numbers = np.arange(len(order))
        chunk = numbers - np.maximum.accumulate(np.where(is_first, numbers, 0))
        most = int(chunk.max(initial=0)) + 1
        if chunks_per_field is None:
            chunks_per_field = most
        elif most > chunks_per_field:
            at = chunk.argmax()
            raise DataError(
                f"{self.id_places[entity[at]][0]}: the id {ids[entity[at]]!r} has {most} chunks of the field "
                f"{fields[field[at]]!r}, but `chunks_per_field` is {chunks_per_field}. Raise it, leave it out, or "
                "remove chunks."
            )
        places = np.full((len(ids), len(fields), chunks_per_field), -1, dtype=np.int32)
        places[entity, field, chunk] = text
        return Passages(ids, fields, list(self._texts), places)


def _with_progress(files: Sequence[Path], columns: Sequence[str], text_columns: Sequence[str]) -> Any:
    rows = read_rows(files, columns, text_columns=text_columns)
    return tqdm(rows, desc="read", unit="rows", unit_scale=True, disable=None)
