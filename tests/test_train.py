"""The job `train`: strategies keep their promises through fit, save and load; a stopped run goes on as if it had not been."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_world as world

from kser_tf.errors import ConfigError, DataError
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.train import HISTORY_FILE, TrainConfig, train

pytestmark = pytest.mark.tfrs

MODEL = {"embedding_width": 4, "hidden_units": [8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("world")
    world.make_prepared(made)
    world.make_store(made)
    return made


def config(folder, name, **changes):
    values = {
        "prepared": str(folder / "prepared"),
        "output": str(folder / name),
        "model": MODEL,
        "batch_size": 64,
        "epochs": 2,
        "patience": 5,
        "learning_rate": 0.01,
        "tensorboard": False,
        **changes,
    }
    return from_mapping(TrainConfig, values, source="test")


@pytest.fixture(scope="module")
def base(folder):
    train(config(folder, "base"))
    return folder / "base"


def weights_of(path, part):
    from kser_tf.models.model_folder import load_model

    model = load_model(path)
    return {
        "core": model.core.get_weights,
        "output": model.output_layer.get_weights,
        "tables": lambda: [w for table in model.embedding._tables.values() for w in table.get_weights()],
        "extractor": lambda: [w for e in model.extractors.values() for w in e.get_weights()],
    }[part]()


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_base_and_result_file(folder, base):
    job = read_job(base)
    assert job["result"]["epochs"] == 2
    assert job["result"]["trained_parameters"] == job["result"]["total_parameters"]
    assert (base / HISTORY_FILE).read_text().count("\n") == 3
    best = max(job["result"]["curve"], key=lambda epoch: epoch["val_auc"])
    assert job["result"]["validation_auc"] == best["val_auc"]


def test_extractor_only_starts_from_the_base_and_freezes_the_core(folder, base):
    train(
        config(
            folder, "extractor_only", strategy="extractor_only", stores={"item": str(folder / "store")}, base=str(base)
        )
    )
    assert same(weights_of(base, "core"), weights_of(folder / "extractor_only", "core"))
    assert not same(weights_of(base, "output"), weights_of(folder / "extractor_only", "output"))
    assert not same(weights_of(base, "tables"), weights_of(folder / "extractor_only", "tables"))


def test_the_extractor_alone_leaves_the_backbone_bit_identical(folder, base):
    train(
        config(
            folder, "alone", strategy="extractor_only", also=[], stores={"item": str(folder / "store")}, base=str(base)
        )
    )
    for part in ("core", "output", "tables"):
        assert same(weights_of(base, part), weights_of(folder / "alone", part)), part
    extractor = weights_of(folder / "alone", "extractor")
    assert any(np.abs(weight).max() > 0 for weight in extractor)


def test_rates_of_the_parts(folder, base):
    """At rate 0 the embeddings stay as they are, although they are trained."""
    settings = {"strategy": "extractor_only", "stores": {"item": str(folder / "store")}, "base": str(base)}
    train(config(folder, "rates", rates={"embedding": 0.0}, **settings))
    assert same(weights_of(base, "tables"), weights_of(folder / "rates", "tables"))
    assert not same(weights_of(base, "output"), weights_of(folder / "rates", "output"))
    with pytest.raises(ConfigError, match="strategy base has none"):
        config(folder, "no", rates={"embedding": 0.5})


def test_the_rate_falls_along_a_cosine_to_0_at_the_last_step(folder, base, monkeypatch):
    from kser_tf.pipelines import fused_adam

    made = []
    adam = fused_adam.FusedAdam
    monkeypatch.setattr(fused_adam, "FusedAdam", lambda rate: made.append(adam(rate)) or made[-1])
    result = train(config(folder, "cosine", epochs=3, patience=3, learning_rate=0.01, decay="cosine"))
    (optimizer,) = made
    steps = int(optimizer.iterations)
    assert steps % 3 == 0
    assert result["epochs"] == 3
    rate = optimizer._learning_rate
    assert [float(rate(at)) for at in (0, steps / 2, steps)] == pytest.approx([0.01, 0.005, 0.0], abs=1e-8)


def test_the_same_configuration_is_not_trained_twice(folder, base):
    before = (base / "job.json").stat().st_mtime_ns
    train(config(folder, "base"))
    assert (base / "job.json").stat().st_mtime_ns == before
    result = train(config(folder, "other-seed", seed=2, epochs=1))
    assert result["curve"][0]["loss"] != read_job(base)["result"]["curve"][0]["loss"]


def test_a_killed_run_goes_on_as_if_it_had_not_been(folder):
    """Killed with SIGKILL after its first epoch, started again: the same curve and the same weights, to the bit.

    Also with what draws at random or remembers: dropped ids, sampled histories, rates of the parts and their decay.
    """
    settings = {"strategy": "all_parameters", "stores": {"item": str(folder / "store")}, "epochs": 4}
    settings |= {"history_sample": 2, "rates": {"extractor": 3.0}, "decay": "cosine"}
    settings["model"] = {"embedding_width": 4, "id_dropout": 0.3, "user_knowledge": "texts"}
    through = train(config(folder, "through", **settings))

    stopped = config(folder, "stopped", **settings)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[2]);"
        "import tensorflow as tf, time; import kser_tf.pipelines.callbacks as c;"
        "old = c.ResumedEarlyStopping.on_epoch_end;"
        "c.ResumedEarlyStopping.on_epoch_end = lambda self, *a, **k: (old(self, *a, **k), time.sleep(5));"
        "from test_train import *;"
        "train(from_mapping(TrainConfig, json.loads(sys.argv[1]), source='test'))"
    )
    import json

    values = dataclasses.asdict(stopped)
    child = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(values), os.path.dirname(__file__)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    history = folder / "stopped" / HISTORY_FILE
    until = time.monotonic() + 120
    while not (history.is_file() and history.read_text().count("\n") >= 2):
        assert time.monotonic() < until, "the run did not get to its first epoch"
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert read_job(folder / "stopped") is None

    resumed = train(stopped)
    for key in ("loss", "val_auc"):
        assert [epoch[key] for epoch in resumed["curve"]] == [epoch[key] for epoch in through["curve"]]
    for part in ("core", "output", "tables", "extractor"):
        assert same(weights_of(folder / "through", part), weights_of(folder / "stopped", part)), part


def test_placebo_sees_the_knowledge_of_others(folder, base):
    from kser_tf.models.model_folder import load_model, store_references

    settings = {"strategy": "all_parameters", "stores": {"item": str(folder / "store")}, "epochs": 1}
    train(config(folder, "placebo", shuffle_knowledge=1, **settings))
    assert store_references(folder / "placebo")["item"].shuffle_seed == 1
    load_model(folder / "placebo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stores": {"item": "store"}}, "strategy base uses no knowledge"),
        ({"strategy": "all_parameters"}, "strategy all_parameters needs `stores`"),
        ({"strategy": "extractor_only", "stores": {"item": "store"}}, "`base`, the folder of a trained base model"),
        ({"training_users": 0}, "`training_users` is a share, above 0 and at most 1. Received: 0"),
        ({"epochs": 0}, "`epochs` must be at least 1. Received: 0"),
        ({"epoch": 3}, r"`epoch` is not a known key. Did you mean `epochs`\?"),
        ({"model": {"dropot": 0.1}}, r"`model.dropot` is not a known key. Did you mean `dropout`\?"),
        ({"strategy": "extractor-only"}, "`strategy`: Input should be 'base', 'all_parameters' or 'extractor_only'"),
    ],
)
def test_wrong_configurations(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, "wrong", **changes)
    assert not (folder / "wrong").exists()


def test_tensorboards_files_need_tensorboard(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard, or set it to false"):
        config(folder, "base", tensorboard=True)
    assert not TrainConfig(prepared="prepared", output="model").tensorboard


def test_stores_of_unknown_entities_are_refused(folder):
    with pytest.raises(
        ConfigError, match=r"knowledge about 'movie', but no feature names such entities\. Entities: item"
    ):
        train(config(folder, "wrong", strategy="all_parameters", stores={"movie": str(folder / "store")}))


def test_a_missing_data_set_is_named(folder):
    with pytest.raises(DataError, match="no such file or folder"):
        train(config(folder, "wrong", prepared=str(folder / "nowhere")))


def test_a_folder_of_something_else_is_not_overwritten(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not the folder of a training run"):
        train(config(folder, "mine"))
    assert (folder / "mine" / "thesis.txt").read_text() == "years of work"
