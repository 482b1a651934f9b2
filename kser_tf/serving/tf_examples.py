"""Rows as serialized tf.Example: what Classify, Regress and a signature `examples` take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


def serialized_examples(rows: Mapping[str, np.ndarray], *, count: int | None = None) -> np.ndarray:
    """Returns rows as serialized `tf.Example`, each feature under its own name.

    Strings become a bytes list, integers and booleans an int64 list, floating point numbers a float list; a row of
    several values becomes a list of as many.

    Args:
        rows: For each feature an array `(rows, ...)`; strings as `contract.as_rows` returns them.
        count: int. The number of rows. Defaults to that of the arrays.

    Returns:
        The examples, NumPy object of `bytes`, `(rows,)`.
    """
    if count is None:
        count = len(next(iter(rows.values()), ()))
    flat = {name: np.asarray(values).reshape(count, -1) for name, values in rows.items()}
    examples = np.empty(count, dtype=object)
    for row in range(count):
        feature = {name: _feature(values[row]) for name, values in flat.items()}
        examples[row] = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    return examples


def _feature(values: np.ndarray) -> tf.train.Feature:
    if values.dtype.kind in "SO":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values.tolist()))
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.astype(np.int64).tolist()))
