"""What verdicts are made of: a check, how far answers lie apart, and how tensors and names are written in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

EXPORT_AGAIN = "Export the model with kser_tf.export."
RANDOM = "The model draws random numbers, as Dropout does in training: serve it with training=False."
OVER_THE_BATCH = (
    "Something is computed over the batch, as BatchNormalization does in training: serve the model with training=False."
)
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


def differences(values: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference, and the largest one relative to the expected absolute value where that is above 1.

    For strings 0 where all are the same, else infinity.
    """
    if values.shape != expected.shape:
        return np.inf, np.inf
    if not np.issubdtype(values.dtype, np.number):
        apart = 0.0 if np.array_equal(values.astype(np.bytes_), expected.astype(np.bytes_)) else np.inf
        return apart, apart
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(values == expected, 0.0, np.abs(values - expected))
    difference[np.isnan(difference)] = np.inf
    scale = np.maximum(1.0, np.abs(np.nan_to_num(expected)))
    return float(difference.max(initial=0.0)), float((difference / scale).max(initial=0.0))


def count_undefined(answers: Iterable[np.ndarray]) -> int:
    """The number of NaN and infinite values in answers; strings are none."""
    return sum(int((~np.isfinite(values)).sum()) for values in answers if np.issubdtype(values.dtype, np.floating))


def tensor_text(spec: Mapping[str, Any]) -> str:
    """Dtype and shape, such as `float32 (batch, 3)`."""
    if spec["shape"] is None:
        return f"{spec['dtype']} (any shape)"
    sizes = ["any" if size is None else str(size) for size in spec["shape"]]
    if sizes and sizes[0] == "any":
        sizes[0] = "batch"
    return f"{spec['dtype']} ({', '.join(sizes)})"


def named(names: Iterable[str]) -> str:
    """Names in a message, the first few of many."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more
