"""The gRPC half of the double of TensorFlow Serving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kser_tf.serving.double.served_models import (
    ServedModels,
    ServingError,
    class_pairs,
    classify_problem,
    regress_problem,
)
from kser_tf.serving.signature_judge import REGRESSION

_SIGNATURES_FIELD = "signature_def"
_WORKERS = 4


class GrpcServer:
    """Answers gRPC requests from threads of its own.

    Args:
        models: What answers.
        host: The address.
        port: int. 0 for a free one.
    """

    def __init__(self, models: ServedModels, host: str, port: int) -> None:
        # gRPC's own limit of 4 MB for a message is lifted by TensorFlow Serving too.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(_WORKERS), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_PredictionService(models), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(models), self._server)
        self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        self._server.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.stop(grace=None).wait()


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """What has no method here is answered with UNIMPLEMENTED."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        """Answers by name."""
        with _refusals(context):
            try:
                values = {name: np.asarray(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
            except (ValueError, TypeError) as error:
                raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"malformed tensor: {error}") from None
            version, signature, outputs = self._models.predict(request.model_spec, values, list(request.output_filter))
            response = predict_pb2.PredictResponse()
            _answer_spec(response.model_spec, self._models.name, version, signature)
            for name, output in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(output))
            return response

    def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers tf.Example with classes."""
        with _refusals(context):
            version, signature, outputs = self._models.predict_examples(
                request.model_spec, _examples(request.input), classify_problem
            )
            response = classification_pb2.ClassificationResponse()
            _answer_spec(response.model_spec, self._models.name, version, signature)
            for pairs in class_pairs(outputs):
                row = response.result.classifications.add()
                for label, score in pairs:
                    row.classes.add(label=label, score=score)
            return response

    def Regress(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers tf.Example with numbers."""
        with _refusals(context):
            version, signature, outputs = self._models.predict_examples(
                request.model_spec, _examples(request.input), regress_problem
            )
            response = regression_pb2.RegressionResponse()
            _answer_spec(response.model_spec, self._models.name, version, signature)
            for value in outputs[REGRESSION].ravel():
                response.result.regressions.add(value=float(value))
            return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers with the signatures."""
        with _refusals(context):
            if list(request.metadata_field) != [_SIGNATURES_FIELD]:
                message = f"GetModelMetadataRequest must specify the metadata_field {_SIGNATURES_FIELD}"
                raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
            version, model = self._models.model(request.model_spec)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = self._models.name
            response.model_spec.version.value = version
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in model.signature_defs.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata[_SIGNATURES_FIELD].Pack(signatures)
            return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Says which versions are there."""
        with _refusals(context):
            return self._models.status(request.model_spec)


@contextlib.contextmanager
def _refusals(context: Any) -> Iterator[None]:
    try:
        yield
    except ServingError as error:
        context.abort(error.code, error.message)


def _answer_spec(spec: Any, name: str, version: int, signature: str) -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature


def _examples(given: Any) -> list[bytes]:
    """The serialized examples of an `Input`; what they have in common is put into each."""
    if given.WhichOneof("kind") == "example_list_with_context":
        common = given.example_list_with_context.context.features.feature
        examples = []
        for example in given.example_list_with_context.examples:
            whole = tf.train.Example.FromString(example.SerializeToString())
            for name, feature in common.items():
                whole.features.feature[name].CopyFrom(feature)
            examples.append(whole.SerializeToString())
        return examples
    return [example.SerializeToString() for example in given.example_list.examples]
