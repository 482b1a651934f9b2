"""What the findings of the loading process mean: a verdict on each thing that TF Serving needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kser_tf.serving import contract
from kser_tf.serving.findings import (
    EXPORT_AGAIN,
    OVER_THE_BATCH,
    RANDOM,
    Check,
    count_undefined,
    differences,
    named,
    tensor_text,
)
from kser_tf.serving.native_loader import NativeResult
from kser_tf.serving.signature_judge import SignatureJudge

# What Keras 3 calls the inputs of a model that is exported without an input signature.
_MADE_UP_NAME = re.compile(r"args_\d+(_\d+)?")


class Judge:
    """Turns the findings about a SavedModel into checks.

    Args:
        report: What `session_client.examine` returned.
        found: The answers that it collected.
        description: What `export` wrote about the SavedModel; empty for others.
        rows: int. The number of examples.
        expected: The model's own answers to the examples, for each output; may be empty.
        others: For each other signature with examples the model's own answers to them.
        tolerance: float. The largest difference that counts as equal, relative to answers above 1.
        native: What the C++ program found, if it was asked.
        sizes: The SavedModel's parts in bytes.
    """

    def __init__(
        self,
        report: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        *,
        description: Mapping[str, Any],
        rows: int,
        expected: Mapping[str, np.ndarray],
        others: Mapping[str, Mapping[str, np.ndarray]],
        tolerance: float,
        native: NativeResult | None,
        sizes: Mapping[str, int],
    ) -> None:
        self._report = report
        self._found = found
        self._rows = rows
        self._expected = expected
        self._others = others
        self._tolerance = tolerance
        self._native = native
        self._sizes = sizes
        self._nan_is_missing = bool(description.get("nan_is_missing"))
        # The logit of a probability near 0 or 1 magnifies its last digits without end: such logits are not compared.
        logit_is_derived = description.get("output") == contract.PROBABILITY
        self._uncompared = (contract.LOGIT,) if logit_is_derived else ()
        self._compared = tuple(output for output in contract.OUTPUTS if output not in self._uncompared)
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
        checks += [self._other(name) for name in sorted(report["others"])]
        return [*checks, self._in_cpp(), self._warmup()]

    def _loads(self) -> Check:
        seconds = self._report["load_seconds"]
        self.measurements["load_seconds"] = round(seconds, 4)
        self.measurements["load_bytes"] = self._report["load_bytes"]
        self.measurements["bytes"] = dict(self._sizes)
        loader = f"the session loader of TensorFlow {self._report['tensorflow']}"
        parts = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in self._sizes.items())
        memory = f"memory grew by {self._report['load_bytes'] / 1e6:,.0f} MB"
        return Check("loads", True, f"by {loader} in {seconds:.2f} s; {memory}; {parts}")

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
                problems.append(f"output `{output}` is {tensor_text(spec)}, expected {contract.OUTPUT_DTYPE} (batch)")
        for other, spec in sorted(self._report["signatures"].items()):
            where = "" if other == contract.SIGNATURE else f"`{other}`: "
            problems += [where + problem for problem in _input_problems(spec["inputs"])]
        if problems:
            return Check(name, False, f"{'; '.join(problems)}. {EXPORT_AGAIN}")
        inputs = ", ".join(f"{key} {tensor_text(spec)}" for key, spec in signature["inputs"].items())
        outputs = f"{', '.join(contract.OUTPUTS)} {contract.OUTPUT_DTYPE} (batch)"
        return Check(name, True, f"{contract.SIGNATURE}: {inputs} -> {outputs}")

    def _inputs(self) -> Check:
        name = "no label"
        inputs = {key for signature in self._report["signatures"].values() for key in signature["inputs"]}
        labels = sorted(key for key in inputs if key.lower() in contract.NOT_INPUTS)
        if labels:
            detail = (
                f"{named(labels)} would have to come with every request. Export the model's call without it: leave it "
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
                f"{named(operations)}: calls Python code of the process that made the model; a server has none. Write "
                "what tf.py_function or tf.numpy_function does there with TensorFlow's operations, and export again."
            )
            return Check(name, False, detail)
        return Check(name, True, "none in the graph and its functions")

    def _initialised(self) -> Check:
        name = "variables and tables"
        missing = self._report["uninitialised"]
        if missing:
            detail = (
                f"without a value after loading: {named(missing)}. They are not saved with the model: "
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
        if undefined := count_undefined(self._answers_of(contract.ALL_ROWS).values()):
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
        apart = {output: differences(answers[output], self._expected[output]) for output in common}
        self.measurements["largest_difference"] = {output: largest for output, (largest, _) in apart.items()}
        shown = ", ".join(f"{largest:.1e} ({output})" for output, (largest, _) in apart.items())
        detail = f"{self._rows} rows differ from the model's own by at most {shown}"
        if any(relative > self._tolerance for output, (_, relative) in apart.items() if output in self._compared):
            detail += (
                f", and {self._tolerance:g} is tolerated. Export the model again; one in half precision needs a larger "
                "`tolerance`."
            )
            return Check(name, False, detail)
        return Check(name, True, detail)

    def _batches(self) -> Check:
        name = "batches"
        together = self._answers_of(contract.ALL_ROWS)
        largest, worst, where = 0.0, "", ""
        for run in (contract.AGAIN, *self._report.get("runs", {})):
            for output, values in self._answers_of(run).items():
                if output in self._compared and output in together:
                    _, relative = differences(values, together[output][: len(values)])
                    if relative > largest:
                        largest, worst, where = relative, run, output
                if largest > self._tolerance and worst == contract.AGAIN:
                    detail = f"`{where}` differs by {largest:.1e} when the same rows are sent twice. {RANDOM}"
                    return Check(name, False, detail)
        if not together:
            return Check(name, None, "not compared: the model gave no answers")
        if largest > self._tolerance:
            detail = (
                f"a row's answer depends on the rows that come with it: `{where}` in batches of {worst} differs by "
                f"{largest:.1e} from all rows at once. {OVER_THE_BATCH}"
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

    def _other(self, signature: str) -> Check:
        judge = SignatureJudge(
            signature,
            report=self._report,
            found=self._found,
            expected=self._others.get(signature, {}),
            uncompared=self._uncompared,
            tolerance=self._tolerance,
        )
        check = judge.check()
        self.measurements.setdefault("signatures", {})[signature] = judge.measurements
        return check

    def _in_cpp(self) -> Check:
        name = "C++ program"
        if self._native is None:
            return Check(name, None, f"not asked: there is no `{contract.SIGNATURE}` that it could call")
        if self._native.not_run:
            return Check(name, None, f"not looked at: {self._native.not_run}")
        if self._native.error:
            return Check(name, False, f"{self._native.error}. A server is such a program. {EXPORT_AGAIN}")
        self.measurements["native"] = {
            "load_seconds": round(self._native.load_seconds, 4),
            "first_request_seconds": round(self._native.run_seconds, 4),
        }
        times = f"loads in {self._native.load_seconds:.2f} s, first request {1e3 * self._native.run_seconds:,.0f} ms"
        own = {output: self._expected[output] for output in self._compared if output in self._expected}
        expected, whose = (own, "the model's own") if own else (self._answers_of(contract.ALL_ROWS), "the session's")
        apart = {
            output: differences(self._native.answers[output], expected[output])
            for output in self._compared
            if output in expected and output in self._native.answers
        }
        for signature, answers in self._native.others.items():
            kept = self._others[signature]
            apart |= {
                f"{signature}/{output}": differences(answers[output], kept[output])
                for output in sorted(kept.keys() & answers.keys())
                if output not in self._uncompared
            }
        called = f"{1 + len(self._native.others)} signatures called; " if self._native.others else ""
        if not apart:
            return Check(name, True, f"{times}; answers not compared: there are no others")
        largest = max(absolute for absolute, _ in apart.values())
        if any(relative > self._tolerance for _, relative in apart.values()):
            wrong = [output for output, (_, relative) in apart.items() if relative > self._tolerance]
            detail = (
                f"its answers differ from {whose} by {largest:.1e} ({', '.join(wrong)}), and {self._tolerance:g} is "
                "tolerated"
            )
            return Check(name, False, f"{detail}. {EXPORT_AGAIN}")
        return Check(name, True, f"{times}; {called}answers as {whose}, within {largest:.1e}")

    def _warmup(self) -> Check:
        name = "warm-up"
        found = self._report.get("warmup")
        if found is None:
            return Check(name, None, "there are no warm-up requests: the first callers wait while TensorFlow plans")
        if "not_run" in found:
            return Check(name, None, f"not replayed: {found['not_run']}")
        if "error" in found:
            detail = (
                f"{found['error']}. A server refuses the version: write {contract.WARMUP_FILE} again, or remove it."
            )
            return Check(name, False, detail)
        self.measurements["warmup"] = {"records": found["records"], "seconds": round(found["seconds"], 4)}
        return Check(name, True, f"{found['records']} requests answered in {found['seconds']:.2f} s")

    def _answers_of(self, run: str) -> dict[str, np.ndarray]:
        """The answers of a run, for each of the documented outputs that there is."""
        return {output: self._found[key] for output in contract.OUTPUTS if (key := f"{run}/{output}") in self._found}

    def _size(self, run: str) -> str:
        return str(self._rows) if run == contract.ALL_ROWS else run


def _input_problems(inputs: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, spec in inputs.items():
        if not spec["shape"] or spec["shape"][0] is not None:
            problems.append(f"input `{key}` is {tensor_text(spec)}: its first dimension must be the batch, of any size")
        if _MADE_UP_NAME.fullmatch(key):
            problems.append(
                f"input `{key}` ({tensor_text(spec)}) has a name that Keras made up, and Keras takes strings for numbers "
                "then: a client sends the features by their own names"
            )
    return problems
