"""Baking: what an extractor makes of every entity, computed once, at export, and served from one table.

An extractor's output often depends on the entity alone: query and context are the entity's own embedding. Then nothing
of it needs to be computed when a request comes. A layer or model says so by a method `bakeable_tables()`, which
returns a list of `Bakeable`s; `export` finds it wherever in the model it is. `BakeableEntity` of the ranking models is
one; a layer that maps ids to vectors needs no more than this:

    class OfMyLayer:
        name, width, unknown_row = "movie", 32, 0
        id_dtype = tf.string

        def __init__(self, layer):
            self.lookups = (layer.lookup,)         # a baked model reads them no more: their vectors are not saved
            self.keys = every_id_once              # vocabulary and store, (n,); row 0 is for all other ids
            ...
        def compute(self, rows):                   # int32 (n,) -> (n, width), from the mapped store
        def use(self, table):                      # the layer's call is `table.gather(table.rows(ids), dtype)` from now on
        def describe(self, ids):                   # {"embedding": (n, width), "aligned": (n, width)}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kser_tf.errors import ExportError, PathLockedError
from kser_tf.files import exclusive_lock, read_json, sha256_of_json, write_json
from kser_tf.layers import KnowledgeLookup
from kser_tf.layers.mapped_tensor import mapped_tensor
from kser_tf.layers.row_numbers import RowNumbers
from kser_tf.store_format import quantise

BakeType = Literal["float32", "float16", "int8"]
BAKE_TYPES: tuple[BakeType, ...] = ("float32", "float16", "int8")

# Entities computed at a time, always so many: then a row comes out the same to the last bit, wherever in a table it
# stands. 2,048 entities of 12 chunks of 384 are 38 MB.
ROWS_AT_ONCE = 2048

_PLAN_FILE = "plan.json"
_DONE_FILE = "done.json"
_VALUES_FILE = "values.npy"
_SCALES_FILE = "scales.npy"
_KEYS_AT_ONCE = 1 << 16


class Bakeable(Protocol):
    """A table of vectors that depend on an entity's id alone.

    Attributes:
        name: str. The kind of entity.
        lookups: What the table is made from: no more needed once it is used.
        keys: `(n,)`, int64 or `str` objects, each once: the ids that have a row of their own.
        unknown_row: int. The row of all other ids; keys from this place on have the row behind their own.
        width: int. Of a row.
        id_dtype: `tf.int64` or `tf.string`.
    """

    name: str
    lookups: Sequence[KnowledgeLookup]
    keys: np.ndarray
    unknown_row: int
    width: int
    id_dtype: tf.DType

    def compute(self, rows: Any) -> Any:
        """Returns the vectors of rows, int32 `(n,)`: floating point, `(n, width)`. Called within a graph."""

    def use(self, table: BakedTable | None) -> None:
        """Takes the vectors from `table` from now on; `None`: computes them, as before."""

    def describe(self, ids: Any) -> dict[str, Any]:
        """Returns `embedding` and `aligned`, the part of it that is knowledge, float32 `(n, width)`, of ids `(n,)`."""


@dataclass(frozen=True)
class BakedRows:
    """The rows of a baked table, as arrays.

    Args:
        keys: As of `Bakeable`.
        values: `(rows, width)`, in the table's dtype.
        scales: int8 only: `(rows,)`, float16; vector = value * scale.
    """

    keys: np.ndarray
    values: np.ndarray
    scales: np.ndarray | None


class BakedTable(tf.Module):
    """Ids to vectors: one look-up in a hash table, one row of a table, both in variables.

    Args:
        bakeable: What it stands for.
        rows: Its rows.
    """

    def __init__(self, bakeable: Bakeable, rows: BakedRows) -> None:
        super().__init__(name=f"{bakeable.name}_baked")
        keys = tf.constant(rows.keys, bakeable.id_dtype)
        self._keys = tf.Variable(keys, trainable=False, name=variable_name(bakeable.name, "keys"))
        self._values = _variable(rows.values, variable_name(bakeable.name, "values"))
        self._scales = None if rows.scales is None else _variable(rows.scales, variable_name(bakeable.name, "scales"))
        initializer = RowNumbers(self._keys, skip=bakeable.unknown_row)
        self._rows = tf.lookup.StaticHashTable(initializer, bakeable.unknown_row)
        self.bytes = rows.values.nbytes + (0 if rows.scales is None else rows.scales.nbytes)

    def rows(self, ids: Any) -> Any:
        """Returns the int32 row of each id, of any shape."""
        return tf.cast(self._rows.lookup(ids), tf.int32)

    def gather(self, rows: Any, dtype: Any) -> Any:
        """Returns the vectors of rows, `(*rows.shape, width)`."""
        values = tf.gather(self._values, rows)
        if self._scales is None:
            return tf.cast(values, dtype)
        scales = tf.cast(tf.gather(self._scales, rows), tf.float32)
        return tf.cast(tf.cast(values, tf.float32) * scales[..., None], dtype)


def variable_name(entity: str, part: str) -> str:
    """The name of a baked table's variable: by it `refresh` finds the table in a SavedModel."""
    return f"kser_tf_baked/{entity}/{part}"


def bakeables_in(holders: Sequence[Any]) -> list[Bakeable]:
    """Returns what layers and models offer to have baked.

    Raises:
        ExportError: Two of them have one name.
    """
    found: list[Bakeable] = []
    for holder in holders:
        if callable(offer := getattr(holder, "bakeable_tables", None)):
            found += offer()
    names = [bakeable.name for bakeable in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ExportError(f"several tables to be baked are called {', '.join(repeated)}. Give each its own name.")
    return found


@contextlib.contextmanager
def baked(
    bakeables: Sequence[Bakeable],
    dtype: BakeType,
    *,
    work: str | Path | None = None,
    model_fingerprint: str = "",
    previous: Mapping[str, BakedRows] | None = None,
    changed: Mapping[str, np.ndarray] | None = None,
) -> Iterator[list[BakedTable]]:
    """Computes tables, and has the model use them for the block.

    Args:
        bakeables: What to bake.
        dtype: How the vectors are kept: `"float32"`, `"float16"`, or `"int8"` with one float16 scale a row.
        work: A folder in which finished parts are kept until the block has ended without an error, so that a later call
            goes on there. Defaults to a temporary one.
        model_fingerprint: str. Stands for the model's weights: parts of another model's are not gone on with.
        previous: For each name the rows of an earlier table, to be taken over as they are.
        changed: For each name the ids whose rows are computed although there is an earlier one.

    Yields:
        The tables.

    Raises:
        ExportError: A vector is NaN, infinite, or too large for `dtype`.
    """
    with contextlib.ExitStack() as stack:
        folder = _work_folder(stack, work)
        tables = []
        try:
            for bakeable in bakeables:
                rows = _bake(
                    bakeable,
                    dtype,
                    folder / bakeable.name,
                    model_fingerprint=model_fingerprint,
                    previous=(previous or {}).get(bakeable.name),
                    changed=(changed or {}).get(bakeable.name),
                )
                tables.append(BakedTable(bakeable, rows))
            for bakeable, table in zip(bakeables, tables, strict=True):
                bakeable.use(table)
            yield tables
        finally:
            for bakeable in bakeables:
                bakeable.use(None)
        for bakeable in bakeables:
            shutil.rmtree(folder / bakeable.name)
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()


def logits_when_baked(model: Any, batches: Iterable[Mapping[str, Any]], dtype: BakeType) -> np.ndarray:
    """Returns a model's logits with its tables baked in `dtype`, without an export: for their effect on AUC.

    Args:
        model: One with `bakeable_tables()` and `serve(features)`, such as `RankingModel`.
        batches: Raw features, batch by batch.
        dtype: As for `baked`.

    Returns:
        `(rows,)`, float32.

    Example:

    >>> own = np.concatenate([model.serve(batch)["logit"] for batch in examples.raw_batches(4096)])
    >>> small = logits_when_baked(model, examples.raw_batches(4096), "int8")
    >>> auc(examples.labels, small) - auc(examples.labels, own)
    """
    with baked(model.bakeable_tables(), dtype):
        return np.concatenate([model.serve(batch)["logit"].numpy() for batch in batches])


def rows_of(bakeable: Bakeable, ids: np.ndarray) -> np.ndarray:
    """Returns the rows of ids that all have one of their own, int64 `(n,)`."""
    import pandas as pd

    places = pd.Index(bakeable.keys).get_indexer(pd.Index(ids))
    return places + (places >= bakeable.unknown_row)


def _bake(
    bakeable: Bakeable,
    dtype: BakeType,
    folder: Path,
    *,
    model_fingerprint: str,
    previous: BakedRows | None,
    changed: np.ndarray | None,
) -> BakedRows:
    """Computes the rows of a table, going on where an earlier call for the very same table has stopped."""
    count = len(bakeable.keys) + 1
    plan = {
        "model": model_fingerprint,
        "stores": [lookup.tables().fingerprint for lookup in bakeable.lookups],
        "keys": keys_hash(bakeable.keys),
        "dtype": dtype,
        "rows": [count, bakeable.width],
        "previous": None if previous is None else _hash_of(previous.values, previous.scales),
    }
    if previous is None:
        todo = np.arange(count)
    else:
        new = np.ones(count, dtype=bool)
        new[: len(previous.values)] = False
        if changed is not None and len(changed):
            new[rows_of(bakeable, changed)] = True
        todo = np.flatnonzero(new)
    values, scales, done = _begin_or_continue(folder, plan, previous)
    compute = _compiled(bakeable.compute)
    progress = tqdm(
        total=len(todo), initial=done, desc=f"bake {bakeable.name}", unit="rows", unit_scale=True, disable=None
    )
    with progress:
        for start in range(done, len(todo), ROWS_AT_ONCE):
            rows = todo[start : start + ROWS_AT_ONCE]
            padded = np.zeros(ROWS_AT_ONCE, dtype=np.int32)
            padded[: len(rows)] = rows
            vectors = tf.cast(compute(tf.constant(padded)), tf.float32).numpy()[: len(rows)]
            values[rows], row_scales = _reduced(vectors, dtype, bakeable, rows)
            if scales is not None:
                scales[rows] = row_scales
            values.flush()
            if scales is not None:
                scales.flush()
            write_json(folder / _DONE_FILE, start + len(rows))
            progress.update(len(rows))
    kept_scales = None if scales is None else _reopened(folder / _SCALES_FILE)
    return BakedRows(bakeable.keys, _reopened(folder / _VALUES_FILE), kept_scales)


def _compiled(method: Any) -> Any:
    """A method of int32 rows as a graph, traced once."""
    signature = [tf.TensorSpec([ROWS_AT_ONCE], tf.int32)]
    return tf.function(method, input_signature=signature, autograph=False).get_concrete_function()


def _begin_or_continue(
    folder: Path, plan: dict[str, Any], previous: BakedRows | None
) -> tuple[np.memmap, np.memmap | None, int]:
    """Opens the arrays of a table, new ones or those of an earlier call; returns how much of it is done."""
    count, width = plan["rows"]
    paths: dict[str, tuple[str, tuple[int, ...]]] = {_VALUES_FILE: (plan["dtype"], (count, width))}
    if plan["dtype"] == "int8":
        paths[_SCALES_FILE] = ("float16", (count,))
    if not ((folder / _PLAN_FILE).is_file() and read_json(folder / _PLAN_FILE) == plan):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, (dtype, shape) in paths.items():
            array = np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.dtype(dtype), shape=shape)
            if previous is not None:
                old = previous.values if name == _VALUES_FILE else previous.scales
                assert old is not None
                array[: len(old)] = old
            array.flush()
            del array
        write_json(folder / _DONE_FILE, 0)
        write_json(folder / _PLAN_FILE, plan)  # last: with it, all the rest is there
    arrays = {name: np.lib.format.open_memmap(folder / name, mode="r+") for name in paths}
    return arrays[_VALUES_FILE], arrays.get(_SCALES_FILE), int(read_json(folder / _DONE_FILE))


def _reduced(
    vectors: np.ndarray, dtype: BakeType, bakeable: Bakeable, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors in the table's dtype, and int8 values' scales."""
    bad = ~np.isfinite(vectors).all(-1)
    what = "holds NaN or infinity. Look at the training"
    scales = None
    if dtype == "float16" and not bad.any():
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float16)
        bad, what = ~np.isfinite(vectors).all(-1), "is too large for float16. Bake in float32"
    elif dtype == "int8" and not bad.any():
        with np.errstate(over="ignore"):
            vectors, scales = quantise(vectors)
        bad, what = ~np.isfinite(scales), "is too large for int8 with a float16 scale. Bake in float32"
    if bad.any():
        row = int(rows[np.argmax(bad)])
        place = row - (row > bakeable.unknown_row)
        of = "ids that are unknown" if row == bakeable.unknown_row else f"id {bakeable.keys[place]!r}"
        raise ExportError(f"the vector of {bakeable.name}, {of}, {what}.")
    return vectors, scales


def _work_folder(stack: contextlib.ExitStack, work: str | Path | None) -> Path:
    """A folder for the parts. Where another process is at the same ones, a temporary one."""
    if work is not None:
        work = Path(work)
        try:
            stack.enter_context(exclusive_lock(work.with_name(f"{work.name}.lock")))
            return work
        except PathLockedError:
            work.parent.mkdir(parents=True, exist_ok=True)
            prefix = work.name if work.name.startswith(".") else f".{work.name}"
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{prefix}.", dir=work.parent)))
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kser_tf_bake_")))


def _variable(array: np.ndarray, name: str) -> tf.Variable:
    return tf.Variable(mapped_tensor(array), trainable=False, name=name)


def _reopened(path: Path) -> np.ndarray:
    """An array, mapped for reading: so that it is copied once, into the variable."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def keys_hash(keys: np.ndarray) -> str:
    """Returns the SHA-256 of ids in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        digest.update(json.dumps(keys[start : start + _KEYS_AT_ONCE].tolist()).encode())
    return digest.hexdigest()


def _hash_of(*arrays: np.ndarray | None) -> str:
    return sha256_of_json(
        [None if a is None else hashlib.sha256(np.ascontiguousarray(a).data).hexdigest() for a in arrays]
    )
