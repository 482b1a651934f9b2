"""Tensors on mapped files."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import tensorflow as tf

# TensorFlow's kernels read whole vector registers from where a tensor begins.
_ALIGNMENT_BYTES = 64


def mapped_tensor(array: Any) -> Any:
    """Returns a tensor on the very memory of a read-only array; `tf.constant` would copy it, twice.

    What may still be written to is copied, as is what TensorFlow cannot read where it lies.

    Args:
        array: A NumPy array, such as `numpy.load(path, mmap_mode="r")` returns.
    """
    in_place = array.flags.c_contiguous and array.dtype.isnative and array.ctypes.data % _ALIGNMENT_BYTES == 0
    if array.flags.writeable or not in_place or not array.size:
        return tf.constant(np.asarray(array))
    # DLPack takes no array that is marked as read-only, so the memory is shown to it without the mark. TensorFlow does
    # not write into tensors. To map the file once more, writable, by its name would be wrong: another file may have
    # taken the name since.
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # keeps the mapping as long as the tensor
    unmarked = np.frombuffer(memory, array.dtype).reshape(array.shape)
    return tf.experimental.dlpack.from_dlpack(unmarked.__dlpack__())
