"""The job `train`: a ranking model, without knowledge or with it, by `model.fit`."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kser_tf.errors import ConfigError
from kser_tf.files import exclusive_lock
from kser_tf.models.config import RankingModelConfig
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.job import current_result, fingerprint_of, job_fingerprint, write_job

HISTORY_FILE = "history.csv"
_BACKUP_FOLDER = "backup"
_PLAN_FILE = "plan.txt"
# Rows predicted at once in validation: large enough to be quick, 30 MB of history embeddings.
EVALUATION_BATCH = 8192
# Examples that profiles are adapted to, and how many of them at once: of histories of 100 these are 400,000 entities' parts.
PREFERENCE_EXAMPLES = 1 << 17
_PREFERENCE_BATCH = 4096

Strategy = Literal["base", "all_parameters", "extractor_only"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Trains a ranking model with `model.fit` and keeps the weights of its best epoch.

    Args:
        prepared: Folder that `prepare` wrote.
        output: Folder for the model. A run that was stopped goes on from its last whole epoch.
        strategy: `base` (no knowledge), `all_parameters` (extractor and backbone together, from the start) or
            `extractor_only` (extractor, embedding and output layers, from a trained base; the core stays frozen).
        stores: For each kind of entity its knowledge store, such as `{movie: stores/movies}`.
        base: Folder of the trained base that `extractor_only` starts from.
        also: Parts of the backbone that `extractor_only` trains beside the extractor.
        rates: For the parts extractor, embedding, output and core what `learning_rate` is multiplied with. Defaults to 1. Not
            for base.
        shuffle_knowledge: Seed to shuffle the knowledge between the entities with: the placebo. Defaults to none.
        history_sample: Of the entities that stand in histories alone, a step aligns one in so many, and takes the others'
            knowledge from memory (`FeatureEmbedding.keep_historical_embeddings`): faster than 1, which aligns all. 0 aligns
            none, and histories read a candidate's from memory too: faster still. Defaults to 8, with `extractor_only` to 0.
        model: Hyper-parameters of the model.
        training_users: Share of the training users whose examples are trained on, for a learning curve: chosen by a hash of the
            user's id, so that a smaller share lies within a larger one. Vocabularies, validation and test stay whole.
        batch_size: Examples a step.
        epochs: At most so many.
        patience: Stops after so many epochs without a better validation AUC.
        learning_rate: Of Adam.
        decay: `cosine`: the learning rate falls to 0 over all `epochs`, along a cosine; `none`: it stays.
        seed: Of the initial weights and the order of the examples.
        tensorboard: Whether TensorBoard's files are written too. TensorBoard must be installed.
    """

    __pydantic_config__ = STRICT_KEYS

    prepared: str
    output: str
    strategy: Strategy = "base"
    stores: dict[str, str] = field(default_factory=dict)
    base: str | None = None
    also: tuple[Literal["embedding", "output"], ...] = ("embedding", "output")
    rates: dict[Literal["extractor", "embedding", "output", "core"], float] = field(default_factory=dict)
    shuffle_knowledge: int | None = None
    history_sample: int | None = None
    model: RankingModelConfig = field(default_factory=RankingModelConfig)
    training_users: float = 1.0
    batch_size: int = 1024
    epochs: int = 10
    patience: int = 1
    learning_rate: float = 1e-3
    decay: Literal["none", "cosine"] = "none"
    seed: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.strategy == "base" and self.stores:
            raise ConfigError(
                "strategy base uses no knowledge, but `stores` is given. Leave it out, or choose another strategy."
            )
        if self.strategy != "base" and not self.stores:
            raise ConfigError(f"strategy {self.strategy} needs `stores`, for each kind of entity its knowledge store.")
        if (self.strategy == "extractor_only") != (self.base is not None):
            raise ConfigError(
                "`base`, the folder of a trained base model, goes with strategy extractor_only, and only with it."
            )
        if self.strategy == "base" and self.rates:
            raise ConfigError(
                "`rates` tells an extractor's learning rate from the backbone's, and strategy base has none."
            )
        if not 0 < self.training_users <= 1:
            raise ConfigError(f"`training_users` is a share, above 0 and at most 1. Received: {self.training_users}")
        if self.history_sample is not None and self.history_sample < 0:
            raise ConfigError(f"`history_sample` must be at least 0. Received: {self.history_sample}")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("`tensorboard: true` needs TensorBoard: pip install tensorboard, or set it to false.")
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1. Received: {getattr(self, name)}")

    @property
    def one_of_history(self) -> int:
        """`history_sample`, or its default."""
        if self.history_sample is not None:
            return self.history_sample
        return 0 if self.strategy == "extractor_only" else 8


def train(config: TrainConfig) -> dict[str, Any]:
    """Does what `TrainConfig` says.

    Returns:
        What `job.json` in the output folder has as `result`: `best_epoch`, `validation_auc`, `epochs`, the parameters
        trained and in all, rows per second, the learning curve.

    Raises:
        KerasVersionError: Keras 3 is active.
        DataError, StoreError: An input is missing, damaged or does not fit.
    """
    inputs = training_inputs(config)
    if (done := current_result(config.output, job="train", config=config, inputs=inputs)) is not None:
        return done
    import tensorflow as tf

    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.optimizers import learning_rates
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.pipelines.fused_adam import FusedAdam
    from kser_tf.schema import DatasetSchema

    started, output = time.monotonic(), Path(config.output)
    references = {e: StoreReference.to(p, shuffle_seed=config.shuffle_knowledge) for e, p in config.stores.items()}
    stores = {entity: reference.open() for entity, reference in references.items()}
    schema = DatasetSchema.load(config.prepared)
    _check_entities(schema, stores)

    with exclusive_lock(output.parent / f".{output.name}.lock"):
        _forget_other_run(output, job_fingerprint("train", config, inputs))
        train_examples = IndexedExamples(config.prepared, "train", stores, users=config.training_users)
        validation_examples = IndexedExamples(config.prepared, "validation", stores)

        tf.keras.utils.set_random_seed(config.seed)
        model = RankingModel(schema, config.model, stores)
        model.make_weights()
        model.adapt(stores)
        # A base is told of it too, and has no knowledge to compare.
        if model.user_knowledge is not None and config.model.user_knowledge == "preferences":
            _adapt_to_preferences(model, train_examples)
        for examples in (train_examples, validation_examples):
            examples.prepare_for(model)
        if config.base is not None:
            model.copy_backbone(load_model(config.base))
        if config.one_of_history != 1:
            model.keep_historical_embeddings(config.one_of_history, decoupled=config.strategy == "extractor_only")
        report = _apply_strategy(model, config)
        steps = train_examples.steps(config.batch_size)
        rate: Any = config.learning_rate
        if config.decay == "cosine":
            rate = tf.keras.optimizers.schedules.CosineDecay(rate, steps * config.epochs)
        optimizer = FusedAdam(rate)
        if config.rates:
            rates: dict[str, Any] = {str(part): rate for part, rate in config.rates.items()}
            optimizer = learning_rates(optimizer, model, **rates)
        model.compile(optimizer)
        save_model(output, model, references)

        curve = _curve(output)
        if len(curve) < config.epochs and not _out_of_patience(curve, config.patience):
            model.fit(
                train_examples.shuffled_batches(
                    config.batch_size, seed=config.seed, epochs=config.epochs, first_epoch=len(curve)
                ),
                epochs=config.epochs,
                steps_per_epoch=steps,
                initial_epoch=len(curve),
                callbacks=_callbacks(config, output, curve, validation_examples, steps),
                verbose=2,
            )
            curve = _curve(output)
        shutil.rmtree(output / _BACKUP_FOLDER, ignore_errors=True)

        best = _best(curve)
        result = {
            "strategy": config.strategy,
            "backbone": config.model.backbone,
            "seed": config.seed,
            "best_epoch": best + 1,
            "validation_auc": curve[best]["val_auc"],
            "epochs": len(curve),
            "trained_parameters": report.trained_parameters,
            "total_parameters": report.total_parameters,
            "training_rows": len(train_examples),
            "rows_per_second": max(epoch["rows_per_second"] for epoch in curve),
            "training_seconds": sum(epoch["seconds"] for epoch in curve),
            "weights": WEIGHTS_FILE,
            "curve": curve,
        }
        write_job(output, job="train", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started)
        return result


def training_inputs(config: TrainConfig) -> dict[str, str]:
    """Returns the fingerprints of what a training run reads."""
    inputs = {"prepared": fingerprint_of(config.prepared)}
    for entity, path in config.stores.items():
        inputs[f"store {entity}"] = fingerprint_of(path)
    if config.base is not None:
        inputs["base"] = fingerprint_of(config.base)
    return inputs


def _adapt_to_preferences(model: Any, examples: Any) -> None:
    """Adapts the model's profiles to the examples, which is done once for all models with the same store."""
    (profiles,) = model.embedding.entity_profiles.values()

    def directions() -> Any:
        model.adapt_to_preferences(examples.some(PREFERENCE_EXAMPLES, _PREFERENCE_BATCH))
        return profiles.directions

    profiles.set_directions(examples.kept(f"preferences.{model.comparison_fingerprint()[:16]}", directions))


def _apply_strategy(model: Any, config: TrainConfig) -> Any:
    from kser_tf.strategies import all_parameters, extractor_only

    return extractor_only(model, also=config.also) if config.strategy == "extractor_only" else all_parameters(model)


def _check_entities(schema: Any, stores: Mapping[str, Any]) -> None:
    for entity in stores:
        if not any(feature.entity == entity for feature in schema.features):
            known = sorted({feature.entity for feature in schema.features if feature.entity})
            raise ConfigError(
                f"`stores` has knowledge about {entity!r}, but no feature names such entities. Entities: {', '.join(known) or 'none'}."
            )


def _forget_other_run(output: Path, fingerprint: str) -> None:
    """Clears the folder of a run with another configuration or other inputs; what this run left is kept and continued."""
    plan = output / _PLAN_FILE
    if output.exists() and not (plan.is_file() and plan.read_text() == fingerprint):
        if any(output.iterdir()) and not plan.is_file():
            raise ConfigError(
                f"{output} is not the folder of a training run, and is not overwritten. Choose another `output`."
            )
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    plan.write_text(fingerprint)


def _curve(output: Path) -> list[dict[str, float]]:
    """What was logged, epoch by epoch."""
    path = output / HISTORY_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if value not in ("", None)} for row in csv.DictReader(file)
        ]


def _out_of_patience(curve: list[dict[str, float]], patience: int) -> bool:
    return bool(curve) and len(curve) - 1 - _best(curve) >= patience


def _best(curve: list[dict[str, float]]) -> int:
    return max(range(len(curve)), key=lambda i: curve[i]["val_auc"])


def _callbacks(config: TrainConfig, output: Path, curve: Any, validation: Any, steps: int) -> list[Any]:
    import tensorflow as tf

    from kser_tf.models.model_folder import WEIGHTS_FILE
    from kser_tf.pipelines.callbacks import EpochTimer, HistoricalRefresh, ResumedEarlyStopping, ValidationAUC

    best = max((epoch["val_auc"] for epoch in curve), default=None)
    callbacks = [
        EpochTimer(config.batch_size, steps),
        HistoricalRefresh(),
        ValidationAUC(validation, EVALUATION_BATCH),
        tf.keras.callbacks.ModelCheckpoint(
            output / WEIGHTS_FILE,
            monitor="val_auc",
            mode="max",
            save_best_only=True,
            save_weights_only=True,
            initial_value_threshold=best,
        ),
        tf.keras.callbacks.BackupAndRestore(output / _BACKUP_FOLDER, delete_checkpoint=False),
        tf.keras.callbacks.CSVLogger(output / HISTORY_FILE, append=True),
        ResumedEarlyStopping(curve, monitor="val_auc", mode="max", patience=config.patience),
    ]
    if config.tensorboard:
        callbacks.append(tf.keras.callbacks.TensorBoard(output / "tensorboard", write_graph=False))
    return callbacks
