"""adapt_to_preferences: what counts as alike, learned from a data set, for models that knowledge is attached to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from kser_tf.attachment.output_corrected import OutputCorrected, past_of
from kser_tf.errors import AttachError
from kser_tf.layers import Past, preferences


def adapt_to_preferences(
    model: Any, examples: Iterable[Any], *, label: str | None = None, at_most: int = 1 << 17
) -> dict[str | int, int]:
    """Learns from training examples which knowledge counts as alike where a history corrects the output.

    Without it those are alike whose texts are; with it those that the same users like, as far as the texts tell it: see
    `kser_tf.layers.adapt_to_preferences`. It is done once, after `attach` and before `fit`, takes seconds, and changes no
    prediction of a freshly attached model. The learned directions are weights, saved and exported with the model.

    Args:
        model: A model with an `Attachment` that has a `history`.
        examples: Batches as of `fit`, shuffled: `(features, labels)`, or features alone with `label`. Iterated over twice
            for each history. Labels are numbers; greater is better.
        label: The feature that holds the label. Defaults to what stands beside the features.
        at_most: Of the first examples so many are looked at. Defaults to 131,072.

    Returns:
        For each id feature with a history, from how many examples it was learned: those whose candidate is in the store, with
        a history. 0 where they tell nothing: it then stays as it was.

    Raises:
        AttachError: No history is attached, or a batch has no label.
        ValueError: There is not one label for each candidate.

    Example:

    >>> past = kser_tf.Attachment(store, history="history", feedback="stars")
    >>> model = kser_tf.attach(model, at_output={"movie_id": past})
    >>> kser_tf.adapt_to_preferences(model, train.take(100), label="click")
    """
    plan = model._correction_plan if isinstance(model, OutputCorrected) else None
    if plan is None or not plan.histories:
        raise AttachError(
            "no history is attached to this model: attach(model, at_output={<id feature>: Attachment(store, history=...)})."
        )
    learned = {}
    for name in plan.histories:
        layer, pasts = model.output_correction.histories[name], _Pasts(model, name, examples, label, at_most)
        learned[plan.features[name]] = preferences.adapt_to_preferences(layer.profiles, layer.lookup, pasts)
    return learned


class _Pasts:
    """The first examples of a data set, as the layer's `adapt_to_preferences` takes them."""

    def __init__(self, model: Any, name: str, examples: Any, label: str | None, at_most: int) -> None:
        self._model, self._name, self._examples, self._label, self._at_most = model, name, examples, label, at_most

    def __iter__(self) -> Iterator[Past]:
        seen = 0
        for batch in self._examples:
            if seen >= self._at_most:
                return
            past = past_of(self._model, self._name, *_features_and_labels(batch, self._label))
            seen += int(tf.size(past.candidate))
            yield past


def _features_and_labels(batch: Any, label: str | None) -> tuple[Any, Any]:
    features, labels = (batch[0], batch[1]) if isinstance(batch, tuple) and len(batch) > 1 else (batch, None)
    if label is None:
        if labels is None:
            raise AttachError("the examples hold features alone: name with `label` the feature that holds the label.")
        return features, labels
    where = features if isinstance(features, Mapping) else {}
    if label not in where:
        raise AttachError(f"no feature is called {label!r}, as `label` says. There are: {', '.join(map(repr, where))}.")
    return features, where[label]
