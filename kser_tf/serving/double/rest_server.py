"""RestServer: the REST half of the double of TensorFlow Serving."""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import model_pb2

from kser_tf.errors import ExportError
from kser_tf.serving import contract
from kser_tf.serving.double.served_models import (
    ServedModels,
    ServingError,
    class_pairs,
    classify_problem,
    regress_problem,
)
from kser_tf.serving.signature_judge import REGRESSION

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<action>:predict|:classify|:regress|/metadata)?"
)
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}
# An output of such a name holds bytes, and not text.
_BINARY_SUFFIX = "_bytes"
_B64 = "b64"


class RestServer:
    """Answers REST requests from a thread of its own.

    Args:
        models: What answers.
        host: The address.
        port: int. 0 for a free one.
    """

    def __init__(self, models: ServedModels, host: str, port: int) -> None:
        self._server = ThreadingHTTPServer((host, port), type("_Handler", (_Handler,), {"models": models}))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    models: ServedModels

    def do_GET(self) -> None:
        """Status."""
        self._answer(None)

    def do_POST(self) -> None:
        """Predict, classify, regress."""
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, body: bytes | None) -> None:
        try:
            status, answer = 200, _answered(self.models, self.path, body)
        except ServingError as error:
            status, answer = _HTTP.get(error.code, 500), {"error": error.message}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _answered(models: ServedModels, path: str, body: bytes | None) -> Any:
    match = _PATH.fullmatch(path)
    action = match["action"] if match else None
    if match is None or (body is None) != (action in (None, "/metadata")):
        raise _refused(f"Malformed request: {'GET' if body is None else 'POST'} {path}")
    spec = model_pb2.ModelSpec(name=match["name"])
    if match["version"]:
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]
    if action is None:
        return json_format.MessageToDict(
            models.status(spec), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    if action == "/metadata":
        version, model = models.model(spec)
        signatures = {name: json_format.MessageToDict(signature) for name, signature in model.signature_defs.items()}
        return {
            "model_spec": {"name": models.name, "version": str(version)},
            "metadata": {"signature_def": {"signature_def": signatures}},
        }
    request = _object(body or b"")
    spec.signature_name = request.get("signature_name", "")
    if action == ":predict":
        return _predict(models, spec, request)
    examples = request.get("examples")
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise _refused("`examples` must be a list of objects")
    serialized = [_example({**request.get("context", {}), **example}) for example in examples]
    if action == ":classify":
        _, _, outputs = models.predict_examples(spec, serialized, classify_problem)
        return {"results": [[list(pair) for pair in pairs] for pairs in class_pairs(outputs)]}
    _, _, outputs = models.predict_examples(spec, serialized, regress_problem)
    return {"results": outputs[REGRESSION].ravel().tolist()}


def _predict(models: ServedModels, spec: Any, request: Mapping[str, Any]) -> Any:
    if ("instances" in request) == ("inputs" in request):
        raise _refused('a request has either "instances" or "inputs"')
    _, model = models.model(spec)
    signature = spec.signature_name or contract.SIGNATURE
    if signature not in model.signatures:
        raise _refused(f'Serving signature name: "{signature}" not found in signature def')
    inputs = model.signatures[signature]["inputs"]
    if "inputs" in request:
        given = request["inputs"]
        if not isinstance(given, dict) or set(given) == {_B64}:
            given = _of_one(given, inputs)
        outputs = _encoded(models.predict(spec, _tensors(given, inputs))[2])
        return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}
    rows = request["instances"]
    if not isinstance(rows, list) or not rows:
        raise _refused('"instances" must be a list with at least one row')
    if all(isinstance(row, dict) and set(row) != {_B64} for row in rows):
        if any(row.keys() != rows[0].keys() for row in rows):
            raise _refused('the rows in "instances" name different inputs')
        given = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        given = _of_one(rows, inputs)
    outputs = _encoded(models.predict(spec, _tensors(given, inputs))[2])
    if any(len(values) != len(rows) for values in outputs.values()):
        raise _refused("an output has another number of rows than the request: send it in columns")
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def _of_one(value: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if len(inputs) != 1:
        raise _refused(f"the inputs have to be named: {', '.join(inputs)}")
    return {next(iter(inputs)): value}


def _tensors(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, value in given.items():
        spec = inputs.get(name)
        try:
            # An input that the signature lacks is refused by the models.
            tensors[name] = (
                np.zeros(0) if spec is None else contract.as_rows(name, _decoded(value), spec["dtype"], None)
            )
        except (ExportError, ValueError, TypeError) as error:
            raise _refused(f"JSON value of `{name}`: {error}") from None
    return tensors


def _decoded(value: Any) -> Any:
    """Puts bytes in place of `{"b64": ...}`, at any depth."""
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if isinstance(value, dict):
        if set(value) != {_B64}:
            raise ValueError(f'an object that is not {{"b64": ...}}: {value}')
        try:
            return base64.b64decode(value[_B64], validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None
    return value


def _encoded(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    encoded = {}
    for name, values in outputs.items():
        if values.dtype.kind in "SO":
            entries: list[Any] = [
                {_B64: base64.b64encode(value).decode()} if name.endswith(_BINARY_SUFFIX) else bytes(value).decode()
                for value in values.ravel().tolist()
            ]
            boxes = np.empty(len(entries), dtype=object)
            boxes[:] = entries
            values = boxes.reshape(values.shape)
        encoded[name] = values.tolist()
    return encoded


def _example(features: Mapping[str, Any]) -> bytes:
    example = tf.train.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        values = _decoded(value if isinstance(value, list) else [value])
        try:
            if all(isinstance(entry, str | bytes) for entry in values):
                feature.bytes_list.value.extend(e.encode() if isinstance(e, str) else e for e in values)
            elif all(isinstance(entry, int) for entry in values):
                feature.int64_list.value.extend(values)
            else:
                feature.float_list.value.extend(values)
        except (TypeError, ValueError) as error:
            raise _refused(f"feature `{name}`: {error}") from None
    return example.SerializeToString()


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise _refused(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise _refused("the request must be a JSON object")
    return request


def _refused(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
