"""A server for the tests of clients: the double of TensorFlow Serving, and TensorFlow Serving itself where there is one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from kser_tf.serving.server_config import write_server_config

MODEL_SERVER = "TENSORFLOW_MODEL_SERVER"
_START_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """Where a server answers.

    Args:
        grpc: Host and port.
        rest: Host and port.
        is_double: Whether it is the double.
    """

    grpc: str
    rest: str
    is_double: bool


@contextlib.contextmanager
def double(base: Path, name: str, labels: dict[str, int]) -> Iterator[Server]:
    from kser_tf.serving.double.protocol_double import ProtocolDouble

    with ProtocolDouble(base, name=name, labels=labels) as served:
        yield Server(served.grpc_address, served.rest_address, True)


@contextlib.contextmanager
def tensorflow_serving(base: Path, name: str, labels: dict[str, int], folder: Path) -> Iterator[Server]:
    """TensorFlow Serving: the binary that `TENSORFLOW_MODEL_SERVER` names, or the server at the address that it names.

    An address is `host:port` of gRPC; REST is one port higher, as in Docker. It has to serve `base` under `name` already.
    """
    place = os.environ.get(MODEL_SERVER)
    if not place:
        pytest.skip(f"TensorFlow Serving itself was not asked: {MODEL_SERVER} names neither a binary nor an address")
    if not Path(place).is_file():
        host, _, port = place.rpartition(":")
        if not host or not port.isdecimal():
            pytest.fail(f"{MODEL_SERVER}={place} is neither a file nor host:port")
        yield Server(place, f"{host}:{int(port) + 1}", False)
        return
    write_server_config(base, folder, name=name, **labels)
    config = folder / "models.config"
    config.write_text(config.read_text().replace(f"/models/{name}", str(base)))
    ports = [_free_port(), _free_port()]
    command = [
        place,
        f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}",
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models=true",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
    ]
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(process, f"127.0.0.1:{ports[0]}", folder / "log", name)
            yield Server(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", False)
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path, name: str) -> None:
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    deadline = time.monotonic() + _START_SECONDS
    with grpc.insecure_channel(address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                versions = stub.GetModelStatus(request, 1).model_version_status
                if versions and all(
                    version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE for version in versions
                ):
                    return
            time.sleep(0.2)
    pytest.fail(f"TensorFlow Serving did not start:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
