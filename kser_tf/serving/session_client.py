"""Loads a SavedModel as TF Serving does, runs it, and reports: `python -m kser_tf.serving.session_client FOLDER`.

TF Serving loads a SavedModel through TensorFlow's session loader, which `tf.compat.v1.saved_model.loader` calls too; unlike
`tf.saved_model.load`, it knows nothing of Python objects. This module runs in a process of its own, in which Keras is never imported.

FOLDER holds `request.json` (`path`, `batch_sizes`) and, if there are any, the rows to run as `rows.npz`. Written there are `report.json`
and `answers.npz`.
"""

from __future__ import annotations

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

# Batches of a few rows run over as many rows, so that a large table of examples does not take minutes.
_SMALL_BATCH_ROWS = 512
# Values that no vocabulary and no store is likely to hold; the integer fits into int32.
_UNKNOWN_STRING = "kser-tf: \u672a\u77e5 unknown id"
_UNKNOWN_INTEGER = 2**31 - 1

Rows = Mapping[str, np.ndarray]


def main(folder: Path) -> None:
    """Does what `request.json` in the folder asks for."""
    request = read_json(folder / contract.REQUEST_FILE)
    rows = None
    if (folder / contract.ROWS_FILE).is_file():
        rows, _ = contract.load_examples(folder / contract.ROWS_FILE)
    answers: dict[str, np.ndarray] = {}
    report = examine(request["path"], rows, request["batch_sizes"], answers)
    report["keras_modules"] = sorted(name for name in _KERAS if sys.modules.get(name) is not None)
    contract.save_examples(folder / contract.ANSWERS_FILE, {}, answers)
    write_json(folder / contract.REPORT_FILE, report)


def examine(path: str, rows: Rows | None, batch_sizes: list[int], answers: dict[str, np.ndarray]) -> dict[str, Any]:
    """Loads the SavedModel at `path`, runs its `serving_default` on rows, and says what happened.

    Args:
        path: The SavedModel.
        rows: For each input an array. Without them only odd rows are run.
        batch_sizes: Beside the whole at once.
        answers: Gets the answers, as `"<run>/<output>"`: a run is `"all"`, a batch size, or `"odd:<what>"`.

    Returns:
        `read_error` and `load_error`, or what was found and measured.
    """
    report: dict[str, Any] = {"tensorflow": tf.__version__}
    try:
        meta_graph = _read_meta_graph(path)
    except Exception as error:
        return report | {"read_error": _message(error)}
    report["signatures"] = contract.describe_signatures(meta_graph)
    report["python_functions"] = contract.python_function_ops(meta_graph)
    del meta_graph  # it can be large, and the loader reads its own

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        start = time.perf_counter()
        try:
            tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], path)
        except Exception as error:
            return report | {"load_error": _message(error)}
        report["load_seconds"] = time.perf_counter() - start
        report["uninitialised"] = _uninitialised(session)
        if contract.SIGNATURE in report["signatures"]:
            client = _Client(session, report["signatures"][contract.SIGNATURE])
            try:
                table = None if rows is None else contract.as_table(rows, client.inputs)
            except KserError as error:
                return report | {"rows_error": str(error)}
            if table is not None and len(next(iter(table.values()))):
                report["runs"] = {
                    str(size): _run(client, table, size, answers) for size in (*batch_sizes, contract.ALL_ROWS)
                }
            report["odd_rows"] = {
                what: _run_odd(client, row, contract.ODD_ROWS + what, answers)
                for what, row in _odd_rows(client.inputs, table)
            }
    return report


class _Client:
    """Calls a signature by its tensors' names, as TF Serving does."""

    def __init__(self, session: Any, signature: Mapping[str, Any]) -> None:
        self.inputs = signature["inputs"]
        self._outputs = {name: spec["tensor"] for name, spec in signature["outputs"].items()}
        self._session = session

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
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
    """Returns the variables and look-up tables that are there without a value after loading."""
    found = []
    for operation in session.graph.get_operations():
        if operation.type == "VarHandleOp":
            ready = tf.raw_ops.VarIsInitializedOp(resource=operation.outputs[0])
            if not session.run(ready):
                found.append(f"variable `{operation.get_attr('shared_name').decode() or operation.name}`")
        elif operation.type == "HashTableV2":
            find = tf.raw_ops.LookupTableFindV2(
                table_handle=operation.outputs[0],
                keys=tf.zeros([1], operation.get_attr("key_dtype")),
                default_value=tf.zeros([], operation.get_attr("value_dtype")),
            )
            try:
                session.run(find)
            except tf.errors.FailedPreconditionError:
                found.append(f"look-up table `{operation.name}`")
    return sorted(found)


def _run(client: _Client, rows: Rows, size: int | str, answers: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs all rows in batches of one size; returns their number and the seconds, or the error."""
    count = len(next(iter(rows.values())))
    if size == contract.ALL_ROWS:
        batch = count
    else:
        batch, count = int(size), min(count, _SMALL_BATCH_ROWS)
    parts = []
    try:
        client(_slice(rows, 0, batch))  # the first run of a shape plans it
        start = time.perf_counter()
        for begin in range(0, count, batch):
            parts.append(client(_slice(rows, begin, min(begin + batch, count))))
        seconds = time.perf_counter() - start
        for name in parts[0]:
            answers[f"{size}/{name}"] = np.concatenate([np.atleast_1d(part[name]) for part in parts])
    except Exception as error:
        return {"error": _message(error)}
    return {"rows": count, "seconds": seconds}


def _run_odd(client: _Client, row: Rows, run: str, answers: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        for name, values in client(row).items():
            answers[f"{run}/{name}"] = values
    except Exception as error:
        return {"error": _message(error)}
    return {}


def _odd_rows(inputs: Mapping[str, Any], rows: Rows | None) -> Iterator[tuple[str, Rows]]:
    """Rows that a server gets and a model may not be made for, each a batch of one. What is not odd in them is as in the first row."""
    dtypes = {
        name: np.dtype(np.bytes_ if spec["dtype"] == contract.STRING else spec["dtype"])
        for name, spec in inputs.items()
    }
    if rows is not None and len(next(iter(rows.values()))):
        base = _slice(rows, 0, 1)
    else:
        shapes = {name: [1, *(n or 1 for n in (spec["shape"] or [None])[1:])] for name, spec in inputs.items()}
        base = {name: np.zeros(shapes[name], dtypes[name]) for name in inputs}

    def with_values(values: Mapping[str, Any]) -> Rows:
        """The base with a value in all inputs of a kind: strings (S), integers (i), floating point (f)."""
        odd = dict(base)
        for name, dtype in dtypes.items():
            if dtype.kind in values:
                odd[name] = np.full(base[name].shape, values[dtype.kind], None if dtype.kind == "S" else dtype)
        return odd

    kinds = {dtype.kind for dtype in dtypes.values()}
    if kinds & {"S", "i"}:
        yield "unknown values", with_values({"S": _UNKNOWN_STRING.encode(), "i": _UNKNOWN_INTEGER})
        yield "missing values", with_values({"S": MISSING_STRING.encode(), "i": MISSING_INTEGER})
    if "f" in kinds:
        yield contract.NAN_NUMBERS, with_values({"f": np.nan})


def _slice(rows: Rows, begin: int, end: int) -> Rows:
    return {name: values[begin:end] for name, values in rows.items()}


def _message(error: Exception) -> str:
    """The error's own words: not where TensorFlow's graph came from."""
    text = getattr(error, "message", None) or str(error)
    return f"{type(error).__name__}: {text.partition('Original stack trace')[0].strip()}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
