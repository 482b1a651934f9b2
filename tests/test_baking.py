"""What is computed ahead, in which form it ships, what it costs, and that it is never there by half."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_world as served
import serving_cases as cases
import small_world as world
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.errors import ExportError
from kser_tf.files import exclusive_lock, sha256_of_file
from kser_tf.layers import KnowledgeExtractor, KnowledgeLookup
from kser_tf.serving import baking, contract
from kser_tf.serving import export as export_module

tfrs = pytest.mark.tfrs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeStore:
    return KnowledgeStore.open(world.make_store(tmp_path_factory.mktemp("store")))


def description(path: Path) -> dict[str, Any]:
    return json.loads((path / contract.DESCRIPTION_FILE).read_text())


def operations(path: Path) -> collections.Counter[str]:
    """The operations of a SavedModel with one signature, but for those that load and save."""
    content = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = content.meta_graphs[0].graph_def
    largest = max(graph.library.function, key=lambda function: len(function.node_def))
    return collections.Counter(node.op for node in largest.node_def)


@tfrs
@pytest.mark.parametrize("backbone", ["din", "dcn_v2"])
def test_a_baked_model_does_what_the_backbone_alone_does(store: KnowledgeStore, tmp_path: Path, backbone: str) -> None:
    """The same operations, each as often: one look-up of each id, one gather; nothing of the extractor."""
    base = kser_tf.export(served.ranking_model(None, backbone), tmp_path / "base", signatures=())
    model = served.ranking_model(store, backbone)
    baked = kser_tf.export(model, tmp_path / "baked", signatures=())
    ours, theirs = operations(baked.path), operations(base.path)
    assert ours["LookupTableFindV2"] == theirs["LookupTableFindV2"] == 5
    assert ours["ResourceGather"] == theirs["ResourceGather"]
    assert ours["MatMul"] + ours["BatchMatMulV2"] == theirs["MatMul"] + theirs["BatchMatMulV2"]
    assert sum(ours.values()) <= sum(theirs.values())
    unbaked = kser_tf.export(model, tmp_path / "unbaked", signatures=(), bake=None)
    assert operations(unbaked.path)["BatchMatMulV2"] > ours["BatchMatMulV2"]


@tfrs
def test_only_the_table_ships_and_its_size_is_told(store: KnowledgeStore, tmp_path: Path) -> None:
    model = served.ranking_model(store)
    rows = served.rows()
    # missing, unknown, ten of the vocabulary, and what of the store's 23 is not among these.
    others = len(set(store.ids) - set(world.ITEMS[:10]))
    count = 2 + 10 + others
    sizes = {}
    for bake, a_row in {"float32": 4 * 4, "float16": 2 * 4, "int8": 4 + 2}.items():
        result = kser_tf.export(model, tmp_path, examples=rows, bake=bake, signatures=())
        assert result.baking["how"] == "baked"
        assert (result.baking["dtype"], result.baking["tables"]) == (bake, ["item"])
        assert result.baking["bytes"]["table of item"] == count * a_row
        assert result.baking == description(result.path)["baking"]
        shapes = [shape for _, shape in tf.train.list_variables(str(result.path / "variables" / "variables"))]
        assert not any(len(shape) > 2 for shape in shapes)
        assert [count, 4] in shapes
        sizes[bake] = result.baking["bytes"]["table of item"]
    assert sizes["float32"] > sizes["float16"] > sizes["int8"]


@tfrs
@pytest.mark.parametrize("bake", ["float16", "int8"])
def test_the_error_of_small_tables_is_bounded_and_told(exported: Callable[[str, Any], Any], bake: Any) -> None:
    case = exported("din", bake)
    model, rows, own, result, serve = case.model, case.rows, case.own, case.result, case.serve
    difference = np.abs(serve(**rows)["logit"].astype(float) - own)
    told = result.baking["logit_difference"]
    np.testing.assert_allclose(
        [told["largest"], told["mean"]], [difference.max(), difference.mean()], rtol=1e-5, atol=1e-6
    )
    assert 0 < told["largest"] < (0.01 if bake == "float16" else 0.1)
    halves = [{name: values[start : start + 32] for name, values in rows.items()} for start in (0, 32)]
    np.testing.assert_allclose(
        baking.logits_when_baked(model, halves, bake), serve(**rows)["logit"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(served.own(model, rows), own)
    # The vectors themselves: float16 keeps 11 bits, int8 is off by half a step of the row's largest / 127.
    ids = np.array([*world.ITEMS, "никто", ""], object)
    exact = exported("din", "float32").serve("embeddings", item_id=ids)["embedding"]
    kept = serve("embeddings", item_id=ids)["embedding"]
    largest = np.abs(exact).max(-1, keepdims=True)
    step = 2.0**-11 * np.abs(exact) if bake == "float16" else largest / 127 / 2 * (1 + 2.0**-3)
    assert (np.abs(kept - exact) <= step + 1e-7).all()


@tfrs
def test_without_baking_the_statistics_are_computed_ahead(exported: Callable[[str, Any], Any]) -> None:
    case = exported("din", None)
    model, store, rows, own, result, serve = case.model, case.store, case.rows, case.own, case.result, case.serve
    assert result.baking["how"] == "precomputed"
    assert result.baking["bytes"]["statistics of item_lookup"] == 4 * 3 * store.mask.size
    assert result.baking["bytes"]["knowledge of item_lookup"] == store.vectors.nbytes + store.mask.nbytes
    np.testing.assert_allclose(serve(**rows)["logit"], own, rtol=1e-5, atol=1e-5)
    embeddings = [
        each("embeddings", item_id=np.array(world.ITEMS, object)) for each in (serve, exported("din", "float32").serve)
    ]
    for name in ("aligned", "embedding"):
        np.testing.assert_allclose(embeddings[0][name], embeddings[1][name], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(served.own(model, rows), own)


def test_a_model_that_offers_nothing_ships_its_knowledge_and_statistics(tmp_path: Path) -> None:
    own_store = cases.write_store(tmp_path / "store")
    model = cases.ranker(own_store)
    rows = cases.rows(40, store=own_store)
    before = np.ravel(model(rows))
    result = kser_tf.export(model, tmp_path / "m", inputs=cases.inputs(own_store), examples=rows)
    assert (result.baking["how"], result.baking["dtype"]) == ("precomputed", None)
    assert result.baking["statistics"] == ["item_lookup"]
    assert result.baking["bytes"]["statistics of item_lookup"] == 4 * 3 * own_store.mask.size
    assert result.baking["bytes"]["knowledge of item_lookup"] == sum(
        array.nbytes for array in (own_store.vectors, own_store.scales, own_store.mask)
    )
    rows["item_id"] = rows["item_id"].astype(object)
    rows["country"] = rows["country"].astype(object)
    np.testing.assert_allclose(served.Served(result.path)(**rows)["logit"], before, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.ravel(model(rows)), before)


def test_statistics_are_known_of_the_very_chunks_and_mask_alone(tmp_path: Path) -> None:
    """Statistics depend on the mask: with another one, they are computed."""
    own_store = cases.write_store(tmp_path / "store", dtype="float32")
    lookup, extractor = KnowledgeLookup(own_store), KnowledgeExtractor(2, 4, output_initializer="glorot_uniform")
    query = tf.ones((6, 1, 4))
    chunks, mask = lookup(tf.constant(own_store.ids))
    extractor(query, chunks, mask=mask)
    rng = np.random.default_rng(0)
    extractor.set_weights([rng.uniform(0.2, 1.0, weight.shape) for weight in extractor.get_weights()])
    fewer = tf.constant(rng.random(mask.shape) < 0.5) & mask
    expected = [extractor(query, chunks, mask=m).numpy() for m in (mask, fewer)]

    def wrong(esf_net: Any, rows: Any) -> Any:
        assert esf_net is extractor.esf_net
        np.testing.assert_array_equal(rows, np.arange(6))
        return tf.ones((6, 2, 3, 3)) * 5.0

    lookup.know_statistics(wrong)
    chunks, mask = lookup(tf.constant(own_store.ids))
    assert np.abs(extractor(query, chunks, mask=mask) - expected[0]).max() > 1e-3
    fewer = fewer & mask
    np.testing.assert_array_equal(extractor(query, chunks, mask=fewer), expected[1])
    np.testing.assert_array_equal(extractor(query, chunks + 0, mask=mask), expected[0])
    lookup.know_statistics(None)
    chunks, mask = lookup(tf.constant(own_store.ids))
    np.testing.assert_array_equal(extractor(query, chunks, mask=mask), expected[0])


def test_a_model_without_knowledge_has_nothing_ahead(tmp_path: Path) -> None:
    x = tf.keras.Input((1,), name="x")
    model = tf.keras.Model({"x": x}, tf.keras.layers.Dense(1)(x))
    result = kser_tf.export(model, tmp_path, inputs={"x": tf.TensorSpec((None, 1), tf.float32)})
    assert (result.baking["how"], result.baking["statistics"], result.baking["tables"]) == ("none", [], [])


@tfrs
def test_the_graph_does_not_grow_with_the_vocabulary(tmp_path: Path) -> None:
    from kser_tf import RankingModel
    from kser_tf.schema import DatasetSchema, Feature

    sizes = []
    for count in (10, 20_000):
        values = [f"значение-{i}" for i in range(count)]
        schema = DatasetSchema(
            features=(
                Feature("item", "categorical", "string", vocabulary="item"),
                Feature("number", "categorical", "int64", vocabulary="number"),
            ),
            user_id="user",
            item_id="item",
            vocabularies={"item": values, "number": list(range(7, 7 + count))},
        )
        tf.keras.backend.clear_session()  # or the second model's name is longer, and stands in every node
        model = RankingModel(schema)
        model.make_weights()
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
        result = kser_tf.export(model, tmp_path / str(count))
        sizes.append((result.path / "saved_model.pb").stat().st_size)
        rows = {
            "item": np.array([values[0], values[-1], "нет", ""], object),
            "number": np.array([7, 6 + count, 7 + count, -1]),
        }
        for _ in range(2):  # the model's own tables are back after the export
            np.testing.assert_allclose(
                served.Served(result.path)(**rows)["logit"], served.own(model, rows), rtol=1e-5, atol=1e-5
            )
    assert abs(sizes[1] - sizes[0]) < 1_000


@tfrs
def test_a_store_that_was_connected_later_is_refused(store: KnowledgeStore, tmp_path: Path) -> None:
    model = served.ranking_model(store)
    chunks, mask = store.lookup(store.ids)
    other = KnowledgeStore.write(
        tmp_path / "other", store.ids[::-1], chunks, mask, fields=["a", "b"], encoder="test", dtype="float32"
    )
    model.embedding.lookups["item"].connect(other)
    with pytest.raises(ExportError, match=f"made with the store {store.fingerprint}, and its look-up is connected"):
        kser_tf.export(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@tfrs
def test_vectors_that_are_no_numbers_are_refused(store: KnowledgeStore, tmp_path: Path) -> None:
    model = served.ranking_model(store)
    table = model.embedding._tables["item"]
    weights = table.get_weights()[0]
    weights[2 + 3] = np.nan
    table.set_weights([weights])
    with pytest.raises(ExportError, match=f"vector of item, id '{world.ITEMS[3]}', holds NaN or infinity"):
        kser_tf.export(model, tmp_path / "m")
    weights[2 + 3] = 1e9
    table.set_weights([weights])
    for bake in ("float16", "int8"):
        with pytest.raises(ExportError, match=f"id '{world.ITEMS[3]}', is too large for {bake}"):
            kser_tf.export(model, tmp_path / "m", bake=bake)
    with pytest.raises(
        ExportError, match=r"`bake` must be one of float32, float16, int8, or None. Received: bake='int4'"
    ):
        kser_tf.export(model, tmp_path / "m", bake="int4")  # type: ignore[arg-type]
    assert not [entry for entry in (tmp_path / "m").iterdir() if entry.name.isdecimal()]


class KnowingEmbedding(tf.keras.layers.Layer):
    """Ids to vectors, the knowledge in them: such a layer offers its table to be baked."""

    def __init__(self, knowledge: KnowledgeStore, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = tf.keras.layers.StringLookup(vocabulary=list(knowledge.ids[:3]))
        self.embedding = tf.keras.layers.Embedding(4, 6, embeddings_initializer="uniform")
        self.lookup = KnowledgeLookup(knowledge)
        self.extractor = KnowledgeExtractor(2, 4, output_initializer="glorot_uniform")
        self._baked_table: list[Any] = []

    def call(self, ids: Any) -> Any:
        if self._baked_table:
            return self._baked_table[0].gather(self._baked_table[0].rows(ids), self.compute_dtype)
        base = self.embedding(self.index(ids))
        chunks, mask = self.lookup(ids)
        return base + self.extractor(base[:, None], chunks, mask=mask)[:, 0]

    def bakeable_tables(self) -> list[Any]:
        return [OfKnowingEmbedding(self)]


class OfKnowingEmbedding:
    name, width, unknown_row, id_dtype = "film", 6, 0, tf.string

    def __init__(self, layer: KnowingEmbedding) -> None:
        self.layer = layer
        self.lookups = (layer.lookup,)
        self.keys = layer.lookup.tables().ids

    def compute(self, rows: Any) -> Any:
        return self.layer(tf.gather(tf.constant(["?", *self.keys]), rows))

    def use(self, table: Any) -> None:
        self.layer._baked_table[:] = [] if table is None else [table]

    def describe(self, ids: Any) -> dict[str, Any]:
        vectors = self.layer(ids)
        return {"embedding": vectors, "aligned": vectors - self.layer.embedding(self.layer.index(ids))}


def test_any_layer_can_offer_its_table(tmp_path: Path) -> None:
    """Under both Kerases."""
    knowledge = cases.write_store(tmp_path / "store", dtype="float32")
    layer = KnowingEmbedding(knowledge)

    class Model(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.film, self.score = layer, tf.keras.layers.Dense(1)

        def call(self, features: Any) -> Any:
            return self.score(self.film(features["film_id"]))

    model = Model()
    ids = np.array([*cases.STRING_IDS, "никто", ""], object)
    own = np.ravel(model({"film_id": tf.constant(ids)}))
    result = kser_tf.export(
        model,
        tmp_path / "m",
        inputs={"film_id": tf.TensorSpec((None,), tf.string)},
        examples={"film_id": ids},
        signatures=["embeddings"],
    )
    assert result.baking["bytes"]["table of film"] == (len(knowledge) + 1) * 6 * 4
    serve = served.Served(result.path)
    np.testing.assert_allclose(serve(film_id=ids)["logit"], own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        serve("embeddings", film_id=ids)["embedding"], layer(tf.constant(ids)), rtol=1e-5, atol=1e-6
    )
    shapes = [shape for _, shape in tf.train.list_variables(str(result.path / "variables" / "variables"))]
    assert not any(len(shape) > 2 for shape in shapes)
    np.testing.assert_array_equal(np.ravel(model({"film_id": tf.constant(ids)})), own)


class TestGoingOn:
    class Squares:
        """A table of 100 rows, row i holding i squared; it notes which rows were computed."""

        name, width, unknown_row, id_dtype = "number", 2, 3, tf.int64
        lookups = ()
        keys = np.arange(100, 199)

        def __init__(self) -> None:
            self.computed: list[int] = []

        def compute(self, rows: Any) -> Any:
            tf.py_function(lambda rows: self.computed.extend(rows.numpy().tolist()), [rows], [])
            return tf.cast(tf.stack([rows**2, -(rows**2)], -1), tf.float32)

        def use(self, table: Any) -> None:
            self.table = table

    def test_a_stopped_bake_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(baking, "ROWS_AT_ONCE", 16)
        whole = baking.write_json
        written = []

        def stop_at_the_third(path: Path, value: Any) -> None:
            if path.name == "done.json":
                written.append(value)
                if len(written) == 4:
                    raise KeyboardInterrupt
            whole(path, value)

        monkeypatch.setattr(baking, "write_json", stop_at_the_third)
        first = self.Squares()
        with pytest.raises(KeyboardInterrupt), baking.baked([first], "float32", work=tmp_path / "w"):
            pass
        monkeypatch.setattr(baking, "write_json", whole)
        second = self.Squares()
        with baking.baked([second], "float32", work=tmp_path / "w") as [table]:
            assert second.table is table
            np.testing.assert_array_equal(table.rows(tf.constant([100, 102, 103, 198, 7], tf.int64)), [0, 2, 4, 99, 3])
            rows = np.arange(100)
            np.testing.assert_array_equal(
                table.gather(rows, tf.float32), np.stack([rows**2, -(rows**2)], -1).astype(np.float32)
            )
        assert second.table is None
        assert min(second.computed[16:] or second.computed) >= 0
        assert set(range(32)) & set(second.computed) <= {0}  # 0 fills up the last block
        assert set(second.computed) >= set(range(32, 100))
        assert not (tmp_path / "w").exists()

    def test_parts_of_another_model_are_not_gone_on_with(self, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / "kept").touch()

        def stopped_at_the_end(table: Any, model: str) -> set[int]:
            """Which rows were computed before."""
            stopped = contextlib.suppress(KeyboardInterrupt)
            with stopped, baking.baked([table], "float32", work=tmp_path / "w", model_fingerprint=model):
                raise KeyboardInterrupt
            return set(table.computed)

        other = self.Squares()
        assert stopped_at_the_end(self.Squares(), "") == set(range(100))
        assert stopped_at_the_end(self.Squares(), "") == set()
        assert stopped_at_the_end(other, "another") == set(range(100))
        with baking.baked([other], "float32", work=tmp_path / "w", model_fingerprint="another"):
            pass
        assert [entry.name for entry in (tmp_path / "w").iterdir()] == ["kept"]

    def test_rows_of_an_earlier_table_are_taken_over(self) -> None:
        table = self.Squares()
        earlier = baking.BakedRows(table.keys[:49], np.full((50, 2), 7, np.float16), None)
        with baking.baked(
            [table], "float16", previous={"number": earlier}, changed={"number": np.array([100, 120])}
        ) as [baked]:
            values = baked.gather(np.arange(100), tf.float32).numpy()
        expected = np.stack([np.arange(100) ** 2, -(np.arange(100) ** 2)], -1).astype(np.float16).astype(np.float32)
        taken_over = np.setdiff1d(np.arange(50), [0, 21])  # of the ids 100 and 120; 3 is the unknown row
        expected[taken_over] = 7
        np.testing.assert_array_equal(values, expected)

    def test_beside_another_process_a_temporary_folder_is_used(self, tmp_path: Path) -> None:
        with exclusive_lock(tmp_path / "w.lock"), baking.baked([self.Squares()], "int8", work=tmp_path / "w"):
            assert not (tmp_path / "w").exists()
            assert [
                entry.name for entry in tmp_path.iterdir() if entry.is_dir() and not entry.name.startswith(".w.")
            ] == []
        assert list(tmp_path.iterdir()) == []


@tfrs
def test_killed_at_any_point_no_version_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([f"id-{i}" for i in range(30_000)], object)
    vectors = rng.normal(size=(len(ids), world.FIELDS, world.CHUNKS, world.WIDTH)).astype(np.float32)
    mask = np.ones(vectors.shape[:-1], bool)
    store = KnowledgeStore.write(
        tmp_path / "store", ids, vectors, mask, fields=["a", "b"], encoder="test", dtype="float32"
    )
    base = tmp_path / "base"
    base.mkdir()  # a slow machine may be stopped before the export makes it
    progress = []
    for delay in (0.5, 1.5):
        served.killed("kser_tf.export(model, base, signatures=())", store.path, base, delay + rng.random() * 0.5)
        for version in [entry for entry in base.iterdir() if entry.name.isdecimal()]:
            for name, file in description(version)["files"].items():
                assert sha256_of_file(version / name) == file["sha256"]
        done = base / export_module.WORK_FOLDER / "item" / "done.json"
        progress.append(int(done.read_text()) if done.is_file() else 0)
    finished = [entry for entry in base.iterdir() if entry.name.isdecimal()]
    assert progress == sorted(progress) or finished
    monkeypatch.setattr(baking, "ROWS_AT_ONCE", 256)
    model = served.ranking_model(store)
    kser_tf.export(model, base, signatures=())
    last = max((entry for entry in base.iterdir() if entry.name.isdecimal()), key=lambda entry: int(entry.name))
    rows = served.rows()
    rows["item"] = ids[rng.integers(0, len(ids), 64)]
    np.testing.assert_allclose(served.Served(last)(**rows)["logit"], served.own(model, rows), rtol=1e-5, atol=1e-5)
    assert not (base / export_module.WORK_FOLDER).exists()


class TestTwoExportsAtOnce:
    @pytest.fixture
    def model(self) -> Any:
        x = tf.keras.Input((1,), name="x")
        return tf.keras.Model({"x": x}, tf.keras.layers.Dense(1)(x))

    inputs = {"x": tf.TensorSpec((None, 1), tf.float32)}  # noqa: RUF012

    def test_the_second_takes_the_next_version(self, tmp_path: Path, model: Any) -> None:
        with exclusive_lock(tmp_path / ".1.new.lock"):  # the first is writing version 1
            assert kser_tf.export(model, tmp_path, inputs=self.inputs).version == 2
            with pytest.raises(OSError, match="is locked: another process is writing there"):
                kser_tf.export(model, tmp_path, inputs=self.inputs, version=1)

    def test_even_if_the_first_was_quicker(self, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "1").mkdir()
        monkeypatch.setattr(export_module, "_checked_version", lambda base, version: version or 1)
        assert kser_tf.export(model, tmp_path, inputs=self.inputs).version == 2
        with pytest.raises(FileExistsError, match="exists already"):
            kser_tf.export(model, tmp_path, inputs=self.inputs, version=1)
