"""Which Keras is active, and an error that names the mend where it is the wrong one."""

from __future__ import annotations

import tensorflow as tf

from kser_tf.errors import KerasVersionError


def keras_2_is_active() -> bool:
    """Says whether `tf.keras` is Keras 2 (the package tf-keras)."""
    return tf.keras.layers.Layer.__module__.startswith("tf_keras")


def require_keras_2(what: str) -> None:
    """Raises `KerasVersionError` unless `tf.keras` is Keras 2, which TFRS needs."""
    if not keras_2_is_active():
        raise KerasVersionError(
            f"{what} needs tensorflow-recommenders, and that needs Keras 2; the active Keras is Keras 3. "
            "Set the environment variable TF_USE_LEGACY_KERAS=1 before TensorFlow is imported. "
            "(The layers, the store and the export work under both.)"
        )
