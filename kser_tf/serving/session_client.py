"""Loads a SavedModel as TF Serving does, runs it, and reports: `python -m kser_tf.serving.session_client FOLDER`.

TF Serving loads a SavedModel through TensorFlow's session loader, which `tf.compat.v1.saved_model.loader` calls too;
unlike `tf.saved_model.load`, it knows nothing of Python objects. `check` runs this module in a process of its own, in
which Keras cannot be imported.

FOLDER holds `request.json` (`path`, `batch_sizes`) and, if there are any, the rows to run as `rows.npz`. What is
written there is `report.json` and `answers.npz`.
"""

from __future__ import annotations

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
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402

from kser_tf.errors import KserError  # noqa: E402
from kser_tf.files import read_json, write_json  # noqa: E402
from kser_tf.schema import MISSING_INTEGER, MISSING_STRING  # noqa: E402
from kser_tf.serving import contract  # noqa: E402

# Small batches run over as many rows, so that a large table of examples does not take minutes.
_SMALL_BATCH_ROWS = 512
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
    rows = None
    if (folder / contract.ROWS_FILE).is_file():
        rows, _ = contract.load_examples(folder / contract.ROWS_FILE)
    report, answers = examine(request["path"], rows, request["batch_sizes"])
    report["keras_modules"] = sorted(name for name in _KERAS if sys.modules.get(name) is not None)
    contract.save_examples(folder / contract.ANSWERS_FILE, {}, answers)
    write_json(folder / contract.REPORT_FILE, report)


def examine(path: str, rows: Rows | None, batch_sizes: list[int]) -> tuple[dict[str, Any], Answers]:
    """Loads the SavedModel at `path`, runs its `serving_default` on rows, and says what happened.

    Args:
        path: The SavedModel.
        rows: For each input an array. Without them, only odd rows are run.
        batch_sizes: The sizes of the batches to run, beside all rows at once.

    Returns:
        The report: `read_error`, `load_error`, or what was found and measured. And the answers, as `"<run>/<output>"`:
        a run is `"all"`, a batch size, or `"odd:<what>"`.
    """
    report: dict[str, Any] = {"tensorflow": tf.__version__}
    answers: Answers = {}
    try:
        meta_graph = _read_meta_graph(path)
    except Exception as error:
        return report | {"read_error": _message(error)}, answers
    report["signatures"] = contract.describe_signatures(meta_graph)
    report["python_functions"] = contract.python_function_ops(meta_graph)
    del meta_graph  # it can be large, and the loader reads its own

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        start = time.perf_counter()
        try:
            tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], path)
        except Exception as error:
            return report | {"load_error": _message(error)}, answers
        report["load_seconds"] = time.perf_counter() - start
        report["uninitialised"] = _uninitialised(session)
        if contract.SIGNATURE in report["signatures"]:
            client = _Client(session, report["signatures"][contract.SIGNATURE])
            report |= _run_all(client, rows, batch_sizes, answers)
    return report, answers


class _Client:
    """Calls a signature by its tensors' names, as TF Serving does."""

    def __init__(self, session: Any, signature: Mapping[str, Any]) -> None:
        self.inputs = signature["inputs"]
        self._outputs = {name: spec["tensor"] for name, spec in signature["outputs"].items()}
        self._session = session

    def __call__(self, rows: Rows) -> Answers:
        feeds = {spec["tensor"]: rows[name] for name, spec in self.inputs.items()}
        return self._session.run(self._outputs, feeds)


def _read_meta_graph(path: str) -> Any:
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((Path(path) / tf.saved_model.SAVED_MODEL_FILENAME_PB).read_bytes())
    for meta_graph in content.meta_graphs:
        if tf.saved_model.SERVING in meta_graph.meta_info_def.tags:
            return meta_graph
    raise ValueError(f"no graph in it has the tag `{tf.saved_model.SERVING}`")


def _uninitialised(session: Any) -> list[str]:
    """Returns the variables and look-up tables that have no value after loading."""
    found = []
    for operation in session.graph.get_operations():
        if operation.type == "VarHandleOp":
            if not session.run(tf.raw_ops.VarIsInitializedOp(resource=operation.outputs[0])):
                found.append(f"variable {operation.get_attr('shared_name').decode() or operation.name}")
        elif operation.type == "HashTableV2":
            find = tf.raw_ops.LookupTableFindV2(
                table_handle=operation.outputs[0],
                keys=tf.zeros([1], operation.get_attr("key_dtype")),
                default_value=tf.zeros([], operation.get_attr("value_dtype")),
            )
            try:
                session.run(find)
            except tf.errors.FailedPreconditionError:
                found.append(f"look-up table {operation.name}")
    return sorted(found)


def _run_all(client: _Client, rows: Rows | None, batch_sizes: list[int], answers: Answers) -> dict[str, Any]:
    """Runs the rows in batches and the odd rows one by one; returns what happened, and puts answers into `answers`."""
    table = None
    if rows is not None:
        try:
            table = contract.as_table(rows, client.inputs)
        except KserError as error:
            return {"rows_error": str(error)}
    outcome: dict[str, Any] = {"runs": {}, "odd_rows": {}}
    if table is not None and _length(table):
        for size in batch_sizes:
            outcome["runs"][str(size)] = _run(client, _slice(table, 0, _SMALL_BATCH_ROWS), size, str(size), answers)
        outcome["runs"][contract.ALL_ROWS] = _run(client, table, _length(table), contract.ALL_ROWS, answers)
    for what, row in _odd_rows(client.inputs, table):
        outcome["odd_rows"][what] = _run(client, row, 1, contract.ODD_ROWS + what, answers)
    return outcome


def _run(client: _Client, rows: Rows, batch: int, run: str, answers: Answers) -> dict[str, Any]:
    """Runs rows in batches of one size; returns their number and the seconds, or the error."""
    count = _length(rows)
    try:
        client(_slice(rows, 0, batch))  # the first run of a shape plans it
        start = time.perf_counter()
        parts = [client(_slice(rows, begin, begin + batch)) for begin in range(0, count, batch)]
        seconds = time.perf_counter() - start
    except Exception as error:
        return {"error": _message(error)}
    for name in parts[0]:
        answers[f"{run}/{name}"] = np.concatenate([np.atleast_1d(part[name]) for part in parts])
    return {"rows": count, "seconds": seconds}


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
        shapes = {name: [1, *(size or 1 for size in (spec["shape"] or [None])[1:])] for name, spec in inputs.items()}
        base = {name: np.zeros(shapes[name], dtypes[name]) for name in inputs}
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


def _message(error: Exception) -> str:
    """What an error says, in one line, without where TensorFlow's graph came from."""
    text, _, _ = str(getattr(error, "message", None) or error).partition("Original stack trace")
    lines = [line.strip() for line in text.splitlines()]
    return f"{type(error).__name__}: {' '.join(line for line in lines if line and not _NOISE.match(line))}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
