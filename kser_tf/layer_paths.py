"""layer_paths: every sub-layer of a model, by the path that its author would write."""

from __future__ import annotations

import difflib
import functools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from kser_tf.errors import LayerPathError

# Of TFRS, what is told about a model and not part of it. Named as text: TFRS is not imported for it.
_NOT_OF_THE_MODEL = ("tensorflow_recommenders.tasks", "tensorflow_recommenders.metrics")
_NEAR_MISSES = 3


def layer_paths(model: Any) -> dict[str, Any]:
    """Returns every sub-layer of a model, at any depth, by its path.

    A path is what one would write to reach the layer, joined by dots: attribute names (`ranking_model.embedding`), positions
    in lists (`towers.0`), keys of dicts (`tables.movie`), and in Sequential and functional models the layers' names
    (`movie_model.string_lookup`). A layer that is reached in several ways stands under the one of the fewest parts, public
    attributes before private ones; `find_layer` takes the others too. Metrics, losses, optimizers, TFRS' tasks and the
    input layers of functional models are left out.

    Args:
        model: A Keras 2 or Keras 3 model or layer, built or not.

    Returns:
        The layers, in the order of their depth.

    Example:

    >>> from kser_tf.layer_paths import layer_paths
    >>> list(layer_paths(model))
    ['movie_model', 'rating_model', 'movie_model.string_lookup', 'movie_model.embedding', 'rating_model.dense']
    """
    found: dict[str, Any] = {}
    seen = {id(model)}
    waiting = deque([("", model)])
    while waiting:
        path, layer = waiting.popleft()
        for name, child in _children(layer):
            if id(child) not in seen:
                seen.add(id(child))
                found[path + name] = child
                waiting.append((f"{path}{name}.", child))
    return found


def find_layer(model: Any, path: str) -> Any:
    """Returns the sub-layer at `path`, which may be any of its paths.

    Args:
        model: A Keras 2 or Keras 3 model or layer.
        path: str, as in `layer_paths`. Layers of Sequential and functional models may also be given by their position,
            `movie_model.layers.1`.

    Raises:
        LayerPathError: There is no such layer. The message has the paths that come near it, and the embedding layers that
            there are.
    """
    layer = _resolve(model, path)
    if layer is not None:
        return layer
    paths = layer_paths(model)
    # The last part too, because it is the one that people remember.
    last = {known.rpartition(".")[2]: known for known in reversed(paths)}
    near = difflib.get_close_matches(path, paths, _NEAR_MISSES)
    near += [last[name] for name in difflib.get_close_matches(path.rpartition(".")[2], last, _NEAR_MISSES)]
    embeddings = [known for known, layer in paths.items() if is_embedding(layer)]
    message = f"{type(model).__name__} has no layer {path!r}."
    if is_stack(model) and path in _input_names(model):
        message = (
            f"{path!r} is an input of {model.name}, not an embedding layer. Name the embedding that it goes to; or correct the "
            f"logit by it: kser_tf.attach(model, at_output={{{path!r}: store}})."
        )
        near = []
    if near:
        message += f" Near it: {_quoted(dict.fromkeys(near))}."
    if embeddings:
        message += f" Its embedding layers: {_quoted(embeddings)}."
    elif not near:
        message += f" Its layers: {_quoted(paths) or 'none, or none that Keras tracks'}."
    raise LayerPathError(message)


def _input_names(model: Any) -> list[str]:
    return [str(tensor._keras_history[0].name) for tensor in tf.nest.flatten(model.inputs or [])]


def is_embedding(layer: Any) -> bool:
    """Says whether a layer is an embedding table: Keras' own, or another that is called so."""
    if isinstance(layer, tf.keras.layers.Embedding):
        return True
    return not isinstance(layer, tf.keras.Model) and "Embedding" in type(layer).__name__


def is_stack(layer: Any) -> bool:
    """Says whether a layer is a Sequential or a functional model, which knows its layers by name."""
    # Neither Keras offers the functional class; in both it bears this name, also among the bases of users' subclasses.
    return isinstance(layer, tf.keras.Sequential) or any(base.__name__ == "Functional" for base in type(layer).__mro__)


def _resolve(layer: Any, path: str) -> Any:
    for name, child in _children(layer, aliases=True):
        if path == name:
            return child
        if path.startswith(f"{name}."):
            below = _resolve(child, path[len(name) + 1 :])
            if below is not None:
                return below
    return None


def _children(layer: Any, *, aliases: bool = False) -> Iterator[tuple[str, Any]]:
    """The layers directly in `layer`, by name: what an author named comes before what Keras did."""
    attributes = {name: value for name, value in vars(layer).items() if name not in _attributes_of_keras()}
    named = [
        found
        for name in sorted(attributes, key=lambda name: name.startswith("_"))
        for found in _layers_in(name, attributes[name])
    ]
    if is_stack(layer):
        stacked = [child for child in layer.layers if _is_sub_layer(child)]
        attribute_layers = {id(child) for _, child in named}
        named = [(child.name, child) for child in stacked if aliases or id(child) not in attribute_layers] + named
        if aliases:
            named += [(f"layers.{i}", child) for i, child in enumerate(layer.layers) if _is_sub_layer(child)]
    yield from named
    # Whatever else Keras tracks, in a set or a module: by the layer's own name.
    known = {id(child) for _, child in named}
    for child in () if is_stack(layer) else layer._flatten_layers(recursive=False, include_self=False):
        if id(child) not in known and _is_sub_layer(child):
            yield child.name, child


def _layers_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The layers in an attribute's value: itself, or in lists, tuples and mappings at any depth."""
    if isinstance(value, tf.keras.layers.Layer):
        if _is_sub_layer(value):
            yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _layers_in(f"{name}.{key}", entry)
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value):
            yield from _layers_in(f"{name}.{position}", entry)


def _is_sub_layer(layer: Any) -> bool:
    if isinstance(layer, tf.keras.metrics.Metric | tf.keras.layers.InputLayer):
        return False
    return not any(base.__module__.startswith(_NOT_OF_THE_MODEL) for base in type(layer).__mro__)


@functools.cache
def _attributes_of_keras() -> frozenset[str]:
    """The attributes that Keras itself gives to layers and models: those of some that have no layer of an author's."""
    inputs = tf.keras.Input((1,))
    functional = tf.keras.Model(inputs, tf.keras.layers.Flatten()(inputs))
    sequential = tf.keras.Sequential([tf.keras.layers.Flatten()])
    sequential(tf.zeros((1, 1)))
    for model in (functional, sequential):
        model.compile("sgd", "mse")
    samples = [functional, sequential, tf.keras.Model(), tf.keras.layers.Layer()]
    return frozenset(name for sample in samples for name in vars(sample))


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
