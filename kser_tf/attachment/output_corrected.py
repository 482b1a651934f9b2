"""OutputCorrected: what a model's class becomes when knowledge is attached at its output."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from kser_tf.attachment.attached_model import ATTRIBUTE, backbone_config, trainable_of, with_trainable
from kser_tf.attachment.before_attaching import remember
from kser_tf.attachment.sub_layers import delete_layer, set_layer
from kser_tf.compiled import forget_traces
from kser_tf.layers import OutputCorrection, Past
from kser_tf.layers.statistics_at_hand import training_step

OUTPUT_KINDS = ("logit", "probability", "score")
CORRECTION = "output_correction"

# The logit that a probability stands for, where it is needed as context.
_SMALLEST_PROBABILITY = 1e-7
# exp of twice this is still a number in float32. A correction of a probability counts up to here: far beyond what moves
# a probability that float32 can tell from 0 and 1.
_LARGEST_CORRECTION = 40.0

# The training and test steps that run in this thread, each `[model, whether the model was called in it]`.
_steps = threading.local()


@dataclass(frozen=True)
class HistoryFeatures:
    """The features that tell what a user did before.

    Args:
        ids: Which holds the ids.
        feedback: Which tell what the user thought of each.
    """

    ids: str | int
    feedback: tuple[str | int, ...] = ()


@dataclass(kw_only=True)
class CorrectionPlan:
    """Where the correction of a model's output takes its inputs from, and where it goes.

    Args:
        features: For each entity's name its feature: a key of the model's features, an index of its positional inputs,
            or the name of an argument of its `call`.
        histories: For the entities' names whose history is given, its features.
        context: Likewise the features that the correction sees as numbers.
        backbone_logit: bool. Whether it sees the backbone's own logit.
        output: Which of the model's outputs is corrected: a key, an index, or `None` where it has only one.
        output_kind: `"logit"`, `"probability"` or `"score"`.
        stores: For each entity's name its store; none after loading from a file.
        calls: int. How often the model was called with it, traces included.
    """

    features: Mapping[str, str | int]
    histories: Mapping[str, HistoryFeatures] = field(default_factory=dict)
    context: tuple[str | int, ...] = ()
    backbone_logit: bool = False
    output: str | int | None = None
    output_kind: str = "logit"
    stores: dict[str, Any] = field(default_factory=dict)
    calls: int = 0


@tf.keras.utils.register_keras_serializable("kser_tf")
class OutputCorrected:
    """The part that knowledge at the output adds to the class of a model; the rest is the user's own class.

    An object of such a class is the user's model itself, with one more sub-layer, `output_correction`. Its `call` adds
    the correction to what the user's `call` returns; `compute_loss`, `train_step`, metrics and everything else are the
    user's, and so are the names and the order of the weights.

    A backbone without a trainable weight is called as in inference (`training=False`), so that its Dropout is inactive:
    the extractor then learns to correct the very predictions that it will correct when served. As soon as one of the
    backbone's weights is trained, `training` is passed on.
    """

    output_correction: OutputCorrection
    _correction_plan: CorrectionPlan

    def call(self, *args: Any, **kwargs: Any) -> Any:
        for step in _running_steps():
            if step[0] is self:
                step[1] = True
        plan = self._correction_plan
        plan.calls += 1
        # Before the backbone is called: it may pop features from the dict.
        given = _arguments(type(self), args, kwargs)
        ids = {name: _feature(self, given, feature) for name, feature in plan.features.items()}
        numbers = [(name, _feature(self, given, name)) for name in plan.context]
        histories = {
            name: [(feature, _feature(self, given, feature)) for feature in (history.ids, *history.feedback)]
            for name, history in plan.histories.items()
        }
        answer = self._call_backbone(*args, **kwargs)
        output = _chosen(answer, plan.output)
        return _replaced(answer, plan.output, self._corrected(output, ids, numbers, histories))

    def _call_backbone(self, *args: Any, **kwargs: Any) -> Any:
        backbone_call = super().call  # type: ignore[misc]
        if self._backbone_is_trained():
            return backbone_call(*args, **kwargs)
        given = _arguments(type(self), args, kwargs)
        if "training" in given:
            given["training"] = False
        return _InInference()(tf.zeros(()), function=lambda: backbone_call(**given), training=False)

    def _backbone_is_trained(self) -> bool:
        attached = [self.output_correction, *([getattr(self, ATTRIBUTE)] if hasattr(self, ATTRIBUTE) else [])]
        extractors = {id(weight) for layer in attached for weight in layer.trainable_weights}
        return any(id(weight) not in extractors for weight in self.trainable_weights)  # type: ignore[attr-defined]

    def _corrected(
        self,
        output: Any,
        ids: Mapping[str, Any],
        numbers: list[tuple[str | int, Any]],
        histories: Mapping[str, list[tuple[str | int, Any]]],
        *,
        flattened: bool = False,
    ) -> Any:
        plan = self._correction_plan
        if not tf.is_tensor(output) or isinstance(output, tf.RaggedTensor | tf.SparseTensor):
            raise ValueError(
                f"the output to be corrected must be one dense tensor. Received: {type(output).__name__}. Name it with "
                "`output`: attach(model, at_output=..., output='ctr'), or output=2 of a tuple."
            )
        if not output.dtype.is_floating:
            raise ValueError(f"the output to be corrected must be floating point. Received: {output.dtype.name}")
        if output.shape.rank is None:  # tf.squeeze without an axis: as many scores as ids, however they lie
            ids, numbers = _flat_inputs(ids, numbers)
            corrected = self._corrected(tf.reshape(output, [-1]), ids, numbers, histories, flattened=True)
            return tf.reshape(corrected, tf.shape(output))
        _require_one_entity_a_score(ids, output)
        context = [tf.cast(_spread(f"feature {name!r}", value, output), tf.float32) for name, value in numbers]
        if plan.backbone_logit:
            context.append(_logit(output, plan.output_kind))
        several = flattened or any(size != 1 for size in output.shape[1:])
        flat = {name: tf.reshape(_spread(f"feature {name!r}", value, output), [-1]) for name, value in ids.items()}
        correction = self.output_correction(
            flat,
            context=tf.stack([tf.reshape(number, [-1]) for number in context], -1) if context else None,
            histories={
                name: _history(features, tf.size(output) if several else None) for name, features in histories.items()
            },
        )
        return _added(output, tf.reshape(correction, tf.shape(output)), plan.output_kind)

    def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
        # Every `fit` begins here, and weights may have been loaded since the last one.
        self.output_correction.refresh()
        return super().make_train_function(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with _correction_used(self, "compute_loss"):
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        with _correction_used(self, "train_step"), training_step():
            return super().train_step(*args, **kwargs)  # type: ignore[misc]

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with _correction_used(self, "test_step"):
            return super().test_step(*args, **kwargs)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        plan = self._correction_plan
        trainable = trainable_of(self)
        with _without_correction(self) as correction:
            backbone = backbone_config(self)
        return {
            "backbone": backbone,
            "correction": tf.keras.utils.serialize_keras_object(correction),
            "trainable": trainable,
            "plan": {
                "features": [[name, feature] for name, feature in plan.features.items()],
                "histories": [[name, history.ids, *history.feedback] for name, history in plan.histories.items()],
                "context": list(plan.context),
                "backbone_logit": plan.backbone_logit,
                "output": plan.output,
                "output_kind": plan.output_kind,
            },
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """Makes the backbone and attaches the correction, which has no store yet: `kser_tf.connect` gives it one."""
        backbone = tf.keras.utils.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        correction = tf.keras.utils.deserialize_keras_object(config["correction"])
        plan = dict(config["plan"])
        plan["features"] = dict(plan["features"])
        plan["histories"] = {
            name: HistoryFeatures(ids, tuple(feedback)) for name, ids, *feedback in plan.get("histories", [])
        }
        plan["context"] = tuple(plan["context"])
        correction.build()
        return with_trainable(put_on(backbone, correction, CorrectionPlan(**plan)), config["trainable"])

    def get_build_config(self) -> None:
        """The backbone is built from its own, within `from_config`."""
        return None


class _InInference(tf.keras.layers.Layer):
    """Calls a function such that the layers in it do what they do in inference, whatever is around."""

    def call(self, _: Any, function: Any, training: bool = False) -> Any:
        return function()


# Keras 2 looks there for a registered class whose module has not been imported yet.
globals()["kser_tf>OutputCorrected"] = OutputCorrected


def put_on(model: Any, correction: OutputCorrection, plan: CorrectionPlan) -> Any:
    """Makes `model` one whose output is corrected. `take_off` is the way back."""
    remember(model)
    _put_on(model, correction, plan)
    forget_traces(model)
    return model


def take_off(model: Any) -> None:
    """Undoes `put_on`, which was the last thing that was done to the model's class."""
    forget_traces(model)
    _take_off(model)


def _put_on(model: Any, correction: OutputCorrection, plan: CorrectionPlan) -> None:
    backbone_class: Any = type(model)
    model.__class__ = _corrected_class(backbone_class)
    set_layer(model, CORRECTION, correction)
    model._correction_plan = plan


def _take_off(model: Any) -> OutputCorrection:
    correction = model.output_correction
    delete_layer(model, CORRECTION)
    del model._correction_plan
    model.__class__ = type(model).backbone_class
    return correction


@functools.cache
def _corrected_class(backbone_class: type) -> type:
    made = type(backbone_class)(
        backbone_class.__name__,
        (OutputCorrected, backbone_class),
        {"__module__": __name__, "__doc__": backbone_class.__doc__, "backbone_class": backbone_class},
    )
    return tf.keras.utils.register_keras_serializable("kser_tf", "OutputCorrected")(made)


@contextlib.contextmanager
def _without_correction(model: Any) -> Iterator[OutputCorrection]:
    """Makes the model the backbone for the block: to those who describe it, not to those who call it."""
    plan = model._correction_plan
    correction = _take_off(model)
    try:
        yield correction
    finally:
        _put_on(model, correction, plan)


@contextlib.contextmanager
def _correction_used(model: Any, method: str) -> Iterator[None]:
    """Refuses a step that goes past the model's `call`, and so past the correction."""
    steps = _running_steps()
    outer = next((step for step in steps if step[0] is model), None)
    step = outer or [model, False]
    if outer is None:
        steps.append(step)
    try:
        yield
        if not step[1]:
            raise ValueError(
                f"`{type(model).backbone_class.__name__}.{method}` does not call the model itself (`self(features)`), but "
                "its sub-layers: the correction at the output would not be in the loss, and never be trained. Have it "
                "call the model, or attach to a sub-model that it calls, or into an embedding: "
                "kser_tf.attach(model, into={...})."
            )
    finally:
        if outer is None:
            steps.remove(step)


def _running_steps() -> list[list[Any]]:
    if not hasattr(_steps, "running"):
        _steps.running = []
    return _steps.running


def past_of(model: OutputCorrected, name: str, inputs: Any, labels: Any) -> Past:
    """Returns what a batch tells of an entity's candidates and their history, a row for each candidate.

    Args:
        model: Whose output is corrected.
        name: The entity's, which has a history.
        inputs: What the model is called with.
        labels: One for each candidate.
    """
    plan, layer = model._correction_plan, model.output_correction.histories[name]
    given, features = _arguments(type(model), (inputs,), {}), plan.histories[name]
    ids = tf.reshape(_feature(model, given, plan.features[name]), [-1])
    told = [(feature, _feature(model, given, feature)) for feature in (features.ids, *features.feedback)]
    return layer.past(layer.rows(ids), *_history(told, tf.size(ids)), tf.reshape(labels, [-1]))


def _arguments(corrected_class: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of the backbone's `call`, by name."""
    signature = inspect.signature(corrected_class.backbone_class.call)
    parameters = list(signature.parameters.values())[1:]  # without `self`
    bound = signature.replace(parameters=parameters).bind(*args, **kwargs)
    arguments = dict(bound.arguments)
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
        elif parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise ValueError(
                f"the model's `call` takes `{parameter}`: an output can be corrected where each argument has a name, "
                "such as `call(self, features)`."
            )
    return arguments


def _feature(model: Any, given: Mapping[str, Any], feature: str | int) -> Any:
    """Finds a feature among the arguments of a call."""
    inputs = next(iter(given.values()))
    names = input_names(model)
    if isinstance(inputs, Mapping):
        found = _in(inputs, feature)
        if found is not None:
            return found
    elif isinstance(inputs, list | tuple):
        place = names.index(feature) if names and feature in names else feature
        if isinstance(place, int) and -len(inputs) <= place < len(inputs):
            return inputs[place]
    elif names == [feature] or feature == 0:
        return inputs
    if feature in given and feature != "training":
        return given[str(feature)]
    if isinstance(inputs, Mapping):
        there = f"the features {', '.join(map(repr, inputs))}"
    elif isinstance(inputs, list | tuple):
        there = f"{len(inputs)} inputs{f', {names}' if names else ''}, counted from 0"
    else:
        there = f"the arguments {', '.join(map(repr, given))}"
    raise ValueError(
        f"the model was called without the feature {feature!r}. It was called with {there}. Name one of these in "
        "`at_output`, or add the feature to the model's inputs."
    )


def _in(features: Any, feature: str | int) -> Any:
    """A feature in a dict, or in a dict in it: `"sparse_features.movie_id"`."""
    if feature in features:
        return features[feature]
    outer, dot, inner = str(feature).partition(".")
    return _in(features[outer], inner) if dot and isinstance(features.get(outer), Mapping) else None


def input_names(model: Any) -> list[str]:
    """Names of the inputs of a functional model; none for other models."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return []
    names = getattr(model, "input_names", None)  # Keras 2
    return list(names) if names else [tensor.name for tensor in inputs]


def _chosen(answer: Any, output: str | int | None) -> Any:
    if output is None:
        if isinstance(answer, Mapping | list | tuple):
            there = list(answer) if isinstance(answer, Mapping) else f"0 to {len(answer) - 1}"
            raise ValueError(
                f"the model has several outputs, {there}: say with `output` which of them is the ranking's score."
            )
        return answer
    several: Any = answer if isinstance(answer, Mapping | list | tuple) else {}
    try:
        return several[output]
    except (KeyError, IndexError, TypeError):
        return _no_such(answer, output)


def _no_such(answer: Any, output: str | int) -> Any:
    if isinstance(answer, Mapping):
        there = f"the outputs {', '.join(map(repr, answer))}"
    elif isinstance(answer, list | tuple):
        there = f"{len(answer)} outputs, counted from 0"
    else:
        there = "one output: leave `output` out"
    raise ValueError(f"the model has no output {output!r}. It has {there}.")


def _replaced(answer: Any, output: str | int | None, value: Any) -> Any:
    if output is None:
        return value
    if isinstance(answer, Mapping):
        return {name: value if name == output else other for name, other in answer.items()}
    values = list(answer)
    values[int(output)] = value
    if hasattr(answer, "_fields"):  # a named tuple
        return type(answer)(*values)
    return type(answer)(values) if type(answer) in (list, tuple) else tuple(values)


def _require_one_entity_a_score(ids: Mapping[str, Any], output: Any) -> None:
    """Refuses an output with more scores a row than entities: several classes, or a list without the list's ids."""
    scores = _without_ones(output.shape)
    shapes = {name: _without_ones(tf.convert_to_tensor(value).shape) for name, value in ids.items() if not _odd(value)}
    if shapes and all(len(shape) < len(scores) for shape in shapes.values()) and scores[-1] is not None:
        raise ValueError(
            f"the output to be corrected has shape {output.shape}, and the ids {shapes}: there is to be one entity for "
            "each score. Choose one score a row with `output`, or name the feature that holds the list's ids."
        )


def _flat_inputs(ids: Mapping[str, Any], numbers: list[tuple[str | int, Any]]) -> tuple[Any, Any]:
    flat = {name: value if _odd(value) else tf.reshape(value, [-1]) for name, value in ids.items()}
    return flat, [(name, value if _odd(value) else tf.reshape(value, [-1])) for name, value in numbers]


def _odd(value: Any) -> bool:
    return isinstance(value, tf.RaggedTensor | tf.SparseTensor)


def _without_ones(shape: Any) -> tuple[int | None, ...]:
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _spread(what: str, values: Any, output: Any) -> Any:
    """`values` in the shape of the output: those of a row for all of its scores."""
    if _odd(values):
        raise ValueError(
            f"{what} is a {type(values).__name__}; at the output there is one value for each score. Several ids a row "
            "can be attached into their embedding: kser_tf.attach(model, into={...})."
        )
    values = tf.convert_to_tensor(values)
    rank = output.shape.rank
    while values.shape.rank > rank and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape.rank > rank:
        raise ValueError(
            f"{what} has shape {values.shape}, and the output {output.shape}: there is to be one value for each score. "
            "Several ids a row can be attached into their embedding: kser_tf.attach(model, into={...})."
        )
    while values.shape.rank < rank:
        values = values[..., None]
    for size, scores in zip(values.shape, output.shape, strict=True):
        if None not in (size, scores) and size not in (1, scores):
            raise ValueError(
                f"{what} has shape {values.shape}, and the output {output.shape}: there is to be one value for each "
                "score. Several ids a row can be attached into their embedding: kser_tf.attach(model, into={...})."
            )
    return tf.broadcast_to(values, tf.shape(output))


def _history(features: list[tuple[str | int, Any]], scores: Any | None) -> tuple[Any, list[Any]]:
    """The ids of a history and its feedback, `(scores, length)` each, or ragged.

    `scores` is how many there are in all, where a row may have several; those of a row have one history.
    """
    (first, ids), *_ = features
    ready: list[Any] = []
    for name, given in features:
        if isinstance(given, tf.SparseTensor):
            raise ValueError(f"the history's feature {name!r} is a SparseTensor. Pad it: tf.sparse.to_dense(...).")
        value = given if isinstance(given, tf.RaggedTensor) else tf.convert_to_tensor(given)
        if not isinstance(value, tf.RaggedTensor) and value.shape.rank == 3 and value.shape[-1] == 1:
            value = value[..., 0]
        if value.shape.rank != 2:
            raise ValueError(
                f"the history's feature {name!r} must be (batch, length), or ragged. Received: shape {value.shape}"
            )
        if isinstance(value, tf.RaggedTensor) != isinstance(ids, tf.RaggedTensor) or not value.shape.is_compatible_with(
            ready[0].shape if ready else value.shape
        ):
            raise ValueError(
                f"the history's feature {name!r} must be shaped as {first!r}, which holds its ids. Received: "
                f"{_shape_of(value)} and {_shape_of(ready[0])}"
            )
        ready.append(value)
    if scores is not None:
        rows = ready[0].nrows(tf.int32) if isinstance(ready[0], tf.RaggedTensor) else tf.shape(ready[0])[0]
        row_of_score = tf.range(scores) // tf.maximum(scores // tf.maximum(rows, 1), 1)
        ready = [tf.gather(value, row_of_score) for value in ready]
    return ready[0], ready[1:]


def _shape_of(value: Any) -> str:
    return f"{'ragged ' if isinstance(value, tf.RaggedTensor) else ''}shape {value.shape}"


def _logit(output: Any, kind: str) -> Any:
    output = tf.stop_gradient(tf.cast(output, tf.float32))
    if kind != "probability":
        return output
    safe = tf.clip_by_value(output, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return tf.math.log(safe) - tf.math.log1p(-safe)


def _added(output: Any, correction: Any, kind: str) -> Any:
    """The output with the correction of its logit, in the output's dtype."""
    wide = tf.cast(output, tf.float32) if output.dtype.size < tf.float32.size else output
    correction = tf.cast(correction, wide.dtype)
    if kind != "probability":
        return tf.cast(wide + correction, output.dtype)
    # sigmoid(logit(p) + c) = p e^c / (1 - p + p e^c), written as p and a difference that is 0 where c is: there and back
    # through the logit would not give the very bits of p.
    correction = tf.clip_by_value(correction, -_LARGEST_CORRECTION, _LARGEST_CORRECTION)
    other = 1 - wide
    difference = wide * other * tf.math.expm1(correction) / (other + wide * tf.exp(correction))
    return tf.cast(tf.clip_by_value(wide + difference, 0.0, 1.0), output.dtype)
