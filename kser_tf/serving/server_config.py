"""What a TensorFlow Serving server is started with: models, version labels, batching, monitoring, Docker."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kser_tf.errors import ExportError
from kser_tf.files import write_text

MODELS_FILE = "models.config"
BATCHING_FILE = "batching.config"
MONITORING_FILE = "monitoring.config"
COMPOSE_FILE = "compose.yaml"
README_FILE = "README.md"

STABLE = "stable"
CANARY = "canary"
GRPC_PORT = 8500
REST_PORT = 8501
METRICS_PATH = "/monitoring/prometheus/metrics"
# The TensorFlow that this package is tested with; a server has to be as new as what wrote the model.
IMAGE = "tensorflow/serving:2.21.0"

# Where rows a second hardly grow any more with the rows of a call: `sweep` in benchmarks/results/serving_latency.json (DIN,
# baked, session loader, no network), which tests/test_server_config.py compares with this value. `python
# benchmarks/serving_latency.py --only-sweep` makes it anew.
EXECUTED_ROWS = 512
# About what a call of a few rows takes (`latency` there): to wait for company costs a lonely request no more than that.
BATCH_TIMEOUT_MICROS = 500
# As many full batches, on two threads, are some tens of milliseconds of waiting; beyond, a server refuses.
ENQUEUED_BATCHES = 32
# A larger request is refused; up to it, a request of more than `EXECUTED_ROWS` is split.
LARGEST_REQUEST_ROWS = 10_000

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SAVED_MODEL_FILE = "saved_model.pb"
_HEADER = "# Written by `kser-tf serving-config`; the same command writes it anew.\n"


@dataclass(frozen=True)
class ServerConfig:
    """What `write_server_config` wrote.

    Args:
        folder: Where.
        name: The name that the model is served by.
        labels: For each label its version: `stable`, and `canary` where there is one.
    """

    folder: Path
    name: str
    labels: dict[str, int]


def write_server_config(
    base: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    stable: int | None = None,
    canary: int | None = None,
    threads: int | None = None,
    image: str = IMAGE,
) -> ServerConfig:
    """Writes `models.config`, `batching.config`, `monitoring.config`, `compose.yaml` and `README.md` for TF Serving.

    A running server reads `models.config` again twice a minute, so the same command with other versions starts a canary,
    promotes it, or goes back. Each file is replaced in its folder, not the folder: a container that has it mounted sees
    the new one.

    Args:
        base: The folder with the versions, as `export` writes them.
        output: The folder to write to.
        name: The name that the model is served by. Defaults to the name of `base`.
        stable: int. The version that clients ask for as `stable`. Defaults to the newest one beside `canary`.
        canary: int. A version that some clients ask for as `canary`. Defaults to none.
        threads: int. The server's cores. Defaults to those of this machine.
        image: The Docker image.

    Returns:
        What was written.

    Raises:
        ExportError: There is no such version, or the name is none.
        FileError: The place cannot be written to.

    Example:

    >>> write_server_config("serving/ranker", "serving/config", canary=2).labels
    {'stable': 1, 'canary': 2}
    """
    base, output = Path(os.path.abspath(base)), Path(output)
    name = base.name if name is None else name
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"`name` must consist of ASCII letters, digits, `_`, `.` and `-`. Received: name={name!r}. Give another one."
        )
    if threads is not None and threads < 1:
        raise ExportError(f"`threads` must be at least 1. Received: threads={threads}")
    labels = _labels(base, stable, canary)
    write_text(output / MODELS_FILE, _models(name, labels))
    write_text(output / BATCHING_FILE, _batching(threads or os.cpu_count() or 1))
    write_text(output / MONITORING_FILE, _monitoring())
    write_text(output / COMPOSE_FILE, _compose(base, name, image))
    write_text(output / README_FILE, _readme(base, output, name, labels, image))
    return ServerConfig(output, name, labels)


def _labels(base: Path, stable: int | None, canary: int | None) -> dict[str, int]:
    there = sorted(
        int(file.parent.name) for file in base.glob(f"*/{_SAVED_MODEL_FILE}") if file.parent.name.isdecimal()
    )
    if not there:
        raise ExportError(
            f"{base} holds no version. Write one with kser_tf.export, or give the folder above the versions."
        )
    for label, version in ((STABLE, stable), (CANARY, canary)):
        if version is not None and version not in there:
            raise ExportError(f"`{label}`: {base} holds no version {version}. It holds: {', '.join(map(str, there))}")
    if stable is None:
        stable = max((version for version in there if version != canary), default=None)
        if stable is None:
            raise ExportError(f"{base} holds version {canary} alone: there is nothing that it could be the canary for.")
    if stable == canary:
        raise ExportError(f"`stable` and `canary` are both {stable}. To promote a canary, leave `canary` out.")
    return {STABLE: stable} | ({} if canary is None else {CANARY: canary})


def _models(name: str, labels: dict[str, int]) -> str:
    versions = "\n".join(f"        versions: {version}" for version in sorted(labels.values()))
    entries = "\n".join(
        f'    version_labels {{\n      key: "{label}"\n      value: {version}\n    }}'
        for label, version in labels.items()
    )
    return f"""{_HEADER}model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{
      specific {{
{versions}
      }}
    }}
{entries}
  }}
}}
"""


def _batching(threads: int) -> str:
    return f"""{_HEADER}# Rows a second hardly grow with batches above {EXECUTED_ROWS} (benchmarks/serving_latency.py).
max_execution_batch_size {{ value: {EXECUTED_ROWS} }}
# The largest request; one of more rows than are executed at once is split.
max_batch_size {{ value: {LARGEST_REQUEST_ROWS} }}
enable_large_batch_splitting {{ value: true }}
# A call of one row takes 250, one of 64 rows 700 microseconds.
batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}
# Full batches that may wait, 40 to 150 ms on two cores; beyond, requests are refused at once (UNAVAILABLE).
max_enqueued_batches {{ value: {ENQUEUED_BATCHES} }}
# The server's cores.
num_batch_threads {{ value: {threads} }}
# Never true: a server pads a shorter history with the first value of the request, not with a missing one.
pad_variable_length_inputs: false
"""


def _monitoring() -> str:
    return f"""{_HEADER}prometheus_config {{
  enable: true
  path: "{METRICS_PATH}"
}}
"""


def _compose(base: Path, name: str, image: str) -> str:
    def quoted(text: str) -> str:
        # A JSON string is a YAML string; Compose puts variables in for a single dollar sign.
        return json.dumps(text.replace("$", "$$"), ensure_ascii=False)

    flags = "\n".join(f"      - {flag}" for flag in _flags())
    return f"""{_HEADER}services:
  serving:
    image: {quoted(image)}
    restart: unless-stopped
    ports:
      - "127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"
      - "127.0.0.1:{REST_PORT}:{REST_PORT}"
    volumes:
      - type: bind
        source: {quoted(str(base))}
        target: {quoted("/models/" + name)}
        read_only: true
      - type: bind
        source: .
        target: /config
        read_only: true
    command:
{flags}
"""


def _flags() -> list[str]:
    return [
        f"--model_config_file=/config/{MODELS_FILE}",
        "--model_config_file_poll_wait_seconds=30",
        # Without it, a server that starts refuses labels of versions that it has yet to load.
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file=/config/{BATCHING_FILE}",
        f"--monitoring_config_file=/config/{MONITORING_FILE}",
        "--enable_model_warmup=true",
    ]


def _readme(base: Path, output: Path, name: str, labels: dict[str, int], image: str) -> str:
    url = f"http://127.0.0.1:{REST_PORT}/v1/models/{name}"
    versions = ", ".join(f"`{label}` is version {version}" for label, version in labels.items())
    command = f"kser-tf serving-config {base} --output {output} --name {name}"
    flags = " \\\n        ".join(_flags())
    other = labels.get(CANARY, labels[STABLE] + 1)
    return f"""# Serving `{name}` with TensorFlow Serving

{versions}. Written by `kser-tf serving-config`. The image `{image}` was not pulled or run where this was written: take a
tag that your registry has, of the TensorFlow that wrote the model or a newer one.

Before a server gets a version:

    kser-tf check {base}/{labels[STABLE]}

Start, with Compose or without, in this folder:

    docker compose up -d

    docker run -d --name {name} -p 127.0.0.1:{GRPC_PORT}:{GRPC_PORT} -p 127.0.0.1:{REST_PORT}:{REST_PORT} \\
        -v "{base}":"/models/{name}":ro -v "$PWD":/config:ro {image} \\
        {flags}

Is it there, and what does it answer:

    curl {url}
    curl {url}/metadata
    curl {url}/labels/{STABLE}:predict -d '{{"instances": [{{...}}]}}'      # a value for each input, by name
    curl http://127.0.0.1:{REST_PORT}{METRICS_PATH}

Without the model's label the newest of the loaded versions answers, so clients name `{STABLE}`, and some of them `{CANARY}`.

A new version, of `export` or `refresh`, is served once it is named here. A canary, its promotion, the way back; a server
reads `{MODELS_FILE}` every 30 seconds, and a label moves to a version only once that is loaded:

    {command} --stable {labels[STABLE]} --canary {other}
    {command} --stable {other} --canary {labels[STABLE]}     # the old one stays loaded
    {command} --stable {labels[STABLE]} --canary {other}     # back
    {command} --stable {other}                # for good

Batching gathers the rows of small requests. It pays where requests hold less than some hundred rows; where each holds all
candidates of a page, take `--enable_batching` and `--batching_parameters_file` out: a lonely request then waits for nobody.
With batching, sequences have to come padded to their full length with the missing value (-1, or the empty string):
requests of different lengths are refused, and if the server padded them itself, it would repeat their first value.
A request of more than {LARGEST_REQUEST_ROWS:,} rows is refused with batching.
"""
