"""FeatureIndexer: from raw values to what a ranking model computes with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers import KnowledgeLookup
from kser_tf.schema import FIRST_INDEX, MISSING_INDEX, UNKNOWN_INDEX, DatasetSchema, Feature

TENSORFLOW_TYPES = {"int64": tf.int64, "string": tf.string, "float32": tf.float32}


def rows_name(feature: str) -> str:
    """The name under which the knowledge store's rows of an entity feature go beside its indices."""
    return f"{feature}/row"


class FeatureIndexer(tf.Module):
    """Turns raw features into indices, store rows and standardised numbers; the one way for training and for serving.

    Index 0 is a missing value (padding too), 1 one that the vocabulary does not hold, the vocabulary begins at 2. A feature
    that names entities with a knowledge store also gives the store's rows (-1 for none). Numbers are standardised with the
    training part's mean and deviation; a missing number (NaN) becomes 0, the mean.

    Args:
        schema: The prepared data set's columns.
        lookups: For each kind of entity with knowledge its `KnowledgeLookup`.
    """

    def __init__(self, schema: DatasetSchema, lookups: Mapping[str, KnowledgeLookup] | None = None) -> None:
        super().__init__(name="feature_indexer")
        self.schema = schema
        self._lookups = dict(lookups or {})
        types = {feature.vocabulary: feature for feature in schema.features if feature.vocabulary is not None}
        self._vocabularies = {name: _index_table(values, types[name]) for name, values in schema.vocabularies.items()}

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns name, dtype and shape of each raw feature: `(batch,)`, or `(batch, any)` for multi and sequence features."""
        return {
            feature.name: tf.TensorSpec(
                [None] if feature.length is None else [None, None], TENSORFLOW_TYPES[feature.dtype], name=feature.name
            )
            for feature in self.schema.features
        }

    def __call__(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Indexes a batch.

        Args:
            features: For each feature of the schema `(batch,)` or, for multi and sequence features, `(batch, n)`: padded
                with missing values at the end, of any length (cut to the feature's own). Others are ignored.

        Returns:
            For each feature int32 indices or float32 numbers, `(batch,)` or `(batch, length)`, and for entity features
            with knowledge the int32 rows under `rows_name(feature)`.
        """
        return self.index(features, self.schema.features)

    def index(self, raw: Mapping[str, Any], features: Iterable[Feature]) -> dict[str, Any]:
        """Does the same for some of the schema's features."""
        indexed = {}
        for feature in features:
            values = tf.convert_to_tensor(raw[feature.name], TENSORFLOW_TYPES[feature.dtype])
            if feature.length is not None:
                values = _of_length(values, feature)
            if feature.kind == "numeric":
                standard = (values - feature.mean) / feature.std
                indexed[feature.name] = tf.where(tf.math.is_finite(standard), standard, tf.zeros_like(standard))
                continue
            assert feature.vocabulary is not None
            indexed[feature.name] = tf.cast(self._vocabularies[feature.vocabulary].lookup(values), tf.int32)
            if feature.entity in self._lookups:
                indexed[rows_name(feature.name)] = self._lookups[feature.entity].rows(values)
        return indexed


def vocabulary_rows(ids: np.ndarray, vocabulary: list[Any]) -> np.ndarray:
    """Returns for each id of a store its index in a vocabulary, int32 `(len(ids),)`."""
    index = {value: i + FIRST_INDEX for i, value in enumerate(vocabulary)}
    return np.array([index.get(value, UNKNOWN_INDEX) for value in ids.tolist()], np.int32).reshape(-1)


def _index_table(values: list[Any], feature: Feature) -> tf.lookup.StaticHashTable:
    dtype = TENSORFLOW_TYPES[feature.dtype]
    keys = tf.constant([feature.missing, *values], dtype)
    indices = tf.constant([MISSING_INDEX, *range(FIRST_INDEX, FIRST_INDEX + len(values))], tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, indices), UNKNOWN_INDEX)


def _of_length(values: Any, feature: Feature) -> Any:
    """Cuts `(batch, n)` to the feature's length, or pads it with missing values."""
    values = values[:, : feature.length]
    padding = feature.length - tf.shape(values)[1]
    values = tf.pad(values, [[0, 0], [0, padding]], constant_values=feature.missing)
    return tf.ensure_shape(values, [None, feature.length])
