"""A SavedModel as a backbone: what it predicts, that it stays as it is, and that all of it is exported again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_cases as cases
import tensorflow as tf

import kser_tf
from kser_tf import SavedModelBackbone
from kser_tf.attachment.at_output import attach_at_output
from kser_tf.errors import AttachError, DataError

pytestmark = pytest.mark.usefixtures("seed")

BCE = tf.keras.losses.BinaryCrossentropy


class Case:
    """A ranker with a vocabulary and knowledge of its own, exported; of its code nothing is needed from then on."""

    def __init__(self, folder: Path) -> None:
        self.store = cases.write_store(folder / "store")
        self.rows = cases.rows(200, store=self.store)
        self.inputs = cases.inputs(self.store)
        self.path = kser_tf.export(
            cases.ranker(self.store), folder / "ranker", inputs=self.inputs, examples=self.rows
        ).path

    def backbone(self) -> SavedModelBackbone:
        return SavedModelBackbone(self.path, output="logit")

    def served(self) -> np.ndarray:
        function = tf.saved_model.load(str(self.path)).signatures["serving_default"]
        return np.asarray(function(**{name: tf.constant(values) for name, values in self.rows.items()})["logit"])

    def train(self, model: Any) -> None:
        kser_tf.extractor_only(model, also=())
        model.compile(tf.keras.optimizers.Adam(0.01), BCE(from_logits=True))
        labels = (np.arange(200) % 2).astype("float32")
        model.fit(tf.data.Dataset.from_tensor_slices((self.rows, labels)).batch(50), verbose=0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("saved_model_backbone"))


def test_it_answers_as_the_signature_and_has_no_weights(case: Case) -> None:
    model = case.backbone()
    np.testing.assert_array_equal(model(case.rows), case.served())
    assert model.weights == []
    assert sorted(model.specs) == ["country", "item_id", "price"]
    # Other dtypes of the kind, a dimension of one, and features that it does not know.
    other = {name: tf.constant(values)[:, None] for name, values in case.rows.items()}
    other |= {"price": tf.cast(other["price"], tf.float64), "more": tf.zeros(200)}
    np.testing.assert_array_equal(model(other), case.served())


@pytest.mark.usefixtures("check_in_process")
def test_attached_trained_exported_and_detached(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "backbone" / "1"
    shutil.copytree(case.path, path)
    model = SavedModelBackbone(path, output="logit")
    before = np.asarray(model(case.rows))
    attach_at_output(model, {"item_id": case.store}, backbone_logit=True)
    np.testing.assert_array_equal(model(case.rows), before)
    case.train(model)
    after = np.asarray(model(case.rows))
    known = np.isin(case.rows["item_id"], np.delete(case.store.ids, 1))  # the second has no knowledge
    np.testing.assert_array_equal(after[~known], before[~known])
    assert np.any(after[known] != before[known])
    assert 0 < known.sum() < 200

    result = kser_tf.export(model, tmp_path / "attached", inputs=case.inputs, examples=case.rows)
    shutil.rmtree(path)  # the export holds all of it
    checked = kser_tf.check(result.path)
    assert checked.ok, checked.text()
    assert checked.measurements["largest_difference"]["logit"] < 1e-5
    again = SavedModelBackbone(result.path, output="logit")
    np.testing.assert_allclose(again(case.rows), after, rtol=1e-5, atol=1e-6)
    kser_tf.detach(model)
    np.testing.assert_array_equal(model(case.rows), before)


def test_vocabulary_files_are_exported_again(case: Case, tmp_path: Path) -> None:
    """Tables that are filled from a file, which is an asset of the SavedModel."""
    words = tmp_path / "words.txt"
    words.write_text("\n".join(map(str, case.store.ids)), encoding="utf-8")
    model = tf.keras.Sequential(
        [
            tf.keras.Input((), dtype="string"),
            tf.keras.layers.StringLookup(vocabulary=str(words)),
            tf.keras.layers.Embedding(8, 3),
            tf.keras.layers.Dense(1),
        ]
    )
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None,), tf.string, name="item_id")
    archive.add_endpoint("serve", tf.function(lambda item_id: {"logit": model(item_id)}, input_signature=[spec]))
    archive.write_out(str(tmp_path / "old"))
    expected = np.asarray(model(tf.constant(case.rows["item_id"])))
    backbone = SavedModelBackbone(tmp_path / "old")
    attach_at_output(backbone, {"item_id": case.store})
    rows = {"item_id": case.rows["item_id"]}
    result = kser_tf.export(backbone, tmp_path / "new", inputs={"item_id": spec}, examples=rows)
    words.unlink()
    shutil.rmtree(tmp_path / "old")
    checked = kser_tf.check(result.path, examples=rows, expected={"logit": expected[:, 0]})
    assert checked.ok, checked.text()


def test_files_hold_the_extractor_alone(case: Case, tmp_path: Path) -> None:
    model = attach_at_output(case.backbone(), {"item_id": case.store})
    case.train(model)
    expected = np.asarray(model(case.rows))
    model.save_weights(tmp_path / "extractor.weights.h5")
    model.save(tmp_path / "model.keras")
    fresh = attach_at_output(case.backbone(), {"item_id": case.store})
    fresh.load_weights(tmp_path / "extractor.weights.h5")
    np.testing.assert_array_equal(fresh(case.rows), expected)
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    loaded.output_correction.connect({"item_id": case.store})
    np.testing.assert_array_equal(loaded(case.rows), expected)


def test_nothing_of_it_is_trained_with_all_parameters(case: Case) -> None:
    model = attach_at_output(case.backbone(), {"item_id": case.store})
    kser_tf.all_parameters(model)
    assert {id(weight) for weight in model.trainable_weights} == {
        id(weight) for weight in model.output_correction.trainable_weights
    }


def test_what_does_not_fit_is_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"outputs 'probability', 'logit'|outputs 'logit', 'probability'"):
        SavedModelBackbone(case.path)
    with pytest.raises(DataError, match="Received: output='ctr'"):
        SavedModelBackbone(case.path, output="ctr")
    with pytest.raises(DataError, match=r"no signature 'serve'. It has: .*'serving_default'"):
        SavedModelBackbone(case.path, signature="serve")
    with pytest.raises(DataError, match=rf"holds the versions \[1\]: name one, {case.path}"):
        SavedModelBackbone(case.path.parent)
    with pytest.raises(DataError, match="is no SavedModel"):
        SavedModelBackbone(tmp_path)
    model = case.backbone()
    for change, message in (
        ({"price": None}, r"Missing: price"),
        ({"price": tf.constant(["dear"] * 200)}, "input 'price': the SavedModel takes float32. Received: string"),
        ({"price": tf.zeros((200, 3))}, r"input 'price': the SavedModel takes shape \(None,\). Received: \(200, 3\)"),
    ):
        rows = {name: value for name, value in {**case.rows, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            model(rows)


def test_what_its_output_is_must_be_known(case: Case, tmp_path: Path) -> None:
    model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None, 1), tf.float32, name="x")
    archive.add_endpoint("serve", tf.function(lambda x: {"out": model(x)}, input_signature=[spec]))
    archive.write_out(str(tmp_path / "out"))
    with pytest.raises(AttachError, match=r"what the output 'out'.* Say it: output_kind='logit'"):
        attach_at_output(SavedModelBackbone(tmp_path / "out"), {"item_id": case.store})
    with pytest.raises(AttachError, match=r"kser_tf.SavedModelBackbone\(path\)"):
        attach_at_output(tf.saved_model.load(str(tmp_path / "out")), {"item_id": case.store})
