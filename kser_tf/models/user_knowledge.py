"""UserKnowledge: what the knowledge of a user's past says of the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kser_tf.layers import HistoryLikeness
from kser_tf.layers.gather_few import FEW_ROWS, gather_few
from kser_tf.schema import FIRST_INDEX, MISSING_INDEX, DatasetSchema, Feature

# Width of what stands for a value of a history's further features, such as a rating.
_FEEDBACK_WIDTH = 4


class UserKnowledge(tf.keras.layers.Layer):
    """Corrects the logit by what the user thought of the items whose knowledge is like the candidate's.

    For each group of sequence features that begins with items of the candidate's vocabulary there is a `HistoryLikeness`;
    the group's further features (ratings, say) are the feedback, each value in a few learned numbers.

    Args:
        schema: The prepared data set's columns.
        num_heads: int. Of each `HistoryLikeness`.

    Call arguments:
        profiles: For the candidate and the first feature of each group what `FeatureEmbedding.profiles` returns.
        features: What `FeatureIndexer` returns.

    Returns:
        The correction, `(batch, 1)`; 0 at the start, and always for candidates of which nothing is known.
    """

    def __init__(self, schema: DatasetSchema, num_heads: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schema = schema
        groups = schema.groups()
        self._groups = {name: groups[name] for name in schema.attended_groups()}
        self._likeness = {name: HistoryLikeness(num_heads, name=f"{name}_likeness") for name in self._groups}
        self._feedback = {
            feature.name: self.add_weight(
                name=f"{feature.name}_feedback",
                shape=(FIRST_INDEX + len(schema.vocabularies[feature.vocabulary or ""]), _FEEDBACK_WIDTH),
                initializer=tf.keras.initializers.RandomNormal(stddev=0.5),
            )
            for features in self._groups.values()
            for feature in features[1:]
        }

    def profiled_features(self) -> list[Feature]:
        """Returns the features whose entities' profiles are compared: the candidate, then each group's items."""
        return [self.schema.feature(self.schema.item_id), *(features[0] for features in self._groups.values())]

    def call(self, profiles: Mapping[str, Any], features: Mapping[str, Any]) -> Any:
        candidate = profiles[self.schema.item_id]
        corrections = []
        for name, (items, *further) in self._groups.items():
            there = features[items.name] != MISSING_INDEX
            parts = [self._of_values(feature, features) for feature in further]
            feedback = tf.concat(parts or [tf.cast(there, self.compute_dtype)[..., None]], -1)
            corrections.append(self._likeness[name](candidate, profiles[items.name], feedback, mask=there))
        return tf.add_n(corrections)

    def _of_values(self, feature: Feature, features: Mapping[str, Any]) -> Any:
        table = self._feedback[feature.name]
        # Times one: the gradient of a product is dense, and Adam would sort and add up a sparse one, which takes longer.
        gather = gather_few if table.shape[0] <= FEW_ROWS else lambda rows, indices: tf.gather(1.0 * rows, indices)
        return gather(table, features[feature.name])
