from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_cases as cases
import tensorflow as tf

import kser_tf
import kser_tf.serving.check as check_module
from kser_tf.errors import ExportError
from kser_tf.serving import contract
from kser_tf.serving.check import CheckResult
from kser_tf.serving.findings import Check

KERAS_3 = not tf.keras.layers.Layer.__module__.startswith("tf_keras")
VARIABLES = "variables/variables.data-00000-of-00001"
ROWS = {"x": np.array([[0.0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]], np.float32) / 10}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    store = cases.write_store(folder / "store")
    rows = cases.rows(20, store=store)
    return kser_tf.export(cases.ranker(store), folder / "m", inputs=cases.inputs(store), examples=rows).path


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "1"))


def save(path: Path, function: Callable[..., Any], *specs: tf.TensorSpec, **held: Any) -> Path:
    """Writes a SavedModel of a function by TensorFlow's own saver."""
    module = tf.Module()
    for name, value in held.items():
        setattr(module, name, value)
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.function})
    return path


def answered(logit: Any) -> dict[str, Any]:
    return {"probability": tf.sigmoid(logit), "logit": logit}


X = tf.TensorSpec((None, 3), tf.float32, name="x")


def result_of(path: Path, **arguments: Any) -> tuple[CheckResult, dict[str, Check]]:
    result = kser_tf.check(path, **arguments)
    return result, {check.name: check for check in result.checks}


class TestInAFreshProcess:
    def test_an_export_is_right(self, exported: Path) -> None:
        result, checks = result_of(exported)
        assert result.ok, result.text()
        assert [name for name in checks if not name.startswith("signature ")] == [
            "files",
            "loads",
            "without Keras",
            "signature",
            "no label",
            "no Python function",
            "variables and tables",
            "runs",
            "answers",
            "batches",
            "odd values",
            "C++ program",
            "warm-up",
        ]
        # Without a compiler there is no C++ program; everything else is looked at.
        assert {name for name, check in checks.items() if not check.ok} <= {"C++ program"}
        assert result.ok
        assert "country string (batch), item_id string (batch), price float32 (batch)" in checks["signature"].detail
        assert result.measurements["largest_difference"]["logit"] < 1e-5
        assert set(result.measurements["rows_per_second"]) == {"1", "7", "20"}
        assert result.measurements["load_seconds"] > 0
        assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["ok"] is True
        assert result.text().startswith(f"{exported}: ok\n")
        assert result.log not in result.text()  # TensorFlow's usual noise

    def test_what_needs_the_process_that_made_it(self, tmp_path: Path) -> None:
        def function(x: Any) -> dict[str, Any]:
            total = tf.py_function(lambda values: tf.reduce_sum(values, -1), [x], tf.float32)
            return answered(tf.ensure_shape(total, (None,)))

        path = save(tmp_path / "1", function, X)
        result, checks = result_of(path, examples=ROWS)
        assert not result.ok
        assert checks["no Python function"].ok is False
        assert "EagerPyFunc" in checks["no Python function"].detail
        assert "tf.py_function or tf.numpy_function" in checks["no Python function"].detail
        assert checks["runs"].ok is False
        assert "a batch of 1 fails" in checks["runs"].detail
        assert "standard error" in result.text()
        assert result.log.rstrip().splitlines()[-1] in result.text()

    def test_a_crash(self, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_module, "_CLIENT", "kser_tf.no_such_module")
        result, checks = result_of(exported)
        assert checks["loads"].ok is False
        assert "ended with status 1" in checks["loads"].detail
        assert "No module named kser_tf.no_such_module" in result.text()


class TestFiles:
    def test_nothing_there(self, tmp_path: Path) -> None:
        result, checks = result_of(tmp_path / "1")
        assert not result.ok
        assert checks["files"].detail == f"there is no folder {tmp_path / '1'}. Export the model with kser_tf.export."

    def test_not_a_saved_model(self, tmp_path: Path) -> None:
        (tmp_path / "weights.h5").touch()
        assert "not a SavedModel: saved_model.pb is missing" in result_of(tmp_path)[1]["files"].detail

    def test_the_base_directory(self, exported: Path) -> None:
        _, checks = result_of(exported.parent)
        assert checks["files"].detail.endswith(f"holds the versions 1. Check one of them: {exported}")

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    def test_a_graph_that_is_none(self, copy: Path) -> None:
        (copy / "saved_model.pb").write_bytes(b"nonsense")
        _, checks = result_of(copy)
        assert "saved_model.pb has 8 bytes, expected" in checks["files"].detail
        assert "the graph cannot be read: DecodeError" in checks["loads"].detail

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    @pytest.mark.parametrize("recorded", [True, False])
    def test_truncated_variables(self, copy: Path, recorded: bool) -> None:
        content = (copy / VARIABLES).read_bytes()
        (copy / VARIABLES).write_bytes(content[: len(content) // 2])
        if not recorded:
            shutil.rmtree(copy / "assets.extra")
        result, checks = result_of(copy)
        assert not result.ok
        assert checks["files"].ok is not recorded
        assert (
            not recorded
            or f"{VARIABLES} has {len(content) // 2} bytes, expected {len(content)}" in checks["files"].detail
        )
        assert checks["loads"].ok is False
        assert (
            "Read less bytes than requested. If a file is missing or damaged, copy or export it again"
            in checks["loads"].detail
        )

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    def test_a_flipped_bit(self, copy: Path) -> None:
        content = bytearray((copy / VARIABLES).read_bytes())
        content[100] ^= 1
        (copy / VARIABLES).write_bytes(content)
        _, checks = result_of(copy)
        assert f"{VARIABLES} is damaged or was changed" in checks["files"].detail
        assert "Checksum does not match" in checks["loads"].detail

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    def test_a_missing_file(self, copy: Path) -> None:
        (copy / "variables" / "variables.index").unlink()
        _, checks = result_of(copy)
        assert "variables/variables.index is missing" in checks["files"].detail
        assert checks["loads"].ok is False

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    def test_a_damaged_description_and_examples(self, copy: Path) -> None:
        (copy / contract.EXAMPLES_FILE).write_bytes(b"PK")
        assert "kser_tf_examples.npz has 2 bytes" in result_of(copy)[1]["files"].detail
        (copy / contract.DESCRIPTION_FILE).write_text("{")
        assert "kser_tf.json is damaged (JSONDecodeError" in result_of(copy)[1]["files"].detail

    @pytest.mark.usefixtures("check_in_process", "no_cpp_program")
    def test_a_folder_that_no_server_takes(self, copy: Path) -> None:
        renamed = copy.rename(copy.with_name("latest"))
        _, checks = result_of(renamed)
        assert "TF Serving takes folders whose name is an integer, not 'latest'" in checks["files"].detail
        assert checks["answers"].ok


@pytest.mark.usefixtures("check_in_process", "no_cpp_program")
class TestMadeTheWrongWay:
    def wrong(self, path: Path, name: str, message: str, **arguments: Any) -> dict[str, Check]:
        result, checks = result_of(path, **arguments)
        assert not result.ok
        assert checks[name].ok is False, result.text()
        assert message in checks[name].detail
        return checks

    @pytest.mark.skipif(not KERAS_3, reason="Keras 2 saves its variables")
    def test_a_keras_3_model_by_the_saver_of_tensorflow(self, tmp_path: Path) -> None:
        x = tf.keras.Input((3,), name="x")
        model = tf.keras.Model(x, tf.keras.layers.Dense(1)(x))
        save(tmp_path / "1", lambda x: answered(model(x)[:, 0]), X, model=model)
        python_loader = tf.saved_model.load(str(tmp_path / "1"))  # takes it, which is the trap
        assert python_loader.signatures["serving_default"](x=tf.zeros((1, 3)))["logit"].shape == (1,)
        checks = self.wrong(tmp_path / "1", "variables and tables", "`variable dense", examples=ROWS)
        assert "leaves out the variables of a Keras 3 model" in checks["variables and tables"].detail
        assert "Could not find variable dense" in checks["runs"].detail
        assert checks["answers"].ok is None

    def test_a_table_that_nobody_initialises(self, tmp_path: Path) -> None:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.string, [None], "x")
            initializer = tf.lookup.KeyValueTensorInitializer(["a"], [1.0])
            outputs = answered(tf.lookup.StaticHashTable(initializer, 0.0, name="ids").lookup(x))
            signature = tf.compat.v1.saved_model.predict_signature_def({"x": x}, outputs)
            builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
            builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
            builder.save()
        checks = self.wrong(tmp_path / "1", "variables and tables", "`look-up table ids`")
        assert "has to be tracked" in checks["variables and tables"].detail
        assert "Table not initialized." in checks["odd values"].detail

    def test_a_label_as_an_input(self, tmp_path: Path) -> None:
        label = tf.TensorSpec((None,), tf.float32, name="label")
        path = save(tmp_path / "1", lambda x, label: answered(x[:, 0] + 0 * label), X, label)
        self.wrong(path, "no label", "`label` would have to come with every request")

    def test_no_default_signature(self, tmp_path: Path) -> None:
        module = tf.Module()
        module.function = tf.function(lambda x: answered(x[:, 0]), input_signature=[X])
        tf.saved_model.save(module, str(tmp_path / "1"), signatures={"predict": module.function})
        checks = self.wrong(tmp_path / "1", "signature", "`serving_default`, which TF Serving calls, is missing")
        assert "There is: predict." in checks["signature"].detail
        assert "runs" not in checks

    def test_other_outputs(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: {"probability": x[:, :1], "output_0": x}, X)
        checks = self.wrong(path, "signature", "output `probability` is float32 (batch, 1), expected float32 (batch)")
        assert "output `logit` is missing (there is: output_0, probability)" in checks["signature"].detail
        self.wrong(path, "runs", "4 rows give `probability` of shape (4, 1), expected one answer a row", examples=ROWS)

    def test_a_fixed_batch(self, tmp_path: Path) -> None:
        spec = tf.TensorSpec((4, 3), tf.float32, name="x")
        path = save(tmp_path / "1", lambda x: answered(x[:, 0]), spec)
        checks = self.wrong(path, "signature", "input `x` is float32 (4, 3): its first dimension must be the batch")
        assert "output `logit` is float32 (4), expected float32 (batch)" in checks["signature"].detail

    def test_answers_that_depend_on_the_batch(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: answered(x[:, 0] - tf.reduce_mean(x[:, 0])), X)
        checks = self.wrong(path, "batches", "`logit` in batches of 1 differs by 4.5e-01", examples=ROWS)
        assert "BatchNormalization" in checks["batches"].detail

    def test_nan(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: answered(tf.math.log(x[:, 0])), X)
        self.wrong(path, "runs", "1 of the answers to the examples are NaN or infinite", examples=ROWS)

    def test_a_batch_that_fails(self, tmp_path: Path) -> None:
        table = tf.Variable([1.0, 2.0])
        item = tf.TensorSpec((None,), tf.int64, name="item")
        path = save(tmp_path / "1", lambda item: answered(tf.gather(table, item)), item, table=table)
        examples = {"item": np.array([0, 1])}
        checks = self.wrong(
            path, "odd values", "unknown values: InvalidArgumentError: indices[0] = 2147483647", examples=examples
        )
        assert "let the model take a default" in checks["odd values"].detail
        assert checks["runs"].ok
        checks = self.wrong(path, "runs", "a batch of 1 fails", examples={"item": np.array([5, 1])})
        assert checks["answers"].ok is None

    def test_other_answers_than_the_models(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: answered(x[:, 0]), X)
        expected = {"logit": ROWS["x"][:, 0] + [0, 0, 2e-5, 0]}
        checks = self.wrong(
            path, "answers", "differ from the model's own by at most 2.0e-05 (logit)", examples=ROWS, expected=expected
        )
        assert "and 1e-05 is tolerated" in checks["answers"].detail
        assert result_of(path, examples=ROWS, expected=expected, tolerance=3e-5)[1]["answers"].ok


@pytest.mark.usefixtures("check_in_process", "no_cpp_program")
class TestAnswers:
    def test_large_logits_are_compared_relatively(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: answered(x[:, 0] * 100), X)
        expected = {"logit": ROWS["x"][:, 0] * 100 * (1 + 5e-6)}
        result, checks = result_of(path, examples=ROWS, expected=expected)
        assert checks["answers"].ok
        assert result.measurements["largest_difference"]["logit"] == pytest.approx(4.5e-4, rel=0.05)

    def test_nothing_is_said_of_what_was_not_looked_at(self, tmp_path: Path) -> None:
        path = save(tmp_path / "1", lambda x: answered(x[:, 0]), X)
        _, checks = result_of(path)
        assert {name for name, check in checks.items() if check.ok is None} == {
            "runs",
            "answers",
            "batches",
            "C++ program",
            "warm-up",
        }
        assert "zeros and empty strings give finite answers" in checks["odd values"].detail
        assert "NaN numbers give NaN, so missing numbers have to be filled in" in checks["odd values"].detail

    def test_nan_has_to_be_taken_where_it_means_missing(self, copy: Path) -> None:
        description = json.loads((copy / contract.DESCRIPTION_FILE).read_text())
        (copy / contract.DESCRIPTION_FILE).write_text(json.dumps(description | {"nan_is_missing": True}))
        _, checks = result_of(copy)
        assert checks["odd values"].ok is False
        assert "NaN numbers give NaN or infinite answers" in checks["odd values"].detail

    def test_own_examples(self, exported: Path) -> None:
        rows = {"item_id": ["tt0001", "нет"], "country": ["jp", ""], "price": [1, 2]}
        result, checks = result_of(exported, examples=rows)
        assert checks["runs"].ok
        assert checks["answers"].ok is None
        assert set(result.measurements["rows_per_second"]) == {"1", "7", "2"}

    def test_examples_that_do_not_fit(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"the examples lack `country`, `price`. The inputs are"):
            kser_tf.check(exported, examples={"item_id": ["a"]})
        with pytest.raises(ExportError, match=r"give both, or neither"):
            kser_tf.check(exported, expected={"logit": [1.0]})
        path = save(tmp_path / "1", lambda x: answered(x[:, 0]), X)
        with pytest.raises(
            ExportError, match=r"an answer to each of the 4 examples.*Received: `logit` of shape \(3,\)"
        ):
            kser_tf.check(path, examples=ROWS, expected={"logit": [1.0, 2, 3]})
        _, checks = result_of(path, examples={"x": ["a"]})
        assert checks["runs"].detail.startswith("input `x`: expected float32 values. Received: |S1")
