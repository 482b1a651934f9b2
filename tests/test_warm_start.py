"""warm_start from every kind of file, into models with and without an extractor; and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import serving_cases as cases
import tensorflow as tf
from layer_test_case import KERAS

import kser_tf
from kser_tf.attachment.at_output import attach_at_output
from kser_tf.errors import DataError, WeightsError

pytestmark = pytest.mark.usefixtures("seed")

BACKBONE_WEIGHTS = 1 + 2 + 4 + 2 + 2  # embedding, dense in the tower; BatchNormalization; two dense layers


class Ranker(tf.keras.Model):
    """A user's model: a tower, an attribute before and one after "layers" in the alphabet."""

    def __init__(self, width: int = 4, last: str = "score", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = last
        self.tower = tf.keras.Sequential(
            [
                tf.keras.layers.StringLookup(vocabulary=list(cases.STRING_IDS)),
                tf.keras.layers.Embedding(8, width, name="table"),
                tf.keras.layers.Dense(width, name="widen"),
            ],
            name="tower",
        )
        self.batch_norm = tf.keras.layers.BatchNormalization(name="normal")
        self.core = tf.keras.layers.Dense(width, name="core")
        setattr(self, last, tf.keras.layers.Dense(1, name="score"))
        self.dropout = tf.keras.layers.Dropout(0.5, seed=1)

    def call(self, features: Any) -> Any:
        hidden = self.batch_norm(self.tower(features["item_id"]))
        return getattr(self, self.last)(self.dropout(self.core(hidden)))


ROWS = {"item_id": tf.constant([*cases.STRING_IDS, "nobody", ""])}
SPEC = {"item_id": tf.TensorSpec((None,), tf.string, name="item_id")}


def built(width: int = 4, seed: int | None = None) -> Ranker:
    model = Ranker(width, name="ranker")
    model(ROWS)
    if seed is not None:
        generator = np.random.default_rng(seed)
        model.set_weights([generator.uniform(0.2, 1.0, weight.shape) for weight in model.get_weights()])
    return model


def trained() -> Ranker:
    """With an optimizer and a metric, whose variables are in some of the files."""
    model = built(seed=5)
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(ROWS, np.ones((8, 1)), verbose=0)
    return model


def write(kind: str, model: Any, folder: Path) -> Path:
    path = folder / kind
    folder.mkdir(exist_ok=True)
    if kind in ("x.weights.h5",):
        model.save_weights(path)
    elif kind == "x.keras":
        model.save(path)
    elif kind == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path))
    elif kind == "folder":
        tf.train.CheckpointManager(tf.train.Checkpoint(net=model), str(path), max_to_keep=1).save()
    elif kind == "tf":
        model.save_weights(str(path), save_format="tf")
    elif kind == "saved_model":
        tf.saved_model.save(model, str(path))
    elif kind == "export":
        return kser_tf.export(model, path, inputs=SPEC).path
    return path


KINDS = ["x.weights.h5", "x.keras", "checkpoint", "folder", *(["tf", "saved_model", "export"] if KERAS == 2 else [])]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tf.keras.utils.set_random_seed(7)
    model, folder = trained(), tmp_path_factory.mktemp("source")
    expected = np.asarray(model(ROWS))
    return {"expected": expected, **{kind: write(kind, model, folder) for kind in KINDS}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> kser_tf.KnowledgeStore:
    return cases.write_store(tmp_path_factory.mktemp("store") / "items")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attached", [False, True], ids=["plain", "attached"])
def test_a_plain_backbones_file(kind: str, attached: bool, source: Any, store: Any, capsys: Any) -> None:
    model = built()
    if attached:
        attach_at_output(model, {"item_id": store})
    extractor = len(model.weights) - BACKBONE_WEIGHTS
    assert not np.array_equal(model(ROWS), source["expected"])
    report = kser_tf.warm_start(model, source[kind])
    np.testing.assert_array_equal(model(ROWS), source["expected"])
    assert len(report.restored) == BACKBONE_WEIGHTS
    assert len(report.kept) == extractor
    assert (extractor > 0) == attached
    assert report.unused == {}
    printed = capsys.readouterr().out
    assert f"restored {BACKBONE_WEIGHTS} of {BACKBONE_WEIGHTS + extractor} weights" in printed
    assert printed.count("\n  restored ") == BACKBONE_WEIGHTS
    assert printed.count("\n  kept ") == extractor


@pytest.mark.parametrize("kind", ["x.weights.h5", "x.keras", "checkpoint"])
def test_an_attached_models_file(kind: str, store: Any, tmp_path: Path) -> None:
    model = attach_at_output(trained(), {"item_id": store})
    kser_tf.extractor_only(model, also=())
    model.compile("adam", "mse")
    model.fit(ROWS, np.ones((8, 1)), epochs=2, verbose=0)
    path = write(kind, model, tmp_path)
    other = attach_at_output(built(), {"item_id": store})
    report = kser_tf.warm_start(other, path, verbose=False)
    assert not report.kept
    assert len(report.restored) == len(model.weights)
    np.testing.assert_array_equal(other(ROWS), model(ROWS))
    # Into a plain one it does not fit, and says how it would.
    plain = built()
    before = plain.get_weights()
    with pytest.raises(WeightsError, match=r"not in the model: [^\n]*output_correction[^\n]*\n(.|\n)*attach first"):
        kser_tf.warm_start(plain, path)
    assert all(np.array_equal(*pair) for pair in zip(before, plain.get_weights(), strict=True))
    report = kser_tf.warm_start(plain, path, strict=False, verbose=False)
    assert len(report.unused) == len(model.weights) - BACKBONE_WEIGHTS


WRITE_WITH_KERAS_2 = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_warm_start import KERAS, ROWS, trained
assert KERAS == 2
model = trained()
model.save_weights(sys.argv[2])
np.save(sys.argv[3], model(ROWS))
"""


@pytest.mark.skipif(KERAS == 2, reason="the file is written by another process under Keras 2, and read under Keras 3")
def test_a_file_of_keras_2_into_a_model_of_keras_3(store: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_WITH_KERAS_2, str(Path(__file__).parent)]
    command += [str(tmp_path / "x.weights.h5"), str(tmp_path / "expected.npy")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TF_USE_LEGACY_KERAS": "1"})
    model = attach_at_output(built(), {"item_id": store})
    report = kser_tf.warm_start(model, tmp_path / "x.weights.h5", verbose=False)
    assert len(report.restored) == BACKBONE_WEIGHTS
    np.testing.assert_allclose(model(ROWS), np.load(tmp_path / "expected.npy"), rtol=1e-5, atol=1e-6)


def renamed_file(source: Any, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file in which the first part of every weight's name is another."""
    path, names = tmp_path / "old.weights.h5", {}
    with h5py.File(source["x.weights.h5"]) as old, h5py.File(path, "w") as new:
        for name in old:
            if name not in ("optimizer", "metrics", "vars"):
                old.copy(name, new, f"net/{name}")
                names[f"net/{name}"] = name
    return path, names


def test_names_that_changed(source: Any, tmp_path: Path) -> None:
    path, names = renamed_file(source, tmp_path)
    with pytest.raises(WeightsError, match="names="):
        kser_tf.warm_start(built(), path)
    for given in (names, {"net": ""}, lambda name: name.removeprefix("net/")):
        model = built()
        if given == {"net": ""}:
            given = {f"{old}/": f"{new}/" for old, new in names.items()}
        report = kser_tf.warm_start(model, path, names=given, verbose=False)
        assert len(report.restored) == BACKBONE_WEIGHTS
        np.testing.assert_array_equal(model(ROWS), source["expected"])


def test_names_in_a_checkpoint(source: Any, tmp_path: Path) -> None:
    model = Ranker(last="final")
    model(ROWS)
    with pytest.raises(WeightsError, match=r"not in the model: score/bias \(1\)"):
        kser_tf.warm_start(model, source["checkpoint"])
    kser_tf.warm_start(model, source["checkpoint"], names={"score": "final"}, verbose=False)
    np.testing.assert_array_equal(model(ROWS), source["expected"])


def test_a_function_of_names_may_leave_weights_out(source: Any) -> None:
    model = built()
    before = np.array(model.score.kernel)

    def without_score(name: str) -> str | None:
        return None if name.startswith("score/") else name

    with pytest.raises(WeightsError, match=r"not in the file: [^\n]*score[^\n]*kernel \(4, 1\)"):
        kser_tf.warm_start(model, source["checkpoint"], names=without_score)
    report = kser_tf.warm_start(model, source["checkpoint"], names=without_score, strict=False, verbose=False)
    assert len(report.restored) == BACKBONE_WEIGHTS - 2
    np.testing.assert_array_equal(model.score.kernel, before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_change_nothing(kind: str, source: Any) -> None:
    model = built(width=5)
    before = model.get_weights()
    with pytest.raises(WeightsError, match=r"nothing was restored.*\n(.|\n)*other shape: .*\(8, 5\), and .* \(8, 4\)"):
        kser_tf.warm_start(model, source[kind])
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    report = kser_tf.warm_start(model, source[kind], strict=False, verbose=False)
    assert list(report.restored.values()) == [(1,)]  # the last bias
    assert len(report.kept) == len(report.unused) == BACKBONE_WEIGHTS - 1


def test_a_layer_more_is_named_with_what_may_be_meant(source: Any) -> None:
    class Longer(Ranker):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.another = tf.keras.layers.Dense(4, name="another")

        def call(self, features: Any) -> Any:
            return self.score(self.another(self.core(self.batch_norm(self.tower(features["item_id"])))))

    model = Longer()
    model(ROWS)
    for kind in ("checkpoint", "folder"):
        with pytest.raises(WeightsError) as caught:
            kser_tf.warm_start(model, source[kind])
        lines = str(caught.value).splitlines()
        assert sum(line.startswith("  not in the file:") for line in lines) == 2
        assert "another/kernel (4, 4)" in str(caught.value)
        assert "Take the file of a model that has these layers" in lines[-1]


def test_nothing_else_of_the_model_is_touched(source: Any) -> None:
    model = trained()
    model.fit(ROWS, np.ones((8, 1)), verbose=0)
    variables = model.optimizer.variables
    before = [np.array(variable) for variable in (variables() if callable(variables) else variables)]
    for kind in ("x.weights.h5", "x.keras", "checkpoint"):
        kser_tf.warm_start(model, source[kind], verbose=False)
    after = [np.array(variable) for variable in (variables() if callable(variables) else variables)]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    assert not any("load_own_variables" in vars(layer) for layer in model._flatten_layers())
    model.fit(ROWS, np.ones((8, 1)), verbose=0)  # still compiled


def test_what_is_no_file_of_weights(source: Any, tmp_path: Path) -> None:
    model = built()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.weights.h5").write_text("no weights")
    (tmp_path / "text.keras").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for name, message in (
        ("empty", "neither a SavedModel nor a checkpoint"),
        ("missing", "there is no such file of weights. Expected a .weights.h5"),
        ("text.weights.h5", "cannot be read as an HDF5 file"),
        ("text.keras", "is no .keras file"),
        ("zip.keras", "is no .keras file with model.weights.h5"),
    ):
        with pytest.raises(DataError, match=message):
            kser_tf.warm_start(model, tmp_path / name)
    with pytest.raises(WeightsError, match="no weights yet: call it on a batch"):
        kser_tf.warm_start(Ranker(), source["checkpoint"])


def test_a_damaged_checkpoint_changes_nothing(source: Any, tmp_path: Path) -> None:
    for file in source["checkpoint"].parent.glob("checkpoint.*"):
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content if file.suffix == ".index" else content[:40])
    model = built()
    before = model.get_weights()
    with pytest.raises(DataError, match="cannot be read"):
        kser_tf.warm_start(model, tmp_path / "checkpoint")
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


@pytest.mark.skipif(KERAS == 2, reason="Keras 2 keeps the layers' names in the variables'")
def test_an_export_without_names_is_refused_with_the_way_that_works(tmp_path: Path) -> None:
    path = kser_tf.export(built(seed=5), tmp_path / "ranker", inputs=SPEC).path
    with pytest.raises(WeightsError, match=r"written by an export.*kser_tf.SavedModelBackbone\(path\)"):
        kser_tf.warm_start(built(), path)
