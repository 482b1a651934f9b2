"""Keeping what reads a store's tables on the host."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from kser_tf.layers.xla import xla_compiles_this


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Keeps what reads a whole store's table on the host: the table would be copied to each replica's device."""
    return contextlib.nullcontext() if xla_compiles_this() else tf.device("CPU:0")
