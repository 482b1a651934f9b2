"""BakeableEntity: what a ranking model knows of one kind of entity, for a table that is computed ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers import KnowledgeLookup
from kser_tf.models.feature_embedding import FeatureEmbedding
from kser_tf.models.feature_indexer import TENSORFLOW_TYPES, FeatureIndexer
from kser_tf.schema import FIRST_INDEX, MISSING_INDEX, UNKNOWN_INDEX


class BakeableEntity:
    """The embedding of every entity of one kind, with its knowledge: a `kser_tf.serving.baking.Bakeable`.

    Knowledge that the backbone takes in further fields stands in a row behind the embedding, and behind that the profile
    where the model compares profiles.

    Row 0 is the missing value, row 1 every id that neither the vocabulary nor the store holds; then come the
    vocabulary's values, in its order, and the store's other ids, in the order of its rows. So the rows go on where the
    vocabulary's indices end, and what is 0 stays "missing" to the backbone.

    Args:
        entity: The kind of entity.
        indexer: The model's indexer.
        embedding: The model's embedding.

    Raises:
        StoreError: Another store was connected to the model since it was made.
    """

    unknown_row = UNKNOWN_INDEX

    def __init__(self, entity: str, indexer: FeatureIndexer, embedding: FeatureEmbedding) -> None:
        self.name = entity
        self.lookups: tuple[KnowledgeLookup, ...] = (embedding.lookups[entity],)
        self.width = embedding.entity_width(entity)
        self._indexer = indexer
        self._embedding = embedding
        self._vocabulary = embedding.vocabulary_of(entity)
        self._table: Any = None
        schema = indexer.schema
        feature = next(feature for feature in schema.features if feature.vocabulary == self._vocabulary)
        self.id_dtype = TENSORFLOW_TYPES[feature.dtype]

        values, ids = schema.vocabularies[self._vocabulary], embedding.lookups[entity].tables().ids
        index_of_row = embedding.store_row_indices(entity)
        is_missing = ids == feature.missing
        extra = np.flatnonzero((index_of_row == UNKNOWN_INDEX) & ~is_missing)
        known = FIRST_INDEX + len(values)
        # For each row of the baked table the index in the vocabulary, and the row of the store.
        self._indices = np.concatenate([np.arange(known), np.full(len(extra), UNKNOWN_INDEX)]).astype(np.int32)
        self._store_rows = np.concatenate([np.full(known, -1), extra]).astype(np.int32)
        in_vocabulary = np.flatnonzero(index_of_row != UNKNOWN_INDEX)
        self._store_rows[index_of_row[in_vocabulary]] = in_vocabulary
        self._store_rows[MISSING_INDEX] = np.flatnonzero(is_missing)[0] if is_missing.any() else -1
        dtype = np.int64 if self.id_dtype == tf.int64 else object
        self.keys = np.concatenate(
            [np.array([feature.missing], dtype), np.array(values, dtype).reshape(-1), np.asarray(ids[extra], dtype)]
        )

    def compute(self, rows: Any) -> Any:
        """Returns the embeddings with their knowledge, `(n, width)`, of rows, int32 `(n,)`."""
        indices, store_rows = tf.gather(self._indices, rows), tf.gather(self._store_rows, rows)
        return self._embedding.embed_entities(self.name, indices, store_rows)

    def use(self, table: Any | None) -> None:
        """Has the model look up and embed these entities by a baked table; `None`: as before."""
        self._table = table
        self._indexer.serve_rows(self._vocabulary, table)
        self._embedding.serve_baked(self._vocabulary, table)

    def describe(self, ids: Any) -> dict[str, Any]:
        """Returns `embedding` and `aligned`, the part of it that is knowledge, each `(n, width)`, of ids `(n,)`."""
        keys = self._indexer.indices(self._vocabulary, ids)
        if self._table is None:
            embedding = self._embedding.embed_entities(self.name, keys, self.lookups[0].rows(ids))
        else:
            embedding = self._table.gather(keys, self._embedding.compute_dtype)
        width = self._embedding.embedded_width(self.name)
        embedding = embedding[:, :width]
        base = self._embedding.base_embeddings(self._vocabulary, keys)
        # What is in further fields is knowledge altogether.
        aligned = embedding - tf.pad(base, [[0, 0], [0, width - base.shape[-1]]])
        return {"embedding": tf.cast(embedding, tf.float32), "aligned": tf.cast(aligned, tf.float32)}
