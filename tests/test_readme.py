"""What README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf
import yaml

import kser_tf
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.prepare import PrepareConfig

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language):
    (code,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return code


def indented(beginning):
    return next(
        line.strip() for line in README.splitlines() if line.strip().startswith(beginning) and line.startswith("    ")
    )


def test_the_layers_in_ones_own_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    ids = ["heat", "alien", "ran"]
    names = {
        "kser_tf": kser_tf,
        "tf": tf,
        "ids": ids,
        "chunks": rng.normal(size=(3, 2, 2, 8)).astype("float32"),
        "mask": np.ones((3, 2, 2), bool),
    }
    exec(indented("kser_tf.KnowledgeStore.write"), names)
    exec(block("python"), names)
    model = names["model"] = names["Ranker"](ids, kser_tf.KnowledgeStore.open("stores/movies"))
    features = {"movie_id": tf.constant(["ran", "never heard of"])}
    before = model(features).numpy()
    model.extractor.adapt(kser_tf.KnowledgeStore.open("stores/movies"))
    np.testing.assert_array_equal(model(features).numpy(), before)
    report = kser_tf.extractor_only(model)
    assert 0 < report.trained_parameters < report.total_parameters
    model.compile(optimizer="adam", loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(features, np.array([[1.0], [0.0]]), verbose=0)
    exec(indented("kser_tf.export"), names)
    result = eval(indented("kser_tf.check").split("#")[0], names)
    assert result.ok, result.text()


def test_the_schema_of_ones_own_log():
    config = from_mapping(PrepareConfig, yaml.safe_load(block("yaml")), source="README")
    assert config.schema is not None
    assert config.schema.item_id.name == "item_id"


def test_no_figure_is_left_to_fill_in():
    assert not re.search(r"^[A-Z]+_TABLE$|^RESULTS$|_SHARE", README, re.MULTILINE)
