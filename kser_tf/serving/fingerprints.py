"""What belongs together: fingerprints of a model's weights and of the knowledge that it looks up."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from kser_tf.errors import ExportError
from kser_tf.layers import KnowledgeLookup

_ROWS_AT_ONCE = 4096
# Of a store's manifest, what another store must agree in to stand in its place.
_OF_A_KIND = ("fields", "chunks_per_field", "width", "vector_dtype", "id_dtype", "encoder", "encoder_fingerprint")


def weights_fingerprint(model: Any) -> str | None:
    """Returns a SHA-256 over a Keras model's weights, in their order; `None` for what has none, or is no Keras model."""
    try:
        weights = model.get_weights()
    except (AttributeError, ValueError):  # no Keras model; one that was never built, and is not what is served
        return None
    digest = hashlib.sha256()
    for weight in weights:
        array = np.ascontiguousarray(weight)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.data)
    return digest.hexdigest()


def describe_store(lookup: KnowledgeLookup) -> dict[str, Any]:
    """Returns what a refresh needs to know of the store that a layer looks up.

    Returns:
        `layer`, `fingerprint`, `rows`, `content` (see `content_hash`), and of a `KnowledgeStore` also fields, chunks a
        field, width, dtype, type of ids, encoder and its fingerprint.
    """
    tables = lookup.tables()
    manifest = tables.manifest or {}
    return {
        "layer": lookup.name,
        "fingerprint": tables.fingerprint,
        "rows": len(tables.ids),
        "content": content_hash(lookup, len(tables.ids)),
        **{key: manifest[key] for key in _OF_A_KIND if key in manifest},
        **({"shuffled": manifest["shuffled"]} if "shuffled" in manifest else {}),
    }


def require_own_store(lookup: KnowledgeLookup) -> None:
    """Refuses a store that is neither the one that a model was trained with nor an extension of it.

    Raises:
        ExportError: It is another one, or the layer has none.
    """
    try:
        tables = lookup.tables()
    except ValueError as error:
        raise ExportError(str(error)) from None
    manifest = tables.manifest or {}
    # A shuffled view has the rows of the store that it is of, under other ids.
    extended = [] if "shuffled" in manifest else manifest.get("extends", [])
    if lookup.trained_with is not None and lookup.trained_with not in (tables.fingerprint, *extended):
        raise ExportError(
            f"{lookup.name}: the model was trained with the store {lookup.trained_with}, and is connected to "
            f"{tables.fingerprint}, which is neither that store nor an extension of it (KnowledgeStore.extended). Connect "
            "the store that it was trained with; or, if it has been trained on this one since, say so: "
            "layer.trained_with = store.fingerprint."
        )


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Says in what a store is of another kind than the one that was recorded: encoder, width, fields ..."""
    return [
        f"{key} {now.get(key)!r} instead of {recorded.get(key)!r}"
        for key in (*_OF_A_KIND, "shuffled")
        if recorded.get(key) != now.get(key)
    ]


def content_hash(lookup: KnowledgeLookup, rows: int) -> str:
    """Returns a SHA-256 over ids, vectors, mask and scales of the first rows of a look-up's store, as they are stored.

    Unlike the store's own fingerprint, it stays when rows are added behind them.
    """
    tables, digest = lookup.tables(), hashlib.sha256()
    for start in range(0, rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, rows)
        digest.update(json.dumps(tables.ids[start:stop].tolist()).encode())
        for array in tables.arrays(start, stop):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
