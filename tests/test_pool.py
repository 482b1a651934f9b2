"""`kser-tf pool`: knowledge about users, from what they liked before all their examples, and nothing after."""

import numpy as np
import pandas as pd
import pytest
import small_world as world
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from kser_tf import KnowledgeStore, cli
from kser_tf.errors import ConfigError, DataError
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.pool import PoolConfig, pool
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.schema import HISTORY_ONLY_FILE, DatasetSchema

# User a begins with x (liked), y (not), v (liked; nothing is known of it); b with x and z (both not); c with v alone.
LOG = pd.DataFrame(
    [
        *[("a", item, label, time) for time, (item, label) in enumerate([("x", 1), ("y", 0), ("v", 1), ("z", 1)])],
        *[("a", "y", time % 2, time) for time in range(4, 8)],
        *[("b", "x", 0, 0), ("b", "z", 0, 1), ("b", "y", 1, 2), ("b", "y", 0, 3)],
        *[("c", "v", 1, 0), ("c", "x", 1, 1), ("c", "y", 0, 2)],
        *[("d", "x", 1, 0), ("d", "x", 1, 1), ("d", "y", 0, 1), ("d", "z", 1, 2)],
    ],
    columns=["user", "item", "label", "time"],
)
ITEMS = {"x": [[1, 0], [0, 0]], "y": [[0, 3], [4, 5]], "z": [[-2, -2], [0, 0]]}
SCHEMA = {
    "user_id": {"column": "user", "entity": "user"},
    "item_id": {"column": "item"},
    "label": {"column": "label"},
    "timestamp": "time",
}


@pytest.fixture
def store(tmp_path):
    """Two items with one chunk and one with two; in width 2."""
    chunks = np.array(list(ITEMS.values()), np.float32)[:, None]
    mask = np.array([[[1, 0]], [[1, 1]], [[1, 0]]], bool)
    path = tmp_path / "items"
    KnowledgeStore.write(path, list(ITEMS), chunks, mask, fields=["text"], encoder="by hand", dtype="float32")
    return path


def prepared(folder, log=LOG, **changes):
    folder.mkdir(exist_ok=True)
    log.to_parquet(folder / "log.parquet")
    values = {
        "output": str(folder / "prepared"),
        "data": str(folder / "log.parquet"),
        "schema": SCHEMA,
        "split": {"by": "time", "fractions": [0.4, 0.3, 0.3]},
        "history_only": {"fraction": 0.5, "at_most": 3},
        **changes,
    }
    prepare(from_mapping(PrepareConfig, values, source="test"))
    return folder / "prepared"


def pooled(folder, store, **options):
    result = pool(PoolConfig(prepared=str(folder), store=str(store), output=str(folder.parent / "users"), **options))
    return KnowledgeStore.open(folder.parent / "users"), result


def unit(*numbers):
    return np.array(numbers) / np.linalg.norm(numbers)


def test_what_lies_before_all_examples_of_a_user(tmp_path):
    early = pd.read_parquet(prepared(tmp_path / "data") / HISTORY_ONLY_FILE)
    found = early.groupby("user")["item"].agg(list).to_dict()
    # c's first ceil(3 / 2) = 2 interactions; d's second has the time of its first example, and is left out.
    assert found == {"a": ["x", "y", "v"], "b": ["x", "z"], "c": ["v", "x"], "d": ["x"]}
    assert early["label"].tolist() == [1, 0, 1, 0, 0, 1, 1, 1]
    assert not early["item_is_cold"].any()


def test_vectors_by_hand(tmp_path, store):
    users, result = pooled(prepared(tmp_path / "data"), store)
    assert users.fields == ("liked", "disliked")
    chunks, mask = users.lookup(np.array(["a", "b", "c", "d", "e"], object))
    assert chunks.shape == (5, 2, 1, 2)
    assert mask[:, :, 0].tolist() == [[True, True], [False, True], [True, False], [True, False], [False, False]]
    np.testing.assert_allclose(chunks[0, :, 0], [(1, 0), (2, 4)])  # y is the mean of its two chunks
    np.testing.assert_allclose(chunks[1, 1, 0], (-0.5, -1))  # x and z
    np.testing.assert_allclose(chunks[2, 0, 0], (1, 0))  # v is unknown, x liked
    assert not chunks[~mask].any()
    assert result == {
        "users": 4,
        "liked": 3,
        "disliked": 2,
        "interactions": 8,
        "of_cold_items": 0,
        "without_knowledge": 2,
    }


def test_what_all_items_have_in_common_is_taken_off(tmp_path, store):
    users, _ = pooled(prepared(tmp_path / "data"), store, centred=True)
    chunks, mask = users.lookup(np.array(["a", "b"], object))
    assert mask[:, :, 0].tolist() == [[True, True], [False, True]]
    centre = (np.array([1, 0]) + np.array([2, 4]) + np.array([-2, -2])) / 3
    np.testing.assert_allclose(chunks[0, 0, 0], unit(*(np.array([1, 0]) - centre)), rtol=1e-6)
    np.testing.assert_allclose(chunks[1, 1, 0], unit(*(np.array([-1, -2]) - 2 * centre)), rtol=1e-6)


def test_batches_make_no_difference(tmp_path, store, monkeypatch):
    import kser_tf.pipelines.pool as module

    folder = prepared(tmp_path / "data")
    whole, _ = pooled(folder, store)
    chunks, mask = whole.lookup(whole.ids)
    monkeypatch.setattr(module, "_BATCH", 1)
    parts, _ = pooled(folder, store, dtype="float16")
    assert parts.ids.tolist() == whole.ids.tolist()
    found, found_mask = parts.lookup(whole.ids)
    np.testing.assert_array_equal(found_mask, mask)
    np.testing.assert_allclose(found, chunks, atol=4e-3)


def test_cold_items_do_not_count(tmp_path, store):
    others = [(f"e{i}", "xyzv"[(i + time) % 4], (i + time) % 2, time) for i in range(12) for time in range(9)]
    log = pd.concat([LOG, pd.DataFrame(others, columns=LOG.columns)])
    for seed in range(20):
        folder = tmp_path / f"data-{seed}"
        try:
            data = prepared(folder, log, cold_items=0.3, seed=seed)
        except DataError:  # a part was left without a positive
            continue
        early = pd.read_parquet(data / HISTORY_ONLY_FILE)
        if set(early["item"][early["item_is_cold"]]) == {"z"}:
            break
    else:
        pytest.fail("no seed takes z out")
    users, result = pooled(data, store)
    assert result["of_cold_items"] == (early["item"] == "z").sum() > 1
    chunks, _ = users.lookup(np.array(["b"], object))
    np.testing.assert_allclose(chunks[0, 1, 0], (1, 0))  # x is left, of x and z


def test_what_is_done_is_not_done_again(tmp_path, store, capsys):
    folder = prepared(tmp_path / "data")
    arguments = ["pool", "--prepared", str(folder), "--store", str(store), "--output", str(tmp_path / "users")]
    assert cli.main(arguments) == 0
    before = (tmp_path / "users" / "job.json").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert (tmp_path / "users" / "job.json").stat().st_mtime_ns == before
    assert '"users": 4' in capsys.readouterr().out


def test_what_cannot_be_pooled(tmp_path, store):
    data = prepared(tmp_path / "data", history_only={})
    with pytest.raises(DataError, match="so there is nothing to pool"):
        pooled(data, store)
    (data / HISTORY_ONLY_FILE).unlink()
    with pytest.raises(DataError, match=r"an earlier version wrote this data set. Prepare it anew"):
        pooled(data, store)
    strangers = tmp_path / "strangers"
    KnowledgeStore.write(strangers, ["q"], np.ones((1, 1, 1, 2)), np.ones((1, 1, 1), bool), fields=["t"], encoder="e")
    with pytest.raises(DataError, match="none of the items that users began with has knowledge"):
        pooled(prepared(tmp_path / "other"), strangers)
    assert not (tmp_path / "other" / "users").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that `pool` did not write"):
        pool(PoolConfig(prepared=str(data), store=str(store), output=str(tmp_path / "mine")))


@st.composite
def logs(draw):
    """Unordered logs with equal times; and beside them what they might have been after each user's first examples."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from("xyzv"), st.integers(0, 6), st.integers(0, 1)),
            min_size=20,
            max_size=40,
        )
    )
    log = pd.DataFrame(rows, columns=["user", "item", "time", "label"]).assign(
        user=lambda of: "u" + of["user"].astype(str)
    )
    other = [(draw(st.sampled_from("xyzv")), draw(st.integers(0, 1))) for _ in rows]
    return log, pd.DataFrame(other, columns=["item", "label"])


@given(both=logs(), fraction=st.sampled_from([0.2, 0.5, 0.7]), by=st.sampled_from(["user", "time"]))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_a_users_vector_hangs_on_nothing_from_the_first_example_on(tmp_path_factory, store, both, fraction, by):
    """The times of a user's interactions stay; what they were of, and what came of them, changes from the first example on."""
    log, other = both
    order = log.assign(row=range(len(log))).sort_values(["user", "time", "row"], kind="stable")
    rank = order.groupby("user").cumcount()
    size = order.groupby("user")["row"].transform("size")
    is_example = rank >= np.ceil(size * fraction - 1e-9)
    first = order["time"].where(is_example).groupby(order["user"]).transform("min")
    later = order["row"][~(order["time"] < first)].to_numpy()
    changed = log.copy()
    changed.loc[later, ["item", "label"]] = other.loc[later, ["item", "label"]]
    found = []
    for one in (log, changed):
        folder = tmp_path_factory.mktemp("data")
        split = {"by": by, "fractions": [0.4, 0.3, 0.3]}
        try:
            data = prepared(folder, one, history_only={"fraction": fraction}, split=split)
            users, _ = pooled(data, store)
        except DataError:  # a part without a positive, or nothing to pool
            reject()
        found.append((users.ids.tolist(), *users.lookup(users.ids)))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][2], found[1][2])


# --- in a model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small world with knowledge about users."""
    folder = tmp_path_factory.mktemp("small")
    values = {
        "output": str(folder / "prepared"),
        "data": str(world.write_log(folder)),
        "schema": {**world.SCHEMA, "user_id": {"column": "user", "entity": "user"}},
        "split": {"by": "user", "fractions": [0.6, 0.2, 0.2]},
        "history_only": {"fraction": 0.4, "at_most": 12},
    }
    prepare(from_mapping(PrepareConfig, values, source="test"))
    items = world.make_store(folder)
    users = folder / "users"
    pool(PoolConfig(prepared=values["output"], store=str(items), output=str(users)))
    return folder / "prepared", {"item": items, "user": users}


def test_no_user_has_an_embedding(small):
    schema = DatasetSchema.load(small[0])
    assert schema.features[1].name == schema.user_id == "user"
    assert (schema.features[1].entity, schema.vocabularies["user"]) == ("user", [])
    assert "user" not in schema.protocol["min_counts"]
    test = pd.read_parquet(small[0] / "test.parquet")
    assert set(test["user"]) <= {f"u{i}" for i in range(world.USERS)}


@pytest.mark.tfrs
@pytest.mark.parametrize("adaptor", ["kser", "kar"])
def test_a_model_knows_users_by_their_knowledge_alone(small, adaptor, tmp_path, check_in_process, no_cpp_program):
    import kser_tf
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.pipelines.examples import raw_features

    prepared, paths = small
    schema = DatasetSchema.load(prepared)
    stores = {entity: KnowledgeStore.open(path) for entity, path in paths.items()}
    model = kser_tf.RankingModel(
        schema, RankingModelConfig(embedding_width=4, hidden_units=(8,), adaptor=adaptor), stores
    )
    model.make_weights()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.4, weight.shape) for weight in model.get_weights()])
    rows = next(raw_features(prepared / "test.parquet", schema.features, 8))
    rows = {name: np.repeat(values[:1], 4, 0) for name, values in rows.items()}
    known = stores["user"].ids[:2].tolist()
    rows["user"] = np.array([*known, "nobody", "nobody else"], object)
    logits = model.serve(rows)["logit"].numpy()
    assert abs(logits[0] - logits[1]) > 1e-3
    assert abs(logits[0] - logits[2]) > 1e-3
    assert logits[2] == logits[3]
    # The same user with the other's knowledge is the other.
    chunks, mask = stores["user"].lookup(np.array(known, object))
    given = {**rows, "user_chunks": np.repeat(chunks[1:], 4, 0), "user_mask": np.repeat(mask[1:], 4, 0)}
    chunks, mask = stores["item"].lookup(rows["item"])
    given |= {"item_chunks": chunks, "item_mask": mask}
    np.testing.assert_allclose(model.serve(given)["logit"].numpy(), logits[1], rtol=1e-5)
    result = kser_tf.export(model, tmp_path, examples=rows, signatures=())
    report = kser_tf.check(result.path)
    assert report.ok, report.text()


@pytest.mark.tfrs
def test_training_with_both_stores(small, tmp_path):
    from kser_tf.pipelines.train import TrainConfig, train

    prepared, stores = small
    common = {"prepared": str(prepared), "epochs": 1, "tensorboard": False, "model": {"embedding_width": 4}}
    base = {**common, "output": str(tmp_path / "base")}
    assert train(from_mapping(TrainConfig, base, source="test"))["epochs"] == 1
    paths = {entity: str(path) for entity, path in stores.items()}
    for strategy, further in (("all_parameters", {}), ("extractor_only", {"base": base["output"]})):
        values = {**common, "output": str(tmp_path / strategy), "strategy": strategy, "stores": paths, **further}
        assert train(from_mapping(TrainConfig, values, source="test"))["epochs"] == 1
