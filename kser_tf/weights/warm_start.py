"""warm_start: the weights of a trained model, from a file into a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import WeightsError
from kser_tf.model_parts import extractor_layers
from kser_tf.weights.weight_files import ModelWeight, Rename, WeightFile, model_weights, opened

_NEAR_MISSES = 2

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WarmStartReport:
    """What `warm_start` restored.

    Args:
        path: The file.
        restored: For each weight that got its value from the file, by its name in the model, its shape.
        kept: Likewise those that are as they were: the file does not have them.
        unused: For each weight of the file that went nowhere, by its name in the file, its shape.
        sources: For each restored weight its name in the file.
    """

    path: Path
    restored: dict[str, tuple[int, ...]]
    kept: dict[str, tuple[int, ...]]
    unused: dict[str, tuple[int, ...]]
    sources: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.path}: restored {len(self.restored)} of {len(self.restored) + len(self.kept)} weights"
            + (f"; {len(self.unused)} in the file not used" if self.unused else "")
        ]
        lines += [
            f"  restored  {_shape(shape):>16}  {name}  <- {self.sources[name]}" for name, shape in self.restored.items()
        ]
        lines += [f"  kept      {_shape(shape):>16}  {name}" for name, shape in self.kept.items()]
        lines += [f"  unused    {_shape(shape):>16}  {name}" for name, shape in self.unused.items()]
        return "\n".join(lines)


def warm_start(
    model: Any,
    path: str | Path,
    *,
    names: Mapping[str, str] | Callable[[str], str | None] | None = None,
    strict: bool = True,
    verbose: bool = True,
) -> WarmStartReport:
    """Gives a model the weights of a trained one, and says which.

    Every weight of the model must be in the file, with its shape, and no other; then all are restored, and otherwise
    none. Two things are never asked for: what a trainer keeps beside the weights (the optimizer's slots, metrics), and,
    of an attached model, the extractor, where the file is of the backbone without one: that is then kept as it is.

    Only weights are restored. A vocabulary is the model's own, and must be the one that the weights were trained with.

    Args:
        model: A built Keras model, attached or not.
        path: One of: a file of `save_weights("x.weights.h5")` or `save("x.keras")`, in either Keras; the prefix of a
            TensorFlow checkpoint, of `tf.train.Checkpoint` or of Keras 2's `save_weights(..., save_format="tf")`, or the
            folder that it is the latest in; a SavedModel's folder. (A SavedModel that is written by an export does not
            tell which layer a variable belongs to: its variables' own names must be the model's, and each be there once.)
        names: Where the file names things otherwise: `{"old/prefix": "new/prefix"}`, or a function from a name in the file
            to that which the same format gives it for this model (`None` for a weight to be left out). The report and the
            errors show the names. Of two prefixes the longer one counts.
        strict: bool. If false, what fits is restored, and the rest is listed. Defaults to `True`.
        verbose: bool. Whether the report is printed. Defaults to `True`.

    Returns:
        What was and was not restored.

    Raises:
        WeightsError: The model has no weights yet, or the file does not match it: with each weight that is missing, left
            over or of another shape. Nothing is changed then.
        DataError: The file is missing, damaged or of another kind.

    Example:

    >>> model = kser_tf.attach(model, at_output={"movie_id": store})
    >>> report = kser_tf.warm_start(model, "backbone.weights.h5")
    >>> report.kept  # the extractor
    """
    weights = model_weights(model) if model.built else []
    if not weights:
        raise WeightsError("the model has no weights yet: call it on a batch once, then restore them.")
    with opened(path) as file:
        places = file.places(model, _renaming(names))
        found = {
            id(weight.variable): places[id(weight.variable)] for weight in weights if id(weight.variable) in places
        }
        misshaped = [w for w in weights if id(w.variable) in found and w.shape != file.shapes[found[id(w.variable)]]]
        missing = [weight for weight in weights if id(weight.variable) not in found]
        unused = {name: shape for name, shape in file.shapes.items() if name not in found.values()}
        if names is not None and not isinstance(names, Mapping):
            unused = {name: shape for name, shape in unused.items() if names(name) is not None}
        if strict:
            _require_match(model, file, weights, missing, misshaped, found, unused)
        elif len(misshaped) == len(found):
            raise WeightsError(f"{file.path}: nothing in it fits the model. {_listing(file, weights, unused)}")
        refused = {id(weight.variable) for weight in misshaped}
        restored = [w for w in weights if id(w.variable) in found and id(w.variable) not in refused]
        labels = _labels(weights)
        _assign([(weight.variable, file.read(found[id(weight.variable)])) for weight in restored])
        unused |= {found[id(w.variable)]: file.shapes[found[id(w.variable)]] for w in misshaped}
        restored_ids = {id(weight.variable) for weight in restored}
        report = WarmStartReport(
            path=file.path,
            restored={labels[id(w.variable)]: w.shape for w in restored},
            kept={labels[id(w.variable)]: w.shape for w in weights if id(w.variable) not in restored_ids},
            unused=unused,
            sources={labels[id(w.variable)]: found[id(w.variable)] for w in restored},
        )
    if verbose:
        print(report)
    return report


def _renaming(names: Mapping[str, str] | Callable[[str], str | None] | None) -> Rename | None:
    if names is None or not isinstance(names, Mapping):
        return names
    prefixes = sorted(names, key=len, reverse=True)

    def rename(name: str) -> str:
        for prefix in prefixes:
            if name == prefix or name.startswith(prefix.rstrip("/") + "/"):
                return names[prefix].rstrip("/") + name[len(prefix.rstrip("/")) :]
        return name

    return rename


def _require_match(
    model: Any,
    file: WeightFile,
    weights: list[ModelWeight],
    missing: list[ModelWeight],
    misshaped: list[ModelWeight],
    found: Mapping[int, str],
    unused: Shapes,
) -> None:
    extractors = {id(weight) for layer in extractor_layers(model) for weight in layer.weights}
    ours = [weight for weight in weights if id(weight.variable) in extractors]
    if ours and not any(id(weight.variable) in found for weight in ours):  # the file is of a plain backbone
        missing = [weight for weight in missing if id(weight.variable) not in extractors]
    if not (missing or misshaped or unused):
        return
    labels = _labels(weights)
    lines = []
    for weight in missing:
        label = labels[id(weight.variable)]
        near = _near(label, weight.shape, unused)
        lines.append(f"  not in the file: {label} {_shape(weight.shape)}{near}")
    for weight in misshaped:
        name = found[id(weight.variable)]
        lines.append(
            f"  other shape: {labels[id(weight.variable)]} is {_shape(weight.shape)}, and {name} in the file is "
            f"{_shape(file.shapes[name])}"
        )
    lines += [f"  not in the model: {name} {_shape(shape)}" for name, shape in unused.items()]
    raise WeightsError(
        f"{file.path} does not match the model; nothing was restored.\n"
        + "\n".join(lines)
        + f"\nMend: {file.hint}{_mend(ours, missing, misshaped, unused)}"
    )


def _mend(
    extractors: list[ModelWeight], missing: list[ModelWeight], misshaped: list[ModelWeight], unused: Shapes
) -> str:
    if misshaped:
        return (
            "Make the model with the sizes, vocabularies and options that it was trained with; or restore what fits with "
            "strict=False."
        )
    if missing and unused:
        return (
            "Say with names={'name/in/the/file': 'name/in/the/model'} what is what, in the names that this format has; or "
            "restore what fits with strict=False."
        )
    if missing:
        return "Take the file of a model that has these layers, or restore what there is with strict=False."
    if extractors:
        return "Attach as the file's model was attached, or leave out what is not in the model with strict=False."
    return (
        "If these are of an attached model, attach first, as that was; or leave out what is not in the model with "
        "strict=False."
    )


def _near(label: str, shape: tuple[int, ...], unused: Shapes) -> str:
    """The weights of the file that may be meant: of the same shape, those of the nearest names."""
    alike = [name for name, other in unused.items() if other == shape]
    near = difflib.get_close_matches(label, alike, _NEAR_MISSES, cutoff=0.0)
    return f" (of this shape there: {', '.join(near)})" if near else ""


def _listing(file: WeightFile, weights: list[ModelWeight], unused: Shapes) -> str:
    theirs = ", ".join(f"{name} {_shape(shape)}" for name, shape in file.shapes.items()) or "nothing"
    ours = ", ".join(f"{label} {_shape(w.shape)}" for w, label in zip(weights, _labels(weights).values(), strict=True))
    return f"The file has: {theirs}. The model has: {ours}."


def _labels(weights: list[ModelWeight]) -> dict[int, str]:
    """A name for each weight that no other has: Keras 2 gives some names twice."""
    labels: dict[int, str] = {}
    taken: dict[str, int] = {}
    for weight in weights:
        taken[weight.name] = taken.get(weight.name, 0) + 1
        labels[id(weight.variable)] = weight.name if taken[weight.name] == 1 else f"{weight.name}#{taken[weight.name]}"
    return labels


def _assign(values: list[tuple[Any, np.ndarray]]) -> None:
    """Sets all variables, or none."""
    before = [(variable, np.array(variable)) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(tf.cast(value, variable.dtype))
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
