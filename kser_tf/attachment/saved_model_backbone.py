"""SavedModelBackbone: a Keras model around a ranking model of which only the SavedModel is left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from kser_tf.errors import DataError

DEFAULT_SIGNATURE = "serving_default"


@tf.keras.utils.register_keras_serializable("kser_tf")
class SavedModelBackbone(tf.keras.Model):
    """Makes a Keras model of a SavedModel's signature, to attach knowledge at its output.

    What is in the SavedModel stays as it is: its variables are no weights of this model, are not trained and are not
    written into its weight files, and no gradient flows into it. Beside that it is a model like others: after
    `attach(at_output=...)` it can be compiled, fitted, saved and exported, and the export holds all of it.

    Inputs are taken by the signature's names. Their dtypes may be others of the same kind (int32 for int64), and a
    last dimension of 1 may be there or not; features that the signature does not name are left to the knowledge.

    Args:
        path: The SavedModel's directory, such as `serving/ranker/3`.
        signature: str. Defaults to `"serving_default"`.
        output: str. Which of the signature's outputs is the score. Defaults to the only one.

    Call arguments:
        features: For each input of the signature a tensor; more of them are allowed.

    Returns:
        The signature's output.

    Raises:
        DataError: There is no SavedModel, or it has no such signature or output.
        ValueError: In a call, an input is missing or does not fit.

    Example:

    >>> model = kser_tf.SavedModelBackbone("serving/ranker/3", output="logit")
    >>> model = kser_tf.attach(model, at_output={"movie_id": store})
    >>> model.compile("adam", loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        signature: str = DEFAULT_SIGNATURE,
        output: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Passed args.
        self.folder = os.path.abspath(path)
        self.signature = signature
        loaded = _load(Path(self.folder))
        function = _signature(loaded, signature, self.folder)
        self.output_name = _output(function, output, self.folder)
        # Derived. The function is hidden from Keras, which would take its variables for weights of this model.
        self._saved_model = _Hidden(loaded, function)
        self.specs = dict(function.structured_input_signature[1])
        # An export looks for look-up tables in attributes.
        self.tables = [
            part
            for part in tf.train.TrackableView(loaded).descendants()
            if isinstance(part, tf.saved_model.experimental.TrackableResource)
        ]
        self.built = True

    def call(self, features: Mapping[str, Any]) -> Any:
        if not isinstance(features, Mapping):
            if len(self.specs) > 1:
                raise ValueError(
                    f"{self.name} takes a dict of {', '.join(self.specs)}. Received: {type(features).__name__}"
                )
            features = {next(iter(self.specs)): features}
        missing = [name for name in self.specs if name not in features]
        if missing:
            raise ValueError(
                f"the SavedModel's signature {self.signature!r} needs the inputs {', '.join(self.specs)}. "
                f"Missing: {', '.join(missing)}. Received: {', '.join(features)}"
            )
        inputs = {name: _fitted(name, features[name], spec) for name, spec in self.specs.items()}
        return tf.stop_gradient(self._saved_model.function(**inputs)[self.output_name])

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.folder,
            "signature": self.signature,
            "output": self.output_name,
        }


class _Hidden:
    """Keeps a loaded SavedModel, without which its functions lose their variables."""

    def __init__(self, loaded: Any, function: Any) -> None:
        self.loaded = loaded
        self.function = function


def _load(path: Path) -> Any:
    if not tf.saved_model.contains_saved_model(str(path)):
        versions = sorted(
            int(file.parent.name) for file in path.glob("*/saved_model.pb") if file.parent.name.isdecimal()
        )
        mend = f"It holds the versions {versions}: name one, {path / str(versions[-1])}." if versions else ""
        raise DataError(f"{path} is no SavedModel: there is no saved_model.pb in it. {mend}".rstrip())
    try:
        return tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise DataError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _signature(loaded: Any, name: str, path: str) -> Any:
    if name not in loaded.signatures:
        raise DataError(
            f"{path} has no signature {name!r}. It has: {', '.join(map(repr, loaded.signatures)) or 'none'}"
        )
    return loaded.signatures[name]


def _output(function: Any, name: str | None, path: str) -> str:
    names = list(function.structured_outputs)
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        raise DataError(
            f"{path} has the outputs {', '.join(map(repr, names))}: say with `output` which is the score. "
            f"Received: output={name!r}"
        )
    return name


def _fitted(name: str, value: Any, spec: tf.TensorSpec) -> Any:
    """`value` in the dtype and rank of the signature's input."""
    value = tf.convert_to_tensor(value)
    if value.dtype != spec.dtype:
        if tf.string in (value.dtype, spec.dtype) or value.dtype.is_integer != spec.dtype.is_integer:
            raise ValueError(
                f"input {name!r}: the SavedModel takes {spec.dtype.name}. Received: {value.dtype.name}. Convert it."
            )
        value = tf.cast(value, spec.dtype)
    rank, wanted = value.shape.rank, spec.shape.rank
    if rank is not None and wanted is not None:
        if rank == wanted + 1 and value.shape[-1] == 1:
            value = tf.squeeze(value, -1)
        elif rank == wanted - 1 and spec.shape[-1] == 1:
            value = value[..., None]
    if not spec.shape.is_compatible_with(value.shape):
        raise ValueError(f"input {name!r}: the SavedModel takes shape {spec.shape}. Received: {value.shape}")
    return value
