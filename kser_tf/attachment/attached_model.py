"""AttachedModel: a model whose embeddings get knowledge, in place."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from kser_tf.attachment.bakeable_place import BakeablePlace
from kser_tf.attachment.before_attaching import before, remember, set_trainable
from kser_tf.attachment.place import Attachment, Place
from kser_tf.attachment.sub_layers import delete_layer, set_layer
from kser_tf.compiled import forget_traces
from kser_tf.keras_version import keras_2_is_active
from kser_tf.layer_paths import find_layer
from kser_tf.layers.knowledge_embedding import APPEND, KnowledgeEmbedding
from kser_tf.layers.statistics_at_hand import in_training_step, training_step
from kser_tf.model_parts import with_layers_below

# Where an attached model has its extractors.
ATTRIBUTE = "attached_knowledge"


@dataclass
class Hook:
    """What has been changed in an embedding layer.

    Args:
        place: The embedding layer.
        knowledge: What is called after it.
        backbone_call: The layer's `call` of before.
        replaced: The methods of the layer that have been replaced, by name; `None` for the class' own.
        attachment: The store and what else was given; `None` after loading from a file.
        calls: int. How often the layer was called since, traces included.
    """

    place: Place
    knowledge: KnowledgeEmbedding
    attachment: Attachment | None = None
    backbone_call: Callable[..., Any] | None = None
    replaced: dict[str, Any] = field(default_factory=dict)
    calls: int = 0


class AttachedKnowledge(tf.keras.layers.Layer):
    """Holds the `KnowledgeEmbedding` layers of an attached model, each under its place's path."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Past Keras, which would track the places: they are tracked where they are.
        object.__setattr__(self, "hooks", {})

    def bakeable_tables(self) -> list[BakeablePlace]:
        """Returns for each place what can be computed ahead: see `kser_tf.serving.baking`."""
        return [
            BakeablePlace(name_of(path), hook.place, hook.knowledge, hook.backbone_call)
            for path, hook in self.hooks.items()
            if hook.knowledge.is_connected
        ]


@tf.keras.utils.register_keras_serializable("kser_tf")
class AttachedModel:
    """What a model's class gets when knowledge is attached: it is saved with its extractors.

    The model itself stays the same object, of a class between it and its own class; its layers stay what and where they
    are. `detach` gives it its class back.
    """

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        # Most TFRS models call themselves without `training` in `compute_loss`, so that nothing below is told.
        with training_step():
            return super().train_step(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Makes the backbone and attaches to it. It has no store until `kser_tf.connect` gives it one."""
        model = tf.keras.utils.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        hooks = []
        for path, saved in config["knowledge"].items():
            knowledge = with_weights(KnowledgeEmbedding.from_config(saved["layer"]), saved["width"])
            place = Place(path, find_layer(model, path), saved["width"], saved["ids"])
            hooks.append(Hook(place, knowledge))
        return with_trainable(put_in_place(model, hooks), config["trainable"])

    def get_config(self) -> dict[str, Any]:
        """The backbone's whole description, and that of what is attached to it."""
        knowledge = {
            path: {"layer": hook.knowledge.get_config(), "width": hook.place.width, "ids": hook.place.ids}
            for path, hook in hooks_of(self).items()
        }
        trainable = trainable_of(self)
        with _as_backbone(self):
            return {"backbone": backbone_config(self), "knowledge": knowledge, "trainable": trainable}


# Keras 2 looks there for a registered class whose module has not been imported yet.
globals()["kser_tf>AttachedModel"] = AttachedModel


def backbone_config(model: Any) -> dict[str, Any]:
    """Returns the whole description of a model, but not how it is compiled: that is the attached model's."""
    config = tf.keras.utils.serialize_keras_object(model)
    config.pop("compile_config", None)
    return config


def trainable_of(model: Any) -> dict[str, list[bool]]:
    """Returns which layers of an attached model are trained, and were before anything was attached, to be saved."""
    noted = before(model)
    now = [bool(layer.trainable) for layer in with_layers_below(model)]
    return {"now": now, "before": [] if noted is None else noted.trainable}


def with_trainable(model: Any, trainable: dict[str, list[bool]]) -> Any:
    """Sets what `trainable_of` returned on a model that was loaded."""
    set_trainable(list(with_layers_below(model)), trainable["now"])
    noted = before(model)
    if noted is not None and len(noted.trainable) == len(trainable["before"]):
        noted.trainable = list(trainable["before"])
    return model


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
    remember(model)
    if not isinstance(model, AttachedModel):
        cls: Any = type(model)
        object.__setattr__(model, "__class__", _attached_class(cls))
        set_layer(model, ATTRIBUTE, AttachedKnowledge(name=ATTRIBUTE))
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


def take_away(model: Any) -> None:
    """Undoes `put_in_place`, which was the last thing that was done to the model's class."""
    for hook in hooks_of(model).values():
        for name, replaced in hook.replaced.items():
            delattr(hook.place.layer, name)
            if replaced is not None:
                setattr(hook.place.layer, name, replaced)
    forget_traces(model)
    delete_layer(model, ATTRIBUTE)
    object.__setattr__(model, "__class__", type(model).__mro__[2])


def _replacements(hook: Hook) -> dict[str, Callable[..., Any]]:
    layer, knowledge = hook.place.layer, hook.knowledge
    call = hook.backbone_call = layer.call
    first_argument = next(iter(inspect.signature(call).parameters), "inputs")

    @functools.wraps(call)
    def call_with_knowledge(*args: Any, **kwargs: Any) -> Any:
        hook.calls += 1
        ids = args[0] if args else kwargs[first_argument]
        if knowledge.id_dropout and in_training_step():
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
    made = type(cls.__name__, (AttachedModel, cls), {"__module__": __name__, "__doc__": cls.__doc__})
    return tf.keras.utils.register_keras_serializable("kser_tf", "AttachedModel")(made)


@contextlib.contextmanager
def _as_backbone(model: Any) -> Iterator[None]:
    """Makes the model look as it did before attaching, for the block: to those who describe it, not to those who call it."""
    holder, cls = getattr(model, ATTRIBUTE), type(model)
    delete_layer(model, ATTRIBUTE)
    object.__setattr__(model, "__class__", cls.__mro__[2])
    try:
        yield
    finally:
        object.__setattr__(model, "__class__", cls)
        set_layer(model, ATTRIBUTE, holder)


def name_of(path: str) -> str:
    """Returns a path as a name for an attribute and a layer."""
    # Keras 2 makes a name scope of it, which takes neither all signs nor a leading underscore.
    return re.sub(r"[^A-Za-z0-9_]", "_", path).strip("_") or "embedding"
