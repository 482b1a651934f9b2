"""The main job on a log of one's own: string ids in four scripts, text in another language, from tables to a checked SavedModel."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import small_world as world
import yaml

from kser_tf import cli
from kser_tf.errors import ConfigError
from kser_tf.pipelines.run import load_run_config

pytestmark = pytest.mark.tfrs

GOOD = "Ein warmherziger Film. Er erzählt von Freundschaft und vom Meer."
BAD = "Ein düsterer Krimi über Verrat. Niemand kommt ohne Schuld davon."


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    world.write_log(folder)
    texts = [
        {
            "id": item,
            "über": None
            if item == world.WITHOUT_KNOWLEDGE
            else (GOOD if world.hidden_quality(item) > 0 else BAD) + f" Nummer {i}.",
            "stil": "" if i % 5 == 0 else "Ruhig gefilmt, in langen Einstellungen.",
        }
        for i, item in enumerate(world.ITEMS)
    ]
    pd.DataFrame(texts).to_json(folder / "texts.jsonl", orient="records", lines=True, force_ascii=False)
    values = {
        "name": "own",
        "work": str(folder / "work"),
        "prepare": {
            "data": "${data}/log.csv",
            "schema": world.SCHEMA,
            "split": {"by": "user", "fractions": [0.7, 0.15, 0.15]},
            "cold_items": 0.2,
        },
        "encode": {
            "item": {
                "table": "${data}/texts.jsonl",
                "id_column": "id",
                "fields": ["über", "stil"],
                "chunks_per_field": 2,
            }
        },
        "serve": {"examples": 64},
        "train": {
            "backbones": ["din"],
            "variants": ["base", "extractor_only", "all_parameters", "placebo"],
            "seeds": [1, 2],
            "settings": {
                "epochs": 1,
                "batch_size": 128,
                "tensorboard": False,
                "model": {"embedding_width": 4, "hidden_units": [8]},
            },
        },
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def work(config_file):
    assert cli.main(["run", str(config_file), "--data", str(config_file.parent)]) == 0
    return config_file.parent / "work"


def report_of(work):
    return json.loads((work / "report" / "report.json").read_text(encoding="utf-8"))


def test_report_has_every_model_and_the_check(work):
    report = report_of(work)
    names = {run["name"] for run in report["runs"]}
    assert names == {
        f"din/{variant}/seed-{s}" for variant in ("base", "all_parameters", "extractor_only", "placebo") for s in (1, 2)
    }
    assert report["check"]["ok"]
    assert {c["slice"] for c in report["comparisons"]} >= {"all", "warm", "tail", "cold", "active_users", "quiet_users"}
    assert all(c["how"] == "t interval over 2 seeds" for c in report["comparisons"])
    assert "<script" not in (work / "report" / "report.html").read_text(encoding="utf-8")


def test_report_agrees_with_the_metrics_files(work):
    for run in report_of(work)["runs"]:
        metrics = json.loads((work / "models" / run["name"] / "evaluation-test" / "metrics.json").read_text())
        assert run["metrics"] == metrics["slices"]


def test_placebo_has_the_stores_knowledge_under_other_ids(work):
    from kser_tf.models.model_folder import store_references

    ours = store_references(work / "models" / "din" / "all_parameters" / "seed-1")["item"].open()
    placebo = store_references(work / "models" / "din" / "placebo" / "seed-1")["item"].open()
    np.testing.assert_array_equal(np.sort(ours.vectors, axis=None), np.sort(placebo.vectors, axis=None))
    assert not np.array_equal(ours.vectors, placebo.vectors)


def test_examples_show_the_text_that_was_weighed(work):
    texts = {chunk["text"] for chunk in report_of(work)["filtered"] + report_of(work)["kept"]}
    assert texts
    assert all(re.search(r"Film|Meer|Verrat|Schuld|Nummer|Einstellungen", text) for text in texts)


@pytest.mark.usefixtures("check_in_process")
def test_a_second_run_does_nothing_anew(work, config_file, capsys):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("job.json")}
    assert cli.main(["run", str(config_file), "--data", str(config_file.parent)]) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("job.json")} == before
    steps = [step for step in report_of(work)["steps"] if step["job"] != "check"]
    assert all(step["skipped"] for step in steps)
    assert "unchanged, skipped" in capsys.readouterr().err


@pytest.mark.usefixtures("check_in_process")
def test_a_changed_setting_does_what_hangs_on_it_and_no_more(work, config_file):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("job.json")}
    change = "train.by_variant={all_parameters: {learning_rate: 0.002}}"
    assert cli.main(["run", str(config_file), "--data", str(config_file.parent), "--set", change]) == 0
    changed = {str(p.relative_to(work).parent) for p, time in before.items() if p.stat().st_mtime_ns != time}
    models = {f"models/din/all_parameters/seed-{s}" for s in (1, 2)}
    assert changed == models | {f"{model}/evaluation-test" for model in models} | {"serving/own"}


def test_data_must_be_given(config_file):
    with pytest.raises(ConfigError, match=r"\$\{data\} is used, but not given. Pass --data FOLDER"):
        load_run_config(config_file)


def test_unknown_keys_are_refused_with_the_near_miss(config_file):
    with pytest.raises(ConfigError, match=r"`train.seed` is not a known key. Did you mean `seeds`\?"):
        load_run_config(config_file, data="x", overrides=["train.seed=[1]"])


@pytest.mark.parametrize("choice", ["seed=7", "backbone=dcn_v2"])
def test_a_model_that_is_not_trained_cannot_be_served(config_file, choice):
    """Told before anything is trained."""
    with pytest.raises(ConfigError, match=rf"`serve`.*{choice.split('=')[1]}"):
        load_run_config(config_file, data="x", overrides=[f"serve.{choice}"])
