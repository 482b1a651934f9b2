"""What an exported model is: the names that `export` writes, and that `check` and every client rely on.

Imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import ExportError

SIGNATURE = "serving_default"
WITH_KNOWLEDGE = "with_knowledge"
EXAMPLES = "examples"
CLASSIFY = "classify"
REGRESS = "regress"
EMBEDDINGS = "embeddings"
# The one input of those that take serialized `tf.Example`s: TF Serving's classify and regress want this name.
EXAMPLES_INPUT = "inputs"
PROBABILITY = "probability"
LOGIT = "logit"
OUTPUTS = (PROBABILITY, LOGIT)
OUTPUT_DTYPE = "float32"

# TF Serving and the loaders leave this folder of a SavedModel alone, but for the warm-up requests.
EXTRA_FOLDER = "assets.extra"
DESCRIPTION_FILE = f"{EXTRA_FOLDER}/kser_tf.json"
EXAMPLES_FILE = f"{EXTRA_FOLDER}/kser_tf_examples.npz"
DESCRIPTION_VERSION = 1
# Requests that a server sends itself before it says that it is ready.
WARMUP_FILE = f"{EXTRA_FOLDER}/tf_serving_warmup_requests"
# A server refuses a version whose file holds more.
MAX_WARMUP_RECORDS = 1000


# What a row of training data has beside the features. A request has none of it: an input of such a name means that the
# training function was exported, and that every client would have to send a label.
NOT_INPUTS = frozenset(
    {"label", "labels", "target", "targets", "y_true", "sample_weight", "sample_weights", "weight", "weights"}
)

# They call back into the Python process that made them; TF Serving has none.
PYTHON_FUNCTION_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})

STRING = "string"
DTYPES = (
    STRING,
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float32",
    "float64",
)

# What `check` and the process that it starts write for each other.
REQUEST_FILE = "request.json"
ROWS_FILE = "rows.npz"
REPORT_FILE = "report.json"
ANSWERS_FILE = "answers.npz"
# The run that takes all rows as one batch; other runs are called by their batch size.
ALL_ROWS = "all"
ODD_ROWS = "odd:"
# The same once more, which a model that draws random numbers answers otherwise.
AGAIN = "again"
# The rows of `serving_default`, made into tf.Example.
FROM_ROWS = "from rows"
NAN_NUMBERS = "NaN numbers"

_BYTES = "#bytes"
_LENGTHS = "#lengths"
_INPUT = "input/"
_OUTPUT = "output/"


def examples_file(signature: str) -> str:
    """Returns where example rows of a signature and the model's own answers lie."""
    return EXAMPLES_FILE if signature == SIGNATURE else f"{EXTRA_FOLDER}/kser_tf_examples.{signature}.npz"


def as_rows(name: str, values: Any, dtype: str, shape: Sequence[int | None] | None) -> np.ndarray:
    """Returns an input's values as an array that a session takes and that is stored without pickle.

    Args:
        name: str. The input's name, for messages.
        values: Array, list, tensor or pandas series. Strings are `str` or UTF-8 `bytes`.
        dtype: str. The input's dtype, as TensorFlow calls it.
        shape: The input's shape, `None` for dimensions of any size, the batch among them; or `None` for any shape.

    Returns:
        The array, in `dtype`; strings as NumPy `S` (UTF-8), or as objects of `bytes` where one ends in a zero byte, as
        a serialized tf.Example may: NumPy's `S` would lose it.

    Raises:
        ExportError: The values are of another type or shape.
    """
    given, values = values, np.asarray(values)
    if dtype == STRING and values.dtype.kind in "SU" and not isinstance(given, np.ndarray):
        values = np.asarray(given, dtype=object)  # NumPy's own strings have lost zero bytes at the end
    array = _encoded(name, values) if dtype == STRING else _as_numbers(name, values, dtype)
    if shape is not None and not _fits(array.shape, shape):
        raise ExportError(f"input `{name}`: expected values of shape {_shape_text(shape)}. Received: {array.shape}")
    return array


def as_table(rows: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns rows for all inputs of a signature, in its dtypes.

    Args:
        rows: For each input its values; all of one length.
        inputs: For each input its `dtype` and `shape`.

    Raises:
        ExportError: An input is missing or unknown, has another type or shape, or the lengths differ.
    """
    for problem, names in (("lack", inputs.keys() - rows.keys()), ("have no use for", rows.keys() - inputs.keys())):
        if names:
            raise ExportError(
                f"the examples {problem} {_names(names)}. The inputs are {_names(inputs)}; examples were given for "
                f"{_names(rows)}."
            )
    table = {name: as_rows(name, rows[name], spec["dtype"], spec["shape"]) for name, spec in inputs.items()}
    lengths = {name: len(array) for name, array in table.items()}
    if len(set(lengths.values())) > 1:
        raise ExportError(f"the examples have different numbers of rows: {lengths}.")
    return table


def byte_strings(values: list[bytes]) -> np.ndarray:
    """Returns strings as NumPy `S`, or as objects where one ends in a zero byte, which `S` would lose."""
    return np.array(values, dtype=object if any(value.endswith(b"\0") for value in values) else np.bytes_)


def made_up_rows(inputs: Mapping[str, Mapping[str, Any]], count: int) -> dict[str, np.ndarray]:
    """Returns rows of zeros and empty strings; a dimension of any size is 1."""
    rows = {}
    for name, spec in inputs.items():
        shape = [count, *(size or 1 for size in (spec["shape"] or [None])[1:])]
        rows[name] = np.zeros(shape, np.dtype(np.bytes_ if spec["dtype"] == STRING else spec["dtype"]))
    return rows


def takes_examples(signature: Mapping[str, Any]) -> bool:
    """Says whether a signature takes serialized tf.Example, and nothing else."""
    inputs = signature["inputs"]
    return list(inputs) == [EXAMPLES_INPUT] and inputs[EXAMPLES_INPUT]["dtype"] == STRING


def run_name(signature: str, run: str) -> str:
    """The name of a run of a signature among all runs; that of `serving_default` is the run's own."""
    return run if signature == SIGNATURE else f"{signature}/{run}"


def save_examples(path: str | Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Writes rows and their answers, as arrays without pickle."""
    arrays = {_INPUT + name: array for name, array in inputs.items()}
    arrays |= {_OUTPUT + name: array for name, array in outputs.items()}
    for name, array in list(arrays.items()):
        if array.dtype.kind == "O":  # strings that NumPy's `S` does not hold, see `as_rows`
            values = arrays.pop(name).ravel().tolist()
            arrays[name + _BYTES] = np.frombuffer(b"".join(values), np.uint8)
            arrays[name + _LENGTHS] = np.array([len(value) for value in values], np.int64).reshape(array.shape)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_examples(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads what `save_examples` wrote: inputs and outputs by name."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name in [name.removesuffix(_BYTES) for name in arrays if name.endswith(_BYTES)]:
        content, lengths = arrays.pop(name + _BYTES).tobytes(), arrays.pop(name + _LENGTHS)
        ends = np.cumsum(lengths.ravel())
        values = [content[end - length : end] for end, length in zip(ends, lengths.ravel(), strict=True)]
        arrays[name] = np.array(values, dtype=object).reshape(lengths.shape)
    return tuple(  # type: ignore[return-value]
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for prefix in (_INPUT, _OUTPUT)
    )


def describe_signatures(meta_graph: Any) -> dict[str, Any]:
    """Returns the signatures of a `MetaGraphDef`: for each its `inputs` and `outputs`, with `dtype`, `shape`, `tensor`.

    A dimension of any size is `None`; so is the shape of an unknown rank.
    """
    return {
        name: {
            "inputs": {key: _tensor(info) for key, info in sorted(signature.inputs.items())},
            "outputs": {key: _tensor(info) for key, info in sorted(signature.outputs.items())},
        }
        for name, signature in meta_graph.signature_def.items()
        if not name.startswith("__saved_model")
    }


def python_function_ops(meta_graph: Any) -> list[str]:
    """Returns the names of the operations, in graph and function library, that call back into Python."""
    graph = meta_graph.graph_def
    nodes = [(node.name, node.op) for node in graph.node]
    nodes += [
        (f"{function.signature.name}/{node.name}", node.op)
        for function in graph.library.function
        for node in function.node_def
    ]
    return sorted(f"{name} ({op})" for name, op in nodes if op in PYTHON_FUNCTION_OPS)


def _tensor(info: Any) -> dict[str, Any]:
    from tensorflow import dtypes  # only where there is a MetaGraphDef, and so TensorFlow

    shape = info.tensor_shape
    dims = None if shape.unknown_rank else [None if dim.size < 0 else int(dim.size) for dim in shape.dim]
    return {"dtype": dtypes.as_dtype(info.dtype).name, "shape": dims, "tensor": info.name}


def _encoded(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "SUOT":
        raise ExportError(f"input `{name}`: expected strings. Received: {values.dtype} values")
    encoded = []
    for value in values.ravel().tolist():
        if not isinstance(value, str | bytes):
            raise ExportError(
                f"input `{name}`: expected strings. Received: {value!r} ({type(value).__name__}). A missing value is "
                "the empty string; rows of different lengths must be padded with it."
            )
        encoded.append(value.encode("utf-8") if isinstance(value, str) else value)
    return byte_strings(encoded).reshape(values.shape)


def _as_numbers(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    target = np.dtype(dtype)
    is_number_from_bool = values.dtype.kind == "b" and target.kind != "b"
    if is_number_from_bool or not np.can_cast(values.dtype, target, "same_kind"):
        raise ExportError(f"input `{name}`: expected {dtype} values. Received: {values.dtype}")
    array = values.astype(target)
    if target.kind in "iu" and not np.array_equal(array, values):
        raise ExportError(
            f"input `{name}`: a value does not fit into {dtype}. Received: {values.min()} to {values.max()}"
        )
    return array


def _fits(sizes: tuple[int, ...], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(n in (None, size) for size, n in zip(sizes, shape, strict=True))


def _shape_text(shape: Sequence[int | None]) -> str:
    sizes = ["rows", *("any" if size is None else str(size) for size in shape[1:])]
    return f"({', '.join(sizes)})"


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
