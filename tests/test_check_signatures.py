"""check: every signature, the same rows twice, warm-up requests, and a C++ program."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import kser_tf
from kser_tf.errors import ExportError, PathExistsError
from kser_tf.serving import contract, native_loader, session_client, warmup
from kser_tf.serving.findings import Check
from kser_tf.serving.loaded_model import LoadedModel
from kser_tf.serving.tf_examples import serialized_examples

KERAS_3 = not tf.keras.layers.Layer.__module__.startswith("tf_keras")
SPECS = {
    "item": tf.TensorSpec((None,), tf.string, name="item"),
    "price": tf.TensorSpec((None,), tf.float32, name="price"),
    "past": tf.TensorSpec((None, None), tf.int64, name="past"),
}
ROWS = {
    "item": np.array(["影", "b", "ein sehr langer Name", ""] * 5),
    "price": np.linspace(-1, 1, 20, dtype=np.float32),
    "past": np.arange(60).reshape(20, 3) - 1,
}


@pytest.fixture(autouse=True)
def _where_it_counts(request: pytest.FixtureRequest, check_in_process: None) -> None:
    """Has the loading done in this process, which has Keras, and no C++ program asked, but by tests with `native`."""
    if "native" not in request.fixturenames:
        request.getfixturevalue("no_cpp_program")


@pytest.fixture
def native() -> None:
    """The C++ program is built and run."""


def logit_of(item: Any, price: Any, past: Any) -> Any:
    return tf.cast(tf.strings.length(item), tf.float32) - price + tf.reduce_sum(tf.cast(past, tf.float32), -1) / 100


def answered(logit: Any) -> dict[str, Any]:
    return {"probability": tf.sigmoid(logit), "logit": logit}


def parsed(examples: Any) -> dict[str, Any]:
    features = {
        "item": tf.io.FixedLenFeature([], tf.string),
        "price": tf.io.FixedLenFeature([], tf.float32),
        "past": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    }
    return tf.io.parse_example(examples, features)


def save(path: Path, more: Mapping[str, tuple[Any, list[tf.TensorSpec]]] | None = None, default: Any = None) -> Path:
    """Writes a SavedModel as an export is: an ExportArchive with `serving_default` and more endpoints."""
    archive = tf.keras.export.ExportArchive()
    function = default or (lambda item, price, past: answered(logit_of(item, price, past)))
    archive.add_endpoint("serving_default", tf.function(function, input_signature=list(SPECS.values())))
    for name, (endpoint, specs) in (more or {}).items():
        archive.add_endpoint(name, tf.function(endpoint, input_signature=specs))
    archive.write_out(str(path))
    return path


def for_examples(answer: Any) -> tuple[Any, list[tf.TensorSpec]]:
    return lambda inputs: answer(**parsed(inputs)), [tf.TensorSpec((None,), tf.string, name="inputs")]


def keep(path: Path, signature: str, rows: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
    (path / contract.EXTRA_FOLDER).mkdir(exist_ok=True)
    rows = {name: contract.as_rows(name, value, _dtype(value), None) for name, value in rows.items()}
    contract.save_examples(path / contract.examples_file(signature), rows, answers)


def _dtype(values: Any) -> str:
    return "string" if np.asarray(values).dtype.kind in "USO" else np.asarray(values).dtype.name


def checks_of(path: Path, **arguments: Any) -> dict[str, Check]:
    return {check.name: check for check in kser_tf.check(path, **{"examples": ROWS} | arguments).checks}


def rows_of(path: Path) -> dict[str, np.ndarray]:
    with LoadedModel(path) as model:
        return contract.as_table(ROWS, model.signatures["serving_default"]["inputs"])


class TestSignatures:
    def test_all_are_called_and_compared(self, tmp_path: Path) -> None:
        path = save(
            tmp_path / "1",
            {
                "embeddings": (
                    lambda item: {"vector": tf.one_hot(tf.strings.length(item), 30)},
                    [tf.TensorSpec((None,), tf.string, name="item")],
                ),
                "examples": for_examples(
                    lambda **features: {
                        "scores": tf.sigmoid(tf.stack([-logit_of(**features), logit_of(**features)], 1))
                    }
                ),
            },
        )
        keep(path, "embeddings", {"item": ["ab", "abc"]}, {"vector": np.eye(30, dtype=np.float32)[[2, 3]]})
        result = kser_tf.check(path, examples=ROWS, expected={"logit": logit_of(**ROWS).numpy()})
        checks = {check.name: check for check in result.checks}
        assert [name for name, check in checks.items() if check.ok is False] == [], result.text()
        assert "as the model's own, within 0.0e+00 (vector)" in checks["signature embeddings"].detail
        assert "2 rows give finite answers" in checks["signature embeddings"].detail
        assert "Predict and Classify take it" in checks["signature examples"].detail
        assert "as serving_default on the same rows, within" in checks["signature examples"].detail
        assert result.measurements["signatures"]["examples"]["largest_difference"]["scores"] < 1e-6
        assert set(result.measurements["signatures"]["embeddings"]["rows_per_second"]) == {"1", "7", "2"}

    def test_keras_where_the_model_was_run_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_client, "_KERAS", ("keras",))
        monkeypatch.setitem(sys.modules, "keras", tf.keras)
        check = checks_of(save(tmp_path / "1", {}))["without Keras"]
        assert (check.ok, check.detail) == (False, "keras was imported; TF Serving has none")

    def test_rows_of_text_and_lists_are_made_into_examples(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", {"examples": for_examples(lambda **features: answered(logit_of(**features)))})
        rows = {name: values.tolist() for name, values in ROWS.items()}
        report, answers = session_client.examine(str(path), rows, [1])
        assert "error" not in report["others"]["examples"][contract.FROM_ROWS]
        np.testing.assert_allclose(answers["examples/from rows/logit"], logit_of(**ROWS), rtol=1e-6)

    def test_without_rows_some_are_made_up(self, tmp_path: Path) -> None:
        path = save(
            tmp_path / "1", {"lengths": (lambda x: {"n": tf.shape(x)[:1] + 0 * tf.shape(x)[0]}, [SPECS["past"]])}
        )
        checks = checks_of(path)
        assert checks["signature lengths"].ok is False
        assert "8 rows give `n` of shape (1,): the first dimension is the row" in checks["signature lengths"].detail

    def test_kept_answers_that_differ(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", {"double": (lambda price: {"y": 2 * price}, [SPECS["price"]])})
        keep(path, "double", {"price": ROWS["price"]}, {"y": 2 * ROWS["price"] + np.float32(3e-5)})
        check = checks_of(path)["signature double"]
        assert check.ok is False
        assert "`y` differ from the model's own: by at most 3.0e-05 (y), and 1e-05 is tolerated" in check.detail

    def test_examples_that_answer_otherwise(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", {"examples": for_examples(lambda **f: answered(logit_of(**f) + f["price"] / 10))})
        check = checks_of(path)["signature examples"]
        assert check.ok is False
        assert "`logit`, `probability` differ from serving_default on the same rows" in check.detail
        assert "1.0e-01 (logit)" in check.detail  # the largest price is 1

    def test_examples_that_want_another_name(self, tmp_path: Path) -> None:
        def endpoint(inputs: Any) -> dict[str, Any]:
            feature = tf.io.FixedLenFeature([], tf.float32)
            return answered(tf.io.parse_example(inputs, {"cost": feature})["cost"])

        path = save(tmp_path / "1", {"examples": (endpoint, [tf.TensorSpec((None,), tf.string, name="inputs")])})
        check = checks_of(path)["signature examples"]
        assert check.ok is False
        assert "Name: <unknown>, Feature: cost (data type: float) is required but could not be found" in check.detail

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            (lambda logit: {**answered(logit), "scores": logit[:, None]}, "at most 2 outputs in all; there are logit,"),
            (
                lambda logit: {"scores": logit},
                "Classify wants `scores` as float32 (batch, classes), it is float32 (batch)",
            ),
            (lambda logit: {"classes": logit[:, None]}, "Classify wants `classes` as string (batch, classes)"),
        ],
    )
    def test_what_classify_refuses(self, tmp_path: Path, outputs: Any, message: str) -> None:
        path = save(tmp_path / "1", {"examples": for_examples(lambda **features: outputs(logit_of(**features)))})
        check = checks_of(path)["signature examples"]
        assert check.ok is False
        assert message in check.detail

    def test_inputs_of_every_signature_are_looked_at(self, tmp_path: Path) -> None:
        fixed = tf.TensorSpec((4,), tf.float32, name="price")
        label = tf.TensorSpec((None,), tf.float32, name="Label")
        more = {"four": (lambda price: {"y": price}, [fixed]), "loss": (lambda Label: {"y": Label}, [label])}
        checks = checks_of(save(tmp_path / "1", more))
        assert (
            "`four`: input `price` is float32 (4): its first dimension must be the batch" in checks["signature"].detail
        )
        assert checks["no label"].ok is False
        assert "`Label` would have to come with every request" in checks["no label"].detail

    @pytest.mark.skipif(not KERAS_3, reason="Keras 2 keeps the names")
    def test_inputs_that_keras_3_renames(self, tmp_path: Path) -> None:
        class Model(tf.keras.Model):
            def call(self, features: Any) -> Any:
                return features["price"] * 2

        model = Model()
        model({"price": tf.zeros((2, 1))})
        model.export(str(tmp_path / "1"), verbose=False)
        checks = checks_of(tmp_path / "1", examples=None)
        assert checks["signature"].ok is False
        assert "input `args_0` (float32 (batch, 1)) has a name that Keras made up" in checks["signature"].detail


class TestTrainingMode:
    def test_dropout(self, tmp_path: Path) -> None:
        def default(item: Any, price: Any, past: Any) -> dict[str, Any]:
            return answered(tf.nn.dropout(logit_of(item, price, past), 0.5))

        more = {"noisy": (lambda price: {"y": tf.nn.dropout(price + 1, 0.5)}, [SPECS["price"]])}
        keep(save(tmp_path / "1", more, default), "noisy", {"price": ROWS["price"]}, {})
        checks = checks_of(tmp_path / "1", examples=None)
        assert checks["batches"].ok is None  # there are no rows for it
        checks = checks_of(tmp_path / "1")
        assert checks["batches"].ok is False
        assert "`probability` differs by" in checks["batches"].detail
        assert "when the same rows are sent twice. The model draws random numbers" in checks["batches"].detail

    def test_a_keras_model_with_training_true(self, tmp_path: Path) -> None:
        x = tf.keras.Input((2,), name="x")
        model = tf.keras.Model(x, tf.keras.layers.Dropout(0.5)(tf.keras.layers.Dense(1)(x)))
        archive = tf.keras.export.ExportArchive()
        archive.track(model)
        spec = tf.TensorSpec((None, 2), tf.float32, name="x")
        function = tf.function(lambda x: answered(model(x, training=True)[:, 0]), input_signature=[spec])
        archive.add_endpoint("serving_default", function)
        archive.write_out(str(tmp_path / "1"))
        check = checks_of(tmp_path / "1", examples={"x": np.ones((50, 2))})["batches"]
        assert check.ok is False
        assert (
            "The model draws random numbers, as Dropout does in training: serve it with training=False" in check.detail
        )

    def test_batch_normalization(self, tmp_path: Path) -> None:
        more = {"centred": (lambda price: {"y": price - tf.reduce_mean(price)}, [SPECS["price"]])}
        keep(save(tmp_path / "1", more), "centred", {"price": ROWS["price"]}, {})
        check = checks_of(tmp_path / "1")["signature centred"]
        assert check.ok is False
        assert "`y` in batches of 1 differs by 1.0e+00 from all rows at once" in check.detail
        assert "BatchNormalization" in check.detail


class TestWarmup:
    def test_requests_are_replayed(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", {"examples": for_examples(lambda **f: answered(logit_of(**f)))})
        requests = {"serving_default": ROWS, "examples": {"inputs": serialized_examples(rows_of(path))}}
        file = warmup.write_warmup(path, requests, model_name="ranker", batch_sizes=(1, 7, 30), records=9)
        assert file == path / "assets.extra" / "tf_serving_warmup_requests"
        checks = checks_of(path)
        assert checks["warm-up"].ok
        assert checks["warm-up"].detail.startswith("9 requests answered in")

    def test_what_is_written(self, tmp_path: Path) -> None:
        """The file as any reader of TFRecord and PredictionLog finds it: sizes, order, and rows from the start again."""
        from tensorflow_serving.apis import prediction_log_pb2

        path = save(tmp_path / "1", {"half": (lambda price: {"y": price / 2}, [SPECS["price"]])})
        requests = {"serving_default": ROWS, "half": {"price": [1.0, 2.0, 3.0]}}
        file = warmup.write_warmup(path, requests, model_name="ranker", batch_sizes=(2, 15), records=6)
        logs = [
            prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            for record in tf.data.TFRecordDataset(str(file))
        ]
        assert {log.model_spec.name for log in logs} == {"ranker"}
        assert [log.model_spec.signature_name for log in logs] == ["serving_default", "half"] * 3
        prices = [tf.make_ndarray(log.inputs["price"]) for log in logs]
        assert [len(price) for price in prices] == [2, 2, 15, 15, 2, 2]
        np.testing.assert_array_equal(prices[2], ROWS["price"][2:17])
        np.testing.assert_array_equal(prices[4], ROWS["price"][17:19])
        np.testing.assert_array_equal(prices[3], [3.0, 1, 2] * 5)
        items = tf.make_ndarray(logs[0].inputs["item"])
        assert [item.decode() for item in items] == ["影", "b"]
        assert [entry.name for entry in file.parent.iterdir()] == [file.name], "nothing half-written beside it"

    def test_requests_that_do_not_fit(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        for arguments, message in [
            ({"requests": {"other": ROWS}}, "has no signature `other`. It has: serving_default"),
            ({"requests": {"serving_default": {"item": ["a"]}}}, "the examples lack `past`, `price`"),
            ({"requests": {"serving_default": {k: v[:0] for k, v in ROWS.items()}}}, "no row for the signature"),
            ({"requests": {}}, "`requests` is empty"),
            ({"records": 1001}, "`records` must be from 1 to 1000. Received: records=1001"),
            ({"batch_sizes": (4, 0)}, r"`batch_sizes` must be numbers from 1. Received: batch_sizes=\(4, 0\)"),
        ]:
            with pytest.raises(ExportError, match=message):
                warmup.write_warmup(path, **{"requests": {"serving_default": ROWS}, "model_name": "m"} | arguments)
        warmup.write_warmup(path, {"serving_default": ROWS}, model_name="m", records=1)
        with pytest.raises(PathExistsError, match="exists already"):
            warmup.write_warmup(path, {"serving_default": ROWS}, model_name="m")

    def test_a_thousand_are_taken_and_one_more_is_not(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        file = warmup.write_warmup(path, {"serving_default": ROWS}, model_name="m", batch_sizes=(1,), records=1000)
        assert checks_of(path)["warm-up"].ok
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in [*records, records[0]]:
                writer.write(record)
        check = checks_of(path)["warm-up"]
        assert check.ok is False
        assert "it holds 1001 requests, and a server takes 1 to 1000" in check.detail

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        file = warmup.write_warmup(path, {"serving_default": ROWS}, model_name="m", records=2)
        file.write_bytes(file.read_bytes()[:-1])
        check = checks_of(path)["warm-up"]
        assert check.ok is False
        assert "cannot be read: DataLossError" in check.detail

    def test_requests_of_another_model(self, tmp_path: Path) -> None:
        one, other = save(tmp_path / "1"), tmp_path / "2"
        file = warmup.write_warmup(one, {"serving_default": ROWS}, model_name="m", records=2)
        archive = tf.keras.export.ExportArchive()
        archive.add_endpoint(
            "serving_default", tf.function(answered, input_signature=[tf.TensorSpec((None,), tf.float32, name="logit")])
        )
        archive.write_out(str(other))
        (other / "assets.extra").mkdir()
        file.rename(other / "assets.extra" / file.name)
        check = checks_of(other, examples=None)["warm-up"]
        assert check.ok is False
        assert "record 0: ExportError: the examples lack `logit`. The inputs are `logit`" in check.detail

    def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "1")
        warmup.write_warmup(path, {"serving_default": ROWS}, model_name="m", records=1)
        monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
        check = checks_of(path)["warm-up"]
        assert check.ok is None
        assert "pip install 'kser-tf[serving]'" in check.detail


@pytest.mark.skipif(not any(shutil.which(name) for name in native_loader.COMPILERS), reason="there is no C++ compiler")
class TestInCpp:
    @pytest.mark.usefixtures("native")
    def test_it_answers_as_the_model(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        result = kser_tf.check(path, examples=ROWS, expected={"logit": logit_of(**ROWS).numpy()})
        check = next(check for check in result.checks if check.name == "C++ program")
        assert check.ok, result.text()
        assert "answers as the model's own, within" in check.detail
        assert result.measurements["native"]["load_seconds"] > 0

    @pytest.mark.usefixtures("native")
    def test_other_answers(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        check = checks_of(path, expected={"logit": logit_of(**ROWS).numpy() + 1e-3})["C++ program"]
        assert check.ok is False
        assert "its answers differ from the model's own by 1.0e-03" in check.detail
        assert "as the session's, within" in checks_of(path)["C++ program"].detail

    @pytest.mark.usefixtures("native")
    def test_every_dtype_and_shape_arrives(self, tmp_path: Path) -> None:
        dtypes = [dtype for dtype in contract.DTYPES if dtype != contract.STRING]
        specs = {dtype: tf.TensorSpec((None, 2), dtype, name=dtype) for dtype in dtypes}
        specs["text"] = tf.TensorSpec((None, None, 1), tf.string, name="text")
        archive = tf.keras.export.ExportArchive()
        function = tf.function(lambda **given: {f"{k}_out": tf.identity(v) for k, v in given.items()})
        function.get_concrete_function(**specs)
        archive.add_endpoint("serving_default", function)
        archive.write_out(str(tmp_path / "1"))
        rows = {dtype: np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype) for dtype in dtypes}
        rows["text"] = np.array(["", "影" * 400, "a\0b", "zero at the end\0", "e", "f"], object).reshape(3, 2, 1)
        with LoadedModel(tmp_path / "1") as model:
            signature = model.signatures["serving_default"]
            table = contract.as_table(rows, signature["inputs"])
            found = native_loader.run(tmp_path / "1", signature, table, {"once more": (signature, table)})
        assert not found.error
        assert found.others["once more"].keys() == found.answers.keys()
        assert all(np.array_equal(values, found.answers[name]) for name, values in found.others["once more"].items())
        for name, values in table.items():
            answer = found.answers[f"{name}_out"]
            assert answer.shape == values.shape
            np.testing.assert_array_equal(answer, values)

    @pytest.mark.usefixtures("native")
    def test_what_it_cannot_load_or_run(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1")
        with LoadedModel(path) as model:
            signature = model.signatures["serving_default"]
        rows = contract.as_table(ROWS, signature["inputs"])
        wrong = {**rows, "past": np.zeros((3, 1), np.int64)}
        assert "it cannot be run: " in native_loader.run(path, signature, wrong).error
        assert "Incompatible shapes" in native_loader.run(path, signature, wrong).error
        (path / "saved_model.pb").write_bytes(b"nonsense")
        assert native_loader.run(path, signature, rows).error.startswith("it cannot be loaded: ")

    @pytest.mark.usefixtures("native")
    def test_no_compiler_is_no_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(native_loader, "COMPILERS", ("no-such-compiler",))
        check = checks_of(path)["C++ program"]
        assert check.ok is None
        assert "there is no C++ compiler (no-such-compiler): install one" in check.detail
        monkeypatch.setattr(native_loader, "COMPILERS", ("false",))
        assert "false could not build it" in checks_of(path)["C++ program"].detail
        assert not any(Path(tmp_path / "cache").rglob("*native_loader*")), "nothing half-built is left"

    @pytest.mark.usefixtures("native")
    def test_it_is_built_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        program = native_loader.build()
        monkeypatch.setattr(native_loader, "COMPILERS", ("no-such-compiler",))
        assert native_loader.build() == program

    def test_the_numbers_of_its_types_are_tensorflows(self) -> None:
        assert {name: tf.as_dtype(name).as_datatype_enum for name in native_loader._TYPES} == native_loader._TYPES


def test_strings_that_end_in_a_zero_byte_are_kept(tmp_path: Path) -> None:
    """Serialized tf.Example may; NumPy's own strings would lose it."""
    rows = {"x": contract.as_rows("x", [b"a\0", "é", b"\0\0", ""], "string", [None]), "n": np.arange(4)}
    contract.save_examples(tmp_path / "examples.npz", rows, {"y": np.ones(4)})
    inputs, outputs = contract.load_examples(tmp_path / "examples.npz")
    assert inputs["x"].tolist() == [b"a\0", "é".encode(), b"\0\0", b""]
    assert inputs["n"].tolist() == [0, 1, 2, 3]
    assert outputs["y"].tolist() == [1.0] * 4
