"""The readers of MovieLens, on small doubles in the official layouts, and on MovieLens-1M itself where it is there."""

import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kser_tf.errors import ConfigError, DataError, MissingExtraError
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.movielens import MovieLensConfig, convert_tfds, read_movielens
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.pipelines.split import SplitConfig
from kser_tf.schema import SPLITS, DatasetSchema

# Invented films and users. Every user rates every film; equal times occur.
MOVIES_1M = (
    "1::Gläserne Stadt, Die (1931)::Drama|Sci-Fi\n"
    "2::Kite: A Story (1998)::Animation|Children's\n"
    "3::Untitled::Comedy\n"
    "4::Third Round (II) (1987)::Drama\n"
)
USERS_1M = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::0::55117\n"
RATINGS_1M = "".join(
    f"{user}::{movie}::{1 + (user + movie) % 5}::{1000 + time}\n"
    for user in (1, 2, 3)
    for movie, time in ((1, 7), (2, 7), (3, 2), (4, 9))
)
MOVIES_100K = "".join(
    f"{movie}|{title}|01-Jan-1995||http://example.org/?x|{'|'.join('01'[number in genres] for number in range(19))}\n"
    for movie, title, genres in (
        (1, "Gläserne Stadt, Die (1931)", (8, 15)),
        (2, "unknown", (0,)),
        (3, "Third (1987) (V)", (4, 8)),
    )
)
USERS_100K = "1|24|M|technician|85711\n2|53|F|other|94043\n3|7|M|student|32067\n"
RATINGS_100K = "".join(
    f"{user}\t{movie}\t{1 + 4 * (movie % 2)}\t88{user}{movie}\n" for user in (1, 2, 3) for movie in (1, 2, 3)
)


@pytest.fixture
def folder_1m(tmp_path):
    return write(tmp_path / "ml-1m", {"ratings.dat": RATINGS_1M, "movies.dat": MOVIES_1M, "users.dat": USERS_1M})


@pytest.fixture
def folder_100k(tmp_path):
    return write(tmp_path / "ml-100k", {"u.data": RATINGS_100K, "u.item": MOVIES_100K, "u.user": USERS_100K})


def write(folder, files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def prepared(folder, output, **changes):
    values = {"source": "movielens", "data": str(folder), "output": str(output), **changes}
    prepare(from_mapping(PrepareConfig, values, source="test"))
    rows = [row for part in SPLITS for row in pq.read_table(output / f"{part}.parquet").to_pylist()]
    return {(row["user_id"], row["movie_id"]): row for row in rows}, DatasetSchema.load(output)


def test_features_can_be_left_out(folder_1m, tmp_path):
    choice = {"features": ["genres", "history_rating"], "most_genres": 1, "history_length": 1}
    rows, schema = prepared(folder_1m, tmp_path / "out", movielens=choice)
    assert [feature.name for feature in schema.features] == ["movie_id", "genres", "history_movie_id", "history_rating"]
    assert rows[1, 1]["genres"] == ["Drama"]
    assert rows[1, 2]["genres"] == ["Animation"]
    assert rows[1, 4]["history_movie_id"] == [2]
    early = {"movielens": {"features": ["first_films"], "first_films": 2}, "history_only": {"fraction": 0.1}}
    rows, schema = prepared(folder_1m, tmp_path / "early", **early)
    assert [feature.name for feature in schema.features][2:] == ["first_movie_id", "first_rating"]
    assert schema.feature("first_movie_id").vocabulary == "movie_id"
    assert schema.feature("first_movie_id").length == 2
    rows, schema = prepared(folder_1m, tmp_path / "least", movielens={"features": []})
    assert [feature.name for feature in schema.features] == ["movie_id", "history_movie_id"]


def test_a_feature_that_is_not_there(folder_1m, tmp_path):
    with pytest.raises(ConfigError, match=r"movielens.features.0.*'genre'"):
        prepared(folder_1m, tmp_path / "out", movielens={"features": ["genre"]})


def test_1m_layout(folder_1m, tmp_path):
    rows, schema = prepared(folder_1m, tmp_path / "out")
    assert len(rows) == 12
    assert rows[1, 4] == {
        "movie_id": 4,
        "genres": ["Drama"],
        "year": 1987,
        "gender": "F",
        "age": 1,
        "occupation": "K-12 student",
        "history_movie_id": [2, 1, 3],
        "history_rating": [4, 3, 5],
        "user_id": 1,
        "label": 0,
        "timestamp": 1009,
        "item_training_rows": 1,
        "item_is_cold": False,
        "user_interactions": 4,
    }
    assert rows[1, 1]["history_movie_id"] == rows[1, 2]["history_movie_id"] == [3]
    assert rows[2, 2]["genres"] == ["Animation", "Children's"]
    assert rows[2, 3]["year"] == -1
    assert rows[3, 1]["occupation"] == "other/not specified"
    assert [(feature.name, feature.kind, feature.entity) for feature in schema.features] == [
        ("movie_id", "categorical", "movie"),
        ("genres", "multi", None),
        ("year", "categorical", None),
        ("gender", "categorical", None),
        ("age", "categorical", None),
        ("occupation", "categorical", None),
        ("history_movie_id", "sequence", "movie"),
        ("history_rating", "sequence", None),
    ]
    assert schema.feature("history_movie_id").vocabulary == "movie_id"
    assert schema.feature("history_movie_id").length == schema.feature("history_rating").length == 20
    assert schema.feature("history_movie_id").group == schema.feature("history_rating").group == "history"
    assert schema.user_id == "user_id"


def test_choices_in_the_schema(folder_1m, tmp_path):
    choices = {"label": "rating >= 2", "history_length": 1, "min_count": 99}
    rows, schema = prepared(folder_1m, tmp_path / "out", movielens=choices)
    assert rows[1, 4]["history_movie_id"] == [2]
    assert sum(row["label"] for row in rows.values()) == 9
    assert schema.vocabularies["movie_id"] == []


def test_100k_layout(folder_100k, tmp_path):
    rows, _ = prepared(folder_100k, tmp_path / "out")
    assert len(rows) == 9
    row = rows[2, 3]
    assert (row["genres"], row["year"]) == (["Children's", "Drama"], 1987)
    assert (row["gender"], row["age"], row["occupation"]) == ("F", 50, "other")
    assert (row["history_movie_id"], row["history_rating"], row["label"]) == ([2, 1], [1, 5], 1)
    assert (rows[1, 2]["genres"], rows[1, 2]["year"]) == (["unknown"], -1)
    assert (rows[1, 1]["age"], rows[3, 1]["age"]) == (18, 1)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ratings.dat", None, r"neither ratings\.dat \(MovieLens-1M\) nor u\.data \(100K\) is in it.*source|schema"),
        ("users.dat", None, r"users\.dat is missing beside ratings\.dat"),
        ("ratings.dat", "", r"ratings\.dat: not one row"),
        ("ratings.dat", "1::2::5\n", r"ratings\.dat: expected lines of 4 columns with '::' between them.*got 3"),
        ("ratings.dat", "1::2::5::7\n1::2::five::8\n", r"ratings\.dat, row 2, column `rating`: 'five' is not a number"),
        (
            "ratings.dat",
            "1::-2::5::7\n1::2::3::8\n",
            r"ratings\.dat, row 1, column `movie_id`: -2 is not an int64 of 0 or more",
        ),
        (
            "users.dat",
            "1::F::1::student::48067\n",
            r"users\.dat, row 1, column `occupation`: 'student' is not one of the codes",
        ),
        ("movies.dat", MOVIES_1M + MOVIES_1M, r"movies\.dat, row 5, column `movie_id`: the id 1 is there already"),
    ],
)
def test_broken_folders_are_refused(folder_1m, tmp_path, file, text, message):
    (folder_1m / file).unlink() if text is None else (folder_1m / file).write_text(text)
    with pytest.raises(DataError, match=message):
        prepared(folder_1m, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"ml-1m"}


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder\. Expected one with ratings\.dat"):
        prepared(tmp_path / "nowhere", tmp_path / "out")


def test_half_stars_need_another_dtype(folder_1m, tmp_path):
    (folder_1m / "ratings.dat").write_text(RATINGS_1M.replace("::5::", "::4.5::"))
    with pytest.raises(DataError, match=r"column `rating`: '4\.5' is not a whole number"):
        prepared(folder_1m, tmp_path / "out")


# tensorflow-datasets: a double with the true features of movielens/1m-ratings, made of the double of the folder.

TFDS_GENRES = ["Action", "Animation", "Children", "Comedy", "Drama", "Sci-Fi"]
TFDS_FEATURES = {
    "bucketized_user_age",
    "movie_genres",
    "movie_id",
    "movie_title",
    "timestamp",
    "user_gender",
    "user_id",
    "user_occupation_label",
    "user_occupation_text",
    "user_rating",
    "user_zip_code",
}


def tfds_double():
    import tensorflow as tf

    movies = {line.split("::")[0]: line.split("::") for line in MOVIES_1M.splitlines()}
    users = {line.split("::")[0]: line.split("::") for line in USERS_1M.splitlines()}
    occupations = {"10": "K-12 student", "16": "self-employed", "0": "other/not specified"}
    rows = [line.split("::") for line in RATINGS_1M.splitlines()]
    genres = [movies[movie][2].replace("Children's", "Children").split("|") for _, movie, _, _ in rows]
    return tf.data.Dataset.from_tensor_slices(
        {
            "bucketized_user_age": np.float32([users[user][2] for user, *_ in rows]),
            "movie_genres": tf.ragged.constant([[TFDS_GENRES.index(g) for g in row] for row in genres], dtype=tf.int64),
            "movie_id": [movie for _, movie, _, _ in rows],
            "movie_title": [movies[movie][1] for _, movie, _, _ in rows],
            "timestamp": np.int64([time for *_, time in rows]),
            "user_gender": [users[user][1] == "M" for user, *_ in rows],
            "user_id": [user for user, *_ in rows],
            "user_occupation_label": np.zeros(len(rows), np.int64),
            "user_occupation_text": [occupations[users[user][3]] for user, *_ in rows],
            "user_rating": np.float32([rating for _, _, rating, _ in rows]),
            "user_zip_code": [users[user][4] for user, *_ in rows],
        }
    )


def test_tfds_double_has_the_features_of_the_dataset():
    assert set(tfds_double().element_spec) == TFDS_FEATURES
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (the extra tfds)")
    features = tfds.builder("movielens/1m-ratings").info.features
    assert set(features) == TFDS_FEATURES
    assert set(TFDS_GENRES) < set(features["movie_genres"].feature.names)
    specs, double = features.get_tensor_info(), tfds_double().element_spec
    assert {name: spec.dtype for name, spec in double.items()} == {name: spec.tf_dtype for name, spec in specs.items()}


def test_tfds_gives_what_the_folder_gives(folder_1m, tmp_path, monkeypatch):
    expected = prepared(folder_1m, tmp_path / "folder")
    batches = tfds_double().ragged_batch(5)
    source = convert_tfds(batches, TFDS_GENRES, MovieLensConfig())
    monkeypatch.setattr("kser_tf.pipelines.prepare.read_tfds", lambda data_dir, config: source)
    rows, schema = prepared(None, tmp_path / "tfds", source="tfds", data=None)
    assert rows == expected[0]
    assert schema.fingerprint == expected[1].fingerprint


def test_tfds_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingExtraError, match=r"`tensorflow_datasets` is not installed.*kser-tf\[tfds\]"):
        prepared(None, tmp_path / "out", source="tfds", data=None)


# A split by a column of a table beside the ratings.


def with_rows(folder, parts, **columns):
    """Writes `rows.parquet`: one row a rating, in their order."""
    rows = [line.split("::") for line in RATINGS_1M.splitlines()]
    table = {
        "user_id": [int(row[0]) for row in rows],
        "movie_id": [int(row[1]) for row in rows],
        "part": parts,
        **columns,
    }
    pq.write_table(pa.table(table), folder / "rows.parquet")
    return folder


# Of each user's four ratings, in the order of the file; everybody has a positive and a negative among the test rows.
PARTS = ["test", "test", "train", "none", "train", "test", "test", "train", "test", "test", "train", "train"]


def parts_of(output):
    return {
        (row["user_id"], row["movie_id"]): part
        for part in SPLITS
        for row in pq.read_table(output / f"{part}.parquet").to_pylist()
    }


def test_split_by_a_column_beside_the_ratings(folder_1m, tmp_path):
    parts = ["validation" if i in (5, 6) else part for i, part in enumerate(PARTS)]
    prepared(with_rows(folder_1m, parts), tmp_path / "out", split={"by": "column", "column": "part"})
    keys = [(user, movie) for user in (1, 2, 3) for movie in (1, 2, 3, 4)]
    assert parts_of(tmp_path / "out") == {key: part for key, part in zip(keys, parts, strict=True) if part != "none"}


def test_without_validation_rows_those_of_some_users_test_rows_become_them(folder_1m, tmp_path):
    split = {"by": "column", "column": "part", "fractions": [0.6, 0.2, 0.2]}
    found = []
    for seed in range(4):
        prepared(with_rows(folder_1m, PARTS), tmp_path / str(seed), split=split, seed=seed)
        found.append(parts_of(tmp_path / str(seed)))
    for parts in found:
        by_user = {}
        for (user, movie), part in parts.items():
            named = PARTS[4 * (user - 1) + movie - 1]
            assert part == named or (named, part) == ("test", "validation")
            if named == "test":
                by_user.setdefault(user, set()).add(part)
        assert all(len(of_user) == 1 for of_user in by_user.values())
        assert set.union(*by_user.values()) == {"validation", "test"}
    assert len({str(sorted(parts.items())) for parts in found}) > 1  # the seed decides


def test_rows_that_are_not_the_ratings_are_refused(folder_1m, tmp_path):
    split = {"by": "column", "column": "part"}
    with pytest.raises(
        DataError, match=r"rows.parquet is not there. A split by column of MovieLens takes the column 'part'"
    ):
        prepared(folder_1m, tmp_path / "out", split=split)
    with_rows(folder_1m, PARTS)
    with pytest.raises(DataError, match=r"`parts`.*rows.parquet|rows.parquet.*`parts`"):
        prepared(folder_1m, tmp_path / "out", split={"by": "column", "column": "parts"})
    table = pq.read_table(folder_1m / "rows.parquet")
    pq.write_table(table.slice(1), folder_1m / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet has 11 rows, and there are 12 ratings"):
        prepared(folder_1m, tmp_path / "out", split=split)
    pq.write_table(table.take([0, 2, 1, *range(3, 12)]), folder_1m / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet, row 2: movie_id is 3, and 2 in .*ratings.dat, row 2"):
        prepared(folder_1m, tmp_path / "out", split=split)
    with pytest.raises(ConfigError, match="no column that names parts"):
        PrepareConfig(output="out", source="tfds", split=SplitConfig(by="column", column="part"))


def test_the_users_id_is_there_for_knowledge_alone(folder_1m, tmp_path):
    rows, schema = prepared(folder_1m, tmp_path / "out", movielens={"features": ["user_id"]})
    assert [feature.name for feature in schema.features] == ["movie_id", "user_id", "history_movie_id"]
    assert (schema.feature("user_id").entity, schema.vocabularies["user_id"]) == ("user", [])
    assert {user for user, _ in rows} == {1, 2, 3}


def test_movielens_takes_no_schema_and_one_folder():
    with pytest.raises(ConfigError, match="`data` is one folder for the source movielens"):
        PrepareConfig(output="out", source="movielens", data=["a", "b"])
    with pytest.raises(ConfigError, match="`data` is missing: it names the MovieLens folder"):
        PrepareConfig(output="out", source="movielens")


# MovieLens-1M itself. GroupLens' licence forbids its redistribution.

needs_movielens_1m = pytest.mark.skipif(
    not os.environ.get("KSER_MOVIELENS_1M"),
    reason="KSER_MOVIELENS_1M does not name the folder of MovieLens-1M, which may not be redistributed",
)


@needs_movielens_1m
def test_movielens_1m_has_its_known_counts():
    source = read_movielens(os.environ["KSER_MOVIELENS_1M"], MovieLensConfig())
    ratings = source.log.data.to_pandas()
    assert ratings["user_id"].nunique() == 6040
    assert ratings["movie_id"].nunique() == 3706
    stars = ratings["rating"].value_counts().to_dict()
    assert stars == {"1": 56174, "2": 107557, "3": 261197, "4": 348971, "5": 226310}
    assert (len(source.items), len(source.users)) == (3883, 6040)


@needs_movielens_1m
def test_movielens_1m_gives_the_examples_of_the_protocol(tmp_path):
    history_only = {"fraction": 0.5, "at_most": 30}
    values = {"source": "movielens", "data": os.environ["KSER_MOVIELENS_1M"], "output": str(tmp_path / "out")}
    result = prepare(from_mapping(PrepareConfig, {**values, "history_only": history_only}, source="test"))
    assert (result["users"], result["items"], result["rows"]) == (6040, 3706, 1_000_209)
    assert result["examples"] == 843_460
    positives = sum(counts["positives"] for counts in result["splits"].values())
    assert round(100 * positives / result["examples"], 2) == 56.12
