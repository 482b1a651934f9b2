"""tf.distribute: attached models train alike on one replica and on two, and the knowledge is there once."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.tfrs

# Logical devices have to be made before TensorFlow starts, so each test runs a process of its own.
_PROGRAM = Path(__file__).parent / "distributed_program.py"


def run(tmp_path, *arguments, environment=None):
    output = tmp_path / f"{'-'.join(arguments)}-{(environment or {}).get('WORKER', 0)}.npz"
    command = [sys.executable, str(_PROGRAM), str(tmp_path), str(output), *arguments]
    variables = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    return output, subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def finished(output, process):
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log[-3000:]
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("strategy", ["all_parameters", "extractor_only", "extractor_alone"])
def test_two_replicas_train_as_one(tmp_path, strategy):
    one = finished(*run(tmp_path, "one", strategy))
    two = finished(*run(tmp_path, "mirrored", strategy))
    assert two.pop("replicas") == 2
    assert one.pop("replicas") == 1
    assert one.keys() == two.keys()
    moved = [name for name in one if name.startswith("moved/") and one[name]]
    assert any("output_kernel" in name for name in moved)
    assert any("embeddings" in name for name in moved) == (strategy != "extractor_alone")
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_workers_train_as_one(tmp_path):
    one = finished(*run(tmp_path, "one", "all_parameters"))
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []
    for worker in range(2):
        config = {"cluster": {"worker": ports}, "task": {"type": "worker", "index": worker}}
        environment = {"TF_CONFIG": json.dumps(config), "WORKER": str(worker)}
        started.append(run(tmp_path, "workers", "all_parameters", environment=environment))
    try:
        results = [finished(*worker) for worker in started]
    finally:
        for _, process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    for result in results:
        assert result.pop("replicas") == 2
        for name, value in result.items():
            np.testing.assert_allclose(value, one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_checkpoints_and_replicas_hold_no_table(tmp_path):
    """With a store of 40 MB, two replicas take no more memory than one, and a checkpoint holds the weights alone."""
    one = finished(*run(tmp_path, "one", "memory"))
    two = finished(*run(tmp_path, "mirrored", "memory"))
    assert two["table_bytes"] > 40e6
    assert two["checkpoint_bytes"] < 1e6
    assert two["grown_bytes"] - one["grown_bytes"] < 0.5 * two["table_bytes"]
