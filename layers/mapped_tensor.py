"""Tensors on mapped files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import tensorflow as tf

# TensorFlow's kernels read whole vector registers from where a tensor begins.
_ALIGNMENT_BYTES = 64


def mapped_tensor(array: Any) -> Any:
    """Returns a tensor on the very memory of a mapped file; `tf.constant` would copy it, twice. Any other array is copied.

    DLPack takes writable memory alone, so the file is mapped once more, privately: nothing that is written there reaches
    the file, and the pages are shared with every other reader.

    Args:
        array: A NumPy array. Mapped is what `numpy.load(path, mmap_mode=...)` returns, not a slice of it.
    """
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.size and array.filename is not None:
        private = np.memmap(array.filename, array.dtype, "c", array.offset, array.shape)
        if private.ctypes.data % _ALIGNMENT_BYTES == 0:
            return tf.experimental.dlpack.from_dlpack(private.__dlpack__())
    return tf.constant(np.asarray(array))
