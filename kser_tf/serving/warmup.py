"""Warm-up requests: what a server sends to a version itself, before it says that the version is ready."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import ExportError, MissingExtraError, PathExistsError
from kser_tf.serving import contract

# A single row and batches as they come; each one is sent once, so a server is ready within seconds.
BATCH_SIZES = (1, 8, 64, 256)
RECORDS = 100


def write_warmup(
    version_folder: str | Path,
    requests: Mapping[str, Mapping[str, Any]],
    *,
    model_name: str,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    records: int = RECORDS,
) -> Path:
    """Writes `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog`, from real rows.

    The first request after loading is slow: TensorFlow plans the graph and touches the weights then. A server that finds
    this file sends its requests to itself first, and callers wait for none of it.

    The rows of each signature are taken in turn, in batches of each size in turn, and again from the first row where
    they do not suffice; the signatures take turns too.

    Args:
        version_folder: The SavedModel, `<base>/<version>`. A folder that a server watches gets the file whole.
        requests: For each signature to warm up its rows: for each input an array, all of one length.
        model_name: The name that the model is served by.
        batch_sizes: The numbers of rows of a request. Defaults to 1, 8, 64 and 256.
        records: int. How many requests, at most 1,000: a server refuses more. Defaults to 100.

    Returns:
        The file.

    Raises:
        MissingExtraError: `tensorflow-serving-api` is not installed.
        ExportError: There is no such signature, the rows do not fit it, or a number is out of range.
        PathExistsError: The version has warm-up requests already.

    Example:

    >>> write_warmup("serving/ranker/1", {"serving_default": rows}, model_name="ranker")
    """
    predict_pb2, prediction_log_pb2 = _protos()
    import tensorflow as tf

    from kser_tf.serving.loaded_model import read_meta_graph

    version_folder = Path(version_folder)
    if not 1 <= records <= contract.MAX_WARMUP_RECORDS:
        raise ExportError(f"`records` must be from 1 to {contract.MAX_WARMUP_RECORDS}. Received: records={records}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ExportError(f"`batch_sizes` must be numbers from 1. Received: batch_sizes={batch_sizes!r}")
    path = version_folder / contract.WARMUP_FILE
    if path.exists():
        raise PathExistsError(f"{path} exists already. Remove it first, or export a new version.")
    tables = _tables(requests, contract.describe_signatures(read_meta_graph(version_folder)))

    path.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        with tf.io.TFRecordWriter(temporary) as writer:
            for signature, rows in _drawn(tables, batch_sizes, records):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                for name, values in rows.items():
                    request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def read_warmup(path: str | Path) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns the requests of a warm-up file: the signature's name, and a value for each input.

    Raises:
        MissingExtraError: `tensorflow-serving-api` is not installed.
        ExportError: It holds more than 1,000 requests, none, or one of another kind than Predict, Classify and Regress.
        tf.errors.DataLossError, google.protobuf.message.DecodeError: It is damaged.
    """
    _, prediction_log_pb2 = _protos()
    import tensorflow as tf

    requests = []
    for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            request = log.predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        elif kind in ("classify_log", "regress_log"):
            request = getattr(log, kind).request
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            inputs = {contract.EXAMPLES_INPUT: np.array(examples, dtype=object)}
        else:
            raise ExportError(f"record {number} is a {kind}, expected a predict_log, classify_log or regress_log")
        requests.append((request.model_spec.signature_name or contract.SIGNATURE, inputs))
    if not 1 <= len(requests) <= contract.MAX_WARMUP_RECORDS:
        raise ExportError(f"it holds {len(requests)} requests, and a server takes 1 to {contract.MAX_WARMUP_RECORDS}")
    return requests


def _protos() -> tuple[Any, Any]:
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ModuleNotFoundError:
        raise MissingExtraError("tensorflow-serving-api", "serving") from None
    return predict_pb2, prediction_log_pb2


def _tables(requests: Mapping[str, Mapping[str, Any]], signatures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables = {}
    for name, rows in requests.items():
        if name not in signatures:
            raise ExportError(f"the SavedModel has no signature `{name}`. It has: {', '.join(sorted(signatures))}")
        table = contract.as_table(rows, signatures[name]["inputs"])
        if not len(next(iter(table.values()), ())):
            raise ExportError(f"`requests` has no row for the signature `{name}`. Give at least one.")
        tables[name] = table
    if not tables:
        raise ExportError("`requests` is empty: give rows for at least one signature.")
    return tables


def _drawn(
    tables: Mapping[str, Mapping[str, np.ndarray]], batch_sizes: Sequence[int], records: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields signatures and rows for them."""
    names = list(tables)
    begins = dict.fromkeys(names, 0)
    for number in range(records):
        name = names[number % len(names)]
        size = batch_sizes[number // len(names) % len(batch_sizes)]
        count = len(next(iter(tables[name].values())))
        rows = np.arange(begins[name], begins[name] + size) % count
        begins[name] = (begins[name] + size) % count
        yield name, {key: values[rows] for key, values in tables[name].items()}
