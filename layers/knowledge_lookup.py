"""KnowledgeLookup: from ids to the chunks of their entities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.known_statistics import attach_statistics
from kser_tf.layers.mapped_tensor import mapped_tensor
from kser_tf.layers.on_host import on_host
from kser_tf.layers.row_numbers import RowNumbers
from kser_tf.layers.untracked import Untracked

UNKNOWN_ROW = -1


@tf.keras.utils.register_keras_serializable("kser_tf")
class KnowledgeLookup(tf.keras.layers.Layer):
    """Looks up the knowledge of entities by their ids, in a knowledge store.

    The store's vectors are not weights: they are neither trained nor written into checkpoints, and the memory-mapped
    file itself is the table, so training holds no copy of it. Only the rows asked for are read, and turned from int8 or
    float16 into floating point. For a SavedModel, `tables(copy=True)` puts the table into variables, which are saved
    with it.

    An id that the store does not hold has no knowledge: its chunks are 0 and its mask is false. That is never an error.

    XLA cannot look up ids. A model that is compiled with `jit_compile=True` takes `rows`, from the input pipeline, and
    calls `lookup_rows`; Keras 3 compiles it then if `supports_jit` of this layer is set to `True`.

    Args:
        store: A `kser_tf.KnowledgeStore`, or anything with its `ids`, `vectors`, `scales` and `mask`. A layer that was
            loaded from a file has none until `connect(store)`.
        shape: `(fields, chunks, width)`. Taken from the store; given where a layer is made without one.
        trained_with: str. The fingerprint of the store that the model is trained with, which goes into files with the
            layer. Defaults to that of the first store. An export refuses another store, unless it extends that one; after
            training on another, assign its fingerprint to the attribute of this name.

    Call arguments:
        ids: Integer or string tensor of any shape, not ragged.

    Returns:
        The chunks, `(*ids.shape, fields, chunks, width)` in the layer's compute dtype, and the mask, `(*ids.shape,
        fields, chunks)` bool.

    Raises:
        ValueError: The layer has no store, the ids have another type than the store's or are ragged, or a store of
            another shape is connected.

    Example:

    >>> store = kser_tf.KnowledgeStore.open("stores/movies")
    >>> chunks, mask = kser_tf.layers.KnowledgeLookup(store)(tf.constant([1, 2, 3]))
    """

    def __init__(
        self,
        store: Any = None,
        *,
        shape: tuple[int, int, int] | None = None,
        trained_with: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.shape: Any = None if shape is None else tuple(shape)
        self.trained_with = trained_with
        # Keras 3 compiles a model with XLA by itself, unless a layer says that it cannot be.
        self.supports_jit = False
        self._current: Any = Untracked(None)
        self._statistics: Any = Untracked(None)
        self._only_shapes = False
        if store is not None:
            self.connect(store)

    def connect(self, store: Any) -> None:
        """Takes `store` as the table, in place of what was there. Models must be traced (`compile`d) anew after it.

        Raises:
            ValueError: The store's fields, chunks or width are not those of the layer.
        """
        shape = tuple(int(n) for n in store.vectors.shape[1:])
        if self.shape is not None and shape != self.shape:
            raise ValueError(
                f"{self.name} was made for knowledge of shape (fields, chunks, width) = {self.shape}, and the store "
                f"has {shape}. Connect a store that was encoded alike, or make a new layer."
            )
        self.shape = shape
        self._current = Untracked(KnowledgeTables(store))
        if self.trained_with is None:
            self.trained_with = self._current.value.fingerprint

    @property
    def is_connected(self) -> bool:
        """Whether the layer has a store."""
        return self._current.value is not None

    def tables(self, *, copy: bool = False) -> KnowledgeTables:
        """Returns the tables that are looked up.

        Args:
            copy: bool. Whether they are first copied into variables, which the layer uses from then on: for an export,
                where they must be tracked (`ExportArchive.track`). Defaults to `False`.
        """
        tables = self._connected()
        if copy and not tables.in_variables:
            tables = tables.copied()
            self._current = Untracked(tables)
        return tables

    def use_tables(self, tables: KnowledgeTables) -> None:
        """Looks up in `tables`, from an earlier call of `tables()`, from now on: the way back after an export."""
        self._current = Untracked(tables)

    def know_statistics(self, statistics_for: Callable[[Any, Any], Any] | None) -> None:
        """Hands ESFNet the statistics of the chunks looked up from now on, so that it need not compute them.

        Args:
            statistics_for: From an `ESFNet` and the rows looked up to the statistics of their chunks, or to `None`
                where they are not known. `None`: none are, as before.
        """
        self._statistics.value = statistics_for

    def rows(self, ids: Any) -> Any:
        """Returns the int32 row of each id in the store, -1 for ids that it does not hold; shape of `ids`."""
        return self._connected().rows(ids)

    def lookup_rows(self, rows: Any, *, clear: bool = True) -> tuple[Any, Any]:
        """Does the layer's work from rows instead of ids: for pipelines that turned ids into rows before.

        Args:
            rows: int32 or int64, of any shape, from `rows`; -1 for no knowledge.
            clear: bool. Whether the chunks of rows without knowledge are 0. `False` spares a pass over the chunks: they
                are then some other entity's, finite, to be told by the mask alone. Defaults to `True`.

        Returns:
            As the call.
        """
        chunks, mask = self._connected().gather(rows, self.compute_dtype, clear=clear)
        statistics_for = self._statistics.value  # (AutoGraph knows no assignment expression.)
        if statistics_for is not None:
            attach_statistics(chunks, mask, lambda esf_net: statistics_for(esf_net, rows))
        return chunks, mask

    def __call__(self, ids: Any, **kwargs: Any) -> Any:
        # Keras 2 runs `call` to learn the shapes when a functional model is put together, also when it is loaded and
        # the layer has no store yet.
        self._only_shapes = hasattr(ids, "_keras_history")
        try:
            return super().__call__(ids, **kwargs)
        finally:
            self._only_shapes = False

    def call(self, ids: Any) -> tuple[Any, Any]:
        if self._only_shapes and self._current.value is None and self.shape is not None:
            return self._without_store(ids)
        return self.lookup_rows(self.rows(ids))

    def _without_store(self, ids: Any) -> tuple[Any, Any]:
        chunks = tf.zeros(tf.concat([tf.shape(ids), self.shape], 0), self.compute_dtype)
        return chunks, tf.zeros(tf.shape(chunks)[:-1], tf.bool)

    def _connected(self) -> KnowledgeTables:
        if self._current.value is None:
            raise ValueError(
                f"{self.name} has no store: the vectors are not saved with a model. Call "
                "`connect(KnowledgeStore.open(path))`."
            )
        return self._current.value

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self.shape is None:
            self._connected()
        return (*input_shape, *self.shape), (*input_shape, *self.shape[:-1])

    def compute_output_spec(self, ids: Any) -> Any:
        chunks, mask = self.compute_output_shape(ids.shape)
        return tf.keras.KerasTensor(chunks, dtype=self.compute_dtype), tf.keras.KerasTensor(mask, dtype="bool")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(shape=None if self.shape is None else list(self.shape), trained_with=self.trained_with)
        return config


class KnowledgeTables(tf.Module):
    """A store's arrays as TensorFlow reads them: the mapped files themselves, or variables that hold copies.

    Args:
        store: What `KnowledgeLookup` takes.
    """

    def __init__(self, store: Any) -> None:
        super().__init__(name="knowledge_tables")
        self.in_variables = False
        self.fingerprint: str | None = getattr(store, "fingerprint", None)
        # What the store says of itself, hidden: `tf.Module` would wrap it, and everything in it.
        self._manifest = Untracked(getattr(store, "manifest", None))
        self._ids = np.asarray(store.ids)
        self._vectors = _table(store.vectors)
        self._scales = None if store.scales is None else _table(store.scales)
        self._mask = _table(store.mask)
        self._rows: Any = None

    def copied(self) -> KnowledgeTables:
        """Returns the same tables with every array in a variable of its own, ready to be tracked and saved."""
        other = KnowledgeTables.__new__(KnowledgeTables)
        tf.Module.__init__(other, name="knowledge_tables")
        other.in_variables = True
        other.fingerprint = self.fingerprint
        other._manifest = self._manifest
        other._ids = self._ids
        with tf.init_scope():
            other._vectors = tf.Variable(self._vectors, trainable=False, name="vectors")
            other._scales = None if self._scales is None else tf.Variable(self._scales, trainable=False, name="scales")
            other._mask = tf.Variable(self._mask, trainable=False, name="mask")
        other._rows = None
        other.rows(tf.zeros([0], other._id_dtype))  # Makes the table of ids, so that it is there to be tracked.
        return other

    @property
    def ids(self) -> np.ndarray:
        """The ids, in the order of the rows: int64, or an object array of `str`."""
        return self._ids

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the store, if it has one."""
        return self._manifest.value

    def arrays(self, start: int, stop: int) -> list[np.ndarray]:
        """Returns vectors, mask and, for int8, scales of some rows, as they are stored."""
        parts = [self._vectors, self._mask, *([] if self._scales is None else [self._scales])]
        return [part[start:stop].numpy() for part in parts]

    @property
    def bytes(self) -> int:
        """The size of vectors, mask and scales."""
        parts = [self._vectors, self._mask, *([] if self._scales is None else [self._scales])]
        return sum(part.dtype.size * part.shape.num_elements() for part in parts)

    @property
    def _id_dtype(self) -> Any:
        return tf.int64 if self._ids.dtype.kind in "iu" else tf.string

    def rows(self, ids: Any) -> Any:
        """Returns the int32 row of each id, -1 for unknown ones."""
        if isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
            raise ValueError(
                f"ids must be a dense tensor. Received: {type(ids).__name__}. Pad them with an id that the store does "
                "not hold: `ids.to_tensor(-1)`, or `ids.to_tensor('')`."
            )
        ids = tf.convert_to_tensor(ids)
        if not len(self._ids):  # TensorFlow has no empty look-up tables
            return tf.fill(tf.shape(ids), UNKNOWN_ROW)
        if not (ids.dtype.is_integer if self._id_dtype == tf.int64 else ids.dtype == tf.string):
            other = "string" if self._id_dtype == tf.int64 else "integer"
            raise ValueError(
                f"the store's ids are {self._id_dtype.name}, the ids looked up are {ids.dtype.name}. "
                f"Convert them, or write the store with {other} ids."
            )
        if self._rows is None:
            with tf.init_scope():
                is_text = self._id_dtype == tf.string
                keys = tf.constant(self._ids.astype(object if is_text else np.int64), self._id_dtype)
                if self.in_variables:
                    initializer = RowNumbers(tf.Variable(keys, trainable=False, name="ids"))
                else:
                    initializer = tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(self._ids), dtype=tf.int64))
                self._rows = tf.lookup.StaticHashTable(initializer, UNKNOWN_ROW)
        return tf.cast(self._rows.lookup(tf.cast(ids, self._id_dtype)), tf.int32)

    def gather(self, rows: Any, dtype: Any, *, clear: bool = True) -> tuple[Any, Any]:
        """Returns chunks and mask of `rows`; `clear` as for `KnowledgeLookup.lookup_rows`."""
        rows = tf.convert_to_tensor(rows)
        safe = tf.maximum(rows, 0)
        with contextlib.nullcontext() if self.in_variables else on_host():
            vectors, mask = tf.gather(self._vectors, safe), tf.gather(self._mask, safe)
            scales = None if self._scales is None else tf.gather(self._scales, safe)
        mask &= (rows >= 0)[..., None, None]
        chunks = tf.cast(vectors, dtype)
        if scales is None:
            if not clear:
                return chunks, mask
            return tf.where(mask[..., None], chunks, tf.zeros_like(chunks)), mask
        scales = tf.cast(scales, dtype)
        scales = tf.where(mask, scales, tf.zeros_like(scales))  # instead of the chunks: a pass over them less
        return chunks * scales[..., None], mask


def _table(array: Any) -> Any:
    # An empty store still needs a row to read for unknown ids.
    return mapped_tensor(array) if len(array) else tf.zeros((1, *array.shape[1:]), array.dtype)
