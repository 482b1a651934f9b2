"""The client examples, end to end: over the loopback address, against the double and, where there is one, TF Serving."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import serving_server
import tensorflow as tf

from kser_tf.serving import contract
from kser_tf.serving.tf_examples import serialized_examples

EXAMPLES = Path(__file__).parents[1] / "examples"
NAME = "ranker"
ROWS: dict[str, Any] = {
    "item": ["影片", "фильм-3", "unbekannt", ""],
    "price": [1.0, 2.5, -1.0, 0.25],
    "past": [[3, 1, -1], [2, -1, -1], [1, 2, 3], [-1, -1, -1]],
}


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


predict_rest = load("predict_rest")
predict_grpc = load("predict_grpc")


def logits(version: int, rows: dict[str, Any] = ROWS) -> np.ndarray:
    """What the models below compute, in NumPy."""
    lengths = np.array([len(item.encode()) for item in rows["item"]], np.float32)
    return version * (lengths - np.array(rows["price"], np.float32)) + np.array(rows["past"]).sum(1)


def write_model(path: Path, version: int) -> None:
    def score(item: Any, price: Any, past: Any) -> dict[str, Any]:
        lengths = tf.cast(tf.strings.length(item), tf.float32)
        logit = version * (lengths - price) + tf.cast(tf.reduce_sum(past, -1), tf.float32)
        return {"probability": tf.sigmoid(logit), "logit": logit}

    def parsed(inputs: Any) -> dict[str, Any]:
        features = {
            "item": tf.io.FixedLenFeature([], tf.string),
            "price": tf.io.FixedLenFeature([], tf.float32),
            "past": tf.io.FixedLenFeature([3], tf.int64),
        }
        return score(**tf.io.parse_example(inputs, features))

    def classify(inputs: Any) -> dict[str, Any]:
        scores = tf.stack([1 - parsed(inputs)["probability"], parsed(inputs)["probability"]], 1)
        return {"classes": tf.broadcast_to(tf.constant(["0", "1"]), tf.shape(scores)), "scores": scores}

    specs = [
        tf.TensorSpec((None,), tf.string, name="item"),
        tf.TensorSpec((None,), tf.float32, name="price"),
        tf.TensorSpec((None, None), tf.int64, name="past"),
    ]
    examples = [tf.TensorSpec((None,), tf.string, name="inputs")]
    archive = tf.keras.export.ExportArchive()
    archive.add_endpoint("serving_default", tf.function(score, input_signature=specs))
    archive.add_endpoint("parsed", tf.function(parsed, input_signature=examples))
    archive.add_endpoint("examples", tf.function(classify, input_signature=examples))
    archive.add_endpoint(
        "regression", tf.function(lambda inputs: {"outputs": parsed(inputs)["logit"]}, input_signature=examples)
    )
    archive.write_out(str(path))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / NAME
    for version in (1, 2):
        write_model(folder / str(version), version)
    return folder


@pytest.fixture(scope="module", params=["double", "tensorflow_serving"])
def server(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[serving_server.Server]:
    labels = {"stable": 1, "canary": 2}
    if request.param == "double":
        with serving_server.double(base, NAME, labels) as served:
            yield served
    else:
        with serving_server.tensorflow_serving(base, NAME, labels, tmp_path_factory.mktemp("config")) as served:
            yield served


@pytest.fixture(scope="module")
def channel(server: serving_server.Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(server: serving_server.Server) -> str:
    return f"http://{server.rest}/v1/models/{NAME}"


def rows_of(columns: dict[str, Any] = ROWS) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def serialized() -> list[bytes]:
    arrays = {
        "item": contract.as_rows("item", ROWS["item"], "string", [None]),
        "price": np.array(ROWS["price"], np.float32),
        "past": np.array(ROWS["past"]),
    }
    return list(serialized_examples(arrays))


class TestGrpc:
    def test_predict(self, channel: grpc.Channel) -> None:
        answers = predict_grpc.Client(channel, NAME).predict(ROWS)
        np.testing.assert_allclose(answers["logit"], logits(2), rtol=1e-6)
        np.testing.assert_allclose(answers["probability"], 1 / (1 + np.exp(-logits(2).astype(float))), rtol=1e-6)

    @pytest.mark.parametrize(("label", "version"), [("stable", 1), ("canary", 2)])
    def test_labels(self, channel: grpc.Channel, label: str, version: int) -> None:
        answers = predict_grpc.Client(channel, NAME, label=label).predict(ROWS)
        np.testing.assert_allclose(answers["logit"], logits(version), rtol=1e-6)

    def test_serialized_examples(self, channel: grpc.Channel) -> None:
        answers = predict_grpc.Client(channel, NAME).predict({"inputs": serialized()}, signature="parsed")
        np.testing.assert_allclose(answers["logit"], logits(2), rtol=1e-6)

    def test_classify(self, channel: grpc.Channel) -> None:
        examples = [tf.train.Example.FromString(example) for example in serialized()]
        rows = predict_grpc.Client(channel, NAME).classify(examples)
        assert [[label for label, _ in row] for row in rows] == [["0", "1"]] * 4
        click = [row[1][1] for row in rows]
        np.testing.assert_allclose(click, 1 / (1 + np.exp(-logits(2).astype(float))), rtol=1e-6)

    def test_regress_with_a_common_context(self, channel: grpc.Channel) -> None:
        from tensorflow_serving.apis import prediction_service_pb2_grpc, regression_pb2

        request = regression_pb2.RegressionRequest()
        request.model_spec.name, request.model_spec.signature_name = NAME, "regression"
        given = request.input.example_list_with_context
        given.context.features.feature["past"].int64_list.value.extend([1, 2, 3])
        for item, price in (("影", 1.0), ("ab", 0.5)):
            features = given.examples.add().features.feature
            features["item"].bytes_list.value.append(item.encode())
            features["price"].float_list.value.append(price)
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Regress(request, 10)
        # 2 * (3 bytes - 1) + 6 and 2 * (2 - 0.5) + 6
        assert [regression.value for regression in response.result.regressions] == [10.0, 9.0]
        assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 2)

    def test_status(self, channel: grpc.Channel) -> None:
        from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = NAME
        versions = stub.GetModelStatus(request, 10).model_version_status
        assert sorted(version.version for version in versions) == [1, 2]
        assert {version.state for version in versions} == {get_model_status_pb2.ModelVersionStatus.AVAILABLE}
        request.model_spec.version.value = 7
        with pytest.raises(grpc.RpcError, match="Could not find version 7 of model ranker") as error:
            stub.GetModelStatus(request, 10)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND

    def test_an_output_filter(self, channel: grpc.Channel) -> None:
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        request = predict_pb2.PredictRequest(output_filter=["logit"])
        request.model_spec.name, request.model_spec.signature_name = NAME, "parsed"
        request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(serialized()))
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, 10)
        assert set(response.outputs) == {"logit"}
        assert response.model_spec.signature_name == "parsed"

    @pytest.mark.parametrize(
        ("model", "label", "code", "message"),
        [
            ("other", None, "NOT_FOUND", r"Servable not found for request: Latest\(other\)"),
            (NAME, "unknown", "INVALID_ARGUMENT", "Unrecognized servable version label: unknown"),
        ],
    )
    def test_no_such_model(self, channel: grpc.Channel, model: str, label: str | None, code: str, message: str) -> None:
        with pytest.raises(grpc.RpcError, match=message) as error:
            predict_grpc.Client(channel, model, label=label)
        assert error.value.code().name == code

    def test_no_such_version(self, channel: grpc.Channel) -> None:
        client = predict_grpc.Client(channel, NAME)
        client._spec.version.value = 7
        with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Specific\(ranker, 7\)") as error:
            client.predict(ROWS)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"item": ["a"], "price": [1.0]}, "Missing but required: {past}"),
            (ROWS | {"colour": ["red"]}, "Sent extra: {colour}. Missing but required: {}"),
            ({**ROWS, "item": np.array([1, 2, 3, 4])}, "Expects arg.* to be string but int64 is provided"),
            ({**ROWS, "past": [[1, 2, 3]] * 3}, "[Ii]ncompatible shapes"),
        ],
    )
    def test_wrong_inputs(self, channel: grpc.Channel, inputs: dict[str, Any], message: str) -> None:
        client = predict_grpc.Client(channel, NAME)
        if isinstance(inputs["item"], np.ndarray):
            client.signatures["serving_default"].inputs["item"].dtype = tf.int64.as_datatype_enum
        with pytest.raises(grpc.RpcError, match=message) as error:
            client.predict(inputs)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        np.testing.assert_allclose(predict_grpc.Client(channel, NAME).predict(ROWS)["logit"], logits(2), rtol=1e-6)

    @pytest.mark.parametrize(
        ("signature", "message", "code"),
        [("absent", 'Serving signature key "absent" not found', "FAILED_PRECONDITION")],
    )
    def test_no_such_signature(self, channel: grpc.Channel, signature: str, message: str, code: str) -> None:
        client = predict_grpc.Client(channel, NAME)
        client.signatures[signature] = client.signatures["serving_default"]
        with pytest.raises(grpc.RpcError, match=message) as error:
            client.predict(ROWS, signature=signature)
        assert error.value.code().name == code

    @pytest.mark.parametrize(
        ("signature", "message"),
        [("serving_default", "Expected one input Tensor"), ("regression", "at least one of")],
    )
    def test_what_is_not_for_classify(self, channel: grpc.Channel, signature: str, message: str) -> None:
        with pytest.raises(grpc.RpcError, match=message) as error:
            predict_grpc.Client(channel, NAME).classify(
                [tf.train.Example.FromString(serialized()[0])], signature=signature
            )
        assert error.value.code().name in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")

    def test_an_id_of_a_million_characters(self, channel: grpc.Channel) -> None:
        rows = {"item": ["影" * 10**6, "b"], "price": [0.0, 0.0], "past": [[0], [0]]}
        answers = predict_grpc.Client(channel, NAME).predict(rows)
        np.testing.assert_array_equal(answers["logit"], [6e6, 2.0])


class TestRest:
    def test_rows(self, url: str) -> None:
        answers = predict_rest.predict_rows(url, rows_of())
        np.testing.assert_allclose([answer["logit"] for answer in answers], logits(2), rtol=1e-6)

    @pytest.mark.parametrize(("place", "version"), [("labels/stable", 1), ("labels/canary", 2), ("versions/1", 1)])
    def test_columns_and_versions(self, url: str, place: str, version: int) -> None:
        answers = predict_rest.predict_columns(f"{url}/{place}", ROWS)
        np.testing.assert_allclose(answers["logit"], logits(version), rtol=1e-6)

    def test_bytes(self, url: str) -> None:
        for rows in (serialized(), [{"inputs": example} for example in serialized()]):
            answers = predict_rest.predict_rows(url, rows, signature="parsed")
            np.testing.assert_allclose([answer["logit"] for answer in answers], logits(2), rtol=1e-6)
        answers = predict_rest.predict_columns(url, {"inputs": serialized()}, signature="parsed")
        np.testing.assert_allclose(answers["logit"], logits(2), rtol=1e-6)

    def test_classify(self, url: str) -> None:
        results = predict_rest.classify(url, rows_of())
        assert [[label for label, _ in row] for row in results] == [["0", "1"]] * 4
        np.testing.assert_allclose(
            [row[1][1] for row in results], 1 / (1 + np.exp(-logits(2).astype(float))), rtol=1e-5
        )

    def test_nan_is_taken(self, url: str) -> None:
        answers = predict_rest.predict_columns(url, {"item": ["a"], "price": [float("nan")], "past": [[1]]})
        assert np.isnan(answers["logit"][0])

    def test_status_and_metadata(self, url: str) -> None:
        assert predict_rest.status(url) == {1: "AVAILABLE", 2: "AVAILABLE"}
        with urllib.request.urlopen(f"{url}/metadata") as response:
            metadata = json.load(response)
        signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["past"]["dtype"] == "DT_INT64"
        assert metadata["model_spec"]["version"] == "2"

    @pytest.mark.parametrize(
        ("place", "request_", "status", "message"),
        [
            (":predict", {"instances": []}, 400, ""),
            (":predict", {"inputs": ROWS, "instances": []}, 400, ""),
            (":predict", {"inputs": {**ROWS, "price": ["a"] * 4}}, 400, ""),
            (":predict", {"inputs": {**ROWS, "past": [[1], [1, 2], [1], [1]]}}, 400, ""),
            (":predict", {"inputs": {"item": ["a"], "price": [1.0]}}, 400, "past"),
            (":predict", {"signature_name": "absent", "inputs": ROWS}, 400, "absent"),
            (":predict", [], 400, ""),
            ("/versions/7:predict", {"inputs": ROWS}, 404, "Servable not found for request: Specific(ranker, 7)"),
            ("x:predict", {"inputs": ROWS}, 404, "Servable not found for request: Latest(rankerx)"),
        ],
    )
    def test_refused(self, url: str, place: str, request_: Any, status: int, message: str) -> None:
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url + place, json.dumps(request_).encode()))
        assert error.value.code == status
        assert message in json.load(error.value)["error"]
        assert len(predict_rest.predict_rows(url, rows_of())) == 4

    def test_the_client_says_why(self, url: str) -> None:
        with pytest.raises(predict_rest.RefusedError, match="past"):
            predict_rest.predict_columns(url, {"item": ["a"], "price": [1.0]})


def test_the_examples_on_the_command_line(base: Path) -> None:
    with serving_server.double(base, NAME, {"stable": 1}) as served:
        arguments = ["--model", NAME, "--label", "stable", "--server"]
        for script, server, rows in [
            ("predict_rest", f"http://{served.rest}", json.dumps(rows_of())),
            ("predict_grpc", served.grpc, json.dumps(ROWS)),
        ]:
            command = [sys.executable, str(EXAMPLES / f"{script}.py"), rows, *arguments, server]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            assert str(float(logits(1)[0])) in done.stdout


def test_the_double_on_the_command_line(base: Path) -> None:
    command = [sys.executable, "-m", "kser_tf.serving.double", str(base), "--name", NAME]
    command += ["--grpc-port", "0", "--rest-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("a double of TensorFlow Serving: gRPC 127.0.0.1:")
        rest = line.split()[-1]
        assert predict_rest.status(f"http://{rest}/v1/models/{NAME}") == {1: "AVAILABLE", 2: "AVAILABLE"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_the_double_refuses_labels_of_versions_that_are_not_there(base: Path) -> None:
    from kser_tf.errors import ExportError

    with (
        pytest.raises(ExportError, match=r"holds the versions \[1, 2\], and the labels are {'stable': 3}"),
        serving_server.double(base, NAME, {"stable": 3}),
    ):
        pass
