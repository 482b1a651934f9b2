"""Place: an embedding layer of a model, and what is known of the ids that it is called with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.errors import AttachError
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.layer_paths import find_layer, is_stack, layer_paths

_VOCABULARY_LAYERS = (tf.keras.layers.StringLookup, tf.keras.layers.IntegerLookup)
# They turn what they are given into indices, and there is no way back to what it was.
_BUCKET_LAYERS = (tf.keras.layers.Hashing, tf.keras.layers.Discretization, tf.keras.layers.TextVectorization)
_OUTPUT_WAY = "or correct the logit instead: kser_tf.attach(model, at_output={<id feature>: store})"
_PROBE_IDS = 2


@dataclass(frozen=True)
class Attachment:
    """What is attached at one place: a store, and what else is to be known of that place.

    `vocabulary`, `extractor` and `unknown` are of the way into an embedding, `history` and `feedback` of the way at the output.

    Args:
        store: The `kser_tf.KnowledgeStore`.
        vocabulary: For an `Embedding` that is called with indices, made by a look-up layer elsewhere: that layer
            (`StringLookup` or `IntegerLookup`), or a list of the id of each index from 0 on (`None` for an index that
            stands for no id, as those of unknown ids do). Where the indices are the store's integer ids themselves:
            `range(n)`. Defaults to finding it out.
        extractor: dict. Arguments of this `kser_tf.layers.KnowledgeExtractor`, beside those of all. Defaults to none.
        unknown: For `id_dropout`: what the layer is called with for an entity that it does not know, an id or an index.
            Defaults to finding it out, which needs a look-up layer with a place for unknown ids.
        history: The feature that holds what the user did before, ids as the store's, `(batch, length)` or ragged. Whatever
            the store does not hold, such as the id that pads a history, counts as nothing. What the user thought of that
            whose knowledge is like the candidate's then corrects the output too. Defaults to none.
        feedback: The features that tell what the user thought of each, shaped as `history`: a name, or several, of numbers
            (ratings, dwell times); or a dict from names to the list of a feature's values, each of which is learned by
            itself, such as `{"event": ["view", "cart", "buy"], "stars": [1, 2, 3, 4, 5], "seconds": None}` (`None`: it is a
            number). Defaults to none: how like the candidate the history is then counts alone.
    """

    store: KnowledgeStore
    vocabulary: Any = None
    extractor: Mapping[str, Any] | None = None
    unknown: Any = None
    history: str | int | None = None
    feedback: str | int | Sequence[str | int] | Mapping[Any, Sequence[Any] | None] = ()

    def feedback_values(self) -> dict[str | int, list[Any] | None]:
        """Returns for each feature of feedback its values; `None` for numbers."""
        if isinstance(self.feedback, Mapping):
            return {name: None if values is None else list(values) for name, values in self.feedback.items()}
        names = [self.feedback] if isinstance(self.feedback, str | int) else self.feedback
        return dict.fromkeys(names)


@dataclass(frozen=True)
class Place:
    """An embedding layer that knowledge goes to.

    Args:
        path: str. Its path.
        layer: The layer.
        width: int. Of its vectors.
        ids: str. What it is called with, in words.
        index_ids: The id of each index, where it is called with indices; `None` where it is called with ids.
        vocabulary: The ids that it has vectors for, as far as that is known.
        unknown: What it is called with for an entity that it does not know; `None` if that is not known.
    """

    path: str
    layer: Any
    width: int
    ids: str
    index_ids: Any = None
    vocabulary: Any = None
    unknown: Any = None


def find_place(model: Any, path: str, attachment: Attachment) -> Place:
    """Returns the embedding layer at `path`, after making sure that the store's knowledge can go there.

    Raises:
        LayerPathError: There is no such layer.
        AttachError: The layer does not map ids to vectors, its width is unknown, or its ids are not the store's.
    """
    layer = find_layer(model, path)
    if isinstance(layer, tf.keras.layers.Embedding):
        place = _bare_embedding(model, path, layer, attachment)
    elif is_stack(layer) and layer.layers:
        place = _stack(model, path, layer, attachment)
    else:
        _refuse_vocabulary(path, attachment)
        place = Place(path, layer, _probed_width(path, layer, attachment.store.id_dtype), "as it is called")
    return place if attachment.unknown is None else replace(place, unknown=attachment.unknown)


def _bare_embedding(model: Any, path: str, layer: Any, attachment: Attachment) -> Place:
    store, vocabulary = attachment.store, attachment.vocabulary
    if getattr(layer, "combiner", None) and _called_with_several(layer):
        raise AttachError(
            f"{path!r} ({type(layer).__name__}, combiner={layer.combiner!r}) pools the vectors of several ids into one: there "
            f"is no id that the result belongs to. Pool with a layer of its own behind a tf.keras.layers.Embedding; "
            f"{_OUTPUT_WAY}."
        )
    stack_path, before = _before(model, layer)
    if vocabulary is None and before is not None:
        if not isinstance(before, _VOCABULARY_LAYERS):
            raise AttachError(
                f"{path!r} is called with what {before.name!r} ({type(before).__name__}) makes of the ids, and that cannot "
                f"be turned back. Attach to the whole of {stack_path!r}, which is called with the ids; {_OUTPUT_WAY}."
            )
        vocabulary = before
    if vocabulary is None:
        if store.id_dtype == "string":
            raise AttachError(
                f"{path!r} is an Embedding: it is called with indices, and the store's ids are strings. Say which ids the "
                f"indices stand for: into={{{path!r}: kser_tf.Attachment(store, vocabulary={_lookup_hint(model, layer)})}}"
            )
        _refuse_ambiguous(model, path, layer)
        vocabulary = range(layer.input_dim)
    index_ids, ids = _index_ids(path, layer, vocabulary, store)
    known = [value for value in index_ids if value is not None] if index_ids.dtype == object else index_ids
    unknown = _unknown_id(vocabulary)
    if unknown is not None:  # the layer is called with the index
        unknown = int(vocabulary(tf.constant([unknown]))[0])
    return Place(path, layer, int(layer.output_dim), ids, index_ids=index_ids, vocabulary=known, unknown=unknown)


def _called_with_several(layer: Any) -> bool:
    """Whether an embedding that pools, such as keras-rs' EmbedReduce, was built for more than one id a row."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape is None or len(shape) > 1


def _stack(model: Any, path: str, stack: Any, attachment: Attachment) -> Place:
    """A Sequential or functional model that ends in vectors, such as Sequential([StringLookup, Embedding])."""
    _refuse_vocabulary(path, attachment)
    inner = [layer for layer in stack.layers if not isinstance(layer, tf.keras.layers.InputLayer)]
    first, store = inner[0], attachment.store
    tables = [i for i, layer in enumerate(inner) if isinstance(layer, tf.keras.layers.Embedding)]
    if isinstance(stack, tf.keras.Sequential) and tables:
        _refuse_pooling(path, inner, tables[0])
    if isinstance(first, tf.keras.layers.TextVectorization):
        raise AttachError(
            f"{path!r} is called with texts, not with ids. Attach to the embedding of the ids; {_OUTPUT_WAY}."
        )
    if isinstance(first, _VOCABULARY_LAYERS):
        wanted = "string" if isinstance(first, tf.keras.layers.StringLookup) else "int64"
        _check_id_dtype(path, f"a {type(first).__name__}", wanted, store)
        plain = first.get_vocabulary(include_special_tokens=False)
        width = _width_of(path, stack, inner, tables, store)
        ids = f"{wanted} ids, {first.name!r}"
        return Place(path, stack, width, ids, vocabulary=plain, unknown=_unknown_id(first))
    if isinstance(first, tf.keras.layers.Embedding) and isinstance(stack, tf.keras.Sequential):
        whole = _bare_embedding(model, path, first, attachment)
        return replace(whole, layer=stack)
    width = _width_of(path, stack, inner, tables, store)
    return Place(path, stack, width, f"ids, {first.name!r} ({type(first).__name__})")


def _unknown_id(lookup: Any) -> Any:
    """An id that a look-up layer does not know, if it has a place for those."""
    if not isinstance(lookup, _VOCABULARY_LAYERS) or not lookup.num_oov_indices:
        return None
    known = set(lookup.get_vocabulary())
    is_string = isinstance(lookup, tf.keras.layers.StringLookup)
    candidates = (f"[UNKNOWN {i}]" if is_string else i for i in itertools.count(1))
    return next(candidate for candidate in candidates if candidate not in known)


def _width_of(path: str, stack: Any, inner: Sequence[Any], tables: Sequence[int], store: KnowledgeStore) -> int:
    if isinstance(stack, tf.keras.Sequential) and list(tables) == [len(inner) - 1]:
        return int(inner[-1].output_dim)
    return _probed_width(path, stack, store.id_dtype)


def _refuse_pooling(path: str, inner: Sequence[Any], table: int) -> None:
    for layer in inner[table + 1 :]:
        if "Pooling" in type(layer).__name__ or isinstance(layer, tf.keras.layers.Flatten | tf.keras.layers.RNN):
            raise AttachError(
                f"{path!r} pools the vectors of several ids into one, in {layer.name!r} ({type(layer).__name__}): there is "
                f"no id that the result belongs to. Attach to the embedding before it: into={{'{path}.{inner[table].name}': "
                "...}."
            )


def _probed_width(path: str, layer: Any, id_dtype: str) -> int:
    """The width of the vectors that any other layer makes, tried out on two ids."""
    if not layer.built:
        raise AttachError(
            f"{path!r} ({type(layer).__name__}) has not been built, so that its width is not known. Call the model on a batch "
            "once, then attach."
        )
    tried = []
    for ids in _probes(path, layer, id_dtype):
        try:
            vectors = layer(ids)
        except Exception as error:  # whatever a user's layer raises: it is the answer
            tried.append(
                f"{ids.dtype.name} ids of shape {tuple(ids.shape)}: {str(error).strip().splitlines()[0][:200]}"
            )
            continue
        if not isinstance(vectors, tf.Tensor) or vectors.shape.rank != ids.shape.rank + 1:
            came = f"shape {vectors.shape}" if isinstance(vectors, tf.Tensor) else type(vectors).__name__
            tried.append(f"{ids.dtype.name} ids of shape {tuple(ids.shape)}: it returns {came}")
            continue
        return int(vectors.shape[-1])
    raise AttachError(
        f"{path!r} ({type(layer).__name__}) does not map ids to vectors, as an embedding layer does, with one dimension more "
        f"than the ids. Tried: {'; '.join(tried)}. Attach to an embedding layer inside it or before it"
        f"{_inside(path, layer)}; {_OUTPUT_WAY}."
    )


def _probes(path: str, layer: Any, id_dtype: str) -> list[Any]:
    shapes: list[tuple[int, ...]] = [(_PROBE_IDS,), (_PROBE_IDS, 1)]
    if is_stack(layer) and layer.inputs:
        if len(layer.inputs) > 1:
            raise AttachError(
                f"{path!r} has {len(layer.inputs)} inputs, not ids alone. Attach to an embedding layer inside it"
                f"{_inside(path, layer)}; {_OUTPUT_WAY}."
            )
        shapes = [(_PROBE_IDS, *(size or 1 for size in tuple(layer.inputs[0].shape)[1:]))]
    return [tf.zeros(shape, tf.int64) if id_dtype == "int64" else tf.fill(shape, "") for shape in shapes]


def _inside(path: str, layer: Any) -> str:
    tables = [name for name, inner in layer_paths(layer).items() if isinstance(inner, tf.keras.layers.Embedding)]
    return f" ({', '.join(repr(f'{path}.{name}') for name in tables)})" if tables else ""


def _refuse_vocabulary(path: str, attachment: Attachment) -> None:
    if attachment.vocabulary is not None:
        raise AttachError(
            f"{path!r} is called with ids: `vocabulary` is for an Embedding that is called with indices. Leave it out, or "
            "name the Embedding inside."
        )


def _check_id_dtype(path: str, what: str, wanted: str, store: KnowledgeStore) -> None:
    if len(store) and store.id_dtype != wanted:
        mend = "ids.astype(str)" if wanted == "string" else "ids.astype('int64')"
        raise AttachError(
            f"{path!r} is called with {wanted} ids ({what}), and the store {store.path} has {store.id_dtype} ids. Write the "
            f"store with {wanted} ids: KnowledgeStore.write(path, {mend}, ...)."
        )


def _before(model: Any, layer: Any) -> tuple[str | None, Any]:
    """The stack that `layer` stands in, and what comes before it there, if that turns ids into indices."""
    for path, stack in {"": model, **layer_paths(model)}.items():
        if isinstance(stack, tf.keras.Sequential) and any(inner is layer for inner in stack.layers):
            position = next(i for i, inner in enumerate(stack.layers) if inner is layer)
            for before in reversed(stack.layers[:position]):
                if isinstance(before, _VOCABULARY_LAYERS + _BUCKET_LAYERS):
                    return path, before
    return None, None


def _refuse_ambiguous(model: Any, path: str, layer: Any) -> None:
    hint = _lookup_hint(model, layer, default=None)
    if hint is not None:
        raise AttachError(
            f"{path!r} is an Embedding, and {hint} makes as many indices as it has rows. Say whether it is called with those: "
            f"into={{{path!r}: kser_tf.Attachment(store, vocabulary={hint})}}; or with the store's ids themselves: "
            f"vocabulary=range({layer.input_dim})."
        )


def _lookup_hint(model: Any, layer: Any, default: str | None = "<the look-up layer, or a list of ids>") -> str | None:
    """The look-up layer of the model whose indices have an embedding's size, as one writes it."""
    for path, other in layer_paths(model).items():
        if isinstance(other, _VOCABULARY_LAYERS) and other.vocabulary_size() == layer.input_dim:
            return f"kser_tf.find_layer(model, {path!r})"
    return default


def _index_ids(path: str, layer: Any, vocabulary: Any, store: KnowledgeStore) -> tuple[Any, str]:
    """The id of each index, and how that is said in words."""
    if isinstance(vocabulary, _VOCABULARY_LAYERS):
        plain = vocabulary.get_vocabulary(include_special_tokens=False)
        special = vocabulary.vocabulary_size() - len(plain)
        index_ids = np.array([None] * special + list(plain), dtype=object)
        words = f"indices of {vocabulary.name!r}"
    elif isinstance(vocabulary, range):
        index_ids, words = np.asarray(vocabulary), "int64 ids"
    elif isinstance(vocabulary, list | tuple | np.ndarray):
        index_ids = np.array(
            [value.decode() if isinstance(value, bytes) else value for value in vocabulary], dtype=object
        )
        words = "indices of a list"
    else:
        raise AttachError(
            f"`vocabulary` of {path!r} must be a StringLookup or IntegerLookup layer, or a list of ids. Received: "
            f"{type(vocabulary).__name__}"
        )
    if len(index_ids) > layer.input_dim:
        raise AttachError(
            f"`vocabulary` of {path!r} has {len(index_ids)} indices, and the layer has {layer.input_dim} rows: it is another "
            "layer's vocabulary."
        )
    first = next((value for value in index_ids if value is not None), None)
    if first is not None:
        _check_id_dtype(path, words, "string" if isinstance(first, str) else "int64", store)
    return index_ids, words
