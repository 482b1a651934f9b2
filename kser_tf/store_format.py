"""The directory of a knowledge store: how its files are written, and how they are checked when they are opened.

| file | holds |
| --- | --- |
| `manifest.json` | what the store is, and size and SHA-256 of each other file |
| `vectors.npy` | `(rows, fields, chunks, width)`, int8, float16 or float32; zero where there is no chunk |
| `scales.npy` | int8 only: `(rows, fields, chunks)`, float16; vector = value * scale |
| `mask.npy` | `(rows, fields, chunks)`, bool; false where there is no chunk |
| `ids.npy` | integer ids: `(rows,)`, int64 |
| `id_bytes.npy` | string ids: all of them in UTF-8, one after the other |
| `id_offsets.npy` | string ids: `(rows + 1,)`, int64, where each one begins and the last one ends |

The `.npy` files are plain NumPy files (no pickle), and their data begin at a multiple of 64 bytes, so that they can be
memory-mapped and used by TensorFlow in place. Equal content gives equal bytes, however it was divided into batches.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import infer_dtype

from kser_tf.errors import StoreError
from kser_tf.files import read_json, sha256_of_file, sha256_of_json, write_json

VectorType = Literal["int8", "float16", "float32"]
IdType = Literal["int64", "string"]

FORMAT = "kser-tf knowledge store"
FORMAT_VERSION = 1
VECTOR_TYPES: tuple[VectorType, ...] = ("int8", "float16", "float32")

MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.npy"
SCALES_FILE = "scales.npy"
MASK_FILE = "mask.npy"
IDS_FILE = "ids.npy"
ID_BYTES_FILE = "id_bytes.npy"
ID_OFFSETS_FILE = "id_offsets.npy"

# Vectors are converted a block at a time: few enough that a block's intermediate results stay in the processor's cache,
# and that memory does not depend on the size of a batch.
BLOCK_BYTES = 1 << 20

INT8_LEVELS = 127
# A chunk's largest component must give a scale (largest / 127) that float16 holds to within half a level: above 2**-16,
# 8 bits are left below float16's smallest step 2**-24. An encoder's vectors of unit length are far from both ends.
INT8_SMALLEST = INT8_LEVELS * 2.0**-16
INT8_LARGEST = INT8_LEVELS * float(np.finfo(np.float16).max)
# What int8 gives for ordinary vectors of a sentence encoder; below it, the writer warns.
GOOD_COSINE = 0.9999

_INT64 = np.iinfo(np.int64)
_NAMED_IDS = 5  # as many are named in a message


class Ids(NamedTuple):
    """Ids of one type, of any shape.

    Args:
        type: `"int64"` or `"string"`; `None` for no ids of no type, such as `[]`.
        values: An array of any integer dtype, or of objects that are all Python integers, or all `str`.
    """

    type: IdType | None
    values: np.ndarray


def as_ids(ids: Any) -> Ids:
    """Reads ids from an array, list or tensor: integers of any width, `str`, or UTF-8 `bytes`.

    Raises:
        StoreError: The ids are of another type (bool, float, missing values), or of several.
    """
    if isinstance(ids, np.ndarray) or hasattr(ids, "__array__"):
        values = np.asarray(ids)
    else:  # NumPy would make strings of [1, "a"] and floats of [1, None]
        values = np.array(ids, dtype=object)
    if values.dtype.kind in "iu":
        return Ids("int64", values)
    if values.dtype.kind in "USTO":
        values = values.astype(object)
        inferred = infer_dtype(values.ravel(), skipna=False)
        if inferred == "string":
            return Ids("string", values)
        if inferred == "bytes":
            return Ids("string", _decode(values))
        if inferred == "integer":
            return Ids("int64", values)
    if values.size == 0:
        return Ids(None, values)
    found = sorted({type(value).__name__ for value in values.ravel().tolist()})
    raise StoreError(
        f"ids must be all integers or all strings. Received: {', '.join(found)} (the first is {values.ravel()[0]!r}). "
        "Convert them, and leave out those that are missing."
    )


def _decode(values: np.ndarray) -> np.ndarray:
    """Bytes to `str`. What is not UTF-8 becomes a string that no stored id equals."""
    try:
        strings = pa.array(values.ravel(), type=pa.large_binary()).cast(pa.large_string())
        return strings.to_numpy(zero_copy_only=False).reshape(values.shape)
    except pa.ArrowInvalid:
        decoded = np.empty(values.size, dtype=object)
        decoded[:] = [value.decode("utf-8", "surrogateescape") for value in values.ravel()]
        return decoded.reshape(values.shape)


def to_int64(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers as int64, and where they fit into it; those that do not are 0."""
    if values.dtype != object and np.can_cast(values.dtype, np.int64):
        return values.astype(np.int64), np.ones(values.shape, dtype=bool)
    fits = np.asarray((values >= _INT64.min) & (values <= _INT64.max), dtype=bool)
    return np.where(fits, values, 0).astype(np.int64), fits


def strings_from_bytes(id_bytes: np.ndarray, offsets: np.ndarray) -> Any:
    """Returns the string ids of a store as an Arrow array, without copying them.

    Raises:
        StoreError: The offsets lead out of the bytes, or the bytes are not UTF-8.
    """
    try:
        strings = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(id_bytes))
        strings.validate(full=True)
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"{ID_BYTES_FILE} and {ID_OFFSETS_FILE} do not hold valid strings: {error}. Write the store again."
        ) from None
    return strings


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 values `(..., width)` and float16 scales `(...)` with vectors ~ values * scales.

    A scale is the vector's largest absolute component / 127; a zero vector has scale 0. The error of a component is at
    most half a scale, and so 1 - cosine is about (p / 127)**2 / 24, where p is the largest component over the root mean
    square of the components: below 1e-4 up to p = 5, whatever the width.

    Args:
        vectors: `(..., width)`, float32, finite, the largest components 0 or from `INT8_SMALLEST` to `INT8_LARGEST`.
    """
    scales = (np.abs(vectors).max(axis=-1) / INT8_LEVELS).astype(np.float16)
    divisors = np.where(scales == 0, np.float16(1), scales).astype(np.float32)
    return np.rint(vectors / divisors[..., None]).astype(np.int8), scales


class GrowingArray:
    """A `.npy` file to which rows are appended: `with GrowingArray(path, dtype, row_shape) as array:
    array.append(rows)`.

    The file is what `numpy.save` writes for all rows at once.

    Args:
        path: The file; it must not be there yet.
        dtype: The array's dtype.
        row_shape: The shape of one row.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, row_shape: tuple[int, ...]) -> None:
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._file = open(path, "xb")  # noqa: SIM115 (closed in __exit__)
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Writes more rows, of the array's dtype and row shape, at the end."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._row_shape:
            raise ValueError(f"expected rows of {self._dtype} {self._row_shape}, got {rows.dtype} {rows.shape[1:]}")
        if rows.size:
            self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self._file.close()
            return
        with self._file:
            self._file.seek(0)
            self._write_header()
            if self._file.tell() != self._data_start:
                raise RuntimeError("this NumPy leaves no room for the number of rows in the header of a .npy file")

    def _write_header(self) -> None:
        # NumPy pads headers such that the first dimension can grow in place, and such that the data are 64-byte
        # aligned.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class StoreWriter:
    """Writes the files of a store, batch by batch: `with StoreWriter(...) as writer: writer.append(ids, chunks, mask);
    writer.finish()`.

    Beside one block of vectors, it keeps nothing in memory until `finish` looks for ids that occur twice.

    Args:
        folder: An empty folder.
        fields: The names of the fields.
        dtype: How vectors are stored.
    """

    def __init__(self, folder: Path, *, fields: tuple[str, ...], dtype: VectorType) -> None:
        self._folder = folder
        self._fields = fields
        self._dtype = dtype
        self._batches = 0
        self._rows = 0
        self._shape: tuple[int, ...] | None = None  # (fields, chunks, width)
        self._id_type: IdType | None = None
        self._id_bytes = 0
        self._entities_with_field = np.zeros(len(fields), dtype=np.int64)
        self._present_chunks = 0
        self._lowest_cosine = 1.0
        self._worst_chunk = ""
        self._open_files = contextlib.ExitStack()
        self._files: dict[str, GrowingArray] = {}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.__exit__(kind, error, trace)

    def append(self, ids: Any, chunks: Any, mask: Any) -> None:
        """Writes a batch.

        Args:
            ids: `(n,)`, integers or strings.
            chunks: `(n, fields, chunks, width)`, floating point. What it holds where `mask` is false does not matter.
            mask: `(n, fields, chunks)`, bool.

        Raises:
            StoreError: The batch is of a wrong type or shape, does not go with the batches before it, or holds NaN or
                infinity.
        """
        self._batches += 1
        try:
            id_type, id_values = as_ids(ids)
            chunks, mask = np.asarray(chunks), np.asarray(mask)
            self._check_shapes(id_values, chunks, mask)
            self._check_id_type(id_type)
            if self._shape is None:
                self._shape = chunks.shape[1:]
                self._create(VECTORS_FILE, self._dtype, self._shape)
                self._create(MASK_FILE, np.bool_, self._shape[:-1])
                if self._dtype == "int8":
                    self._create(SCALES_FILE, np.float16, self._shape[:-1])
            self._append_ids(id_values)
            rows_per_block = max(1, BLOCK_BYTES // (4 * math.prod(self._shape)))
            for start in range(0, len(chunks), rows_per_block):
                block = slice(start, start + rows_per_block)
                self._append_block(id_values[block], chunks[block], mask[block])
        except StoreError as error:
            raise StoreError(f"batch {self._batches}: {error}" if self._batches > 1 else str(error)) from None

    def copy(self, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes all rows of another store of these fields and this dtype, bit for bit, before any batch.

        Args:
            manifest: The other store's, from `read_manifest`.
            arrays: Its arrays, from `open_arrays`.
        """
        self._shape = (len(self._fields), manifest["chunks_per_field"], manifest["width"])
        self._create(VECTORS_FILE, self._dtype, self._shape)
        self._create(MASK_FILE, np.bool_, self._shape[:-1])
        if self._dtype == "int8":
            self._create(SCALES_FILE, np.float16, self._shape[:-1])
        if manifest["rows"]:
            self._create_ids(manifest["id_dtype"])
        for name, file in self._files.items():
            array = arrays[name][file.rows :]  # the first of the offsets is there already
            rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                file.append(array[start : start + rows])
        self._rows = manifest["rows"]
        self._id_bytes = self._files[ID_BYTES_FILE].rows if ID_BYTES_FILE in self._files else 0
        self._entities_with_field += [manifest["entities_with_field"][field] for field in self._fields]
        self._present_chunks += manifest["present_chunks"]
        self._lowest_cosine = manifest["lowest_cosine"]
        self._worst_chunk = "a row that was there before"

    def finish(
        self,
        *,
        encoder: str,
        encoder_fingerprint: str | None,
        text_hash: str | None,
        extends: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Closes the arrays, and writes and returns the manifest.

        Raises:
            StoreError: No batch came, or an id occurs twice.
        """
        if self._shape is None:
            raise StoreError(
                "no batch came, so the number of chunks and the width are not known. For a store without rows, give "
                "one batch with arrays of shapes (0,), (0, fields, chunks, width) and (0, fields, chunks)."
            )
        if self._id_type is None:  # no rows
            self._create_ids("int64")
        self._open_files.close()
        self._check_duplicates()
        if self._lowest_cosine < GOOD_COSINE:
            warnings.warn(
                f"{self._dtype} changes the direction of some vectors: the lowest cosine is {self._lowest_cosine:.6f}, "
                f"at {self._worst_chunk}. {'float16' if self._dtype == 'int8' else 'float32'} keeps them better.",
                stacklevel=3,  # the caller of KnowledgeStore.write
            )
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "rows": self._rows,
            "fields": list(self._fields),
            "chunks_per_field": self._shape[1],
            "width": self._shape[2],
            "vector_dtype": self._dtype,
            "id_dtype": self._id_type,
            "encoder": encoder,
            "encoder_fingerprint": encoder_fingerprint,
            "text_hash": text_hash,
            "entities_with_field": dict(zip(self._fields, self._entities_with_field.tolist(), strict=True)),
            "present_chunks": self._present_chunks,
            "lowest_cosine": round(self._lowest_cosine, 6),
            **({"extends": list(extends)} if extends else {}),
            "files": {
                name: {"bytes": (self._folder / name).stat().st_size, "sha256": sha256_of_file(self._folder / name)}
                for name in sorted(self._files)
            },
        }
        manifest = {**content, "fingerprint": sha256_of_json(content)}
        write_json(self._folder / MANIFEST_FILE, manifest)
        return manifest

    def _create(self, name: str, dtype: npt.DTypeLike, row_shape: tuple[int, ...]) -> None:
        self._files[name] = self._open_files.enter_context(GrowingArray(self._folder / name, dtype, row_shape))

    def _create_ids(self, id_type: IdType) -> None:
        self._id_type = id_type
        if id_type == "int64":
            self._create(IDS_FILE, np.int64, ())
        else:
            self._create(ID_BYTES_FILE, np.uint8, ())
            self._create(ID_OFFSETS_FILE, np.int64, ())
            self._files[ID_OFFSETS_FILE].append(np.zeros(1, dtype=np.int64))

    def _check_shapes(self, ids: np.ndarray, chunks: np.ndarray, mask: np.ndarray) -> None:
        if ids.ndim != 1:
            raise StoreError(f"`ids` must have shape (n,). Received: {ids.shape}")
        if not np.issubdtype(chunks.dtype, np.floating):
            raise StoreError(f"`chunks` must be floating point (float32). Received: {chunks.dtype}")
        if chunks.ndim != 4 or 0 in chunks.shape[2:]:
            raise StoreError(
                f"`chunks` must have shape (n, fields, chunks, width), not 0 but for n. Received: {chunks.shape}"
            )
        if chunks.shape[1] != len(self._fields):
            raise StoreError(
                f"`chunks` has {chunks.shape[1]} fields (shape {chunks.shape}), but {len(self._fields)} are named: "
                f"{', '.join(self._fields)}"
            )
        if self._shape is not None and chunks.shape[1:] != self._shape:
            raise StoreError(
                f"`chunks` has (fields, chunks, width) = {chunks.shape[1:]}, but {self._shape} in the batches before. "
                "All rows of a store have one shape: fill up with masked chunks."
            )
        if len(ids) != len(chunks):
            raise StoreError(f"`ids` has {len(ids)} rows, but `chunks` has {len(chunks)}")
        if mask.shape != chunks.shape[:-1]:
            raise StoreError(
                f"`mask` must have shape {chunks.shape[:-1]}, as `chunks` without the width. Received: {mask.shape}"
            )
        if mask.dtype != np.bool_:
            raise StoreError(f"`mask` must be bool, true where there is a chunk. Received: {mask.dtype}")

    def _check_id_type(self, id_type: IdType | None) -> None:
        if id_type is not None and self._id_type is not None and id_type != self._id_type:
            raise StoreError(
                f"the ids are {id_type}, but {self._id_type} in the batches before. Convert them to one type."
            )
        if id_type is not None and self._id_type is None:
            self._create_ids(id_type)

    def _append_ids(self, ids: np.ndarray) -> None:
        if self._id_type == "int64":
            integers, fits = to_int64(ids)
            if not fits.all():
                raise StoreError(f"id {ids[~fits][0]} does not fit into int64. Use strings.")
            self._files[IDS_FILE].append(integers)
        elif self._id_type == "string":
            try:
                strings = pa.array(ids, type=pa.large_string())
            except UnicodeEncodeError as error:
                raise StoreError(f"id {error.object!r} cannot be written as UTF-8. Correct or remove it.") from None
            _, offsets, data = strings.buffers()
            ends = np.frombuffer(offsets, dtype=np.int64)[1 : len(ids) + 1]
            size = int(ends[-1]) if len(ids) else 0
            self._files[ID_OFFSETS_FILE].append(ends + self._id_bytes)
            self._files[ID_BYTES_FILE].append(np.frombuffer(data, dtype=np.uint8)[:size])
            self._id_bytes += size
        self._rows += len(ids)

    def _append_block(self, ids: np.ndarray, chunks: np.ndarray, mask: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # of float64: the next lines tell
            vectors = np.where(mask[..., None], chunks, 0).astype(np.float32, copy=False)
        self._refuse(
            ~np.isfinite(vectors).all(axis=-1), ids, "holds NaN or infinity", "Encode its text again, or mask it."
        )
        if self._dtype == "float32":
            self._files[VECTORS_FILE].append(vectors)
        else:
            stored = self._reduce(vectors, ids)
            self._files[VECTORS_FILE].append(stored)
            self._note_cosine(vectors, stored, ids)
        self._files[MASK_FILE].append(mask)
        self._entities_with_field += mask.any(axis=2).sum(axis=0)
        self._present_chunks += int(mask.sum())

    def _reduce(self, vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The vectors in the store's dtype; int8 values' scales are written on the way."""
        if self._dtype == "float16":
            with np.errstate(over="ignore", under="ignore"):
                stored = vectors.astype(np.float16)
            self._refuse(~np.isfinite(stored).all(axis=-1), ids, "is too large for float16", "Use dtype='float32'.")
            return stored
        largest = np.abs(vectors).max(axis=-1)
        self._refuse(
            (largest > INT8_LARGEST) | ((largest < INT8_SMALLEST) & (largest > 0)),
            ids,
            f"has a largest component outside of {INT8_SMALLEST:.2g} to {INT8_LARGEST:.2g}, the range of int8",
            "Scale the vectors to unit length, or use dtype='float32'.",
        )
        stored, scales = quantise(vectors)
        self._files[SCALES_FILE].append(scales)
        return stored

    def _note_cosine(self, vectors: np.ndarray, stored: np.ndarray, ids: np.ndarray) -> None:
        values = stored.astype(np.float32)  # the scale does not matter to the direction
        product = np.einsum("...w,...w->...", vectors, values)
        lengths = np.sqrt(np.einsum("...w,...w->...", vectors, vectors)) * np.sqrt(
            np.einsum("...w,...w->...", values, values)
        )
        # Zero vectors stay zero; others that became zero have lost their direction.
        without = np.where(vectors.any(axis=-1), 0.0, 1.0)
        cosines = np.divide(product, lengths, out=without, where=lengths > 0)
        if cosines.size and cosines.min() < self._lowest_cosine:
            self._lowest_cosine = float(cosines.min())
            self._worst_chunk = self._name(np.argmin(cosines), cosines.shape, ids)

    def _refuse(self, bad: Any, ids: np.ndarray, what: str, mend: str) -> None:
        if bad.any():
            others = int(bad.sum()) - 1
            raise StoreError(
                f"the vector of {self._name(np.argmax(bad), bad.shape, ids)} {what}"
                + (f" (and {others} more)" if others else "")
                + f". {mend}"
            )

    def _name(self, position: np.intp, shape: tuple[int, ...], ids: np.ndarray) -> str:
        row, field, chunk = np.unravel_index(position, shape)
        return f"id {ids[row : row + 1].tolist()[0]!r}, field {self._fields[field]!r}, chunk {chunk}"

    def _check_duplicates(self) -> None:
        if self._id_type == "int64":
            ids = np.sort(np.load(self._folder / IDS_FILE))
            repeated = np.unique(ids[1:][ids[1:] == ids[:-1]]).tolist()
        else:
            counts = pc.value_counts(
                strings_from_bytes(np.load(self._folder / ID_BYTES_FILE), np.load(self._folder / ID_OFFSETS_FILE))
            )
            repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
        if repeated:
            named = ", ".join(repr(value) for value in repeated[:_NAMED_IDS])
            more = f" and {len(repeated) - _NAMED_IDS} more" if len(repeated) > _NAMED_IDS else ""
            raise StoreError(f"ids occur more than once: {named}{more}. Give each entity one row.")


def looks_like_a_store(folder: Path) -> bool:
    """Says whether a folder holds a store, of whatever version, whole or damaged."""
    path = folder / MANIFEST_FILE
    return path.is_file() and FORMAT.encode() in path.read_bytes()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks `manifest.json`.

    Raises:
        StoreError: There is none, it is of another format version, or it is not as it was written.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder} holds no knowledge store: {MANIFEST_FILE} is missing. Make one with `kser-tf encode` or "
            "KnowledgeStore.write."
        ) from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}. Write the store again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{path} is not the manifest of a knowledge store, or is damaged. Write the store again.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format version {manifest.get('format_version')!r}, expected {FORMAT_VERSION}. Write the store "
            "again with this version of kser-tf, or read it with the version that wrote it."
        )
    content = {key: value for key, value in manifest.items() if key != "fingerprint"}
    if manifest.get("fingerprint") != sha256_of_json(content):
        raise StoreError(
            f"{path} was changed after it was written: its fingerprint does not fit. Write the store again."
        )
    return manifest


def open_arrays(folder: Path, manifest: Mapping[str, Any], *, verify: bool) -> dict[str, np.memmap]:
    """Checks the files of a store and maps them into memory.

    Args:
        folder: The store.
        manifest: From `read_manifest`.
        verify: bool. Whether the checksums are compared, for which all files are read through once.

    Raises:
        StoreError: A file is missing, truncated, changed, or not of the shape and dtype that the manifest tells.
    """
    arrays = {}
    for name, (dtype, shape) in _expected_arrays(manifest).items():
        path = folder / name
        recorded = manifest["files"][name]
        if not path.is_file():
            raise StoreError(f"{path} is missing. Write the store again, or copy it again, whole.")
        size = path.stat().st_size
        if size != recorded["bytes"]:
            raise StoreError(
                f"{path} has {size} bytes, expected {recorded['bytes']}: it is truncated or was changed. "
                "Write or copy the store again."
            )
        if verify and sha256_of_file(path) != recorded["sha256"]:
            raise StoreError(
                f"{path} is damaged: its SHA-256 is not that of the manifest. Write or copy the store again."
            )
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # on a damaged header NumPy raises errors of many kinds
            raise StoreError(f"{path} is damaged: {error}. Write or copy the store again.") from None
        # The data end where the file does: a header that tells another place for them has been damaged.
        fits = array.flags.c_contiguous and array.offset + array.nbytes == size
        if not fits or array.dtype != dtype or (shape is not None and array.shape != shape):
            raise StoreError(
                f"{path} holds {array.dtype} {array.shape}, but the manifest tells {dtype} {shape}. "
                "Write or copy the store again."
            )
        arrays[name] = array
    return arrays


def _expected_arrays(manifest: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...] | None]]:
    """Each file's dtype and shape; no shape where the manifest does not determine it."""
    leading = (manifest["rows"], len(manifest["fields"]), manifest["chunks_per_field"])
    arrays: dict[str, tuple[np.dtype, tuple[int, ...] | None]] = {
        VECTORS_FILE: (np.dtype(manifest["vector_dtype"]), (*leading, manifest["width"])),
        MASK_FILE: (np.dtype(np.bool_), leading),
    }
    if manifest["vector_dtype"] == "int8":
        arrays[SCALES_FILE] = (np.dtype(np.float16), leading)
    if manifest["id_dtype"] == "int64":
        arrays[IDS_FILE] = (np.dtype(np.int64), leading[:1])
    else:
        arrays[ID_BYTES_FILE] = (np.dtype(np.uint8), None)
        arrays[ID_OFFSETS_FILE] = (np.dtype(np.int64), (leading[0] + 1,))
    return arrays
