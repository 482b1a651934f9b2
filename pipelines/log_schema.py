"""What the columns of a log are, as its owner declares them in YAML."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from kser_tf.errors import ConfigError
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.log_rule import Rule
from kser_tf.schema import ITEM_IS_COLD, ITEM_TRAINING_ROWS, LABEL, TIMESTAMP, USER_INTERACTIONS, DType, Feature, Kind

IdType = Literal["int64", "string"]

# Names become names of model inputs and of files: TensorFlow takes ASCII alone. The column itself may be called
# anything.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED_NAMES = (LABEL, TIMESTAMP, ITEM_TRAINING_ROWS, ITEM_IS_COLD, USER_INTERACTIONS)

# For each kind of feature the keys that mean something, beside `name`, `kind` and `column`.
_KEYS_OF_KIND: dict[str, tuple[str, ...]] = {
    "categorical": ("dtype", "vocabulary", "entity", "min_count"),
    "numeric": ("dtype",),
    "multi": ("dtype", "separator", "length", "vocabulary", "entity", "min_count"),
    "sequence": (
        *("dtype", "separator", "length", "newest", "of", "where", "history_only", "vocabulary", "entity", "group"),
        "min_count",
    ),
}


@dataclass(frozen=True, kw_only=True)
class UserId:
    """The column that names the user.

    It groups interactions. To make it a feature with an embedding of its own, list it in `features`; for knowledge about
    users alone, give `entity`.

    Args:
        column: str. The column of the log.
        dtype: `"int64"` (not negative) or `"string"`. Defaults to `"string"`.
        name: str. Its name in the prepared tables. Defaults to `column`.
        entity: str. The kind of entity, such as `"user"`: makes the id a feature by which the knowledge store of users is
            looked up. Its vocabulary stays empty, so that no user has an embedding: of those that a model was trained on
            it would learn by heart, and of others know nothing. Defaults to none: the id is no feature.
    """

    __pydantic_config__ = STRICT_KEYS

    column: str
    dtype: IdType = "string"
    name: str | None = None
    entity: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name or self.column)


@dataclass(frozen=True, kw_only=True)
class ItemId:
    """The column that names the candidate item; it is always a feature.

    Args:
        column: str. The column of the log.
        dtype: `"int64"` (not negative) or `"string"`. Defaults to `"string"`.
        name: str. The feature's name. Defaults to `column`.
        entity: str. The kind of entity; its knowledge store is looked up by the item's id. Defaults to `"item"`.
        min_count: int. Items seen less often in the training part get no place in the vocabulary. Defaults to 1.
    """

    __pydantic_config__ = STRICT_KEYS

    column: str
    dtype: IdType = "string"
    name: str | None = None
    entity: str = "item"
    min_count: int = 1

    def __post_init__(self) -> None:
        _check_name(self.name or self.column)
        _check_positive("min_count", self.min_count)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is to be predicted: a column that holds it, or a rule over columns. Give one of the two.

    Args:
        column: str. A column of 0 and 1, or of false and true.
        rule: str. A rule such as `"rating > 3"`; a row that satisfies it is a positive.
    """

    __pydantic_config__ = STRICT_KEYS

    column: str | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        if (self.column is None) == (self.rule is None):
            raise ConfigError('a label needs either `column` or `rule`, such as {rule: "rating > 3"}.')
        if self.rule is not None:
            _ = Rule(self.rule).columns


@dataclass(frozen=True, kw_only=True)
class LogFeature:
    """A feature taken from a column, or a sequence built from the user's own earlier interactions.

    Args:
        name: str. The feature's name in the prepared tables and in requests: ASCII letters, digits and underscores.
        kind: `"categorical"`, `"numeric"`, `"multi"` (a set of values) or `"sequence"` (behaviour).
        column: str. The column it is read from. Defaults to `name`.
        dtype: `"int64"` (not negative; -1 means missing) or `"string"`; `"float32"` for numeric features. Defaults to
            `"string"`; for a sequence built of a feature to that feature's.
        separator: str. Between the values of a multi or sequence column that is text. Lists in Parquet are taken as
            they are.
        length: int. The most values that are kept; multi and sequence features need it.
        newest: `"first"` or `"last"`: which end of a sequence column is the most recent. Defaults to `"first"`.
        of: str. Builds the sequence from the user's strictly earlier interactions: the name of a categorical feature
            (the item's id among them) or of a column of the log.
        where: str. Rule that an earlier interaction must satisfy to enter a built sequence, such as `"label == 1"`.
        history_only: bool. Whether a built sequence holds only those interactions that `prepare` sets apart as history
            (`history_only`): what users began with, the same for all examples of a user. Defaults to `False`.
        vocabulary: str. Features with the same one share their values and their embedding. Defaults to that of the
            feature it is built of, or to `name`.
        entity: str. The kind of entity that the values name. Defaults to that of the feature it is built of, or to
            none.
        group: str. Sequences of one group belong together position by position: same `length`, `where` and
            `history_only`.
        min_count: int. Values seen less often in the training part get no place in the vocabulary; of features that
            share one the largest counts. Defaults to 1.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    kind: Kind
    column: str | None = None
    dtype: DType | None = None
    separator: str | None = None
    length: int | None = None
    newest: Literal["first", "last"] = "first"
    of: str | None = None
    where: str | None = None
    history_only: bool = False
    vocabulary: str | None = None
    entity: str | None = None
    group: str | None = None
    min_count: int = 1

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.name in _RESERVED_NAMES:
            raise ConfigError(
                f"`{self.name}` is taken by a column of the prepared tables. Choose another `name`; `column` may stay."
            )
        if self.vocabulary is not None:
            _check_name(self.vocabulary)
        self._check_keys()
        if (self.kind == "numeric") != (self.dtype == "float32") and self.dtype is not None:
            raise ConfigError(
                f"feature `{self.name}`: dtype {self.dtype} does not go with kind {self.kind}. float32 is for numeric "
                "features, and they have no other."
            )
        if self.kind in ("multi", "sequence"):
            if self.length is None:
                raise ConfigError(
                    f"feature `{self.name}`: a {self.kind} feature needs `length`, the most values that are kept."
                )
            _check_positive("length", self.length)
        if self.separator == "":
            raise ConfigError(f"feature `{self.name}`: `separator` is empty.")
        _check_positive("min_count", self.min_count)
        if self.where is not None:
            _ = Rule(self.where).columns

    def _check_keys(self) -> None:
        known = {"name", "kind", "column", *_KEYS_OF_KIND[self.kind]}
        given = {
            f.name
            for f in dataclasses.fields(self)
            if f.default is not dataclasses.MISSING and getattr(self, f.name) != f.default
        }
        without_meaning = sorted(given - known)
        if self.of is not None:
            without_meaning += sorted(given & {"column", "separator", "newest"})
        else:
            without_meaning += sorted(given & {"where", "history_only"})
        if without_meaning:
            what = "built sequence (`of`)" if self.of is not None else f"{self.kind} feature read from a column"
            raise ConfigError(
                f"feature `{self.name}`: `{without_meaning[0]}` means nothing for a {what}. Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """A table of items or of users, joined to the log by id. An id that it lacks has missing values.

    Args:
        id: str. The table's column that holds the id. Defaults to the name of the log's column.
        features: The features that are read from it.
    """

    __pydantic_config__ = STRICT_KEYS

    features: tuple[LogFeature, ...]
    id: str | None = None

    def __post_init__(self) -> None:
        for feature in self.features:
            if feature.of is not None:
                raise ConfigError(
                    f"feature `{feature.name}`: a sequence is built from the log, not from a side table. Move it to "
                    "the log's `features`."
                )


@dataclass(frozen=True, kw_only=True)
class LogSchema:
    """The columns of a log of interactions, one row each.

    Args:
        user_id: Who.
        item_id: What was shown: the candidate.
        label: What came of it.
        timestamp: str. The column that says when: numbers, or ISO 8601 datetimes (UTC where they name no zone). Without
            one, the rows' order in the files is the order of time.
        features: Features from the log itself, and sequences built from it.
        items: The table of items, if there is one.
        users: The table of users, if there is one.
        delimiter: str. Between the columns of CSV files. Defaults to a comma, in `.tsv` files a tab.
        encoding: str. Of CSV files. Defaults to `"utf-8"`.
    """

    __pydantic_config__ = STRICT_KEYS

    user_id: UserId
    item_id: ItemId
    label: Label
    timestamp: str | None = None
    features: tuple[LogFeature, ...] = ()
    items: SideTable | None = None
    users: SideTable | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        self._check_id_names()
        _check_vocabularies(self.resolve())
        _check_groups(self.features + self.side_features)

    def _check_id_names(self) -> None:
        user = self.user_name
        for name in (user, self.item_name):
            if name in _RESERVED_NAMES:
                raise ConfigError(f"`{name}` is taken by a column of the prepared tables. Give the id another `name`.")
        if user == self.item_name:
            raise ConfigError(
                f"the user's and the item's id are both called `{user}`. Give one of them another `name`."
            )
        # The user's id may be a feature as well, and then it is one column in the prepared tables.
        the_id = ("categorical", self.user_id.column, self.user_id.dtype)
        for feature in self.side_features + self.features:
            given = (feature.kind, feature.column or feature.name, feature.dtype or "string")
            if feature.name == user and (feature in self.side_features or given != the_id):
                raise ConfigError(
                    f"feature `{user}` has the name of the user's id without being it (categorical, "
                    f"{self.user_id.dtype}, from the log's column `{self.user_id.column}`). Give one of them another "
                    "`name`."
                )

    @property
    def item_name(self) -> str:
        """The name of the candidate's feature."""
        return self.item_id.name or self.item_id.column

    @property
    def user_name(self) -> str:
        """The name of the user's column in the prepared tables."""
        return self.user_id.name or self.user_id.column

    @property
    def empty_vocabularies(self) -> set[str]:
        """The vocabularies of ids that are looked up in a knowledge store and have no embeddings."""
        return set() if self.user_id.entity is None else {self.user_name}

    @property
    def side_features(self) -> tuple[LogFeature, ...]:
        """The features from the side tables."""
        return tuple(feature for table in (self.items, self.users) if table is not None for feature in table.features)

    def resolve(self) -> list[Feature]:
        """Returns the features as the model will know them: the candidate, the user, the items', the users', the log's own.

        Raises:
            ConfigError: A built sequence is `of` something that cannot be put in sequence.
        """
        item = self.item_id
        candidate = Feature(self.item_name, "categorical", item.dtype, vocabulary=self.item_name, entity=item.entity)
        known = {self.item_name: candidate}
        ids = [self.item_name]
        if (entity := self.user_id.entity) is not None:
            name, dtype = self.user_name, self.user_id.dtype
            known[name] = Feature(name, "categorical", dtype, vocabulary=name, entity=entity)
            ids.append(name)
        kinds = {feature.name: feature.kind for feature in self.side_features + self.features}
        # Built sequences last of all, since they take their defaults from the others.
        for feature in sorted(self.side_features + self.features, key=lambda feature: feature.of is not None):
            source_name = self.source_of(feature)
            if kinds.get(source_name or "", "categorical") != "categorical":
                raise ConfigError(
                    f"feature `{feature.name}`: a sequence is built of a categorical feature or of a column, and "
                    f"`{source_name}` is {kinds[str(source_name)]}."
                )
            source = known.get(source_name or "")
            if source is not None and feature.dtype not in (None, source.dtype):
                raise ConfigError(
                    f"feature `{feature.name}`: it is built of `{source.name}`, which is {source.dtype}, not "
                    f"{feature.dtype}. Leave `dtype` out."
                )
            known[feature.name] = _resolve(feature, source)
        order = [*ids, *(feature.name for feature in self.side_features + self.features)]
        if len(set(order)) < len(order):
            twice = next(name for name in order if order.count(name) > 1)
            raise ConfigError(
                f"two features are called `{twice}`. Give one of them another `name`; `column` says where it is read "
                "from."
            )
        return [known[name] for name in order]

    def source_of(self, feature: LogFeature) -> str | None:
        """Returns the name of the feature that a sequence is built of; `None` if that is a mere column of the log."""
        names = {other.name for other in self.side_features + self.features}
        if feature.of in (self.item_name, self.item_id.column) and feature.of not in names:
            return self.item_name
        return feature.of if feature.of in names else None

    def min_counts(self) -> dict[str, int]:
        """Returns for each vocabulary how often a value has to be seen in training."""
        counts = {self.item_name: self.item_id.min_count}
        given = {feature.name: feature.min_count for feature in self.side_features + self.features}
        for feature in self.resolve():
            if feature.vocabulary is not None and feature.vocabulary not in self.empty_vocabularies:
                counts[feature.vocabulary] = max(counts.get(feature.vocabulary, 1), given.get(feature.name, 1))
        return counts


def _resolve(feature: LogFeature, source: Feature | None) -> Feature:
    if feature.kind == "numeric":
        return Feature(feature.name, "numeric", "float32")
    return Feature(
        feature.name,
        feature.kind,
        feature.dtype or (source.dtype if source else "string"),
        length=feature.length,
        vocabulary=feature.vocabulary or (source.vocabulary if source else feature.name),
        entity=feature.entity or (source.entity if source else None),
        group=feature.group,
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a model's input: it takes ASCII letters, digits and underscores, a letter "
            "first. Give a `name`; `column` may be anything."
        )


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"`{key}` must be at least 1. Received: {value}")


def _check_vocabularies(features: list[Feature]) -> None:
    first: dict[str, Feature] = {}
    for feature in features:
        if feature.vocabulary is None:
            continue
        other = first.setdefault(feature.vocabulary, feature)
        if other.dtype != feature.dtype:
            raise ConfigError(
                f"features `{other.name}` ({other.dtype}) and `{feature.name}` ({feature.dtype}) share the vocabulary "
                f"`{feature.vocabulary}` and so need the same dtype."
            )


def _check_groups(features: tuple[LogFeature, ...]) -> None:
    first: dict[str, LogFeature] = {}
    for feature in features:
        if feature.group is None:
            continue
        other = first.setdefault(feature.group, feature)
        if _belonging(other) != _belonging(feature):
            raise ConfigError(
                f"sequences `{other.name}` and `{feature.name}` are in the group `{feature.group}` and so need the "
                "same `length`, `where` and `history_only`, and are both built (`of`) or both read from columns."
            )


def _belonging(feature: LogFeature) -> tuple[Any, ...]:
    """What the features of a group have in common."""
    return feature.length, feature.where, feature.history_only, feature.of is None
