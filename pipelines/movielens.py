"""MovieLens: the folders as GroupLens publishes them (1M, 100K), and tensorflow-datasets' `movielens/1m-ratings`."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from kser_tf.errors import ConfigError, DataError, MissingExtraError
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.log import Source
from kser_tf.pipelines.log_schema import ItemId, Label, LogFeature, LogSchema, SideTable, UserId
from kser_tf.pipelines.log_tables import Table, check_columns, read_csv

TFDS_NAME = "movielens/1m-ratings"
_TFDS_BATCH = 65536

# The files of a release, in the order ratings, movies, users.
FILES_1M = ("ratings.dat", "movies.dat", "users.dat")
FILES_100K = ("u.data", "u.item", "u.user")

# Beside the ratings, where there is one: what else is known of each.
ROWS_FILE = "rows.parquet"

_RATING_COLUMNS = ["user_id", "movie_id", "rating", "timestamp"]
# The most genres of a film in either release.
_MOST_GENRES = 6
_YEAR = r".*\((\d{4})\)"

# What the numbers in 1M's `users.dat` stand for, by its README.
_OCCUPATIONS_1M = (
    "other/not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
# The columns of 100K's `u.item` after the first five: flags of these genres, by its README.
_GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
# tensorflow-datasets renames this genre; GroupLens' name is kept.
_TFDS_GENRES = {"Children": "Children's"}
# 1M gives a user's age as the least age of these brackets; 100K's ages are put into the same ones.
_AGE_BRACKETS = (1, 18, 25, 35, 45, 50, 56)


MovieLensFeature = Literal["genres", "year", "gender", "age", "occupation", "history_rating", "first_films", "user_id"]


@dataclass(frozen=True, kw_only=True)
class MovieLensConfig:
    """What can be chosen in the schema of MovieLens.

    Args:
        label: str. Which ratings are positives. Defaults to `"rating > 3"`.
        history_length: int. The most films of a history. Defaults to 20.
        min_count: int. Films seen less often in the training part get no place in the vocabulary. Defaults to 1.
        features: The features beside the candidate and the history's films. Defaults to all but two: `user_id`, by which
            knowledge about users (of the kind `user`) is looked up, and which has no embedding; and `first_films`, a second
            history, of the films and ratings that lie before all examples of the user (`history_only` of `prepare`).
        first_films: int. The most of these. Defaults to 30.
        most_genres: int. Of a film's genres so many are kept, the first ones. Defaults to 6, which is all.
    """

    __pydantic_config__ = STRICT_KEYS

    label: str = "rating > 3"
    history_length: int = 20
    min_count: int = 1
    features: tuple[MovieLensFeature, ...] = ("genres", "year", "gender", "age", "occupation", "history_rating")
    most_genres: int = _MOST_GENRES
    first_films: int = 30

    def __post_init__(self) -> None:
        for name in ("history_length", "min_count", "most_genres", "first_films"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1. Received: {getattr(self, name)}")


def movielens_schema(config: MovieLensConfig) -> LogSchema:
    """Returns the schema of the tables that the readers of this module make."""
    history = functools.partial(LogFeature, kind="sequence", length=config.history_length, group="history")
    first = functools.partial(LogFeature, kind="sequence", length=config.first_films, group="first", history_only=True)

    def chosen(*features: LogFeature) -> tuple[LogFeature, ...]:
        return tuple(feature for feature in features if feature.name in config.features)

    def side_table(*features: LogFeature) -> SideTable | None:
        return SideTable(features=chosen(*features)) if chosen(*features) else None

    return LogSchema(
        user_id=UserId(column="user_id", dtype="int64", entity="user" if "user_id" in config.features else None),
        item_id=ItemId(column="movie_id", dtype="int64", entity="movie", min_count=config.min_count),
        label=Label(rule=config.label),
        timestamp="timestamp",
        items=side_table(
            LogFeature(name="genres", kind="multi", separator="|", length=config.most_genres),
            LogFeature(name="year", kind="categorical", dtype="int64"),
        ),
        users=side_table(
            LogFeature(name="gender", kind="categorical"),
            LogFeature(name="age", kind="categorical", dtype="int64"),
            LogFeature(name="occupation", kind="categorical"),
        ),
        features=(
            history(name="history_movie_id", of="movie_id"),
            *chosen(history(name="history_rating", of="rating", dtype="int64")),
            *(
                (first(name="first_movie_id", of="movie_id"), first(name="first_rating", of="rating", dtype="int64"))
                if "first_films" in config.features
                else ()
            ),
        ),
    )


def movielens_files(folder: str | Path) -> tuple[Path, Path, Path]:
    """Returns the files of ratings, movies and users in a folder as GroupLens publishes it.

    Raises:
        DataError: The folder is not there, or is neither 1M nor 100K.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder. Expected one with {', '.join(FILES_1M)} (MovieLens-1M) or "
            f"{', '.join(FILES_100K)} (100K)."
        )
    for names in (FILES_1M, FILES_100K):
        if (folder / names[0]).is_file():
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise DataError(f"{folder}: {missing[0]} is missing beside {names[0]}.")
            return folder / names[0], folder / names[1], folder / names[2]
    raise DataError(
        f"{folder}: neither {FILES_1M[0]} (MovieLens-1M) nor {FILES_100K[0]} (100K) is in it. "
        "Newer releases are CSV files with a header: read them as a log with a schema."
    )


def read_movielens(folder: str | Path, config: MovieLensConfig) -> Source:
    """Reads a folder as GroupLens publishes it: MovieLens-1M or 100K.

    Raises:
        DataError: A file is missing or unreadable.
    """
    ratings_file, movies_file, users_file = movielens_files(folder)
    if ratings_file.name == FILES_1M[0]:
        ratings = _read_lines(ratings_file, "::", _RATING_COLUMNS)
        movies = _read_lines(movies_file, "::", ["movie_id", "title", "genres"])
        users = _read_lines(users_file, "::", ["user_id", "gender", "age", "occupation", "zip_code"])
        users["occupation"] = [_occupation(code, row, users_file) for row, code in enumerate(users["occupation"])]
    else:
        ratings = _read_lines(ratings_file, "\t", _RATING_COLUMNS)
        movies = _read_lines(
            movies_file, "|", ["movie_id", "title", "released", "video_released", "url", *_GENRES_100K]
        )
        flags = movies[list(_GENRES_100K)].to_numpy() == "1"
        movies["genres"] = ["|".join(np.array(_GENRES_100K)[row]) for row in flags]
        users = _read_lines(users_file, "|", ["user_id", "age", "gender", "occupation", "zip_code"])
        users["age"] = _age_bracket(users["age"])
    return _source(ratings, movies, users, (str(ratings_file), str(movies_file), str(users_file)), config)


def with_parts(source: Source, folder: str | Path, column: str) -> Source:
    """Returns a log with a further column, from the table `rows.parquet` in its folder: one row a rating, in their order.

    Raises:
        DataError: The table or the column is not there, or its rows are not those of the ratings.
    """
    path = Path(folder) / ROWS_FILE
    if not path.is_file():
        raise DataError(
            f"{path} is not there. A split by column of MovieLens takes the column {column!r} from it: one row a rating, in "
            "the order of the ratings' file."
        )
    rows, ratings = pa.parquet.read_table(path), source.log.data
    check_columns([column], rows.column_names, str(path))
    if len(rows) != len(ratings):
        raise DataError(
            f"{path} has {len(rows)} rows, and there are {len(ratings)} ratings. It must have one for each."
        )
    for key in {"user_id", "movie_id"} & set(rows.column_names):
        other = np.flatnonzero(rows[key].to_numpy().astype(str) != ratings[key].to_numpy().astype(str))
        if len(other):
            raise DataError(
                f"{path}, row {other[0] + 1}: {key} is {rows[key][other[0]]}, and {ratings[key][other[0]]} in "
                f"{source.log.row(int(other[0]))}. The rows must be in the ratings' order."
            )
    log = Table(ratings.append_column(column, rows[column]), source.log.files)
    return dataclasses.replace(source, log=log)


def read_tfds(data_dir: str | None, config: MovieLensConfig) -> Source:
    """Reads `movielens/1m-ratings` of tensorflow-datasets, which downloads it at first.

    Args:
        data_dir: str. Where tensorflow-datasets keeps its data; `None` for its own choice.
        config: Choices in the schema.

    Raises:
        MissingExtraError: tensorflow-datasets is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise MissingExtraError("tensorflow_datasets", "tfds") from None
    # Files in their order: an unordered read would deal equal timestamps differently each time.
    dataset, info = tfds.load(TFDS_NAME, split="train", data_dir=data_dir, shuffle_files=False, with_info=True)
    return convert_tfds(dataset.ragged_batch(_TFDS_BATCH), info.features["movie_genres"].feature.names, config)


def convert_tfds(batches: Iterable[Mapping[str, Any]], genre_names: Sequence[str], config: MovieLensConfig) -> Source:
    """Makes tables of batches of `movielens/1m-ratings`.

    Args:
        batches: Each a mapping of the dataset's features to tensors; `movie_genres` is a ragged one.
        genre_names: What the numbers in `movie_genres` stand for.
        config: Choices in the schema.
    """
    names = np.array([_TFDS_GENRES.get(name, name) for name in genre_names])
    parts = []
    for batch in batches:
        genres = batch["movie_genres"]
        values, splits = names[genres.values.numpy()], genres.row_splits.numpy()
        part = {
            name: batch[feature].numpy()
            for name, feature in {
                "user_id": "user_id",
                "movie_id": "movie_id",
                "rating": "user_rating",
                "timestamp": "timestamp",
                "title": "movie_title",
                "gender": "user_gender",
                "age": "bucketized_user_age",
                "occupation": "user_occupation_text",
            }.items()
        }
        part["genres"] = ["|".join(values[start:end]) for start, end in itertools.pairwise(splits)]
        parts.append(pd.DataFrame(part))
    if not parts:
        raise DataError(f"{TFDS_NAME}: not one row.")
    rows = pd.concat(parts, ignore_index=True)
    for column in ("user_id", "movie_id", "title", "occupation"):
        rows[column] = rows[column].str.decode("utf-8")
    rows["gender"] = np.where(rows["gender"], "M", "F")
    movies = rows[["movie_id", "title", "genres"]].drop_duplicates("movie_id")
    users = rows[["user_id", "gender", "age", "occupation"]].drop_duplicates("user_id")
    return _source(rows[_RATING_COLUMNS], movies, users, (TFDS_NAME,) * 3, config)


def _source(
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    users: pd.DataFrame,
    names: tuple[str, str, str],
    config: MovieLensConfig,
) -> Source:
    movies = movies.assign(year=movies["title"].str.extract(_YEAR, expand=False))
    tables = [
        Table(pa.Table.from_pandas(frame, preserve_index=False), ((name, len(frame)),))
        for frame, name in zip((ratings, movies, users), names, strict=True)
    ]
    return Source(log=tables[0], schema=movielens_schema(config), items=tables[1], users=tables[2])


def _read_lines(path: Path, separator: str, columns: list[str]) -> pd.DataFrame:
    """Reads a file without a header whose columns stand between separators; everything is text."""
    # Latin-1, as GroupLens says. Arrow separates by one character: this control character is in no title.
    text = path.read_bytes().decode("latin-1").replace(separator, "\x1f").encode("utf-8")
    if not text.strip():
        raise DataError(f"{path}: not one row.")
    parse = pa.csv.ParseOptions(delimiter="\x1f", quote_char=False)
    try:
        table = read_csv(io.BytesIO(text), columns, read=pa.csv.ReadOptions(column_names=columns), parse=parse)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: expected lines of {len(columns)} columns with {separator!r} between them: {error}".replace(
                "\x1f", separator
            )
        ) from None
    return table.to_pandas()


def _occupation(code: str, row: int, path: Path) -> str:
    if code not in _OCCUPATION_OF_CODE:
        raise DataError(
            f"{path}, row {row + 1}, column `occupation`: {code!r} is not one of the codes 0 to "
            f"{len(_OCCUPATIONS_1M) - 1}."
        )
    return _OCCUPATION_OF_CODE[code]


_OCCUPATION_OF_CODE = {str(code): name for code, name in enumerate(_OCCUPATIONS_1M)}


def _age_bracket(ages: pd.Series[Any]) -> pd.Series[Any]:
    numbers = pd.to_numeric(ages, errors="coerce")
    brackets = np.array(_AGE_BRACKETS)[
        np.searchsorted(_AGE_BRACKETS, numbers.fillna(1).clip(lower=1), side="right") - 1
    ]
    return pd.Series(brackets, index=ages.index).where(numbers.notna())
