"""stages: training in several stages, each with its own strategy and optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kser_tf.strategies import BACKBONE_PARTS, all_parameters, extractor_only


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of `fit_in_stages`.

    Args:
        epochs: int. How many epochs it takes.
        optimizer: What `compile` takes as optimizer, or a function that makes it of the model, such as
            `lambda model: kser_tf.learning_rates(tf.keras.optimizers.Adam(1e-3), model, extractor=5.0)`.
        extractor_only: bool. Whether it is `kser_tf.extractor_only`, or else `kser_tf.all_parameters`.
        also: For `extractor_only`.
        embedding: For `extractor_only`.
        output: For `extractor_only`.
    """

    epochs: int
    optimizer: Any
    extractor_only: bool = False
    also: tuple[str, ...] = BACKBONE_PARTS
    embedding: Any = None
    output: Any = None


def fit_in_stages(
    model: Any,
    stages: Sequence[Stage],
    *fit_arguments: Any,
    compile_options: Mapping[str, Any] | None = None,
    **fit: Any,
) -> list[Any]:
    """Trains a model in stages, such as the extractor for two epochs, then all parameters at a lower rate.

    Each stage sets its strategy, compiles the model with its optimizer and calls `fit`. Epochs are counted on from stage to
    stage, so that logs and schedules over epochs go on.

    Args:
        model: A built model with an extractor.
        stages: In order.
        *fit_arguments: Of `model.fit`, such as the dataset.
        compile_options: Further arguments of `model.compile`, such as `loss` and `metrics`.
        **fit: Further arguments of `model.fit`; not `epochs` and `initial_epoch`.

    Returns:
        The `History` of each stage.

    Raises:
        ValueError: There is no stage, or `epochs` or `initial_epoch` is given to `fit`.

    Example:

    >>> Adam = tf.keras.optimizers.Adam
    >>> kser_tf.fit_in_stages(model, [
    ...     kser_tf.Stage(extractor_only=True, epochs=2, optimizer=Adam(1e-3)),
    ...     kser_tf.Stage(epochs=1, optimizer=Adam(1e-4)),
    ... ], train, validation_data=validation)
    """
    if not stages:
        raise ValueError("`stages` is empty: give at least one kser_tf.Stage.")
    if given := {"epochs", "initial_epoch"} & set(fit):
        raise ValueError(f"each stage has its own number of epochs: leave {' and '.join(sorted(given))} out.")
    histories, done = [], 0
    for stage in stages:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*call `compile")  # which comes next
            if stage.extractor_only:
                extractor_only(model, also=stage.also, embedding=stage.embedding, output=stage.output)
            else:
                all_parameters(model)
        is_recipe = callable(stage.optimizer) and not hasattr(stage.optimizer, "apply_gradients")
        optimizer = stage.optimizer(model) if is_recipe else stage.optimizer
        model.compile(optimizer=optimizer, **dict(compile_options or {}))
        histories.append(model.fit(*fit_arguments, epochs=done + stage.epochs, initial_epoch=done, **fit))
        done += stage.epochs
    return histories
