"""FeatureEmbedding: a vector for every feature, with the knowledge of the entities that features name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import StoreError
from kser_tf.layers import KnowledgeExtractor, KnowledgeLookup
from kser_tf.layers.drawn_by_batch import drawn_by_batch
from kser_tf.layers.statistics_at_hand import StatisticsAtHand
from kser_tf.layers.untracked import Untracked
from kser_tf.models.feature_indexer import rows_name, vocabulary_rows
from kser_tf.models.historical_embeddings import HistoricalEmbeddings
from kser_tf.schema import FIRST_INDEX, MISSING_INDEX, UNKNOWN_INDEX, DatasetSchema, Feature

# Entities aligned at once when the memory of the histories is made anew: 9 chunks of 384 numbers each are 57 MB then.
_REFRESHED_AT_ONCE = 4096


def chunks_name(feature: str) -> str:
    """The name under which chunks that come with a request go beside an entity feature's indices."""
    return f"{feature}/chunks"


def mask_name(feature: str) -> str:
    """The name of their mask."""
    return f"{feature}/mask"


class FeatureEmbedding(tf.keras.layers.Layer):
    """Embeds indexed features, each in `width` numbers.

    Categorical features are embedded, multi-valued ones averaged, numeric ones multiplied with a learned vector. Features
    with one vocabulary share one table. Where the entities of a vocabulary have a knowledge store, the aligned knowledge of
    an entity is added to its embedding, wherever the entity stands, as candidate or in a history.

    Whatever stands in a batch more than once is embedded and aligned once (`tf.unique`), then copied to its places: a
    history of 20 items in 1,024 rows names about 2,700 distinct ones of MovieLens-1M, not 21,504. With
    `keep_historical_embeddings`, training aligns the candidates and a sample of the others, 1,100 in all.

    Args:
        schema: The prepared data set's columns.
        width: int. Width of every embedding.
        lookups: For each kind of entity with knowledge its `KnowledgeLookup`.
        extractors: For each kind of entity with knowledge its `KnowledgeExtractor`.
        regularizer: Of the embedding tables. Defaults to `None`.
        id_dropout: float. The share of the entities that a training step takes for unknown: their embedding is that of an id
            that the vocabulary does not hold, which no training row shows otherwise. The model so learns what to say of new
            entities, and the extractor to speak for them (as DropoutNet does). With a store, of the entities that it holds.
            Defaults to 0.

    Call arguments:
        features: What `FeatureIndexer` returns. A categorical feature may have knowledge of its own beside it, under
            `chunks_name(feature)` and `mask_name(feature)`: rows with any chunk there take it in place of the store's.

    Returns:
        For each feature its embedding: `(batch, width)`, for sequence features `(batch, length, width)`.

    References:
        - [Volkovs et al., DropoutNet: Addressing Cold Start in Recommender Systems,
          2017](https://papers.nips.cc/paper/7081-dropoutnet-addressing-cold-start-in-recommender-systems)
    """

    def __init__(
        self,
        schema: DatasetSchema,
        width: int,
        lookups: Mapping[str, KnowledgeLookup] | None = None,
        extractors: Mapping[str, KnowledgeExtractor] | None = None,
        *,
        regularizer: Any = None,
        id_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.id_dropout = id_dropout
        self.schema = schema
        self.width = width
        self.lookups = dict(lookups or {})
        self.extractors = dict(extractors or {})
        self._by_vocabulary = _by_vocabulary(schema.features)
        self._statistics: Any = Untracked({})
        self._historical: dict[str, HistoricalEmbeddings] = {}
        self._one_of = 0
        # While a model is exported: vocabularies' baked tables.
        self._baked: Any = Untracked({})
        # All weights are in sub-layers, so that tables and extractors can be frozen apart.
        self._tables = {
            name: tf.keras.layers.Embedding(
                FIRST_INDEX + len(schema.vocabularies[name]),
                width,
                embeddings_initializer=_initializer(),
                embeddings_regularizer=regularizer,
                name=f"{name}_table",
            )
            for name in self._by_vocabulary
        }
        self._numbers = {
            feature.name: tf.keras.layers.Dense(
                width, use_bias=False, kernel_initializer=_initializer(), name=f"{feature.name}_vector"
            )
            for feature in schema.features
            if feature.kind == "numeric"
        }
        self._entity_of = {name: _entity(features, self.lookups) for name, features in self._by_vocabulary.items()}
        # For each entity with knowledge, its store's rows as indices of its vocabulary; and which store that was.
        self._connected = {entity: lookup.tables().fingerprint for entity, lookup in self.lookups.items()}
        self._row_index = {
            entity: tf.constant(vocabulary_rows(lookup.tables().ids, schema.vocabularies[name]))
            for name, entity in self._entity_of.items()
            if entity is not None
            for lookup in [self.lookups[entity]]
        }

    def remember_statistics(self, entity: str, statistics: np.ndarray) -> None:
        """Keeps ESFNet's statistics of all entities of a store, float32 `(rows, fields, chunks, 3)`, for training.

        They depend on the knowledge alone; a training step that has them at hand is a third shorter. Predictions, also
        those of an exported model, compute them from the chunks.
        """
        esf_net = self.extractors[entity].esf_net
        self._statistics.value[entity] = StatisticsAtHand(self.lookups[entity], esf_net, statistics)

    def keep_historical_embeddings(self, one_of: int = 8) -> None:
        """From now on, training aligns candidates and a sample of the histories; the others keep what they had.

        An entity that stands in a batch as a candidate is aligned anew and remembered, and so is one in `one_of` of those
        that stand only in histories; the gradient through these counts `one_of` times, so that the extractor's gradient is
        on average that of all. The others take the aligned vector remembered of them, at most as old as the last
        `refresh_historical_embeddings`, and pass no gradient into the extractor; their own embeddings are trained as before.
        Predictions (`training=False`) align everything anew. Entities that are never candidates go on being aligned anew.

        Args:
            one_of: int. 0 for no sample at all: faster still. Defaults to 8.

        References:
            - [Chen et al., Stochastic Training of Graph Convolutional Networks with Variance Reduction,
              2018](https://arxiv.org/abs/1710.10568): a few neighbours computed, the others from memory
            - [Fey et al., GNNAutoScale: Scalable and Expressive Graph Neural Networks via Historical Embeddings,
              2021](https://arxiv.org/abs/2106.05609)
        """
        self._one_of = one_of
        for name, entity in self._entity_of.items():
            if entity is not None and not _is_sequence(self._by_vocabulary[name][0]):
                rows = len(self.lookups[entity].tables().ids)
                self._historical[entity] = HistoricalEmbeddings(rows, self.width)

    def refresh_historical_embeddings(self) -> None:
        """Aligns all entities anew for the memory of `keep_historical_embeddings`, batch by batch."""
        for vocabulary, entity in self._entity_of.items():
            if entity not in self._historical:
                continue
            for start in range(0, len(self.lookups[entity].tables().ids), _REFRESHED_AT_ONCE):
                rows = tf.range(start, min(start + _REFRESHED_AT_ONCE, int(self._row_index[entity].shape[0])))
                base = self._tables[vocabulary](tf.gather(self._row_index[entity], rows))
                self._historical[entity].write(rows, self._aligned(entity, base, rows, training=True))

    def call(self, features: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        embedded = {name: layer(features[name][:, None]) for name, layer in self._numbers.items()}
        for vocabulary, sharing in self._by_vocabulary.items():
            embedded.update(self._embed(vocabulary, sharing, features, bool(training)))
        return embedded

    def chunk_weights(self, entity: str, rows: Any) -> Any:
        """Returns ESFNet's weights of the chunks of entities, `(n, fields, chunks)`, for a look and for a plot.

        Args:
            entity: The kind of entity.
            rows: int32 `(n,)`, rows of its store.
        """
        vocabulary = self.vocabulary_of(entity)
        base = self._tables[vocabulary](tf.gather(self._row_index[entity], rows))
        chunks, mask = self.lookups[entity].lookup_rows(rows)
        return self.extractors[entity].weigh(base[:, None], chunks, mask)

    def vocabulary_of(self, entity: str) -> str:
        """Returns the name of the vocabulary that holds the ids of entities with knowledge."""
        return next(name for name, kind in self._entity_of.items() if kind == entity)

    def store_row_indices(self, entity: str) -> np.ndarray:
        """Returns for each row of an entity's store the index of its id in the vocabulary, int32 `(rows,)`.

        Raises:
            StoreError: Another store was connected to the look-up since the model was made.
        """
        fingerprint = self.lookups[entity].tables().fingerprint
        if fingerprint != self._connected[entity]:
            raise StoreError(
                f"{entity}: the model was made with the store {self._connected[entity]}, and its look-up is connected "
                f"to {fingerprint}. Make the model anew with that store, and load its weights."
            )
        return self._row_index[entity].numpy()

    def base_embeddings(self, vocabulary: str, keys: Any) -> Any:
        """Returns what the recommender has of values without their knowledge, `(n, width)`.

        Args:
            vocabulary: The values' vocabulary.
            keys: int32 `(n,)`, what `FeatureIndexer.indices` returns: rows of a baked table go on behind the
                vocabulary, with values that it does not hold.
        """
        table = self._tables[vocabulary]
        return table(tf.where(keys < table.input_dim, keys, UNKNOWN_INDEX))

    def embed_entities(self, entity: str, indices: Any, rows: Any) -> Any:
        """Returns the embeddings of entities with their knowledge, `(n, width)`.

        Args:
            entity: The kind of entity.
            indices: int32 `(n,)`, indices in its vocabulary.
            rows: int32 `(n,)`, rows of its store, -1 for none.
        """
        vocabulary = self.vocabulary_of(entity)
        return self._embed_keys(vocabulary, entity, self._entity_keys(entity, indices, rows), training=False)

    def serve_baked(self, vocabulary: str, table: Any | None) -> None:
        """Takes a vocabulary's embeddings from a `BakedTable` from now on; `None` for computing them, as before."""
        others = {name: baked for name, baked in self._baked.value.items() if name != vocabulary}
        self._baked.value = others if table is None else {**others, vocabulary: table}

    def copy_tables(self, other: FeatureEmbedding) -> None:
        """Takes over another embedding's tables and numeric features' vectors, but not its extractors."""
        for mine, theirs in ((self._tables, other._tables), (self._numbers, other._numbers)):
            for name, layer in mine.items():
                layer.set_weights(theirs[name].get_weights())

    def _embed(
        self, vocabulary: str, sharing: list[Feature], features: Mapping[str, Any], training: bool
    ) -> dict[str, Any]:
        """Embeds all features of one vocabulary at once."""
        entity = None if vocabulary in self._baked.value else self._entity_of[vocabulary]
        keys = [self._keys(feature, entity, features) for feature in sharing]
        sizes = [tf.size(key) for key in keys]
        distinct, places = tf.unique(tf.concat([tf.reshape(key, [-1]) for key in keys], 0))
        if vocabulary in self._baked.value:
            vectors = self._baked.value[vocabulary].gather(distinct, self.compute_dtype)
        elif entity is None:
            if training and self.id_dropout and any(feature.entity for feature in sharing):
                distinct = tf.where((distinct >= FIRST_INDEX) & self._drawn(distinct), UNKNOWN_INDEX, distinct)
            vectors = self._tables[vocabulary](distinct)
        elif training and entity in self._historical:
            # Candidates stand before the histories, so their distinct keys are the first ones.
            in_candidates = tf.add_n(sizes[: sum(not _is_sequence(feature) for feature in sharing)])
            candidates = tf.reduce_max(places[:in_candidates]) + 1
            vectors = self._embed_keys(vocabulary, entity, distinct, training, candidates)
        else:
            vectors = self._embed_keys(vocabulary, entity, distinct, training)
        embedded = {}
        for feature, key, place in zip(sharing, keys, tf.split(places, tf.stack(sizes)), strict=True):
            vector = tf.reshape(tf.gather(vectors, place), tf.concat([tf.shape(key), [self.width]], 0))
            if feature.kind == "multi":
                present = tf.cast(features[feature.name] != MISSING_INDEX, vector.dtype)[..., None]
                vector = tf.reduce_sum(vector * present, 1) / tf.maximum(tf.reduce_sum(present, 1), 1)
            if chunks_name(feature.name) in features:
                vector = self._with_given_knowledge(feature, features, vector)
            embedded[feature.name] = tf.ensure_shape(vector, _embedded_shape(feature, self.width))
        return embedded

    def _with_given_knowledge(self, feature: Feature, features: Mapping[str, Any], vector: Any) -> Any:
        """Puts the knowledge that came with the request in place of the store's, in the rows where any came."""
        chunks, mask = features[chunks_name(feature.name)], features[mask_name(feature.name)]
        assert feature.vocabulary is not None
        assert feature.entity is not None
        base = self.base_embeddings(feature.vocabulary, features[feature.name])
        aligned = self.extractors[feature.entity](base[:, None], chunks, mask=mask)[:, 0]
        return tf.where(tf.reduce_any(mask, [1, 2])[:, None], base + aligned, vector)

    def _keys(self, feature: Feature, entity: str | None, features: Mapping[str, Any]) -> Any:
        """What tells one entity from another: its store row, or where it has none, its index, counted on from the rows."""
        index = features[feature.name]
        if entity is None:
            return index
        return self._entity_keys(entity, index, features[rows_name(feature.name)])

    def _entity_keys(self, entity: str, index: Any, row: Any) -> Any:
        return tf.where(row >= 0, row, index + tf.size(self._row_index[entity]))

    def _embed_keys(self, vocabulary: str, entity: str, keys: Any, training: bool, candidates: Any = None) -> Any:
        """Embeds distinct keys. Those after the first `candidates` take their knowledge from memory, but for a sample."""
        row_index = self._row_index[entity]
        store_rows = tf.size(row_index)
        has_row = keys < store_rows
        row = tf.where(has_row, keys, -tf.ones_like(keys))
        index = tf.where(has_row, tf.gather(row_index, tf.maximum(row, 0)), keys - store_rows)
        if training and self.id_dropout:
            index = tf.where(has_row & self._drawn(keys), UNKNOWN_INDEX, index)
        base = self._tables[vocabulary](index)
        if candidates is None:
            return base + self._aligned(entity, base, row, training=training)
        memory = self._historical[entity]
        if not self._one_of:
            aligned = self._aligned(entity, base[:candidates], row[:candidates], training=training)
            remembered = tf.cast(memory.read(row[candidates:]), aligned.dtype)
            memory.write(row[:candidates], aligned)
            return base + tf.concat([aligned, remembered], 0)
        first = tf.minimum(candidates + self._sample_offset(keys), tf.size(keys))
        anew = [(base[:candidates], row[:candidates]), (base[first :: self._one_of], row[first :: self._one_of])]
        row_anew = tf.concat([rows for _, rows in anew], 0)
        aligned = self._aligned(entity, tf.concat([vectors for vectors, _ in anew], 0), row_anew, training=training)
        remembered = tf.cast(memory.read(row[candidates:]), aligned.dtype)
        memory.write(row_anew, aligned)
        sampled = tf.range(first, tf.size(keys), self._one_of) - candidates
        in_histories = tf.tensor_scatter_nd_update(
            remembered, sampled[:, None], _scaled_gradient(aligned[candidates:], self._one_of)
        )
        return base + tf.concat([aligned[:candidates], in_histories], 0)

    def _drawn(self, keys: Any) -> Any:
        """Which keys are taken for unknown: told by the batch, so that a run that is resumed draws the same."""
        return drawn_by_batch(keys, keys, self.id_dropout)

    def _sample_offset(self, keys: Any) -> Any:
        """Where the sample of the histories begins: told by the batch, so that a run that is resumed draws the same."""
        return tf.math.floormod(tf.reduce_sum(keys), self._one_of)

    def _aligned(self, entity: str, base: Any, rows: Any, *, training: bool) -> Any:
        """The aligned knowledge of entities, `(n, width)`, from their embeddings and their store rows (-1 for none)."""
        # What stands in a chunk without knowledge does not matter: its weight is 0.
        chunks, mask = self.lookups[entity].lookup_rows(rows, clear=False)
        at_hand = self._statistics.value.get(entity) if training else None
        statistics = None if at_hand is None else at_hand(rows, chunks, mask)
        extractor = self.extractors[entity]
        if not extractor.built:
            extractor(base[:, None], chunks, mask=mask)
        return extractor.extract_checked(base[:, None], chunks, mask, statistics=statistics)[0][:, 0]


def _by_vocabulary(features: Iterable[Feature]) -> dict[str, list[Feature]]:
    """The features of each vocabulary, sequences last."""
    found: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.vocabulary is not None:
            found.setdefault(feature.vocabulary, []).append(feature)
    return {name: sorted(sharing, key=_is_sequence) for name, sharing in found.items()}


def _is_sequence(feature: Feature) -> bool:
    return feature.kind == "sequence"


def _scaled_gradient(values: Any, times: int) -> Any:
    """`values`, with their gradient multiplied."""

    @tf.custom_gradient
    def scaled(values: Any) -> tuple[Any, Any]:
        return tf.identity(values), lambda gradient: gradient * tf.cast(times, gradient.dtype)

    return scaled(values)


def _initializer() -> Any:
    # Small, so that at the start no feature outweighs another.
    return tf.keras.initializers.RandomNormal(stddev=0.03)


def _entity(features: list[Feature], lookups: Mapping[str, Any]) -> str | None:
    found = {feature.entity for feature in features if feature.entity in lookups}
    return found.pop() if found else None


def _embedded_shape(feature: Feature, width: int) -> list[int | None]:
    return [None, feature.length, width] if feature.kind == "sequence" else [None, width]
