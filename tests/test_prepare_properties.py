"""`prepare` over random logs: no example sees its own future, and every row is what a slow reference says."""

import bisect
import collections
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from kser_tf.errors import DataError
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.history import History, TimeOrder
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.schema import SPLITS, DatasetSchema

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
LENGTH = 3

interaction = st.tuples(
    st.integers(0, 4),  # user
    st.integers(0, 5),  # item
    st.integers(0, 12),  # time: few, so that many are equal
    st.booleans(),  # label
    st.sampled_from(["p", "q", ""]),  # place
)


@st.composite
def logs(draw):
    """Unordered logs with equal times and repeated items, in which each user has a positive and a negative."""
    rows = draw(st.lists(interaction, min_size=5, max_size=40))
    for user in range(5):
        for label in (True, False):
            rows.append((user, draw(st.integers(0, 5)), draw(st.integers(0, 12)), label, "p"))
    log = pd.DataFrame(draw(st.permutations(rows)), columns=["user", "item", "time", "label", "place"])
    return log.assign(row=np.arange(len(log)), item="i" + log["item"].astype(str), label=log["label"].astype(int))


@st.composite
def configurations(draw):
    split = draw(
        st.sampled_from([{"by": "user", "fractions": [0.6, 0.2, 0.2]}, {"by": "time", "fractions": [0.5, 0.25, 0.25]}])
    )
    return {
        "split": split,
        "cold_items": draw(st.sampled_from([0.0, 0.2])),
        "history_only": {"fraction": draw(st.sampled_from([0.0, 0.3])), "at_most": draw(st.sampled_from([None, 1]))},
        "seed": draw(st.integers(0, 3)),
    }


def schema(timed):
    built = {"kind": "sequence", "length": LENGTH}
    return {
        "user_id": {"column": "user", "dtype": "int64"},
        "item_id": {"column": "item"},
        "label": {"column": "label"},
        **({"timestamp": "time"} if timed else {}),
        "features": [
            {"name": "row", "kind": "categorical", "dtype": "int64"},
            {"name": "place", "kind": "categorical"},
            {"name": "past_item", "of": "item", "group": "past", **built},
            {"name": "past_row", "of": "row", "group": "past", **built},
            {"name": "past_liked", "of": "item", "where": "label == 1 and place != 'q'", **built},
        ],
    }


def prepared(folder, log, timed, configuration):
    """The rows of all parts, by the number of their interaction, each with its part; and the schema."""
    log.to_parquet(folder / "log.parquet")
    output = folder / "out"
    values = {"data": str(folder / "log.parquet"), "output": str(output), "schema": schema(timed), **configuration}
    try:
        prepare(from_mapping(PrepareConfig, values, source="test"))
    except DataError as error:
        if "has no examples" in str(error) or "not one" in str(error):
            reject()  # a part of so small a log may lack a class
        raise
    rows = {}
    for part in SPLITS:
        for row in pq.read_table(output / f"{part}.parquet").to_pylist():
            assert row["row"] not in rows
            rows[row["row"]] = {**row, "part": part}
    return rows, DatasetSchema.load(output)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def past_of(log, row, times):
    """The user's strictly earlier interactions, the most recent first: one comparison at a time."""
    earlier = [
        other for other in range(len(log)) if log["user"][other] == log["user"][row] and times[other] < times[row]
    ]
    return sorted(earlier, key=lambda other: (times[other], other), reverse=True)


@SETTINGS
@given(log=logs(), timed=st.booleans(), configuration=configurations())
def test_no_example_sees_its_own_future(tmp_path, log, timed, configuration):
    rows, _ = prepared(tmp_path, log, timed, configuration)
    times = log["time"] if timed else pd.Series(range(len(log)))
    for number, row in rows.items():
        for other in row["past_row"]:
            assert log["user"][other] == log["user"][number]
            assert times[other] < times[number]


@SETTINGS
@given(log=logs(), timed=st.booleans(), configuration=configurations())
def test_everything_is_what_the_reference_says(tmp_path, log, timed, configuration):
    rows, learned = prepared(tmp_path, log, timed, configuration)
    times = list(log["time"]) if timed else list(range(len(log)))
    part_of = {number: row["part"] for number, row in rows.items()}

    # Which interactions are examples: all but each user's first, and but cold items in train and validation.
    fraction, at_most = configuration["history_only"]["fraction"], configuration["history_only"]["at_most"]
    candidates = set()
    for user in range(5):
        mine = sorted((row for row in range(len(log)) if log["user"][row] == user), key=lambda row: (times[row], row))
        prefix = 0
        while prefix < len(mine) * fraction and prefix != at_most:
            prefix += 1
        candidates |= set(mine[prefix:])
    assert set(rows) <= candidates
    items = {log["item"][row] for row in candidates}
    dropped = {log["item"][row] for row in candidates - set(rows)}
    marked = {row["item"] for row in rows.values() if row["item_is_cold"]}
    cold = dropped | marked
    assert len(cold) == round(len(items) * configuration["cold_items"])

    # How they are divided.
    if configuration["split"]["by"] == "user":
        owners = [{log["user"][row] for row in rows if part_of[row] == part} for part in SPLITS]
        assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    else:
        ends = [[times[row] for row in rows if part_of[row] == part] for part in SPLITS]
        assert max(ends[0]) < min(ends[1])
        assert max(ends[1]) < min(ends[2])

    # Each row.
    training = [row for row in rows if part_of[row] == "train"]
    for number, row in rows.items():
        past = past_of(log, number, times)
        if row["part"] == "train":
            past = [other for other in past if log["item"][other] not in cold]
        liked = [other for other in past if log["label"][other] == 1 and log["place"][other] == "p"]
        assert row["past_row"] == past[:LENGTH]
        assert row["past_item"] == [log["item"][other] for other in past[:LENGTH]]
        assert row["past_liked"] == [log["item"][other] for other in liked[:LENGTH]]
        assert (row["item"], row["user"], row["label"], row["place"]) == tuple(
            log.loc[number, ["item", "user", "label", "place"]]
        )
        assert ("timestamp" in row) == timed
        assert row.get("timestamp", times[number]) == times[number]
        assert row["user_interactions"] == sum(log["user"] == log["user"][number])
        assert row["item_training_rows"] == sum(log["item"][other] == row["item"] for other in training)
        assert row["item_is_cold"] == (row["item"] in cold)
        if row["part"] != "test":
            assert row["item"] not in cold

    # The vocabularies.
    counts = {name: collections.Counter() for name in ("item", "place", "row")}
    for number in training:
        row = rows[number]
        counts["item"].update([row["item"], *row["past_item"], *row["past_liked"]])
        counts["row"].update([row["row"], *row["past_row"]])
        counts["place"].update([row["place"]] if row["place"] else [])
    assert learned.vocabularies == {
        name: sorted(counter, key=lambda value: (-counter[value], value)) for name, counter in counts.items()
    }


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5), st.booleans()), min_size=1, max_size=60),
    length=st.integers(1, 6),
    timed=st.booleans(),
)
def test_histories_are_what_a_sorted_list_says(rows, length, timed):
    users, times, keep = (np.array(column) for column in zip(*rows, strict=True))
    offsets, past = History(TimeOrder(users, times if timed else None), length, keep).before(np.arange(len(rows)))
    for number, user in enumerate(users):
        when = (lambda other: times[other]) if timed else (lambda other: other)
        mine = sorted((when(other), other) for other in range(len(rows)) if users[other] == user and keep[other])
        earlier = mine[: bisect.bisect_left(mine, (when(number), -1))]
        expected = [other for _, other in earlier[::-1][:length]]
        assert past[offsets[number] : offsets[number + 1]].tolist() == expected
