"""UserKnowledge: what the knowledge of a user's past says of the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers import HistoryLikeness
from kser_tf.layers.history_likeness import joined_feedback
from kser_tf.layers.preferences import Past
from kser_tf.models.feature_indexer import rows_name
from kser_tf.schema import FIRST_INDEX, MISSING_INDEX, DatasetSchema, Feature

# The most values of a history's further feature that are told apart: the most frequent ones. The others count as one.
_MOST_VALUES = 32


def compared_name(group: str) -> str:
    """The name under which what was compared ahead goes beside the indexed features, for a group of sequence features."""
    return f"{group}/compared"


class UserKnowledge(tf.keras.layers.Layer):
    """Corrects the logit by what the user thought of the items whose knowledge is like the candidate's.

    For each group of sequence features that begins with items of the candidate's vocabulary there is a `HistoryLikeness`;
    the group's further features (ratings, say) are the feedback, one number for each value, 1 where it stands.

    Args:
        schema: The prepared data set's columns.
        profile_width: int. Of the profiles that are compared.

    Call arguments:
        compared: What `compare` returns.

    Returns:
        The correction, `(batch, 1)`; 0 at the start, and always for candidates of which nothing is known.
    """

    def __init__(self, schema: DatasetSchema, profile_width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schema = schema
        self.profile_width = profile_width
        groups = schema.groups()
        self._groups = {name: groups[name] for name in schema.attended_groups()}
        self._likeness = {name: HistoryLikeness(name=f"{name}_likeness") for name in self._groups}
        self._values = {
            feature.name: min(_MOST_VALUES, FIRST_INDEX + len(schema.vocabularies[feature.vocabulary or ""]))
            for features in self._groups.values()
            for feature in features[1:]
        }

    @property
    def groups(self) -> list[str]:
        """The groups of sequence features that are compared."""
        return list(self._groups)

    @property
    def names(self) -> list[str]:
        """The names of what is compared."""
        return [compared_name(group) for group in self._groups]

    @property
    def sharpness(self) -> tuple[float, ...]:
        """Of each `HistoryLikeness`."""
        return next(iter(self._likeness.values())).sharpness

    def profiled_features(self) -> list[Feature]:
        """Returns the features whose entities' profiles are compared: the candidate, then each group's items."""
        return [self.schema.feature(self.schema.item_id), *(features[0] for features in self._groups.values())]

    def compare(self, profiles: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
        """Returns under `compared_name` of each group what `HistoryLikeness.compare` makes of it: no weight is in it.

        Args:
            profiles: For each of `profiled_features` what `FeatureEmbedding.profiles` returns.
            features: What `FeatureIndexer` returns.
        """
        candidate = profiles[self.schema.item_id]
        compared = {}
        for name, (items, *further) in self._groups.items():
            there = features[items.name] != MISSING_INDEX
            feedback = self._feedbacks(further, features, there)
            compared[compared_name(name)] = self._likeness[name].compare(
                candidate, profiles[items.name], feedback, there
            )
        return compared

    def past(self, group: str, features: Mapping[str, Any], labels: Any) -> Past:
        """Returns examples of one of the groups as `adapt_to_preferences` takes them.

        Args:
            group: One of `groups`.
            features: What `FeatureIndexer` returns.
            labels: `(batch,)`.
        """
        items, *further = self._groups[group]
        there = features[items.name] != MISSING_INDEX
        return Past(
            features[rows_name(self.schema.item_id)],
            features[rows_name(items.name)],
            there,
            self._feedbacks(further, features, there),
            labels,
        )

    def _feedbacks(self, further: Sequence[Feature], features: Mapping[str, Any], there: Any) -> Any:
        return joined_feedback([self._feedback(feature, features) for feature in further], there, self.compute_dtype)

    def _feedback(self, feature: Feature, features: Mapping[str, Any]) -> Any:
        count = self._values[feature.name]
        values = tf.minimum(features[feature.name], count - 1)
        return tf.ensure_shape(tf.one_hot(values, count, dtype=self.compute_dtype), [None, None, count])

    def build(self, input_shape: Any = None) -> None:
        profile = self.profile_width
        for name, (_, *further) in self._groups.items():
            feedback = sum(self._values[feature.name] for feature in further)
            with tf.name_scope(self._likeness[name].name):
                self._likeness[name].build((None, profile), (None, None, profile), (None, None, feedback))
        self.built = True

    def call(self, compared: Mapping[str, Any]) -> Any:
        return tf.add_n([likeness.correct(compared[compared_name(name)]) for name, likeness in self._likeness.items()])


class AllGroups:
    """Examples as `adapt_to_preferences` takes them, once with each group of histories.

    Args:
        knowledge: Whose groups.
        examples: Batches of `(features, labels)`, the features as `FeatureIndexer` makes them.
    """

    def __init__(self, knowledge: UserKnowledge, examples: Iterable[tuple[Mapping[str, Any], Any]]) -> None:
        self._knowledge, self._examples = knowledge, examples

    def __iter__(self) -> Iterator[Past]:
        for features, labels in self._examples:
            for group in self._knowledge.groups:
                yield self._knowledge.past(group, features, labels)
