"""The signatures of an exported model: what each takes, what it returns, and rows to try it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import ExportError
from kser_tf.serving import contract
from kser_tf.serving.baking import Bakeable
from kser_tf.serving.scorer import Features, Scorer
from kser_tf.serving.tf_examples import serialized_examples

# The kinds that can be left out; `serving_default` cannot.
OPTIONAL_SIGNATURES = (contract.WITH_KNOWLEDGE, contract.EXAMPLES, contract.EMBEDDINGS)

# What `tf.io.parse_example` reads, and what else fits into it.
_PARSED_AS = {
    tf.string: tf.string,
    tf.float32: tf.float32,
    tf.float64: tf.float32,
    **dict.fromkeys((tf.bool, tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32, tf.int64), tf.int64),
}
# The one class that `classify` scores: the row is clicked.
CLICKED = "1"
# In rows that try out `with_knowledge`, each third row comes without, so that the store's is used.
_WITHOUT_KNOWLEDGE = 3
_EMBEDDING_ROWS = 512


@dataclass(frozen=True)
class Signature:
    """One signature.

    Args:
        name: str. Its name in the SavedModel.
        specs: For each input its `tf.TensorSpec`.
        call: From the inputs to the outputs, dicts of tensors.
        method: str. The API of TF Serving that it is for: `"predict"`, `"classify"` or `"regress"`.
        rows: For each input values to try it with; `None` for none.
    """

    name: str
    specs: dict[str, tf.TensorSpec]
    call: Callable[[Features], dict[str, Any]]
    method: str = "predict"
    rows: dict[str, np.ndarray] | None = None

    def answers(self) -> dict[str, np.ndarray]:
        """Returns the outputs for `rows`, from an ordinary call, as the model answers now."""
        assert self.rows is not None
        given = {name: tf.constant(self.rows[name], spec.dtype) for name, spec in self.specs.items()}
        answers = {name: answer.numpy() for name, answer in self.call(given).items()}
        # Strings come as objects, which are not stored without pickle.
        return {name: a.astype(np.bytes_) if a.dtype == object else a for name, a in answers.items()}


def make_signatures(
    scorer: Scorer, bakeables: Sequence[Bakeable], rows: Mapping[str, np.ndarray] | None, kinds: Sequence[str] | None
) -> tuple[list[Signature], dict[str, str]]:
    """Returns the signatures of a model, `serving_default` first, and why those that are missing are.

    Args:
        scorer: What scores.
        bakeables: What has embeddings to be looked at.
        rows: Example rows for `serving_default`; `None` for none.
        kinds: Which of `OPTIONAL_SIGNATURES` to make; `None` for all that the model can have.

    Raises:
        ExportError: `kinds` names another, or one that the model cannot have.
    """
    if kinds is not None and (isinstance(kinds, str) or set(kinds) - set(OPTIONAL_SIGNATURES)):
        raise ExportError(f"`signatures` is a list of {', '.join(OPTIONAL_SIGNATURES)}. Received: {kinds!r}")
    found = [Signature(contract.SIGNATURE, scorer.specs, scorer, rows=None if rows is None else dict(rows))]
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], list[Signature]]] = {
        contract.WITH_KNOWLEDGE: lambda: _with_knowledge(scorer, rows),
        contract.EXAMPLES: lambda: _examples(scorer, rows),
        contract.EMBEDDINGS: lambda: _embeddings(bakeables),
    }
    for kind in OPTIONAL_SIGNATURES:
        if kinds is not None and kind not in kinds:
            missing[kind] = "not asked for"
            continue
        try:
            found += makers[kind]()
        except _NotPossibleError as reason:
            if kinds is not None:
                raise ExportError(f"the signature `{kind}` cannot be written: {reason}") from None
            missing[kind] = str(reason)
    return found, missing


class _NotPossibleError(Exception):
    """Why a model cannot have a signature."""


def _with_knowledge(scorer: Scorer, rows: Mapping[str, np.ndarray] | None) -> list[Signature]:
    given = scorer.knowledge_specs
    if not given:
        raise _NotPossibleError("the model takes no knowledge from a request (it has no `knowledge_inputs()`)")
    if clash := sorted(given.keys() & scorer.specs.keys()):
        raise _NotPossibleError(f"features have the names of its further inputs, {', '.join(clash)}")
    example = None
    if rows is not None:
        generator = np.random.default_rng(0)
        example = dict(rows)
        count = len(next(iter(rows.values())))
        for name, spec in given.items():
            shape = (count, *spec.shape[1:])
            if spec.dtype == tf.bool:
                mask = generator.random(shape) < 0.8
                mask[::_WITHOUT_KNOWLEDGE] = False
                example[name] = mask
            else:
                vectors = generator.normal(size=shape)
                example[name] = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return [Signature(contract.WITH_KNOWLEDGE, {**scorer.specs, **given}, scorer, rows=example)]


def _examples(scorer: Scorer, rows: Mapping[str, np.ndarray] | None) -> list[Signature]:
    features = {name: _parsed_feature(name, spec, scorer.defaults) for name, spec in scorer.specs.items()}
    specs = {contract.EXAMPLES_INPUT: tf.TensorSpec([None], tf.string, name=contract.EXAMPLES_INPUT)}
    example = None
    if rows is not None:
        ragged = [name for name, spec in scorer.specs.items() if _is_ragged(spec)]
        example = {contract.EXAMPLES_INPUT: serialized_examples(rows, defaults=scorer.defaults, ragged=ragged)}

    def score(given: Features) -> dict[str, Any]:
        parsed = tf.io.parse_example(given[contract.EXAMPLES_INPUT], features)
        return scorer({name: tf.cast(parsed[name], spec.dtype) for name, spec in scorer.specs.items()})

    def classify(given: Features) -> dict[str, Any]:
        probability = score(given)[contract.PROBABILITY][:, None]
        return {"classes": tf.fill(tf.shape(probability), CLICKED), "scores": probability}

    def regress(given: Features) -> dict[str, Any]:
        return {"outputs": score(given)[contract.PROBABILITY]}

    # TF Serving's classifier refuses a signature of more outputs than `classes` and `scores`, its regressor one of more
    # than `outputs`: so they cannot be one with that for `predict`.
    return [
        Signature(contract.EXAMPLES, specs, score, rows=example),
        Signature(contract.CLASSIFY, specs, classify, "classify", example),
        Signature(contract.REGRESS, specs, regress, "regress", example),
    ]


def _parsed_feature(name: str, spec: tf.TensorSpec, defaults: Mapping[str, Any]) -> Any:
    dtype = _PARSED_AS.get(spec.dtype)
    if dtype is None:
        raise _NotPossibleError(f"a tf.Example cannot hold input `{name}` of dtype {spec.dtype.name}")
    default = defaults.get(name)
    if _is_ragged(spec):
        return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True, default_value=default)
    shape = spec.shape[1:]
    if not shape.is_fully_defined():
        raise _NotPossibleError(f"a tf.Example cannot hold input `{name}` of shape {spec.shape}")
    return tf.io.FixedLenFeature(shape, dtype, None if default is None else np.full(shape, default).tolist())


def _is_ragged(spec: tf.TensorSpec) -> bool:
    """Whether an input has a list of any length in each row."""
    return spec.shape.rank == 2 and spec.shape[1] is None


def _embeddings(bakeables: Sequence[Bakeable]) -> list[Signature]:
    if not bakeables:
        raise _NotPossibleError("no vector of the model depends on an id alone (nothing in it has `bakeable_tables()`)")
    several = len(bakeables) > 1
    return [
        _embedding(f"{contract.EMBEDDINGS}_{bakeable.name}" if several else contract.EMBEDDINGS, bakeable)
        for bakeable in bakeables
    ]


def _embedding(signature: str, bakeable: Bakeable) -> Signature:
    name = f"{bakeable.name}_id"

    def describe(given: Features) -> dict[str, Any]:
        return bakeable.describe(given[name])

    specs = {name: tf.TensorSpec([None], bakeable.id_dtype, name=name)}
    return Signature(signature, specs, describe, rows={name: _some_ids(bakeable)})


def _some_ids(bakeable: Bakeable) -> np.ndarray:
    """Ids from all over the table."""
    places = np.unique(np.linspace(0, len(bakeable.keys) - 1, min(_EMBEDDING_ROWS, len(bakeable.keys))).astype(int))
    return contract.as_rows(bakeable.name, bakeable.keys[places], bakeable.id_dtype.name, None)
