"""Wrong and odd requests: an error or a defined answer, and the session goes on; for a while, from several threads.

`KSER_FUZZ_SECONDS` says for how long the random requests come; by default 10 seconds, and a minute before a release.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import serving_cases as cases
import serving_fuzz
import tensorflow as tf

import kser_tf
from kser_tf.serving import contract
from kser_tf.serving.loaded_model import LoadedModel

KERAS_3 = not tf.keras.layers.Layer.__module__.startswith("tf_keras")
SECONDS = float(os.environ.get("KSER_FUZZ_SECONDS", "10"))
# What may be added in `SECONDS` of requests: about 20,000 of them, so 64 MB is 3 kB each. A leak of a request's tensors
# would be a hundred times as much.
GROWTH_BYTES = 64 * 2**20

Rows = dict[str, np.ndarray]


def _ranking_model(folder: Path) -> Path:
    import small_world as world

    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.pipelines.examples import raw_features
    from kser_tf.schema import DatasetSchema

    prepared = world.make_prepared(folder)
    schema = DatasetSchema.load(prepared)
    stores = {"item": kser_tf.KnowledgeStore.open(world.make_store(folder, "int8"))}
    model = RankingModel(schema, RankingModelConfig(embedding_width=8, hidden_units=(16,)), stores)
    model.make_weights()
    model.adapt(stores)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape, scale=0.3).astype("float32") for weight in model.get_weights()])
    rows = next(raw_features(prepared / "test.parquet", schema.features, 300))
    return kser_tf.export(model, folder / "ranker", examples=rows).path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranking model with knowledge; under Keras 3, which has none, a model of the user's own."""
    folder = tmp_path_factory.mktemp("exported")
    if not KERAS_3:
        return _ranking_model(folder)
    store = cases.write_store(folder / "store")
    rows = cases.rows(300, store=store)
    return kser_tf.export(cases.ranker(store), folder / "ranker", inputs=cases.inputs(store), examples=rows).path


@pytest.fixture(scope="module")
def model(exported: Path) -> Iterator[LoadedModel]:
    with LoadedModel(exported) as loaded:
        yield loaded


@pytest.fixture
def rows(exported: Path) -> Rows:
    kept, _ = contract.load_examples(exported / contract.EXAMPLES_FILE)
    return kept


def strings(rows: Rows) -> str:
    return next(name for name, values in rows.items() if values.dtype.kind == "S" and values.ndim == 1)


def numbers(rows: Rows) -> str:
    return next(name for name, values in rows.items() if values.dtype.kind == "f")


WRONG: dict[str, Callable[[Rows], Rows]] = {
    "numbers for strings": lambda rows: {**rows, strings(rows): np.zeros(len(rows[strings(rows)]), np.float32)},
    "strings for numbers": lambda rows: {**rows, numbers(rows): rows[strings(rows)]},
    "doubles for floats": lambda rows: {**rows, numbers(rows): rows[numbers(rows)].astype(np.float64)},
    "a rank too many": lambda rows: {**rows, strings(rows): rows[strings(rows)][:, None, None]},
    "a rank too few": lambda rows: {**rows, numbers(rows): rows[numbers(rows)][0]},
    "fewer rows of one input": lambda rows: {**rows, numbers(rows): rows[numbers(rows)][:7]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_requests_are_refused_and_the_session_goes_on(model: LoadedModel, rows: Rows, wrong: str) -> None:
    """At TensorFlow's own code, as in a server."""
    call = model.direct(contract.SIGNATURE)
    before = call(rows)
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError)):
        call(WRONG[wrong](rows))
    for name, values in call(rows).items():
        np.testing.assert_array_equal(values, before[name])


def test_the_names_of_a_refused_request(exported: Path, rows: Rows) -> None:
    from tensorflow_serving.apis import model_pb2

    from kser_tf.serving.double.served_models import ServedModels, ServingError

    served = ServedModels(exported.parent, name="ranker", labels={})
    spec = model_pb2.ModelSpec(name="ranker")
    missing = {name: values for name, values in rows.items() if name != numbers(rows)}
    for given, message in (
        (missing, f"Missing but required: {{{numbers(rows)}}}"),
        ({**rows, "label": rows[numbers(rows)]}, "Sent extra: {label}"),
        *((WRONG[wrong](rows), "") for wrong in WRONG),
    ):
        with pytest.raises(ServingError, match=message or None) as error:
            served.predict(spec, given)
        assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
    served.close()


def test_an_empty_batch(model: LoadedModel, rows: Rows) -> None:
    answers = model.direct(contract.SIGNATURE)({name: values[:0] for name, values in rows.items()})
    assert {name: values.shape for name, values in answers.items()} == {"logit": (0,), "probability": (0,)}


def test_ten_thousand_rows(model: LoadedModel, rows: Rows) -> None:
    call = model.direct(contract.SIGNATURE)
    index = np.arange(10_000) % len(rows[numbers(rows)])
    many, few = call({name: values[index] for name, values in rows.items()}), call(rows)
    for name, values in many.items():
        assert values.shape == (10_000,)
        np.testing.assert_allclose(values, few[name][index], rtol=1e-5, atol=1e-5)


def test_ids_of_a_million_characters_are_unknown_ids(model: LoadedModel, rows: Rows) -> None:
    call = model.direct(contract.SIGNATURE)
    odd = {
        name: np.full(values[:2].shape, b"?", object) if values.dtype.kind == "S" else values[:2]
        for name, values in rows.items()
    }
    long = {
        name: np.full(values.shape, "影".encode() * 10**6, object) if values.dtype == object else values
        for name, values in odd.items()
    }
    for name, values in call(long).items():
        np.testing.assert_array_equal(values, call(odd)[name])


def test_numbers_that_are_none(model: LoadedModel, rows: Rows) -> None:
    """A ranking model takes NaN and infinity for a missing number; another one gives NaN, and to those rows alone."""
    call = model.direct(contract.SIGNATURE)
    name = numbers(rows)
    prices = rows[name].copy()
    prices[::4], prices[1::4], prices[2::4] = np.nan, np.inf, -np.inf
    answers, fine = call({**rows, name: prices}), call(rows)
    for output, values in answers.items():
        np.testing.assert_allclose(values[3::4], fine[output][3::4], rtol=1e-5, atol=1e-5)
        if not KERAS_3:
            missing = call({**rows, name: np.full_like(prices, np.nan)})
            for start in range(3):
                np.testing.assert_allclose(values[start::4], missing[output][start::4], rtol=1e-5, atol=1e-5)
            assert np.isfinite(values).all()


def test_random_requests_from_several_threads(exported: Path) -> None:
    command = [sys.executable, serving_fuzz.__file__, str(exported), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 2 * SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == []
    assert found["refused_alone"] == 0
    assert found["calls"] > 1000, found
    assert found["compared"] > 500, found
    assert found["refused"] > 100, found
    # Bit-identical on the processors tried; others may sum in another order under load.
    assert found["largest_difference"] < 1e-6, found
    assert found["resident_after"] - found["resident_before"] < GROWTH_BYTES, found
