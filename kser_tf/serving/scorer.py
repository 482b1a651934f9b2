"""The function that is served: from raw inputs by name to probability and logit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import ExportError
from kser_tf.serving import contract

# A probability this close to 0 or 1 gives no meaningful logit in float32, and 0 and 1 themselves give infinity.
SMALLEST_PROBABILITY = 1e-7
# Rows made up to try a model with that comes without examples: more than one, so that a lost batch dimension shows.
_MADE_UP_ROWS = 2
# TensorFlow makes underscores of all other characters in an argument's name, and then does not find the input again.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

Features = Mapping[str, Any]


class Scorer:
    """Calls a model with raw inputs, and makes `probability` and `logit` of what it returns.

    Args:
        model: As for `export`, like all that follow.
        inputs: For each input its `tf.TensorSpec`.
        output: What a tensor that the model returns is.
        preprocess: From the inputs to what is called.
        serve: What is called.
        defaults: For inputs what stands for "no value" in a `tf.Example` that leaves them out.

    Raises:
        ExportError: An argument is not as `export` tells.
    """

    def __init__(
        self,
        model: Any,
        *,
        inputs: Mapping[str, tf.TensorSpec] | None,
        output: str,
        preprocess: Callable[[Features], Any] | None,
        serve: Callable[[Any], Any] | None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if output not in contract.OUTPUTS:
            raise ExportError(f"`output` must be one of {', '.join(contract.OUTPUTS)}. Received: output={output!r}")
        says_inputs = hasattr(model, "serving_inputs") and hasattr(model, "serve")
        if inputs is None and not says_inputs:
            raise ExportError(
                "`inputs` is missing: say for each input of the model its name, dtype and shape, such as "
                'inputs={"movie_id": tf.TensorSpec((None,), tf.string)}.'
            )
        self.specs = _checked(model.serving_inputs() if inputs is None else inputs)
        self.nan_is_missing = inputs is None
        # By these, knowledge comes with a request. They go straight to the model's own `serve`.
        takes_knowledge = inputs is None and preprocess is None and serve is None and hasattr(model, "knowledge_inputs")
        self.knowledge_specs: dict[str, tf.TensorSpec] = model.knowledge_inputs() if takes_knowledge else {}
        if defaults is None and inputs is None and hasattr(model, "serving_defaults"):
            defaults = model.serving_defaults()
        self.defaults = dict(defaults or {})
        if unknown := sorted(self.defaults.keys() - self.specs.keys()):
            raise ExportError(f"`defaults` names {', '.join(unknown)}, which are no inputs: {', '.join(self.specs)}.")
        self.output = output
        # Whatever the function touches is held by one of them.
        self.roots = [root for root in (model, preprocess, serve) if root is not None]
        self._preprocess = preprocess
        if serve is None and says_inputs:
            serve = model.serve
        self._serve = serve or (lambda given: model(given, training=False))

    @property
    def inputs(self) -> dict[str, Any]:
        """Dtype and shape of each input."""
        return {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in self.specs.items()}

    def __call__(self, features: Features) -> dict[str, Any]:
        """Returns `probability` and `logit`, each `(batch,)` float32, of a dict of tensors."""
        given = dict(features)
        result = self._serve(self._preprocess(given) if self._preprocess else given)
        if isinstance(result, Mapping):
            if not set(contract.OUTPUTS) <= set(result):
                raise ExportError(
                    f"the model returns a dict of {', '.join(map(repr, result))}, and not of "
                    f"{' and '.join(map(repr, contract.OUTPUTS))}. Say which of them is the score, for instance "
                    'serve=lambda features: model(features)["ctr"].'
                )
            scores = {name: _one_a_row(result[name], name) for name in contract.OUTPUTS}
        else:
            scores = _both(_one_a_row(result, self.output), self.output)
        return {name: tf.identity(scores[name], name=name) for name in contract.OUTPUTS}

    def try_out(self, rows: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Returns the model's own answers to rows, or to made-up ones, from an ordinary call.

        Raises:
            ExportError: The call fails, or would make new weights.
        """
        rows = self._made_up_rows() if rows is None else rows
        tensors = {name: tf.constant(rows[name], spec.dtype) for name, spec in self.specs.items()}
        try:
            with _no_new_variables():
                answers = self(tensors)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"the model cannot be called with the inputs {', '.join(self.specs)}: {type(error).__name__}: {error}\n"
                "If it takes something else (one tensor, a label beside the features), say with `preprocess` or "
                "`serve` how it is called."
            ) from error
        return {name: answer.numpy() for name, answer in answers.items()}

    def _made_up_rows(self) -> dict[str, np.ndarray]:
        shapes = {name: [_MADE_UP_ROWS, *(size or 1 for size in spec.shape[1:])] for name, spec in self.specs.items()}
        return {name: tf.zeros(shapes[name], spec.dtype).numpy() for name, spec in self.specs.items()}


def _checked(inputs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.TensorSpec]:
    """Returns the specs, each with its key as its name."""
    if not inputs:
        raise ExportError("`inputs` is empty: name at least one input.")
    by_lower_case: dict[str, str] = {}
    for name, spec in inputs.items():
        if not _INPUT_NAME.fullmatch(name):
            raise ExportError(
                f"input `{name}`: a name begins with a letter and goes on with letters, digits and underscores, all of "
                "them ASCII; TensorFlow keeps no other. Rename it, and give the model its own name with `preprocess`."
            )
        if name.lower() in contract.NOT_INPUTS:
            raise ExportError(
                f"input `{name}`: a request has no label and no weight. Leave it out of `inputs`; if the model takes "
                "it, call the model without it in `serve`. (A feature of this name needs another one.)"
            )
        if other := by_lower_case.get(name.lower()):
            raise ExportError(
                f"inputs `{other}` and `{name}` differ in case alone; TensorFlow mixes them up. Rename one."
            )
        by_lower_case[name.lower()] = name
        if not isinstance(spec, tf.TensorSpec) or spec.dtype.name not in contract.DTYPES:
            raise ExportError(
                f"input `{name}`: expected a tf.TensorSpec of dtype {', '.join(contract.DTYPES)}. Received: {spec!r}"
            )
        if not spec.shape.rank or spec.shape[0] is not None:
            raise ExportError(
                f"input `{name}`: the first dimension is the batch, and must be None. Received: shape={spec.shape}"
            )
    return {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()}


def _one_a_row(scores: Any, name: str) -> Any:
    """`(batch,)` float32 of `(batch,)` or `(batch, 1)`."""
    scores = tf.convert_to_tensor(scores)
    shape = scores.shape
    if not scores.dtype.is_floating or shape.rank not in (1, 2) or (shape.rank == 2 and shape[1] != 1):
        raise ExportError(
            f"the model's {name} must be floating point of shape (batch,) or (batch, 1). Received: {scores.dtype.name} "
            f"of shape {shape}. Choose one score a row with `serve`."
        )
    return tf.cast(scores if shape.rank == 1 else scores[:, 0], contract.OUTPUT_DTYPE)


def _both(scores: Any, kind: str) -> dict[str, Any]:
    if kind == contract.LOGIT:
        return {contract.PROBABILITY: tf.sigmoid(scores), contract.LOGIT: scores}
    safe = tf.clip_by_value(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return {contract.PROBABILITY: scores, contract.LOGIT: tf.math.log(safe) - tf.math.log1p(-safe)}


@contextlib.contextmanager
def _no_new_variables() -> Iterator[None]:
    """Refuses variables that are made in the block: those of a model that was never built, and so never trained."""

    def refuse(next_creator: Any, **arguments: Any) -> Any:
        raise ExportError(
            f"the model is not built: its variable `{arguments.get('name')}` would be made now, with random values. "
            "Train the model, or call it on a batch and load its weights, before it is exported."
        )

    with tf.variable_creator_scope(refuse):
        yield
