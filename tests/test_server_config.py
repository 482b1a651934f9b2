"""The files that TensorFlow Serving is started with, read back by the protos that the server reads them by."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from kser_tf import cli
from kser_tf.errors import ExportError
from kser_tf.serving import server_config
from kser_tf.serving.server_config import write_server_config

NUMBER, SWITCH = ".google.protobuf.Int64Value", ".google.protobuf.BoolValue"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "ranker"
    for version in (2, 9, 10):
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "saved_model.pb").touch()
    (folder / "11").mkdir()  # not whole
    (folder / ".12.new").mkdir()
    return folder


def models_of(folder: Path) -> Any:
    model_server_config_pb2 = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    config = text_format.Parse(
        (folder / server_config.MODELS_FILE).read_text(), model_server_config_pb2.ModelServerConfig()
    )
    return config.model_config_list.config


def message(name: str, fields: dict[str, Any]) -> Any:
    """A message of TensorFlow Serving that the package tensorflow-serving-api leaves out: field -> its type."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="test", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )

    def add(owner: Any, fields: dict[str, Any]) -> None:
        for number, (field, kind) in enumerate(fields.items(), 1):
            entry = owner.field.add(name=field, number=number, label=1)
            if isinstance(kind, dict):
                add(owner.nested_type.add(name=f"{field}_type"), kind)
                entry.type, entry.type_name = 11, f".test.{name}.{field}_type"
            elif isinstance(kind, str):
                entry.type, entry.type_name = 11, kind
            else:
                entry.type = kind

    add(file.message_type.add(name=name), fields)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}"))


def test_models_and_labels(base: Path, tmp_path: Path) -> None:
    written = write_server_config(base, tmp_path / "config", canary=10)
    assert written.labels == {"stable": 9, "canary": 10}
    (model,) = models_of(tmp_path / "config")
    assert (model.name, model.base_path, model.model_platform) == ("ranker", "/models/ranker", "tensorflow")
    assert list(model.model_version_policy.specific.versions) == [9, 10]
    assert dict(model.version_labels) == {"stable": 9, "canary": 10}


def test_one_version_has_no_canary(base: Path, tmp_path: Path) -> None:
    write_server_config(base, tmp_path / "config", name="a-b.c")
    (model,) = models_of(tmp_path / "config")
    assert model.base_path == "/models/a-b.c"
    assert dict(model.version_labels) == {"stable": 10}
    assert list(model.model_version_policy.specific.versions) == [10]


def test_promotion_replaces_the_file_in_a_mounted_folder(base: Path, tmp_path: Path) -> None:
    """A container sees the folder that it mounted: it has to stay the same one."""
    write_server_config(base, tmp_path / "config", stable=2, canary=9)
    folder = os.stat(tmp_path / "config").st_ino
    write_server_config(base, tmp_path / "config", stable=9, canary=2)
    assert os.stat(tmp_path / "config").st_ino == folder
    assert dict(models_of(tmp_path / "config")[0].version_labels) == {"stable": 9, "canary": 2}
    assert len(list((tmp_path / "config").iterdir())) == 5


def test_batching(base: Path, tmp_path: Path) -> None:
    """By the fields of `BatchingParameters` in session_bundle_config.proto and of what bundle_factory_util.h reads."""
    fields = {
        "max_batch_size": NUMBER,
        "batch_timeout_micros": NUMBER,
        "max_enqueued_batches": NUMBER,
        "num_batch_threads": NUMBER,
        "enable_large_batch_splitting": SWITCH,
        "max_execution_batch_size": NUMBER,
        "pad_variable_length_inputs": 8,
    }
    write_server_config(base, tmp_path / "config", threads=6)
    text = (tmp_path / "config" / "batching.config").read_text()
    parameters = text_format.Parse(text, message("BatchingParameters", fields)())
    assert parameters.max_execution_batch_size.value == 512
    assert parameters.max_batch_size.value == 10_000
    assert parameters.enable_large_batch_splitting.value
    assert parameters.num_batch_threads.value == 6
    assert parameters.batch_timeout_micros.value == 500
    assert not parameters.pad_variable_length_inputs
    # The largest request, split, fits into an empty queue.
    room = parameters.max_enqueued_batches.value * parameters.max_execution_batch_size.value
    assert parameters.max_batch_size.value <= room


def test_monitoring(base: Path, tmp_path: Path) -> None:
    write_server_config(base, tmp_path / "config")
    text = (tmp_path / "config" / "monitoring.config").read_text()
    config = text_format.Parse(text, message("MonitoringConfig", {"prometheus_config": {"enable": 8, "path": 9}})())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_compose(tmp_path: Path) -> None:
    base = tmp_path / 'a $HOME: "odd" Ordner' / "ranker"
    (base / "1").mkdir(parents=True)
    (base / "1" / "saved_model.pb").touch()
    write_server_config(base, tmp_path / "config", image="registry.example/serving:1")
    service = yaml.safe_load((tmp_path / "config" / "compose.yaml").read_text())["services"]["serving"]
    assert service["image"] == "registry.example/serving:1"
    assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    model, config = service["volumes"]
    assert model == {
        "type": "bind",
        "source": str(base).replace("$", "$$"),
        "target": "/models/ranker",
        "read_only": True,
    }
    assert (config["source"], config["target"]) == (".", "/config")
    files = {flag.partition("=")[2] for flag in service["command"] if "/config/" in flag}
    assert {Path(file).name for file in files} <= {file.name for file in (tmp_path / "config").iterdir()}
    readme = (tmp_path / "config" / "README.md").read_text()
    assert all(flag in readme for flag in service["command"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"canary": 3}, "`canary`: .* holds no version 3. It holds: 2, 9, 10"),
        ({"stable": 11}, "`stable`: .* holds no version 11"),
        ({"stable": 9, "canary": 9}, "both 9. To promote a canary, leave `canary` out"),
        ({"name": 'x"y'}, "Received: name='x\"y'"),
        ({"threads": 0}, "`threads` must be at least 1. Received: threads=0"),
    ],
)
def test_refused(base: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_server_config(base, tmp_path / "config", **arguments)
    assert not (tmp_path / "config").exists()


def test_no_version_at_all(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"holds no version\. Write one with kser_tf.export, or give the folder above"
    ):
        write_server_config(base / "2", tmp_path / "config")
    for version in (2, 9):
        (base / str(version) / "saved_model.pb").unlink()
    with pytest.raises(ExportError, match="holds version 10 alone"):
        write_server_config(base, tmp_path / "config", canary=10)


def test_the_verb(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["serving-config", str(base), "--output", str(tmp_path / "config"), "--canary", "9", "--stable", "2"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'config'}: stable 2, canary 9\n"
    assert cli.main([*arguments[:-1], "7"]) == cli.EXIT_ERROR
    assert "holds no version 7" in capsys.readouterr().err


def test_the_batch_size_is_the_measured_one() -> None:
    """At it, the rows a second are most of what any size gave; at an eighth of it, they are not yet."""
    results = Path(__file__).parent.parent / "benchmarks" / "results" / "serving_latency.json"
    sweep = json.loads(results.read_text())["sweep"]
    best: dict[int, float] = {}
    for row in sweep:
        best[row["batch_size"]] = max(row["rows_per_second"], best.get(row["batch_size"], 0.0))
    assert best[server_config.EXECUTED_ROWS] > 0.7 * max(best.values())
    assert best[server_config.EXECUTED_ROWS // 8] < best[server_config.EXECUTED_ROWS]
