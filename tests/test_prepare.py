"""`prepare` on logs of one's own: what it writes, and what it says to bad input."""

import argparse
import gzip
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kser_tf.errors import ConfigError, DataError
from kser_tf.pipelines.config import add_flags, from_flags, from_mapping
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.schema import DatasetSchema, Feature

# Four users, in the order of the log; user d's two last interactions have one time. Labels: stars > 3.
LOG = pd.DataFrame(
    [
        ("a", "x", 5, 30, "web", "train"),
        ("a", "y", 1, 10, "app", "train"),
        ("b", "x", 4, 20, "web", "validation"),
        ("a", "z", 4, 20, "", "train"),
        ("c", "z", 2, 40, "web", "test"),
        ("b", "y", 2, 25, "app", "validation"),
        ("c", "w", 5, 45, "tv", "test"),
        ("d", "y", 5, 1, "web", "train"),
        ("d", "x", 1, 2, "web", "train"),
        ("d", "z", 1, 2, "app", "train"),
    ],
    columns=["who", "what", "stars", "when", "place", "part"],
)
ITEMS = pd.DataFrame(
    {
        "what": ["x", "y", "z"],
        "tags": ["red|blue", "", "blue| green |"],
        "price": ["2.0", "", "4"],
        "maker": ["7", "8", ""],
    }
)
SCHEMA = {
    "user_id": {"column": "who"},
    "item_id": {"column": "what", "name": "item"},
    "label": {"rule": "stars > 3"},
    "timestamp": "when",
    "features": [
        {"name": "place", "kind": "categorical"},
        {"name": "past", "kind": "sequence", "of": "item", "length": 2, "group": "past"},
        {"name": "past_stars", "kind": "sequence", "of": "stars", "dtype": "int64", "length": 2, "group": "past"},
        {"name": "liked", "kind": "sequence", "of": "item", "length": 5, "where": "label == 1"},
    ],
    "items": {
        "features": [
            {"name": "tags", "kind": "multi", "separator": "|", "length": 3},
            {"name": "price", "kind": "numeric"},
            {"name": "maker", "kind": "categorical", "dtype": "int64"},
        ]
    },
}
BY_COLUMN = {"by": "column", "column": "part"}


@pytest.fixture
def run(tmp_path):
    """Writes tables as CSV, runs the job with changes to the configuration, returns the output folder."""

    def run(log=LOG, table=ITEMS, schema=SCHEMA, **changes):
        log.to_csv(tmp_path / "log.csv", index=False)
        table.to_csv(tmp_path / "items.csv", index=False)
        values = {
            "output": str(tmp_path / "out"),
            "data": str(tmp_path / "log.csv"),
            "schema": schema,
            "split": BY_COLUMN,
            "items": str(tmp_path / "items.csv"),
            **changes,
        }
        prepare(from_mapping(PrepareConfig, values, source="test"))
        return tmp_path / "out"

    return run


def changed(schema=SCHEMA, **changes):
    return {**schema, **changes}


def with_feature(**feature):
    return changed(features=[*SCHEMA["features"], feature])


def read(folder, part):
    return pq.read_table(folder / f"{part}.parquet").to_pylist()


def row_of(folder, part, user, item):
    (row,) = [row for row in read(folder, part) if (row["who"], row["item"]) == (user, item)]
    return row


def assert_same(table, expected):
    """Tables are equal, NaN and NaN too."""
    pd.testing.assert_frame_equal(table.to_pandas(), expected.to_pandas())


# What is written


def test_rows_have_features_and_what_describes_them(run):
    assert row_of(run(), "train", "a", "x") == {
        "item": "x",
        "tags": ["red", "blue"],
        "price": 2.0,
        "maker": 7,
        "place": "web",
        "past": ["z", "y"],
        "past_stars": [4, 1],
        "liked": ["z"],
        "who": "a",
        "label": 1,
        "timestamp": 30,
        "item_training_rows": 2,
        "item_is_cold": False,
        "user_interactions": 3,
    }


def test_the_past_is_strictly_earlier(run):
    folder = run()
    assert row_of(folder, "train", "d", "x")["past"] == ["y"]
    assert row_of(folder, "train", "d", "z")["past"] == ["y"]
    assert row_of(folder, "train", "a", "y")["past"] == []


def test_missing_values_and_items_without_a_row_are_normal(run):
    folder = run()
    y, z = row_of(folder, "train", "a", "y"), row_of(folder, "train", "a", "z")
    assert y["tags"] == []
    assert math.isnan(y["price"])
    assert (z["place"], z["maker"], z["tags"]) == ("", -1, ["blue", "green"])
    w = row_of(folder, "test", "c", "w")  # the table of items has no w
    assert (w["tags"], w["maker"], w["item_training_rows"]) == ([], -1, 0)
    assert math.isnan(w["price"])


def test_columns_have_the_contracts_types(run):
    types = {field.name: field.type for field in pq.read_schema(run() / "train.parquet")}
    assert types == {
        "item": pa.string(),
        "tags": pa.list_(pa.string()),
        "price": pa.float32(),
        "maker": pa.int64(),
        "place": pa.string(),
        "past": pa.list_(pa.string()),
        "past_stars": pa.list_(pa.int64()),
        "liked": pa.list_(pa.string()),
        "who": pa.string(),
        "label": pa.int8(),
        "timestamp": pa.int64(),
        "item_training_rows": pa.int32(),
        "item_is_cold": pa.bool_(),
        "user_interactions": pa.int32(),
    }


def test_schema_holds_what_was_learned_from_training(run):
    schema = DatasetSchema.load(run())
    assert schema.features == (
        Feature("item", "categorical", "string", vocabulary="item", entity="item"),
        Feature("tags", "multi", "string", length=3, vocabulary="tags"),
        # Prices of the training rows: x 2, y none, z 4, x 2, z 4 and y none.
        Feature("price", "numeric", "float32", mean=3.0, std=1.0),
        Feature("maker", "categorical", "int64", vocabulary="maker"),
        Feature("place", "categorical", "string", vocabulary="place"),
        Feature("past", "sequence", "string", length=2, vocabulary="item", entity="item", group="past"),
        Feature("past_stars", "sequence", "int64", length=2, vocabulary="past_stars", group="past"),
        Feature("liked", "sequence", "string", length=5, vocabulary="item", entity="item"),
    )
    assert (schema.user_id, schema.item_id) == ("who", "item")
    assert schema.vocabularies == {
        # Candidates x 2, y 2, z 2; in `past` y 4, z 1; in `liked` z 1, y 2: and no w, which is in the test part alone.
        "item": ["y", "z", "x"],
        "tags": ["blue", "green", "red"],  # blue 4; green and red 2 each
        "maker": [7, 8],
        "place": ["web", "app"],  # the missing value has no place in a vocabulary, and tv is in the test part alone
        "past_stars": [1, 5, 4],
    }
    assert schema.splits["train"] == {"rows": 6, "positives": 3}
    assert schema.splits["test"] == {"rows": 2, "positives": 1}
    assert schema.protocol["split"] == {"by": "column", "column": "part", "fractions": [0.8, 0.1, 0.1]}


def test_min_count_counts_features_that_share_a_vocabulary_together(run):
    schema = changed(item_id={"column": "what", "name": "item", "min_count": 4})
    assert DatasetSchema.load(run(schema=schema)).vocabularies["item"] == ["y", "z"]


def test_what_has_been_done_is_not_done_again(run, tmp_path):
    folder = run()
    job = read_job(folder)
    assert job["job"] == "prepare"
    assert job["result"]["rows"] == 10
    assert job["result"]["splits"]["validation"] == {"rows": 2, "positives": 1}
    config = from_mapping(PrepareConfig, job["config"], source="job.json")
    assert prepare(config) == job["result"]
    assert read_job(folder) == job
    (tmp_path / "items.csv").write_text("what,tags,price,maker\nx,green,1,1\n")
    prepare(config)
    assert read_job(folder)["inputs"] != job["inputs"]
    assert row_of(folder, "train", "a", "x")["tags"] == ["green"]


def test_the_same_configuration_gives_the_same_bytes(run):
    first = {file.name: file.read_bytes() for file in run().glob("*.parquet")}
    run(seed=2)
    assert first == {file.name: file.read_bytes() for file in run().glob("*.parquet")}


def test_history_only_interactions_give_no_example_but_are_in_histories(run):
    more = [("c", "x", 1, 46, "web", "test"), ("b", "z", 5, 26, "web", "validation")]
    log = pd.concat([LOG, pd.DataFrame(more, columns=LOG.columns)])
    folder = run(log=log, history_only={"fraction": 0.3, "at_most": 2})
    rows = [row for part in ("train", "validation", "test") for row in read(folder, part)]
    # Each user has three interactions; the first (the ceiling of 0.9) is history alone.
    assert sorted((row["who"], row["item"], row["past"]) for row in rows) == [
        ("a", "x", ["z", "y"]),
        ("a", "z", ["y"]),
        ("b", "y", ["x"]),
        ("b", "z", ["y", "x"]),
        ("c", "w", ["z"]),
        ("c", "x", ["w", "z"]),
        ("d", "x", ["y"]),
        ("d", "z", ["y"]),
    ]


def test_a_sequence_of_what_users_began_with_is_the_same_for_all_their_examples(run):
    more = [
        ("a", "w", 3, 40, "web", "train"),
        ("b", "z", 5, 26, "web", "validation"),
        ("c", "x", 1, 46, "web", "test"),
        ("d", "w", 5, 3, "web", "train"),
    ]
    log = pd.concat([LOG, pd.DataFrame(more, columns=LOG.columns)])
    begun = {"kind": "sequence", "length": 5, "group": "first", "history_only": True}
    schema = with_feature(name="first", of="item", **begun)
    schema["features"].append({"name": "first_stars", "of": "stars", "dtype": "int64", **begun})
    folder = run(log=log, schema=schema, history_only={"fraction": 0.3, "at_most": 2})
    rows = [row for part in ("train", "validation", "test") for row in read(folder, part)]
    # Users a and d begin with two, the others with one. d's second has the time of an example, so nobody knew it before.
    assert sorted((row["who"], row["item"], row["first"], row["first_stars"]) for row in rows) == [
        ("a", "w", ["z", "y"], [4, 1]),
        ("a", "x", ["z", "y"], [4, 1]),
        ("b", "y", ["x"], [4]),
        ("b", "z", ["x"], [4]),
        ("c", "w", ["z"], [2]),
        ("c", "x", ["z"], [2]),
        ("d", "w", ["y"], [5]),
        ("d", "z", ["y"], [5]),
    ]


def big_log(users=30, interactions=20, items=12, seed=0):
    random = np.random.default_rng(seed)
    size = users * interactions
    return pd.DataFrame(
        {
            "who": random.permutation(np.repeat([f"u{number}" for number in range(users)], interactions)),
            "what": random.choice([f"i{number}" for number in range(items)], size),
            "stars": random.integers(1, 6, size),
            "when": random.integers(0, 50, size),
            "place": "web",
            "part": "train",
        }
    )


def test_split_by_user_keeps_users_together(run):
    folder = run(log=big_log(), split={"by": "user", "fractions": [0.6, 0.2, 0.2]})
    users = [{row["who"] for row in read(folder, part)} for part in ("train", "validation", "test")]
    assert [len(part) for part in users] == [18, 6, 6]
    assert len(set.union(*users)) == 30


def test_split_by_user_depends_on_the_seed_and_not_on_the_order_of_the_log(run):
    by_user = {"split": {"by": "user"}, "cold_items": 0.2}

    def chosen(log, seed):
        test = read(run(log=log, seed=seed, **by_user), "test")
        return {row["who"] for row in test}, {row["item"] for row in test if row["item_is_cold"]}

    log = big_log()
    assert chosen(log, 1) == chosen(log.sample(frac=1, random_state=3), 1)
    assert chosen(log, 1) != chosen(log, 2)


def test_split_by_time_puts_later_examples_into_later_parts(run):
    folder = run(log=big_log(), split={"by": "time", "fractions": [0.5, 0.25, 0.25]})
    times = [[row["timestamp"] for row in read(folder, part)] for part in ("train", "validation", "test")]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])
    assert sum(map(len, times)) == 600
    assert abs(len(times[0]) - 300) < 25  # equal times stay together


def test_without_timestamps_the_order_of_the_files_is_the_order_of_time(run, tmp_path):
    log = LOG.sort_values("when", kind="stable")
    log[:4].to_csv(tmp_path / "1.csv", index=False)
    log[4:].to_csv(tmp_path / "2.csv", index=False)
    files = [str(tmp_path / "1.csv"), str(tmp_path / "2.csv")]
    folder = run(schema={key: value for key, value in SCHEMA.items() if key != "timestamp"}, data=files)
    assert row_of(folder, "train", "a", "x")["past"] == ["z", "y"]
    assert row_of(folder, "train", "d", "z")["past"] == ["x", "y"]  # one row later is later now
    assert "timestamp" not in row_of(folder, "train", "d", "z")


def test_cold_items_are_out_of_training_and_in_the_test(run):
    folder = run(log=big_log(), split={"by": "user"}, cold_items=0.25)
    test = read(folder, "test")
    cold = {row["item"] for row in test if row["item_is_cold"]}
    assert len(cold) == 3
    assert {row["item_training_rows"] for row in test if row["item_is_cold"]} == {0}
    for part in ("train", "validation"):
        assert not cold & {row["item"] for row in read(folder, part)}
    assert not cold & {item for row in read(folder, "train") for item in row["past"] + row["liked"]}
    assert cold & {item for row in read(folder, "validation") for item in row["past"]}
    assert not cold & set(DatasetSchema.load(folder).vocabularies["item"])


def test_rows_are_in_the_logs_order(run):
    folder = run(log=big_log().assign(when=range(600)), split={"by": "user"})
    for part in ("train", "validation", "test"):
        times = [row["timestamp"] for row in read(folder, part)]
        assert times == sorted(times)


def test_cold_items_leave_given_sequences_too_and_their_group_with_them(run, tmp_path):
    log = big_log()
    random = np.random.default_rng(5)
    seen = [list(random.choice([f"i{n}" for n in range(12)], random.integers(0, 6))) for _ in range(len(log))]
    log = log.assign(seen=seen, seen_at=[[int(item[1:]) for item in items] for items in seen], last="i3")
    log.to_parquet(tmp_path / "log.parquet")
    given = [
        {"name": "seen", "kind": "sequence", "length": 4, "vocabulary": "item", "group": "seen", "newest": "last"},
        {"name": "seen_at", "kind": "sequence", "dtype": "int64", "length": 4, "group": "seen", "newest": "last"},
        {"name": "last", "kind": "categorical", "vocabulary": "item"},
    ]
    schema = changed(features=given, items=None)
    folder = run(schema=schema, data=str(tmp_path / "log.parquet"), items=None, split={"by": "user"}, cold_items=0.5)
    cold = {row["item"] for row in read(folder, "test") if row["item_is_cold"]}
    train = read(folder, "train")
    assert len(cold) == 6
    assert not cold & {item for row in train for item in row["seen"]}
    assert {row["last"] for row in train} == ({""} if "i3" in cold else {"i3"})
    assert all([int(item[1:]) for item in row["seen"]] == row["seen_at"] for row in train)
    assert any(cold & set(row["seen"]) for row in read(folder, "test"))


# What is read


def test_parquet_csv_compressed_and_several_files_read_alike(run, tmp_path):
    expected = pq.read_table(run() / "train.parquet")
    folder = tmp_path / "many"
    folder.mkdir()
    LOG[:3].to_parquet(folder / "1.parquet")
    LOG[3:7].to_csv(folder / "2.csv", index=False)
    (folder / "3.tsv.gz").write_bytes(gzip.compress(LOG[7:].to_csv(index=False, sep="\t").encode()))
    (folder / "_SUCCESS").write_text("")
    assert_same(pq.read_table(run(data=str(folder)) / "train.parquet"), expected)
    LOG.to_csv(tmp_path / "semicolons.csv", index=False, sep=";", encoding="utf-16")
    ITEMS.to_csv(tmp_path / "items2.csv", index=False, sep=";", encoding="utf-16")
    schema = changed(delimiter=";", encoding="utf-16")
    paths = {"data": str(tmp_path / "semicolons.csv"), "items": str(tmp_path / "items2.csv")}
    assert_same(pq.read_table(run(schema=schema, **paths) / "train.parquet"), expected)


def test_datetimes_and_numbers_with_a_fraction_keep_their_order(run):
    seconds = pd.to_datetime(LOG["when"], unit="s")
    iso = run(log=LOG.assign(when=seconds.dt.strftime("%Y-%m-%dT%H:%M:%SZ")))
    assert row_of(iso, "train", "a", "x")["timestamp"] == 30_000_000
    assert row_of(iso, "train", "a", "x")["past"] == ["z", "y"]
    fractions = run(log=LOG.assign(when=LOG["when"] / 100))
    assert row_of(fractions, "train", "a", "x")["timestamp"] == 300_000
    assert row_of(fractions, "train", "d", "z")["past"] == ["y"]


def test_datetimes_of_parquet_and_with_zones(run, tmp_path):
    LOG.assign(when=pd.to_datetime(LOG["when"], unit="s", utc=True)).to_parquet(tmp_path / "log.parquet")
    assert row_of(run(data=str(tmp_path / "log.parquet")), "train", "a", "x")["timestamp"] == 30_000_000
    zoned = LOG.assign(when=[f"1970-01-01T02:00:{second:02d}+02:00" for second in LOG["when"]])
    assert row_of(run(log=zoned), "train", "a", "x")["timestamp"] == 30_000_000


def test_ids_of_parquet_and_csv_are_the_same_text(run, tmp_path):
    # pandas turns whole numbers into floats where a column has gaps; 007 is not 7.
    log = LOG.assign(what=[7.0, 8.0, 7.0, 9.0, 9.0, 8.0, 10.0, 8.0, 7.0, 9.0])
    log.to_parquet(tmp_path / "log.parquet")
    folder = run(data=str(tmp_path / "log.parquet"))
    assert {row["item"] for row in read(folder, "train")} == {"7", "8", "9"}
    csv = run(log=LOG.assign(what=["007" if item == "x" else item for item in LOG["what"]]))
    assert {row["item"] for row in read(csv, "train")} == {"007", "y", "z"}


def test_integers_are_read_from_what_pandas_writes(run):
    log = LOG.assign(place=["3.0", "4", "", " 5 ", "6", "7", "8", "3", "-1", "3"])
    schema = with_feature(name="code", kind="categorical", dtype="int64", column="place")
    folder = run(log=log, schema=schema)
    assert [row_of(folder, "train", "a", item)["code"] for item in "xyz"] == [3, 4, 5]
    assert row_of(folder, "train", "d", "x")["code"] == -1
    assert DatasetSchema.load(folder).vocabularies["code"] == [3, 4, 5]


def test_other_scripts_are_texts_like_any_other(run):
    names = {"x": "日本語", "y": "Ωμέγα", "z": "مرحبا"}
    log = LOG.assign(what=LOG["what"].replace(names), place="город")
    items = ITEMS.assign(what=ITEMS["what"].replace(names), tags="ταινία|映画")
    log = log.rename(columns={"what": "προϊόν"})
    schema = changed(item_id={"column": "προϊόν", "name": "item"}, items={**SCHEMA["items"], "id": "what"})
    folder = run(log=log, table=items, schema=schema)
    row = row_of(folder, "train", "a", "日本語")
    assert (row["past"], row["tags"], row["place"]) == (["مرحبا", "Ωμέγα"], ["ταινία", "映画"], "город")
    assert DatasetSchema.load(folder).vocabularies["tags"] == ["ταινία", "映画"]


def test_side_table_of_users_and_the_users_id_as_a_feature(run, tmp_path):
    pd.DataFrame({"id": list("abd"), "born": [1980, 1990, 2000]}).to_parquet(tmp_path / "users.parquet")
    features = [*SCHEMA["features"], {"name": "who", "kind": "categorical", "entity": "user"}]
    users = {"id": "id", "features": [{"name": "born", "kind": "numeric"}]}
    schema = changed(features=features, users=users)
    folder = run(schema=schema, users=str(tmp_path / "users.parquet"))
    assert row_of(folder, "train", "a", "x")["born"] == 1980.0
    assert math.isnan(row_of(folder, "test", "c", "z")["born"])
    assert DatasetSchema.load(folder).feature("who").entity == "user"
    assert DatasetSchema.load(folder).vocabularies["who"] == ["a", "d"]


def test_label_column_of_booleans_and_of_texts(run):
    label = changed(label={"column": "liked"})
    labels = {}
    for values in (
        LOG["stars"] > 3,
        (LOG["stars"] > 3).astype(int),
        (LOG["stars"] > 3).map({True: "TRUE", False: "false"}),
    ):
        folder = run(log=LOG.assign(liked=values), schema=label)
        labels[str(values.dtype)] = [row["label"] for row in read(folder, "train")]
    assert len({tuple(values) for values in labels.values()}) == 1
    assert sum(next(iter(labels.values()))) == 3


def test_sequences_given_in_the_log_are_trimmed_at_their_old_end(run, tmp_path):
    log = LOG.assign(clicks=["p,q,r", "", "p", "q,,r"] + ["p"] * 6)
    feature = {"name": "clicks", "kind": "sequence", "separator": ",", "length": 2}
    assert row_of(run(log=log, schema=with_feature(**feature)), "train", "a", "x")["clicks"] == ["p", "q"]
    folder = run(log=log, schema=with_feature(**feature, newest="last"))
    assert row_of(folder, "train", "a", "x")["clicks"] == ["r", "q"]
    assert row_of(folder, "train", "a", "y")["clicks"] == []
    assert row_of(folder, "train", "a", "z")["clicks"] == ["r", ""]  # the gap keeps its place
    arrays = LOG.assign(clicks=[[1, 2, 3], None, [], [4]] + [[5]] * 6)
    arrays.to_parquet(tmp_path / "log.parquet")
    feature = {"name": "clicks", "kind": "sequence", "dtype": "int64", "length": 2}
    folder = run(schema=with_feature(**feature), data=str(tmp_path / "log.parquet"))
    assert row_of(folder, "train", "a", "x")["clicks"] == [1, 2]
    assert row_of(folder, "train", "a", "y")["clicks"] == []


def test_max_rows_reads_the_beginning(run):
    folder = run(max_rows=8)
    assert read_job(folder)["result"]["rows"] == 8


def test_schema_in_a_file_of_its_own_and_flags(run, tmp_path):
    expected = pq.read_table(run() / "train.parquet")
    (tmp_path / "schema.yaml").write_text(json.dumps(SCHEMA))
    parser = argparse.ArgumentParser()
    add_flags(parser, PrepareConfig)
    assert "cold_items" in {action.dest for action in parser._actions if action.help}
    flags = {
        "--schema": tmp_path / "schema.yaml",
        "--data": tmp_path / "log.csv",
        "--items": tmp_path / "items.csv",
        "--output": tmp_path / "flags",
        "--split": "{by: column, column: part}",
    }
    arguments = parser.parse_args([str(text) for flag in flags.items() for text in flag])
    prepare(from_flags(PrepareConfig, arguments))
    assert_same(pq.read_table(tmp_path / "flags" / "train.parquet"), expected)


# Bad input


def refused(run, tmp_path, error, message, **changes):
    with pytest.raises(error, match=message):
        run(**changes)
    left = {path.name for path in tmp_path.iterdir()} - {"log.csv", "items.csv", "users.csv", "log.parquet"}
    assert not left, "half a result is left behind"


def cell(row, column, value):
    log = LOG.astype(object)
    log.loc[row, column] = value
    return log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log": LOG[:0]}, r"log\.csv: not one row"),
        ({"log": LOG[:1]}, r"the log has 1 example\(s\) and not one negative"),
        ({"log": LOG.assign(stars=1)}, r"the log has 10 example\(s\) and not one positive.*Check the label"),
        ({"log": LOG.assign(stars=5)}, "not one negative"),
        ({"log": LOG.rename(columns={"what": "wat"})}, r"log\.csv: no column is called `what`. Did you mean `wat`\?"),
        (
            {"log": LOG.rename(columns={"when": "moment"})},
            r"no column is called `when`. It has: who, what, stars, moment",
        ),
        ({"log": cell(2, "stars", "good")}, r"log\.csv, row 3, column `stars`: 'good' is not a number"),
        (
            {"log": cell(4, "stars", "")},
            r"row 5, column `stars`: the value is missing, and the label's rule 'stars > 3'",
        ),
        ({"log": cell(4, "stars", "1e999")}, r"row 5, column `stars`: '1e999' is not a finite float32"),
        ({"log": cell(3, "who", "")}, r"row 4, column `who`: the user's id is missing"),
        ({"log": cell(3, "when", "")}, r"row 4, column `when`: the time is missing"),
        ({"log": cell(3, "when", "soon")}, r"row 4, column `when`: 'soon' is not a number, as the times before it are"),
        (
            {"log": cell(0, "when", "soon")},
            r"row 1, column `when`: 'soon' is neither a number nor an ISO 8601 datetime",
        ),
        (
            {"log": cell(1, "part", "dev")},
            r"row 2, column `part`: 'dev' is not a part. Expected one of: train, validation, test",
        ),
        ({"log": LOG.assign(part="train")}, r"the validation part \(split by column\) has no examples"),
        ({"log": LOG.assign(who="a"), "split": {"by": "user"}}, r"has 1 user\(s\) with examples.*\{by: time\}"),
        ({"log": LOG.assign(when=3), "split": {"by": "time"}}, r"the train part \(split by time\) has no examples"),
        (
            {"table": ITEMS.assign(what="x")},
            r"items\.csv, row 2, column `what`: the id 'x' is there already \(.*row 1\)",
        ),
        ({"table": ITEMS.assign(what=["x", "", "z"])}, r"items\.csv, row 2, column `what`: the id is missing"),
        ({"table": ITEMS.assign(price="cheap")}, r"items\.csv, row 1, column `price`: 'cheap' is not a number"),
        ({"table": ITEMS.assign(maker="ACME")}, r"column `maker`: 'ACME' is not a whole number.*declare dtype: string"),
        (
            {"table": ITEMS.rename(columns={"tags": "tag"})},
            r"items\.csv: no column is called `tags`. Did you mean `tag`",
        ),
        ({"data": "nowhere.csv"}, r"nowhere\.csv: no such file or folder"),
        ({"table": ITEMS[:0]}, r"items\.csv: not one row"),
        (
            {"schema": with_feature(name="older", kind="sequence", of="itm", length=3)},
            r"feature `older`: `of: itm` is neither a feature nor a column of .*log\.csv\. Did you mean `item`",
        ),
        (
            {"schema": with_feature(name="given", kind="sequence", column="place", length=3)},
            r"column `place`: the column is text, not lists. Declare the `separator`",
        ),
    ],
)
def test_bad_data_is_refused(run, tmp_path, changes, message):
    refused(run, tmp_path, DataError, message, **changes)


def test_negative_integer_ids_are_refused(run, tmp_path):
    schema = changed(item_id={"column": "what", "name": "item", "dtype": "int64"}, items=None)
    log = LOG.assign(what=[1, 2, 1, -3, 3, 2, 4, 2, 1, 3])
    message = r"row 4, column `what`: -3 is not an int64 of 0 or more.*declare dtype: string"
    refused(run, tmp_path, DataError, message, log=log, schema=schema, items=None)
    message = r"row 4, column `what`: -1 cannot be an id: it stands for a missing value.*declare dtype: string"
    refused(run, tmp_path, DataError, message, log=log.replace({"what": {-3: -1}}), schema=schema, items=None)
    message = r"row 4, column `what`: '99999999999999999999' is not a whole number of 64 bits"
    log = log.astype(object).replace({"what": {-3: "99999999999999999999"}})
    refused(run, tmp_path, DataError, message, log=log, schema=schema, items=None)


def test_a_column_of_the_wrong_type_is_refused(run, tmp_path):
    LOG.assign(when=[[1]] * 10).to_parquet(tmp_path / "log.parquet")
    message = r"log\.parquet, column `when`: a column of type list<.*> cannot be read as numbers"
    refused(run, tmp_path, DataError, message, data=str(tmp_path / "log.parquet"))


def test_unreadable_files_are_refused(run, tmp_path):
    for name, content, message in (
        (
            "log.csv",
            b"who,what\n1,2\n1,2,3\n",
            r"not a readable CSV file: .*Expected 2 columns, got 3.*Check `delimiter`",
        ),
        ("log.csv", LOG.to_csv(index=False).replace("web", "wéb").encode("latin-1"), r"invalid UTF8.*`encoding`"),
        ("log.csv", b"", "not a readable CSV file"),
        ("log.csv", b"who,who,what,stars,when,place,part\n1,1,1,1,1,1,train\n", r"2 columns are called `who`"),
        ("log.parquet", b"PAR1 this is none", r"log\.parquet: not a readable Parquet file"),
    ):
        (tmp_path / name).write_bytes(content)
        schema = {key: value for key, value in SCHEMA.items() if key != "items"}
        config = {"output": str(tmp_path / "out"), "data": str(tmp_path / name), "schema": schema, "split": BY_COLUMN}
        with pytest.raises(DataError, match=message):
            prepare(from_mapping(PrepareConfig, config, source="test"))
        (tmp_path / name).unlink()
        assert list(tmp_path.iterdir()) == []
    config["data"] = str(tmp_path)
    with pytest.raises(DataError, match="the folder holds no Parquet or CSV file"):
        prepare(from_mapping(PrepareConfig, config, source="test"))
    (tmp_path / "log.xlsx").write_text("")
    config["data"] = str(tmp_path / "log.xlsx")
    with pytest.raises(DataError, match=r"log\.xlsx: cannot tell the format from its name"):
        prepare(from_mapping(PrepareConfig, config, source="test"))


def test_an_encoding_that_there_is_not_is_refused(run, tmp_path):
    message = r"log\.csv: not a readable CSV file: unknown encoding: utf-99.*Check `delimiter` and `encoding`"
    refused(run, tmp_path, DataError, message, schema=changed(encoding="utf-99"))


def test_group_of_given_sequences_needs_equal_lengths(run, tmp_path):
    log = LOG.assign(one=["p,q"] * 10, two=["1,2"] * 4 + ["1"] + ["1,2"] * 5)
    given = {"kind": "sequence", "separator": ",", "length": 5, "group": "g"}
    schema = changed(features=[{"name": "one", **given}, {"name": "two", **given}])
    message = r"row 5, column `two`: the sequences `one` and `two` of the group `g` are of different lengths"
    refused(run, tmp_path, DataError, message, log=log, schema=schema)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cold_item": 0.1}, "`cold_item` is not a known key. Did you mean `cold_items`?"),
        ({"cold_items": 1.0}, "`cold_items` is a fraction"),
        (
            {"split": {"by": "user", "fractions": [0.8, 0.1, 0.2]}},
            r"`split`: `fractions` are three numbers.*sum to 1\.1",
        ),
        ({"split": {"by": "user", "fractions": [0.9, 0.1, 0.0]}}, "three numbers above 0"),
        ({"split": {"by": "column"}}, "`column` goes with `by: column`"),
        (
            {"history_only": {"fraction": 1.5}},
            "`history_only`: `fraction` must be at least 0 and below 1. Received: 1.5",
        ),
        ({"schema": None}, "`schema` is missing"),
        ({"schema": "nowhere.yaml"}, r"`schema`: nowhere\.yaml: no such file"),
        ({"data": None}, "`data` is missing: it names the log"),
        ({"items": None}, r"`items` is missing: it names the table that `schema\.items` describes"),
        ({"users": "users.csv"}, r"`schema\.users` is missing"),
        ({"movielens": {}}, "`movielens` goes with the sources movielens and tfds"),
        ({"source": "movielens"}, "`items` goes with the source log"),
        ({"schema": changed(timestmp="when")}, r"`schema\.timestmp` is not a known key. Did you mean `timestamp`"),
        ({"schema": changed(user_id={})}, r"`schema\.user_id\.column` is missing"),
        ({"schema": changed(label={})}, r"`schema\.label`: a label needs either `column` or `rule`"),
        ({"schema": changed(label={"rule": "exit()"})}, r"`schema\.label`: 'exit\(\)' is not a rule. A rule compares"),
        (
            {"schema": changed(item_id={"column": "the item"})},
            "'the item' cannot be the name of a model's input.*Give a `name`",
        ),
        (
            {"schema": with_feature(name="f", kind="categorial")},
            r"`schema\.features\.4\.kind`: Input should be 'categorical'",
        ),
        ({"schema": with_feature(name="f", kind="numeric", vocabluary="f")}, "Did you mean `vocabulary`"),
        ({"schema": with_feature(name="f", kind="numeric", length=3)}, "`length` means nothing for a numeric feature"),
        (
            {"schema": with_feature(name="f", kind="numeric", dtype="int64")},
            "dtype int64 does not go with kind numeric",
        ),
        ({"schema": with_feature(name="f", kind="multi", separator="|")}, "`f`: a multi feature needs `length`"),
        ({"schema": with_feature(name="f", kind="sequence", of="item", length=0)}, "`length` must be at least 1"),
        (
            {"schema": with_feature(name="f", kind="sequence", of="item", column="what", length=2)},
            r"`column` means nothing for a built sequence \(`of`\)",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", column="what", length=2, where="label == 1")},
            "`where` means nothing for a sequence feature read from a column",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", column="what", length=2, history_only=True)},
            "`history_only` means nothing for a sequence feature read from a column",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", of="item", length=2, group="past", history_only=True)},
            "need the same `length`, `where` and `history_only`",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", of="tags", length=2)},
            "built of a categorical feature or of a column, and `tags` is multi",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", of="f", length=2)},
            "built of a categorical feature or of a column, and `f` is sequence",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", of="item", dtype="int64", length=2)},
            "it is built of `item`, which is string, not int64",
        ),
        (
            {"schema": with_feature(name="f", kind="categorical", vocabulary="maker")},
            r"`maker` \(int64\) and `f` \(string\) share the vocabulary `maker`",
        ),
        (
            {"schema": with_feature(name="f", kind="sequence", of="item", length=9, group="past")},
            "`past` and `f` are in the group `past` and so need the same `length`",
        ),
        ({"schema": with_feature(name="place", kind="categorical")}, "two features are called `place`"),
        (
            {"schema": with_feature(name="label", kind="categorical")},
            "`label` is taken by a column of the prepared tables",
        ),
        (
            {"schema": with_feature(name="who", kind="categorical", column="place")},
            "`who` has the name of the user's id",
        ),
        ({"schema": changed(item_id={"column": "what", "name": "who"})}, "are both called `who`"),
        (
            {"schema": changed(items={"features": [{"name": "f", "kind": "sequence", "of": "item", "length": 2}]})},
            "a sequence is built from the log, not from a side table",
        ),
    ],
)
def test_bad_configuration_is_refused(run, tmp_path, changes, message):
    refused(run, tmp_path, ConfigError, message, **changes)


def test_a_folder_that_prepare_did_not_write_is_left_alone(run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all my work")
    with pytest.raises(ConfigError, match="holds something that `prepare` did not write"):
        run()
    assert (folder / "thesis.txt").read_text() == "all my work"


def test_a_failure_leaves_the_earlier_result_as_it_was(run, tmp_path, monkeypatch):
    run()
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.parquet")}

    def full_disk(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DatasetSchema, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(seed=2)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.parquet")}
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "items.csv", "out"}
