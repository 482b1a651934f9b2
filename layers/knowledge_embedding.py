"""KnowledgeEmbedding: what a recommender has learned of entities, with what the knowledge store has of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.drawn_by_batch import drawn_by_batch
from kser_tf.layers.knowledge_extractor import KnowledgeExtractor
from kser_tf.layers.knowledge_lookup import UNKNOWN_ROW, KnowledgeLookup
from kser_tf.layers.statistics_at_hand import StatisticsAtHand, in_training_step
from kser_tf.layers.untracked import Untracked
from kser_tf.layers.xla import xla_compiles_this

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
        id_dropout: float. For which share of the entities with knowledge, drawn anew for each batch, training goes on with
            the embedding of an unknown id, `unknown`. An entity that training never saw has that embedding, and without
            this the extractor never meets it. Defaults to 0.

    Call arguments:
        embedded: `(..., width_r)`, floating point, or ragged. The embeddings.
        ids: `(...)`, integers or strings as the store's, or ragged alike. Whose embeddings they are.
        unknown: `(width_r,)`. The embedding that the recommender has of an unknown id; for `id_dropout`.
        training: bool. Whether `id_dropout` draws.

    Returns:
        `(..., width_r)`, or with `mode="append"` `(..., 2 * width_r)`; ragged where `embedded` is. A Keras mask of
        `embedded` is that of the result.

    Raises:
        ValueError: An argument is out of its range, `embedded` has not one dimension more than `ids`, the ids are of
            another type than the store's, there is no store, or no `unknown` in training with `id_dropout`.

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
        id_dropout: float = 0.0,
        trained_with: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={mode!r}")
        if not 0 <= id_dropout < 1:
            raise ValueError(f"`id_dropout` is a share, at least 0 and below 1. Received: id_dropout={id_dropout!r}")
        self.mode = mode
        self.id_dropout = float(id_dropout)
        self.supports_masking = True
        self.lookup = KnowledgeLookup(
            shape=shape, trained_with=trained_with, dtype=self.dtype_policy, name=f"{self.name}_lookup"
        )
        self.extractor = KnowledgeExtractor(dtype=self.dtype_policy, name="extractor", **(extractor or {}))
        self._width: int | None = None
        self._only_shapes = False
        self._rows_of_indices: Any = None
        self._statistics: Any = Untracked()
        # While a model is exported: the aligned vectors of all ids.
        self._baked: Any = Untracked()
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
        self._statistics.value = StatisticsAtHand(self.lookup, self.extractor.esf_net)
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

    def call(self, embedded: Any, ids: Any, unknown: Any = None, training: bool | None = None) -> Any:
        if isinstance(embedded, tf.RaggedTensor):
            if not isinstance(ids, tf.RaggedTensor):
                raise ValueError(f"{self.name}: the embeddings are ragged, the ids are not: {type(ids).__name__}.")
            flat = self.call(embedded.flat_values, ids.flat_values, unknown, training)
            return embedded.with_flat_values(flat)
        ids = ids if isinstance(ids, tf.RaggedTensor | tf.SparseTensor) else tf.convert_to_tensor(ids)
        if ids.shape.rank is None or ids.shape.rank + 1 != embedded.shape.rank:
            raise ValueError(
                f"{self.name}: the embeddings must have one dimension more than the ids, whose embeddings they are. "
                f"Received: embeddings of shape {embedded.shape} for ids of shape {ids.shape}. Where the embeddings of "
                "several ids are pooled, the knowledge goes to the embedding before the pooling."
            )
        if training and self.id_dropout and self.is_connected:
            embedded = self._some_as_unknown(embedded, ids, unknown)
        aligned = self._aligned_in_place(embedded, ids, bool(training) or in_training_step())
        return embedded + aligned if self.mode == RESIDUAL else tf.concat([embedded, aligned], -1)

    def aligned(self, query: Any, ids: Any, *, training: bool = False) -> Any:
        """Returns what the layer adds to the embeddings of some ids: it depends on the id alone.

        Args:
            query: `(n, width_r)`, the embeddings that the recommender has of the ids.
            ids: `(n,)`.
            training: bool. Whether ESFNet's statistics are kept from step to step, which makes training shorter: those of
                all of the store are computed at the first one. Defaults to `False`.

        Returns:
            `(n, width_r)`; exactly 0 for ids without knowledge.
        """
        table = self._baked.value  # (autograph knows no walrus)
        if table is not None:
            key_dtype = tf.int64 if ids.dtype.is_integer else ids.dtype
            return table.gather(table.rows(tf.cast(ids, key_dtype)), self.compute_dtype)
        rows = self.rows(ids)
        chunks, mask = self.lookup.lookup_rows(rows)
        statistics = self._statistics.value(rows, chunks, mask) if training else None
        aligned, _ = self.extractor.extract_checked(query[:, None], chunks, mask, statistics=statistics)
        return aligned[:, 0]

    def use_baked(self, table: Any | None) -> None:
        """Takes the aligned vectors of all ids from a `kser_tf.serving.baking.BakedTable`; `None`: computes them."""
        self._baked.value = table

    def known_ids(self) -> np.ndarray:
        """Returns the ids (or indices) that the store holds, each once: int64 or an object array of `str`."""
        if self._rows_of_indices is None:
            return self.lookup.tables().ids
        return np.flatnonzero(self._rows_of_indices.numpy() != UNKNOWN_ROW)

    def rows(self, ids: Any) -> Any:
        """Returns the int32 row of each id (or index, after `connect` with `index_ids`) in the store; -1 if it has none."""
        if self._rows_of_indices is None:
            return self.lookup.rows(ids)
        count = self._rows_of_indices.shape[0]
        known = (ids >= 0) & (ids < count)
        rows = tf.gather(self._rows_of_indices, tf.where(known, ids, tf.zeros_like(ids)))
        return tf.where(known, rows, tf.fill(tf.shape(rows), UNKNOWN_ROW))

    def _some_as_unknown(self, embedded: Any, ids: Any, unknown: Any) -> Any:
        """Puts the embedding of an unknown id in place of a share of the entities' own, at all places of an entity."""
        if unknown is None:
            raise ValueError(
                f"{self.name} has id_dropout={self.id_dropout}, and was not given the embedding of an unknown id. Hand it in: "
                "knowledge(embedded, ids, unknown=...)."
            )
        rows = self.rows(tf.reshape(ids, [-1]))
        # XLA has no `unique`; it aligns an id wherever it stands, so there each place may draw by itself.
        distinct, places = (rows, tf.range(tf.size(rows))) if xla_compiles_this() else tf.unique(rows)
        as_unknown = (distinct != UNKNOWN_ROW) & drawn_by_batch(distinct, rows, self.id_dropout)
        as_unknown = tf.gather(as_unknown, places)
        unknown = tf.cast(tf.reshape(unknown, [self._width]), embedded.dtype)
        return tf.where(tf.reshape(as_unknown, tf.shape(ids))[..., None], unknown, embedded)

    def _aligned_in_place(self, embedded: Any, ids: Any, training: bool) -> Any:
        """Aligns each distinct id once, and puts the results where the ids stand."""
        if self._only_shapes and not self.is_connected:
            return tf.zeros_like(embedded)
        flat_ids, flat_embedded = tf.reshape(ids, [-1]), tf.reshape(embedded, [-1, self._width])
        if xla_compiles_this() or self._baked.value is not None:
            # XLA fails at some sizes that are known only when it runs, as the number of distinct ids is; and to read a row
            # of a baked table is less work than to find out which ids are distinct.
            aligned = self.aligned(flat_embedded, flat_ids, training=training)
        else:
            distinct, places = tf.unique(flat_ids)
            # Any of its places will do for the embedding of an id; the first one is always the same.
            first = tf.math.unsorted_segment_min(tf.range(tf.size(flat_ids)), places, tf.size(distinct))
            aligned = self.aligned(tf.gather(flat_embedded, first), distinct, training=training)
            aligned = tf.gather(aligned, places)
        return tf.cast(tf.reshape(aligned, tf.shape(embedded)), embedded.dtype)

    def compute_output_shape(self, embedded_shape: Any, *other_shapes: Any, **kwargs: Any) -> Any:
        *places, width = tuple(embedded_shape)
        return (*places, width if self.mode == RESIDUAL else 2 * width)

    def compute_output_spec(self, embedded: Any, *others: Any, **kwargs: Any) -> Any:
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
        config.update(mode=self.mode, shape=shape, extractor=extractor, id_dropout=self.id_dropout)
        config.update(trained_with=self.lookup.trained_with)
        return config


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
