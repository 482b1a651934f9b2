"""Has a small C++ program load a SavedModel, on the libraries and headers of TensorFlow's own wheel."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kser_tf.serving import contract

SOURCE = Path(__file__).with_suffix(".cc")
COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O1")
_LIBRARIES = ("-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2")
_CACHE = "kser-tf"

# TF_DataType of tensorflow/c/tf_datatype.h.
_TYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    contract.STRING: 7,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
_NAMES = {number: name for name, number in _TYPES.items()}
_STAGES = {3: "it cannot be loaded", 4: "it cannot be run"}


@dataclass(frozen=True)
class NativeResult:
    """What the C++ program found.

    Args:
        not_run: str. Why it was not built or run at all; empty if it was.
        error: str. What went wrong in it; empty if nothing did.
        load_seconds: float. Seconds that loading took.
        run_seconds: float. Seconds of the first request after loading.
        answers: The signature's outputs by name.
        others: For each further signature its outputs by name.
    """

    not_run: str = ""
    error: str = ""
    load_seconds: float = 0.0
    run_seconds: float = 0.0
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    others: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


class CannotBuildError(Exception):
    """There is no compiler, or TensorFlow's installation lacks what the program needs."""


def run(
    path: str | Path,
    signature: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    others: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]] | None = None,
) -> NativeResult:
    """Loads the SavedModel at `path` in a C++ process, by `TF_LoadSessionFromSavedModel`, and calls signatures.

    Args:
        path: The SavedModel.
        signature: Its `inputs` and `outputs`, as `contract.describe_signatures` returns them.
        rows: For each input its values, as `contract.as_table` returns them.
        others: Further signatures to call, each with its rows. Defaults to none.

    Returns:
        What was found. That the program cannot be built is a result, no error.
    """
    requests = [(signature, rows), *(others or {}).values()]
    parts = [part for called, _ in requests for part in called.values()]
    unknown = {spec["dtype"] for part in parts for spec in part.values()} - _TYPES.keys()
    if unknown:
        return NativeResult(not_run=f"the program does not know {', '.join(sorted(unknown))} tensors")
    try:
        program = build()
    except CannotBuildError as error:
        return NativeResult(not_run=str(error))
    with tempfile.TemporaryDirectory(prefix="kser_tf_native_") as name:
        request, answers = Path(name) / "request", Path(name) / "answers"
        with open(request, "wb") as file:
            file.write(struct.pack("=I", len(requests)))
            for called, given in requests:
                _write_request(file, called, given)
        process = subprocess.run(
            [str(program), str(path), str(request), str(answers)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if process.returncode:
            stage = _STAGES.get(process.returncode, f"the program ended with status {process.returncode}")
            lines = process.stderr.strip().splitlines()
            return NativeResult(error=f"{stage}: {lines[-1] if lines else 'no message'}")
        with open(answers, "rb") as file:
            (load_seconds,) = _read(file, "d")
            found = [_read_answers(file, called) for called, _ in requests]
        (run_seconds, own), *further = found
        named = {name: outputs for name, (_, outputs) in zip(others or {}, further, strict=True)}
        return NativeResult("", "", load_seconds, run_seconds, own, named)


def build() -> Path:
    """Returns the program, compiled now or, from the same source for the same TensorFlow, before.

    It is kept in `$XDG_CACHE_HOME` or `~/.cache`, in the folder `kser-tf`.

    Raises:
        CannotBuildError: It cannot be compiled, with the reason.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuildError("TensorFlow is not installed as a package")
    tensorflow = Path(next(iter(spec.submodule_search_locations)))
    about = [str(tensorflow), importlib.metadata.version("tensorflow"), *_FLAGS, *_LIBRARIES]
    digest = hashlib.sha256(SOURCE.read_bytes() + "\0".join(about).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE
    program = cache / f"native_loader-{digest}"
    if program.is_file():
        return program
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise CannotBuildError(f"there is no C++ compiler ({', '.join(COMPILERS)}): install one, such as g++")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=cache, prefix=f".{program.name}.")
    except OSError as error:
        raise CannotBuildError(f"{cache} cannot be written to ({error.strerror}): set XDG_CACHE_HOME") from None
    os.close(handle)
    command = [compiler, *_FLAGS, f"-I{tensorflow / 'include'}", str(SOURCE), "-o", name, f"-L{tensorflow}"]
    command += [*_LIBRARIES, f"-Wl,-rpath,{tensorflow}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if "error" in line] or ["no message"]
            raise CannotBuildError(f"{compiler} could not build it: {lines[0].strip()}")
        os.chmod(name, 0o755)
        os.replace(name, program)  # whole or not there, also where two processes build it at once
    finally:
        Path(name).unlink(missing_ok=True)
    return program


def _write_request(file: BinaryIO, signature: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> None:
    file.write(struct.pack("=I", len(signature["inputs"])))
    for name, spec in signature["inputs"].items():
        values = np.ascontiguousarray(rows[name])
        _write_text(file, spec["tensor"])
        file.write(struct.pack(f"=iI{values.ndim}q", _TYPES[spec["dtype"]], values.ndim, *values.shape))
        if spec["dtype"] == contract.STRING:
            for value in values.ravel().tolist():
                file.write(struct.pack("=Q", len(value)) + value)
        else:
            file.write(struct.pack("=Q", values.nbytes) + values.tobytes())
    file.write(struct.pack("=I", len(signature["outputs"])))
    for spec in signature["outputs"].values():
        _write_text(file, spec["tensor"])


def _write_text(file: BinaryIO, text: str) -> None:
    encoded = text.encode()
    file.write(struct.pack("=I", len(encoded)) + encoded)


def _read_answers(file: BinaryIO, signature: Mapping[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    """Reads the answer to one request: its seconds, and the outputs by name."""
    run_seconds, _ = _read(file, "dI")
    answers = {}
    for name in signature["outputs"]:  # in the order of the request
        (length,) = _read(file, "I")
        file.read(length)
        dtype, rank = _read(file, "iI")
        shape = _read(file, f"{rank}q")
        if _NAMES[dtype] == contract.STRING:
            values = [file.read(_read(file, "Q")[0]) for _ in range(int(np.prod(shape)))]
            answers[name] = contract.byte_strings(values).reshape(shape)
        else:
            (size,) = _read(file, "Q")
            answers[name] = np.frombuffer(file.read(size), np.dtype(_NAMES[dtype])).reshape(shape)
    return run_seconds, answers


def _read(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack("=" + layout, file.read(struct.calcsize("=" + layout)))
