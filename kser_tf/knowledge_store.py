"""The knowledge store: the text vectors of all entities of one kind, in a directory."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kser_tf.errors import FileError, StoreError
from kser_tf.files import new_directory, sha256_of_json
from kser_tf.store_format import (
    BLOCK_BYTES,
    ID_BYTES_FILE,
    ID_OFFSETS_FILE,
    IDS_FILE,
    MASK_FILE,
    SCALES_FILE,
    VECTOR_TYPES,
    VECTORS_FILE,
    IdType,
    StoreWriter,
    VectorType,
    as_ids,
    looks_like_a_store,
    open_arrays,
    read_manifest,
    strings_from_bytes,
    to_int64,
)

# What TensorFlow asks of memory that it uses in place; the files have it by their format.
_ALIGNMENT = 64


class KnowledgeStore:
    """The text vectors of all entities of one kind (items, or users), memory-mapped from a directory.

    Each entity has `chunks_per_field` places for vectors in each field; a mask tells which of them hold one. Vectors
    are kept as int8 values with one float16 scale a chunk, as float16, or as float32. Only what is looked up is read
    from the disk. Made by `write` and `open`; a store is never changed in place.

    Looking up does not need TensorFlow, and may be done from several threads.

    Example:
        >>> fields = ["story", "craft"]
        >>> KnowledgeStore.write("stores/movies", ids, chunks, mask, fields=fields, encoder="all-MiniLM-L6-v2")
        >>> store = KnowledgeStore.open("stores/movies")
        >>> chunks, mask = store.lookup([3, 17, 3])  # float32 (3, fields, chunks, width), bool (3, fields, chunks)
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], arrays: dict[str, Any], source_rows: np.ndarray | None = None
    ) -> None:
        self._path = path
        self._manifest = manifest
        self._arrays = arrays
        self._source_rows = source_rows  # of `shuffled`: for each entity the row that its knowledge comes from

    @classmethod
    def write(
        cls,
        path: str | Path,
        ids: Any = None,
        chunks: Any = None,
        mask: Any = None,
        *,
        batches: Iterable[tuple[Any, Any, Any]] | None = None,
        fields: Sequence[str],
        encoder: str,
        dtype: VectorType = "int8",
        encoder_fingerprint: str | None = None,
        text_hash: str | None = None,
        overwrite: bool = False,
    ) -> KnowledgeStore:
        """Writes a store, from arrays or from a stream of batches, and opens it.

        The store appears at `path` when it is whole; if anything fails, nothing is left. Memory: the batch, some
        megabytes, and at the end the ids. Equal content gives equal files, however it is divided into batches.

        Args:
            path: The directory to write.
            ids: `(n,)`, integers of any width (stored as int64) or strings (`str`, or `bytes` in UTF-8), each once.
            chunks: `(n, fields, chunks, width)`, floating point; stored as zeros where `mask` is false, whatever they
                are there.
            mask: `(n, fields, chunks)`, bool, true where there is a chunk.
            batches: Instead of the three: an iterable of `(ids, chunks, mask)`, with any number of rows each.
            fields: The names of the fields, in the order of the arrays' second dimension.
            encoder: str. The name of the encoder that made the vectors.
            dtype: `"int8"` (a quarter of the size; cosine to the original at least 0.9999, unless one component is more
                than 5 times the root mean square of a vector's: then a warning tells the lowest), `"float16"` or
                `"float32"` (exact). Defaults to `"int8"`.
            encoder_fingerprint: str. What identifies the encoder's weights.
            text_hash: str. What identifies the text that was encoded.
            overwrite: bool. Whether a store that is there already is replaced; anything else is never. Those who have
                the old one open keep it. Defaults to `False`.

        Returns:
            The store, opened.

        Raises:
            StoreError: The input is not as told above, an id occurs twice, a vector is NaN, infinite or out of the
                range of `dtype`, `path` exists, another process is writing there, or the disk is full.
        """
        names = _checked_fields(fields)
        if dtype not in VECTOR_TYPES:
            raise StoreError(f"`dtype` must be one of {', '.join(VECTOR_TYPES)}. Received: {dtype!r}")
        if not isinstance(encoder, str) or not encoder:
            raise StoreError(f"`encoder` must be the encoder's name. Received: {encoder!r}")
        arrays = (ids, chunks, mask)
        given = [array is not None for array in arrays]
        if any(given) if batches is not None else not all(given):
            raise StoreError("give either `ids`, `chunks` and `mask`, or `batches`.")
        path = Path(path)
        if overwrite and path.is_dir() and any(path.iterdir()) and not looks_like_a_store(path):
            raise StoreError(
                f"{path} is not a knowledge store, and is not overwritten. Choose another path, or remove it yourself."
            )
        try:
            with (
                new_directory(path, overwrite=overwrite) as folder,
                StoreWriter(folder, fields=names, dtype=dtype) as writer,
            ):
                for batch in [arrays] if batches is None else batches:
                    writer.append(*_checked_batch(batch))
                writer.finish(encoder=encoder, encoder_fingerprint=encoder_fingerprint, text_hash=text_hash)
        except FileError as error:
            raise StoreError(str(error)) from error
        return cls.open(path, verify=False)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> KnowledgeStore:
        """Opens a store, and checks that it is whole.

        Args:
            path: The directory.
            verify: bool. Whether the files' checksums are compared, for which they are read through once (about a
                second a gigabyte). Format version, sizes, shapes and dtypes are checked in any case. Defaults to
                `True`.

        Raises:
            StoreError: There is no store, it is of another format version, or a file is missing, truncated or damaged.
        """
        path = Path(os.path.abspath(path))
        while True:
            manifest = read_manifest(path)
            try:
                arrays = open_arrays(path, manifest, verify=verify)
            except StoreError:
                if read_manifest(path) == manifest:
                    raise
            else:
                if read_manifest(path) == manifest:
                    return cls(path, manifest, arrays)
            # A writer has replaced the store under our hands: take the new one.

    def extended(
        self,
        path: str | Path,
        batches: Iterable[tuple[Any, Any, Any]],
        *,
        text_hash: str | None = None,
        overwrite: bool = False,
    ) -> KnowledgeStore:
        """Writes a store of this one's rows, bit for bit, and further ones behind them, and opens it.

        For entities that are new: what is computed from the old rows stays as it is.

        Args:
            path: The directory to write. With `overwrite` it may be this store's own.
            batches: An iterable of `(ids, chunks, mask)`, as for `write`, from the same encoder.
            text_hash: str. What identifies the new entities' text.
            overwrite: bool. Whether a store that is there already is replaced. Defaults to `False`.

        Returns:
            The new store. Its manifest has under `extends` the fingerprints of the stores it begins with, this one's last.

        Raises:
            StoreError: An id is there already, the batches are not as told for `write` or of other shapes, this is a
                shuffled view, or the place cannot be written to.
        """
        if self._source_rows is not None:
            raise StoreError("a shuffled view cannot be extended: extend the store that it is of.")
        path = Path(path)
        if overwrite and path.is_dir() and any(path.iterdir()) and not looks_like_a_store(path):
            raise StoreError(
                f"{path} is not a knowledge store, and is not overwritten. Choose another path, or remove it yourself."
            )
        hashes = [self._manifest["text_hash"], text_hash]
        try:
            with (
                new_directory(path, overwrite=overwrite) as folder,
                StoreWriter(folder, fields=self.fields, dtype=self.dtype) as writer,
            ):
                writer.copy(self._manifest, self._arrays)
                for batch in batches:
                    writer.append(*_checked_batch(batch))
                writer.finish(
                    encoder=self._manifest["encoder"],
                    encoder_fingerprint=self._manifest["encoder_fingerprint"],
                    text_hash=None if None in hashes else sha256_of_json(hashes),
                    extends=[*self._manifest.get("extends", []), self.fingerprint],
                )
        except FileError as error:
            raise StoreError(str(error)) from error
        return KnowledgeStore.open(path, verify=False)

    def lookup(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of a batch of entities.

        Args:
            ids: Integers or strings (also `bytes` in UTF-8), as the store's, of any shape `(...)`. Ids may repeat. Ids
                that the store does not know get zero vectors and a false mask.

        Returns:
            The vectors, `(..., fields, chunks, width)`, float32, zero where there is no chunk, and the mask, `(...,
            fields, chunks)`, bool.

        Raises:
            StoreError: The ids are of another type than the store's.
        """
        rows = self.rows(ids)
        shape = self._arrays[VECTORS_FILE].shape[1:]
        vectors = np.zeros((rows.size, *shape), dtype=np.float32)
        mask = np.zeros((rows.size, *shape[:-1]), dtype=bool)
        places = np.flatnonzero(rows.ravel() >= 0)
        sources = rows.ravel()[places]
        if self._source_rows is not None:
            sources = self._source_rows[sources]
        places_per_block = max(1, BLOCK_BYTES // (4 * math.prod(shape)))
        for start in range(0, len(places), places_per_block):
            block = slice(start, start + places_per_block)
            # Where all ids of a block are known, a slice writes straight into the result.
            first, last = places[block][0], places[block][-1] + 1
            into: Any = slice(first, last) if last - first == len(places[block]) else places[block]
            vectors[into], mask[into] = self._read(sources[block])
        return vectors.reshape(rows.shape + shape), mask.reshape(rows.shape + shape[:-1])

    def rows(self, ids: Any) -> np.ndarray:
        """Returns the rows of ids in the store's arrays, int64, of the ids' shape; -1 for ids that it does not know.

        Args:
            ids: As for `lookup`.

        Raises:
            StoreError: The ids are of another type than the store's.
        """
        id_type, values = as_ids(ids)
        if id_type is None or not len(self):
            return np.full(values.shape, -1, dtype=np.int64)
        if id_type != self.id_dtype:
            mend = "ids.astype(str)" if id_type == "int64" else "ids.astype('int64')"
            raise StoreError(
                f"the store {self._path} has {self.id_dtype} ids, but was asked for {id_type} ids (the first is "
                f"{values.ravel()[:1].tolist()[0]!r}). Convert them ({mend}), or write the store with {id_type} ids."
            )
        return self._find(values)

    def shuffled(self, seed: int) -> KnowledgeStore:
        """Returns the placebo: a view of this store in which each entity has the knowledge of another one.

        The ids stay, and the knowledge (vectors, scales and mask together) is dealt out anew: a random order of the
        entities, in which each gets what is a random number of places further on. So nobody keeps its own, unless the
        store has only one entity.

        `lookup` takes as little memory as the store's own. `vectors`, `scales` and `mask` are permuted copies in
        memory: made when they are first asked for, as large as the stored arrays, and kept as long as the view.

        Args:
            seed: int. Equal seeds give equal permutations.
        """
        count = len(self)
        generator = np.random.default_rng(seed)
        order = generator.permutation(count)
        source_rows = np.arange(count)
        if count > 1:
            source_rows[order] = np.roll(order, -generator.integers(1, count))
        if self._source_rows is not None:
            source_rows = self._source_rows[source_rows]
        manifest = {**self._manifest, "shuffled": {"seed": seed, "of": self.fingerprint}}
        manifest["fingerprint"] = sha256_of_json(manifest)
        return KnowledgeStore(self._path, manifest, self._arrays, source_rows)

    def describe(self) -> dict[str, Any]:
        """Returns what the store holds, for people and reports; JSON-able.

        Returns:
            `rows`, `fields`, `chunks_per_field`, `width`, `dtype`, `id_dtype`, `encoder`, `coverage` (for each field
            the share of entities with at least one chunk), `chunks` (their number, over all), `lowest_cosine` (of a
            stored vector to the original), `bytes` (on disk), `path` and `fingerprint`.
        """
        manifest = self._manifest
        return {
            "path": str(self._path),
            "rows": len(self),
            "fields": list(self.fields),
            "chunks_per_field": self.chunks_per_field,
            "width": self.width,
            "dtype": self.dtype,
            "id_dtype": self.id_dtype,
            "encoder": manifest["encoder"],
            "coverage": {field: count / max(len(self), 1) for field, count in manifest["entities_with_field"].items()},
            "chunks": manifest["present_chunks"],
            "lowest_cosine": manifest["lowest_cosine"],
            "bytes": sum(file["bytes"] for file in manifest["files"].values()),
            "fingerprint": self.fingerprint,
        }

    def __len__(self) -> int:
        return self._manifest["rows"]

    def __repr__(self) -> str:
        return (
            f"<KnowledgeStore {str(self._path)!r}: {len(self)} rows, fields {', '.join(self.fields)}, "
            f"{self.chunks_per_field} chunks of width {self.width}, {self.dtype}, {self.id_dtype} ids>"
        )

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`; a shuffled view also has the key `shuffled`, and a fingerprint of its own."""
        return dict(self._manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest's content: with the files' checksums in it, it stands for all of the store."""
        return self._manifest["fingerprint"]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(self._manifest["fields"])

    @property
    def chunks_per_field(self) -> int:
        """How many places for chunks each field has."""
        return self._manifest["chunks_per_field"]

    @property
    def width(self) -> int:
        """The number of components of a vector."""
        return self._manifest["width"]

    @property
    def dtype(self) -> VectorType:
        """How vectors are stored: `"int8"`, `"float16"` or `"float32"`."""
        return self._manifest["vector_dtype"]

    @property
    def id_dtype(self) -> IdType:
        """The type of the ids: `"int64"` or `"string"`."""
        return self._manifest["id_dtype"]

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """The ids, `(rows,)`: int64 (memory-mapped), or objects that are all `str` (made at first use, and kept)."""
        if self.id_dtype == "int64":
            return self._arrays[IDS_FILE]
        strings = strings_from_bytes(self._arrays[ID_BYTES_FILE], self._arrays[ID_OFFSETS_FILE])
        return strings.to_numpy(zero_copy_only=False).astype(object, copy=False)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """`(rows, fields, chunks, width)`, in the stored dtype; a read-only memory map, 64-byte aligned.

        Of a shuffled view it is a copy in memory, 64-byte aligned too.
        """
        return self._in_order(self._arrays[VECTORS_FILE])

    @functools.cached_property
    def scales(self) -> np.ndarray | None:
        """int8 only, else `None`: `(rows, fields, chunks)`, float16; vector = value * scale. Mapped as `vectors` is."""
        return self._in_order(self._arrays[SCALES_FILE]) if self.dtype == "int8" else None

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """`(rows, fields, chunks)`, bool, true where there is a chunk. Mapped as `vectors` is."""
        return self._in_order(self._arrays[MASK_FILE])

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors in float32, and mask, of stored rows."""
        vectors = np.take(self._arrays[VECTORS_FILE], rows, axis=0)
        mask = np.take(self._arrays[MASK_FILE], rows, axis=0)
        if self.dtype == "int8":
            scales = np.take(self._arrays[SCALES_FILE], rows, axis=0).astype(np.float32)
            vectors = np.multiply(vectors, scales[..., None])
        return vectors, mask

    def _find(self, values: np.ndarray) -> np.ndarray:
        if self.id_dtype == "string":
            return (
                self._string_index.get_indexer(pd.Index(values.ravel(), dtype=object))
                .astype(np.int64)
                .reshape(values.shape)
            )
        integers, fits = to_int64(values)
        sorted_ids, sorted_rows = self._sorted_ids
        places = np.minimum(np.searchsorted(sorted_ids, integers), len(sorted_ids) - 1)
        rows = places if sorted_rows is None else sorted_rows[places]
        return np.where((sorted_ids[places] == integers) & fits, rows, -1)

    @functools.cached_property
    def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Integer ids in ascending order, and their rows; no rows where the ids are stored in this order."""
        ids = np.asarray(self.ids)
        if (ids[1:] > ids[:-1]).all():
            return ids, None
        rows = np.argsort(ids)
        return ids[rows], rows

    @functools.cached_property
    def _string_index(self) -> pd.Index:
        index = pd.Index(self.ids, dtype=object)
        # The question fills the index's hash table here, once, and not at its first use, which could be by two threads.
        if not index.is_unique:
            raise StoreError(f"{self._path} holds ids more than once. Write the store again.")
        return index

    def _in_order(self, stored: np.ndarray) -> np.ndarray:
        """A stored array in the order of this store's rows."""
        if self._source_rows is None:
            return stored
        memory = np.empty(stored.nbytes + _ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        permuted = memory[start : start + stored.nbytes].view(stored.dtype).reshape(stored.shape)
        if stored.size:
            np.take(stored, self._source_rows, axis=0, out=permuted, mode="clip")  # "clip" writes straight into `out`
        permuted.flags.writeable = False
        return permuted


def _checked_fields(fields: Sequence[str]) -> tuple[str, ...]:
    if isinstance(fields, str) or not all(isinstance(field, str) and field for field in fields):
        raise StoreError(f"`fields` must be a list of names. Received: {fields!r}")
    if not fields:
        raise StoreError("`fields` is empty: name at least one field.")
    if len(set(fields)) < len(fields):
        repeated = sorted({field for field in fields if list(fields).count(field) > 1})
        raise StoreError(f"`fields` names {', '.join(map(repr, repeated))} more than once.")
    return tuple(fields)


def _checked_batch(batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        raise StoreError(f"each batch must be a tuple (ids, chunks, mask). Received: {type(batch).__name__}")
    return batch[0], batch[1], batch[2]
