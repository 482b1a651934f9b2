"""What the findings of the loading process mean: a verdict on each thing that TF Serving needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kser_tf.serving import contract

EXPORT_AGAIN = "Export the model with kser_tf.export."
_NAMED = 5  # as many are named in a message


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


class Judge:
    """Turns the findings about a SavedModel into checks.

    Args:
        report: What `session_client.examine` returned.
        found: The answers that it collected.
        description: What `export` wrote about the SavedModel; empty for others.
        rows: int. The number of examples.
        expected: The model's own answers to the examples, for each output; may be empty.
        tolerance: float. The largest difference that counts as equal, relative to answers above 1.
    """

    def __init__(
        self,
        report: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        *,
        description: Mapping[str, Any],
        rows: int,
        expected: Mapping[str, np.ndarray],
        tolerance: float,
    ) -> None:
        self._report = report
        self._found = found
        self._rows = rows
        self._expected = expected
        self._tolerance = tolerance
        self._nan_is_missing = bool(description.get("nan_is_missing"))
        # The logit of a probability near 0 or 1 magnifies its last digits without end: such logits are not compared.
        logit_is_derived = description.get("output") == contract.PROBABILITY
        self._compared = (contract.PROBABILITY,) if logit_is_derived else contract.OUTPUTS
        self.measurements: dict[str, Any] = {}

    def checks(self) -> list[Check]:
        """Returns the checks, in the order in which a server would stumble; fills `measurements`."""
        report = self._report
        if "read_error" in report:
            detail = (
                f"the graph cannot be read: {report['read_error']}. It is damaged or something else. {EXPORT_AGAIN}"
            )
            return [Check("loads", False, detail)]
        static = [self._signature(), self._inputs(), self._python_functions()]
        if "load_error" in report:
            detail = (
                f"the session loader refuses it: {report['load_error']}. If a file is missing or damaged, copy or "
                "export it again; an operation that is not registered is not in TF Serving either."
            )
            return [Check("loads", False, detail), *static]
        checks = [self._loads(), self._keras(), *static, self._initialised()]
        if contract.SIGNATURE in report["signatures"]:
            checks += [self._runs(), self._answers(), self._batches(), self._odd_rows()]
        return checks

    def _loads(self) -> Check:
        seconds = self._report["load_seconds"]
        self.measurements["load_seconds"] = round(seconds, 4)
        loader = f"the session loader of TensorFlow {self._report['tensorflow']}"
        return Check("loads", True, f"by {loader} in {seconds:.2f} s")

    def _keras(self) -> Check:
        modules = self._report["keras_modules"]
        if modules:
            return Check("without Keras", False, f"{', '.join(modules)} was imported; TF Serving has none")
        return Check("without Keras", True, "loaded and run without it")

    def _signature(self) -> Check:
        name = "signature"
        signature = self._report["signatures"].get(contract.SIGNATURE)
        if signature is None:
            there = ", ".join(self._report["signatures"]) or "none"
            detail = f"`{contract.SIGNATURE}`, which TF Serving calls, is missing. There is: {there}. {EXPORT_AGAIN}"
            return Check(name, False, detail)
        problems = []
        for output in contract.OUTPUTS:
            spec = signature["outputs"].get(output)
            if spec is None:
                problems.append(f"output `{output}` is missing (there is: {', '.join(signature['outputs'])})")
            elif (spec["dtype"], spec["shape"]) != (contract.OUTPUT_DTYPE, [None]):
                problems.append(f"output `{output}` is {_tensor(spec)}, expected {contract.OUTPUT_DTYPE} (batch)")
        for key, spec in signature["inputs"].items():
            if not spec["shape"] or spec["shape"][0] is not None:
                problems.append(f"input `{key}` is {_tensor(spec)}: its first dimension must be the batch, of any size")
        if problems:
            return Check(name, False, f"{'; '.join(problems)}. {EXPORT_AGAIN}")
        inputs = ", ".join(f"{key} {_tensor(spec)}" for key, spec in signature["inputs"].items())
        outputs = f"{', '.join(contract.OUTPUTS)} {contract.OUTPUT_DTYPE} (batch)"
        return Check(name, True, f"{contract.SIGNATURE}: {inputs} -> {outputs}")

    def _inputs(self) -> Check:
        name = "no label"
        inputs = self._report["signatures"].get(contract.SIGNATURE, {}).get("inputs", {})
        labels = [key for key in inputs if key.lower() in contract.NOT_INPUTS]
        if labels:
            detail = (
                f"{_named(labels)} would have to come with every request. Export the model's call without it: leave it "
                "out of `inputs`, and give kser_tf.export a `serve` if the model takes it. (A feature of this name "
                "needs another.)"
            )
            return Check(name, False, detail)
        return Check(name, True, "no label or weight among the inputs")

    def _python_functions(self) -> Check:
        name = "no Python function"
        operations = self._report["python_functions"]
        if operations:
            detail = (
                f"{_named(operations)}: calls Python code of the process that made the model; a server has none. Write "
                "what tf.py_function or tf.numpy_function does there with TensorFlow's operations, and export again."
            )
            return Check(name, False, detail)
        return Check(name, True, "none in the graph and its functions")

    def _initialised(self) -> Check:
        name = "variables and tables"
        missing = self._report["uninitialised"]
        if missing:
            detail = (
                f"without a value after loading: {_named(missing)}. They are not saved with the model: "
                "tf.saved_model.save leaves out the variables of a Keras 3 model, and a look-up table has to be "
                f"tracked. {EXPORT_AGAIN}"
            )
            return Check(name, False, detail)
        return Check(name, True, "all have their values after loading")

    def _runs(self) -> Check:
        name = "runs"
        if "rows_error" in self._report:
            return Check(name, False, f"{self._report['rows_error']} Give examples that the signature takes.")
        runs = self._report.get("runs")
        if not runs:
            return Check(name, None, "there are no examples: none with the export, and none given")
        for run, outcome in runs.items():
            if "error" in outcome:
                return Check(name, False, f"a batch of {self._size(run)} fails: {outcome['error']}")
            for output, values in self._answers_of(run).items():
                if values.shape != (outcome["rows"],):
                    detail = (
                        f"{outcome['rows']} rows give `{output}` of shape {values.shape}, expected one answer a row"
                    )
                    return Check(name, False, detail)
        rates = {self._size(run): round(run_["rows"] / max(run_["seconds"], 1e-9)) for run, run_ in runs.items()}
        self.measurements["rows_per_second"] = rates
        undefined = sum(int((~np.isfinite(values)).sum()) for values in self._answers_of(contract.ALL_ROWS).values())
        if undefined:
            detail = (
                f"{undefined} of the answers to the examples are NaN or infinite: look for such weights in the model"
            )
            return Check(name, False, detail)
        speed = ", ".join(f"{rate:,} in batches of {size}" for size, rate in rates.items())
        return Check(name, True, f"finite answers; rows per second: {speed}")

    def _answers(self) -> Check:
        name = "answers"
        answers = self._answers_of(contract.ALL_ROWS)
        common = [output for output in contract.OUTPUTS if output in answers and output in self._expected]
        if not common:
            return Check(name, None, "not compared: there are no expected answers, or the model gave none")
        differences = {output: _differences(answers[output], self._expected[output]) for output in common}
        self.measurements["largest_difference"] = {output: largest for output, (largest, _) in differences.items()}
        shown = ", ".join(f"{largest:.1e} ({output})" for output, (largest, _) in differences.items())
        detail = f"{self._rows} rows differ from the model's own by at most {shown}"
        if any(relative > self._tolerance for output, (_, relative) in differences.items() if output in self._compared):
            detail += (
                f", and {self._tolerance:g} is tolerated. Export the model again; one in half precision needs a larger "
                "`tolerance`."
            )
            return Check(name, False, detail)
        return Check(name, True, detail)

    def _batches(self) -> Check:
        name = "batches"
        together = self._answers_of(contract.ALL_ROWS)
        largest, where = 0.0, ""
        for run in self._report.get("runs", {}):
            for output, values in self._answers_of(run).items():
                if output in self._compared and output in together:
                    _, relative = _differences(values, together[output][: len(values)])
                    if relative > largest:
                        largest, where = relative, f"`{output}` in batches of {run}"
        if not together:
            return Check(name, None, "not compared: the model gave no answers")
        if largest > self._tolerance:
            detail = (
                f"a row's answer depends on the rows that come with it: {where} differs by {largest:.1e} from all rows "
                "at once. Something is computed over the batch, as BatchNormalization does in training: serve the "
                "model with training=False."
            )
            return Check(name, False, detail)
        return Check(name, True, f"a row's answer is the same alone, among a few and among all, within {largest:.1e}")

    def _odd_rows(self) -> Check:
        name = "odd values"
        problems, remarks, fine = [], [], []
        for what, outcome in self._report.get("odd_rows", {}).items():
            answers = self._answers_of(contract.ODD_ROWS + what).values()
            if "error" in outcome:
                problems.append(f"{what}: {outcome['error']}")
            elif all(np.isfinite(values).all() for values in answers):
                fine.append(what)
            elif what == contract.NAN_NUMBERS and not self._nan_is_missing:
                remarks.append(f"{what} give NaN, so missing numbers have to be filled in before the request")
            else:
                problems.append(f"{what} give NaN or infinite answers")
        if problems:
            return Check(name, False, f"{'; '.join(problems)}. A server gets such rows: let the model take a default.")
        if fine:
            remarks.insert(0, f"{', '.join(fine)} give finite answers")
        return Check(name, bool(remarks) or None, "; ".join(remarks) or "no input can have them")

    def _answers_of(self, run: str) -> dict[str, np.ndarray]:
        """The answers of a run, for each of the documented outputs that there is."""
        return {output: self._found[key] for output in contract.OUTPUTS if (key := f"{run}/{output}") in self._found}

    def _size(self, run: str) -> str:
        return str(self._rows) if run == contract.ALL_ROWS else run


def _differences(values: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference, and the largest one relative to the expected absolute value where that is above 1."""
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


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more
