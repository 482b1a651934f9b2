"""Chooses the Keras that the tests run under, before TensorFlow is imported.

The environment variable `TF_USE_LEGACY_KERAS` decides, as it does for users: `1` is Keras 2, `0` is Keras 3. Where it
is not set, the tests run under Keras 2.
"""

from __future__ import annotations

import functools
import gc
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread an operation: the other processor has the other half of the tests.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SEED = 20250811


# A file that takes a minute alone at the end would have the other process wait.
_LONGEST = ("test_run.py", "test_notebook.py", "test_distribute.py", "test_attach_output.py", "test_refresh.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    if os.environ["TF_USE_LEGACY_KERAS"].lower() in ("1", "true"):
        return
    skip = pytest.mark.skip(reason="tensorflow-recommenders needs Keras 2 (TF_USE_LEGACY_KERAS=1)")
    for item in items:
        if item.get_closest_marker("tfrs"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Takes what was imported out of garbage collection, which tracing graphs sets off again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def seed() -> int:
    """Seeds Python, NumPy and TensorFlow for one test."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    return SEED


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers of the test's own: the same in each run, whatever other tests draw."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Any]:
    """Ranking models, exported with all signatures: `exported(backbone, bake)`, each made once for all tests."""
    import served_world

    @functools.cache
    def make(backbone: str, bake: Any) -> served_world.Exported:
        return served_world.Exported(tmp_path_factory.mktemp("exported"), backbone, bake)

    return make


@pytest.fixture
def check_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `kser_tf.check` load models in this process, a fresh one taking 5 s to start: with Keras there, of which no word."""
    from kser_tf.serving import check, session_client

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        session_client.main(folder)
        return subprocess.CompletedProcess([], 0, "", "the log")

    monkeypatch.setattr(check, "_run_client", run)
    monkeypatch.setattr(session_client, "_KERAS", ())


@pytest.fixture
def no_cpp_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `kser_tf.check` do without the C++ program, where another test has it."""
    from kser_tf.serving import native_loader

    monkeypatch.setattr(native_loader, "run", lambda *_: native_loader.NativeResult(not_run="asked elsewhere"))
