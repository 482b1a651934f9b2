"""The cells of a benchmark: which there are, in what order, what each needs, and how it is trained and evaluated."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import ConfigError
from kser_tf.pipelines.benchmark.config import BenchmarkConfig, Part
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.encode import EncodeConfig
from kser_tf.pipelines.evaluate import EvaluateConfig
from kser_tf.pipelines.matrix import bases_first, merged, training_config
from kser_tf.pipelines.pool import PoolConfig
from kser_tf.pipelines.prepare import PrepareConfig
from kser_tf.pipelines.train import TrainConfig

# What a variant says to the benchmark; the rest is for `train`.
_BENCHMARK_KEYS = ("text", "base")


@dataclass(frozen=True, order=True)
class Examples:
    """What cells are trained and tested on: a split, or one seed's division of it."""

    split: str
    seed: int | None = None

    @property
    def name(self) -> str:
        """Its folder below `prepared` and `pooled`."""
        return self.split if self.seed is None else f"{self.split}/seed-{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One model of a benchmark, trained once and evaluated once; with `trial`, one that is trained to find a setting."""

    backbone: str
    variant: str
    split: str
    seed: int
    training_users: float = 1.0
    trial: int | None = None

    @property
    def name(self) -> str:
        """Its folder below `cells`, and what patterns are compared with."""
        last = f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}"
        return f"{self.backbone}/{self.variant}/{self.split}/users-{self.training_users:g}/{last}"


class BenchmarkMatrix:
    """All cells of a benchmark, in an order in which each comes after what it needs.

    Args:
        config: The benchmark.

    Raises:
        ConfigError: A cell starts from, or is compared with, one that is in no part; a key is unknown, or its value wrong.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        self._encodings = {text: self._encodings_of(text) for text in config.texts}
        self.settings = {variant: self._settings_to_try(variant) for variant in config.variants}
        measured = dict.fromkeys(cell for part in config.parts.values() for cell in self.cells_of(part))
        self._check_neighbours(measured)
        self.cells = list(dict.fromkeys(one for cell in measured for one in (*self.needs(cell), cell)))
        self._preparations = {
            examples: self._preparation(examples)
            for examples in dict.fromkeys([*map(Examples, config.splits), *map(self.examples, self.cells)])
        }
        known = {(self.examples(cell), text) for cell in self.cells if (text := config.text(cell.variant)) is not None}
        self._poolings = {
            (examples, text): self._pooling(examples, text)
            for examples, text in sorted(known)
            if config.splits[examples.split].pool is not None
        }
        self._check_keys()

    def cells_of(self, part: Part) -> list[Cell]:
        """A part's cells; all models of one seed before the next seed, so that a summary in the middle is of whole seeds."""
        config = self.config
        bases = {variant: base for variant in config.variants if (base := config.base(variant)) is not None}
        variants = bases_first(part.variants, bases)
        return [
            Cell(backbone, variant, split, seed, share)
            for split, share, seed, backbone, variant in itertools.product(
                config.splits_of(part), part.training_users, config.seeds_of(part), part.backbones, variants
            )
        ]

    def examples(self, cell: Cell) -> Examples:
        """What a cell is trained and tested on."""
        return Examples(cell.split, cell.seed if self.config.splits[cell.split].divided_by_seed else None)

    def preparation(self, examples: Examples) -> PrepareConfig:
        """How examples are made."""
        return self._preparations[examples]

    def encodings(self, text: str) -> dict[str, EncodeConfig]:
        """For each kind of entity how a text about it is encoded."""
        return self._encodings[text]

    def pooling(self, examples: Examples, text: str) -> PoolConfig | None:
        """How knowledge about the users is pooled from a text about the items; `None` if it is not."""
        return self._poolings.get((examples, text))

    def stores(self, examples: Examples, text: str | None) -> dict[str, str]:
        """For each kind of entity the store that models have who know a text."""
        if text is None:
            return {}
        stores = {entity: each.output for entity, each in self.encodings(text).items()}
        pooling, (_, user) = self.pooling(examples, text), self.preparation(examples).entities()
        if pooling is not None and user is not None:
            stores[user] = pooling.output
        return stores

    def training(self, cell: Cell, setting: Mapping[str, Any], base: str | None) -> TrainConfig:
        """How a cell is trained.

        Args:
            cell: The cell.
            setting: What the search chose, or tries.
            base: Folder of the model that it starts from, if it does.
        """
        config, examples = self.config, self.examples(cell)
        return training_config(
            {"tensorboard": False, "strategy": config.strategy(cell.variant)},
            config.train,
            config.splits[cell.split].train,
            config.by_backbone.get(cell.backbone, {}),
            self._training_keys(cell.variant),
            setting,
            config.by_training_users.get(cell.training_users, {}),
            {"training_users": cell.training_users},
            backbone=cell.backbone,
            seed=cell.seed,
            prepared=self.preparation(examples).output,
            output=str(self.folder(cell)),
            stores=self.stores(examples, config.text(cell.variant)),
            base=base,
            source=f"variants.{cell.variant}",
        )

    def evaluation(self, cell: Cell) -> EvaluateConfig:
        """How a cell is evaluated."""
        examples = self.examples(cell)
        return EvaluateConfig(
            model=str(self.folder(cell)),
            prepared=self.preparation(examples).output,
            item_slices=str(self.item_slices(examples)) if self.config.texts else None,
            bootstrap=self.config.bootstrap,
        )

    def folder(self, cell: Cell) -> Path:
        """Where a cell's model is."""
        return self.config.folder / "cells" / cell.name

    def item_slices(self, examples: Examples) -> Path:
        """Where the slices by the amount of text are."""
        return self.config.folder / "slices" / f"{examples.name}.json"

    def trials(self, cell: Cell) -> list[Cell]:
        """The trials that find the setting of a cell's variant; none without `tuning`."""
        tuning = self.config.tuning
        if tuning is None:
            return []
        variant = tuning.like.get(cell.variant, cell.variant)
        split = cell.split if tuning.splits is None or cell.split in tuning.splits else tuning.splits[0]
        backbone = (
            cell.backbone if tuning.backbones is None or cell.backbone in tuning.backbones else tuning.backbones[0]
        )
        return [Cell(backbone, variant, split, tuning.seed, trial=i) for i in range(len(self.settings[variant]))]

    def base(self, cell: Cell) -> Cell | None:
        """The cell that a cell starts from, if it does. A trial starts from the best trial of its base, which this is not."""
        variant = self.config.base(cell.variant)
        return None if variant is None else dataclasses.replace(cell, variant=variant, trial=None)

    def needs(self, cell: Cell) -> list[Cell]:
        """All cells that must be done before a cell can begin, in their order."""
        base = self.base(cell)
        if cell.trial is None:
            direct = self.trials(cell) + ([] if base is None else [base])
        else:
            direct = [] if base is None else self.trials(base)
        return list(dict.fromkeys(one for needed in direct for one in (*self.needs(needed), needed)))

    def chosen(self, *, parts: Sequence[str] = (), only: Sequence[str] = ()) -> list[Cell]:
        """The cells of any of the parts whose names match any of the patterns, with what they need.

        Args:
            parts: Names of parts. Defaults to all.
            only: Patterns, such as `din/*`. Defaults to all.

        Raises:
            ConfigError: A part is unknown, or no cell of the parts matches a pattern.
        """
        for name in parts:
            if name not in self.config.parts:
                raise ConfigError(f"--part {name} is not in `parts`. There: {', '.join(self.config.parts)}.")
        cells = self.cells
        if parts:
            cells = list(dict.fromkeys(cell for name in parts for cell in self.cells_of(self.config.parts[name])))
        wanted: set[Cell] = set()
        for pattern in only or ("*",):
            matching = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, pattern)]
            if not matching:
                raise ConfigError(
                    f"--only {pattern!r} matches no cell. The first cell's name is {cells[0].name}; `*` stands for anything."
                )
            wanted |= {one for cell in matching for one in (*self.needs(cell), cell)}
        return [cell for cell in self.cells if cell in wanted]

    def _preparation(self, examples: Examples) -> PrepareConfig:
        output = {"output": str(self.config.folder / "prepared" / examples.name)}
        seed = {} if examples.seed is None else {"seed": examples.seed}
        values = merged(output, self.config.prepare, self.config.splits[examples.split].prepare, seed)
        return from_mapping(PrepareConfig, values, source=f"splits.{examples.split}.prepare")

    def _encodings_of(self, text: str) -> dict[str, EncodeConfig]:
        folder = self.config.folder / "stores" / text
        return {
            entity: from_mapping(
                EncodeConfig, {"output": str(folder / entity), **values}, source=f"texts.{text}.{entity}"
            )
            for entity, values in self.config.texts[text].items()
        }

    def _pooling(self, examples: Examples, text: str) -> PoolConfig:
        split = examples.split
        item, user = self.preparation(examples).entities()
        if user is None:
            raise ConfigError(
                f"`splits.{split}.pool` makes knowledge about users, and their id is no feature there. Give the schema's `user_id` an "
                "`entity` (for MovieLens: add user_id to `movielens.features`)."
            )
        if item not in self.encodings(text):
            raise ConfigError(
                f"`splits.{split}.pool` pools what is known of each {item}, and `texts.{text}` has no {item}."
            )
        if user in self.encodings(text):
            raise ConfigError(
                f"`splits.{split}.pool` and `texts.{text}` are both about each {user}. Leave out one of them."
            )
        output = str(self.config.folder / "pooled" / examples.name / text)
        values = {
            "prepared": self.preparation(examples).output,
            "store": self.encodings(text)[item].output,
            "output": output,
            **(self.config.splits[split].pool or {}),
        }
        return from_mapping(PoolConfig, values, source=f"splits.{split}.pool")

    def _settings_to_try(self, variant: str) -> list[dict[str, Any]]:
        """The settings that a variant's trials have, nested as in `TrainConfig`; the first is none."""
        tuning = self.config.tuning
        if tuning is None or variant in tuning.like:
            return [{}]
        keys = {**tuning.keys, **tuning.by_variant.get(variant, {})}
        settings = [_nested(dict(zip(keys, values, strict=True))) for values in itertools.product(*keys.values())]
        configured = self._with_setting(variant, {})
        settings = [setting for setting in settings if self._with_setting(variant, setting) != configured]
        if len(settings) < tuning.trials - 1:
            raise ConfigError(
                f"`tuning` has {len(settings)} settings for {variant}, fewer than the budget of {tuning.trials} trials (of "
                "which one is the variant as configured). Give more values, or a smaller budget: it is the same for all."
            )
        drawn = np.random.default_rng(tuning.seed).permutation(len(settings))[: tuning.trials - 1]
        return [{}, *(settings[i] for i in drawn)]

    def _with_setting(self, variant: str, setting: Mapping[str, Any]) -> TrainConfig:
        """A variant's configuration as it is wherever it is trained, to tell settings apart: its folders are none."""
        config = self.config
        return training_config(
            {"strategy": config.strategy(variant)},
            config.train,
            self._training_keys(variant),
            setting,
            backbone=next(iter(config.parts.values())).backbones[0],
            seed=0,
            prepared="prepared",
            output="output",
            stores={"entity": "store"},
            base="base",
            source=f"tuning of {variant}",
        )

    def _training_keys(self, variant: str) -> dict[str, Any]:
        return {key: value for key, value in self.config.variants[variant].items() if key not in _BENCHMARK_KEYS}

    def _check_neighbours(self, measured: Mapping[Cell, None]) -> None:
        for cell in measured:
            base = self.base(cell)
            if base is not None and base not in measured:
                raise ConfigError(
                    f"{cell.name} starts from {base.name}, which no part has. Add {base.variant} to `variants` of the same "
                    "part."
                )
            compared = self.config.compared_with(cell.variant)[:1]
            if compared and dataclasses.replace(cell, variant=compared[0]) not in measured:
                raise ConfigError(
                    f"{cell.name} is compared with {compared[0]} of the same seed, which no part has there. Add "
                    f"{compared[0]} to `variants` of the same part, or name another in `against.{cell.variant}`."
                )

    def _check_keys(self) -> None:
        """Makes every configuration once: a mistake shows before anything is trained."""
        for cell in self.cells:
            for setting in self.settings[cell.variant]:
                self.training(cell, setting, "base" if self.base(cell) is not None else None)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"model": {"dropout": 0.1}}` for `{"model.dropout": 0.1}`."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        setting: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            setting = {parent: setting}
        result = merged(result, setting)
    return result
