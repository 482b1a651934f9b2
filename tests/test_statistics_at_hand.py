"""ESFNet's statistics of a store are computed once for training, and are always those of the store and the weights there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_cases as cases
import tensorflow as tf

from kser_tf.layers import KnowledgeEmbedding, OutputCorrection, statistics_at_hand
from kser_tf.layers.statistics_at_hand import StatisticsAtHand, in_training_step, training_step


@pytest.fixture
def knowledge(tmp_path: Path) -> Any:
    """A KnowledgeEmbedding whose every weight counts."""
    store = cases.write_store(tmp_path / "store")
    layer = KnowledgeEmbedding(store, extractor={"output_initializer": "ones"})
    layer.build((None, 4))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(0.2, 1.0, weight.shape) for weight in layer.get_weights()])
    return layer


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an item whenever the statistics of a whole store are computed."""
    times: list[int] = []
    compute = statistics_at_hand.statistics_of_store
    monkeypatch.setattr(statistics_at_hand, "statistics_of_store", lambda *given: times.append(1) or compute(*given))
    return times


IDS = tf.constant([*cases.STRING_IDS, "nobody"])
EMBEDDED = tf.reshape(tf.linspace(-1.0, 1.0, 4 * len(IDS)), (len(IDS), 4))


def test_training_gives_what_prediction_gives_and_computes_once(knowledge: Any, counted: list[int]) -> None:
    expected = knowledge(EMBEDDED, IDS)
    assert not counted
    for how in (knowledge, tf.function(knowledge, autograph=False)):
        np.testing.assert_allclose(how(EMBEDDED, IDS, training=True), expected, rtol=1e-5, atol=1e-6)
    with training_step():  # as TFRS trains, which does not say so to the model
        np.testing.assert_allclose(knowledge(EMBEDDED, IDS), expected, rtol=1e-5, atol=1e-6)
    assert len(counted) == 1
    assert not in_training_step()


def test_weights_that_are_loaded_later_count(knowledge: Any, counted: list[int]) -> None:
    """The catalogue's average is among them: what was kept is of another one, and is not used, though it was traced."""
    train = tf.function(lambda: knowledge(EMBEDDED, IDS, training=True))
    before = train().numpy()
    mean = knowledge.extractor.esf_net.catalogue_mean
    mean.assign(-2.0 * tf.cast(mean, tf.float32) + 1.0)
    np.testing.assert_allclose(train(), knowledge(EMBEDDED, IDS), rtol=1e-5, atol=1e-6)
    assert np.abs(train() - before).max() > 1e-4
    assert len(counted) == 1


def test_another_store_has_statistics_of_its_own(knowledge: Any, counted: list[int], tmp_path: Path) -> None:
    knowledge(EMBEDDED, IDS, training=True)
    other = cases.write_store(tmp_path / "other", seed=5)
    knowledge.connect(other)
    trained = knowledge(EMBEDDED, IDS, training=True)
    np.testing.assert_allclose(trained, knowledge(EMBEDDED, IDS), rtol=1e-5, atol=1e-6)
    assert len(counted) == 2


def test_of_a_large_store_nothing_is_kept(knowledge: Any, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_at_hand, "_MOST_BYTES", 10)
    expected = knowledge(EMBEDDED, IDS)
    np.testing.assert_array_equal(knowledge(EMBEDDED, IDS, training=True), expected)
    assert not counted


def test_the_correction_of_an_output_too(counted: list[int], tmp_path: Path) -> None:
    store = cases.write_store(tmp_path / "store")
    layer = OutputCorrection({"item": store})
    layer.build()
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(0.1, 0.5, weight.shape) for weight in layer.get_weights()])
    expected = layer({"item": IDS})
    np.testing.assert_allclose(layer({"item": IDS}, training=True), expected, rtol=1e-4)
    assert len(counted) == 1


def test_given_values_are_read_row_by_row(knowledge: Any) -> None:
    count = len(knowledge.lookup.tables().ids)
    shape = (count, *knowledge.lookup.shape[:-1], 3)
    values = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    at_hand = StatisticsAtHand(knowledge.lookup, knowledge.extractor.esf_net, values)
    rows = tf.constant([2, 0, -1], tf.int32)
    chunks, mask = knowledge.lookup.lookup_rows(rows)
    np.testing.assert_array_equal(at_hand(rows, chunks, mask), values[[2, 0, 0]])
