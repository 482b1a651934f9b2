"""FeatureIndexer: from raw values to what a ranking model computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers import KnowledgeLookup
from kser_tf.layers.row_numbers import RowNumbers
from kser_tf.layers.untracked import Untracked
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
        self._types = {name: types[name] for name in schema.vocabularies}
        self._vocabularies = {name: _index_table(values, types[name]) for name, values in schema.vocabularies.items()}
        # While a model is exported: for some vocabularies what is looked up instead.
        self._served: Any = Untracked({})

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
            indexed[feature.name] = self.indices(feature.vocabulary, values)
            if feature.entity in self._lookups and feature.vocabulary not in self._served.value:
                indexed[rows_name(feature.name)] = self._lookups[feature.entity].rows(values)
        return indexed

    def indices(self, vocabulary: str, values: Any) -> Any:
        """Returns the int32 index of each value in a vocabulary; or, where it is baked, its row in the baked table."""
        table = self._served.value.get(vocabulary)
        return tf.cast(self._vocabularies[vocabulary].lookup(values), tf.int32) if table is None else table.rows(values)

    def serve_rows(self, vocabulary: str, table: Any | None) -> None:
        """Looks up a vocabulary's values in a `BakedTable` from now on; `None` for its indices, as before."""
        others = {name: served for name, served in self._served.value.items() if name != vocabulary}
        self._served.value = others if table is None else {**others, vocabulary: table}

    @contextlib.contextmanager
    def vocabularies_in_variables(self) -> Iterator[list[Any]]:
        """Has the vocabularies that are not baked in variables for the block, and not in the graph as constants.

        A SavedModel's graph then does not grow with them (see `RowNumbers`).

        Yields:
            The look-up tables, to be tracked.
        """
        before = self._vocabularies
        names = [name for name in before if name not in self._served.value]
        tables = {
            name: _index_table(self.schema.vocabularies[name], self._types[name], in_variable=True) for name in names
        }
        # Past `tf.Module`'s bookkeeping, which would hold on to them.
        self.__dict__["_vocabularies"] = {**before, **tables}
        try:
            yield list(tables.values())
        finally:
            self.__dict__["_vocabularies"] = before


def vocabulary_rows(ids: np.ndarray, vocabulary: list[Any]) -> np.ndarray:
    """Returns for each id of a store its index in a vocabulary, int32 `(len(ids),)`."""
    index = {value: i + FIRST_INDEX for i, value in enumerate(vocabulary)}
    return np.array([index.get(value, UNKNOWN_INDEX) for value in ids.tolist()], np.int32).reshape(-1)


def _index_table(values: list[Any], feature: Feature, *, in_variable: bool = False) -> tf.lookup.StaticHashTable:
    dtype = TENSORFLOW_TYPES[feature.dtype]
    keys = tf.constant([feature.missing, *values], dtype)
    if in_variable:
        ids = tf.Variable(keys, trainable=False, name=f"{feature.vocabulary}_vocabulary")
        return tf.lookup.StaticHashTable(RowNumbers(ids, skip=UNKNOWN_INDEX), UNKNOWN_INDEX)
    indices = tf.constant([MISSING_INDEX, *range(FIRST_INDEX, FIRST_INDEX + len(values))], tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, indices), UNKNOWN_INDEX)


def _of_length(values: Any, feature: Feature) -> Any:
    """Cuts `(batch, n)` to the feature's length, or pads it with missing values."""
    values = values[:, : feature.length]
    padding = feature.length - tf.shape(values)[1]
    values = tf.pad(values, [[0, 0], [0, padding]], constant_values=feature.missing)
    return tf.ensure_shape(values, [None, feature.length])
