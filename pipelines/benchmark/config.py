"""What a benchmark compares: data sets, texts, variants of models, and the parts of the matrix, from a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kser_tf.errors import ConfigError
from kser_tf.pipelines.config import STRICT_KEYS

BASE = "base"
# Of an interval over seeds, which says how far training depends on chance.
FEWEST_SEEDS = 2
# Keys of `TrainConfig` that a benchmark sets itself, cell by cell.
_SET_BY_THE_BENCHMARK = ("prepared", "output", "stores", "seed", "training_users")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to make examples of the log, and what all models are told there.

    Args:
        prepare: Keys of `PrepareConfig`, over the benchmark's.
        train: Keys of `TrainConfig`, over the benchmark's.
        pool: Keys of `PoolConfig`; `{}` for its defaults. Models with knowledge then have knowledge about users too, pooled from
            each text about the items. Defaults to none.
        divided_by_seed: Whether each seed has a division of its own: `prepare.seed` is then the cell's, so that test users and cold
            items are drawn anew. Intervals over seeds there tell of that chance too.
    """

    __pydantic_config__ = STRICT_KEYS

    prepare: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] | None = None
    divided_by_seed: bool = False

    def __post_init__(self) -> None:
        if self.divided_by_seed and "seed" in self.prepare:
            raise ConfigError("`divided_by_seed` makes `prepare.seed` the seed of each cell. Leave out one of them.")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the matrix: every variant, on every split, backbone, share of the training users and seed.

    Args:
        variants: Names of variants.
        backbones: Names of backbones.
        splits: Names of splits. Defaults to the first.
        training_users: Shares of the training users. Defaults to all of them.
        seeds: Seeds of initial weights and order of examples. Defaults to the benchmark's.
        one_seed: Whether one seed is enough here: nothing is then said about chance in training.
    """

    __pydantic_config__ = STRICT_KEYS

    variants: tuple[str, ...]
    backbones: tuple[str, ...] = ("din",)
    splits: tuple[str, ...] | None = None
    training_users: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] | None = None
    one_seed: bool = False


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The same budget for every variant: so many settings are tried, and the best on validation AUC is used for all seeds.

    The first trial is the variant as it is configured; the others are drawn without replacement from the product of the keys'
    values, without that one, by the same random numbers for all variants.

    Args:
        keys: For keys of `TrainConfig`, such as `learning_rate` or `model.embedding_l2`, the values that are tried.
        trials: How many settings are tried, for each variant, backbone and split.
        by_variant: Keys for one variant, beside `keys` and over them.
        like: Variants that are not tuned themselves but take the setting of another, such as `{placebo: kser}`.
        splits: Where settings are searched; on other splits what was found on the first of these is used. Defaults to all.
        backbones: Likewise for backbones.
        seed: Of all trials, and of the draw. None of the benchmark's seeds, so that what is chosen by it is not measured on it.
    """

    __pydantic_config__ = STRICT_KEYS

    keys: dict[str, list[Any]]
    trials: int
    by_variant: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 2:
            raise ConfigError(
                f"`trials` must be at least 2: the first is the variant as it is configured. Received: {self.trials}. "
                "To tune nothing, leave `tuning` out."
            )
        for key in ("splits", "backbones"):
            if getattr(self, key) == ():
                raise ConfigError(f"`tuning.{key}` is empty. Name at least one, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be reached in test AUC, on a slice, on every split and backbone that has both variants.

    Args:
        variant: Whose.
        against: The variant that it is compared with.
        slice: The slice.
        splits: Where the goal is set. Defaults to all splits.
        at_least: The least difference.
        within: The largest difference in either direction.
        above_zero: Whether the interval over seeds must lie above zero.
        kept_of: A variant whose gain over `against` is the whole.
        share: The least share of that gain.
        speed: The least ratio of the rows per second.
    """

    __pydantic_config__ = STRICT_KEYS

    variant: str
    against: str = BASE
    slice: str = "all"
    splits: tuple[str, ...] | None = None
    at_least: float | None = None
    within: float | None = None
    above_zero: bool = False
    kept_of: str | None = None
    share: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if (self.kept_of is None) != (self.share is None):
            raise ConfigError("`kept_of` and `share` go together: the least share of that variant's gain.")
        if self.at_least is self.within is self.share is self.speed is None and not self.above_zero:
            raise ConfigError(
                f"the goal of {self.variant} says nothing. Give `at_least`, `within`, `above_zero`, `share` or `speed`."
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A matrix of models, all trained and evaluated alike, and what is said of them.

    Args:
        name: The benchmark's name; without `work` it writes to `runs/<name>`.
        title: The page's title.
        notice: A sentence at the top of the page.
        work: Folder that everything is written to.
        simulate: Keys of `SimulateConfig`, for the built-in catalogue; its tables are `${work}/simulated/*.parquet`.
        prepare: Keys of `PrepareConfig` for all splits.
        splits: By name, how the examples are made: by user, by time, with other features.
        texts: By name the texts about the same entities: for each kind of entity keys of `EncodeConfig`.
        train: Keys of `TrainConfig` for all models.
        by_backbone: Keys of `TrainConfig` for one backbone.
        by_training_users: Keys of `TrainConfig` for one share of the training users, over all others and over what the search found
            with all users: fewer rows want smaller batches and stronger penalties.
        variants: By name keys of `TrainConfig`, over all others. `strategy` is all_parameters unless given. Further: `text`,
            the name of its text (the first unless given); `base`, with extractor_only, the variant that it starts from
            (`base` unless given); `shuffle_knowledge: seed`, a shuffle of each seed's own.
        against: For a variant the variants that it is compared with, first the one it must beat. Unless given `base`.
        parts: By name the parts of the matrix; a model that stands in several is trained once.
        seeds: Of parts that give none.
        slices_by_text: The text by whose amount items are put into slices. Defaults to the first.
        bootstrap: How often the test users are redrawn for the bootstrap's intervals; 0 for none.
        tuning: A budget for the search of settings. Defaults to none: all are as configured.
        goals: What is to be reached.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    prepare: dict[str, Any]
    splits: dict[str, Setting]
    texts: dict[str, dict[str, dict[str, Any]]]
    variants: dict[str, dict[str, Any]]
    parts: dict[str, Part]
    seeds: tuple[int, ...] = ()
    title: str = ""
    notice: str | None = None
    work: str | None = None
    simulate: dict[str, Any] | None = None
    train: dict[str, Any] = field(default_factory=dict)
    by_backbone: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_training_users: dict[float, dict[str, Any]] = field(default_factory=dict)
    against: dict[str, list[str]] = field(default_factory=dict)
    slices_by_text: str | None = None
    bootstrap: int = 1000
    tuning: Tuning | None = None
    goals: tuple[Goal, ...] = ()

    def __post_init__(self) -> None:
        for key in ("splits", "variants", "parts"):
            if not getattr(self, key):
                raise ConfigError(f"`{key}` is empty.")
        self._check_variants()
        for name, part in self.parts.items():
            self._check_part(name, part)
        self._check_names()
        if self.bootstrap < 0:
            raise ConfigError(f"`bootstrap` must not be negative. Received: {self.bootstrap}")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.work) if self.work is not None else Path("runs") / self.name

    def strategy(self, variant: str) -> str:
        """How a variant is trained."""
        return str(self.variants[variant].get("strategy", "all_parameters"))

    def text(self, variant: str) -> str | None:
        """The text that a variant knows."""
        if self.strategy(variant) == "base":
            return None
        return str(self.variants[variant].get("text") or next(iter(self.texts)))

    def base(self, variant: str) -> str | None:
        """The variant that a variant starts from."""
        return str(self.variants[variant].get("base", BASE)) if self.strategy(variant) == "extractor_only" else None

    def compared_with(self, variant: str) -> list[str]:
        """The variants that a variant is compared with."""
        return self.against.get(variant, [] if self.strategy(variant) == "base" else [BASE])

    def seeds_of(self, part: Part) -> tuple[int, ...]:
        """The seeds of a part."""
        return self.seeds if part.seeds is None else part.seeds

    def splits_of(self, part: Part) -> tuple[str, ...]:
        """The splits of a part."""
        return (next(iter(self.splits)),) if part.splits is None else part.splits

    def _check_variants(self) -> None:
        for name, keys in self.variants.items():
            where = f"variants.{name}"
            _check_path_name(name, "variants")
            for key in _SET_BY_THE_BENCHMARK:
                if key in keys:
                    raise ConfigError(f"`{where}.{key}` is set by the benchmark, cell by cell. Leave it out.")
            if self.strategy(name) == "base":
                if "text" in keys:
                    raise ConfigError(f"`{where}`: strategy base knows no text. Leave out `text`, or the strategy.")
            elif not self.texts:
                raise ConfigError(f"`{where}` needs a text, but `texts` is empty. Add one.")
            else:
                _check_known(self.text(name), self.texts, f"{where}.text", "texts")
            if self.strategy(name) != "extractor_only" and "base" in keys:
                raise ConfigError(
                    f"`{where}.base` goes with strategy extractor_only, which starts from a trained model."
                )
            if (base := self.base(name)) is not None:
                _check_known(base, self.variants, f"{where}.base", "variants")
        if BASE in self.variants and self.strategy(BASE) != "base":
            raise ConfigError(f"`variants.{BASE}` is what the others are compared with. Give it `strategy: base`.")

    def _check_part(self, name: str, part: Part) -> None:
        where = f"parts.{name}"
        for variant in part.variants:
            _check_known(variant, self.variants, f"{where}.variants", "variants")
        for split in part.splits or ():
            _check_known(split, self.splits, f"{where}.splits", "splits")
        for key in ("variants", "backbones", "training_users"):
            if not getattr(part, key):
                raise ConfigError(f"`{where}.{key}` is empty.")
        for backbone in part.backbones:
            _check_path_name(backbone, f"{where}.backbones")
        for share in part.training_users:
            if not 0 < share <= 1:
                raise ConfigError(f"`{where}.training_users` are shares, above 0 and at most 1. Received: {share}")
        seeds = self.seeds_of(part)
        if not seeds:
            raise ConfigError(f"`{where}` has no seed. Give `seeds` there, or for the whole benchmark.")
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"`{where}` has a seed twice. Received: {list(seeds)}")
        if len(seeds) < FEWEST_SEEDS and not part.one_seed:
            raise ConfigError(
                f"`{where}` has one seed, which gives no interval over seeds. Give at least {FEWEST_SEEDS} (better 5), or "
                "say `one_seed: true`."
            )
        if self.tuning is not None and self.tuning.seed in seeds:
            raise ConfigError(
                f"`tuning.seed` is {self.tuning.seed}, which is also a seed of `{where}`: what is chosen by it would be "
                "measured on it. Choose another."
            )

    def _check_names(self) -> None:
        for name in self.splits:
            _check_path_name(name, "splits")
        for name in self.texts:
            _check_path_name(name, "texts")
        if self.slices_by_text is not None:
            _check_known(self.slices_by_text, self.texts, "slices_by_text", "texts")
        for variant, others in self.against.items():
            for name in (variant, *others):
                _check_known(name, self.variants, f"against.{variant}", "variants")
        for goal in self.goals:
            for name in (goal.variant, goal.against, *([goal.kept_of] if goal.kept_of else [])):
                _check_known(name, self.variants, "goals", "variants")
            for name in goal.splits or ():
                _check_known(name, self.splits, "goals.splits", "splits")
            if goal.against not in self.compared_with(goal.variant):
                raise ConfigError(
                    f"`goals`: {goal.variant} is not compared with {goal.against}. Add it to `against.{goal.variant}`."
                )
        if self.tuning is not None:
            for name in (*self.tuning.by_variant, *self.tuning.like, *self.tuning.like.values()):
                _check_known(name, self.variants, "tuning", "variants")
            for name in self.tuning.splits or ():
                _check_known(name, self.splits, "tuning.splits", "splits")
            for name in self.tuning.like.values():
                if name in self.tuning.like:
                    raise ConfigError(f"`tuning.like`: {name} is not tuned itself. Name the variant that is.")


def _check_known(name: str | None, known: Mapping[str, Any] | Iterable[str], where: str, key: str) -> None:
    if name not in known:
        raise ConfigError(f"`{where}` names {name}, which is not in `{key}`. There: {', '.join(known)}.")


def _check_path_name(name: str, where: str) -> None:
    """Names become names of folders."""
    if not name or name.startswith(".") or any(character in name for character in "/\\*?[]"):
        raise ConfigError(f"`{where}`: {name!r} cannot be the name of a folder. Take letters, digits, `_` and `-`.")
