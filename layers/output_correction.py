"""OutputCorrection: what the knowledge about a row's entities adds to a ranking model's logit."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kser_tf.layers.bakeable_vectors import BakeableVectors
from kser_tf.layers.history_correction import HistoryCorrection
from kser_tf.layers.knowledge_extractor import KnowledgeExtractor
from kser_tf.layers.knowledge_lookup import KnowledgeLookup
from kser_tf.layers.shaped_layer import cloned
from kser_tf.layers.statistics_at_hand import StatisticsAtHand, in_training_step
from kser_tf.layers.untracked import Untracked

# Keeps the reciprocal of a zero vector's length finite; small against the mean square of an aligned vector.
_EPSILON = 1e-6


@tf.keras.utils.register_keras_serializable("kser_tf")
class OutputCorrection(tf.keras.layers.Layer):
    """Makes a number of the knowledge about the entities of a row, to be added to the logit of a model.

    The model itself is not looked into: only ids go in, and what of the request is named as context. So this is for
    models that are black boxes, and it can learn three things that such a model may lack: how good an item is that it
    has seen little of (from the item's text alone), whom it suits (item times user), and in which situation (item times
    context). For each entity `e` with chunks `C_e`, and the pairs of entities and of entity and context,

        a_e = extractor_e(q_e, C_e)                                         (one learned query `q_e`)
        v_e = there_e * (a_e / rms(a_e) + b_e)                              (`there_e`: 1 with knowledge, else 0)
        x   = [there_e, v_e for each e; v_e * v_f for each pair; v_e * (P_e context) for each e]
        correction = w . relu(W x)

    `w` starts at zero, and so does every correction: added to a trained model, the layer leaves its predictions as they
    are until it has learned something. There is no bias but behind `there_e`, so the correction of a row without any
    knowledge is exactly 0 at every point of training.

    The context meets the aligned vectors, not the queries: so an extractor's work depends on the entity alone, and is
    done once for each distinct id of a batch. Context numbers are squashed, `sign(x) log(1 + |x|)`, such that an age or
    a price can be passed as it is; those that are missing (NaN) or infinite count as 0.

    Where what the user did before is given for an entity, of the same kind, a second correction is added: that of
    `HistoryLikeness`, from what the user thought of what is like the candidate.

    Built from the published description of KSER, which attaches to embeddings; the correction of an output is ours.

    Args:
        stores: For each entity's name a `kser_tf.KnowledgeStore`. Left out when the layer is made from its config:
            then `connect` gives them.
        width: int. Width of the aligned vectors. Defaults to `16`.
        hidden_units: Widths of the hidden layers between them and the correction. `()` makes it linear in `x`, a
            weighted dot product of each pair. Defaults to `(32,)`.
        extractor: dict. Arguments of each entity's `KnowledgeExtractor`, but for its `output_initializer` and
            `kernel_regularizer`. Defaults to its defaults.
        context_size: int. How many numbers the context of a row has. Defaults to `0`.
        kernel_regularizer: Regularizer of all kernels, those of the extractors too. Defaults to `None`.
        xla: bool. Whether XLA can compile the layer (`jit_compile=True`). The ids, which must be integers then, are found by
            binary search, and an entity's work is done for each of its rows. Defaults to `False`.
        histories: For the entities whose history is given, for each feature of feedback `None` where it is a number, or the
            list of its values. Defaults to none.
        shapes: For each entity's name `(fields, chunks, width)`. Taken from the stores.

    Call arguments:
        ids: For each entity's name the ids of the rows, `(batch,)`, integer or string as in the store.
        context: `(batch, context_size)`, floating point; `None` where `context_size` is 0. Its gradient is stopped.
        histories: For each entity in `histories` the ids of what the user did before, `(batch, length)`, where any id that
            the store does not hold stands for nothing; and a list of the feedback, `(batch, length)` each. Ragged alike.

    Returns:
        `(batch,)`, float32.

    Raises:
        ValueError: An argument is out of its range, an entity's ids or the context are missing or of another shape, or
            the layer has no store.

    Example:

    >>> correction = kser_tf.layers.OutputCorrection({"movie_id": store})
    >>> logit += correction({"movie_id": features["movie_id"]})
    """

    def __init__(
        self,
        stores: Mapping[str, Any] | None = None,
        *,
        width: int = 16,
        hidden_units: Sequence[int] = (32,),
        extractor: Mapping[str, Any] | None = None,
        context_size: int = 0,
        kernel_regularizer: Any = None,
        xla: bool = False,
        histories: Mapping[str, Sequence[Sequence[Any] | None]] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        trained_with: Mapping[str, str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not stores and not shapes:
            raise ValueError("`stores` must name at least one entity, such as {'movie_id': store}.")
        if width < 1 or any(units < 1 for units in hidden_units):
            raise ValueError(
                f"`width` and `hidden_units` must be at least 1. Received: width={width}, hidden_units={hidden_units}"
            )
        if context_size < 0:
            raise ValueError(f"`context_size` must not be negative. Received: context_size={context_size}")
        # Passed args.
        self.width = width
        self.hidden_units = tuple(hidden_units)
        self.extractor = dict(extractor or {})
        self.context_size = context_size
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.xla = xla
        # Derived. Sorted: files keep the layers of a dict by their order, and that must not be the caller's.
        self.entities = tuple(sorted(stores or shapes or {}))
        if unknown := set(histories or {}) - set(self.entities):
            raise ValueError(
                f"`histories` must be of {', '.join(self.entities)}. Received: {', '.join(sorted(unknown))}"
            )
        self._statistics: Any = Untracked({})
        # While a model is exported: for entities' names the vectors of all ids.
        self._baked: Any = Untracked({})
        # Each an attribute of its own: in a dict or list, TensorFlow's checkpoints would not find it under Keras 3.
        for i, name in enumerate(self.entities):
            lookup = KnowledgeLookup(
                stores[name] if stores else None,
                shape=_shape(shapes, name),
                trained_with=(trained_with or {}).get(name),
                dtype=self.dtype_policy,
                name=f"lookup_{i}",
            )
            made = KnowledgeExtractor(
                **self.extractor,
                # Else nothing would ever be learned: of two zero projections in a row neither has a gradient.
                output_initializer="glorot_uniform",
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"extractor_{i}",
            )
            lookup.supports_jit = xla
            setattr(self, lookup.name, lookup)
            setattr(self, made.name, made)
            self._statistics.value[name] = StatisticsAtHand(lookup, made.esf_net)
            if name in (histories or {}):
                setattr(
                    self,
                    f"history_{i}",
                    HistoryCorrection(lookup, (histories or {})[name], dtype=self.dtype_policy, name=f"history_{i}"),
                )
        for i, units in enumerate(self.hidden_units):
            setattr(self, f"hidden_{i}", self._dense(units, f"hidden_{i}"))
        # float32 in every precision policy, as the logit that it is added to.
        self.projection = tf.keras.layers.Dense(
            1, use_bias=False, kernel_initializer="zeros", dtype="float32", name="projection"
        )

    def _dense(self, width: int, name: str) -> Any:
        return tf.keras.layers.Dense(
            width,
            activation="relu",
            use_bias=False,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name=name,
        )

    @property
    def lookups(self) -> dict[str, KnowledgeLookup]:
        """For each entity's name its look-up."""
        return {name: getattr(self, f"lookup_{i}") for i, name in enumerate(self.entities)}

    @property
    def extractors(self) -> dict[str, KnowledgeExtractor]:
        """For each entity's name its extractor."""
        return {name: getattr(self, f"extractor_{i}") for i, name in enumerate(self.entities)}

    @property
    def histories(self) -> dict[str, HistoryCorrection]:
        """For the entities whose history is given, by name, what corrects by it."""
        numbered = {f"history_{i}": name for i, name in enumerate(self.entities)}
        return {name: getattr(self, layer) for layer, name in numbered.items() if hasattr(self, layer)}

    @property
    def _dense_layers(self) -> list[Any]:
        return [*(getattr(self, f"hidden_{i}") for i in range(len(self.hidden_units))), self.projection]

    def build(self, input_shape: Any = None) -> None:
        """Makes all weights. Their shapes follow from the arguments, so it can be called without any."""
        if hasattr(self, "_query_0"):
            return
        for i, extractor in enumerate(self.extractors.values()):
            weights = {"query": ((1, 1, self.width), "glorot_uniform"), "bias": ((self.width,), "zeros")}
            if self.context_size:
                weights["context_kernel"] = ((self.context_size, self.width), "glorot_uniform")
            for name, (shape, initializer) in weights.items():
                weight = self.add_weight(
                    name=f"{name}_{i}",
                    shape=shape,
                    initializer=cloned(initializer),
                    regularizer=self.kernel_regularizer if name == "context_kernel" else None,
                )
                setattr(self, f"_{name}_{i}", weight)
            with tf.name_scope(extractor.name):
                extractor.build((1, 1, self.width), (None, *getattr(self, f"lookup_{i}").shape))
        count = len(self.entities)
        vectors = count + count * (count - 1) // 2 + (count if self.context_size else 0)
        width = count + vectors * self.width
        for layer in self._dense_layers:
            with tf.name_scope(layer.name):
                layer.build((None, width))
            width = layer.units
        for history in self.histories.values():
            with tf.name_scope(history.name):
                history.build()
        self.built = True

    def call(
        self,
        ids: Mapping[str, Any],
        context: Any = None,
        histories: Mapping[str, Any] | None = None,
        training: bool | None = None,
    ) -> Any:
        missing = [name for name in self.entities if name not in ids]  # (AutoGraph knows no assignment expression.)
        if missing:
            raise ValueError(f"{self.name} needs the ids of {', '.join(missing)}. Received those of: {', '.join(ids)}")
        there, vectors = {}, {}
        for i, name in enumerate(self.entities):
            there[name], vectors[name] = self._there_and_vector(i, name, ids[name], bool(training))
        parts = [there[name] for name in self.entities] + [vectors[name] for name in self.entities]
        parts += [vectors[one] * vectors[other] for one, other in itertools.combinations(self.entities, 2)]
        if self.context_size:
            context = self._squashed(context)
            parts += [
                vectors[name] * tf.matmul(context, tf.cast(getattr(self, f"_context_kernel_{i}"), self.compute_dtype))
                for i, name in enumerate(self.entities)
            ]
        hidden = tf.concat(parts, -1)
        for layer in self._dense_layers:
            hidden = layer(hidden)
        corrections = [hidden[:, 0]]
        for name, layer in self.histories.items():
            corrections.append(tf.cast(self._corrected_by_history(name, layer, ids[name], histories), tf.float32))
        return tf.add_n(corrections)

    def _corrected_by_history(self, name: str, layer: HistoryCorrection, ids: Any, histories: Any) -> Any:
        if histories is None or name not in histories:
            raise ValueError(f"{self.name} needs the history for {name}.")
        history, feedback = histories[name]
        find = functools.partial(_searched, layer.lookup) if self.xla else None
        try:
            rows = layer.rows(history, find)
        except ValueError as error:
            raise ValueError(f"the history for {name!r}: {error}") from None
        # Profiles that are kept are compared with the weights where `fit` begins, and nowhere else.
        return layer(layer.rows(ids, find), rows, feedback, training=in_training_step())

    def _there_and_vector(self, i: int, name: str, ids: Any, training: bool) -> tuple[Any, Any]:
        """Whether there is knowledge of entity `i`, `(batch, 1)`, and the vector made of it, `(batch, width)`."""
        table = self._baked.value.get(name)
        if table is not None:
            known = tf.int64 if ids.dtype.is_integer else ids.dtype
            return self._parts(table.gather(table.rows(tf.cast(ids, known)), self.compute_dtype))
        lookup = getattr(self, f"lookup_{i}")
        try:
            rows, places = (_searched(lookup, ids), None) if self.xla else tf.unique(lookup.rows(ids))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
        both = self._vectors_of_rows(i, name, rows, training)
        return self._parts(both if places is None else tf.gather(both, places))

    def _vectors_of_rows(self, i: int, name: str, rows: Any, training: bool = False) -> Any:
        """What of an entity depends on its id alone: whether there is knowledge, and the vector, `(n, 1 + width)`."""
        lookup, extractor = getattr(self, f"lookup_{i}"), getattr(self, f"extractor_{i}")
        chunks, mask = lookup.lookup_rows(rows)
        query = tf.tile(tf.cast(getattr(self, f"_query_{i}"), self.compute_dtype), (tf.shape(rows)[0], 1, 1))
        at_hand = training or in_training_step()
        statistics = self._statistics.value[name](rows, chunks, mask) if at_hand else None
        aligned = extractor(query, chunks, mask=mask, statistics=statistics)[:, 0]
        # In float32: the squares of half precision are partly below what it can hold.
        wide = tf.cast(aligned, tf.float32)
        wide *= tf.math.rsqrt(tf.reduce_mean(wide * wide, -1, keepdims=True) + _EPSILON)
        there = tf.cast(tf.reduce_any(mask, (1, 2)), self.compute_dtype)[:, None]
        bias = tf.cast(getattr(self, f"_bias_{i}"), self.compute_dtype)
        return tf.concat([there, there * (tf.cast(wide, self.compute_dtype) + bias)], -1)

    def _parts(self, both: Any) -> tuple[Any, Any]:
        return both[:, :1], both[:, 1:]

    def refresh(self) -> None:
        """Makes what is kept for training, anew where weights were loaded with which it would be something else."""
        for history in self.histories.values():
            if history.profiles.is_at_hand:
                history.profiles.refresh()
            elif history.lookup.is_connected:
                history.profiles.remember()

    def bakeable_tables(self) -> list[BakeableVectors]:
        """Returns for each entity that has a store what can be computed ahead: see `kser_tf.serving.baking`."""
        connected = {name: lookup for name, lookup in self.lookups.items() if lookup.is_connected}
        vectors = [self._bakeable(self.entities.index(name), name, lookup) for name, lookup in connected.items()]
        # A table of their own: of int8, each row has one scale, and profiles are smaller than vectors.
        return vectors + [
            history.bakeable(f"profile_{_table_name(name)}")
            for name, history in self.histories.items()
            if name in connected
        ]

    def _bakeable(self, i: int, name: str, lookup: KnowledgeLookup) -> BakeableVectors:
        def compute(ids: Any) -> Any:
            return self._vectors_of_rows(i, name, lookup.rows(ids))

        def use(table: Any | None) -> None:
            others = {other: baked for other, baked in self._baked.value.items() if other != name}
            self._baked.value = others if table is None else {**others, name: table}

        def describe(ids: Any) -> dict[str, Any]:
            vector = tf.cast(self._there_and_vector(i, name, ids, False)[1], tf.float32)
            return {"embedding": vector, "aligned": vector}

        return BakeableVectors(
            f"correction_{_table_name(name)}",
            lookup,
            lookup.tables().ids,
            1 + self.width,
            compute=compute,
            use=use,
            describe=describe,
        )

    def _squashed(self, context: Any) -> Any:
        if context is None or context.shape.rank != 2 or context.shape[1] not in (None, self.context_size):
            raise ValueError(
                f"{self.name}: `context` must be (batch, {self.context_size}). "
                f"Received: {'none' if context is None else context.shape}"
            )
        context = tf.stop_gradient(tf.cast(context, self.compute_dtype))
        context = tf.where(tf.math.is_finite(context), context, tf.zeros_like(context))
        return tf.sign(context) * tf.math.log1p(tf.abs(context))

    def connect(self, stores: Mapping[str, Any]) -> None:
        """Gives some or all of the entities a store, in place of what was there; models must be compiled anew after it.

        Raises:
            ValueError: There is no such entity, or a store's fields, chunks or width are not those of the layer.
        """
        if unknown := set(stores) - set(self.entities):
            raise ValueError(
                f"{self.name} has the entities {', '.join(self.entities)}. Received: {', '.join(sorted(unknown))}"
            )
        for name, store in stores.items():
            self.lookups[name].connect(store)
            self._statistics.value[name] = StatisticsAtHand(self.lookups[name], self.extractors[name].esf_net)
            if name in self.histories:
                self.histories[name].profiles.forget()

    def adapt(self, stores: Mapping[str, Any]) -> None:
        """Tells each extractor about its catalogue as a whole, as `KnowledgeExtractor.adapt` does.

        It changes no correction that is still zero. Reads each store twice. The layer must be built.
        """
        for name, store in stores.items():
            self.extractors[name].adapt(store)
            if name in self.histories:
                self.histories[name].profiles.adapt(store)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            width=self.width,
            hidden_units=list(self.hidden_units),
            extractor=self.extractor,
            context_size=self.context_size,
            kernel_regularizer=tf.keras.regularizers.serialize(self.kernel_regularizer),
            xla=self.xla,
            histories={name: history.kinds for name, history in self.histories.items()},
            shapes={name: list(lookup.shape) for name, lookup in self.lookups.items()},
            trained_with={name: lookup.trained_with for name, lookup in self.lookups.items()},
        )
        return config


def _searched(lookup: KnowledgeLookup, ids: Any) -> Any:
    """The rows of integer ids as `KnowledgeLookup.rows` gives them, in a way that XLA can compile."""
    known = lookup.tables().ids
    if known.dtype.kind != "i" or not ids.dtype.is_integer:
        raise ValueError(
            f"with xla=True the ids must be integers, in the store and in the call. The store has {known.dtype} ids, the "
            f"ids looked up are {ids.dtype.name}. Leave out xla=True, and compile without `jit_compile`."
        )
    if not len(known):
        return tf.fill(tf.shape(ids), -1)
    order = np.argsort(known, kind="stable")
    in_order, ids = tf.constant(known[order], tf.int64), tf.cast(ids, tf.int64)
    places = tf.minimum(tf.searchsorted(in_order, ids), len(known) - 1)
    found = tf.equal(tf.gather(in_order, places), ids)
    return tf.where(found, tf.gather(tf.constant(order, tf.int32), places), -1)


def _table_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _shape(shapes: Mapping[str, Sequence[int]] | None, name: str) -> Any:
    return None if shapes is None else tuple(shapes[name])
