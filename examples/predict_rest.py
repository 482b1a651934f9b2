"""Asks TensorFlow Serving over REST; needs nothing but Python.

    python examples/predict_rest.py --model ranker --label stable \
        '[{"user_id": "u1", "item_id": "影片-1", "place": "web", "price": 2.5, "tags": ["red"], "past_item": ["影片-5"]}]'

Each row has a value for every input of the signature. A missing value is -1, the empty string or NaN; lists of one
request have one length, filled up with missing values at the end.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any


class RefusedError(Exception):
    """The server answered with an error; the text is its message."""


def predict_rows(url: str, rows: Sequence[Any], *, signature: str = "serving_default") -> list[Any]:
    """Sends rows and returns an answer for each: `{"probability": ..., "logit": ...}`.

    Args:
        url: The model, such as `http://127.0.0.1:8501/v1/models/ranker`, or `.../labels/canary` of it.
        rows: For each row a value for each input by name. Values that are `bytes`, such as a serialized tf.Example, go
            as base64; rows of the only input of a signature may be the values themselves.
        signature: The signature.
    """
    return _post(url, {"signature_name": signature, "instances": list(rows)})["predictions"]


def predict_columns(url: str, columns: Mapping[str, Any], *, signature: str = "serving_default") -> Any:
    """Sends for each input all its values, which is shorter, and returns for each output all its values."""
    return _post(url, {"signature_name": signature, "inputs": dict(columns)})["outputs"]


def classify(url: str, examples: Sequence[Mapping[str, Any]], *, signature: str = "examples") -> list[Any]:
    """Sends features by name, which the server makes into tf.Example; returns `[[label, score], ...]` for each."""
    request = {"signature_name": signature, "examples": list(examples)}
    return _post(url, request, "classify")["results"]


def status(url: str) -> dict[int, str]:
    """Returns the state of each version: `{1: "AVAILABLE"}`."""
    answer = _open(urllib.request.Request(url))
    return {int(entry["version"]): entry["state"] for entry in answer["model_version_status"]}


def _post(url: str, request: Mapping[str, Any], action: str = "predict") -> Any:
    # NaN, for a missing number, is no JSON; TensorFlow Serving takes it.
    content = json.dumps(request, default=_as_base64, ensure_ascii=False).encode()
    return _open(urllib.request.Request(f"{url}:{action}", content, {"Content-Type": "application/json"}))


def _open(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RefusedError(json.load(error)["error"]) from None


def _as_base64(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    raise TypeError(f"JSON has no {type(value).__name__}: {value!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="JSON list of rows")
    parser.add_argument("--server", default="http://127.0.0.1:8501")
    parser.add_argument("--model", required=True)
    parser.add_argument("--label", help="stable or canary; default the newest version")
    given = parser.parse_args()
    model = f"{given.server}/v1/models/{given.model}" + (f"/labels/{given.label}" if given.label else "")
    for answer in predict_rows(model, json.loads(given.rows)):
        print(answer)
