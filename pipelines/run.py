"""`kser-tf run`: all jobs of a configuration in a row, ending in a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kser_tf.errors import ConfigError
from kser_tf.pipelines.config import STRICT_KEYS, from_mapping, load_config
from kser_tf.pipelines.matrix import BY_SEED, bases_first, training_config
from kser_tf.pipelines.names import NameTable
from kser_tf.pipelines.steps import Steps

Variant = Literal["base", "all_parameters", "extractor_only", "placebo"]
# What each variant means to `train`.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"strategy": "base"},
    "all_parameters": {"strategy": "all_parameters"},
    "extractor_only": {"strategy": "extractor_only"},
    "placebo": {"strategy": "all_parameters", "shuffle_knowledge": BY_SEED},
}
_PREPARED = "prepared"
_SIMULATED = "simulated"


@dataclass(frozen=True, kw_only=True)
class TrainMatrix:
    """Which models a run trains: every backbone in every variant with every seed.

    Args:
        backbones: Names of backbones.
        variants: base, all_parameters, extractor_only (which needs base), placebo (all_parameters on shuffled knowledge).
        seeds: Seeds of initial weights and order of examples.
        settings: Keys of `TrainConfig` for all models.
        by_variant: Keys of `TrainConfig` for one variant, over `settings`.
        by_backbone: Keys of `TrainConfig` for one backbone, over `settings`.
    """

    __pydantic_config__ = STRICT_KEYS

    backbones: tuple[str, ...] = ("din",)
    variants: tuple[Variant, ...] = ("base", "all_parameters", "extractor_only")
    seeds: tuple[int, ...] = (1,)
    settings: dict[str, Any] = field(default_factory=dict)
    by_variant: dict[Variant, dict[str, Any]] = field(default_factory=dict)
    by_backbone: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "extractor_only" in self.variants and "base" not in self.variants:
            raise ConfigError(
                "`train.variants` has extractor_only, which starts from a trained base, but not base. Add it."
            )


@dataclass(frozen=True, kw_only=True)
class ServeChoice:
    """Which of the trained models is exported.

    Args:
        backbone: Defaults to the first.
        variant: Defaults to all_parameters.
        seed: Defaults to the first.
        examples: How many test examples go with the model, for the check.
    """

    __pydantic_config__ = STRICT_KEYS

    backbone: str | None = None
    variant: Variant = "all_parameters"
    seed: int | None = None
    examples: int = 512


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything from data to served model and report.

    Args:
        name: The run's name; without `work` it writes to `runs/<name>`.
        title: The report's title.
        notice: A sentence at the top of the report.
        work: Folder that everything is written to.
        simulate: Keys of `SimulateConfig`, for the built-in catalogue; its tables are `${work}/simulated/*.parquet`.
        prepare: Keys of `PrepareConfig`.
        encode: For each kind of entity keys of `EncodeConfig`.
        train: Which models are trained, and how.
        serve: Which of them is exported and checked.
        names: For each kind of entity where its names are, for the report. Defaults to none: ids are shown.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    prepare: dict[str, Any]
    encode: dict[str, dict[str, Any]]
    title: str = ""
    notice: str | None = None
    work: str | None = None
    simulate: dict[str, Any] | None = None
    train: TrainMatrix = field(default_factory=TrainMatrix)
    serve: ServeChoice = field(default_factory=ServeChoice)
    names: dict[str, NameTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.served not in _matrix(self.train):
            raise ConfigError(f"`serve` names {'{}/{}/seed-{}'.format(*self.served)}, which `train` does not train.")

    @property
    def served(self) -> tuple[str, str, int]:
        """Backbone, variant and seed of the model that is exported."""
        backbone = self.serve.backbone or self.train.backbones[0]
        seed = self.serve.seed if self.serve.seed is not None else self.train.seeds[0]
        return backbone, self.serve.variant, seed

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.work) if self.work is not None else Path("runs") / self.name


@dataclass(frozen=True)
class Trained:
    """One trained and evaluated model of a run."""

    backbone: str
    variant: str
    seed: int
    folder: Path
    training: dict[str, Any]
    metrics: dict[str, Any]


def load_run_config(
    path: str | Path, *, data: str | None = None, work: str | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: YAML file with the keys of `RunConfig`.
        data: What `${data}` in it stands for.
        work: Overrides its `work`.
        overrides: `key=value`, such as `train.seeds=[1, 2]`; the value is YAML.

    Raises:
        ConfigError: A key is unknown or missing, a value is of the wrong type, or `${data}` is used and not given.
    """
    return load_config(RunConfig, path, data=data, work=work, overrides=overrides)


def run(config: RunConfig) -> int:
    """Does all jobs in a row and writes the report.

    A job whose configuration and inputs are what they were is skipped. Progress goes to standard error, the report's
    figures as a text table to standard output.

    Returns:
        Exit status: 0, or 1 if the exported model failed its check.
    """
    from kser_tf.pipelines import encode, evaluate, export, prepare, simulate, train
    from kser_tf.pipelines.report import require_report_extra, text_summary, write_report
    from kser_tf.pipelines.run_report import build_report
    from kser_tf.serving.check import check

    require_report_extra()
    work = config.folder
    steps = Steps()
    if config.simulate is not None:
        settings = {"output": str(work / _SIMULATED), **config.simulate}
        steps.do(
            simulate.simulate, from_mapping(simulate.SimulateConfig, settings, source="simulate"), work / _SIMULATED
        )

    settings = {"output": str(work / _PREPARED), **config.prepare}
    steps.do(prepare.prepare, from_mapping(prepare.PrepareConfig, settings, source="prepare"), work / _PREPARED)

    stores = {}
    encode_configs = {}
    for entity, given in config.encode.items():
        stores[entity] = str(work / "stores" / entity)
        encode_configs[entity] = from_mapping(
            encode.EncodeConfig, {"output": stores[entity], **given}, source=f"encode.{entity}"
        )
        steps.do(encode.encode, encode_configs[entity], Path(stores[entity]))

    models = []
    for backbone, variant, seed in _matrix(config.train):
        training = train_config(config, stores, backbone, variant, seed)
        result = steps.do(train.train, training, Path(training.output))
        evaluation = evaluate.EvaluateConfig(model=training.output, prepared=training.prepared)
        metrics = steps.do(evaluate.evaluate, evaluation, evaluation.folder)
        models.append(Trained(backbone, variant, seed, Path(training.output), result, metrics))

    served = next(model for model in models if (model.backbone, model.variant, model.seed) == config.served)
    exporting = export.ExportConfig(
        model=str(served.folder),
        prepared=str(work / _PREPARED),
        output=str(work / "serving" / config.name),
        examples=config.serve.examples,
    )
    exported = steps.do(export.export, exporting, Path(exporting.output))
    checking = time.monotonic()
    checked = check(exported["path"])
    steps.note("check", time.monotonic() - checking)

    report = build_report(config, models, served, encode_configs, work / _PREPARED)
    report |= {"export": exported, "check": checked.as_dict(), "steps": steps.done}
    page = write_report(work / "report", report)
    print(text_summary(report))
    print(
        f"\nReport: {page}\nServed model: {exported['path']} ({'accepted' if checked.ok else 'REFUSED'} by the check)"
    )
    return 0 if checked.ok else 1


def train_config(config: RunConfig, stores: dict[str, str], backbone: str, variant: str, seed: int) -> Any:
    """Returns the `TrainConfig` of one model of the run."""
    models = config.folder / "models" / backbone
    by_variant = {str(name): settings for name, settings in config.train.by_variant.items()}
    return training_config(
        config.train.settings,
        config.train.by_backbone.get(backbone, {}),
        by_variant.get(variant, {}),
        VARIANTS[variant],
        backbone=backbone,
        seed=seed,
        prepared=str(config.folder / _PREPARED),
        output=str(models / variant / f"seed-{seed}"),
        stores=stores,
        base=str(models / "base" / f"seed-{seed}"),
        source="train",
    )


def _matrix(train: TrainMatrix) -> list[tuple[str, str, int]]:
    """All models in an order in which a base comes before what starts from it."""
    variants = bases_first(train.variants, {"extractor_only": "base"})
    return [(backbone, variant, seed) for backbone in train.backbones for seed in train.seeds for variant in variants]
