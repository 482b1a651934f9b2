"""AttachedModel: a model whose embeddings get knowledge, in place."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from kser_tf.attachment.place import Attachment, Place
from kser_tf.keras_version import keras_2_is_active
from kser_tf.layer_paths import find_layer, layer_paths
from kser_tf.layers.knowledge_embedding import APPEND, KnowledgeEmbedding

# Where an attached model has its extractors.
ATTRIBUTE = "attached_knowledge"

# Whether this thread is in the training step of an attached model.
_running = threading.local()


@dataclass
class Hook:
    """What has been changed in an embedding layer.

    Args:
        place: The embedding layer.
        knowledge: What is called after it.
        replaced: The methods of the layer that have been replaced, by name; `None` for the class' own.
        attachment: The store and what else was given; `None` after loading from a file.
        calls: int. How often the layer was called since, traces included.
    """

    place: Place
    knowledge: KnowledgeEmbedding
    attachment: Attachment | None = None
    replaced: dict[str, Any] = field(default_factory=dict)
    calls: int = 0


class AttachedKnowledge(tf.keras.layers.Layer):
    """Holds the `KnowledgeEmbedding` layers of an attached model, each under its place's path."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Past Keras, which would track the places: they are tracked where they are.
        object.__setattr__(self, "hooks", {})


@tf.keras.utils.register_keras_serializable("kser_tf")
class AttachedModel:
    """What a model's class gets when knowledge is attached: it is saved with its extractors.

    The model itself stays the same object, of a class between it and its own class; its layers stay what and where they
    are. `detach` gives it its class back.
    """

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        # Most TFRS models call themselves without `training` in `compute_loss`, so that nothing below is told.
        before = getattr(_running, "train_step", False)
        _running.train_step = True
        try:
            return super().train_step(*args, **kwargs)  # type: ignore[misc]
        finally:
            _running.train_step = before

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Makes the backbone and attaches to it. It has no store until `kser_tf.attach` is called with one."""
        model = tf.keras.layers.deserialize(config["backbone"], custom_objects=custom_objects)
        hooks = []
        for path, saved in config["knowledge"].items():
            knowledge = with_weights(KnowledgeEmbedding.from_config(saved["layer"]), saved["width"])
            place = Place(path, find_layer(model, path), saved["width"], saved["ids"])
            hooks.append(Hook(place, knowledge))
        return put_in_place(model, hooks)

    def get_config(self) -> dict[str, Any]:
        """The backbone's whole description, and that of what is attached to it."""
        knowledge = {
            path: {"layer": hook.knowledge.get_config(), "width": hook.place.width, "ids": hook.place.ids}
            for path, hook in hooks_of(self).items()
        }
        with _as_backbone(self):
            return {"backbone": tf.keras.layers.serialize(self), "knowledge": knowledge}


def with_weights(knowledge: KnowledgeEmbedding, width: int) -> KnowledgeEmbedding:
    """Gives a `KnowledgeEmbedding` its weights, for embeddings of a width; named after it in both Kerases."""
    with tf.name_scope(knowledge.name):
        knowledge.build((None, width))
    return knowledge


def hooks_of(model: Any) -> dict[str, Hook]:
    """Returns what is attached to a model's embeddings, by the path of the place."""
    holder = getattr(model, ATTRIBUTE, None)
    return dict(holder.hooks) if isinstance(holder, AttachedKnowledge) else {}


def put_in_place(model: Any, hooks: list[Hook]) -> Any:
    """Has each place's layer call its `KnowledgeEmbedding`, and the model hold them all."""
    if not isinstance(model, AttachedModel):
        cls: Any = type(model)
        object.__setattr__(model, "__class__", _attached_class(cls))
        _set_layer(model, ATTRIBUTE, AttachedKnowledge(name=ATTRIBUTE))
    holder = getattr(model, ATTRIBUTE)
    for hook in hooks:
        name = name_of(hook.place.path)
        while hasattr(holder, name):
            name += "_"
        setattr(holder, name, hook.knowledge)
        holder.hooks[hook.place.path] = hook
        for name, replacement in _replacements(hook).items():
            hook.replaced[name] = vars(hook.place.layer).get(name)
            setattr(hook.place.layer, name, replacement)
    forget_traces(model)
    return model


def take_away(model: Any) -> Any:
    """Undoes `put_in_place`."""
    for hook in hooks_of(model).values():
        for name, before in hook.replaced.items():
            delattr(hook.place.layer, name)
            if before is not None:
                setattr(hook.place.layer, name, before)
    forget_traces(model)
    _delete_layer(model, ATTRIBUTE)
    object.__setattr__(model, "__class__", type(model).__mro__[2])
    return model


def forget_traces(model: Any) -> None:
    """Has a model forget what it compiled and traced: all of that knows only the layers of before."""
    for layer in [model, *layer_paths(model).values()]:
        if isinstance(layer, tf.keras.Model):
            for name in ("train_function", "test_function", "predict_function", "train_tf_function"):
                if getattr(layer, name, None) is not None:
                    setattr(layer, name, None)
            # `fit` then says that the model must be compiled.
            for name in ("_is_compiled", "compiled"):
                if name in vars(layer):
                    setattr(layer, name, False)
        _forget_functions(layer)


def _forget_functions(layer: Any) -> None:
    for base in type(layer).__mro__:
        for value in vars(base).values():
            if isinstance(value, tf.types.experimental.PolymorphicFunction):
                # A method under `@tf.function`: what it has traced for this layer is kept here, and nowhere else.
                value._descriptor_cache.pop(layer, None)
    for name, value in vars(layer).items():
        if isinstance(value, tf.types.experimental.PolymorphicFunction) and value.experimental_get_tracing_count():
            warnings.warn(
                f"`{name}` of {layer.name!r} is a tf.function that was traced before: it goes on doing what it did. Make it "
                "anew after attaching or detaching.",
                stacklevel=5,
            )


def _replacements(hook: Hook) -> dict[str, Callable[..., Any]]:
    layer, knowledge = hook.place.layer, hook.knowledge
    call = layer.call
    first_argument = next(iter(inspect.signature(call).parameters), "inputs")

    @functools.wraps(call)
    def call_with_knowledge(*args: Any, **kwargs: Any) -> Any:
        hook.calls += 1
        ids = args[0] if args else kwargs[first_argument]
        if knowledge.id_dropout and getattr(_running, "train_step", False):
            return knowledge(call(*args, **kwargs), ids, unknown=call(_alike(ids, hook.place.unknown)), training=True)
        return knowledge(call(*args, **kwargs), ids, training=False)

    replacements: dict[str, Callable[..., Any]] = {"call": call_with_knowledge}
    if knowledge.mode == APPEND:
        replacements |= _wider(layer, knowledge)
    return replacements


def _alike(ids: Any, unknown: Any) -> Any:
    """One id, of the dtype and rank of others."""
    rank = 1 if isinstance(ids, tf.RaggedTensor) else ids.shape.rank
    return tf.fill([1] * rank, tf.constant(unknown, ids.dtype))


def _wider(layer: Any, knowledge: KnowledgeEmbedding) -> dict[str, Callable[..., Any]]:
    """The methods that tell the shape of what a layer returns."""
    shape_of = layer.compute_output_shape

    @functools.wraps(shape_of)
    def compute_output_shape(*args: Any, **kwargs: Any) -> Any:
        shape = knowledge.compute_output_shape(tuple(shape_of(*args, **kwargs)))
        return tf.TensorShape(shape) if keras_2_is_active() else shape

    return {"compute_output_shape": compute_output_shape}


@functools.cache
def _attached_class(cls: type) -> type:
    made = type(cls.__name__, (AttachedModel, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    return tf.keras.utils.register_keras_serializable("kser_tf", "AttachedModel")(made)


@contextlib.contextmanager
def _as_backbone(model: Any) -> Iterator[None]:
    """Makes the model look as it did before attaching, for the block: to those who describe it, not to those who call it."""
    holder, cls = getattr(model, ATTRIBUTE), type(model)
    _delete_layer(model, ATTRIBUTE)
    object.__setattr__(model, "__class__", cls.__mro__[2])
    try:
        yield
    finally:
        object.__setattr__(model, "__class__", cls)
        _set_layer(model, ATTRIBUTE, holder)


def _set_layer(owner: Any, name: str, layer: Any) -> None:
    with _unlocked(owner):
        setattr(owner, name, layer)


def _delete_layer(owner: Any, name: str) -> None:
    tracker = getattr(owner, "_tracker", None)
    if tracker is not None:  # Keras 3 does not untrack what is deleted
        tracker.untrack(getattr(owner, name))
    delattr(owner, name)


@contextlib.contextmanager
def _unlocked(layer: Any) -> Iterator[None]:
    """Keras 3 takes no more layers into a built one, unless told to, as its own `enable_lora` does."""
    tracker: Any = getattr(layer, "_tracker", None)
    locked = tracker is not None and tracker.locked
    if locked:
        tracker.unlock()
    try:
        yield
    finally:
        if locked:
            tracker.lock()


def name_of(path: str) -> str:
    """Returns a path as a name for an attribute and a layer."""
    # Keras 2 makes a name scope of it, which takes neither all signs nor a leading underscore.
    return re.sub(r"[^A-Za-z0-9_]", "_", path).strip("_") or "embedding"
