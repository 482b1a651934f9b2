"""KnowledgeEmbedding: what a recommender has learned of entities, with what the knowledge store has of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # TensorFlow tells nowhere else whether it compiles with XLA.

from kser_tf.layers.knowledge_extractor import KnowledgeExtractor
from kser_tf.layers.knowledge_lookup import UNKNOWN_ROW, KnowledgeLookup

RESIDUAL, APPEND = "residual", "append"
MODES = (RESIDUAL, APPEND)


@tf.keras.utils.register_keras_serializable("kser_tf")
class KnowledgeEmbedding(tf.keras.layers.Layer):
    """Adds to the embeddings of entities their aligned knowledge.

    The layer is given embeddings and the ids that they are of. It looks up the knowledge of each id, aligns it with the id's
    embedding (`KnowledgeExtractor`, the embedding being the query) and adds it (`mode="residual"`) or puts it beside
    (`mode="append"`). An id that occurs many times in a batch is aligned once (XLA aligns it
    wherever it stands).

    With the extractor's defaults and `"residual"` the layer starts by adding exactly nothing; and to an id without
    knowledge it always adds exactly nothing.

    `kser_tf.attach` puts this layer behind embeddings of models that are written already. Its parts are the attributes
    `lookup` and `extractor`. The store is not saved with a model: a layer that was loaded from a file needs `connect`.

    Args:
        store: A `kser_tf.KnowledgeStore`. A layer that was loaded from a file has none until `connect(store)`.
        mode: `"residual"` or `"append"`. Defaults to `"residual"`.
        shape: `(fields, chunks, width)` of the knowledge. Taken from the store; given where a layer is made without one.
        extractor: dict. Arguments of the `KnowledgeExtractor`. Defaults to its defaults.

    Call arguments:
        embedded: `(..., width_r)`, floating point, or ragged. The embeddings.
        ids: `(...)`, integers or strings as the store's, or ragged alike. Whose embeddings they are.

    Returns:
        `(..., width_r)`, or with `mode="append"` `(..., 2 * width_r)`; ragged where `embedded` is. A Keras mask of
        `embedded` is that of the result.

    Raises:
        ValueError: An argument is out of its range, `embedded` has not one dimension more than `ids`, the ids are of
            another type than the store's, or there is no store.

    Example:

    >>> knowledge = kser_tf.layers.KnowledgeEmbedding(kser_tf.KnowledgeStore.open("stores/movies"))
    >>> movie = knowledge(embedding(lookup(movie_ids)), movie_ids)
    """

    def __init__(
        self,
        store: Any = None,
        mode: str = RESIDUAL,
        *,
        shape: tuple[int, int, int] | None = None,
        extractor: dict[str, Any] | None = None,
        trained_with: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={mode!r}")
        self.mode = mode
        self.supports_masking = True
        self.lookup = KnowledgeLookup(shape=shape, trained_with=trained_with, dtype=self.dtype_policy, name="lookup")
        self.extractor = KnowledgeExtractor(dtype=self.dtype_policy, name="extractor", **(extractor or {}))
        self._width: int | None = None
        self._only_shapes = False
        self._rows_of_indices: Any = None
        if store is not None:
            self.connect(store)

    def connect(self, store: Any, *, index_ids: Any = None) -> None:
        """Takes `store` as the knowledge, in place of what was there. Models must be traced (`compile`d) anew after it.

        Args:
            store: A `kser_tf.KnowledgeStore`, of the shape that the layer was made for.
            index_ids: Where the layer is called with indices in place of ids: the id that each index from 0 on stands for,
                `(n,)`; integers or, for indices without an entity also `None`, strings. An index from `n` on has no
                knowledge. Defaults to none: the layer is called with the store's ids.

        Raises:
            ValueError: The store's fields, chunks or width are not those of the layer.
        """
        self.lookup.connect(store)
        self._rows_of_indices = None if index_ids is None else _rows_of_indices(store, index_ids)
        # XLA cannot look up ids, but it can count.
        self.lookup.supports_jit = self._rows_of_indices is not None

    @property
    def is_connected(self) -> bool:
        """Whether there is a store."""
        return self.lookup.is_connected

    def build(self, embedded_shape: Any) -> None:
        width = tuple(embedded_shape)[-1]
        if width is None:
            raise ValueError(f"`embedded` must have a known width. Received: shape={tuple(embedded_shape)}")
        if self.lookup.shape is None:
            raise ValueError(f"{self.name} has no store, nor the shape of one. Call `connect` before.")
        self._width = width
        with tf.name_scope(self.extractor.name):
            self.extractor.build(query_shape=(None, 1, width), chunks_shape=(None, *self.lookup.shape))
        self.built = True

    def __call__(self, embedded: Any, *args: Any, **kwargs: Any) -> Any:
        # As in KnowledgeLookup: a functional Keras 2 model is put together before its layers have stores.
        self._only_shapes = hasattr(embedded, "_keras_history")
        try:
            return super().__call__(embedded, *args, **kwargs)
        finally:
            self._only_shapes = False

    def call(self, embedded: Any, ids: Any) -> Any:
        if isinstance(embedded, tf.RaggedTensor):
            if not isinstance(ids, tf.RaggedTensor):
                raise ValueError(f"{self.name}: the embeddings are ragged, the ids are not: {type(ids).__name__}.")
            return embedded.with_flat_values(self.call(embedded.flat_values, ids.flat_values))
        ids = ids if isinstance(ids, tf.RaggedTensor | tf.SparseTensor) else tf.convert_to_tensor(ids)
        if ids.shape.rank is None or ids.shape.rank + 1 != embedded.shape.rank:
            raise ValueError(
                f"{self.name}: the embeddings must have one dimension more than the ids, whose embeddings they are. "
                f"Received: embeddings of shape {embedded.shape} for ids of shape {ids.shape}. Where the embeddings of "
                "several ids are pooled, the knowledge goes to the embedding before the pooling."
            )
        aligned = self._aligned_in_place(embedded, ids)
        return embedded + aligned if self.mode == RESIDUAL else tf.concat([embedded, aligned], -1)

    def aligned(self, query: Any, ids: Any) -> Any:
        """Returns what the layer adds to the embeddings of some ids: it depends on the id alone.

        Args:
            query: `(n, width_r)`, the embeddings that the recommender has of the ids.
            ids: `(n,)`.

        Returns:
            `(n, width_r)`; exactly 0 for ids without knowledge.
        """
        chunks, mask = self.lookup.lookup_rows(self.rows(ids))
        aligned, _ = self.extractor.extract_checked(query[:, None], chunks, mask)
        return aligned[:, 0]

    def rows(self, ids: Any) -> Any:
        """Returns the int32 row of each id (or index, after `connect` with `index_ids`) in the store; -1 if it has none."""
        if self._rows_of_indices is None:
            return self.lookup.rows(ids)
        count = self._rows_of_indices.shape[0]
        known = (ids >= 0) & (ids < count)
        rows = tf.gather(self._rows_of_indices, tf.where(known, ids, tf.zeros_like(ids)))
        return tf.where(known, rows, tf.fill(tf.shape(rows), UNKNOWN_ROW))

    def _aligned_in_place(self, embedded: Any, ids: Any) -> Any:
        """Aligns each distinct id once, and puts the results where the ids stand."""
        if self._only_shapes and not self.is_connected:
            return tf.zeros_like(embedded)
        flat_ids, flat_embedded = tf.reshape(ids, [-1]), tf.reshape(embedded, [-1, self._width])
        if _xla_compiles_this():
            # XLA fails at some sizes that are known only when it runs, as the number of distinct ids is.
            aligned = self.aligned(flat_embedded, flat_ids)
        else:
            distinct, places = tf.unique(flat_ids)
            # Any of its places will do for the embedding of an id; the first one is always the same.
            first = tf.math.unsorted_segment_min(tf.range(tf.size(flat_ids)), places, tf.size(distinct))
            aligned = tf.gather(self.aligned(tf.gather(flat_embedded, first), distinct), places)
        return tf.cast(tf.reshape(aligned, tf.shape(embedded)), embedded.dtype)

    def compute_output_shape(self, embedded_shape: Any, ids_shape: Any = None) -> Any:
        *places, width = tuple(embedded_shape)
        return (*places, width if self.mode == RESIDUAL else 2 * width)

    def compute_output_spec(self, embedded: Any, ids: Any) -> Any:
        return tf.keras.KerasTensor(self.compute_output_shape(embedded.shape), dtype=self.compute_dtype)

    def get_build_config(self) -> dict[str, Any]:
        return {"width": self._width} if self.built else {}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config and not self.built:
            self.build((None, config["width"]))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        shape = None if self.lookup.shape is None else list(self.lookup.shape)
        extractor = self.extractor.get_config()
        for own in config:  # name, dtype, whether trained: those of this layer
            extractor.pop(own, None)
        config.update(mode=self.mode, shape=shape, extractor=extractor, trained_with=self.lookup.trained_with)
        return config


def _xla_compiles_this() -> bool:
    """Whether what is traced now is under `jit_compile=True`."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _rows_of_indices(store: Any, index_ids: Any) -> Any:
    index_ids = np.asarray(index_ids)
    if index_ids.dtype == object:  # strings, with None for indices without an entity
        named = np.array([value is not None for value in index_ids], dtype=bool)
        rows = np.full(len(index_ids), UNKNOWN_ROW, np.int64)
        if named.any():
            rows[named] = store.rows(index_ids[named].tolist())
    else:
        rows = store.rows(index_ids)
    return tf.constant(rows, tf.int32)
