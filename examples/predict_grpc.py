"""Asks TensorFlow Serving over gRPC; needs `pip install 'kser-tf[serving]'`.

    python examples/predict_grpc.py --model ranker --label stable \
        '{"user_id": ["u1", "u1"], "item_id": ["影片-1", "影片-2"], "place": ["web", "web"], "price": [2.5, 1.0], ...}'

The server says which dtype each input has, so a list of numbers becomes int64 or float32 as the model wants it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Client:
    """Asks for one model.

    Args:
        channel: Such as `grpc.insecure_channel("127.0.0.1:8500")`; one serves all threads.
        model: The name that it is served by.
        label: `stable` or `canary`. Defaults to the newest version.
        timeout: float. Seconds.
    """

    def __init__(self, channel: grpc.Channel, model: str, *, label: str | None = None, timeout: float = 10) -> None:
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._spec = model_pb2.ModelSpec(name=model, version_label=label)
        self._timeout = timeout
        self.signatures = self._signatures()

    def predict(self, inputs: Mapping[str, Any], *, signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Returns the signature's outputs for all rows.

        Args:
            inputs: For each input its values: an array or a list; strings as `str` or `bytes`.
            signature: The signature.
        """
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        wanted = self.signatures[signature].inputs
        for name, values in inputs.items():
            # An input that the model does not have is left to the server to refuse.
            dtype = wanted[name].dtype if name in wanted else None
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype))
        response = self._stub.Predict(request, self._timeout)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def classify(self, examples: Sequence[tf.train.Example], *, signature: str = "examples") -> list[list[Any]]:
        """Returns for each example its classes: label and score."""
        request = classification_pb2.ClassificationRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        request.input.example_list.examples.extend(examples)
        rows = self._stub.Classify(request, self._timeout).result.classifications
        return [[(one.label, one.score) for one in row.classes] for row in rows]

    def _signatures(self) -> dict[str, Any]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        response = self._stub.GetModelMetadata(request, self._timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return dict(signatures.signature_def)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", help="JSON object: for each input the list of its values")
    parser.add_argument("--server", default="127.0.0.1:8500")
    parser.add_argument("--model", required=True)
    parser.add_argument("--label", help="stable or canary; default the newest version")
    given = parser.parse_args()
    with grpc.insecure_channel(given.server) as channel:
        client = Client(channel, given.model, label=given.label)
        for name, values in client.predict(json.loads(given.inputs)).items():
            print(name, values.tolist())
