"""Rows as serialized tf.Example: what Classify, Regress and a signature `examples` take."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def serialized_examples(
    rows: Mapping[str, Any],
    *,
    count: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    ragged: Collection[str] = (),
) -> np.ndarray:
    """Returns rows as serialized `tf.Example`, each feature under its own name.

    Strings become a bytes list, integers and booleans an int64 list, floating point numbers a float list; a row of
    several values becomes a list of as many.

    Args:
        rows: For each feature an array `(rows, ...)`; strings are `str` or UTF-8 `bytes`.
        count: int. The number of rows. Defaults to that of the arrays.
        defaults: For features what stands for "no value": one that holds nothing else in a row is left out there.
            Defaults to none, and no feature is left out.
        ragged: Features that hold a list of any length: what is missing at a list's end is left out.

    Returns:
        The examples, NumPy object of `bytes`, `(rows,)`; the same bytes for the same rows.
    """
    if count is None:
        count = len(next(iter(rows.values()), ()))
    defaults = defaults or {}
    examples = np.empty(count, dtype=object)
    for row in range(count):
        present = {
            name: _present(np.ravel(values[row]), defaults.get(name), name in ragged) for name, values in rows.items()
        }
        feature = {name: _feature(values) for name, values in present.items() if len(values)}
        message = tf.train.Example(features=tf.train.Features(feature=feature))
        examples[row] = message.SerializeToString(deterministic=True)
    return examples


def _feature(values: np.ndarray) -> tf.train.Feature:
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))
    if values.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values.astype(np.int64).tolist()))
    encoded = [value.encode() if isinstance(value, str) else value for value in values.tolist()]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))


def _present(values: np.ndarray, missing: Any, ragged: bool) -> np.ndarray:
    """The values of a row without what is missing: all of them, or those at the end."""
    if missing is None:
        return values
    if isinstance(missing, str):
        present = np.array([value not in (missing, missing.encode()) for value in values.tolist()], dtype=bool)
    else:
        present = ~np.isnan(values) if missing != missing else values != missing
    if not present.any():
        return values[:0]
    return values[: np.flatnonzero(present)[-1] + 1] if ragged else values
