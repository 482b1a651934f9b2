"""Loads a SavedModel as TF Serving does, runs it, and reports: `python -m kser_tf.serving.session_client FOLDER`.

TF Serving loads a SavedModel through TensorFlow's session loader, which `tf.compat.v1.saved_model.loader` calls too;
unlike `tf.saved_model.load`, it knows nothing of Python objects. `check` runs this module in a process of its own, in
which Keras cannot be imported.

FOLDER holds `request.json` (`path`, `batch_sizes`, `signatures`) and, for those signatures, the rows to run as
`<number>.rows.npz`. What is written there is `report.json` and `answers.npz`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_KERAS = ("keras", "tf_keras")
if __name__ == "__main__":
    # `import tensorflow` imports Keras by itself, if it can; TF Serving has none.
    sys.modules.update(dict.fromkeys(_KERAS))  # type: ignore[arg-type]

import tensorflow as tf  # noqa: E402

from kser_tf.errors import ExportError, KserError, MissingExtraError  # noqa: E402
from kser_tf.files import read_json, write_json  # noqa: E402
from kser_tf.schema import MISSING_INTEGER, MISSING_STRING  # noqa: E402
from kser_tf.serving import contract, warmup  # noqa: E402
from kser_tf.serving.loaded_model import LoadedModel, read_meta_graph  # noqa: E402
from kser_tf.serving.tf_examples import serialized_examples  # noqa: E402

# Small batches run over as many rows, so that a large table of examples does not take minutes.
_SMALL_BATCH_ROWS = 512
# More than one, so that a lost batch dimension shows.
_MADE_UP_ROWS = 8
# Values that no vocabulary and no store is likely to hold; the integer fits into int32.
_UNKNOWN_STRING = "kser-tf: \u672a\u77e5 unknown id"
_UNKNOWN_INTEGER = 2**31 - 1
# In TensorFlow's messages these lines say where in the graph it was, and not what.
_NOISE = re.compile(
    r"Graph execution error:|Detected at node|Node: |\[\[\{\{|\d+ successful operations|\d+ derived errors"
)

Rows = Mapping[str, np.ndarray]
Answers = dict[str, np.ndarray]


def main(folder: Path) -> None:
    """Does what `request.json` in the folder asks for."""
    request = read_json(folder / contract.REQUEST_FILE)
    rows = {
        name: contract.load_examples(folder / f"{number}.{contract.ROWS_FILE}")[0]
        for number, name in enumerate(request["signatures"])
    }
    default = rows.pop(contract.SIGNATURE, None)
    report, answers = examine(request["path"], default, request["batch_sizes"], rows)
    report["keras_modules"] = sorted(name for name in _KERAS if sys.modules.get(name) is not None)
    contract.save_examples(folder / contract.ANSWERS_FILE, {}, answers)
    write_json(folder / contract.REPORT_FILE, report)


def examine(
    path: str, rows: Rows | None, batch_sizes: list[int], others: Mapping[str, Rows] | None = None
) -> tuple[dict[str, Any], Answers]:
    """Loads the SavedModel at `path`, calls all its signatures, and says what happened.

    Args:
        path: The SavedModel.
        rows: For each input of `serving_default` an array. Without them, only odd rows are run.
        batch_sizes: The sizes of the batches to run, beside all rows at once.
        others: The same for other signatures. One without rows is called with rows that are made up.

    Returns:
        The report: `read_error`, `load_error`, or what was found and measured. And the answers, as `"<run>/<output>"`:
        a run is `"all"`, `"again"`, a batch size, `"odd:<what>"` or `"from rows"`; those of another signature begin
        with `"<signature>/"`.
    """
    report: dict[str, Any] = {"tensorflow": tf.__version__}
    answers: Answers = {}
    try:
        meta_graph = read_meta_graph(path)
    except Exception as error:
        return report | {"read_error": _message(error)}, answers
    report["signatures"] = contract.describe_signatures(meta_graph)
    report["python_functions"] = contract.python_function_ops(meta_graph)
    del meta_graph  # it can be large, and the loader reads its own

    resident = _resident_bytes()
    start = time.perf_counter()
    try:
        model = LoadedModel(path)
    except Exception as error:
        return report | {"load_error": _message(error)}, answers
    with model, model.session.graph.as_default():
        report["load_seconds"] = time.perf_counter() - start
        report["load_bytes"] = max(0, _resident_bytes() - resident)
        report["uninitialised"] = _uninitialised(model.session)
        default_inputs = model.signatures.get(contract.SIGNATURE, {}).get("inputs", {})
        table = None
        if contract.SIGNATURE in model.signatures:
            try:
                table = contract.as_table(rows, default_inputs) if rows else None
            except KserError as error:
                report["rows_error"] = str(error)
            else:
                report |= _run_default(_Client(model, contract.SIGNATURE), table, batch_sizes, answers)
        report["others"] = {}
        for name in model.signatures.keys() - {contract.SIGNATURE}:
            client = _Client(model, name)
            given = (others or {}).get(name)
            report["others"][name] = _run_other(client, given, default_inputs, table, batch_sizes, answers)
        if (warmup_file := Path(path) / contract.WARMUP_FILE).is_file():
            report["warmup"] = _replay(model, warmup_file)
    return report, answers


class _Client:
    """Calls one signature."""

    def __init__(self, model: LoadedModel, signature: str) -> None:
        self.signature = signature
        self.inputs = model.signatures[signature]["inputs"]
        self.takes_examples = contract.takes_examples(model.signatures[signature])
        self._model = model

    def __call__(self, rows: Rows) -> Answers:
        return self._model.run(self.signature, rows)


def _uninitialised(session: Any) -> list[str]:
    """Returns the variables and look-up tables that have no value after loading."""
    initialised, finds = {}, {}
    for operation in session.graph.get_operations():
        if operation.type == "VarHandleOp":
            name = f"variable {operation.get_attr('shared_name').decode() or operation.name}"
            initialised[name] = tf.raw_ops.VarIsInitializedOp(resource=operation.outputs[0])
        elif operation.type == "HashTableV2":
            finds[f"look-up table {operation.name}"] = tf.raw_ops.LookupTableFindV2(
                table_handle=operation.outputs[0],
                keys=tf.zeros([1], operation.get_attr("key_dtype")),
                default_value=tf.zeros([], operation.get_attr("value_dtype")),
            )
    # In one run each: the session optimises the graph anew for what it was not asked for before.
    found = [name for name, is_so in session.run(initialised).items() if not is_so]
    try:
        session.run(finds)
    except tf.errors.FailedPreconditionError:
        found += [name for name, find in finds.items() if not _runs(session, find)]
    return sorted(found)


def _runs(session: Any, find: Any) -> bool:
    try:
        session.run(find)
    except tf.errors.FailedPreconditionError:
        return False
    return True


def _run_default(client: _Client, table: Rows | None, batch_sizes: list[int], answers: Answers) -> dict[str, Any]:
    """Runs the rows in batches and the odd rows one by one; returns what happened, and puts answers into `answers`."""
    runs: dict[str, Any] = {}
    if table is not None and _length(table):
        runs = _run_table(client, table, batch_sizes, answers)
    odd_rows = {
        what: _run(client, row, 1, contract.ODD_ROWS + what, answers) for what, row in _odd_rows(client.inputs, table)
    }
    return {"runs": runs, "odd_rows": odd_rows}


def _run_other(
    client: _Client,
    rows: Rows | None,
    default_inputs: Mapping[str, Any],
    default_rows: Rows | None,
    batch_sizes: list[int],
    answers: Answers,
) -> dict[str, Any]:
    """Runs another signature's rows, or made-up ones; one for tf.Example also with those of `serving_default`."""
    outcome: dict[str, Any] = {"made_up": rows is None, "runs": {}}
    if client.takes_examples and default_rows is not None:
        examples = {contract.EXAMPLES_INPUT: serialized_examples(default_rows)}
        outcome["made_up"] = False
        outcome[contract.FROM_ROWS] = _run(client, examples, _length(default_rows), contract.FROM_ROWS, answers)
        rows = rows or examples
    if rows is None or not _length(rows):
        rows = contract.made_up_rows(client.inputs, _MADE_UP_ROWS)
        if client.takes_examples:
            zeros = contract.made_up_rows(default_inputs, _MADE_UP_ROWS)
            rows = {contract.EXAMPLES_INPUT: serialized_examples(zeros, count=_MADE_UP_ROWS)}
    try:
        table = contract.as_table(rows, client.inputs)
    except KserError as error:
        return outcome | {"rows_error": str(error)}
    outcome["rows"] = _length(table)
    outcome["runs"] = _run_table(client, table, batch_sizes, answers)
    return outcome


def _run_table(client: _Client, table: Rows, batch_sizes: list[int], answers: Answers) -> dict[str, Any]:
    """Runs rows in batches of some sizes, and all at once."""
    few = _slice(table, 0, _SMALL_BATCH_ROWS)
    runs = {str(size): _run(client, few, size, str(size), answers) for size in batch_sizes}
    return runs | {contract.ALL_ROWS: _run(client, table, _length(table), contract.ALL_ROWS, answers)}


def _run(client: _Client, rows: Rows, batch: int, run: str, answers: Answers) -> dict[str, Any]:
    """Runs rows in batches of one size; returns their number and the seconds, or the error."""
    count = _length(rows)
    try:
        first = client(_slice(rows, 0, batch))  # the first run of a shape plans it
        start = time.perf_counter()
        parts = [client(_slice(rows, begin, begin + batch)) for begin in range(0, count, batch)]
        seconds = time.perf_counter() - start
    except Exception as error:
        return {"error": _message(error)}
    name = contract.run_name(client.signature, run)
    for output in parts[0]:
        answers[f"{name}/{output}"] = np.concatenate([np.atleast_1d(part[output]) for part in parts])
        if run == contract.ALL_ROWS:
            again = contract.run_name(client.signature, contract.AGAIN)
            answers[f"{again}/{output}"] = np.atleast_1d(first[output])
    return {"rows": count, "seconds": seconds}


def _replay(model: LoadedModel, file: Path) -> dict[str, Any]:
    """Sends the warm-up file's requests, as a server does before it takes any other."""
    try:
        requests = warmup.read_warmup(file)
    except MissingExtraError as error:
        return {"not_run": str(error)}
    except Exception as error:
        return {"error": f"it cannot be read: {_message(error)}"}
    start = time.perf_counter()
    for number, (signature, feeds) in enumerate(requests):
        try:
            if signature not in model.signatures:
                raise ExportError(f"there is no signature `{signature}`")
            model.run(signature, contract.as_table(feeds, model.signatures[signature]["inputs"]))
        except Exception as error:
            return {"records": len(requests), "error": f"record {number}: {_message(error)}"}
    return {"records": len(requests), "seconds": time.perf_counter() - start}


def _odd_rows(inputs: Mapping[str, Any], rows: Rows | None) -> Iterator[tuple[str, Rows]]:
    """Rows that a server gets and a model may not be made for, each a batch of one.

    What is not odd in them is as in the first row of `rows`; without one, zeros and empty strings, which is odd enough.
    """
    dtypes = {
        name: np.dtype(np.bytes_ if spec["dtype"] == contract.STRING else spec["dtype"])
        for name, spec in inputs.items()
    }
    base: Rows
    if rows is not None and _length(rows):
        base = _slice(rows, 0, 1)
    else:
        base = contract.made_up_rows(inputs, 1)
        yield "zeros and empty strings", base

    def with_values(values: Mapping[str, Any]) -> Rows:
        """The base with other values in all inputs of a kind: strings (S), integers (i), floating point (f)."""
        odd = dict(base)
        for name, dtype in dtypes.items():
            if dtype.kind in values:
                value = values[dtype.kind]
                if dtype.kind == "i":
                    value = min(value, np.iinfo(dtype).max)
                odd[name] = np.full(base[name].shape, value, None if dtype.kind == "S" else dtype)
        return odd

    kinds = {dtype.kind for dtype in dtypes.values()}
    if kinds & {"S", "i"}:
        yield "unknown values", with_values({"S": _UNKNOWN_STRING.encode(), "i": _UNKNOWN_INTEGER})
        yield "missing values", with_values({"S": MISSING_STRING.encode(), "i": MISSING_INTEGER})
    if "f" in kinds:
        yield contract.NAN_NUMBERS, with_values({"f": np.nan})


def _slice(rows: Rows, begin: int, end: int) -> Rows:
    return {name: values[begin:end] for name, values in rows.items()}


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values()), ()))


def _resident_bytes() -> int:
    """Memory of this process that is in use, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _message(error: Exception) -> str:
    """What an error says, in one line, without where TensorFlow's graph came from."""
    text, _, _ = str(getattr(error, "message", None) or error).partition("Original stack trace")
    lines = [line.strip() for line in text.splitlines()]
    return f"{type(error).__name__}: {' '.join(line for line in lines if line and not _NOISE.match(line))}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
