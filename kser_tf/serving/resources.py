"""What a served function touches beside its arguments: variables, look-up tables, knowledge."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.errors import ExportError
from kser_tf.layers import KnowledgeLookup
from kser_tf.models.feature_indexer import FeatureIndexer

# A SavedModel's graph is one protocol buffer of at most 2 GiB, constants included, and slow to load far below that.
LARGEST_CONSTANT_BYTES = 1 << 28

# What may hold layers and tables in its attributes. (A Keras 2 layer is a module, a Keras 3 layer is not.)
_HOLDERS = (tf.Module, tf.keras.layers.Layer, tf.saved_model.experimental.TrackableResource)
_FUNCTIONS = (types.FunctionType, types.MethodType)
_NAMED = 3  # as many operations are named in a message


def objects_in(*roots: Any) -> list[Any]:
    """Returns the layers, modules and look-up tables that models, modules and functions hold, each once.

    They are found in attributes, whether Keras tracks them or not, in lists, tuples, sets and mappings, at any depth;
    and in what a function that is one of `roots` takes from around it.
    """
    found, seen = [], set()
    waiting = list(reversed(roots))
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _HOLDERS):
            found.append(value)
            waiting.extend(vars(value).values())
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif isinstance(value, _FUNCTIONS) and any(value is root for root in roots):
            around = inspect.getclosurevars(value)
            waiting.extend([getattr(value, "__self__", None), *around.nonlocals.values(), *around.globals.values()])
    return found


@contextlib.contextmanager
def knowledge_in_variables(lookups: Sequence[KnowledgeLookup]) -> Iterator[list[Any]]:
    """Has `KnowledgeLookup` layers read copies of their tables for the block: variables, which a SavedModel can hold.

    Yields:
        The copies.

    Raises:
        ExportError: A layer has no store.
    """
    before = []
    try:
        for lookup in lookups:
            try:
                before.append((lookup, lookup.tables()))
            except ValueError as error:
                raise ExportError(str(error)) from None
        yield [lookup.tables(copy=True) for lookup in lookups]
    finally:
        for lookup, tables in before:
            lookup.use_tables(tables)


@contextlib.contextmanager
def vocabularies_in_variables(indexers: Sequence[FeatureIndexer]) -> Iterator[list[Any]]:
    """Has `FeatureIndexer`s look up values in variables for the block: a graph does not grow with them.

    Yields:
        Their look-up tables.
    """
    with contextlib.ExitStack() as stack:
        yield [table for indexer in indexers for table in stack.enter_context(indexer.vocabularies_in_variables())]


def tables_used(function: Any, holders: Sequence[Any]) -> list[Any]:
    """Returns those look-up tables among `holders` that a concrete function touches.

    Raises:
        ExportError: The function touches a table or another resource that is none of them, and so would not be saved;
            or it holds a constant that is too large for a graph.
    """
    variables = {id(variable.handle) for variable in function.graph.variables}
    tables = {
        id(holder.resource_handle): holder
        for holder in holders
        if isinstance(holder, tf.saved_model.experimental.TrackableResource)
    }
    used = []
    for outside, inside in function.graph.captures:
        if outside.dtype not in (tf.resource, tf.variant):
            _refuse_large(outside, inside)
        elif id(outside) in tables:
            used.append(tables[id(outside)])
        elif id(outside) not in variables:
            raise ExportError(
                "the model touches a look-up table or another resource that it does not hold, so that it would be "
                f"missing from the SavedModel: in {_users(inside)}. Make its owner (a tf.lookup table, a layer) an "
                "attribute of the model, or of a tf.Module that `preprocess` or `serve` refers to. (A tf.function that "
                "ran before holds on to what it touched then: leave out its decorator.)"
            )
    return used


def _refuse_large(tensor: Any, inside: Any) -> None:
    size = tensor.dtype.size * (tensor.shape.num_elements() or 0)
    if size > LARGEST_CONSTANT_BYTES:
        raise ExportError(
            f"the model would put a constant of {size / 1e6:,.0f} MB into the graph, {tensor.dtype.name} of shape "
            f"{tuple(tensor.shape)}, in {_users(inside)}. All of a SavedModel's graph has to be less than 2 GB. Keep "
            "it in a tf.Variable(trainable=False), which is saved in a file of its own."
        )


def _users(tensor: Any) -> str:
    """The operations that read a captured tensor: their names tell the layer."""
    names = sorted(f"`{operation.name}`" for operation in tensor.consumers())
    return ", ".join(names[:_NAMED]) or "an unknown place"
