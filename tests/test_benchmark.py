"""`kser-tf benchmark`: the matrix and its order, stopping and going on, the search of settings, and what is said of the cells."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import small_world as world
import yaml
from page_reader import Reader

from kser_tf import cli
from kser_tf.errors import ConfigError, DataError, PathLockedError
from kser_tf.pipelines import encode, evaluate, steps, train
from kser_tf.pipelines.benchmark import benchmark
from kser_tf.pipelines.benchmark.comparisons import Measured, compare, judge_goals, seconds_until, speeds
from kser_tf.pipelines.benchmark.config import BenchmarkConfig
from kser_tf.pipelines.benchmark.matrix import BenchmarkMatrix, Cell, Examples
from kser_tf.pipelines.benchmark.records import Records, packed, unpacked
from kser_tf.pipelines.benchmark.state import BenchmarkState
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.evaluate import EvaluateConfig
from kser_tf.pipelines.job import current_result, read_job, write_job
from kser_tf.schema import ITEM_IS_COLD

VARIANTS = {
    "base": {"strategy": "base"},
    "kser": {},
    "kser_extractor_only": {"strategy": "extractor_only"},
    "placebo": {"shuffle_knowledge": "seed"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    world.write_log(folder)
    texts = [
        {
            "id": item,
            "story": None if item == world.WITHOUT_KNOWLEDGE else "Night falls. " * (1 + i % 3) + f"Film {i}.",
            "quality": ""
            if item == world.WITHOUT_KNOWLEDGE
            else ("Warm." if world.hidden_quality(item) > 0 else "Cold."),
        }
        for i, item in enumerate(world.ITEMS)
    ]
    pd.DataFrame(texts).to_json(folder / "texts.jsonl", orient="records", lines=True, force_ascii=False)
    return folder


def values(data, work, **changes):
    return {
        "name": "small",
        "work": str(work),
        "prepare": {"data": str(data / "log.csv"), "schema": world.SCHEMA, "cold_items": 0.2},
        "splits": {
            "by_user": {"prepare": {"split": {"by": "user", "fractions": [0.6, 0.2, 0.2]}}},
            "by_time": {"prepare": {"split": {"by": "time"}}},
        },
        "texts": {
            "llm": {
                "item": {
                    "table": str(data / "texts.jsonl"),
                    "id_column": "id",
                    "fields": ["story", "quality"],
                    "chunks_per_field": 1,
                }
            }
        },
        "train": {
            "epochs": 1,
            "batch_size": 256,
            "model": {"embedding_width": 4, "hidden_units": [8]},
        },
        "variants": VARIANTS,
        "seeds": [1, 2],
        "parts": {"main": {"variants": ["base", "kser"]}},
        "bootstrap": 20,
        **changes,
    }


def config_of(data, work, **changes):
    return from_mapping(BenchmarkConfig, values(data, work, **changes), source="test")


def names(cells):
    return [cell.name for cell in cells]


def summary_of(work):
    return json.loads((work / "summary.json").read_text(encoding="utf-8"))


# --- the matrix


def test_cells_and_their_order(data, tmp_path):
    parts = {
        "main": {"variants": ["kser_extractor_only", "kser", "base"]},
        "fewer": {"variants": ["base", "kser"], "training_users": [0.1, 1.0], "seeds": [2, 3]},
        "late": {"variants": ["base"], "splits": ["by_time"], "backbones": ["dcn_v2"]},
    }
    matrix = BenchmarkMatrix(config_of(data, tmp_path, parts=parts))
    assert names(matrix.cells) == [
        "din/base/by_user/users-1/seed-1",
        "din/kser_extractor_only/by_user/users-1/seed-1",
        "din/kser/by_user/users-1/seed-1",
        "din/base/by_user/users-1/seed-2",
        "din/kser_extractor_only/by_user/users-1/seed-2",
        "din/kser/by_user/users-1/seed-2",
        # The second part, but for what the first one has already.
        "din/base/by_user/users-0.1/seed-2",
        "din/kser/by_user/users-0.1/seed-2",
        "din/base/by_user/users-0.1/seed-3",
        "din/kser/by_user/users-0.1/seed-3",
        "din/base/by_user/users-1/seed-3",
        "din/kser/by_user/users-1/seed-3",
        "dcn_v2/base/by_time/users-1/seed-1",
        "dcn_v2/base/by_time/users-1/seed-2",
    ]


def test_patterns_bring_what_they_need(data, tmp_path):
    parts = {
        "main": {"variants": ["base", "kser", "kser_extractor_only"]},
        "late": {"variants": ["base"], "splits": ["by_time"]},
    }
    matrix = BenchmarkMatrix(config_of(data, tmp_path, parts=parts))
    assert names(matrix.chosen(only=["*/kser_extractor_only/*/seed-2"])) == [
        "din/base/by_user/users-1/seed-2",
        "din/kser_extractor_only/by_user/users-1/seed-2",
    ]
    assert matrix.chosen(parts=["late"]) == matrix.cells_of(matrix.config.parts["late"])
    assert matrix.chosen() == matrix.cells
    with pytest.raises(
        ConfigError, match=r"--only 'dcn/\*' matches no cell. The first cell's name is din/base/by_user"
    ):
        matrix.chosen(only=["dcn/*"])
    with pytest.raises(ConfigError, match=r"--part early is not in `parts`. There: main, late"):
        matrix.chosen(parts=["early"])


def test_each_seed_has_a_division_of_its_own(data, tmp_path, jobs):
    by_user = {"split": {"by": "user", "fractions": [0.6, 0.2, 0.2]}}
    changes = {
        "splits": {"divisions": {"divided_by_seed": True, "prepare": by_user}, "plain": {"prepare": by_user}},
        "parts": {"main": {"variants": ["base", "kser"], "splits": ["divisions", "plain"]}},
    }
    config = config_of(data, tmp_path, **changes)
    matrix = BenchmarkMatrix(config)
    assert benchmark(config, records=tmp_path / "records") == 0
    tested, cold = {}, {}
    for cell in matrix.cells:
        prepared = matrix.preparation(matrix.examples(cell))
        assert prepared.seed == (cell.seed if cell.split == "divisions" else 1)
        training, evaluation = matrix.training(cell, {}, None), matrix.evaluation(cell)
        assert training.prepared == evaluation.prepared == prepared.output
        rows = pd.read_parquet(f"{prepared.output}/test.parquet")
        tested[cell.split, cell.seed] = set(rows["user"])
        cold[cell.split, cell.seed] = set(rows["item"][rows[ITEM_IS_COLD]])
    for drawn in (tested, cold):
        assert drawn["plain", 1] == drawn["plain", 2] == drawn["divisions", 1] != drawn["divisions", 2]
    found = [each for each in summary_of(tmp_path)["comparisons"] if each["slice"] == "all"]
    assert [(each["split"], each["seeds"], each["how"]) for each in found] == [
        ("divisions", 2, "Student's t over 2 divisions"),
        ("plain", 2, "Student's t over 2 seeds"),
    ]
    # The records tell the divisions apart; the first of them is the other split's.
    for cell in matrix.cells:
        shutil.rmtree(matrix.folder(cell))
    state = BenchmarkState(matrix, Records(tmp_path / "records"))
    assert [state.state(cell) for cell in matrix.cells] == ["done"] * 8
    assert len({state.identity(cell) for cell in matrix.cells}) == 6


def test_a_division_has_one_seed(data, tmp_path):
    splits = {"divisions": {"divided_by_seed": True, "prepare": {"seed": 3}}}
    with pytest.raises(ConfigError, match=r"`divided_by_seed` makes `prepare.seed` the seed of each cell"):
        config_of(data, tmp_path, splits=splits)


def test_users_knowledge_is_pooled_for_a_split(data, tmp_path, capsys):
    schema = {**world.SCHEMA, "user_id": {"column": "user", "entity": "user"}}
    own = {"schema": schema, "history_only": {"fraction": 0.3}, "split": {"by": "user", "fractions": [0.6, 0.2, 0.2]}}
    changes = {
        "splits": {"plain": {}, "pooled": {"prepare": own, "pool": {"dtype": "float16"}, "divided_by_seed": True}},
        "parts": {
            "main": {"variants": ["base", "kser", "placebo"], "splits": ["pooled"], "seeds": [1], "one_seed": True}
        },
    }
    config = config_of(data, tmp_path, **changes)
    matrix = BenchmarkMatrix(config)
    stores = {cell.variant: matrix.training(cell, {}, None).stores for cell in matrix.cells}
    items, pooled = str(tmp_path / "stores" / "llm" / "item"), tmp_path / "pooled" / "pooled" / "seed-1" / "llm"
    assert stores["base"] == {}
    assert stores["kser"] == stores["placebo"] == {"item": items, "user": str(pooled)}
    assert matrix.stores(Examples("plain"), "llm") == {"item": items}
    assert benchmark(config) == 0
    assert "3 of 3 cells" in capsys.readouterr().out
    made = read_job(pooled)
    assert (made["job"], made["config"]["store"], made["config"]["dtype"]) == ("pool", items, "float16")
    model = json.loads((matrix.folder(matrix.cells[2]) / "model.json").read_text(encoding="utf-8"))
    assert {entity: store["shuffle_seed"] for entity, store in model["stores"].items()} == {"item": 1, "user": 1}

    without = {"splits": {"pooled": {"pool": {}}}, "parts": changes["parts"]}
    with pytest.raises(
        ConfigError, match=r"`splits.pooled.pool` makes knowledge about users, and their id is no feature"
    ):
        BenchmarkMatrix(config_of(data, tmp_path, **without))
    texts = {"llm": {"user": values(data, tmp_path)["texts"]["llm"]["item"]}}
    with pytest.raises(ConfigError, match=r"pools what is known of each item, and `texts.llm` has no item"):
        BenchmarkMatrix(config_of(data, tmp_path, **changes, texts=texts))
    texts["llm"]["item"] = texts["llm"]["user"]
    with pytest.raises(ConfigError, match=r"are both about each user. Leave out one"):
        BenchmarkMatrix(config_of(data, tmp_path, **changes, texts=texts))


def test_how_a_cell_is_trained(data, tmp_path):
    config = config_of(
        data,
        tmp_path,
        variants={**VARIANTS, "kser": {"model": {"num_heads": 3}, "epochs": 7}},
        splits={"by_user": {"train": {"model": {"id_dropout": 0.1}, "batch_size": 99}}},
        by_backbone={"dcn_v2": {"model": {"dropout": 0.2}}},
        by_training_users={0.5: {"epochs": 9, "patience": 3, "model": {"dropout": 0.3}}},
        parts={
            "main": {"backbones": ["dcn_v2"], "variants": ["base", "kser", "placebo"], "training_users": [0.5, 1.0]},
            "few": {"variants": ["base", "kser_extractor_only"]},
        },
    )
    matrix = BenchmarkMatrix(config)
    training = matrix.training(Cell("dcn_v2", "kser", "by_user", 2, 0.5), {"model": {"num_heads": 5}}, None)
    assert (training.epochs, training.patience, training.batch_size, training.seed) == (9, 3, 99, 2)
    assert (training.model.num_heads, training.model.id_dropout, training.model.dropout) == (5, 0.1, 0.3)
    # What the search found with all users does not hold for half of them.
    found = {"patience": 5, "model": {"dropout": 0.4}}
    few, all_ = (matrix.training(Cell("dcn_v2", "kser", "by_user", 2, share), found, None) for share in (0.5, 1.0))
    assert (few.epochs, few.patience, few.model.dropout) == (9, 3, 0.3)
    assert (all_.epochs, all_.patience, all_.model.dropout) == (7, 5, 0.4)
    assert (training.model.backbone, training.model.embedding_width) == ("dcn_v2", 4)
    assert (training.strategy, training.training_users) == ("all_parameters", 0.5)
    assert training.stores == {"item": str(tmp_path / "stores" / "llm" / "item")}
    base = matrix.training(Cell("dcn_v2", "base", "by_user", 2), {}, None)
    assert (base.stores, base.strategy, base.epochs) == ({}, "base", 1)
    placebo = matrix.training(Cell("dcn_v2", "placebo", "by_user", 2), {}, None)
    assert placebo.shuffle_knowledge == 2
    only = matrix.training(Cell("din", "kser_extractor_only", "by_user", 1), {}, "there")
    assert (only.strategy, only.base) == ("extractor_only", "there")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parts": {"main": {"variants": ["kser"]}}},
            "is compared with base of the same seed, which no part has there. Add base",
        ),
        (
            {"parts": {"main": {"variants": ["kser_extractor_only"]}}, "against": {"kser_extractor_only": []}},
            "starts from din/base/by_user/users-1/seed-1, which no part has. Add base to `variants` of the same part",
        ),
        ({"seeds": []}, "`parts.main` has no seed. Give `seeds`"),
        ({"seeds": [1]}, "`parts.main` has one seed, which gives no interval .* or say `one_seed: true`"),
        ({"seeds": [1, 1]}, r"`parts.main` has a seed twice. Received: \[1, 1\]"),
        ({"parts": {}}, "`parts` is empty"),
        (
            {"parts": {"main": {"variants": ["bse"]}}},
            "`parts.main.variants` names bse, which is not in `variants`. There: base",
        ),
        (
            {"parts": {"main": {"variant": ["base"]}}},
            r"`parts.main.variant` is not a known key. Did you mean `variants`\?",
        ),
        (
            {"parts": {"main": {"variants": ["base"], "training_users": [0]}}},
            "`parts.main.training_users` are shares, above 0 and at most 1. Received: 0",
        ),
        (
            {"variants": {**VARIANTS, "kser": {"epoch": 3}}},
            r"variants.kser: `epoch` is not a known key. Did you mean `epochs`\?",
        ),
        ({"variants": {**VARIANTS, "kser": {"seed": 3}}}, "`variants.kser.seed` is set by the benchmark"),
        (
            {"variants": {**VARIANTS, "kser": {"text": "plots"}}},
            "`variants.kser.text` names plots, which is not in `texts`. There: llm",
        ),
        (
            {"variants": {**VARIANTS, "base": {}}},
            "`variants.base` is what the others are compared with. Give it `strategy: base`",
        ),
        (
            {
                "variants": {
                    **VARIANTS,
                    "kser_extractor_only": {"strategy": "extractor_only", "base": "kser_extractor_only"},
                },
                "parts": {"main": {"variants": ["base", "kser_extractor_only"]}},
            },
            "kser_extractor_only starts from kser_extractor_only",
        ),
        ({"texts": {}}, "`variants.kser` needs a text, but `texts` is empty"),
        ({"against": {"kser": ["mlp"]}}, "`against.kser` names mlp, which is not in `variants`"),
        ({"goals": [{"variant": "kser"}]}, "the goal of kser says nothing"),
        (
            {"goals": [{"variant": "kser", "against": "placebo", "at_least": 0}]},
            "kser is not compared with placebo. Add it to `against.kser`",
        ),
        (
            {"tuning": {"keys": {"learning_rate": [5e-4]}, "trials": 3}},
            "`tuning` has 1 settings for base, fewer than the budget of 3 trials",
        ),
        ({"tuning": {"keys": {"learning_rate": [1e-3]}, "trials": 1}}, "`trials` must be at least 2"),
        (
            {"tuning": {"keys": {"learning_rate": [1e-3]}, "trials": 2, "seed": 2}},
            "`tuning.seed` is 2, which is also a seed of `parts.main`",
        ),
    ],
)
def test_mistakes_show_before_anything_is_done(data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        BenchmarkMatrix(config_of(data, tmp_path, **changes))
    assert not any(tmp_path.iterdir())


# --- stopping, going on, failing: with jobs that leave what `train` and `evaluate` leave, but do not train


class Jobs:
    """Stands in for the jobs that take long."""

    def __init__(self, monkeypatch):
        self.trained = []
        self.break_at = {}
        monkeypatch.setattr(train, "train", self.train)
        monkeypatch.setattr(evaluate, "evaluate", self.evaluate)
        monkeypatch.setattr(encode, "encode", self.encode)
        monkeypatch.setattr(steps, "forget_graphs", lambda: None)

    def train(self, config):
        inputs = train.training_inputs(config)
        if (done := current_result(config.output, job="train", config=config, inputs=inputs)) is not None:
            return done
        name = config.output.partition("/cells/")[2]
        if name in self.break_at:
            raise self.break_at[name]
        self.trained.append(name)
        # The higher the learning rate, the better.
        auc = 0.7 + config.learning_rate + 0.01 * (config.strategy != "base") + 0.001 * config.seed
        epoch = {"loss": 0.6, "val_auc": auc, "val_loss": 0.6, "seconds": 2.0, "rows_per_second": 500.0}
        result = {
            "validation_auc": auc,
            "best_epoch": 1,
            "epochs": 1,
            "curve": [epoch],
            "trained_parameters": 10,
            "total_parameters": 10,
            "training_rows": 1000,
            "rows_per_second": 500.0,
            "training_seconds": 2.0,
        }
        write_job(config.output, job="train", config=config, inputs=inputs, result=result, seconds=2.5)
        return result

    def evaluate(self, config):
        inputs = evaluate.evaluation_inputs(config)
        trained = json.loads((config.folder.parent / "job.json").read_text())["result"]
        metrics = {"rows": 10, "positives": 5, "gauc": 0.5, "log_loss": 0.6, "calibration_error": 0.1}
        result = {"slices": {"all": {**metrics, "auc": trained["validation_auc"] - 0.01}}}
        write_job(config.folder, job="evaluate", config=config, inputs=inputs, result=result, seconds=0.5)
        return result

    def encode(self, config):
        write_job(config.output, job="encode", config=config, inputs={}, result={}, seconds=1)
        return {}


@pytest.fixture
def jobs(monkeypatch):
    return Jobs(monkeypatch)


def test_a_second_run_trains_nothing(data, tmp_path, jobs, capsys):
    config = config_of(data, tmp_path)
    assert benchmark(config) == 0
    assert jobs.trained == names(BenchmarkMatrix(config).cells)
    jobs.trained.clear()
    assert benchmark(config) == 0
    assert jobs.trained == []
    assert "4 of 4 cells are done." in capsys.readouterr().out


def test_a_stopped_run_goes_on(data, tmp_path, jobs):
    config = config_of(data, tmp_path)
    third = "din/base/by_user/users-1/seed-2"
    jobs.break_at[third] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        benchmark(config)
    assert len(jobs.trained) == 2
    del jobs.break_at[third]
    jobs.trained.clear()
    assert benchmark(config) == 0
    assert jobs.trained == [third, "din/kser/by_user/users-1/seed-2"]


def test_a_changed_variant_is_trained_anew_and_the_others_not(data, tmp_path, jobs):
    benchmark(config_of(data, tmp_path))
    jobs.trained.clear()
    benchmark(config_of(data, tmp_path, variants={**VARIANTS, "kser": {"learning_rate": 0.002}}))
    assert jobs.trained == ["din/kser/by_user/users-1/seed-1", "din/kser/by_user/users-1/seed-2"]


def test_a_failed_cell_is_told_and_does_not_stop_the_others(data, tmp_path, jobs, capsys):
    config = config_of(data, tmp_path, parts={"main": {"variants": ["base", "kser", "kser_extractor_only"]}})
    failing = "din/base/by_user/users-1/seed-1"
    jobs.break_at[failing] = ValueError("NaN in the loss")
    assert benchmark(config) == 1
    # What starts from it is left out, the rest is done.
    assert jobs.trained == [
        "din/kser/by_user/users-1/seed-1",
        "din/base/by_user/users-1/seed-2",
        "din/kser/by_user/users-1/seed-2",
        "din/kser_extractor_only/by_user/users-1/seed-2",
    ]
    said = capsys.readouterr()
    assert f"FAILED {failing}: ValueError: NaN in the loss" in said.out
    assert f"left out: it needs {failing}, which failed or is not done" in said.err
    summary = summary_of(tmp_path)
    assert summary["failures"] == [{"cell": failing, "error": "ValueError: NaN in the loss"}]
    assert [summary["progress"][key] for key in ("cells", "done", "failed", "waiting")] == [6, 4, 1, 1]
    assert "NaN in the loss" in (tmp_path / "summary.html").read_text(encoding="utf-8")
    # It is tried again, and its blot goes.
    jobs.break_at.clear()
    assert benchmark(config) == 0
    assert summary_of(tmp_path)["failures"] == []
    assert not list((tmp_path / "failures").rglob("*.json"))


def test_a_cell_that_another_process_is_at_is_left_out(data, tmp_path, jobs, capsys):
    jobs.break_at["din/kser/by_user/users-1/seed-1"] = PathLockedError("locked")
    assert benchmark(config_of(data, tmp_path)) == 0
    assert "left out: another process is at it" in capsys.readouterr().err
    assert summary_of(tmp_path)["progress"]["done"] == 3
    assert summary_of(tmp_path)["failures"] == []


def test_a_summary_in_the_middle(data, tmp_path, jobs, capsys):
    config = config_of(data, tmp_path)
    assert benchmark(config, summary=True) == 0
    assert "0 of 4 cells are done." in capsys.readouterr().out
    benchmark(config, only=["*/seed-1"])
    before = list(jobs.trained)
    assert benchmark(config, summary=True) == 0
    assert jobs.trained == before
    summary = summary_of(tmp_path)
    assert summary["progress"]["done"] == 2
    # Two cells are left; those that are done took 2.5 s each.
    assert summary["progress"]["remaining_seconds"] == pytest.approx(5)
    assert summary["progress"]["by_part"] == {"main": {"cells": 4, "done": 2}}
    (comparison,) = summary["comparisons"]
    assert comparison["difference"] == pytest.approx(0.01)
    assert (comparison["low"], comparison["seeds"]) == (None, 1)


def test_every_variant_has_the_same_budget_and_the_best_setting_is_used(data, tmp_path, jobs):
    tuning = {
        "keys": {"learning_rate": [1e-4, 5e-4]},
        "by_variant": {"kser": {"learning_rate": [2e-3, 3e-3]}},
        "trials": 3,
        "like": {"placebo": "kser"},
        "backbones": ["din"],
    }
    parts = {"main": {"backbones": ["din", "dcn_v2"], "variants": ["base", "kser", "placebo", "kser_extractor_only"]}}
    config = config_of(data, tmp_path, tuning=tuning, parts=parts)
    benchmark(config)
    trials = [name for name in jobs.trained if "trial" in name]
    assert trials == [
        f"din/{variant}/by_user/users-1/trial-{i}"
        for variant in ("base", "kser", "kser_extractor_only")
        for i in range(3)
    ]

    def rate(name):
        return json.loads((tmp_path / "cells" / name / "job.json").read_text())["config"]["learning_rate"]

    for backbone in ("din", "dcn_v2"):
        assert rate(f"{backbone}/base/by_user/users-1/seed-1") == 1e-3  # as configured: the best of the three
        assert rate(f"{backbone}/kser/by_user/users-1/seed-2") == 3e-3
        assert rate(f"{backbone}/placebo/by_user/users-1/seed-2") == 3e-3
    # A trial of what starts from a base starts from the base's best trial, a cell from the base of its own seed.
    started = json.loads((tmp_path / "cells/din/kser_extractor_only/by_user/users-1/trial-1/job.json").read_text())
    assert started["config"]["base"] == str(tmp_path / "cells/din/base/by_user/users-1/trial-0")
    started = json.loads((tmp_path / "cells/din/kser_extractor_only/by_user/users-1/seed-2/job.json").read_text())
    assert started["config"]["base"] == str(tmp_path / "cells/din/base/by_user/users-1/seed-2")
    # No trial saw the test rows.
    assert not list((tmp_path / "cells").glob("*/*/*/*/trial-*/evaluation-test"))
    search = next(s for s in summary_of(tmp_path)["tuning"]["searches"] if s["variant"] == "kser")
    assert search["chosen"] == {"learning_rate": 3e-3}
    assert [tried["validation_auc"] for tried in search["tried"]] != [None] * 3
    assert "3 settings, each tried once (seed 0)" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_no_trial_tries_what_is_configured_again(data, tmp_path):
    tuning = {"keys": {"learning_rate": [1e-3, 5e-4]}, "trials": 2}  # 1e-3: as it is configured
    settings = BenchmarkMatrix(config_of(data, tmp_path, tuning=tuning)).settings
    assert settings["base"] == settings["kser"] == [{}, {"learning_rate": 5e-4}]
    with pytest.raises(ConfigError, match="has 1 settings for base, fewer than the budget of 3"):
        BenchmarkMatrix(config_of(data, tmp_path, tuning={**tuning, "trials": 3}))


def test_a_variant_whose_trials_have_not_ended_waits(data, tmp_path, jobs):
    config = config_of(data, tmp_path, tuning={"keys": {"learning_rate": [1e-4]}, "trials": 2})
    jobs.break_at["din/kser/by_user/users-1/trial-0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        benchmark(config)
    assert benchmark(config, summary=True) == 0
    assert summary_of(tmp_path)["progress"]["done"] == 3  # both trials of the base, and the base
    # A trial that fails is out of the race; the others decide.
    jobs.break_at["din/kser/by_user/users-1/trial-0"] = ValueError("diverged")
    assert benchmark(config) == 1
    kser = json.loads((tmp_path / "cells/din/kser/by_user/users-1/seed-1/job.json").read_text())
    assert kser["config"]["learning_rate"] == 1e-4


# --- records


WITH_EXTRACTOR = {"main": {"variants": ["base", "kser", "kser_extractor_only"]}}
SEARCH = {"keys": {"learning_rate": [1e-4, 2e-4]}, "trials": 2, "seed": 9}


def test_what_is_recorded_is_not_trained_again_elsewhere(data, tmp_path, jobs, capsys):
    first = config_of(data, tmp_path / "first", parts=WITH_EXTRACTOR, tuning=SEARCH)
    benchmark(first, records=tmp_path / "records")
    cells = names(BenchmarkMatrix(first).cells)
    assert sorted(jobs.trained) == sorted(cells)
    assert {f"{name}.json" for name in cells} == {
        path.relative_to(tmp_path / "records").as_posix() for path in (tmp_path / "records").rglob("*.json")
    }
    jobs.trained.clear()
    benchmark(config_of(data, tmp_path / "second", parts=WITH_EXTRACTOR, tuning=SEARCH), records=tmp_path / "records")
    assert jobs.trained == []
    before, after = summary_of(tmp_path / "first"), summary_of(tmp_path / "second")
    assert after["progress"]["done"] == len(cells)
    for key in ("comparisons", "tuning"):
        assert after[key] == before[key]
    assert [run["metrics"] for run in after["runs"]] == [run["metrics"] for run in before["runs"]]
    # Times tell of the machine that they were taken on.
    assert before["speed"]
    assert after["speed"] == []
    assert "seconds" not in (tmp_path / "records" / f"{cells[0]}.json").read_text(encoding="utf-8")
    benchmark(config_of(data, tmp_path / "third", parts=WITH_EXTRACTOR, tuning=SEARCH))  # where nobody asks for them
    assert len(jobs.trained) == len(cells)


def test_a_base_whose_model_is_gone_is_trained_again(data, tmp_path, jobs):
    parts = {"main": {"variants": ["base", "kser"]}}
    benchmark(config_of(data, tmp_path / "first", parts=parts), records=tmp_path / "records")
    jobs.trained.clear()
    config = config_of(data, tmp_path / "second", parts=WITH_EXTRACTOR)
    benchmark(config, only=["*/seed-2"], records=tmp_path / "records")
    assert jobs.trained == ["din/base/by_user/users-1/seed-2", "din/kser_extractor_only/by_user/users-1/seed-2"]
    assert summary_of(tmp_path / "second")["progress"]["done"] == 5  # of six; seed 1 of the first two by their records


def test_records_of_another_configuration_or_of_other_data_do_not_count(data, tmp_path, jobs):
    records = tmp_path / "records"
    benchmark(config_of(data, tmp_path / "first"), records=records)
    jobs.trained.clear()
    changed = {**VARIANTS, "kser": {"learning_rate": 0.002}}
    benchmark(config_of(data, tmp_path / "second", variants=changed), records=records)
    assert {name.split("/")[1] for name in jobs.trained} == {"kser"}
    jobs.trained.clear()
    log = pd.read_csv(data / "log.csv")
    log[:-1].to_csv(tmp_path / "log.csv", index=False)
    prepare = {**values(data, tmp_path)["prepare"], "data": str(tmp_path / "log.csv")}
    benchmark(config_of(data, tmp_path / "third", prepare=prepare), records=records)
    assert len(jobs.trained) == 4


def test_a_damaged_record_is_named(data, tmp_path, jobs):
    records = tmp_path / "records"
    benchmark(config_of(data, tmp_path / "first"), records=records)
    path = records / "din/kser/by_user/users-1/seed-1.json"
    path.write_text('{"cell": "din/kser/by_user/users-1/seed-1"}')
    with pytest.raises(DataError, match=r"seed-1\.json: expected a mapping with identity.*Remove it"):
        benchmark(config_of(data, tmp_path / "second"), records=records)


def test_drawn_aucs_are_packed(tmp_path):
    drawn = np.random.default_rng(0).uniform(0, 1, (3, 400))
    drawn[1, 5], drawn[2, :2] = np.nan, (0, 1)
    np.testing.assert_allclose(unpacked(packed(drawn), 3), drawn, atol=1.01e-5, rtol=0)
    assert len(packed(0.79 + 0.004 * np.random.default_rng(1).standard_normal((10, 400)))) < 9000
    with pytest.raises(DataError, match="Remove the record"):
        unpacked("no such thing", 3)
    assert Records(tmp_path).read("din/base", "any") is None


# --- what is said of the cells


def measured(variant, seed, auc, *, seconds=(1.0,), val_aucs=(0.7,), rows_per_second=100.0, drawn=None):
    cell = Cell("din", variant, "by_user", seed)
    curve = [{"seconds": s, "val_auc": v} for s, v in zip(seconds, val_aucs, strict=True)]
    training = {
        "curve": curve,
        "validation_auc": max(val_aucs),
        "rows_per_second": rows_per_second,
        "training_seconds": sum(seconds),
        "epochs": len(curve),
        "trained_parameters": 5,
    }
    return Measured(
        cell, training, {"slices": {"all": {"auc": auc, "rows": 100}}}, {} if drawn is None else {"all": drawn}
    )


def test_differences_are_paired_by_seed(data, tmp_path):
    draws = np.arange(1001) / 1000
    cells = [
        # 0.01, 0.02 and 0.03 better: mean 0.02, standard deviation 0.01, and 4.302653 is Student's t for 2 degrees of freedom.
        *(measured("base", seed, auc, drawn=draws) for seed, auc in ((1, 0.70), (2, 0.60), (3, 0.65))),
        # In the draws 0 to 0.2, 0 to 0.4 and 0 to 0.6 better: over the seeds 0 to 0.4.
        *(
            measured("kser", seed, auc, drawn=draws + width * draws)
            for seed, auc, width in ((3, 0.68, 0.2), (1, 0.71, 0.4), (2, 0.62, 0.6))
        ),
        measured("kser", 4, 0.9),  # no base of this seed
    ]
    (found,) = compare(config_of(data, tmp_path), cells)
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert found["difference"] == pytest.approx(0.02)
    assert (found["low"], found["high"]) == (pytest.approx(0.02 - half, abs=1e-7), pytest.approx(0.02 + half, abs=1e-7))
    assert (found["users_low"], found["users_high"]) == (pytest.approx(0.025 * 0.4), pytest.approx(0.975 * 0.4))
    assert found["by_seed"] == {"1": pytest.approx(0.01), "2": pytest.approx(0.02), "3": pytest.approx(0.03)}
    assert found["seeds"] == 3


def test_variants_are_compared_with_each_other(data, tmp_path):
    config = config_of(data, tmp_path, against={"kser": ["base", "placebo"]})
    cells = [
        measured(variant, seed, auc)
        for seed in (1, 2)
        for variant, auc in (("base", 0.70), ("kser", 0.73), ("placebo", 0.71))
    ]
    found = {(each["variant"], each["against"]): each["difference"] for each in compare(config, cells)}
    assert found == {
        ("kser", "base"): pytest.approx(0.03),
        ("kser", "placebo"): pytest.approx(0.02),
        ("placebo", "base"): pytest.approx(0.01),
    }


def test_time_to_the_bases_best(data, tmp_path):
    base = measured("base", 1, 0.7, seconds=(3, 3, 3), val_aucs=(0.60, 0.66, 0.65), rows_per_second=200)
    kser = measured("kser", 1, 0.7, seconds=(4, 5, 6), val_aucs=(0.65, 0.67, 0.68), rows_per_second=150)
    slow = measured("placebo", 1, 0.7, seconds=(4,), val_aucs=(0.5,), rows_per_second=50)
    assert seconds_until(base.training["curve"], 0.66) == 6
    found = {each["variant"]: each for each in speeds(config_of(data, tmp_path), [base, kser, slow])}
    assert {name: each["seconds_to_base"] for name, each in found.items()} == {"base": 6, "kser": 9, "placebo": None}
    assert {name: each["ratio"] for name, each in found.items()} == {"base": 1, "kser": 0.75, "placebo": 0.25}
    assert [each["reached"] for each in found.values()] == [1, 1, 0]


def test_goals(data, tmp_path):
    config = config_of(
        data,
        tmp_path,
        goals=[
            {"variant": "kser", "at_least": 0.02},
            {"variant": "kser", "at_least": 0.021},
            {"variant": "kser", "above_zero": True},
            {"variant": "placebo", "within": 0.0005},
            {"variant": "kser_extractor_only", "kept_of": "kser", "share": 0.667},
            {"variant": "kser", "speed": 0.8},
            {"variant": "kser", "at_least": 0, "splits": ["by_time"]},
        ],
    )
    gains = {"base": (0, 0), "kser": (0.01, 0.0302), "placebo": (0.0003, -0.0001), "kser_extractor_only": (0.006, 0.02)}
    cells = [
        measured(variant, seed, 0.7 + gain, rows_per_second=75 if variant == "kser" else 100)
        for variant, of_seeds in gains.items()
        for seed, gain in enumerate(of_seeds, start=1)
    ]
    found = judge_goals(config, compare(config, cells), speeds(config, cells))
    assert [goal["reached"] for goal in found] == [True, False, False, True, False, False]
    assert found[0]["goal"] == "at least +0.0200"
    assert found[0]["found"] == "+0.0201"
    assert found[4]["found"] == "0.65"
    assert found[5]["found"] == "0.75"


# --- all of it, for once in earnest


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    from small_encoder import save_encoder

    folder = tmp_path_factory.mktemp("benchmark")
    given = values(data, folder / "work", variants={**VARIANTS, "broken": {"model": {"gate": "no such gate"}}})
    given["texts"]["llm"]["item"] |= {"encoder": str(save_encoder(folder / "encoder")), "table": "${data}/texts.jsonl"}
    given["parts"] = {
        "main": {"variants": ["base", "kser"]},
        "few": {"variants": ["base", "broken"], "training_users": [0.5], "seeds": [1], "one_seed": True},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(given, allow_unicode=True, sort_keys=False), encoding="utf-8")
    status = cli.main(["benchmark", str(folder / "small.yaml"), "--data", str(data)])
    return folder / "work", status


@pytest.mark.tfrs
class TestInEarnest:
    def test_summary_agrees_with_the_cells(self, done):
        work, status = done
        assert status == 1
        summary = summary_of(work)
        assert [failure["cell"] for failure in summary["failures"]] == ["din/broken/by_user/users-0.5/seed-1"]
        assert "no such gate" in summary["failures"][0]["error"]
        assert (summary["progress"]["done"], summary["progress"]["cells"]) == (5, 6)
        aucs = {}
        for run in summary["runs"]:
            metrics = json.loads((work / "cells" / run["name"] / "evaluation-test" / "metrics.json").read_text())
            assert run["metrics"]["all"] == metrics["slices"]["all"]
            assert run["made_by"]["versions"]["tensorflow"]
            aucs[run["name"]] = run["metrics"]["cold"]["auc"]
        found = next(c for c in summary["comparisons"] if c["slice"] == "cold" and c["training_users"] == 1)
        place = "by_user/users-1/seed-{}"
        gains = [aucs["din/kser/" + place.format(s)] - aucs["din/base/" + place.format(s)] for s in (1, 2)]
        assert found["difference"] == pytest.approx(np.mean(gains))
        assert found["users_low"] < found["users_high"]

    def test_comparisons_of_the_records_are_those_of_the_cells(self, done, data, tmp_path):
        work, _ = done
        here = ["benchmark", str(work.parent / "small.yaml"), "--data", str(data), "--summary"]
        here += ["--records", str(tmp_path / "records")]
        assert cli.main(here) == 1
        assert cli.main([*here, "--work", str(tmp_path / "elsewhere")]) == 0
        found, expected = (summary_of(folder)["comparisons"] for folder in (tmp_path / "elsewhere", work))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            for key, value in theirs.items():
                if key.startswith("users_"):  # of draws with five decimals
                    assert ours[key] == pytest.approx(value, abs=5e-5)
                elif isinstance(value, float):
                    # Of AUCs with six decimals; Student's factor of two seeds is 12.7.
                    assert ours[key] == pytest.approx(value, abs=5e-5 if key in ("low", "high") else 2e-6)
        assert any(each["users_low"] is not None for each in found)

    def test_slices_by_text_are_thirds_of_the_items(self, done, data):
        work, _ = done
        slices = json.loads((work / "slices" / "by_user.json").read_text(encoding="utf-8"))
        texts = pd.read_json(data / "texts.jsonl", lines=True).fillna("").set_index("id")
        lengths = texts["story"].str.len() + texts["quality"].str.len()
        assert slices["no_text"] == [world.WITHOUT_KNOWLEDGE]
        for less, more in (("little_text", "some_text"), ("some_text", "much_text")):
            assert lengths[slices[less]].max() < lengths[slices[more]].min()
        metrics = json.loads((work / "cells/din/kser/by_user/users-1/seed-1/evaluation-test/metrics.json").read_text())
        rows = {name: metrics["slices"][name]["rows"] for name in ("little_text", "some_text", "much_text", "no_text")}
        assert sum(rows.values()) == metrics["slices"]["all"]["rows"]

    def test_a_file_that_holds_no_slices(self, done, tmp_path):
        cell = done[0] / "cells/din/base/by_user/users-1/seed-1"
        (tmp_path / "slices.json").write_text('["film"]')
        given = {"model": str(cell), "prepared": str(done[0] / "prepared/by_user"), "output": str(tmp_path / "out")}
        with pytest.raises(DataError, match=r"slices.json: expected a mapping of slices' names to lists of items' ids"):
            evaluate.evaluate(EvaluateConfig(**given, item_slices=str(tmp_path / "slices.json")))
        with pytest.raises(ConfigError, match=r"`bootstrap` must be at least 0. Received: -1"):
            EvaluateConfig(**given, bootstrap=-1)

    def test_fewer_users_are_fewer_rows(self, done):
        rows = {run["name"]: run["training_rows"] for run in summary_of(done[0])["runs"]}
        half, whole = (rows[f"din/base/by_user/users-{share}/seed-1"] for share in (0.5, 1))
        assert half == pytest.approx(whole / 2, rel=0.02)  # all users have 30 rows, but for those of cold items

    def test_page(self, done):
        text = (done[0] / "summary.html").read_text(encoding="utf-8")
        page = Reader(text).root
        ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
        assert len(ids) == len(set(ids))
        links = {node.attributes["href"] for node in page.all() if "href" in node.attributes}
        assert links <= {f"#{identifier}" for identifier in ids}
        assert "<script" not in text
        summary = summary_of(done[0])
        assert {comparison["difference"] for comparison in summary["comparisons"]} <= set(page.figures())
        assert "5 of 6 cells are done (1 failed)" in text
        assert {"learning", "speed", "failures"} <= set(ids)

    def test_markdown(self, done):
        lines = (done[0] / "summary.md").read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("| DIN | kser |")]
        run = [run for run in summary_of(done[0])["runs"] if run["variant"] == "kser" and run["training_users"] == 1]
        assert f"| {np.mean([each['metrics']['all']['auc'] for each in run]):.4f} | 2 |" in rows[0]


@pytest.mark.parametrize("name", ["benchmark-demo.yaml", "benchmark-movielens-1m.yaml"])
def test_the_shipped_matrices_are_whole(name):
    from kser_tf import configs
    from kser_tf.pipelines.config import load_config

    matrix = BenchmarkMatrix(load_config(BenchmarkConfig, f"{configs.__path__[0]}/{name}", data="data", work="work"))
    assert all(matrix.cells_of(part) for part in matrix.config.parts.values())
