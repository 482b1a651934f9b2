"""SignatureJudge: a verdict on a signature beside `serving_default`."""

from __future__ import annotations

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

CLASSES = "classes"
SCORES = "scores"
REGRESSION = "outputs"
# TensorFlow Serving's Classify refuses a signature with more outputs.
MAX_CLASSIFY_OUTPUTS = 2


class SignatureJudge:
    """Turns the findings about one signature into a check.

    Args:
        signature: str. Its name.
        report: What `session_client.examine` returned.
        found: The answers that it collected.
        expected: The model's own answers to the signature's examples, for each output; may be empty.
        uncompared: Outputs whose last digits mean nothing.
        tolerance: float. The largest difference that counts as equal, relative to answers above 1.
    """

    def __init__(
        self,
        signature: str,
        *,
        report: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        uncompared: tuple[str, ...],
        tolerance: float,
    ) -> None:
        self._signature = signature
        self._spec = report["signatures"][signature]
        self._outcome = report["others"][signature]
        self._found = found
        self._expected = expected
        self._uncompared = uncompared
        self._tolerance = tolerance
        self.measurements: dict[str, Any] = {}

    def check(self) -> Check:
        """Returns the check; fills `measurements`."""
        remarks: list[str] = []
        problem = (
            self._classify_problem(remarks)
            or self._run_problem(remarks)
            or self._random_problem()
            or self._expected_problem(remarks)
            or self._from_rows_problem(remarks)
        )
        return Check(f"signature {self._signature}", not problem, problem or "; ".join(remarks))

    def _classify_problem(self, remarks: list[str]) -> str:
        """Says why Classify would refuse a signature that is meant for it."""
        outputs = self._spec["outputs"]
        wanted = {CLASSES: contract.STRING, SCORES: "float32"}
        there = [name for name in wanted if name in outputs]
        if not contract.takes_examples(self._spec) or not there:
            return ""
        if len(outputs) > MAX_CLASSIFY_OUTPUTS:
            return (
                f"Classify takes {CLASSES}, {SCORES} or both, and at most {MAX_CLASSIFY_OUTPUTS} outputs in all; there "
                f"are {', '.join(outputs)}. Put the others into a signature of their own."
            )
        for name in there:
            spec = outputs[name]
            if spec["dtype"] != wanted[name] or spec["shape"] is None or len(spec["shape"]) != 2:
                return (
                    f"Classify wants `{name}` as {wanted[name]} (batch, classes), it is {tensor_text(spec)}. "
                    f"{EXPORT_AGAIN}"
                )
        remarks.append("Predict and Classify take it")
        return ""

    def _run_problem(self, remarks: list[str]) -> str:
        outcome = self._outcome
        if "rows_error" in outcome:
            return f"{outcome['rows_error']} Give the signature's own rows."
        for run, result in outcome["runs"].items():
            if "error" in result:
                return f"a batch of {outcome['rows'] if run == contract.ALL_ROWS else run} fails: {result['error']}"
        answers = self._answers(contract.ALL_ROWS)
        for output, values in answers.items():
            if values.shape[:1] != (outcome["rows"],):
                return f"{outcome['rows']} rows give `{output}` of shape {values.shape}: the first dimension is the row"
        if undefined := count_undefined(answers.values()):
            return f"{undefined} of the answers are NaN or infinite: look for such weights in the model"
        rates = {
            str(outcome["rows"]) if run == contract.ALL_ROWS else run: round(
                result["rows"] / max(result["seconds"], 1e-9)
            )
            for run, result in outcome["runs"].items()
        }
        self.measurements["rows_per_second"] = rates
        kind = "made-up rows" if outcome["made_up"] else "rows"
        speed = ", ".join(f"{rate:,} in batches of {size}" for size, rate in rates.items())
        remarks.append(f"{outcome['rows']} {kind} give finite answers; rows per second: {speed}")
        return ""

    def _random_problem(self) -> str:
        together = self._answers(contract.ALL_ROWS)
        for run in (contract.AGAIN, *self._outcome["runs"]):
            for output, values in self._answers(run).items():
                if output in self._uncompared:
                    continue
                _, relative = differences(values, together[output][: len(values)])
                if relative <= self._tolerance:
                    continue
                if run == contract.AGAIN:
                    return f"`{output}` differs by {relative:.1e} when the same rows are sent twice. {RANDOM}"
                return (
                    f"`{output}` in batches of {run} differs by {relative:.1e} from all rows at once. {OVER_THE_BATCH}"
                )
        return ""

    def _expected_problem(self, remarks: list[str]) -> str:
        return self._compare(self._answers(contract.ALL_ROWS), self._expected, "the model's own", remarks)

    def _from_rows_problem(self, remarks: list[str]) -> str:
        """Compares the answers to tf.Example of the rows of `serving_default` with those to the rows themselves."""
        if contract.FROM_ROWS not in self._outcome:
            return ""
        if "error" in (result := self._outcome[contract.FROM_ROWS]):
            return (
                f"tf.Example of the rows of {contract.SIGNATURE} fail: {result['error']}. It has to read each input by "
                f"its name. {EXPORT_AGAIN}"
            )
        rows = {
            output: self._found[key]
            for output in contract.OUTPUTS
            if (key := f"{contract.ALL_ROWS}/{output}") in self._found
        }
        answers = self._answers(contract.FROM_ROWS)
        if contract.PROBABILITY in rows and SCORES in answers and answers[SCORES].ndim == 2:
            # The class that is named last is the click.
            rows, answers = {SCORES: rows[contract.PROBABILITY]}, {SCORES: answers[SCORES][:, -1]}
        elif REGRESSION in answers and rows:
            # Regress has one output, whichever of the two it is.
            nearest = min(rows, key=lambda output: differences(answers[REGRESSION], rows[output])[0])
            rows = {REGRESSION: rows[nearest]}
        return self._compare(answers, rows, f"{contract.SIGNATURE} on the same rows", remarks)

    def _compare(
        self, answers: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], what: str, remarks: list[str]
    ) -> str:
        apart = {name: differences(answers[name], expected[name]) for name in sorted(answers.keys() & expected.keys())}
        if not apart:
            return ""
        largest = self.measurements.setdefault("largest_difference", {})
        for name, (absolute, _) in apart.items():
            largest[name] = max(absolute, largest.get(name, 0.0))
        wrong = [
            name for name, (_, relative) in apart.items() if relative > self._tolerance and name not in self._uncompared
        ]
        shown = ", ".join(f"{absolute:.1e} ({name})" for name, (absolute, _) in apart.items())
        if wrong:
            return (
                f"{named(wrong)} differ from {what}: by at most {shown}, and {self._tolerance:g} is tolerated. Export the "
                "model again."
            )
        remarks.append(f"as {what}, within {shown}")
        return ""

    def _answers(self, run: str) -> dict[str, np.ndarray]:
        prefix = contract.run_name(self._signature, run) + "/"
        return {key.removeprefix(prefix): values for key, values in self._found.items() if key.startswith(prefix)}
