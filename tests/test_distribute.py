"""tf.distribute: attached models train alike on one replica and on two, and the knowledge is there once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_rows import MARK
from local_workers import worker_configs

from kser_tf import KnowledgeStore

pytestmark = pytest.mark.tfrs

# Logical devices and workers have to be made before TensorFlow starts: in processes of their own.
_PROGRAM = Path(__file__).parent / "distributed_program.py"


STRATEGIES = ("all_parameters", "extractor_only")
STORE_ROWS, WIDTH = 40_000, 64


def start(store: Path, output: Path, distribution: str, **environment: str) -> subprocess.Popen[str]:
    variables = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MALLOC_PERTURB_": "165",
        **environment,
    }
    command = [sys.executable, str(_PROGRAM), str(store), str(output), distribution]
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    try:
        _, log = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    assert process.returncode == 0, log[-3000:]
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose every row begins with a mark, by which `held_rows` finds it."""
    chunks = np.random.default_rng(0).normal(size=(STORE_ROWS, 1, 1, WIDTH)).astype("float32")
    chunks[..., 0] = MARK
    ids = [f"m{i + 5}" for i in range(STORE_ROWS)]  # the first five films are unknown
    mask = np.ones(chunks.shape[:3], bool)
    path = tmp_path_factory.mktemp("store") / "store"
    KnowledgeStore.write(path, ids, chunks, mask, fields=["story"], encoder="test", dtype="float32")
    return path


@pytest.fixture(scope="module")
def local(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("local") / "local.npz"
    return finished(start(store, output, "local"), output)


def part(results: dict[str, Any], *names: str) -> dict[str, Any]:
    start_of = "/".join(names) + "/"
    return {name.removeprefix(start_of): value for name, value in results.items() if name.startswith(start_of)}


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    names = [name for name in theirs if name.startswith(("weight/", "moved/"))]
    assert len(names) > 20
    assert set(names) <= set(ours)
    for name in names:
        assert np.isfinite(theirs[name]).all(), name  # NaN is like NaN, and shows nothing
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_replicas_train_as_one(local: dict[str, Any], strategy: str) -> None:
    one, two = part(local, "one", strategy), part(local, "mirrored", strategy)
    assert (one["replicas"], two["replicas"]) == (1, 2)
    moved = [name for name in one if name.startswith("moved/") and one[name]]
    assert any("alignment/output_kernel" in name for name in moved)
    assert any("projection" in name for name in moved)
    assert any("likeness/output_kernel" in name for name in moved)
    assert any("embeddings" in name for name in moved)
    assert any("dense/kernel" in name for name in moved) == (strategy == "all_parameters")  # the core
    assert_alike(two, one)


def test_two_workers_train_as_one(local: dict[str, Any], store: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{worker}.npz" for worker in range(2)]
    started = []
    try:
        for config, output in zip(worker_configs(2), outputs, strict=True):
            started.append(start(store, output, "workers", TF_CONFIG=config))
        results = [finished(process, output) for process, output in zip(started, outputs, strict=True)]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for result in results:
        for strategy in STRATEGIES:
            ours = part(result, "workers", strategy)
            assert ours["replicas"] == 2
            assert_alike(ours, part(local, "one", strategy))


def test_checkpoints_and_replicas_hold_no_table(local: dict[str, Any]) -> None:
    """After training, the store's rows are in memory only where the file is mapped, and a checkpoint holds the weights alone.

    What is in memory besides is the rows of the last batch, and the last blocks of 2,048 from which statistics were computed.
    """
    assert local["held_rows_of_a_copy"] >= local["table_rows"] == STORE_ROWS  # the count sees a copy
    for scope in ("one", "mirrored"):
        for strategy in STRATEGIES:
            trained = part(local, scope, strategy)
            assert trained["held_rows"] < 0.5 * STORE_ROWS, (scope, strategy)
            assert trained["checkpoint_bytes"] < 1e6, (scope, strategy)
