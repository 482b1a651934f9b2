"""ProtocolDouble: answers a TensorFlow Serving client on the loopback address, for tests. It is not TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kser_tf.errors import MissingExtraError

try:
    import tensorflow_serving.apis  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("tensorflow-serving-api", "serving") from None

from kser_tf.serving.double.grpc_server import GrpcServer
from kser_tf.serving.double.rest_server import RestServer
from kser_tf.serving.double.served_models import ServedModels

LOOPBACK = "127.0.0.1"


class ProtocolDouble:
    """Serves SavedModels by TensorFlow Serving's protocol, over gRPC and REST, on the loopback address.

    A double for tests of clients where no server is at hand. It loads the versions as a server does, by the session
    loader, and answers Predict, Classify, Regress, GetModelMetadata and GetModelStatus with the status codes of a
    server. It is written from TensorFlow Serving's protocol and source, and is none: it has no batching, no warm-up, no
    reloading, and says nothing about a server's speed.

    Args:
        base: The folder with the versions; all of them are loaded.
        name: The name that the model is served by.
        labels: For each label its version. Defaults to none.
        grpc_port: int. Defaults to a free one.
        rest_port: int. Defaults to a free one.

    Raises:
        MissingExtraError: `tensorflow-serving-api` is not installed (at import).
        ExportError: There is no version, or a label's version is not there.

    Example:

    >>> with ProtocolDouble("serving/ranker", name="ranker") as double:
    ...     channel = grpc.insecure_channel(double.grpc_address)
    """

    def __init__(
        self,
        base: str | Path,
        *,
        name: str,
        labels: Mapping[str, int] | None = None,
        grpc_port: int = 0,
        rest_port: int = 0,
    ) -> None:
        self._models = ServedModels(base, name=name, labels=labels or {})
        self._grpc = GrpcServer(self._models, LOOPBACK, grpc_port)
        self._rest = RestServer(self._models, LOOPBACK, rest_port)
        self.grpc_address = f"{LOOPBACK}:{self._grpc.port}"
        self.rest_address = f"{LOOPBACK}:{self._rest.port}"

    def close(self) -> None:
        """Stops answering, and frees the models."""
        self._grpc.close()
        self._rest.close()
        self._models.close()

    def __enter__(self) -> ProtocolDouble:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
