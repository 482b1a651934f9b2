"""What a job did, in a file beside its output: `job.json`, for machines, and for `run` to know what is current."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kser_tf.errors import ConfigError, DataError
from kser_tf.files import read_json, sha256_of_file, sha256_of_json, write_json
from kser_tf.pipelines.provenance import command, commit
from kser_tf.version import __version__

JOB_FILE = "job.json"
_REPORTED_PACKAGES = ("tensorflow", "tf-keras", "keras", "tensorflow-recommenders", "sentence-transformers", "numpy")


def fingerprint_of(path: str | Path) -> str:
    """Returns a SHA-256 that changes when the input at `path` does.

    A file's bytes; a job's output folder by what that job says of itself; any other folder by its files' names and bytes.

    Raises:
        DataError: There is nothing at `path`.
    """
    path = Path(path)
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder.")
    if (path / JOB_FILE).is_file():
        return str(read_json(path / JOB_FILE)["fingerprint"])
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_of_json({str(file.relative_to(path)): sha256_of_file(file) for file in files})


def job_fingerprint(job: str, config: Any, inputs: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what determines a job's output: its name, configuration, inputs and this package's version."""
    return sha256_of_json({"job": job, "config": _plain(config), "inputs": dict(inputs), "version": __version__})


def write_job(
    folder: str | Path, *, job: str, config: Any, inputs: Mapping[str, str], result: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Writes `job.json` into a job's output folder, last of all: a folder that has one is complete.

    Args:
        folder: The job's output folder.
        job: str. The verb.
        config: The job's configuration dataclass.
        inputs: For each input its fingerprint, from `fingerprint_of`.
        result: What the job has to say: counts, metrics, file names.
        seconds: float. Wall time.

    Returns:
        What was written.
    """
    content = {
        "job": job,
        "fingerprint": job_fingerprint(job, config, inputs),
        "config": _plain(config),
        "inputs": dict(inputs),
        "result": dict(result),
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(),
        "commit": commit(),
        "versions": {"kser-tf": __version__, **_versions()},
    }
    write_json(Path(folder) / JOB_FILE, content)
    return content


def read_job(folder: str | Path) -> dict[str, Any] | None:
    """Returns the content of a folder's `job.json`, or `None` where there is none."""
    path = Path(folder) / JOB_FILE
    return read_json(path) if path.is_file() else None


def current_result(folder: str | Path, *, job: str, config: Any, inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the result of this very job (same configuration, inputs and version) if `folder` holds it whole, else `None`.

    Every job begins with it: what has been done is not done again.
    """
    content = read_job(folder)
    if content is None or content["fingerprint"] != job_fingerprint(job, config, inputs):
        return None
    return dict(content["result"])


def refuse_foreign_folder(folder: str | Path, *, job: str) -> None:
    """Raises `ConfigError` if `folder` holds anything that the job did not write: that is never replaced."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    written = read_job(folder) if folder.is_dir() else None
    if written is None or written.get("job") != job:
        raise ConfigError(
            f"output: {folder} holds something that `{job}` did not write, and is not replaced. Choose another "
            "folder, or remove it."
        )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
