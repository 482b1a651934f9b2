"""refresh: new entities into a served model, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from kser_tf.errors import ExportError
from kser_tf.files import read_json, sha256_of_file
from kser_tf.layers import KnowledgeLookup
from kser_tf.serving import contract
from kser_tf.serving.baking import Bakeable, BakedRows, bakeables_in, rows_of, variable_name
from kser_tf.serving.export import ExportResult, write_export
from kser_tf.serving.fingerprints import content_hash, describe_store, differences, weights_fingerprint
from kser_tf.serving.resources import objects_in
from kser_tf.serving.scorer import Features, Scorer
from kser_tf.serving.signatures import OPTIONAL_SIGNATURES

_EXPORT_ANEW = "Export the model anew with kser_tf.export."


def refresh(
    model: Any,
    base: str | Path,
    *,
    of: int | None = None,
    version: int | None = None,
    examples: Features | None = None,
    metadata: Mapping[str, Any] | None = None,
    work: str | Path | None = None,
    warmup: bool = True,
    **arguments: Any,
) -> ExportResult:
    """Adds entities that have come into the knowledge store to a served model, as a new version `<base>/<n>`.

    The model is the one that was exported, weight for weight, with a store that has further rows behind those it had
    (`KnowledgeStore.extended`; `kser-tf refresh` also encodes the texts). The new entities go through the trained
    extractor; what was computed for the others is taken over bit for bit. A new entity is scored as if it had been
    there at the export. Nothing is trained.

    An id that the model's vocabulary has, and the store had not, gets its knowledge too: its row is computed anew.

    Args:
        model: As for `export`. A `RankingModel` takes its stores when it is made: `load_model(folder, stores=...)`.
        base: The directory that TF Serving is pointed to.
        of: int. The version that is added to. Defaults to the latest.
        version: int. The new one. Defaults to the next.
        examples: As for `export`. Defaults to those of the old version.
        metadata: As for `export`. Defaults to that of the old version.
        work: As for `export`.
        warmup: As for `export`.
        **arguments: `inputs`, `preprocess`, `serve`, `defaults`, as they were given to `export`.

    Returns:
        What was written; or, if the store holds nothing new, the old version.

    Raises:
        ExportError: There is no such version, it is damaged, or it is of another model; or a store is of another
            encoder, width or fields, or changes or lacks rows that were there.

    Example:

    >>> store = kser_tf.KnowledgeStore.open("stores/movies-2")
    >>> model = load_model("models/knowledge", stores={"movie": store})
    >>> kser_tf.refresh(model, "serving/ranker").version
    2
    """
    base = Path(base)
    path, description = _old_version(base, of)
    if (found := weights_fingerprint(model)) != description["model_fingerprint"]:
        raise ExportError(
            f"{path} is of the model {description['model_fingerprint']}, and this one is {found}: its weights are "
            f"others. Only the very model that was exported can be refreshed. {_EXPORT_ANEW}"
        )
    scorer = Scorer(
        model,
        inputs=arguments.pop("inputs", None),
        output=description["output"],
        preprocess=arguments.pop("preprocess", None),
        serve=arguments.pop("serve", None),
        defaults=arguments.pop("defaults", None),
    )
    if arguments:
        raise TypeError(f"refresh() takes no argument {', '.join(map(repr, arguments))}")
    holders = objects_in(*scorer.roots)
    lookups = [holder for holder in holders if isinstance(holder, KnowledgeLookup)]
    new_ids = _new_ids(path, description["stores"], lookups)
    if not any(len(ids) for ids in new_ids.values()):
        return _result(path, description)

    bakeables = bakeables_in(holders) if description["baking"]["how"] == "baked" else []
    previous, changed = {}, {}
    for bakeable in bakeables:
        previous[bakeable.name] = rows = _baked_rows(path, bakeable)
        ids = np.concatenate([new_ids[lookup.name] for lookup in bakeable.lookups])
        changed[bakeable.name] = ids[rows_of(bakeable, ids) < len(rows.values)]
    if examples is None and (path / contract.EXAMPLES_FILE).is_file():
        examples, _ = contract.load_examples(path / contract.EXAMPLES_FILE)
    return write_export(
        scorer,
        model,
        base,
        version=version,
        examples=examples,
        metadata=description["metadata"] if metadata is None else metadata,
        bake=description["baking"]["dtype"],
        signatures=[kind for kind in OPTIONAL_SIGNATURES if kind not in description["signatures_left_out"]],
        work=work,
        warmup=warmup,
        previous=previous,
        changed=changed,
        refreshed={
            "version": int(path.name),
            "fingerprint": description["fingerprint"],
            "new_ids": {layer: len(ids) for layer, ids in new_ids.items()},
        },
    )


def _old_version(base: Path, of: int | None) -> tuple[Path, dict[str, Any]]:
    """The version to add to, checked to be whole."""
    there = [entry for entry in base.iterdir() if entry.name.isdecimal()] if base.is_dir() else []
    if not there:
        raise ExportError(f"{base} holds no version to refresh. {_EXPORT_ANEW}")
    path = max(there, key=lambda entry: int(entry.name)) if of is None else base / str(of)
    if not (path / contract.DESCRIPTION_FILE).is_file():
        raise ExportError(
            f"{path} was not written by kser_tf.export: {contract.DESCRIPTION_FILE} is missing. The versions there are "
            f"{', '.join(sorted(entry.name for entry in there))}. {_EXPORT_ANEW}"
        )
    description = read_json(path / contract.DESCRIPTION_FILE)
    if not {"stores", "model_fingerprint", "warmup"} <= description.keys():
        raise ExportError(
            f"{path} was written by an earlier kser-tf, which did not note what a refresh needs. {_EXPORT_ANEW}"
        )
    for name, recorded in description["files"].items():
        if not (path / name).is_file() or sha256_of_file(path / name) != recorded["sha256"]:
            raise ExportError(f"{path / name} is missing, damaged or was changed. {_EXPORT_ANEW}")
    return path, description


def _new_ids(path: Path, recorded: list[dict[str, Any]], lookups: list[KnowledgeLookup]) -> dict[str, np.ndarray]:
    """For each look-up the ids that its store has behind the rows of the export."""
    stores = {store["layer"]: store for store in recorded}
    if stores.keys() != {lookup.name for lookup in lookups}:
        raise ExportError(f"{path} looks up {', '.join(stores)}, the model {', '.join(x.name for x in lookups)}.")
    found = {}
    for lookup in lookups:
        old, now = stores[lookup.name], describe_store(lookup)
        if other := differences(old, now):
            raise ExportError(
                f"{lookup.name}: the store is of another kind than that of {path}: {'; '.join(other)}. The extractor "
                "was trained on the old one: encode the new entities alike, or train anew."
            )
        if now["rows"] < old["rows"] or content_hash(lookup, old["rows"]) != old["content"]:
            raise ExportError(
                f"{lookup.name}: the store does not begin with the {old['rows']} rows that {path} was made from. A "
                f"refresh only adds rows (KnowledgeStore.extended). {_EXPORT_ANEW}"
            )
        found[lookup.name] = lookup.tables().ids[old["rows"] :]
    return found


def _baked_rows(path: Path, bakeable: Bakeable) -> BakedRows:
    """Reads a baked table out of a SavedModel."""
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    names = {attribute.full_name: attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes}
    parts = {
        part: reader.get_tensor(names[name])
        for part in ("keys", "values", "scales")
        if (name := variable_name(bakeable.name, part)) in names
    }
    keys = parts["keys"]
    if keys.dtype == object:
        keys = np.array([key.decode("utf-8") for key in keys], dtype=object)
    if not np.array_equal(keys, bakeable.keys[: len(keys)]):
        raise ExportError(
            f"{path}: the ids of the baked table of {bakeable.name} are not those that the model has first. {_EXPORT_ANEW}"
        )
    return BakedRows(keys, parts["values"], parts.get("scales"))


def _result(path: Path, description: dict[str, Any]) -> ExportResult:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ExportResult(
        path,
        int(path.name),
        description["signatures"],
        size,
        description["fingerprint"],
        description["baking"],
        description["warmup"],
    )
