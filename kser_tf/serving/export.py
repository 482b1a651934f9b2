"""export: a SavedModel that TF Serving loads, in a versioned directory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import ExportError, FileError, KserError, MissingExtraError, PathExistsError, PathLockedError
from kser_tf.files import new_directory, sha256_of_file, sha256_of_json, write_json
from kser_tf.layers import KnowledgeLookup
from kser_tf.models.feature_indexer import FeatureIndexer
from kser_tf.serving import contract
from kser_tf.serving.baking import BAKE_TYPES, Bakeable, BakedRows, BakeType, bakeables_in, baked
from kser_tf.serving.fingerprints import describe_store, require_own_store, weights_fingerprint
from kser_tf.serving.loaded_model import read_saved_model, served_graph
from kser_tf.serving.precomputing import statistics_ahead
from kser_tf.serving.resources import knowledge_in_variables, objects_in, tables_used, vocabularies_in_variables
from kser_tf.serving.scorer import Features, Scorer
from kser_tf.serving.signatures import Signature, make_signatures
from kser_tf.serving.warmup import write_warmup
from kser_tf.version import __version__

# As many rows are kept with the export, to compare with: enough to meet missing and unknown values, in a small file.
MAX_EXAMPLES = 512
# Parts of baked tables lie there until the export is complete. A server looks at folders named by an integer alone.
WORK_FOLDER = ".baking"
# Enough for every signature to get batches of every size several times, and sent within seconds.
WARMUP_RECORDS = 100
_METHODS = {
    "predict": "tensorflow/serving/predict",
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}
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
        baking: What of the knowledge was computed ahead, and the size of each part: see `export`.
        warmup: `requests`, how many warm-up requests there are, `signatures`, for which, and `left_out`, why there are
            none.
    """

    path: Path
    version: int
    signatures: dict[str, Any] = field(repr=False)
    bytes: int
    fingerprint: str
    baking: dict[str, Any] = field(default_factory=dict)
    warmup: dict[str, Any] = field(default_factory=dict)

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
    bake: BakeType | None = "float32",
    signatures: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    work: str | Path | None = None,
    warmup: bool = True,
) -> ExportResult:
    """Writes a model as a SavedModel for TF Serving, to `<base>/<version>`.

    - `serving_default`: the inputs by name -> `probability` and `logit`, `(batch,)` float32.
    - `with_knowledge`: the same, and for each categorical feature with knowledge `<feature>_chunks`, float32 `(batch,
      fields, chunks, width)`, and `<feature>_mask`, bool `(batch, fields, chunks)`, in place of the store's; in rows
      whose mask is all false the store's is used -> the same.
    - `examples`: serialized `tf.Example`s, `inputs` `(batch,)` -> the same. `classify` -> `classes` and `scores`,
      `(batch, 1)`, and `regress` -> `outputs`, `(batch,)`: the same for TF Serving's APIs of these names.
    - `embeddings` (with several kinds of entities one for each, `embeddings_<entity>`): ids, `<entity>_id` ->
      `embedding` and `aligned`, the part of it that is knowledge, `(batch, width)` float32.

    `with_knowledge` needs a model that takes knowledge from a request (`knowledge_inputs()`), `embeddings` one that
    offers `bakeable_tables()`; `RankingModel` does both. What is missing, and why, is told in `kser_tf.json`.

    All that the model looks up is inside. Where a vector depends on an entity's id alone (`bakeable_tables()`, see
    `kser_tf.serving.baking`), it is computed here for every entity, and the table of the results is served: as fast as
    the backbone alone. Of other models, the knowledge of every `KnowledgeLookup` layer goes with the SavedModel, as
    variables. The model itself stays as it was, and goes on reading its knowledge from the mapped store.

    The directory appears when it is whole. Until then, and if anything fails, there is nothing that a server would pick
    up.

    In the folder `assets.extra` lie `kser_tf.json` (signatures, what was baked, fingerprints, versions) and
    `kser_tf_examples.npz` (some examples with the model's own answers; `kser_tf_examples.<signature>.npz` for each
    other signature), which `check` compares with, and the warm-up requests, `tf_serving_warmup_requests`. Of tables in
    float16 and int8, the answers kept are those with these tables, and the difference to the model's own is in
    `kser_tf.json`, under `baking`.

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
        bake: How vectors that depend on an id alone are kept: `"float32"`, `"float16"`, or `"int8"` with a float16
            scale for each; `None` computes them anew in each request, from the store's. Defaults to `"float32"`.
        signatures: Which of `"with_knowledge"`, `"examples"` (with it `classify` and `regress`) and `"embeddings"` are
            written; `()` for `serving_default` alone. The first and the last need the extractor and the backbone's own
            table beside the baked one. Defaults to all that the model can have.
        defaults: For inputs what stands for "no value" in a `tf.Example` that leaves them out; others must be there.
            Defaults to `model.serving_defaults()`, or to none.
        work: A folder for the finished parts of baked tables: an export that was killed goes on there. They are removed
            at the end. Defaults to a hidden folder in `base`.
        warmup: bool. Whether warm-up requests are written for every signature, drawn from the examples: a server sends
            them to itself before it says that a version is ready. They need `tensorflow-serving-api` (the extra
            `serving`); without it, or without examples, there are none, and the result says so. Defaults to `True`.

    Returns:
        What was written. Its `baking`, which is also in `kser_tf.json`, holds `how` (`"baked"`, `"precomputed"`: the
        statistics of all chunks, or `"none"`), `dtype`, `seconds`, `bytes` of each part, and `logit_difference`, the
        `largest` and `mean` one to the model's own on the examples.

    Raises:
        ExportError: The model cannot be exported, with the reason and the mend: it is not built, its store is
            neither the one that it was trained with nor an extension of it, it touches a table that it does not hold,
            returns something else than a score for each row, calls Python functions, or would have a label as an input.
        FileError: The place cannot be written to.

    Example:

    >>> result = kser_tf.export(model, "serving/ranker")
    >>> kser_tf.check(result.path).ok
    True
    """
    return write_export(
        Scorer(model, inputs=inputs, output=output, preprocess=preprocess, serve=serve, defaults=defaults),
        model,
        Path(base),
        version=version,
        examples=examples,
        metadata=metadata,
        bake=bake,
        signatures=signatures,
        work=work,
        warmup=warmup,
    )


def write_export(
    scorer: Scorer,
    model: Any,
    base: Path,
    *,
    version: int | None,
    examples: Features | None,
    metadata: Mapping[str, Any] | None,
    bake: BakeType | None,
    signatures: Sequence[str] | None,
    work: str | Path | None,
    warmup: bool,
    previous: Mapping[str, BakedRows] | None = None,
    changed: Mapping[str, Any] | None = None,
    refreshed: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Does what `export` says, with its arguments; `refresh` calls it with the rows of an earlier export.

    `previous` holds for each table these rows, which are taken over, `changed` the ids whose rows are computed although
    they were there, and `refreshed` what to say of the earlier export.
    """
    if bake is not None and bake not in BAKE_TYPES:
        raise ExportError(f"`bake` must be one of {', '.join(BAKE_TYPES)}, or None. Received: bake={bake!r}")
    metadata = _checked_metadata(metadata)
    _checked_version(base, version)
    rows = None
    if examples is not None:
        rows = {name: array[:MAX_EXAMPLES] for name, array in contract.as_table(examples, scorer.inputs).items()}
    own = scorer.try_out(rows)

    holders = objects_in(*scorer.roots)
    try:
        bakeables = bakeables_in(holders)
    except KserError as error:
        raise ExportError(str(error)) from error
    lookups = [holder for holder in holders if isinstance(holder, KnowledgeLookup)]
    if refreshed is None:  # `refresh` has compared the rows themselves
        for lookup in lookups:
            require_own_store(lookup)
    made, missing = make_signatures(scorer, bakeables, rows, signatures)
    fingerprint = weights_fingerprint(model)
    work = base / WORK_FOLDER if work is None else Path(work)
    with contextlib.ExitStack() as stack:
        stores = [describe_store(lookup) for lookup in lookups]
        began = time.monotonic()
        tables: Sequence[Any] = []
        parts: dict[str, int] = {}
        # Answers to keep: the model's own, as long as those of the SavedModel are held to be the same.
        answers = {} if bake not in (None, "float32") else _answers(made)
        if bakeables and bake is not None:
            tables = stack.enter_context(
                baked(
                    bakeables, bake, work=work, model_fingerprint=fingerprint or "", previous=previous, changed=changed
                )
            )
            parts |= {f"table of {b.name}": table.bytes for b, table in zip(bakeables, tables, strict=True)}
        needed = _needed(lookups, bakeables if bake is not None else [])
        statistics = stack.enter_context(statistics_ahead(needed, lambda: scorer.try_out(rows)))
        parts |= {f"statistics of {name}": 4 * values.shape.num_elements() for name, values in statistics.items()}
        seconds = time.monotonic() - began
        knowledge = stack.enter_context(knowledge_in_variables(needed))
        parts |= {f"knowledge of {lookup.name}": t.bytes for lookup, t in zip(needed, knowledge, strict=True)}
        indexers = [holder for holder in holders if isinstance(holder, FeatureIndexer)]
        vocabularies = stack.enter_context(vocabularies_in_variables(indexers))
        answers = answers or _answers(made)
        resources = [*holders, *objects_in(tables, knowledge, vocabularies)]

        version, folder = stack.enter_context(_new_version(base, version))
        written = _write_saved_model(made, resources, folder)
        parts["graph"] = (folder / tf.saved_model.SAVED_MODEL_FILENAME_PB).stat().st_size
        parts["variables, all of them"] = sum(file.stat().st_size for file in (folder / "variables").rglob("*"))
        baking = {
            "how": "baked" if tables else "precomputed" if statistics else "none",
            "dtype": bake if tables else None,
            "tables": [bakeable.name for bakeable in bakeables] if tables else [],
            "statistics": sorted(statistics),
            "seconds": round(seconds, 3),
            "bytes": parts,
            "logit_difference": _difference(own, answers.get(contract.SIGNATURE)),
        }
        (folder / contract.EXTRA_FOLDER).mkdir()
        for signature in made:
            if signature.name in answers and signature.rows is not None:
                contract.save_examples(
                    folder / contract.examples_file(signature.name), signature.rows, answers[signature.name]
                )
        told_of_warmup = _write_warmup(made, folder, base.resolve().name) if warmup else _no_warmup("not asked for")
        files = _files_in(folder)
        export_fingerprint = sha256_of_json(files)
        description = {
            "format_version": contract.DESCRIPTION_VERSION,
            "fingerprint": export_fingerprint,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": type(model).__name__,
            "model_fingerprint": fingerprint,
            "signatures": written,
            "signatures_left_out": missing,
            "output": scorer.output,
            "nan_is_missing": scorer.nan_is_missing,
            "knowledge": [
                {"layer": store["layer"], "store_fingerprint": store["fingerprint"], "shape": list(lookup.shape)}
                for store, lookup in zip(stores, lookups, strict=True)
            ],
            "stores": stores,
            "baking": baking,
            "warmup": told_of_warmup,
            "refreshed": refreshed,
            "metadata": metadata,
            "examples": 0 if rows is None else len(own[contract.LOGIT]),
            "files": files,
            "versions": _versions(),
        }
        write_json(folder / contract.DESCRIPTION_FILE, description)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ExportResult(base / str(version), version, written, size, export_fingerprint, baking, told_of_warmup)


def _write_warmup(signatures: Sequence[Signature], folder: Path, model_name: str) -> dict[str, Any]:
    """Writes warm-up requests for every signature that has rows. Returns how many, and if none, why."""
    rows = {signature.name: signature.rows for signature in signatures if signature.rows is not None}
    if not rows.get(contract.SIGNATURE) or not len(next(iter(rows[contract.SIGNATURE].values()))):
        return _no_warmup("there are no examples to draw them from")
    try:
        write_warmup(folder, rows, model_name=model_name, records=WARMUP_RECORDS)
    except MissingExtraError as error:
        return _no_warmup(str(error))
    return {"requests": WARMUP_RECORDS, "signatures": sorted(rows), "left_out": None}


def _no_warmup(reason: str) -> dict[str, Any]:
    return {"requests": 0, "signatures": [], "left_out": reason}


def _answers(signatures: Sequence[Signature]) -> dict[str, dict[str, Any]]:
    return {signature.name: signature.answers() for signature in signatures if signature.rows is not None}


def _difference(own: Mapping[str, Any], answers: Mapping[str, Any] | None) -> dict[str, float] | None:
    """How far the logits of the tables that are served are from the model's own, where both are numbers."""
    if answers is None:
        return None
    difference = abs(own[contract.LOGIT].astype(float) - answers[contract.LOGIT])
    difference = difference[np.isfinite(difference)]
    return {"largest": float(difference.max(initial=0)), "mean": float(difference.mean()) if len(difference) else 0.0}


def _needed(lookups: Sequence[KnowledgeLookup], baked_ones: Sequence[Bakeable]) -> list[KnowledgeLookup]:
    """The look-ups that the model still reads."""
    replaced = {id(lookup) for bakeable in baked_ones for lookup in bakeable.lookups}
    return [lookup for lookup in lookups if id(lookup) not in replaced]


@contextlib.contextmanager
def _new_version(base: Path, version: int | None) -> Iterator[tuple[int, Path]]:
    """A new directory for a version; where none is asked for and another process takes it meanwhile, for the next."""
    number = _checked_version(base, version)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                folder = stack.enter_context(new_directory(base / str(number)))
                break
            except (PathExistsError, PathLockedError):
                if version is not None:
                    raise
                number += 1
        yield number, folder


def _write_saved_model(signatures: Sequence[Signature], resources: Sequence[Any], folder: Path) -> dict[str, Any]:
    """Writes the SavedModel. Returns its signatures."""
    archive = tf.keras.export.ExportArchive()
    functions: dict[str, Any] = {}
    tables: dict[int, Any] = {}
    for signature in signatures:
        function = tf.function(signature.call, input_signature=[signature.specs], autograph=False)
        functions[signature.name] = function
        tables |= {id(table): table for table in tables_used(function.get_concrete_function(), resources)}
    for table in tables.values():
        archive.track(table)
    for name, function in functions.items():
        archive.add_endpoint(name, function)
    try:
        with _quiet():
            archive.write_out(str(folder))
    except tf.errors.OpError as error:
        raise FileError(
            f"{folder.parent} cannot be written to: {error.message}. Free some space there, or choose another path."
        ) from error
    meta_graph = _name_methods(folder, {signature.name: _METHODS[signature.method] for signature in signatures})
    if python_functions := contract.python_function_ops(meta_graph):
        raise ExportError(
            f"the model calls Python functions, which a server does not have: {', '.join(python_functions)}. Write "
            "what tf.py_function or tf.numpy_function does there with TensorFlow's operations."
        )
    return contract.describe_signatures(meta_graph)


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


def _name_methods(folder: Path, methods: Mapping[str, str]) -> Any:
    """Tells which of TF Serving's APIs each signature is for. Returns the graph.

    The savers write "predict" for all, and servers that check the name let it not be classified by.
    """
    saved_model = read_saved_model(folder)
    meta_graph = served_graph(saved_model)
    if any(method != _METHODS["predict"] for method in methods.values()):
        for name, method in methods.items():
            meta_graph.signature_def[name].method_name = method
        (folder / tf.saved_model.SAVED_MODEL_FILENAME_PB).write_bytes(saved_model.SerializeToString())
    return meta_graph


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
