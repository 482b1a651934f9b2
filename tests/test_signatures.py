"""The signatures of an exported ranking model: each called as TF Serving does, and compared with the model itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_world as served
import small_world as world
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.errors import ExportError, MissingExtraError
from kser_tf.serving import contract, warmup
from kser_tf.serving.tf_examples import serialized_examples
from kser_tf.serving.warmup import read_warmup

# Ranking models are TFRS models; `TestAnyModel` runs under both Kerases.
tfrs = pytest.mark.tfrs
SHAPE = (world.FIELDS, world.CHUNKS, world.WIDTH)


Case = served.Exported


@pytest.fixture(scope="module", params=["din", "dcn_v2"])
def case(request: pytest.FixtureRequest, exported: Callable[[str, Any], Case]) -> Case:
    return exported(request.param, "float32")


def given_knowledge(count: int, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = rng.random((count, *SHAPE[:-1])) < 0.7
    mask[:, 0, 0] = True
    return {"item_chunks": rng.normal(size=(count, *SHAPE)).astype(np.float32), "item_mask": mask}


def tuples(signature: dict[str, Any], side: str) -> dict[str, tuple[str, list[int | None]]]:
    return {name: (spec["dtype"], spec["shape"]) for name, spec in signature[side].items()}


@tfrs
def test_names_dtypes_and_shapes_are_the_documented_ones(case: Case) -> None:
    signatures = case.result.signatures
    raw = {
        "item": ("string", [None]),
        "past_item": ("string", [None, None]),
        "past_stars": ("int64", [None, None]),
        "place": ("string", [None]),
        "tags": ("string", [None, None]),
        "price": ("float32", [None]),
    }
    scores = {"probability": ("float32", [None]), "logit": ("float32", [None])}
    inputs = {"inputs": ("string", [None])}
    vectors = {"embedding": ("float32", [None, 4]), "aligned": ("float32", [None, 4])}
    knowledge = {"item_chunks": ("float32", [None, *SHAPE]), "item_mask": ("bool", [None, *SHAPE[:-1]])}
    assert {name: (tuples(s, "inputs"), tuples(s, "outputs")) for name, s in signatures.items()} == {
        "serving_default": (raw, scores),
        "with_knowledge": (raw | knowledge, scores),
        "examples": (inputs, scores),
        "classify": (inputs, {"classes": ("string", [None, 1]), "scores": ("float32", [None, 1])}),
        "regress": (inputs, {"outputs": ("float32", [None])}),
        "embeddings": ({"item_id": ("string", [None])}, vectors),
    }
    assert case.description["signatures"] == signatures
    assert case.description["signatures_left_out"] == {}
    names = {name for signature in signatures.values() for name in signature["inputs"]}
    assert not names & contract.NOT_INPUTS


@tfrs
def test_each_signature_says_which_api_it_is_for(case: Case) -> None:
    methods = {name: s.method_name.removeprefix("tensorflow/serving/") for name, s in case.serve.signatures.items()}
    predict = dict.fromkeys(("serving_default", "with_knowledge", "examples", "embeddings"), "predict")
    assert methods == {**predict, "classify": "classify", "regress": "regress"}
    # TensorFlow's own way to ask for it in Python.
    assert set(tf.saved_model.load(str(case.result.path)).signatures) == set(methods)


@tfrs
def test_default_answers_are_the_models_own(case: Case) -> None:
    answers = case.serve(**case.rows)
    np.testing.assert_allclose(answers["logit"], case.own, rtol=1e-5, atol=1e-5)
    predicted = case.model.predict(case.model.indexer(case.rows), verbose=0)[:, 0]
    np.testing.assert_allclose(answers["logit"], predicted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answers["probability"], 1 / (1 + np.exp(-case.own)), rtol=1e-5, atol=1e-6)
    assert case.own.std() > 0.1


@tfrs
@pytest.mark.parametrize("bake", ["float32", "float16", "int8", None])
@pytest.mark.parametrize("backbone", ["din", "dcn_v2"])
def test_every_signature_in_every_form_answers_its_examples_as_the_model(
    exported: Callable[[str, Any], Case], backbone: str, bake: Any
) -> None:
    """Through the session loader, which accepts them all; of small tables within what is told of them."""
    case = exported(backbone, bake)
    assert len(case.result.signatures) == 6
    for name in case.result.signatures:
        inputs, outputs = contract.load_examples(case.result.path / contract.examples_file(name))
        feeds = {key: v.astype(object) if v.dtype.kind == "S" else v for key, v in inputs.items()}
        answers = case.serve(name, **feeds)
        assert answers.keys() == outputs.keys()
        assert all(len(values) for values in outputs.values())
        for key, values in outputs.items():
            if values.dtype.kind == "S":
                assert answers[key].tolist() == values.tolist()
            else:
                np.testing.assert_allclose(answers[key], values, rtol=1e-5, atol=1e-5, err_msg=f"{name}/{key}")
    logit = case.serve(**case.rows)["logit"]
    np.testing.assert_allclose(logit, case.own, atol={"float16": 0.01, "int8": 0.1}.get(bake, 1e-5))


@tfrs
@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize(("backbone", "bake"), [("din", "int8"), ("dcn_v2", None)])
def test_check_takes_them_and_calls_every_signature(
    exported: Callable[[str, Any], Case], backbone: str, bake: Any
) -> None:
    result = kser_tf.check(exported(backbone, bake).result.path)
    checks = {check.name: check for check in result.checks}
    assert result.ok, result.text()
    others = {"classify", "embeddings", "examples", "regress", "with_knowledge"}
    assert {name.removeprefix("signature ") for name in checks if name.startswith("signature ")} == others
    for name in others:
        assert "as the model's own, within" in checks[f"signature {name}"].detail
    if checks["C++ program"].ok is not None:
        assert "6 signatures called; answers as the model's own" in checks["C++ program"].detail
    assert "100 requests answered" in checks["warm-up"].detail


@tfrs
def test_ids_are_shipped_once(case: Case) -> None:
    """The baked table, `embeddings` and `with_knowledge` read one hash table, and that one list of ids."""
    saved = saved_model_pb2.SavedModel.FromString((case.result.path / "saved_model.pb").read_bytes())
    ids = {"missing": 1, "known": 10, "of the store alone": len(set(case.store.ids) - set(world.ITEMS[:10]))}
    reader = tf.train.load_checkpoint(str(case.result.path / "variables" / "variables"))
    strings = [
        reader.get_tensor(name)
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype == tf.string and "OBJECT_GRAPH" not in name
    ]
    assert sorted(len(values) for values in strings) == sorted([sum(ids.values()), 1 + 2, 1 + 3])  # items, places, tags
    tables = [node for node in saved.meta_graphs[0].graph_def.node if node.op == "HashTableV2"]
    assert len(tables) == 4  # and the stars, which are integers


@tfrs
def test_warm_up_requests_are_real_rows_for_every_signature(case: Case) -> None:
    path = case.result.path
    requests = read_warmup(path / contract.WARMUP_FILE)
    assert {name for name, _ in requests} == set(case.result.signatures)
    assert case.result.warmup == case.description["warmup"]
    assert (case.result.warmup["requests"], case.result.warmup["left_out"]) == (len(requests), None)
    assert len(requests) <= contract.MAX_WARMUP_RECORDS
    assert contract.WARMUP_FILE in case.description["files"]
    items = set(case.rows["item"])
    sizes = set()
    for name, inputs in requests:
        answers = case.serve(name, **inputs)
        sizes |= {len(values) for values in answers.values()}
        if name == contract.SIGNATURE:
            assert {item.decode() for item in inputs["item"].tolist()} <= items
    assert sizes == {1, 8, 64, 256}


@tfrs
class TestWithKnowledge:
    def test_an_item_that_nobody_knows_is_scored_as_one_that_has_the_knowledge(
        self, case: Case, tmp_path: Path
    ) -> None:
        """The stores of the two models hold the same vectors, in one of them under the new ids too."""
        rows = {name: values[:8] for name, values in served.rows(64, seed=5).items()}
        rows["item"] = np.array([f"new-{i}" for i in range(8)], object)
        given = given_knowledge(8)
        chunks, mask = case.store.lookup(case.store.ids)
        larger = KnowledgeStore.write(
            tmp_path / "larger",
            np.concatenate([case.store.ids, rows["item"]]),
            np.concatenate([chunks, given["item_chunks"]]),
            np.concatenate([mask, given["item_mask"]]),
            fields=["a", "b"],
            encoder="test",
            dtype="float32",
        )
        model = served.ranking_model(larger, case.model.config.backbone)
        model.set_weights(case.model.get_weights())
        expected = served.own(model, rows)
        np.testing.assert_allclose(
            case.serve("with_knowledge", **rows, **given)["logit"], expected, rtol=1e-5, atol=1e-5
        )
        assert np.abs(expected - case.serve(**rows)["logit"]).max() > 0.01

    def test_without_any_chunk_the_store_is_used(self, case: Case) -> None:
        given = given_knowledge(64)
        given["item_mask"][:] = False
        given["item_chunks"][:] = np.nan
        answers = case.serve("with_knowledge", **case.rows, **given)
        np.testing.assert_array_equal(answers["logit"], case.serve(**case.rows)["logit"])

    def test_row_by_row(self, case: Case) -> None:
        given = given_knowledge(64)
        given["item_mask"][::2] = False
        mixed = case.serve("with_knowledge", **case.rows, **given)["logit"]
        np.testing.assert_allclose(mixed[::2], case.serve(**case.rows)["logit"][::2], rtol=1e-5, atol=1e-5)
        given["item_mask"][::2, 0, 0] = True
        other = case.serve("with_knowledge", **case.rows, **given)["logit"]
        np.testing.assert_allclose(mixed[1::2], other[1::2], rtol=1e-5, atol=1e-5)
        assert np.abs(mixed[::2] - other[::2]).max() > 1e-3

    def test_the_model_in_python_takes_it_too(self, case: Case) -> None:
        given = given_knowledge(64)
        np.testing.assert_allclose(
            case.serve("with_knowledge", **case.rows, **given)["logit"],
            served.own(case.model, {**case.rows, **given}),
            rtol=1e-5,
            atol=1e-5,
        )


def example(**features: list[Any]) -> bytes:
    message = tf.train.Example()
    for name, values in features.items():
        kind = {float: "float_list", int: "int64_list"}.get(type(values[0]), "bytes_list")
        encoded = [value.encode() if isinstance(value, str) else value for value in values]
        getattr(message.features.feature[name], kind).value.extend(encoded)
    return message.SerializeToString()


@tfrs
class TestExamples:
    def test_missing_features_are_missing_values(self, case: Case) -> None:
        item = world.ITEMS[2]
        serialized = [
            example(item=[item], past_item=[world.ITEMS[0], world.ITEMS[1]], past_stars=[4, 5], price=[2.5]),
            example(item=["никто"], tags=["red"]),
            example(),
        ]
        rows = {
            "item": np.array([item, "никто", ""], object),
            "past_item": np.array([[world.ITEMS[0], world.ITEMS[1]], ["", ""], ["", ""]], object),
            "past_stars": np.array([[4, 5], [-1, -1], [-1, -1]]),
            "place": np.array(["", "", ""], object),
            "tags": np.array([[""], ["red"], [""]], object),
            "price": np.array([2.5, np.nan, np.nan], np.float32),
        }
        answers = case.serve("examples", inputs=serialized)
        np.testing.assert_allclose(answers["logit"], served.own(case.model, rows), rtol=1e-5, atol=1e-5)
        classes = case.serve("classify", inputs=serialized)
        assert classes["classes"].tolist() == [[b"1"]] * 3
        np.testing.assert_array_equal(classes["scores"][:, 0], answers["probability"])
        np.testing.assert_array_equal(case.serve("regress", inputs=serialized)["outputs"], answers["probability"])

    def test_histories_of_more_than_the_length_are_cut(self, case: Case) -> None:
        long = example(past_item=world.ITEMS[:9], past_stars=[1, 2, 3, 4, 5, 1, 2, 3, 4])
        short = example(past_item=world.ITEMS[:5], past_stars=[1, 2, 3, 4, 5])
        one, other = case.serve("examples", inputs=[long, short])["logit"]
        assert one == other

    def test_what_is_no_example_is_an_error_and_the_session_goes_on(self, case: Case) -> None:
        for bad in (b"no example", example(item=[3])):
            with pytest.raises(tf.errors.InvalidArgumentError):
                case.serve("examples", inputs=[bad])
        assert case.serve("examples", inputs=[example()])["logit"].shape == (1,)

    def test_rows_become_examples(self) -> None:
        rows = {
            "a": np.array([[b"x", b"", b"y", b""], [b"", b"", b"", b""]]),
            "b": np.array([0, -1]),
            "c": [1.5, np.nan],
        }
        first, second = serialized_examples(
            {**rows, "c": np.array(rows["c"])}, defaults={"a": "", "b": -1, "c": float("nan")}, ragged=["a"]
        )
        features = tf.train.Example.FromString(first).features.feature
        assert list(features["a"].bytes_list.value) == [b"x", b"", b"y"]
        assert list(features["b"].int64_list.value) == [0]
        assert list(features["c"].float_list.value) == [1.5]
        assert not tf.train.Example.FromString(second).features.feature
        assert serialized_examples({"a": np.zeros((0, 3))}).tolist() == []

    def test_an_example_that_ends_in_a_zero_is_kept_whole(self, tmp_path: Path) -> None:
        """NumPy's byte strings lose zeros at their end."""
        examples = serialized_examples({"b": np.array([0, 1])})
        assert examples[0].endswith(b"\0")
        contract.save_examples(tmp_path / "kept.npz", {"inputs": examples}, {})
        kept = contract.load_examples(tmp_path / "kept.npz")[0]["inputs"]
        assert [tf.train.Example.FromString(e).features.feature["b"].int64_list.value[:] for e in kept] == [[0], [1]]


@tfrs
class TestEmbeddings:
    def test_they_are_the_models_own(self, case: Case) -> None:
        ids = np.array([*world.ITEMS, "никто"], object)
        answers = case.serve("embeddings", item_id=ids)
        table = case.model.embedding._tables["item"].get_weights()[0]
        vocabulary = case.model.schema.vocabularies["item"]
        base = table[[vocabulary.index(i) + 2 if i in vocabulary else 1 for i in ids]]
        chunks, mask = case.store.lookup(ids)
        aligned = case.model.extractors["item"](base[:, None], chunks, mask=mask).numpy()[:, 0]
        np.testing.assert_allclose(answers["embedding"], base + aligned, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answers["aligned"], aligned, rtol=1e-4, atol=1e-5)

    def test_without_knowledge_nothing_is_aligned(self, case: Case) -> None:
        ids = np.array([world.WITHOUT_KNOWLEDGE, "никто", ""], object)
        np.testing.assert_array_equal(case.serve("embeddings", item_id=ids)["aligned"], np.zeros((3, 4)))


@tfrs
@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_batches_of_none_of_one_and_of_ten_thousand(case: Case, count: int) -> None:
    rows = {name: np.resize(values, (count, *values.shape[1:])) for name, values in case.rows.items()}
    expected = np.resize(case.own, count)
    serialized = np.array(serialized_examples(rows), object) if count < 2 else np.full(count, example())
    for name, inputs in {
        "serving_default": rows,
        "with_knowledge": {**rows, **given_knowledge(count)},
        "examples": {"inputs": serialized},
        "classify": {"inputs": serialized},
        "regress": {"inputs": serialized},
        "embeddings": {"item_id": rows["item"]},
    }.items():
        answers = case.serve(name, **inputs)
        assert all(len(values) == count for values in answers.values()), name
        assert answers.keys() == case.result.signatures[name]["outputs"].keys()
    np.testing.assert_allclose(case.serve(**rows)["logit"], expected, rtol=1e-4, atol=1e-5)


@tfrs
def test_several_kinds_of_entities(exported: Callable[[str, Any], Case], tmp_path: Path) -> None:
    """Users with integer ids and knowledge of their own, of another shape, beside the items."""
    import dataclasses

    from kser_tf import RankingModel
    from kser_tf.schema import Feature

    case = exported("din", "float32")
    rng = np.random.default_rng(2)
    users = KnowledgeStore.write(
        tmp_path / "users",
        np.array([5, 2**40, 7]),
        rng.normal(size=(3, 1, 3, 5)).astype(np.float32),
        np.ones((3, 1, 3), bool),
        fields=["about"],
        encoder="test",
    )
    schema = served.schema()
    user = Feature("user", "categorical", "int64", vocabulary="user", entity="user")
    schema = dataclasses.replace(
        schema, features=(*schema.features, user), vocabularies={**schema.vocabularies, "user": [7, 8]}
    )
    model = RankingModel(schema, case.model.config, {"item": case.store, "user": users})
    model.make_weights()
    model.set_weights([rng.normal(0, 0.2, weight.shape) for weight in model.get_weights()])
    rows = {**case.rows, "user": np.resize([5, 2**40, 7, 8, 9, -1], 64)}
    result = kser_tf.export(model, tmp_path / "m", examples=rows)
    serve = served.Served(result.path)
    assert {name for name in result.signatures if "embeddings" in name} == {"embeddings_item", "embeddings_user"}
    assert result.baking["tables"] == ["item", "user"]
    np.testing.assert_allclose(serve(**rows)["logit"], served.own(model, rows), rtol=1e-5, atol=1e-5)
    aligned = serve("embeddings_user", user_id=[5, 2**40, 7, 8, 9])["aligned"]
    assert (np.abs(aligned[:3]).max(-1) > 0).all()
    assert not aligned[3:].any()
    given = {
        **given_knowledge(64),
        "user_chunks": rng.normal(size=(64, 1, 3, 5)).astype(np.float32),
        "user_mask": rng.random((64, 1, 3)) < 0.5,
    }
    np.testing.assert_allclose(
        serve("with_knowledge", **rows, **given)["logit"],
        served.own(model, {**rows, **given}),
        rtol=1e-5,
        atol=1e-5,
    )


@tfrs
def test_signatures_can_be_left_out(case: Case, tmp_path: Path) -> None:
    result = kser_tf.export(case.model, tmp_path, signatures=())
    assert list(result.signatures) == ["serving_default"]
    # Then neither the extractor nor the backbone's own table of items is there, only the baked one.
    variables = dict(tf.train.list_variables(str(result.path / "variables" / "variables")))
    table = case.model.embedding._tables["item"]
    assert [table.input_dim, table.output_dim] not in variables.values()
    everything = dict(tf.train.list_variables(str(case.result.path / "variables" / "variables")))
    assert [table.input_dim, table.output_dim] in everything.values()
    with pytest.raises(ExportError, match=r"`signatures` is a list of with_knowledge, examples, embeddings. Received"):
        kser_tf.export(case.model, tmp_path, signatures=["classify"])


class TestAnyModel:
    @pytest.fixture
    def model(self) -> tf.keras.Model:
        x = tf.keras.Input((2,), name="x")
        n = tf.keras.Input((), dtype="int32", name="n")
        both = tf.keras.layers.Concatenate()([x, tf.keras.layers.Embedding(3, 1)(n)])
        return tf.keras.Model({"x": x, "n": n}, tf.keras.layers.Dense(1)(both))

    inputs = {"x": tf.TensorSpec((None, 2), tf.float32), "n": tf.TensorSpec((None,), tf.int32)}  # noqa: RUF012

    def test_examples_with_defaults(self, tmp_path: Path, model: Any) -> None:
        result = kser_tf.export(model, tmp_path, inputs=self.inputs, defaults={"x": 0.5})
        assert set(result.signatures) == {"serving_default", "examples", "classify", "regress"}
        left_out = json.loads((result.path / contract.DESCRIPTION_FILE).read_text())["signatures_left_out"]
        assert left_out.keys() == {"with_knowledge", "embeddings"}
        serve = served.Served(result.path)
        expected = model({"x": tf.constant([[1.0, 2.0], [0.5, 0.5]]), "n": tf.constant([2, 1])})
        serialized = [example(x=[1.0, 2.0], n=[2]), example(n=[1])]
        np.testing.assert_allclose(serve("examples", inputs=serialized)["logit"], np.ravel(expected), rtol=1e-5)
        with pytest.raises(tf.errors.InvalidArgumentError, match="n"):
            serve("examples", inputs=[example(x=[1.0, 2.0])])

    def test_why_there_are_no_warm_up_requests_is_told(
        self, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = {
            "inputs": self.inputs,
            "signatures": (),
            "examples": {"x": np.ones((3, 2), np.float32), "n": np.arange(3, dtype=np.int32)},
        }

        def left_out(**changes: Any) -> str:
            result = kser_tf.export(model, tmp_path, **arguments | changes)
            description = json.loads((result.path / contract.DESCRIPTION_FILE).read_text())
            assert not (result.path / contract.WARMUP_FILE).exists()
            assert description["warmup"] == result.as_dict()["warmup"]
            assert result.warmup["requests"] == 0
            return result.warmup["left_out"]

        assert left_out(warmup=False) == "not asked for"
        assert left_out(examples=None) == "there are no examples to draw them from"

        def not_installed() -> Any:
            raise MissingExtraError("tensorflow-serving-api", "serving")

        monkeypatch.setattr(warmup, "_protos", not_installed)
        assert "pip install 'kser-tf[serving]'" in left_out()

    def test_what_it_cannot_have_is_refused_with_the_reason(self, tmp_path: Path, model: Any) -> None:
        for kind, reason in (("with_knowledge", "knowledge_inputs"), ("embeddings", "bakeable_tables")):
            with pytest.raises(ExportError, match=f"signature `{kind}` cannot be written: .*{reason}"):
                kser_tf.export(model, tmp_path, inputs=self.inputs, signatures=[kind])
        with pytest.raises(ExportError, match="`defaults` names y, which are no inputs: x, n"):
            kser_tf.export(model, tmp_path, inputs=self.inputs, defaults={"y": 0})
        assert not list(tmp_path.iterdir())

    def test_an_input_that_no_example_can_hold(self, tmp_path: Path) -> None:
        inputs = {"x": tf.TensorSpec((None, None, 2), tf.float32)}
        result = kser_tf.export(tf.keras.Sequential(), tmp_path, inputs=inputs, serve=lambda given: given["x"][:, 0, 0])
        assert list(result.signatures) == ["serving_default"]
        description = json.loads((result.path / contract.DESCRIPTION_FILE).read_text())
        assert "cannot hold input `x` of shape (None, None, 2)" in description["signatures_left_out"]["examples"]
