"""FeatureEmbedding: a vector for every feature, with the knowledge of the entities that features name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import ConfigError, StoreError
from kser_tf.layers import KnowledgeLookup
from kser_tf.layers.drawn_by_batch import drawn_by_batch
from kser_tf.layers.entity_profiles import EntityProfiles
from kser_tf.layers.gather_few import FEW_ROWS, gather_few
from kser_tf.layers.statistics_at_hand import StatisticsAtHand
from kser_tf.layers.untracked import Untracked
from kser_tf.models.adaptor import Adaptor
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


def knowledge_name(feature: str, number: int) -> str:
    """The name of a further field, made of the knowledge of the entity that a feature names."""
    return f"{feature}/knowledge_{number}"


class FeatureEmbedding(tf.keras.layers.Layer):
    """Embeds indexed features, each in `width` numbers.

    Categorical features are embedded, multi-valued ones averaged, numeric ones multiplied with a learned vector. Features
    with one vocabulary share one table. Where the entities of a vocabulary have a knowledge store, an adaptor makes vectors
    of their knowledge. One with the placement `residual` has its vector added to an entity's embedding, wherever the entity
    stands, as candidate or in a history ("aligned"). Those of one with the placement `field` are further fields beside the
    features that name candidates, under `knowledge_name`.

    Whatever stands in a batch more than once is embedded and aligned once (`tf.unique`), then copied to its places: a
    history of 20 items in 1,024 rows names about 2,700 distinct ones of MovieLens-1M, not 21,504. With
    `keep_historical_embeddings`, training aligns the candidates and a sample of the others, 1,100 in all.

    Args:
        schema: The prepared data set's columns.
        width: int. Width of every embedding.
        lookups: For each kind of entity with knowledge its `KnowledgeLookup`.
        extractors: For each kind of entity with knowledge its `Adaptor`.
        entity_profiles: For each kind of entity whose profiles are asked for, its `EntityProfiles`. Defaults to none.
        regularizer: Of the embedding tables. Defaults to `None`.
        id_dropout: float. The share of the entities that a training step takes for unknown: their embedding is that of an id
            that the vocabulary does not hold, which no training row shows otherwise. The model so learns what to say of new
            entities, and the extractor to speak for them (as DropoutNet does). With a store, of the entities that it holds.
            Defaults to 0.

    Call arguments:
        features: What `FeatureIndexer` returns. A categorical feature may have knowledge of its own beside it, under
            `chunks_name(feature)` and `mask_name(feature)`: rows with any chunk there take it in place of the store's.

    Returns:
        For each feature its embedding: `(batch, width)`, for sequence features `(batch, length, width)`; and the further
        fields, each as wide as its adaptor makes it.

    Raises:
        ConfigError: An adaptor makes fields of candidates' knowledge, and no feature names candidates of that kind.

    References:
        - [Volkovs et al., DropoutNet: Addressing Cold Start in Recommender Systems,
          2017](https://papers.nips.cc/paper/7081-dropoutnet-addressing-cold-start-in-recommender-systems)
    """

    def __init__(
        self,
        schema: DatasetSchema,
        width: int,
        lookups: Mapping[str, KnowledgeLookup] | None = None,
        extractors: Mapping[str, Adaptor] | None = None,
        entity_profiles: Mapping[str, EntityProfiles] | None = None,
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
        self.entity_profiles = dict(entity_profiles or {})
        self._by_vocabulary = _by_vocabulary(schema.features)
        self._statistics: Any = Untracked({})
        self._historical: dict[str, HistoricalEmbeddings] = {}
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
        # For entities whose knowledge comes in fields of its own: how many, and how wide.
        self._fields = {
            entity: adaptor.outputs(self.lookups[entity].shape)
            for entity, adaptor in self.extractors.items()
            if adaptor.placement == "field"
        }
        for entity in self._fields:
            if not any(_has_fields(feature, entity) for feature in schema.features):
                raise ConfigError(
                    f"the adaptor makes fields of what is known of candidates, and no categorical feature names a {entity}. "
                    "Set adaptor_options: {placement: residual}."
                )
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

        They depend on the knowledge alone, and on the catalogue's average; a training step that has them at hand is a third
        shorter. Predictions, also those of an exported model, compute them from the chunks.
        """
        esf_net = self.extractors[entity].esf_net
        self._statistics.value[entity] = StatisticsAtHand(self.lookups[entity], esf_net, statistics)

    def refresh_at_hand(self) -> None:
        """Computes anew what is kept for training, where weights were loaded with which it would be something else."""
        for kept in self._statistics.value.values():
            kept.refresh()

    def knowledge_features(self) -> list[Feature]:
        """Returns the further fields as features of the kind `knowledge`, in the order of the features that name entities."""
        return [
            Feature(knowledge_name(feature.name, number), "knowledge", "float32", entity=feature.entity)
            for feature in self.schema.features
            for entity, (count, _) in self._fields.items()
            if _has_fields(feature, entity)
            for number in range(count)
        ]

    def keep_historical_embeddings(self, one_of: int = 8, *, decoupled: bool = False) -> None:
        """From now on, training aligns candidates and a sample of the histories; the others keep what they had.

        See `HistoricalEmbeddings`. Predictions (`training=False`) align everything anew. Entities that are never candidates go on
        being aligned anew. Where an adaptor makes fields of the candidates' knowledge, histories have none, and nothing changes.

        Args:
            one_of: int. One in how many of the histories' entities is aligned; 0 for none: faster still. Defaults to 8.
            decoupled: bool. With none, whether histories pass no gradient to the extractor and every other candidate is
                remembered too, for extractor-only training: the fastest. Defaults to `False`.
        """
        for name, entity in self._entity_of.items():
            if entity is None or entity in self._fields:
                continue
            if not _is_sequence(self._by_vocabulary[name][0]):
                rows = len(self.lookups[entity].tables().ids)
                self._historical[entity] = HistoricalEmbeddings(rows, self.width, one_of, decoupled=decoupled)

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

    def profiles(self, feature: Feature, features: Mapping[str, Any]) -> Any:
        """Returns the profiles of the entities that a feature names, `(batch, n)` or `(batch, length, n)`.

        Args:
            feature: A feature of an entity that has `entity_profiles`.
            features: As of the call. Knowledge that comes with a request takes the place of the store's here too.
        """
        assert feature.vocabulary is not None
        assert feature.entity is not None
        profiles = self.entity_profiles[feature.entity]
        if feature.vocabulary in self._baked.value:
            table = self._baked.value[feature.vocabulary]
            found = table.gather(features[feature.name], self.compute_dtype)[..., -profiles.width :]
        else:
            found = profiles.of_rows(features[rows_name(feature.name)])
        if chunks_name(feature.name) in features:
            chunks, mask = features[chunks_name(feature.name)], features[mask_name(feature.name)]
            found = tf.where(tf.reduce_any(mask, [1, 2])[:, None], profiles(chunks, mask=mask), found)
        return found

    def chunk_weights(self, entity: str, rows: Any) -> Any:
        """Returns ESFNet's weights of the chunks of entities, `(n, fields, chunks)`, for a look and for a plot.

        Args:
            entity: The kind of entity.
            rows: int32 `(n,)`, rows of its store.

        Raises:
            ConfigError: The adaptor has no ESFNet.
        """
        if self.extractors[entity].esf_net is None:
            raise ConfigError(
                f"{self.extractors[entity].name}: an adaptor without ESFNet does not weigh the chunks. kser and esf_net_only do."
            )
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
        """Returns the embeddings of entities with their knowledge, and their profiles, `(n, entity_width(entity))`.

        Args:
            entity: The kind of entity.
            indices: int32 `(n,)`, indices in its vocabulary.
            rows: int32 `(n,)`, rows of its store, -1 for none.
        """
        vocabulary, keys = self.vocabulary_of(entity), self._entity_keys(entity, indices, rows)
        parts = [self._embed_keys(vocabulary, entity, keys, training=False)]
        if entity in self._fields:
            parts.append(self._aligned(entity, parts[0], rows, training=False))
        if entity in self.entity_profiles:
            parts.append(tf.cast(self.entity_profiles[entity].of_rows(rows), parts[0].dtype))
        return tf.concat(parts, -1)

    def embedded_width(self, entity: str) -> int:
        """Returns the width of an entity's embedding with the further fields behind it, side by side."""
        count, width = self._fields.get(entity, (0, 0))
        return self.width + count * width

    def entity_width(self, entity: str) -> int:
        """Returns the width of `embed_entities`: `embedded_width`, and behind that the profile, if there is one."""
        profiles = self.entity_profiles.get(entity)
        return self.embedded_width(entity) + (0 if profiles is None else profiles.width)

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
        table = self._tables[vocabulary]
        if training and table.input_dim <= FEW_ROWS and not any(feature.entity for feature in sharing):
            if not table.built:
                table.build(None)
            values = tf.cast(table.embeddings, self.compute_dtype)
            return {
                feature.name: self._in_place(feature, features, gather_few(values, features[feature.name]))
                for feature in sharing
            }
        entity = None if vocabulary in self._baked.value else self._entity_of[vocabulary]
        with_fields = self._entity_of[vocabulary] if self._entity_of[vocabulary] in self._fields else None
        keys = [self._keys(feature, entity, features) for feature in sharing]
        sizes = [tf.size(key) for key in keys]
        distinct, places = tf.unique(tf.concat([tf.reshape(key, [-1]) for key in keys], 0))
        in_histories = None
        if vocabulary in self._baked.value:
            vectors = self._baked.value[vocabulary].gather(distinct, self.compute_dtype)
            if self._entity_of[vocabulary] in self.entity_profiles:
                vectors = vectors[:, : self.embedded_width(self._entity_of[vocabulary] or "")]
        elif entity is None:
            if training and self.id_dropout and any(feature.entity for feature in sharing):
                distinct = tf.where((distinct >= FIRST_INDEX) & self._drawn(distinct), UNKNOWN_INDEX, distinct)
            vectors = self._tables[vocabulary](distinct)
        elif training and entity in self._historical:
            vectors, in_histories = self._embed_with_memory(
                vocabulary, entity, distinct, _candidates(sharing, sizes, places)
            )
        else:
            vectors = self._embed_keys(vocabulary, entity, distinct, training)
        if training:
            # Times one: the gradient of a product is dense. The sparse one of the gathers below would be taken apart row by
            # row where the candidates' vectors and the histories' were put together.
            vectors = 1.0 * vectors
            in_histories = None if in_histories is None else 1.0 * in_histories
        knowledge = None
        if with_fields is not None:
            candidates = _candidates(sharing, sizes, places)
            if entity is None:
                vectors, knowledge = vectors[:, : self.width], vectors[:candidates, self.width :]
            else:
                row = self._rows_of_keys(entity, distinct[:candidates])
                knowledge = self._aligned(entity, vectors[:candidates], row, training=training)
        embedded = {}
        for feature, key, place in zip(sharing, keys, tf.split(places, tf.stack(sizes)), strict=True):
            source = vectors if in_histories is None or not _is_sequence(feature) else in_histories
            vector = tf.reshape(tf.gather(source, place), tf.concat([tf.shape(key), [self.width]], 0))
            vector = self._in_place(feature, features, vector)
            if knowledge is not None and _has_fields(feature, with_fields):
                embedded.update(self._embed_fields(feature, features, tf.gather(knowledge, place)))
            elif chunks_name(feature.name) in features:
                vector = self._with_given_knowledge(feature, features, vector)
            embedded[feature.name] = vector
        return embedded

    def _in_place(self, feature: Feature, features: Mapping[str, Any], vectors: Any) -> Any:
        """What a feature's embedding is, of those of its values."""
        if feature.kind == "multi":
            present = tf.cast(features[feature.name] != MISSING_INDEX, vectors.dtype)[..., None]
            vectors = tf.reduce_sum(vectors * present, 1) / tf.maximum(tf.reduce_sum(present, 1), 1)
        return tf.ensure_shape(vectors, _embedded_shape(feature, self.width))

    def _embed_fields(self, feature: Feature, features: Mapping[str, Any], knowledge: Any) -> dict[str, Any]:
        """The further fields of a feature, from what is known of its entities, all fields side by side."""
        if chunks_name(feature.name) in features:
            knowledge = self._with_given_knowledge(feature, features, knowledge)
        assert feature.entity is not None
        count, width = self._fields[feature.entity]
        return {
            knowledge_name(feature.name, i): tf.ensure_shape(knowledge[:, i * width : (i + 1) * width], [None, width])
            for i in range(count)
        }

    def _with_given_knowledge(self, feature: Feature, features: Mapping[str, Any], vector: Any) -> Any:
        """Puts the knowledge that came with the request in place of the store's, in the rows where any came.

        `vector` is an embedding with its knowledge, or the further fields, side by side.
        """
        chunks, mask = features[chunks_name(feature.name)], features[mask_name(feature.name)]
        assert feature.vocabulary is not None
        assert feature.entity is not None
        base = self.base_embeddings(feature.vocabulary, features[feature.name])
        aligned = _side_by_side(self.extractors[feature.entity](base[:, None], chunks, mask=mask))
        known = aligned if feature.entity in self._fields else base + aligned
        return tf.where(tf.reduce_any(mask, [1, 2])[:, None], known, vector)

    def _keys(self, feature: Feature, entity: str | None, features: Mapping[str, Any]) -> Any:
        """What tells one entity from another: its store row, or where it has none, its index, counted on from the rows."""
        index = features[feature.name]
        if entity is None:
            return index
        return self._entity_keys(entity, index, features[rows_name(feature.name)])

    def _entity_keys(self, entity: str, index: Any, row: Any) -> Any:
        return tf.where(row >= 0, row, index + tf.size(self._row_index[entity]))

    def _rows_of_keys(self, entity: str, keys: Any) -> Any:
        return tf.where(keys < tf.size(self._row_index[entity]), keys, -tf.ones_like(keys))

    def _embed_keys(self, vocabulary: str, entity: str, keys: Any, training: bool) -> Any:
        """Embeds distinct keys, with their knowledge unless it comes in fields of its own."""
        base, row = self._base_and_rows(vocabulary, entity, keys, training)
        return base if entity in self._fields else base + self._aligned(entity, base, row, training=training)

    def _base_and_rows(self, vocabulary: str, entity: str, keys: Any, training: bool) -> tuple[Any, Any]:
        """What the recommender has of distinct keys without their knowledge, and their store rows."""
        row_index = self._row_index[entity]
        store_rows = tf.size(row_index)
        has_row = keys < store_rows
        row = self._rows_of_keys(entity, keys)
        index = tf.where(has_row, tf.gather(row_index, tf.maximum(row, 0)), keys - store_rows)
        if training and self.id_dropout:
            index = tf.where(has_row & self._drawn(keys), UNKNOWN_INDEX, index)
        return self._tables[vocabulary](index), row

    def _embed_with_memory(self, vocabulary: str, entity: str, keys: Any, candidates: Any) -> tuple[Any, Any]:
        """The vectors of distinct keys in a training step: see `HistoricalEmbeddings.embed`."""
        base, rows = self._base_and_rows(vocabulary, entity, keys, training=True)
        align = functools.partial(self._aligned, entity, training=True)
        return self._historical[entity].embed(base, rows, candidates, align)

    def _drawn(self, keys: Any) -> Any:
        """Which keys are taken for unknown: told by the batch, so that a run that is resumed draws the same."""
        return drawn_by_batch(keys, keys, self.id_dropout)

    def _aligned(self, entity: str, base: Any, rows: Any, *, training: bool) -> Any:
        """What the adaptor makes of entities' knowledge, `(n, width)`, several vectors side by side.

        It is made from their embeddings and their store rows (-1 for none).
        """
        # What stands in a chunk without knowledge does not matter: its weight is 0.
        chunks, mask = self.lookups[entity].lookup_rows(rows, clear=False)
        at_hand = self._statistics.value.get(entity) if training else None
        statistics = None if at_hand is None else tf.cast(at_hand.of_rows(rows), self.compute_dtype)
        extractor = self.extractors[entity]
        if not extractor.built:
            extractor(base[:, None], chunks, mask=mask)
        return _side_by_side(
            extractor.vectors_of_checked(base[:, None], chunks, mask, statistics=statistics, training=training)
        )


def _by_vocabulary(features: Iterable[Feature]) -> dict[str, list[Feature]]:
    """The features of each vocabulary, sequences last."""
    found: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.vocabulary is not None:
            found.setdefault(feature.vocabulary, []).append(feature)
    return {name: sorted(sharing, key=_is_sequence) for name, sharing in found.items()}


def _is_sequence(feature: Feature) -> bool:
    return feature.kind == "sequence"


def _has_fields(feature: Feature, entity: str | None) -> bool:
    """Whether a feature names candidates of a kind of entity, beside whose embeddings further fields may stand."""
    return feature.kind == "categorical" and feature.entity == entity


def _candidates(sharing: list[Feature], sizes: list[Any], places: Any) -> Any:
    """How many of the distinct keys are candidates': they stand before the histories, so theirs are the first ones."""
    in_candidates = tf.add_n(sizes[: sum(not _is_sequence(feature) for feature in sharing)])
    return tf.reduce_max(places[:in_candidates]) + 1


def _side_by_side(vectors: Any) -> Any:
    """`(n, vectors, width)` -> `(n, vectors * width)`."""
    return tf.reshape(vectors, [-1, vectors.shape[1] * vectors.shape[2]])


def _initializer() -> Any:
    # Small, so that at the start no feature outweighs another.
    return tf.keras.initializers.RandomNormal(stddev=0.03)


def _entity(features: list[Feature], lookups: Mapping[str, Any]) -> str | None:
    found = {feature.entity for feature in features if feature.entity in lookups}
    return found.pop() if found else None


def _embedded_shape(feature: Feature, width: int) -> list[int | None]:
    return [None, feature.length, width] if feature.kind == "sequence" else [None, width]
