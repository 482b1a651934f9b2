"""ServedModels: what the double of TensorFlow Serving answers, whatever protocol it was asked by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2

from kser_tf.errors import ExportError
from kser_tf.serving import contract
from kser_tf.serving.loaded_model import LoadedModel
from kser_tf.serving.signature_judge import CLASSES, MAX_CLASSIFY_OUTPUTS, REGRESSION, SCORES

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """What a server answers in place of a result.

    Args:
        code: The status.
        message: Why.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ServedModels:
    """The versions of a model, loaded as a server loads them.

    Args:
        base: The folder with the versions; all of them are loaded.
        name: The name that the model is served by.
        labels: For each label its version.

    Raises:
        ExportError: There is no version, or a label's version is not there.
    """

    def __init__(self, base: str | Path, *, name: str, labels: Mapping[str, int]) -> None:
        self.name = name
        self._labels = dict(labels)
        folders = {int(folder.name): folder for folder in Path(base).iterdir() if folder.name.isdecimal()}
        if not folders or not set(self._labels.values()) <= set(folders):
            raise ExportError(f"{base} holds the versions {sorted(folders)}, and the labels are {self._labels}.")
        self._models = {version: LoadedModel(folder) for version, folder in sorted(folders.items())}

    def close(self) -> None:
        """Frees the models."""
        for model in self._models.values():
            model.close()

    def model(self, spec: Any) -> tuple[int, LoadedModel]:
        """Returns the version that a request's `ModelSpec` names, and its model."""
        choice = spec.WhichOneof("version_choice")
        version = max(self._models)
        if choice == "version_label":
            if spec.version_label not in self._labels:
                message = f"Unrecognized servable version label: {spec.version_label}"
                raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
            version = self._labels[spec.version_label]
        elif choice == "version":
            version = spec.version.value
        if spec.name != self.name or version not in self._models:
            wanted = f"Specific({spec.name}, {version})" if choice else f"Latest({spec.name})"
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version, self._models[version]

    def _versions(self, spec: Any) -> list[int]:
        if spec.name != self.name:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.WhichOneof("version_choice") is None:
            return list(self._models)
        if (version := spec.version.value) not in self._models:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}")
        return [version]

    def predict(
        self, spec: Any, values: Mapping[str, np.ndarray], wanted: Sequence[str] = ()
    ) -> tuple[int, str, dict[str, np.ndarray]]:
        """Returns version, signature and outputs of a call of a signature with values for its inputs."""
        version, model = self.model(spec)
        signature = spec.signature_name or contract.SIGNATURE
        if signature not in model.signatures:
            message = f'Serving signature key "{signature}" not found.'
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)
        described = model.signatures[signature]
        _check_inputs(described["inputs"], values)
        if unknown := set(wanted) - described["outputs"].keys():
            message = f"output tensor alias not found in signature: {', '.join(sorted(unknown))}"
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
        outputs = _run(model, signature, values)
        return version, signature, {name: outputs[name] for name in (wanted or outputs)}

    def predict_examples(
        self, spec: Any, examples: Sequence[bytes], check: Callable[[Mapping[str, Any]], str]
    ) -> tuple[int, str, dict[str, np.ndarray]]:
        """Does the same for serialized tf.Example; `check` says what is wrong with the signature's outputs."""
        _, model = self.model(spec)
        signature = spec.signature_name or contract.SIGNATURE
        if signature not in model.signatures:
            message = f"No signature was found with the name: {signature}"
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
        described = model.signatures[signature]
        if not contract.takes_examples(described):
            message = f"Expected one input Tensor, `{contract.EXAMPLES_INPUT}`, of strings"
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
        if problem := check(described["outputs"]):
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if not examples:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "Input is empty.")
        return self.predict(spec, {contract.EXAMPLES_INPUT: np.array(examples, dtype=object)})

    def status(self, spec: Any) -> Any:
        """Returns a `GetModelStatusResponse`: which versions are there."""
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self._versions(spec):
            status = response.model_version_status.add(version=version)
            status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            status.status.SetInParent()
        return response


def _run(model: LoadedModel, signature: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calls a signature; what TensorFlow refuses is refused with TensorFlow's status."""
    try:
        return model.run(signature, values)
    except tf.errors.OpError as error:
        raise ServingError(_CODES[error.error_code], error.message) from None
    except (ValueError, TypeError) as error:  # a value of a shape that the signature excludes
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def classify_problem(outputs: Mapping[str, Any]) -> str:
    """Says why Classify refuses a signature's outputs."""
    if len(outputs) > MAX_CLASSIFY_OUTPUTS:
        return f"Expected one or two output Tensors, found {len(outputs)}"
    if not {CLASSES, SCORES} & outputs.keys():
        return f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}".'
    for name in {CLASSES, SCORES} & outputs.keys():
        if outputs[name]["shape"] is not None and len(outputs[name]["shape"]) != 2:
            return f"Expected Tensor shape: [batch_size num_classes] but got {outputs[name]['shape']}"
    return ""


def regress_problem(outputs: Mapping[str, Any]) -> str:
    """Says why Regress refuses a signature's outputs."""
    if len(outputs) != 1:
        return "Expected one output Tensor."
    return "" if REGRESSION in outputs else "No regression outputs found in SignatureDef"


def class_pairs(outputs: Mapping[str, np.ndarray]) -> Iterator[list[tuple[str, float]]]:
    """Yields for each row the label and the score of each class."""
    some = next(iter(outputs.values()))
    classes = outputs.get(CLASSES, np.full(some.shape, b"", dtype=object))
    scores = outputs.get(SCORES, np.zeros(some.shape))
    for labels, values in zip(classes, scores, strict=True):
        yield [(bytes(label).decode(), float(value)) for label, value in zip(labels, values, strict=True)]


def _check_inputs(inputs: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    if inputs.keys() != values.keys():
        extra, missing = (
            "{" + ",".join(sorted(names)) + "}" for names in (values.keys() - inputs, inputs.keys() - values)
        )
        message = (
            f"input size does not match signature: {len(values)}!={len(inputs)}. Sent extra: {extra}. Missing but "
            f"required: {missing}."
        )
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
    for number, (name, spec) in enumerate(inputs.items()):
        given = contract.STRING if values[name].dtype.kind in "SO" else values[name].dtype.name
        if given != spec["dtype"]:
            message = f"Expects arg[{number}] to be {spec['dtype']} but {given} is provided"
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
