"""attach: the knowledge extractor for a ranking model that somebody already has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kser_tf.attachment.into import attach_into, detach_into, report_into, require_one_keras
from kser_tf.attachment.report import AttachReport
from kser_tf.errors import AttachError
from kser_tf.layers.knowledge_embedding import RESIDUAL


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
    Attached once more at the same place, the extractor stays as it is and takes the new store.

    The model must be compiled after it; `fit` says so. A dataset that the model's layers were mapped over before, such as
    the candidates of TFRS' `FactorizedTopK`, goes on without knowledge.

    Args:
        model: A Keras 2 or Keras 3 model; `tfrs.Model` is one.
        into: For each path of an embedding layer (see `kser_tf.layer_paths.layer_paths`) its `kser_tf.KnowledgeStore`, or a
            `kser_tf.Attachment` that also says which ids the layer's indices stand for. Defaults to none.
        at_output: For each name of an id feature its store. Defaults to none.
        mode: `"residual"` (the width stays), or `"append"` (embedding and knowledge side by side), for models that are yet
            to be built and trained. Defaults to `"residual"`.
        id_dropout: float. With `into`: for which share of the entities `fit` goes on with the embedding that the layer has
            of an unknown id, so that the extractor learns what to do for entities that training never saw. For them it may
            be what knowledge helps at all. Only within `fit`, or `train_step`. Defaults to 0.
        verbose: bool. Whether what was found and done is printed. Defaults to `True`.
        **options: Arguments of the `kser_tf.layers.KnowledgeExtractor`, such as `num_heads`, `units`, `gate`.

    Returns:
        The model: the same object, or for a Sequential model a functional one of the same layers.

    Raises:
        LayerPathError: There is no layer of that name. The message lists what comes near.
        AttachError: The extractor cannot be attached there, with the reason and the way that works.

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
    if into is not None:
        model = attach_into(model, into, mode=mode, id_dropout=id_dropout, **options)
    if at_output is not None:
        from kser_tf.attachment.at_output import attach_at_output

        model = attach_at_output(model, at_output, **options)
    if verbose:
        print(attachments(model))
    return model


def detach(model: Any) -> Any:
    """Takes off what `attach` attached.

    The backbone's weights are as they are now: those of before where the extractor alone was trained. Names and order of
    weights are those of before, so old checkpoints fit. Compile the model after it.

    Args:
        model: What `attach` returned.

    Returns:
        The backbone: the object that was given to `attach`.

    Raises:
        AttachError: Nothing is attached.
    """
    if not attachments(model).places:
        raise AttachError("nothing is attached to the model.")
    return detach_into(model)


def attachments(model: Any) -> AttachReport:
    """Returns what is attached to a model: a table as a string, and an object to look into.

    Args:
        model: Any Keras model.
    """
    return AttachReport(report_into(model))
