"""RankingModel: a TFRS ranking model over a prepared data set, with or without knowledge."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from kser_tf.errors import ConfigError
from kser_tf.keras_version import require_keras_2
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.layers import KnowledgeLookup
from kser_tf.layers.entity_profiles import EntityProfiles
from kser_tf.layers.preferences import adapt_to_preferences
from kser_tf.schema import MISSING_INDEX, DatasetSchema

require_keras_2("kser_tf.RankingModel")

import tensorflow_recommenders as tfrs  # noqa: E402

from kser_tf.models import adaptors, backbones  # noqa: E402
from kser_tf.models.adaptor import Adaptor  # noqa: E402
from kser_tf.models.bakeable_entity import BakeableEntity  # noqa: E402
from kser_tf.models.config import RankingModelConfig  # noqa: E402
from kser_tf.models.feature_embedding import FeatureEmbedding, chunks_name, mask_name  # noqa: E402
from kser_tf.models.feature_indexer import FeatureIndexer, rows_name  # noqa: E402
from kser_tf.models.user_knowledge import AllGroups, UserKnowledge  # noqa: E402


class RankingModel(tfrs.Model):
    """Predicts the probability of a click from a candidate, a user and a context.

    Three parts, which the training strategies name: `embedding` (every feature's vector, with the knowledge of the entities
    that have a store, as an adaptor makes it), `core` (the backbone) and `output_layer` (one dense unit, the logit).

    Without stores it is the base model. With them and a residual adaptor it has the same embedding, core and output layer,
    so the base's weights fit (`copy_backbone`); the adaptor starts at zero, so the model then predicts what the base
    predicts, bit for bit. With an adaptor that makes further fields, the core has more inputs than the base's.

    Args:
        schema: The prepared data set's columns.
        config: Hyper-parameters. Defaults to `RankingModelConfig()`.
        stores: For each kind of entity with knowledge its store. Defaults to none.

    Call arguments:
        features: What `indexer` makes of raw features.

    Returns:
        The logit, `(batch, 1)`, float32.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        config: RankingModelConfig | None = None,
        stores: Mapping[str, KnowledgeStore] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schema = schema
        self.config = config or RankingModelConfig()
        for_backbone = _seen_by_backbone(schema, self.config.backbone_history)
        #: For each sequence feature how many of its places the backbone sees.
        self.seen_lengths: dict[str, int] = {
            feature.name: feature.length or 0 for feature in for_backbone.features if feature.kind == "sequence"
        }
        self._seen_groups = for_backbone.groups()
        lookups = {entity: KnowledgeLookup(store, name=f"{entity}_lookup") for entity, store in (stores or {}).items()}
        backbone = backbones.get(self.config.backbone)
        options = adaptors.checked_options(self.config.adaptor, self.config.adaptor_options)
        extractors = {entity: self._adaptor(entity, backbone.any_width, options) for entity in lookups}
        profiles = self._profiles(lookups)
        self.user_knowledge = None
        if profiles:
            width = next(iter(profiles.values())).width
            self.user_knowledge = UserKnowledge(schema, width, name="user_knowledge")
        # Whatever nobody sees of a request's histories is not looked up.
        self.indexer = FeatureIndexer(schema if profiles else for_backbone, lookups)
        self.embedding = FeatureEmbedding(
            for_backbone,
            self.config.embedding_width,
            lookups,
            extractors,
            profiles,
            regularizer=_l2(self.config.embedding_l2),
            id_dropout=self.config.id_dropout,
            name="embedding",
        )
        self.core = backbone(
            dataclasses.replace(for_backbone, features=(*for_backbone.features, *self.embedding.knowledge_features())),
            hidden_units=self.config.hidden_units,
            dropout=self.config.dropout,
            **backbones.checked_options(self.config.backbone, self.config.backbone_options),
            name="core",
        )
        # float32 in every precision policy: TFRS adds float32 to the loss, and a logit in half precision saturates.
        self.output_layer = tf.keras.layers.Dense(1, dtype="float32", name="output")
        self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))

    def _adaptor(self, entity: str, any_width: bool, options: Mapping[str, Any]) -> Adaptor:
        config = self.config
        return adaptors.get(config.adaptor)(
            config,
            any_width=any_width,
            kernel_regularizer=_l2(config.extractor_l2),
            **options,
            name=f"{entity}_extractor",
        )

    def _profiles(self, lookups: Mapping[str, KnowledgeLookup]) -> dict[str, EntityProfiles]:
        """The items' profiles, if their knowledge is to be compared."""
        schema = self.schema
        entity = schema.feature(schema.item_id).entity
        if not self.config.user_knowledge or entity is None or entity not in lookups:
            return {}
        if not schema.attended_groups():
            raise ConfigError(
                f"user_knowledge compares the candidate with what the user did before, and no sequence feature is of the "
                f"vocabulary of {schema.item_id}. Prepare one, or set user_knowledge to false."
            )
        return {entity: EntityProfiles(lookups[entity], name=f"{entity}_profiles")}

    def make_weights(self) -> None:
        """Makes all weights, by a call on a batch of one row without a single value."""
        self.serve(
            {
                feature.name: tf.fill(
                    [1] if feature.length is None else [1, 1], tf.constant(feature.missing, dtype=spec.dtype)
                )
                for feature in self.indexer.schema.features
                for spec in [self.serving_inputs()[feature.name]]
            }
        )

    def adapt(self, stores: Mapping[str, KnowledgeStore]) -> None:
        """Tells each adaptor about its catalogue, and keeps for training what depends on the catalogue alone.

        The model must have its weights.
        """
        for entity, extractor in self.extractors.items():
            statistics = extractor.adapt(stores[entity])
            if statistics is not None:
                self.embedding.remember_statistics(entity, statistics)
        for entity, profiles in self.embedding.entity_profiles.items():
            profiles.adapt(stores[entity])

    def adapt_to_preferences(self, examples: Iterable[tuple[Mapping[str, Any], Any]]) -> int:
        """Makes the profiles that `user_knowledge` compares alike where the same users like the items.

        After `adapt`, and before `compare_histories`. See `kser_tf.layers.adapt_to_preferences`.

        Args:
            examples: Of training, batches of `(features, labels)`, the features as of the call; iterated over twice.

        Returns:
            From how many examples it was learned, an example counted once for each group of histories. 0: the profiles are
            as they were, those of the texts.
        """
        assert self.user_knowledge is not None
        ((entity, profiles),) = self.embedding.entity_profiles.items()
        return adapt_to_preferences(profiles, self.embedding.lookups[entity], AllGroups(self.user_knowledge, examples))

    def make_train_function(self, force: bool = False) -> Any:
        # Every `fit` begins here, and weights may have been loaded since the last one.
        self.embedding.refresh_at_hand()
        return super().make_train_function(force)

    def keep_historical_embeddings(self, one_of: int = 8, *, decoupled: bool = False) -> None:
        """Makes training shorter: see `FeatureEmbedding.keep_historical_embeddings`. Compile the model after it."""
        self.embedding.keep_historical_embeddings(one_of, decoupled=decoupled)

    def copy_backbone(self, other: RankingModel) -> None:
        """Takes over the weights of another model's embedding tables, core and output layer; adaptors begin at zero.

        The model must have its weights.

        Raises:
            ConfigError: The other model has another schema, backbone or width, or this one's adaptor makes fields that the
                other model's core does not take.
        """
        if self.embedding.knowledge_features() and not other.embedding.knowledge_features():
            raise ConfigError(
                f"adaptor {self.config.adaptor} makes further fields of the knowledge, and the base's core has no inputs for "
                "them. To start from a base, set adaptor_options: {placement: residual}; or train all parameters."
            )
        if other.schema.fingerprint != self.schema.fingerprint:
            raise ConfigError(
                "the base was trained on other features or vocabularies: prepare and train it anew on this data set."
            )
        ours, theirs = dataclasses.asdict(self.config), dataclasses.asdict(other.config)
        for name in ("backbone", "backbone_options", "backbone_history", "embedding_width", "hidden_units"):
            # As JSON: a model read from its folder has lists where the one that was written may have had tuples.
            if json.dumps(ours[name], sort_keys=True) != json.dumps(theirs[name], sort_keys=True):
                raise ConfigError(
                    f"the base was trained with {name}={theirs[name]!r}, this model has {ours[name]!r}. They must agree."
                )
        self.embedding.copy_tables(other.embedding)
        for extractor in self.extractors.values():
            if extractor.placement == "residual":
                extractor.begin_at_zero()
        self.core.set_weights(other.core.get_weights())
        self.output_layer.set_weights(other.output_layer.get_weights())

    @property
    def extractors(self) -> dict[str, Adaptor]:
        """For each kind of entity with knowledge its adaptor."""
        return self.embedding.extractors

    def call(self, features: Mapping[str, Any], training: bool | None = None) -> Any:
        seen = self._seen_by_backbone(features)
        embeddings = self.embedding(seen, training=training)
        masks = {}
        for group, members in self._seen_groups.items():
            masks[group] = seen[members[0].name] != MISSING_INDEX
        logit = self.output_layer(self.core(embeddings, masks, training=training))
        if self.user_knowledge is None:
            return logit
        compared = features
        if not all(name in features for name in self.user_knowledge.names):
            compared = self.compare_histories(features)
        return logit + tf.cast(self.user_knowledge(compared), logit.dtype)

    def compare_histories(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what `user_knowledge` is called with, of features as of the call: each `(batch, n)`, under its own name.

        Features may hold it already, and it is then not computed again: it depends on the row and on the store, not on what
        is trained, so training computes it once for all epochs.
        """
        assert self.user_knowledge is not None
        profiles = {
            feature.name: self.embedding.profiles(feature, features)
            for feature in self.user_knowledge.profiled_features()
        }
        return self.user_knowledge.compare(profiles, features)

    def comparison_fingerprint(self) -> str:
        """Returns what tells one way of `compare_histories` from another, a SHA-256 in hexadecimal."""
        assert self.user_knowledge is not None
        told = hashlib.sha256(repr((self.user_knowledge.sharpness, self.compute_dtype)).encode())
        for entity, profiles in self.embedding.entity_profiles.items():
            told.update(str(self.embedding.lookups[entity].tables().fingerprint).encode())
            for weight in profiles.get_weights():
                told.update(weight.tobytes())
        return told.hexdigest()

    def _seen_by_backbone(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """The features, with no more of the histories than the backbone sees."""
        cut = {part: length for name, length in self.seen_lengths.items() for part in (name, rows_name(name))}
        return {name: value[:, : cut[name]] if name in cut else value for name, value in features.items()}

    def compute_loss(self, inputs: tuple[Mapping[str, Any], Any], training: bool = False) -> Any:
        features, labels = inputs
        return self.task(
            labels=labels[:, None], predictions=self(features, training=training), compute_metrics=not training
        )

    def serving_inputs(self) -> dict[str, tf.TensorSpec]:
        """Returns name, dtype and shape of each raw input when served."""
        return self.indexer.input_specs()

    def serving_defaults(self) -> dict[str, Any]:
        """Returns for each raw input what stands for "no value", as in training."""
        return {feature.name: feature.missing for feature in self.indexer.schema.features}

    def knowledge_inputs(self) -> dict[str, tf.TensorSpec]:
        """Returns the inputs by which knowledge comes with a request.

        For each categorical feature that names entities with knowledge these are `<feature>_chunks`, float32 `(batch,
        fields, chunks, width)`, and `<feature>_mask`, bool `(batch, fields, chunks)`.
        """
        specs = {}
        for name, shape in self._features_with_knowledge().items():
            specs[f"{name}_chunks"] = tf.TensorSpec([None, *shape], tf.float32, name=f"{name}_chunks")
            specs[f"{name}_mask"] = tf.TensorSpec([None, *shape[:-1]], tf.bool, name=f"{name}_mask")
        return specs

    def _features_with_knowledge(self) -> dict[str, tuple[int, int, int]]:
        """The categorical features that name entities with knowledge, each with its fields, chunks and width."""
        return {
            feature.name: self.embedding.lookups[feature.entity].shape
            for feature in self.schema.features
            if feature.kind == "categorical" and feature.entity in self.embedding.lookups
        }

    def serve(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `probability` and `logit`, each `(batch,)`, of raw features: what a SavedModel of this model does.

        With the further inputs of `knowledge_inputs`, the rows whose mask is true anywhere take the vectors given, and
        the others the store's.
        """
        indexed = self.indexer(features)
        for name in self._features_with_knowledge():
            if f"{name}_chunks" in features:
                indexed[chunks_name(name)] = tf.convert_to_tensor(features[f"{name}_chunks"])
                indexed[mask_name(name)] = tf.convert_to_tensor(features[f"{name}_mask"])
        logit = self(indexed, training=False)[:, 0]
        return {"probability": tf.sigmoid(logit), "logit": logit}

    def bakeable_tables(self) -> list[BakeableEntity]:
        """Returns for each kind of entity with knowledge what can be computed ahead: see `kser_tf.serving.baking`."""
        return [BakeableEntity(entity, self.indexer, self.embedding) for entity in self.embedding.lookups]

    def get_config(self) -> dict[str, Any]:
        return {"config": dataclasses.asdict(self.config)}


def _seen_by_backbone(schema: DatasetSchema, length: int | Mapping[str, int] | None) -> DatasetSchema:
    """The schema with the histories that `RankingModelConfig.backbone_history` leaves of it."""
    if length is None:
        return schema
    groups = schema.groups()
    lengths = dict(length) if isinstance(length, Mapping) else dict.fromkeys(groups, length)
    least = 0 if isinstance(length, Mapping) else 1
    if unknown := set(lengths) - set(groups):
        raise ConfigError(
            f"backbone_history names {sorted(unknown)[0]!r}, and the groups of sequence features are: {', '.join(groups)}."
        )
    if min(lengths.values(), default=least) < least:
        raise ConfigError(
            f"backbone_history must be at least 1, or None for all; of a group by name it may be 0. Received: {length}"
        )
    cut = {
        feature.name: min(lengths[group], feature.length or 0)
        for group, features in groups.items()
        if group in lengths
        for feature in features
    }
    features = tuple(
        dataclasses.replace(feature, length=cut[feature.name]) if feature.name in cut else feature
        for feature in schema.features
        if cut.get(feature.name) != 0
    )
    kept = {feature.vocabulary for feature in features}
    vocabularies = {name: values for name, values in schema.vocabularies.items() if name in kept}
    return dataclasses.replace(schema, features=features, vocabularies=vocabularies)


def _l2(weight: float) -> Any:
    return tf.keras.regularizers.L2(weight) if weight else None
