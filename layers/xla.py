"""Whether XLA compiles what is traced."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # TensorFlow tells nowhere else whether it compiles with XLA.


def xla_compiles_this() -> bool:
    """Says whether what is traced now is under `jit_compile=True`."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
