"""10,000 rows: what the SavedModel answers to raw values is what `model.predict` says of the indexed examples of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_world as world

import kser_tf
from kser_tf.serving import contract, native_loader
from kser_tf.serving.loaded_model import LoadedModel

pytestmark = pytest.mark.tfrs

ROWS = 10_000
BATCH = 1024
TOLERANCE = 1e-5
UNKNOWN = ("未知-1", "Ünbekannt", "неизвестно", "x" * 500, " film-3", "FILM-3")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set whose test part has `ROWS` rows: known, unknown and missing values in every feature."""
    folder = world.make_prepared(tmp_path_factory.mktemp("prepared"))
    table = pq.read_table(folder / "train.parquet")
    rng = np.random.default_rng(0)
    table = table.take(rng.integers(len(table), size=ROWS))

    def changed(values: list[Any], chance: float, others: Any) -> list[Any]:
        """Some of the values replaced by one of the others."""
        replaced = rng.random(len(values)) < chance
        return [others[int(rng.integers(len(others)))] if r else v for v, r in zip(values, replaced, strict=True)]

    columns = {
        "item": lambda values: changed(values, 0.2, [*UNKNOWN, "", world.WITHOUT_KNOWLEDGE]),
        "place": lambda values: changed(values, 0.2, ["", "kiosk"]),
        "price": lambda values: changed(values, 0.2, [np.nan, -30.0, 0.0]),
        "tags": lambda values: changed(values, 0.2, [[], ["red", "unknown"], ["new"]]),
        "past_item": lambda values: changed(values, 0.2, [[], ["未知-1"], [world.ITEMS[0], "", world.ITEMS[3]]]),
        "past_stars": lambda values: [(past or [])[:5] for past in values],
    }
    for name, change in columns.items():
        number = table.schema.get_field_index(name)
        field = table.schema.field(number)
        table = table.set_column(number, field, pa.array(change(table[name].to_pylist()), field.type))
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("wide") / "prepared"))
    pq.write_table(table, copy / "test.parquet")
    return copy


@pytest.mark.parametrize(("backbone", "store_dtype"), [("din", "int8"), ("dcn_v2", "float32")])
def test_served_answers_are_those_of_training(prepared: Path, tmp_path: Path, backbone: str, store_dtype: str) -> None:
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.pipelines.examples import IndexedExamples

    data = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    stores = {"item": kser_tf.KnowledgeStore.open(world.make_store(tmp_path, store_dtype))}
    examples = IndexedExamples(data, "test", stores)
    config = RankingModelConfig(backbone=backbone, embedding_width=8, hidden_units=(16, 8))
    model = RankingModel(examples.schema, config, stores)
    model.make_weights()
    model.adapt(stores)
    rng = np.random.default_rng(1)
    # Crosses multiply: with larger weights they cancel numbers of 100,000, which float32 rounds.
    scale = 0.3 if backbone == "din" else 0.2
    model.set_weights([rng.normal(size=weight.shape, scale=scale).astype("float32") for weight in model.get_weights()])
    predicted = model.predict(examples.batches(BATCH).map(lambda features, label: features), verbose=0)[:, 0]
    assert predicted.shape == (ROWS,)
    assert np.std(predicted) > 0.1

    raw = next(examples.raw_batches(ROWS))
    served = kser_tf.export(model, tmp_path / "ranker", examples=raw)
    assert served.path.name == "1"
    with LoadedModel(served.path) as loaded:
        signature = loaded.signatures[contract.SIGNATURE]
        rows = contract.as_table(raw, signature["inputs"])
        answers = loaded.run(contract.SIGNATURE, rows)
        some = np.arange(0, ROWS, 501)
        one_by_one = [
            loaded.run(contract.SIGNATURE, {name: values[i : i + 1] for name, values in rows.items()})["logit"][0]
            for i in some
        ]
    scale = np.maximum(1, np.abs(predicted))
    assert np.max(np.abs(answers["logit"] - predicted) / scale) < TOLERANCE
    probability = 1 / (1 + np.exp(-np.clip(predicted.astype(np.float64), -80, 80)))
    np.testing.assert_allclose(answers["probability"], probability, atol=TOLERANCE)
    np.testing.assert_allclose(one_by_one, predicted[some], rtol=TOLERANCE, atol=TOLERANCE)

    native = native_loader.run(served.path, signature, rows)
    if not native.not_run:
        assert native.error == ""
        assert np.max(np.abs(native.answers["logit"] - predicted) / scale) < TOLERANCE

    # The rows are what they are meant to be: unknown, missing and known ids are answered differently.
    items = np.array([item.decode() for item in rows["item"].tolist()])
    assert 0.05 < np.isin(items, UNKNOWN).mean() < 0.2
    assert (items == "").any()
    assert np.isnan(rows["price"]).any()
