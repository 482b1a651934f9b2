"""check: says whether TF Serving will take a SavedModel, and whether it answers rightly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import ExportError
from kser_tf.files import read_json, sha256_of_file, write_json
from kser_tf.serving import contract, native_loader
from kser_tf.serving.findings import EXPORT_AGAIN, Check
from kser_tf.serving.judge import Judge

TOLERANCE = 1e-5
# Beside all rows at once: one row, and a size that leaves a rest.
BATCH_SIZES = (1, 7)

_SAVED_MODEL_FILE = "saved_model.pb"
_CLIENT = "kser_tf.serving.session_client"
# Of what the loading process wrote to its standard error, as many lines are shown at a failure.
_LOG_LINES = 20
# What a file of examples raises that is missing or damaged, which the check of the files reports.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Args:
        path: The SavedModel.
        checks: What was looked at, in order: `(name, ok, detail)`, `ok` being `None` where it could not be looked at.
        measurements: `load_seconds` and `load_bytes`, by which memory grew; `bytes` of each part; `rows_per_second` for
            each batch size; `largest_difference` to the expected answers, for each output; both of each of the other
            `signatures`; `native`, of the C++ program; `warmup`. What was not measured is missing.
        log: str. What the loading process wrote to its standard error.
    """

    path: Path
    checks: list[Check]
    measurements: dict[str, Any] = field(default_factory=dict)
    log: str = field(default="", repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.ok is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as a JSON value, without the log."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "checks": [check._asdict() for check in self.checks],
            "measurements": self.measurements,
        }

    def text(self) -> str:
        """Returns the same for people: a line for each check, and at a failure the end of the log."""
        failed = sum(check.ok is False for check in self.checks)
        verdict = f"{failed} of {len(self.checks)} checks failed" if failed else "ok"
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.path}: {verdict}"]
        lines += [f"  {_MARKS[check.ok]:<6}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        if failed and self.log.strip():
            lines.append("The end of what the loading process wrote to its standard error:")
            lines += ["  " + line for line in self.log.rstrip().splitlines()[-_LOG_LINES:]]
        return "\n".join(lines)


def check(
    path: str | Path,
    *,
    examples: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> CheckResult:
    """Loads a SavedModel as TF Serving does, calls its signatures, and says what is right and what is not.

    That happens in a fresh process, through TensorFlow's session loader and without Keras, so an export that works only
    beside the Python code that made it is found out. Looked at are: the files; loading; the signatures' names, dtypes
    and open batch dimension; inputs that are labels; Python functions in the graph; variables and look-up tables
    without a value; answers to unknown ids, empty strings and missing values; for every signature the answers in
    batches of 1, of 7 and of all rows, and to the same rows again, which have to be the same, finite, and those of the
    model. A signature for tf.Example has to answer as `serving_default` does. The warm-up requests are replayed.

    Where there is a C++ compiler, a small C++ program on the libraries of TensorFlow's wheel does the same once more,
    for `serving_default` and every signature that is kept with examples; compiled once, it is kept in `~/.cache/kser-tf`.

    Args:
        path: The version's directory, `<base>/<version>`. It need not be written by `export`; but without the examples
            that `export` keeps, or `examples`, little can be said about the answers.
        examples: For each input an array of values, all of one length. Defaults to those kept with the export.
        expected: The model's own answers to `examples`: `probability`, `logit`, or both, `(rows,)`. Defaults to those
            kept with the export, for its own examples.
        tolerance: float. The largest difference that counts as equal; times the answer where that is above 1. Defaults
            to 1e-5.

    Returns:
        The result; `.ok` says whether all is right. A SavedModel that is missing or damaged is a result, no error.

    Raises:
        ExportError: `examples` do not fit the inputs, or `expected` not the examples.

    Example:

    >>> result = kser_tf.check("serving/ranker/1")
    >>> print(result.text())
    """
    if expected is not None and examples is None:
        raise ExportError("`expected` are the answers to `examples`: give both, or neither.")
    path = Path(os.path.abspath(path))
    if (missing := _missing(path)) is not None:
        return CheckResult(path, [Check("files", False, missing)])
    files, description = _check_files(path)
    if examples is None:
        rows, answers = _stored_examples(path, description)
    else:
        rows = _as_arrays(examples, description)
        answers = _checked_expected(expected or {}, _length(rows))

    others = _other_examples(path)
    given = {name: kept for name, (kept, _) in others.items()} | ({} if rows is None else {contract.SIGNATURE: rows})
    report, found, log = _load_and_run(path, given)
    if "crash" in report:
        return CheckResult(path, [files, Check("loads", False, report["crash"])], log=log)
    judge = Judge(
        report,
        found,
        description=description,
        rows=_length(rows),
        expected=answers,
        others={name: kept for name, (_, kept) in others.items()},
        tolerance=tolerance,
        native=_run_natively(path, report, rows, {name: kept for name, (kept, _) in others.items()}),
        sizes=_sizes(path),
    )
    return CheckResult(path, [files, *judge.checks()], judge.measurements, log)


def _missing(path: Path) -> str | None:
    """Says what is wrong where there is no SavedModel at all."""
    if not path.is_dir():
        return f"there is no folder {path}. {EXPORT_AGAIN}"
    if (path / _SAVED_MODEL_FILE).is_file():
        return None
    folders = [file.parent.name for file in path.glob(f"*/{_SAVED_MODEL_FILE}")]
    versions = sorted(int(name) for name in folders if name.isdecimal())
    if versions:
        return (
            f"{path} holds the versions {', '.join(map(str, versions))}. Check one of them: {path / str(versions[-1])}"
        )
    return f"{path} is not a SavedModel: {_SAVED_MODEL_FILE} is missing. {EXPORT_AGAIN}"


def _check_files(path: Path) -> tuple[Check, dict[str, Any]]:
    """Returns whether the files are as `export` wrote them, and its description; empty for other SavedModels."""
    problems = []
    description: dict[str, Any] = {}
    if not path.name.isdecimal():
        problems.append(f"TF Serving takes folders whose name is an integer, not {path.name!r}")
    if (path / contract.DESCRIPTION_FILE).is_file():
        try:
            content = read_json(path / contract.DESCRIPTION_FILE)
            problems += _changed_files(path, content["files"])
            description = content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{contract.DESCRIPTION_FILE} is damaged ({type(error).__name__}: {error})")
    if problems:
        return Check("files", False, f"{'; '.join(problems)}. Copy or export it again, whole."), description
    if not description:
        return Check("files", True, "not written by kser_tf.export, so there is no record to compare with"), description
    total = sum(file["bytes"] for file in description["files"].values())
    detail = f"{len(description['files'])} files, {total / 1e6:,.1f} MB, as they were written"
    return Check("files", True, detail), description


def _changed_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    for name, recorded in files.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif (size := file.stat().st_size) != recorded["bytes"]:
            problems.append(f"{name} has {size} bytes, expected {recorded['bytes']}: it is truncated or was changed")
        elif sha256_of_file(file) != recorded["sha256"]:
            problems.append(f"{name} is damaged or was changed: its SHA-256 is not that of the export")
    return problems


def _stored_examples(
    path: Path, description: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray] | None, dict[str, np.ndarray]]:
    if not description.get("examples"):
        return None, {}
    try:
        return contract.load_examples(path / contract.EXAMPLES_FILE)
    except _DAMAGED:
        return None, {}


def _other_examples(path: Path) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Returns what is kept for other signatures than `serving_default`: for each its rows, and the answers to them."""
    prefix, _, suffix = Path(contract.examples_file("*")).name.partition("*")
    found = {}
    for file in sorted((path / contract.EXTRA_FOLDER).glob(f"{prefix}*{suffix}")):
        with contextlib.suppress(*_DAMAGED):
            found[file.name.removeprefix(prefix).removesuffix(suffix)] = contract.load_examples(file)
    return found


def _as_arrays(examples: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    signature = description.get("signatures", {}).get(contract.SIGNATURE)
    if signature:
        return contract.as_table(examples, signature["inputs"])
    arrays = {name: np.asarray(values) for name, values in examples.items()}
    return {
        name: array if array.dtype.kind in "biuf" else contract.as_rows(name, array, contract.STRING, None)
        for name, array in arrays.items()
    }


def _checked_expected(expected: Mapping[str, Any], rows: int) -> dict[str, np.ndarray]:
    answers = {name: np.asarray(values, dtype=np.float64) for name, values in expected.items()}
    for name, values in answers.items():
        if name not in contract.OUTPUTS or values.shape != (rows,):
            raise ExportError(
                f"`expected` holds an answer to each of the {rows} examples, for {' and '.join(contract.OUTPUTS)}. "
                f"Received: `{name}` of shape {values.shape}"
            )
    return answers


def _length(rows: Mapping[str, np.ndarray] | None) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _load_and_run(
    path: Path, rows: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Has a fresh process load and run the SavedModel. Returns its report, the answers, and its standard error."""
    with tempfile.TemporaryDirectory(prefix="kser_tf_check_") as name:
        folder = Path(name)
        request = {"path": str(path), "batch_sizes": list(BATCH_SIZES), "signatures": list(rows)}
        write_json(folder / contract.REQUEST_FILE, request)
        for number, table in enumerate(rows.values()):
            contract.save_examples(folder / f"{number}.{contract.ROWS_FILE}", table, {})
        process = _run_client(folder)
        if process.returncode:
            reason = "killed by a signal: a crash, or too little memory" if process.returncode < 0 else "an error"
            crash = (
                f"the process that loaded it ended with status {process.returncode} ({reason}). A server may end so "
                f"too. {EXPORT_AGAIN}"
            )
            return {"crash": crash}, {}, process.stderr
        _, answers = contract.load_examples(folder / contract.ANSWERS_FILE)
        return read_json(folder / contract.REPORT_FILE), answers, process.stderr


def _run_client(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", _CLIENT, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _run_natively(
    path: Path,
    report: Mapping[str, Any],
    rows: Mapping[str, np.ndarray] | None,
    others: Mapping[str, Mapping[str, np.ndarray]],
) -> native_loader.NativeResult | None:
    """Has the C++ program call `serving_default`, if the session could, and the signatures that have rows of their own."""
    signature = report.get("signatures", {}).get(contract.SIGNATURE)
    if signature is None or "load_error" in report or "rows_error" in report:
        return None
    inputs = signature["inputs"]
    table = contract.made_up_rows(inputs, 1) if rows is None else contract.as_table(rows, inputs)
    further = {
        name: (report["signatures"][name], others[name])
        for name, outcome in report["others"].items()
        if name in others and _ran(outcome)
    }
    return native_loader.run(path, signature, table, further)


def _ran(outcome: Mapping[str, Any]) -> bool:
    """Whether the session could call a signature with its own rows."""
    return "rows_error" not in outcome and not any("error" in result for result in outcome["runs"].values())


def _sizes(path: Path) -> dict[str, int]:
    """Returns the bytes of the SavedModel's parts: `graph`, `variables`, `assets` and what is kept beside them."""
    parts = {"graph": _SAVED_MODEL_FILE, "variables": "variables", "assets": "assets", "extra": contract.EXTRA_FOLDER}
    sizes = {}
    for part, name in parts.items():
        place = path / name
        files = [place] if place.is_file() else place.rglob("*")
        sizes[part] = sum(file.stat().st_size for file in files if file.is_file())
    return sizes
