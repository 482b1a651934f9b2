"""attach_at_output: knowledge for a model that is taken as a black box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.attachment.before_attaching import functional_of
from kser_tf.attachment.into import require_one_keras, require_store
from kser_tf.attachment.output_corrected import (
    OUTPUT_KINDS,
    CorrectionPlan,
    HistoryFeatures,
    OutputCorrected,
    input_names,
    put_on,
)
from kser_tf.attachment.place import Attachment
from kser_tf.attachment.report import AT_OUTPUT, NO_STORE, AttachedPlace, store_name
from kser_tf.attachment.saved_model_backbone import SavedModelBackbone
from kser_tf.errors import AttachError
from kser_tf.layers import OutputCorrection

# Each value of a history's feedback is compared with all of them.
_MOST_VALUES = 256


def attach_at_output(
    model: Any,
    stores: Mapping[Any, Any],
    *,
    output: str | int | None = None,
    output_kind: str | None = None,
    context: Sequence[str | int] = (),
    backbone_logit: bool = False,
    adapt: bool = True,
    width: int = 16,
    hidden_units: Sequence[int] = (32,),
    kernel_regularizer: Any = None,
    xla: bool = False,
    **extractor: Any,
) -> Any:
    """Adds a correction, made of the knowledge about a row's entities, to the output of a model.

    Nothing inside the model is looked at or changed: it is called as before, and a correction is added to the logit that
    it returns. The correction starts at 0, so the first predictions are the old ones, bit for bit; and it stays 0 for a
    row whose entities the stores do not know, as long as the backbone itself is not trained.

    The model that comes back is the very object, of the same class with the correction added: its own `compute_loss`,
    `train_step` and metrics go on working, as do the names of its weights. It gets one more sub-layer,
    `output_correction`. If it was compiled it must be compiled again before `fit`. The correction is in the loss where
    the loss is computed from what the model returns; a `compute_loss` or `train_step` that calls sub-layers directly is
    refused when it runs.

    A backbone of which nothing is trained (`extractor_only(model, also=())`) runs as in inference, also within `fit`:
    its Dropout is inactive and its BatchNormalization keeps its moving averages.

    Args:
        model: A Keras model: subclassed (a `tfrs.Model`, for instance) or functional.
        stores: For each id feature a store with the knowledge about its entities, or a `kser_tf.Attachment` that also names
            what the user did before: its `history` and `feedback`. A feature is named by its key in the
            model's dict of features (`"sparse_features.movie_id"` of a dict in it), by its index where the model takes a
            tuple or list, by the name of an input of a functional model, or by the name of an argument of `call`. One id
            for each score: `(batch,)` or `(batch, 1)`, or `(batch, list)` for a listwise model; a user's id beside a list
            of items is taken for each of them.
        output: Which output is corrected, of a model that has several: a key or an index. Defaults to the only one.
        output_kind: What that output is: `"logit"`; `"probability"`, corrected in the space of its logit; or `"score"`,
            such as a rating that is regressed on, which the correction is added to as it is to a logit. Defaults to
            `"probability"` where a functional model ends in a sigmoid, else to `"logit"`.
        context: Features of the request, one number a score each, that the correction may depend on: its effect is how
            they change what an entity's knowledge says, and they have none without it. Defaults to none.
        backbone_logit: bool. Whether the backbone's own logit is such a number, its gradient stopped. Defaults to
            `False`.
        adapt: bool. Whether the extractors are told about the catalogue as a whole, which reads each store twice. Worth
            it unless the store has many millions of rows. Defaults to `True`.
        width: As for `kser_tf.layers.OutputCorrection`, like those that follow.
        hidden_units: Likewise.
        kernel_regularizer: Likewise.
        xla: Likewise: for a model that is compiled with `jit_compile=True`.
        **extractor: Arguments of the `kser_tf.layers.KnowledgeExtractor`.

    Returns:
        `model`, attached; for a Sequential model a functional one of the same layers.

    Raises:
        AttachError: The model cannot be attached to, with the reason and the way that would work. What can only be known
            when the model is called (features, shapes, outputs) is refused then, with a ValueError.

    Example:

    >>> model = kser_tf.attach(model, at_output={"movie_id": movies, "user_id": users})
    >>> kser_tf.extractor_only(model, also=())
    >>> model.compile(tf.keras.optimizers.Adam(1e-3))
    """
    require_one_keras(model)
    if isinstance(model, OutputCorrected):
        raise AttachError(
            f"the output of the model is corrected already, from {_listed(plan_of(model).features.values())}. "
            "Give it another store with kser_tf.connect; or detach it, and name all features in one call."
        )
    attachments = _checked(stores)
    model = functional_of(model)
    features = {_entity(feature): feature for feature in stores}
    histories = {
        _entity(feature): HistoryFeatures(attachment.history, tuple(attachment.feedback_values()))
        for feature, attachment in attachments.items()
        if attachment.history is not None
    }
    named = [name for history in histories.values() for name in (history.ids, *history.feedback)]
    _require_inputs(model, [*stores, *context, *named])
    by_entity = {_entity(feature): attachment.store for feature, attachment in attachments.items()}
    plan = CorrectionPlan(
        features=features,
        histories=histories,
        context=tuple(context),
        backbone_logit=backbone_logit,
        output=output,
        output_kind=_output_kind(model, output, output_kind),
        stores=dict(by_entity),
    )
    correction = OutputCorrection(
        by_entity,
        width=width,
        hidden_units=hidden_units,
        extractor=extractor,
        context_size=len(plan.context) + backbone_logit,
        kernel_regularizer=kernel_regularizer,
        xla=xla,
        histories={
            _entity(feature): list(attachment.feedback_values().values())
            for feature, attachment in attachments.items()
            if attachment.history is not None
        },
        name="output_correction",
    )
    correction.build()
    if adapt:
        correction.adapt(by_entity)
    return put_on(model, correction, plan)


def connect_output(model: Any, stores: Mapping[str | int, Any], *, adapt: bool) -> None:
    """Does `kser_tf.connect` for features whose knowledge corrects the output."""
    for feature, store in stores.items():
        require_store(repr(feature), store)
    names = {feature: name for name, feature in plan_of(model).features.items()}
    by_entity = {names[feature]: store for feature, store in stores.items()}
    model.output_correction.connect(by_entity)
    plan_of(model).stores.update(by_entity)
    if adapt:
        model.output_correction.adapt(by_entity)


def features_at_output(model: Any) -> list[str | int]:
    """Returns the features whose knowledge corrects the output of a model."""
    return list(plan_of(model).features.values()) if isinstance(model, OutputCorrected) else []


def report_output(model: Any) -> list[AttachedPlace]:
    """Returns what is attached at a model's output, feature by feature."""
    if not isinstance(model, OutputCorrected):
        return []
    plan, correction = plan_of(model), model.output_correction
    chosen = "" if plan.output is None else f" {plan.output!r}"
    places = []
    for entity, feature in plan.features.items():
        store, history = plan.stores.get(entity), plan.histories.get(entity)
        seen = "" if history is None else f", and history {history.ids!r}"
        places.append(
            AttachedPlace(
                path=str(feature),
                layer=f"the output{chosen}, a {plan.output_kind}{seen}",
                ids="unknown" if store is None else f"{store.id_dtype} ids",
                width=correction.width,
                mode=AT_OUTPUT,
                store=NO_STORE if store is None else store_name(store),
                rows=None if store is None else len(store.ids),
                vocabulary=None,
                covered=None,
                calls=plan.calls,
            )
        )
    return places


def plan_of(model: Any) -> CorrectionPlan:
    """Returns how the output of a model is corrected."""
    return model._correction_plan


def _entity(feature: str | int) -> str:
    return f"input_{feature}" if isinstance(feature, int) else feature


def _checked(stores: Any) -> dict[str | int, Attachment]:
    if not isinstance(stores, Mapping) or not stores:
        raise AttachError(
            f"`at_output` must name features and their stores, {{'movie_id': store}}. Received: {stores!r}"
        )
    attachments = {}
    for feature, given in stores.items():
        attachment = given if isinstance(given, Attachment) else Attachment(given)
        what = f"at_output[{feature!r}]"
        require_store(what, attachment.store, "a kser_tf.KnowledgeStore, or a kser_tf.Attachment with one")
        for name in ("vocabulary", "extractor", "unknown"):
            if getattr(attachment, name) is not None:
                raise AttachError(f"{what}: `{name}` is of the way into an embedding. At the output leave it out.")
        kinds = attachment.feedback_values()
        if kinds and attachment.history is None:
            raise AttachError(
                f"{what}: `feedback` tells what the user thought of what is in `history`. Name that feature too: "
                "kser_tf.Attachment(store, history=..., feedback=...)."
            )
        for told_by, values in kinds.items():
            if values is not None and (not values or len(values) > _MOST_VALUES):
                raise AttachError(
                    f"{what}: the feedback {told_by!r} has {len(values)} values; there are to be 1 to {_MOST_VALUES}. Give it as a "
                    "number, or name the values that matter: all others count as one."
                )
        attachments[feature] = attachment
    return attachments


def _listed(features: Any) -> str:
    return ", ".join(map(repr, features))


def _require_inputs(model: Any, features: Sequence[str | int]) -> None:
    """A functional model has its inputs, and takes no other."""
    names = input_names(model)
    for feature in features if names else ():
        if feature not in names and not (isinstance(feature, int) and -len(names) <= feature < len(names)):
            raise AttachError(
                f"{model.name} has no input {feature!r}. It has: {_listed(names)}. A functional model takes no other: "
                "make the id one of its inputs, tf.keras.Model({**inputs, 'movie_id': ...}, outputs)."
            )


def _output_kind(model: Any, output: str | int | None, kind: str | None) -> str:
    if kind is not None:
        if kind not in OUTPUT_KINDS:
            raise AttachError(f"`output_kind` must be one of {', '.join(OUTPUT_KINDS)}. Received: {kind!r}")
        return kind
    if isinstance(model, SavedModelBackbone):
        if model.output_name in OUTPUT_KINDS:
            return model.output_name
        raise AttachError(
            f"nothing tells what the output {model.output_name!r} of {model.folder} is. Say it: output_kind='logit', "
            "'probability' or 'score'."
        )
    if input_names(model):
        outputs = model.output if not isinstance(model.output, Mapping | list | tuple) else _of(model.output, output)
        layer = getattr(outputs, "_keras_history", (None,))[0]
        return "probability" if _is_sigmoid(layer) else "logit"
    ends = [
        layer.name
        for layer in model._flatten_layers(include_self=False, recursive=True)
        if _is_sigmoid(layer) and getattr(layer, "units", 1) == 1
    ]
    if ends:
        raise AttachError(
            f"{model.name} has the layer {_listed(ends)}, which ends in a sigmoid: what the model returns may be a "
            "probability. Say which it is: output_kind='probability' or output_kind='logit'."
        )
    return "logit"


def _of(outputs: Any, output: str | int | None) -> Any:
    try:
        return outputs[output]
    except (KeyError, IndexError, TypeError):
        return None


def _is_sigmoid(layer: Any) -> bool:
    return getattr(layer, "activation", None) is tf.keras.activations.sigmoid
