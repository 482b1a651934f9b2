"""check: says whether TF Serving will take a SavedModel, and whether it answers rightly."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kser_tf.errors import ExportError
from kser_tf.files import read_json, sha256_of_file, write_json
from kser_tf.serving import contract

TOLERANCE = 1e-5
# Beside all rows at once: one row, and a size that leaves a rest.
BATCH_SIZES = (1, 7)

_SAVED_MODEL_FILE = "saved_model.pb"
_CLIENT = "kser_tf.serving.session_client"
_EXPORT = "Export the model with kser_tf.export."
# Of what the other process wrote to its standard error, as many lines are shown at a failure.
_LOG_LINES = 20
_MARKS = {True: "ok", False: "FAILED", None: "-"}


class Check(NamedTuple):
    """One thing that was looked at.

    Args:
        name: str. What.
        ok: bool. Whether it is as it should be; `None` where it could not be looked at.
        detail: str. What was found; at a failure also what to do.
    """

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Args:
        path: The SavedModel.
        checks: What was looked at, in order.
        measurements: `load_seconds`; `rows_per_second` for each batch size; `largest_difference` to the expected answers, for each
            output. What was not measured is missing.
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
        """Returns the same for people: a line for each check; at a failure, the end of the log too."""
        failed = sum(check.ok is False for check in self.checks)
        lines = [f"{self.path}: " + (f"{failed} of {len(self.checks)} checks failed" if failed else "ok")]
        width = max(len(check.name) for check in self.checks)
        lines += [f"  {_MARKS[check.ok]:<6}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        if failed and self.log.strip():
            lines += ["What the loading process wrote:"]
            lines += ["  " + line for line in self.log.rstrip().splitlines()[-_LOG_LINES:]]
        return "\n".join(lines)


def check(
    path: str | Path,
    *,
    examples: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> CheckResult:
    """Loads a SavedModel as TF Serving does, calls its `serving_default`, and says what is right and what is not.

    That happens in a fresh process, through TensorFlow's session loader and without Keras: an export that only works beside the Python
    code that made it is found out. Looked at are: the files; loading; the signature's names, dtypes and open batch dimension; inputs
    that are labels; Python functions in the graph; variables and look-up tables without a value; answers to unknown ids, empty strings
    and missing values; answers in batches of 1, of 7 and of all rows, which have to be the same, finite, and those of the model.

    Args:
        path: The version's directory, `<base>/<version>`. It need not be written by `export`; without the examples that
            `export` keeps, or `examples`, nothing can be said about the answers but that they are finite.
        examples: For each input an array of values, all of one length. Defaults to those kept with the export.
        expected: The model's own answers to the examples: `probability`, `logit`, or both, `(rows,)`. Defaults to those kept with the
            export, where its examples are used.
        tolerance: float. The largest difference that counts as equal, times the answer's absolute value where that is above 1. Defaults
            to 1e-5.

    Returns:
        The result; `.ok` says whether all is right. A SavedModel that is missing or damaged is a result, not an error.

    Raises:
        ExportError: `examples` do not fit the inputs, or `expected` not the examples.
    """
    path = Path(os.path.abspath(path))
    if expected is not None and examples is None:
        raise ExportError("`expected` are the answers to `examples`: give both, or neither.")
    if (there := _check_there(path)).ok is False:
        return CheckResult(path, [there])
    description, files = _check_files(path)
    if examples is not None:
        rows = _as_arrays(examples, description)
        answers = _checked_expected(expected, rows)
    else:
        rows, answers = _stored_examples(path, description)

    report, found, log = _ask_client(path, rows)
    if "crash" in report:
        return CheckResult(path, [files, Check("loads", False, report["crash"])], log=log)
    judge = _Judge(report, found, description, rows, answers, tolerance)
    return CheckResult(path, [files, *judge.checks()], judge.measurements, log)


class _Judge:
    """What the report of the loading process means."""

    def __init__(
        self,
        report: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        description: Mapping[str, Any],
        rows: Mapping[str, np.ndarray] | None,
        expected: Mapping[str, np.ndarray],
        tolerance: float,
    ) -> None:
        self._report = report
        self._found = found
        self._rows = 0 if rows is None else len(next(iter(rows.values())))
        self._expected = expected
        self._tolerance = tolerance
        self._nan_is_missing = bool(description.get("nan_is_missing"))
        # The logit of a probability near 0 or 1 magnifies its last digits without end: such logits are not compared.
        derived_logit = description.get("output") == contract.PROBABILITY
        self._compared = (contract.PROBABILITY,) if derived_logit else contract.OUTPUTS
        self.measurements: dict[str, Any] = {}

    def checks(self) -> list[Check]:
        report = self._report
        if "read_error" in report:
            detail = f"{_SAVED_MODEL_FILE} cannot be read: {report['read_error']}. It is damaged or something else. {_EXPORT}"
            return [Check("loads", False, detail)]
        static = [self._signature(), self._inputs(), self._python_functions()]
        if "load_error" in report:
            detail = (
                f"the session loader refuses it: {report['load_error']}. If a file is missing or damaged, copy or export it again; "
                "an operation that is not registered is not in TF Serving either."
            )
            return [Check("loads", False, detail), *static]
        self.measurements["load_seconds"] = round(report["load_seconds"], 4)
        loads = Check(
            "loads",
            True,
            f"by the session loader of TensorFlow {report['tensorflow']} in {report['load_seconds']:.2f} s",
        )
        checks = [loads, self._keras(), *static, self._initialised()]
        if contract.SIGNATURE in report["signatures"]:
            checks += [self._runs(), self._answers(), self._batches(), self._odd_rows()]
        return checks

    def _keras(self) -> Check:
        modules = self._report["keras_modules"]
        detail = f"{', '.join(modules)} was imported to load it" if modules else "loaded and run without importing it"
        return Check("without Keras", not modules, detail)

    def _signature(self) -> Check:
        name = "signature"
        signatures = self._report["signatures"]
        if contract.SIGNATURE not in signatures:
            there = ", ".join(signatures) or "none"
            return Check(
                name, False, f"`{contract.SIGNATURE}`, which TF Serving calls, is missing. There is: {there}. {_EXPORT}"
            )
        signature = signatures[contract.SIGNATURE]
        problems = []
        for output in contract.OUTPUTS:
            spec = signature["outputs"].get(output)
            if spec is None:
                there = ", ".join(signature["outputs"])
                problems.append(f"output `{output}` is missing (there is: {there})")
            elif (spec["dtype"], spec["shape"]) != (contract.OUTPUT_DTYPE, [None]):
                problems.append(f"output `{output}` is {_tensor(spec)}, expected {contract.OUTPUT_DTYPE} (batch)")
        for key, spec in signature["inputs"].items():
            if not spec["shape"] or spec["shape"][0] is not None:
                problems.append(f"input `{key}` is {_tensor(spec)}: the batch must be its first dimension, of any size")
        if problems:
            return Check(name, False, f"{'; '.join(problems)}. {_EXPORT}")
        inputs = ", ".join(f"{key} {_tensor(spec)}" for key, spec in signature["inputs"].items())
        return Check(
            name,
            True,
            f"{contract.SIGNATURE}: {inputs} -> {', '.join(contract.OUTPUTS)} {contract.OUTPUT_DTYPE} (batch)",
        )

    def _inputs(self) -> Check:
        inputs = self._report["signatures"].get(contract.SIGNATURE, {}).get("inputs", {})
        labels = [name for name in inputs if name.lower() in contract.NOT_INPUTS]
        if labels:
            detail = (
                f"{_names(labels)} would have to be in every request. Export the model's call without it: leave it out of "
                "`inputs`, and give kser_tf.export a `serve` if the model takes it. (A feature of this name needs another.)"
            )
            return Check("no label", False, detail)
        return Check("no label", True, "no label or weight among the inputs")

    def _python_functions(self) -> Check:
        operations = self._report["python_functions"]
        if operations:
            detail = (
                f"{', '.join(operations)} call Python code of the process that made the model; a server has none. Write what "
                "tf.py_function or tf.numpy_function does there with TensorFlow's operations, and export again."
            )
            return Check("no Python function", False, detail)
        return Check("no Python function", True, "none in the graph and its functions")

    def _initialised(self) -> Check:
        missing = self._report["uninitialised"]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            detail = (
                f"without a value after loading: {shown}. They are not saved with the model: tf.saved_model.save of a Keras 3 "
                f"model leaves variables out, and a table must be tracked. {_EXPORT}"
            )
            return Check("variables and tables", False, detail)
        return Check("variables and tables", True, "all have their values after loading")

    def _runs(self) -> Check:
        name = "runs"
        if "rows_error" in self._report:
            return Check(name, False, f"{self._report['rows_error']} Give examples that the signature takes.")
        runs = self._report.get("runs")
        if not runs:
            return Check(name, None, "no examples with the export, and none given")
        for size, run in runs.items():
            if "error" in run:
                return Check(name, False, f"a batch of {self._size(size)} fails: {run['error']}")
            for output in contract.OUTPUTS:
                shape = self._found[f"{size}/{output}"].shape if f"{size}/{output}" in self._found else None
                if shape is not None and shape != (run["rows"],):
                    return Check(
                        name,
                        False,
                        f"{run['rows']} rows give `{output}` of shape {shape}: one answer a row is expected",
                    )
        self.measurements["rows_per_second"] = {
            self._size(size): round(run["rows"] / max(run["seconds"], 1e-9)) for size, run in runs.items()
        }
        if not all(
            np.isfinite(values).all() for run, values in self._found.items() if not run.startswith(contract.ODD_ROWS)
        ):
            count = int(
                sum((~np.isfinite(self._all(output))).sum() for output in contract.OUTPUTS if self._has(output))
            )
            return Check(
                name, False, f"{count} answers to the examples are NaN or infinite; the model gives no defined answer"
            )
        speed = ", ".join(
            f"{rate:,} rows/s in batches of {size}" for size, rate in self.measurements["rows_per_second"].items()
        )
        return Check(name, True, f"finite answers; {speed}")

    def _answers(self) -> Check:
        name = "answers"
        if not self._expected or not self._ran():
            return Check(name, None, "not compared: there are no expected answers, or no answers")
        differences, excess = {}, 0.0
        for output in contract.OUTPUTS:
            if output in self._expected and self._has(output):
                difference, relative = _differences(self._all(output), self._expected[output])
                differences[output] = difference
                if output in self._compared:
                    excess = max(excess, relative)
        self.measurements["largest_difference"] = differences
        detail = f"of {self._rows} rows differ from the model's own by at most " + ", ".join(
            f"{difference:.1e} ({output})" for output, difference in differences.items()
        )
        if excess > self._tolerance:
            detail += f": more than {self._tolerance:g}. Export the model again; a model in half precision needs a larger `tolerance`."
        return Check(name, excess <= self._tolerance, detail)

    def _batches(self) -> Check:
        name = "batches"
        if not self._ran():
            return Check(name, None, "not compared: there are no answers")
        largest, worst = 0.0, ""
        for size in self._report["runs"]:
            for output in self._compared:
                if size != contract.ALL_ROWS and self._has(output):
                    part = self._found[f"{size}/{output}"]
                    _, relative = _differences(part, self._all(output)[: len(part)])
                    if relative > largest:
                        largest, worst = relative, f"`{output}` in batches of {size}"
        if largest > self._tolerance:
            detail = (
                f"a row's answer depends on the rows that come with it: {worst} differs by {largest:.1e} from all rows at once. "
                "Something normalises over the batch, as BatchNormalization does in training: call the model with training=False."
            )
            return Check(name, False, detail)
        return Check(name, True, f"a row's answer is the same alone, in a few and in all, within {largest:.1e}")

    def _odd_rows(self) -> Check:
        name = "odd values"
        problems, remarks, fine = [], [], []
        for what, outcome in self._report.get("odd_rows", {}).items():
            answers = [
                self._found[f"{contract.ODD_ROWS}{what}/{o}"]
                for o in contract.OUTPUTS
                if self._has(o, f"{contract.ODD_ROWS}{what}")
            ]
            if "error" in outcome:
                problem = f"{what}: {outcome['error']}"
            elif not all(np.isfinite(values).all() for values in answers):
                problem = f"{what}: NaN or infinite answers"
            else:
                fine.append(what)
                continue
            is_allowed = what == contract.NAN_NUMBERS and not self._nan_is_missing
            (remarks if is_allowed else problems).append(problem)
        detail = f"{', '.join(fine)}: finite answers" if fine else ""
        if problems:
            return Check(
                name, False, f"{'; '.join(problems)}. A server gets such rows: let the model map them to a default."
            )
        if remarks:
            detail += f". {'; '.join(remarks)}: numbers have to be filled in before the request"
        return Check(name, True if fine or remarks else None, detail.lstrip(". ") or "no input can have them")

    def _ran(self) -> bool:
        runs = self._report.get("runs") or {}
        return bool(runs) and not any("error" in run for run in runs.values())

    def _has(self, output: str, run: str = contract.ALL_ROWS) -> bool:
        return f"{run}/{output}" in self._found

    def _all(self, output: str) -> np.ndarray:
        return self._found[f"{contract.ALL_ROWS}/{output}"]

    def _size(self, run: str) -> str:
        return str(self._rows) if run == contract.ALL_ROWS else run


def _check_there(path: Path) -> Check:
    name = "files"
    if not path.is_dir():
        return Check(name, False, f"there is no folder {path}. {_EXPORT}")
    if not (path / _SAVED_MODEL_FILE).is_file():
        versions = sorted(
            int(entry.parent.name) for entry in path.glob(f"*/{_SAVED_MODEL_FILE}") if entry.parent.name.isdecimal()
        )
        if versions:
            return Check(
                name,
                False,
                f"{path} holds the versions {', '.join(map(str, versions))}. Check one: {path / str(versions[-1])}",
            )
        return Check(name, False, f"{path} is not a SavedModel: {_SAVED_MODEL_FILE} is missing. {_EXPORT}")
    return Check(name, True, "")


def _check_files(path: Path) -> tuple[dict[str, Any], Check]:
    """The description that `export` wrote, empty where there is none, and whether the files are as it says."""
    problems = []
    if not path.name.isdecimal():
        problems.append(f"TF Serving takes folders whose name is an integer. Received: {path.name}")
    description: dict[str, Any] = {}
    described = path / contract.DESCRIPTION_FILE
    if described.is_file():
        try:
            description = read_json(described)
            problems += _changed_files(path, description["files"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{contract.DESCRIPTION_FILE} is damaged ({type(error).__name__}: {error})")
            description = {}
    if problems:
        return description, Check("files", False, f"{'; '.join(problems)}. Copy or export it again, whole.")
    if not description:
        return description, Check("files", True, "not written by kser_tf.export: there is nothing to compare them with")
    total = sum(file["bytes"] for file in description["files"].values())
    return description, Check(
        "files", True, f"{len(description['files'])} files, {total / 1e6:,.1f} MB, as they were written"
    )


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
    except (OSError, ValueError, KeyError, EOFError):  # reported by the check of the files
        return None, {}


def _as_arrays(examples: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    signature = description.get("signatures", {}).get(contract.SIGNATURE)
    if signature:
        return contract.as_table(examples, signature["inputs"])
    arrays = {name: np.asarray(values) for name, values in examples.items()}
    return {
        name: array if array.dtype.kind in "biuf" else contract.as_rows(name, array, contract.STRING, None)
        for name, array in arrays.items()
    }


def _checked_expected(expected: Mapping[str, Any] | None, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    count = len(next(iter(rows.values())))
    answers = {name: np.asarray(values, dtype=np.float64) for name, values in (expected or {}).items()}
    for name, values in answers.items():
        if name not in contract.OUTPUTS or values.shape != (count,):
            raise ExportError(
                f"`expected` holds, for {' and '.join(contract.OUTPUTS)}, an answer for each of the {count} examples. "
                f"Received: `{name}` of shape {values.shape}"
            )
    return answers


def _ask_client(path: Path, rows: Mapping[str, np.ndarray] | None) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Has a fresh process load and run the SavedModel. Returns its report, the answers, and its standard error."""
    with tempfile.TemporaryDirectory(prefix="kser_tf_check_") as name:
        folder = Path(name)
        write_json(folder / contract.REQUEST_FILE, {"path": str(path), "batch_sizes": list(BATCH_SIZES)})
        if rows is not None:
            contract.save_examples(folder / contract.ROWS_FILE, rows, {})
        process = subprocess.run(
            [sys.executable, "-m", _CLIENT, str(folder)], capture_output=True, text=True, errors="replace", check=False
        )
        if process.returncode or not (folder / contract.REPORT_FILE).is_file():
            crash = (
                f"the process that loaded it ended with status {process.returncode}"
                f"{' (killed by a signal: a crash, or too little memory)' if process.returncode < 0 else ''}. A server would end so too."
            )
            return {"crash": crash}, {}, process.stderr
        _, answers = contract.load_examples(folder / contract.ANSWERS_FILE)
        return read_json(folder / contract.REPORT_FILE), answers, process.stderr


def _differences(values: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference, and the largest one divided by the expected absolute value where that is above 1."""
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    if values.shape != expected.shape:
        return np.inf, np.inf
    with np.errstate(invalid="ignore"):
        difference = np.where(values == expected, 0.0, np.abs(values - expected))
    difference[np.isnan(difference)] = np.inf
    scale = np.maximum(1.0, np.abs(np.nan_to_num(expected)))
    return float(difference.max(initial=0.0)), float((difference / scale).max(initial=0.0))


def _tensor(spec: Mapping[str, Any]) -> str:
    if spec["shape"] is None:
        return f"{spec['dtype']} (any shape)"
    sizes = ["any" if size is None else str(size) for size in spec["shape"]]
    if sizes and sizes[0] == "any":
        sizes[0] = "batch"
    return f"{spec['dtype']} ({', '.join(sizes)})"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
