"""Indexed examples: what training reads is what the tables hold, each row once an epoch, in an order that epoch and seed decide."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_world as world

from kser_tf import KnowledgeStore
from kser_tf.errors import DataError
from kser_tf.schema import DatasetSchema

pytestmark = pytest.mark.tfrs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("examples")
    world.make_prepared(made)
    world.make_store(made)
    return made


@pytest.fixture
def examples(folder):
    from kser_tf.pipelines.examples import IndexedExamples

    return IndexedExamples(folder / "prepared", "train", {"item": KnowledgeStore.open(folder / "store")})


def test_indices_are_those_of_the_vocabulary(folder, examples):
    schema = DatasetSchema.load(folder / "prepared")
    index = {"": 0, **{value: i + 2 for i, value in enumerate(schema.vocabularies["item"])}}
    table = pq.read_table(folder / "prepared" / "train.parquet")
    np.testing.assert_array_equal(examples.tensors["item"], [index.get(item, 1) for item in table["item"].to_pylist()])
    past = [([index.get(item, 1) for item in items] + [0] * 5)[:5] for items in table["past_item"].to_pylist()]
    np.testing.assert_array_equal(examples.tensors["past_item"], past)
    rows = {item: i for i, item in enumerate(KnowledgeStore.open(folder / "store").ids)}
    np.testing.assert_array_equal(
        examples.tensors["item/row"], [rows.get(item, -1) for item in table["item"].to_pylist()]
    )


def test_batches_keep_the_tables_order(examples):
    labels = np.concatenate([labels for _, labels in examples.batches(100).as_numpy_iterator()])
    np.testing.assert_array_equal(labels, examples.labels)


def test_no_thread_tunes_what_is_fixed(examples):
    """TensorFlow's tuner looks up every so often, after minutes once in 60 s, and an iteration ends when it does."""
    for dataset in (
        examples.batches(100),
        examples.shuffled_batches(100, seed=1, epochs=2),
        examples.some(100, 10),
    ):
        assert dataset.options().autotune.enabled is False


def marked(examples, **arguments):
    """The row numbers of shuffled batches, batch by batch."""
    examples.tensors = {"row": np.arange(len(examples))}
    return [features["row"] for features, _ in examples.shuffled_batches(100, **arguments).as_numpy_iterator()]


def test_every_row_comes_once_an_epoch(examples):
    steps = examples.steps(100)
    batches = marked(examples, seed=1, epochs=2)
    first, second = np.concatenate(batches[:steps]), np.concatenate(batches[steps:])
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(len(examples)))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(len(examples)))


def test_a_later_epoch_is_the_same_wherever_one_begins(examples):
    steps = examples.steps(100)
    through = marked(examples, seed=3, epochs=3)
    resumed = marked(examples, seed=3, epochs=3, first_epoch=2)
    for ours, theirs in zip(resumed, through[2 * steps :], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(marked(examples, seed=4, epochs=1)[0], through[0])


def test_a_smaller_share_of_the_users_lies_within_a_larger_one():
    from kser_tf.pipelines.examples import chosen_users

    users = np.array([f"фильм-{i}" for i in range(100)] * 3, object)
    before: set = set()
    for share, number in ((0.01, 1), (0.03, 3), (0.1, 10), (0.295, 30), (1.0, 100)):
        chosen = chosen_users(users, share)
        assert len(set(users[chosen])) == number
        assert chosen.sum() == 3 * number  # all rows of a user, or none
        assert before <= set(users[chosen])
        before = set(users[chosen])
    # The ids decide, not their places.
    shuffled = users[np.random.default_rng(0).permutation(300)]
    assert set(shuffled[chosen_users(shuffled, 0.1)]) == set(users[chosen_users(users, 0.1)])


def test_examples_of_a_share_of_the_users(folder, examples):
    from kser_tf.pipelines.examples import IndexedExamples, chosen_users

    stores = {"item": KnowledgeStore.open(folder / "store")}
    few = IndexedExamples(folder / "prepared", "train", stores, users=0.25)
    rows = np.flatnonzero(chosen_users(examples.column("user"), 0.25))
    assert 0 < len(rows) < len(examples) / 3
    assert len(few) == len(rows)
    np.testing.assert_array_equal(few.labels, examples.labels[rows])
    np.testing.assert_array_equal(few.column("item"), examples.column("item")[rows])
    batches = list(few.batches(64).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), few.labels)
    for name, tensor in examples.tensors.items():
        np.testing.assert_array_equal(
            np.concatenate([features[name] for features, _ in batches]), tensor.numpy()[rows], err_msg=name
        )
    few.tensors = {"row": np.arange(len(examples))}
    epoch = [features["row"] for features, _ in few.shuffled_batches(64, seed=1, epochs=1).as_numpy_iterator()]
    np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), rows)


def test_raw_features_are_padded_requests(folder):
    from kser_tf.pipelines.examples import raw_features

    schema = DatasetSchema.load(folder / "prepared")
    table = pq.read_table(folder / "prepared" / "test.parquet")
    raw = list(raw_features(folder / "prepared" / "test.parquet", schema.features, 50))
    past = np.concatenate([batch["past_item"] for batch in raw])
    assert past.shape == (table.num_rows, 5)
    for ours, theirs in zip(past.tolist(), table["past_item"].to_pylist(), strict=True):
        assert ours == theirs + [""] * (5 - len(theirs))


def test_another_data_set_is_refused(folder, examples, tmp_path):
    other = DatasetSchema.load(folder / "prepared")
    with pytest.raises(DataError, match="has other features or vocabularies than the data the model was trained on"):
        examples.require_same_schema(
            DatasetSchema(other.features[:2], other.user_id, other.item_id, other.vocabularies)
        )
