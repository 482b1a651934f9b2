"""export: a SavedModel that TF Serving loads, in a versioned directory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kser_tf.errors import ExportError, FileError
from kser_tf.files import new_directory, sha256_of_file, sha256_of_json, write_json
from kser_tf.layers import KnowledgeLookup
from kser_tf.serving import contract
from kser_tf.serving.resources import knowledge_in_variables, objects_in, tables_used
from kser_tf.serving.scorer import Features, Scorer
from kser_tf.version import __version__

# As many rows are kept with the export, to compare with: enough to meet missing and unknown values, in a small file.
MAX_EXAMPLES = 512
_REPORTED_PACKAGES = ("tensorflow", "keras", "tf-keras", "numpy")


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Args:
        path: The version's directory, `<base>/<version>`.
        version: int. The version.
        signatures: For each signature its `inputs` and `outputs`; for each of those `dtype`, `shape` (`None` for the
            batch) and `tensor`, its name in the graph.
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
    output: str = contract.LOGIT,
    version: int | None = None,
    preprocess: Callable[[Features], Any] | None = None,
    serve: Callable[[Any], Any] | None = None,
    examples: Features | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Writes a model as a SavedModel for TF Serving, to `<base>/<version>`.

    Its signature `serving_default` takes the inputs by name and returns `probability` and `logit`, each `(batch,)`
    float32. All that the model looks up is inside: vocabularies, and, as variables, the knowledge of every
    `KnowledgeLookup` layer, wherever in the model it is. The model itself stays as it was, and goes on reading its
    knowledge from the mapped store.

    The directory appears when it is whole. Until then, and if anything fails, there is nothing that a server would pick
    up.

    In the folder `assets.extra` lie `kser_tf.json` (signatures, fingerprints, versions) and `kser_tf_examples.npz`
    (some examples with the model's own answers), which `check` compares with.

    Args:
        model: A built Keras 2 or Keras 3 model. One with the methods `serving_inputs()` and `serve(features)`, such as
            `RankingModel`, needs no further argument: they say what goes in and what comes out, and the model is held
            to take NaN for a missing number.
        base: The directory that TF Serving is pointed to.
        inputs: For each input its name and what it is, such as `{"movie_id": tf.TensorSpec((None,), tf.string)}`; the
            first dimension is the batch. Names consist of ASCII letters, digits and underscores. Defaults to
            `model.serving_inputs()`.
        output: What the model returns as `(batch,)` or `(batch, 1)`: `"logit"` or `"probability"` (its logit is that of
            at least 1e-7 and at most 1 - 1e-7). Defaults to `"logit"`.
        version: int. Defaults to the next one, from 1.
        preprocess: Makes of the inputs, a dict of tensors, what the model is called with: `lambda features:
            features["movie_id"]`, or what else the training data go through. Defaults to the inputs as they are.
        serve: What is called in the model's place, with what `preprocess` makes. It returns what the model would, or a
            dict of `probability` and `logit`: for models that take a label beside the features, or return a dict,
            `lambda features: model(features)["ctr"]`. Defaults to `model.serve`, or to the model.
        examples: For each input an array of values, all of one length: real rows. The first 512 are kept.
        metadata: Kept with the export, JSON-able: fingerprints of the data set and of the training, for instance.

    Returns:
        What was written.

    Raises:
        ExportError: The model cannot be exported, with the reason and the mend: it is not built, touches a table that
            it does not hold, returns something else than a score for each row, calls Python functions, or would have a
            label as an input.
        FileError: The place cannot be written to.

    Example:

    >>> result = kser_tf.export(model, "serving/ranker")
    >>> kser_tf.check(result.path).ok
    True
    """
    scorer = Scorer(model, inputs=inputs, output=output, preprocess=preprocess, serve=serve)
    metadata = _checked_metadata(metadata)
    base = Path(base)
    version = _checked_version(base, version)
    rows = None
    if examples is not None:
        rows = {name: array[:MAX_EXAMPLES] for name, array in contract.as_table(examples, scorer.inputs).items()}
    answers = scorer.try_out(rows)

    path = base / str(version)
    with new_directory(path) as folder:
        signatures, knowledge = _write_saved_model(scorer, folder)
        (folder / contract.EXTRA_FOLDER).mkdir()
        if rows is not None:
            contract.save_examples(folder / contract.EXAMPLES_FILE, rows, answers)
        files = _files_in(folder)
        fingerprint = sha256_of_json(files)
        description = {
            "format_version": contract.DESCRIPTION_VERSION,
            "fingerprint": fingerprint,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": type(model).__name__,
            "signatures": signatures,
            "output": output,
            "nan_is_missing": scorer.nan_is_missing,
            "knowledge": knowledge,
            "metadata": metadata,
            "examples": 0 if rows is None else len(answers[contract.LOGIT]),
            "files": files,
            "versions": _versions(),
        }
        write_json(folder / contract.DESCRIPTION_FILE, description)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ExportResult(path, version, signatures, size, fingerprint)


def _write_saved_model(scorer: Scorer, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes the SavedModel. Returns its signatures, and what knowledge is in it."""
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
            "what tf.py_function or tf.numpy_function does there with TensorFlow's operations."
        )
    stores = [
        {"layer": lookup.name, "store_fingerprint": tables.fingerprint, "shape": list(lookup.shape)}
        for lookup, tables in zip(lookups, knowledge, strict=True)
    ]
    return contract.describe_signatures(meta_graph), stores


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


def _checked_version(base: Path, version: int | None) -> int:
    there = [int(entry.name) for entry in base.iterdir() if entry.name.isdecimal()] if base.is_dir() else []
    following = max(there, default=0) + 1
    if version is None:
        return following
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ExportError(f"`version` must be an integer from 1. Received: version={version!r}")
    if version in there:
        raise ExportError(f"{base} holds version {version} already. Leave `version` out for the next one, {following}.")
    return version


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"`metadata` must be JSON-able: {error}. Received: {metadata!r}") from None


def _files_in(folder: Path) -> dict[str, dict[str, Any]]:
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
