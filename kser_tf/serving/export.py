"""export: a SavedModel that TF Serving loads, in a versioned directory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kser_tf.errors import ExportError, FileError
from kser_tf.files import new_directory, sha256_of_file, sha256_of_json, write_json
from kser_tf.layers import KnowledgeLookup
from kser_tf.serving import contract
from kser_tf.serving.resources import knowledge_in_variables, objects_in, tables_used
from kser_tf.version import __version__

# As many rows are kept with the export, to compare with: enough to meet missing and unknown values, and a small file.
MAX_EXAMPLES = 512
# A probability this close to 0 or 1 gives no meaningful logit in float32, and 0 and 1 give infinity.
SMALLEST_PROBABILITY = 1e-7
# Rows made up to try a model with that comes without examples: more than one, so that a lost batch dimension shows.
_MADE_UP_ROWS = 2
# TensorFlow turns anything else in an argument's name into an underscore, and then no longer finds the input.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_REPORTED_PACKAGES = ("tensorflow", "keras", "tf-keras", "numpy")

Features = Mapping[str, Any]


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Args:
        path: The version's directory, `<base>/<version>`.
        version: int. The version.
        signatures: For each signature its `inputs` and `outputs`; for each of those `dtype`, `shape` (`None` for the batch) and
            `tensor`, its name in the graph.
        bytes: int. The size of the directory.
        fingerprint: str. SHA-256 over all files of the SavedModel.
    """

    path: Path
    version: int
    signatures: dict[str, Any] = field(repr=False)
    bytes: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as a JSON value."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export(
    model: Any,
    base: str | Path,
    *,
    inputs: Mapping[str, tf.TensorSpec] | None = None,
    output: str = "logit",
    version: int | None = None,
    preprocess: Callable[[Features], Any] | None = None,
    serve: Callable[[Any], Any] | None = None,
    examples: Features | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Writes a model as a SavedModel for TF Serving, to `<base>/<version>`.

    Its signature `serving_default` takes the inputs by name and returns `probability` and `logit`, each `(batch,)` float32. Everything
    that the model looks up is inside: vocabularies, and the knowledge of every `KnowledgeLookup` layer, wherever in the model it
    is, as variables. The model itself stays as it was, and goes on reading its knowledge from the mapped store.

    The directory appears when it is whole. Until then, and if anything fails, there is nothing that a server would pick up.

    Beside the SavedModel, in `assets.extra/`, lie `kser_tf.json` (signatures, fingerprints, versions) and `kser_tf_examples.npz` (some
    examples with the model's own answers), which `check` compares with.

    Args:
        model: A built Keras 2 or Keras 3 model. One with the methods `serving_inputs()` and `serve(features)`, such as `RankingModel`,
            needs no further argument: they say what is taken and answered, and are held to take NaN for a missing number.
        base: The directory that TF Serving is pointed to.
        inputs: For each input its name and what it is, such as `{"movie_id": tf.TensorSpec((None,), tf.string)}`; the batch is the first
            dimension. Names consist of ASCII letters, digits and underscores. Defaults to `model.serving_inputs()`.
        output: What the model returns, `(batch,)` or `(batch, 1)`: `"logit"` or `"probability"`. (The logit of a probability is cut off
            at 1e-7 from 0 and 1.) Defaults to `"logit"`.
        version: int. Defaults to the next one, from 1.
        preprocess: Makes of the inputs, a dict of tensors, what the model is called with: `lambda features: features["movie_id"]`, or
            what else the training data pass through. Defaults to the inputs as they are.
        serve: What to call in the model's place: returns what the model would, or a dict of `probability` and `logit`. For
            models that take a label beside the features, or that return a dict: `lambda features: model(features)["ctr"]`. Defaults to
            `model.serve`, or to the model.
        examples: For each input an array of values, all of one length: real rows, of which the first 512 are kept.
        metadata: Kept with the export, JSON-able: fingerprints of the data set and the training, for instance.

    Returns:
        What was written.

    Raises:
        ExportError: The model cannot be exported, with the reason and the mend: it is not built, touches a table that it does not hold,
            returns something else than one score a row, calls Python functions, or has a label among its inputs.
        FileError: The place cannot be written to.

    Example:

    >>> result = kser_tf.export(model, "serving/ranker")
    >>> kser_tf.check(result.path)
    """
    scorer = _Scorer(model, inputs=inputs, output=output, preprocess=preprocess, serve=serve)
    base = Path(base)
    version = _checked_version(base, version)
    description = {"metadata": _checked_metadata(metadata)}
    rows = None
    if examples is not None:
        rows = {name: array[:MAX_EXAMPLES] for name, array in contract.as_table(examples, scorer.inputs).items()}
    answers = scorer.try_out(rows)

    path = base / str(version)
    with new_directory(path) as folder:
        description |= _write_saved_model(scorer, folder)
        (folder / contract.EXTRA_FOLDER).mkdir(exist_ok=True)
        if rows is not None:
            contract.save_examples(folder / contract.EXAMPLES_FILE, rows, answers)
        files = _files_of(folder)
        description |= {
            "format_version": contract.DESCRIPTION_VERSION,
            "fingerprint": sha256_of_json(files),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": type(model).__name__,
            "output": output,
            "nan_is_missing": scorer.nan_is_missing,
            "examples": 0 if rows is None else len(answers[contract.LOGIT]),
            "files": files,
            "versions": _versions(),
        }
        write_json(folder / contract.DESCRIPTION_FILE, description)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ExportResult(path, version, description["signatures"], size, description["fingerprint"])


class _Scorer:
    """From raw inputs to probability and logit: the function that is served."""

    def __init__(
        self,
        model: Any,
        *,
        inputs: Mapping[str, tf.TensorSpec] | None,
        output: str,
        preprocess: Callable[[Features], Any] | None,
        serve: Callable[[Any], Any] | None,
    ) -> None:
        if output not in contract.OUTPUTS:
            raise ExportError(f"`output` must be one of {', '.join(contract.OUTPUTS)}. Received: output={output!r}")
        offers_protocol = hasattr(model, "serving_inputs") and hasattr(model, "serve")
        if inputs is None and not offers_protocol:
            raise ExportError(
                "`inputs` is missing: say for each input of the model its name, dtype and shape, such as "
                'inputs={"movie_id": tf.TensorSpec((None,), tf.string)}.'
            )
        self.specs = _checked_specs(model.serving_inputs() if inputs is None else inputs)
        self.model = model
        self.nan_is_missing = offers_protocol and inputs is None
        self._output = output
        self._preprocess = preprocess
        self._serve = serve or (model.serve if offers_protocol else None)
        self.roots = [root for root in (model, preprocess, serve) if root is not None]

    @property
    def inputs(self) -> dict[str, Any]:
        """Dtype and shape of each input, as in the description."""
        return {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in self.specs.items()}

    def __call__(self, features: Features) -> dict[str, Any]:
        features = dict(features)
        given = self._preprocess(features) if self._preprocess else features
        result = self._serve(given) if self._serve else self.model(given, training=False)
        if isinstance(result, Mapping):
            if missing := set(contract.OUTPUTS) - set(result):
                raise ExportError(
                    f"the model returns a dict of {sorted(result)}, without {sorted(missing)}. Say which of them is the "
                    'score, for instance serve=lambda features: model(features)["ctr"].'
                )
            scores = {name: _one_a_row(result[name], name) for name in contract.OUTPUTS}
        else:
            scores = _both(_one_a_row(result, self._output), self._output)
        return {name: tf.identity(scores[name], name=name) for name in contract.OUTPUTS}

    def try_out(self, rows: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Returns the model's own answers to rows, or to made-up ones."""
        rows = rows if rows is not None else self._made_up_rows()
        tensors = {name: tf.constant(rows[name], spec.dtype) for name, spec in self.specs.items()}
        try:
            with _no_new_variables():
                answers = self(tensors)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"the model cannot be called with the inputs {', '.join(self.specs)}: {type(error).__name__}: {error}\n"
                "If it takes something else (one tensor, a label beside the features), say how to call it with `preprocess` "
                "or `serve`."
            ) from error
        return {name: answer.numpy() for name, answer in answers.items()}

    def _made_up_rows(self) -> dict[str, np.ndarray]:
        shapes = {name: [_MADE_UP_ROWS, *(n or 1 for n in spec.shape[1:])] for name, spec in self.specs.items()}
        return {name: tf.zeros(shapes[name], spec.dtype).numpy() for name, spec in self.specs.items()}


def _one_a_row(scores: Any, name: str) -> Any:
    """`(batch,)` float32 of `(batch,)` or `(batch, 1)`."""
    scores = tf.convert_to_tensor(scores)
    shape = scores.shape
    if not scores.dtype.is_floating or shape.rank not in (1, 2) or (shape.rank == 2 and shape[1] != 1):
        raise ExportError(
            f"the model's {name} must be floating point of shape (batch,) or (batch, 1). Received: {scores.dtype.name} of shape "
            f"{shape}. Choose one score a row with `serve`."
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
            f"the model is not built: the variable `{arguments.get('name')}` would be made now, with random values. Train the "
            "model, or call it on a batch and load its weights, before it is exported."
        )

    with tf.variable_creator_scope(refuse):
        yield


def _write_saved_model(scorer: _Scorer, folder: Path) -> dict[str, Any]:
    """Writes the SavedModel and returns its part of the description."""
    holders = objects_in(*scorer.roots)
    lookups = [holder for holder in holders if isinstance(holder, KnowledgeLookup)]
    with knowledge_in_variables(lookups) as knowledge:
        function = tf.function(scorer.__call__, input_signature=[scorer.specs], autograph=False)
        tables = tables_used(function.get_concrete_function(), [*holders, *objects_in(knowledge)])
        archive = tf.keras.export.ExportArchive()
        for table in tables:
            archive.track(table)
        archive.add_endpoint(contract.SIGNATURE, function)
        try:
            with _quiet():
                archive.write_out(str(folder))
        except tf.errors.OpError as error:
            raise FileError(
                f"{folder.parent} cannot be written to: {error.message}. Free some space there, or choose another path."
            ) from error
    meta_graph = _read_meta_graph(folder)
    if python_functions := contract.python_function_ops(meta_graph):
        raise ExportError(
            f"the model calls Python functions, which a server does not have: {', '.join(python_functions)}. Write "
            "what tf.py_function or tf.numpy_function does there with TensorFlow's own operations."
        )
    return {
        "signatures": contract.describe_signatures(meta_graph),
        "knowledge": [
            {"layer": lookup.name, "store_fingerprint": tables.fingerprint, "shape": list(lookup.shape)}
            for lookup, tables in zip(lookups, knowledge, strict=True)
        ],
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the savers print: it names the temporary folder."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _read_meta_graph(folder: Path) -> Any:
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((folder / tf.saved_model.SAVED_MODEL_FILENAME_PB).read_bytes())
    return saved_model.meta_graphs[0]


def _checked_specs(inputs: Mapping[str, tf.TensorSpec]) -> dict[str, tf.TensorSpec]:
    if not inputs:
        raise ExportError("`inputs` is empty: name at least one input.")
    by_lower_case: dict[str, str] = {}
    for name, spec in inputs.items():
        if not _INPUT_NAME.fullmatch(name):
            raise ExportError(
                f"input `{name}`: a name begins with a letter and goes on with letters, digits and underscores, all ASCII: "
                "TensorFlow keeps no other. Rename it, and give the model its own name with `preprocess`."
            )
        if name.lower() in contract.NOT_INPUTS:
            raise ExportError(
                f"input `{name}`: a request has no label and no weight. Leave it out of `inputs`; if the model takes it, "
                "call the model without it in `serve`. (A feature of this name needs another one.)"
            )
        if other := by_lower_case.get(name.lower()):
            raise ExportError(
                f"inputs `{other}` and `{name}` differ in case alone; TensorFlow confuses them. Rename one."
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


def _checked_version(base: Path, version: int | None) -> int:
    there = [int(entry.name) for entry in base.iterdir() if entry.name.isdecimal()] if base.is_dir() else []
    if version is None:
        return max(there, default=0) + 1
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ExportError(f"`version` must be an integer from 1. Received: version={version!r}")
    if version in there:
        raise ExportError(
            f"{base} holds version {version} already. Leave `version` out for the next one, {max(there) + 1}."
        )
    return version


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"`metadata` must be JSON-able: {error}. Received: {metadata!r}") from None


def _files_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _versions() -> dict[str, str]:
    versions = {"kser-tf": __version__}
    for package in _REPORTED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
