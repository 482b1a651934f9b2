"""What the columns of a prepared data set are: the contract between `prepare`, the ranking models and serving."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kser_tf.errors import DataError
from kser_tf.files import read_json, sha256_of_json, write_json

FORMAT_VERSION = 1
SCHEMA_FILE = "dataset.json"
VOCABULARY_FOLDER = "vocabularies"
# What users did before all their examples; no model is given its rows.
HISTORY_ONLY_FILE = "history_only.parquet"
SPLITS = ("train", "validation", "test")

# Columns of a prepared table beside the features; they describe a row and are never given to a model.
LABEL = "label"
TIMESTAMP = "timestamp"
ITEM_TRAINING_ROWS = "item_training_rows"
ITEM_IS_COLD = "item_is_cold"
USER_INTERACTIONS = "user_interactions"

# What stands for "no value": in a request, in a sequence's padding, and in the prepared tables.
MISSING_INTEGER = -1
MISSING_STRING = ""

# Indices that every vocabulary begins with.
MISSING_INDEX = 0
UNKNOWN_INDEX = 1
FIRST_INDEX = 2

Kind = Literal["categorical", "numeric", "multi", "sequence"]
# "knowledge": no input, but a further field that a backbone gets, made of the candidate's knowledge.
FieldKind = Literal["categorical", "numeric", "multi", "sequence", "knowledge"]
DType = Literal["int64", "string", "float32"]


@dataclass(frozen=True)
class Feature:
    """One input of a ranking model, by its name in a table and in a request.

    Args:
        name: str. The column in the prepared tables, and the input's name when served.
        kind: `"categorical"` (one value), `"numeric"` (one number), `"multi"` (a set of values, such as genres) or `"sequence"`
            (behaviour, the most recent first). In the schema that a backbone is given also `"knowledge"`.
        dtype: `"int64"` or `"string"`; `"float32"` for numeric features alone.
        length: int. The most values of a multi or sequence feature; shorter ones are padded at the end with the missing value
            (-1 or the empty string).
        vocabulary: str. The vocabulary's name. Features with the same vocabulary share one embedding (candidate and history).
        entity: str. The kind of entity that the values name, if they do: its knowledge store is looked up by them.
        group: str. Sequence features of one group belong together position by position (ids, ratings).
        mean: float. Numeric features: mean over the training part.
        std: float. Numeric features: standard deviation over the training part; 1 where it is zero.
    """

    name: str
    kind: FieldKind
    dtype: DType
    length: int | None = None
    vocabulary: str | None = None
    entity: str | None = None
    group: str | None = None
    mean: float = 0.0
    std: float = 1.0

    @property
    def missing(self) -> int | str | float:
        """What stands for "no value" in this feature's column and in requests."""
        if self.dtype == "int64":
            return MISSING_INTEGER
        return MISSING_STRING if self.dtype == "string" else float("nan")


@dataclass(frozen=True)
class DatasetSchema:
    """The columns of a prepared data set.

    Args:
        features: The model's inputs.
        user_id: str. The column that names the user: it groups rows for GAUC, and is a feature only if listed in `features`.
        item_id: str. The feature that names the candidate item.
        vocabularies: For each vocabulary its values, most frequent in the training part first.
        splits: For each of train, validation, test: `{"rows": int, "positives": int}`.
        protocol: What was done to the log, for the record.
    """

    features: tuple[Feature, ...]
    user_id: str
    item_id: str
    vocabularies: dict[str, list[Any]] = field(repr=False)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def feature(self, name: str) -> Feature:
        """Returns the feature called `name`; `DataError` if there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise DataError(f"no feature is called {name!r}. There are: {', '.join(f.name for f in self.features)}")

    def groups(self) -> dict[str, list[Feature]]:
        """Returns the sequence features, group by group; what belongs to the candidate's vocabulary comes first in its group."""
        candidate = self.feature(self.item_id)
        found: dict[str, list[Feature]] = {}
        for feature in self.features:
            if feature.kind == "sequence":
                found.setdefault(feature.group or feature.name, []).append(feature)
        return {
            name: sorted(features, key=lambda f: f.vocabulary != candidate.vocabulary)
            for name, features in found.items()
        }

    def attended_groups(self) -> list[str]:
        """Returns the groups whose items can be compared with the candidate, since they are of one vocabulary."""
        vocabulary = self.feature(self.item_id).vocabulary
        return [name for name, features in self.groups().items() if features[0].vocabulary == vocabulary]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over features and vocabularies: models trained on equal fingerprints take the same inputs."""
        return sha256_of_json(
            {
                "features": [_without_nan(dataclasses.asdict(f)) for f in self.features],
                "vocabularies": self.vocabularies,
            }
        )

    def save(self, folder: str | Path) -> None:
        """Writes `dataset.json` and `vocabularies/<name>.json` into `folder`."""
        folder = Path(folder)
        for name, values in self.vocabularies.items():
            write_json(folder / VOCABULARY_FOLDER / f"{name}.json", values)
        write_json(
            folder / SCHEMA_FILE,
            {
                "format_version": FORMAT_VERSION,
                "features": [dataclasses.asdict(f) for f in self.features],
                "user_id": self.user_id,
                "item_id": self.item_id,
                "vocabularies": sorted(self.vocabularies),
                "splits": self.splits,
                "protocol": self.protocol,
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> DatasetSchema:
        """Reads what `save` wrote.

        Raises:
            DataError: The folder holds no prepared data set, or one of another format version.
        """
        folder = Path(folder)
        if not (folder / SCHEMA_FILE).is_file():
            raise DataError(
                f"{folder} holds no prepared data set: {SCHEMA_FILE} is missing. Make one with `kser-tf prepare`."
            )
        content = read_json(folder / SCHEMA_FILE)
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{folder / SCHEMA_FILE}: format version {content.get('format_version')!r}, expected {FORMAT_VERSION}. "
                "Run `kser-tf prepare` again."
            )
        return cls(
            features=tuple(Feature(**f) for f in content["features"]),
            user_id=content["user_id"],
            item_id=content["item_id"],
            vocabularies={
                name: read_json(folder / VOCABULARY_FOLDER / f"{name}.json") for name in content["vocabularies"]
            },
            splits=content["splits"],
            protocol=content["protocol"],
        )


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: (None if value != value else value) for key, value in values.items()}
