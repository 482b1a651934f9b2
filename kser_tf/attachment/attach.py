"""attach: the knowledge extractor for a ranking model that somebody already has."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from kser_tf.attachment.at_output import attach_at_output, connect_output, features_at_output, report_output
from kser_tf.attachment.attached_model import AttachedModel, hooks_of, take_away
from kser_tf.attachment.before_attaching import give_back
from kser_tf.attachment.into import attach_into, connect_into, report_into, require_detachable, require_one_keras
from kser_tf.attachment.output_corrected import OutputCorrected, take_off
from kser_tf.attachment.report import AttachReport
from kser_tf.compiled import forget_traces
from kser_tf.errors import AttachError, LayerPathError
from kser_tf.layer_paths import find_layer
from kser_tf.layers import KnowledgeExtractor
from kser_tf.layers.knowledge_embedding import RESIDUAL

_OUTPUT_OPTIONS = {
    name
    for name, parameter in inspect.signature(attach_at_output).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
} - {"kernel_regularizer"}
# The correction starts at 0 by a projection of its own.
_INTO_OPTIONS = {"output_initializer"}
_EXTRACTOR_OPTIONS = {
    name
    for name, parameter in inspect.signature(KnowledgeExtractor).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
} - _INTO_OPTIONS


def attach(
    model: Any,
    *,
    into: Mapping[str, Any] | None = None,
    at_output: Mapping[str, Any] | None = None,
    mode: str = RESIDUAL,
    id_dropout: float = 0.0,
    verbose: bool = True,
    **options: Any,
) -> Any:
    """Gives a ranking model the knowledge extractor, without a change to the model's code.

    `into` names embedding layers: what they return is from then on their embedding plus the aligned knowledge of the same
    id. `at_output` names id features: a correction from their knowledge is added to the logit. Both may be given. A freshly
    attached model predicts what it predicted before, bit for bit (not with `mode="append"`), and for ids without knowledge
    goes on to as long as only the extractor is trained.

    An embedding layer is a `tf.keras.layers.Embedding`, a `Sequential([StringLookup, Embedding])` and the like, or any layer
    that maps ids to vectors. It stays where and what it is; it only calls a `kser_tf.layers.KnowledgeEmbedding` with what it
    returns. So wherever the model uses the layer, as candidate or in a history, it gets the same extractor's knowledge.
    Attached once more at the same place, the extractor stays as it is and takes the new store, as by `connect`.

    The model must be compiled after it; `fit` says so. A dataset that the model's layers were mapped over before, such as
    the candidates of TFRS' `FactorizedTopK`, goes on without knowledge.

    Args:
        model: A Keras 2 or Keras 3 model; `tfrs.Model` is one.
        into: For each path of an embedding layer (see `kser_tf.layer_paths.layer_paths`) its `kser_tf.KnowledgeStore`, or a
            `kser_tf.Attachment` that also says which ids the layer's indices stand for. Defaults to none.
        at_output: For each name of an id feature its store, or a `kser_tf.Attachment` that also names the features which hold
            what the user did before (`history`) and thought of it (`feedback`). Defaults to none.
        mode: Of `into`: `"residual"` (the width stays), or `"append"` (embedding and knowledge side by side), for models
            that are yet to be built and trained. Defaults to `"residual"`.
        id_dropout: float. Of `into`: for which share of the entities `fit` goes on with the embedding that the layer has of
            an unknown id, so that the extractor learns what to do for entities that training never saw. For them it may be
            what knowledge helps at all. Only within `fit`, or `train_step`. Defaults to 0.
        verbose: bool. Whether what was found and done is printed. Defaults to `True`.
        **options: Arguments of the `kser_tf.layers.KnowledgeExtractor`, such as `num_heads`, `units`, `gate`, for both ways;
            `output_initializer` for `into` alone. For `at_output` alone `output`, `output_kind`, `context`, `backbone_logit`,
            `width`, `hidden_units`, `adapt` and `xla`: see `kser_tf.attachment.at_output.attach_at_output`.

    Returns:
        The model: the same object, or for a Sequential model a functional one of the same layers.

    Raises:
        LayerPathError: There is no layer of that name. The message lists what comes near.
        AttachError: The extractor cannot be attached there, with the reason and the way that works, or there is no such
            option.

    Example:

    >>> store = kser_tf.KnowledgeStore.open("stores/movies")
    >>> model = kser_tf.attach(model, into={"ranking_model.movie_embeddings": store})
    >>> kser_tf.extractor_only(model, also=())
    >>> model.compile(tf.keras.optimizers.Adam(0.003))
    """
    if into is None and at_output is None:
        raise AttachError(
            "say where: into={<path of an embedding layer>: store}, or at_output={<name of an id feature>: store}."
        )
    if id_dropout and into is None:
        raise AttachError(
            f"`id_dropout` is for `into`: at the output there is no embedding. Received: id_dropout={id_dropout}"
        )
    if mode != RESIDUAL and into is None:
        raise AttachError(f"`mode` is for `into`: at the output a correction is added. Received: mode={mode!r}")
    require_one_keras(model)
    _require_options(options, into=into is not None, at_output=at_output is not None)
    before = attachments(model).places
    if into is not None:
        ours = {name: given for name, given in options.items() if name not in _OUTPUT_OPTIONS}
        model = attach_into(model, into, mode=mode, id_dropout=id_dropout, **ours)
    if at_output is not None:
        ours = {name: given for name, given in options.items() if name not in _INTO_OPTIONS}
        try:
            model = attach_at_output(model, at_output, **ours)
        except AttachError:
            if into is not None and not before:
                detach(model)
            raise
    if verbose:
        print(attachments(model))
    return model


def connect(model: Any, stores: Mapping[Any, Any], *, adapt: bool = False) -> Any:
    """Gives the extractors of an attached model their stores: after loading from a file, or other ones.

    A `.keras` file, or a TensorFlow checkpoint, holds the extractors, not the stores. Another store must have the same fields,
    chunks and width, from the same encoder, as one with more entities has. What ESFNet knows of the catalogue as a whole stays
    as it was trained, unless `adapt` asks for it: the trained gate is then given other numbers.

    A model that was compiled goes on from there.

    Args:
        model: An attached model.
        stores: For each place, as it was named in `attach` (the path of an embedding layer, or the name of an id feature), a
            `kser_tf.KnowledgeStore`, or for an embedding a `kser_tf.Attachment`. Places that are left out keep their stores.
        adapt: bool. Whether ESFNet is adapted to the new catalogues. Defaults to `False`.

    Returns:
        `model`.

    Raises:
        AttachError: Nothing is attached at a place, or a store does not fit it.
        ValueError: A store's shape is not that of a feature's extractor.

    Example:

    >>> model = tf.keras.models.load_model("ranker.keras")
    >>> model = kser_tf.connect(model, {"movie_embeddings": store})
    """
    features, paths = features_at_output(model), {id(hook.place.layer): path for path, hook in hooks_of(model).items()}
    at_output, into = {}, {}
    for place, store in stores.items():
        path = paths.get(id(_layer_at(model, place)))
        if place not in features and path is None:
            there = ", ".join(repr(known) for known in [*paths.values(), *features]) or "nothing"
            raise AttachError(f"nothing is attached at {place!r}; attached is: {there}.")
        if place in features:
            at_output[place] = store
        if path is not None:
            into[path] = store
    if into:
        connect_into(model, into, adapt=adapt)
    if at_output:
        connect_output(model, at_output, adapt=adapt)
    forget_traces(model, compiled=False)
    return model


def detach(model: Any) -> Any:
    """Takes off all that `attach` attached, in either way and any order.

    The backbone's weights are as they are now: those of before where the extractor alone was trained. Names and order of
    weights, and which of them are trained, are those of before, so old checkpoints fit. Compile the model after it.

    Args:
        model: What `attach` returned.

    Returns:
        The backbone: the object that was given to `attach`.

    Raises:
        AttachError: Nothing is attached, or the model would not work without it.
    """
    if not attachments(model).places:
        raise AttachError("nothing is attached to the model.")
    require_detachable(model)
    # What was attached last is the outermost of the classes around the model's own.
    ways: dict[Any, Any] = {AttachedModel: take_away, OutputCorrected: take_off}
    while (take := ways.get(type(model).__mro__[1])) is not None:
        take(model)
    return give_back(model)


def attachments(model: Any) -> AttachReport:
    """Returns what is attached to a model: a table as a string, and an object to look into.

    Args:
        model: Any Keras model.
    """
    return AttachReport([*report_into(model), *report_output(model)])


def _require_options(options: Mapping[str, Any], *, into: bool, at_output: bool) -> None:
    known = _EXTRACTOR_OPTIONS | _INTO_OPTIONS | _OUTPUT_OPTIONS
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "into", "at_output", "mode"], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has: {', '.join(sorted(known))}."
            raise AttachError(f"attach has no option {name!r}.{hint}")
        if name in _OUTPUT_OPTIONS and not at_output:
            raise AttachError(f"the option {name!r} is one of the way at the output: it needs at_output={{...}}.")
        if name in _INTO_OPTIONS and not into:
            raise AttachError(f"the option {name!r} is one of the way into embeddings: it needs into={{...}}.")


def _layer_at(model: Any, path: Any) -> Any:
    try:
        return find_layer(model, str(path))
    except LayerPathError:
        return None
