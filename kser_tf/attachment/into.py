"""Attaching into embedding layers, in place."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.attachment.attached_model import (
    Hook,
    hooks_of,
    name_of,
    put_in_place,
    with_weights,
)
from kser_tf.attachment.before_attaching import functional_of
from kser_tf.attachment.place import Attachment, Place, find_place
from kser_tf.attachment.report import NO_STORE, AttachedPlace, store_name
from kser_tf.compiled import forget_traces
from kser_tf.errors import AttachError
from kser_tf.keras_version import keras_2_is_active
from kser_tf.layer_paths import find_layer, is_embedding, layer_paths
from kser_tf.layers import KnowledgeExtractor
from kser_tf.layers.knowledge_embedding import APPEND, MODES, RESIDUAL, KnowledgeEmbedding

_NAMED = 3  # as many layers are named in a message


def attach_into(
    model: Any, into: Mapping[str, Any], *, mode: str = RESIDUAL, id_dropout: float = 0.0, **extractor: Any
) -> Any:
    """Does `kser_tf.attach(model, into=...)`."""
    if mode not in MODES:
        raise AttachError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={mode!r}")
    attachments = _checked(into)
    for attachment in attachments.values():
        _require_options({**extractor, **(attachment.extractor or {})})
    before = {id(hook.place.layer): hook for hook in hooks_of(model).values()}
    places: dict[int, tuple[Place, Attachment]] = {}
    connecting: list[_Connection] = []
    for path, attachment in attachments.items():
        hook = before.get(id(find_layer(model, path)))
        if hook is None:
            place = find_place(model, path, attachment)
            if id(place.layer) in places:
                first = places[id(place.layer)][0].path
                raise AttachError(f"{first!r} and {path!r} are the same layer: name it once.")
            places[id(place.layer)] = place, attachment
            continue
        if hook.knowledge.mode != mode:
            raise AttachError(
                f"{path!r} has an extractor already, with mode={hook.knowledge.mode!r}: it takes a new store, not another "
                "mode. Call kser_tf.detach(model) before."
            )
        connecting.append(_found(model, hook, path, attachment))
    if mode == APPEND:
        _require_unbuilt_behind(model, [place.layer for place, _ in places.values()])
    with _scope(model):
        hooks = [
            Hook(place, _made(place, attachment, mode, id_dropout, extractor), attachment=attachment)
            for place, attachment in places.values()
        ]
    holder = functional_of(model) if hooks else model
    for hook, place, attachment in connecting:
        _require_shape(hook.knowledge, place, attachment)
        _require_same_options(hook, id_dropout, {**extractor, **(attachment.extractor or {})})
        _require_unknown(place, hook.knowledge.id_dropout)
    _connect(connecting)
    if not hooks:
        forget_traces(model, compiled=False)
        return model
    return put_in_place(holder, hooks)


def connect_into(model: Any, into: Mapping[str, Any], *, adapt: bool) -> None:
    """Does `kser_tf.connect` for embeddings that have an extractor already, by their places' paths."""
    hooks = hooks_of(model)
    connecting = [_found(model, hooks[path], path, attachment) for path, attachment in _checked(into).items()]
    _connect(connecting)
    for hook, _, attachment in connecting:
        if adapt:
            hook.knowledge.extractor.adapt(attachment.store)


def require_detachable(model: Any) -> None:
    """Raises `AttachError` if the model would not work without what is attached to its embeddings."""
    wider = [path for path, hook in hooks_of(model).items() if hook.knowledge.mode == APPEND and hook.calls]
    if wider:
        raise AttachError(
            f"the layers behind {', '.join(map(repr, wider))} have been built for embeddings with knowledge beside them "
            "(mode='append'): without it the model does not work. Make the model anew to have it without knowledge."
        )


def report_into(model: Any) -> list[AttachedPlace]:
    """Returns what is attached to a model's embeddings."""
    return [_reported(hook) for hook in hooks_of(model).values()]


def require_one_keras(model: Any) -> None:
    """Raises `AttachError` unless the model is of the active Keras, and all of its layers."""
    active, other = ("Keras 2", "Keras 3") if keras_2_is_active() else ("Keras 3", "Keras 2")
    mend = (
        "Set the environment variable TF_USE_LEGACY_KERAS "
        f"to {0 if keras_2_is_active() else 1} before TensorFlow is imported, to have {other} as `tf.keras`"
    )
    if not isinstance(model, tf.keras.Model):
        if hasattr(model, "signatures"):
            raise AttachError(
                "the model is a SavedModel that was loaded. Make a Keras model of it: kser_tf.SavedModelBackbone(path)."
            )
        if _is_of_other_keras(model):
            raise AttachError(f"the model is a {other} model, and the active Keras is {active}. {mend}.")
        raise AttachError(f"`model` must be a tf.keras.Model. Received: {type(model).__name__}")
    for path, layer in {"the model": model, **layer_paths(model)}.items():
        for name, value in vars(layer).items():
            if _is_of_other_keras(value):
                raise AttachError(
                    f"`{name}` of {path} is a {other} layer in a {active} model, which does not see its weights: they are "
                    f"neither trained nor saved. Make all layers of one Keras, as tf.keras.layers. {mend}."
                )


def require_store(what: str, store: Any, wanted: str = "a kser_tf.KnowledgeStore") -> None:
    """Raises `AttachError` unless `store` is a knowledge store."""
    if not hasattr(store, "vectors") or not hasattr(store, "lookup"):
        raise AttachError(
            f"{what} must be {wanted}. Received: {type(store).__name__}. (Open a path with kser_tf.KnowledgeStore.open.)"
        )


def _is_of_other_keras(value: Any) -> bool:
    package = "keras." if keras_2_is_active() else "tf_keras."
    return any(base.__name__ == "Layer" and base.__module__.startswith(package) for base in type(value).__mro__)


def _checked(into: Mapping[str, Any]) -> dict[str, Attachment]:
    if not isinstance(into, Mapping) or not into:
        raise AttachError(f"`into` must be a dict from paths of embedding layers to stores. Received: into={into!r}")
    attachments = {}
    for path, given in into.items():
        attachment = given if isinstance(given, Attachment) else Attachment(given)
        require_store(f"into[{path!r}]", attachment.store, "a kser_tf.KnowledgeStore, or a kser_tf.Attachment with one")
        if attachment.history is not None or attachment.feedback_values():
            raise AttachError(
                f"into[{path!r}]: `history` and `feedback` are of the way at the output. Name the candidate's id feature there: "
                "at_output={'movie_id': kser_tf.Attachment(store, history=...)}; both ways may be given in one call."
            )
        attachments[path] = attachment
    return attachments


def _made(
    place: Place, attachment: Attachment, mode: str, id_dropout: float, options: Mapping[str, Any]
) -> KnowledgeEmbedding:
    _require_unknown(place, id_dropout)
    table = next((x for x in [place.layer, *layer_paths(place.layer).values()] if is_embedding(x)), place.layer)
    knowledge = KnowledgeEmbedding(
        mode=mode,
        extractor={**options, **(attachment.extractor or {})},
        id_dropout=id_dropout,
        dtype=table.dtype_policy,
        name=f"{name_of(place.path)}_knowledge",
    )
    knowledge.connect(attachment.store, index_ids=place.index_ids)
    with_weights(knowledge, place.width).extractor.adapt(attachment.store)
    return knowledge


def _require_options(options: Mapping[str, Any]) -> None:
    known = list(inspect.signature(KnowledgeExtractor).parameters)
    known.remove("kwargs")
    if unknown := [name for name in options if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise AttachError(
            f"{unknown[0]!r} is no option of what is attached to an embedding. {f'Near it: {near[0]!r}. ' if near else ''}"
            f"There are: mode, id_dropout, verbose, and those of the extractor: {', '.join(known)}."
        )


def _require_same_options(hook: Hook, id_dropout: float, options: Mapping[str, Any]) -> None:
    """An extractor that is there stays as it is: what is asked for must not be another one."""
    there = {**hook.knowledge.extractor.get_config(), "id_dropout": hook.knowledge.id_dropout}
    asked: dict[str, Any] = {"id_dropout": id_dropout} if id_dropout else {}
    if options:
        config = KnowledgeExtractor(**options).get_config()
        asked |= {name: config[name] for name in options}
    if other := [name for name, value in asked.items() if value != there[name]]:
        changes = ", ".join(f"{name}={there[name]!r}, not {asked[name]!r}" for name in other)
        raise AttachError(
            f"{hook.place.path!r} has an extractor already, with {changes}: it takes a new store, not other options. Leave "
            "them out, or begin anew: call kser_tf.detach(model) before."
        )


def _require_unknown(place: Place, id_dropout: float) -> None:
    if id_dropout and place.unknown is None:
        raise AttachError(
            f"id_dropout={id_dropout}: it cannot be told what {place.path!r} is called with for an entity that it does not "
            f"know ({place.ids}). Say it: into={{{place.path!r}: kser_tf.Attachment(store, unknown=<that id or index>)}}; or "
            "leave `id_dropout` out."
        )


_Connection = tuple[Hook, Place, Attachment]


def _found(model: Any, hook: Hook, path: str, attachment: Attachment) -> _Connection:
    """What a place that has an extractor is to be connected to, after making sure that it can be."""
    with _as_backbone_layer(hook):
        return hook, find_place(model, path, attachment), attachment


def _connect(connecting: list[_Connection]) -> None:
    """All or none."""
    for hook, place, attachment in connecting:
        _require_shape(hook.knowledge, place, attachment)
    for hook, place, attachment in connecting:
        hook.knowledge.connect(attachment.store, index_ids=place.index_ids)
        hook.place, hook.attachment = place, attachment


def _require_shape(knowledge: KnowledgeEmbedding, place: Place, attachment: Attachment) -> None:
    shape = tuple(attachment.store.vectors.shape[1:])
    if shape != tuple(knowledge.lookup.shape):
        raise AttachError(
            f"the extractor at {place.path!r} was made for knowledge of shape (fields, chunks, width) = "
            f"{tuple(knowledge.lookup.shape)}, and the store {attachment.store.path} has {shape}. Take a store that was "
            "encoded alike, or begin anew: call kser_tf.detach(model) before."
        )


def _require_unbuilt_behind(model: Any, places: list[Any]) -> None:
    inside = {id(inner) for place in places for inner in [place, *layer_paths(place).values()]}
    built = [
        path
        for path, layer in layer_paths(model).items()
        if layer.built and layer.weights and id(layer) not in inside and not _is_before_everything(layer)
    ]
    if built or model.built:
        named = f": {', '.join(map(repr, built[:_NAMED]))}" if built else ""
        raise AttachError(
            "mode='append' makes the embeddings wider, and the layers behind them have been built for the old width"
            f"{named}. Attach to the model before its first call, and train it from scratch; or use mode='residual', which "
            "keeps the width."
        )


def _is_before_everything(layer: Any) -> bool:
    """Whether a layer takes raw features: it is no wider for being beside a wider embedding."""
    kinds = (tf.keras.layers.StringLookup, tf.keras.layers.IntegerLookup, tf.keras.layers.Normalization)
    innermost = [x for x in [layer, *layer_paths(layer).values()] if x.weights and not layer_paths(x)]
    return all(is_embedding(x) or isinstance(x, kinds) for x in innermost)


def _scope(model: Any) -> Any:
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


@contextlib.contextmanager
def _as_backbone_layer(hook: Hook) -> Iterator[None]:
    """Gives a place's layer its own `call` back, for a block that tries it out."""
    attached = vars(hook.place.layer).pop("call")
    try:
        yield
    finally:
        vars(hook.place.layer)["call"] = attached


def _reported(hook: Hook) -> AttachedPlace:
    place, knowledge = hook.place, hook.knowledge
    store = None if hook.attachment is None else hook.attachment.store
    vocabulary = covered = None
    if store is not None and place.vocabulary is not None:
        vocabulary = len(place.vocabulary)
        covered = int((store.rows(np.asarray(place.vocabulary)) >= 0).sum()) if vocabulary else 0
    return AttachedPlace(
        path=place.path,
        layer=type(place.layer).__name__,
        ids=place.ids,
        width=place.width,
        mode=knowledge.mode,
        store=NO_STORE if store is None else store_name(store),
        rows=None if store is None else len(store.ids),
        vocabulary=vocabulary,
        covered=covered,
        calls=hook.calls,
    )
