"""A learning rate for each part: plain gradient descent moves by rate times gradient, which is computed by hand."""

import numpy as np
import pytest
import tensorflow as tf

import kser_tf
from kser_tf.layers import KnowledgeEmbedding, KnowledgeExtractor
from kser_tf.model_parts import model_parts


class Model(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.table = tf.keras.layers.Embedding(5, 4)
        self.extractor = KnowledgeExtractor(num_heads=1, output_initializer="glorot_uniform")
        self.core = tf.keras.layers.Dense(3, activation="relu")
        self.output_layer = tf.keras.layers.Dense(1)

    def call(self, inputs):
        embedding = self.table(inputs["id"])
        embedding += self.extractor(embedding[:, None], inputs["chunks"])[:, 0]
        return self.output_layer(self.core(embedding))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(8, 1, 2, 4)).astype("float32")
    return {"id": np.arange(8) % 5, "chunks": chunks}, rng.normal(size=(8, 1)).astype("float32")


@pytest.fixture
def model(data):
    made = Model()
    made(data[0])
    return made


def steps_of(model, data, optimizer):
    """For each part, step over gradient: the rate that it was trained at."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(data[0]) - data[1]) ** 2)
    before = {id(weight): weight.numpy() for weight in model.trainable_weights}
    weights = list(model.trainable_weights)
    gradients = {
        id(weight): tf.convert_to_tensor(gradient).numpy()
        for weight, gradient in zip(weights, tape.gradient(loss, [_variable(w) for w in weights]), strict=True)
    }
    model.compile(optimizer=optimizer, loss="mse")
    model.train_on_batch(*data)
    rates = {}
    for part in ("extractor", "table", "core", "output_layer"):
        steps = [before[id(w)] - w.numpy() for w in getattr(model, part).trainable_weights]
        slopes = [gradients[id(w)] for w in getattr(model, part).trainable_weights]
        moved, slope = (np.concatenate([np.ravel(value) for value in values]) for values in (steps, slopes))
        rates[part] = float(moved @ slope / (slope @ slope))
    return rates


def _variable(weight):
    return getattr(weight, "value", weight) if not isinstance(weight, tf.Variable) else weight


def test_each_part_moves_at_its_own_rate(model, data):
    optimizer = kser_tf.learning_rates(tf.keras.optimizers.SGD(0.01), model, extractor=5.0, embedding=0.5, core=0.0)
    rates = steps_of(model, data, optimizer)
    expected = {"extractor": 0.05, "table": 0.005, "core": 0.0, "output_layer": 0.01}
    assert rates == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_parts_can_be_named(model, data):
    optimizer = kser_tf.learning_rates(tf.keras.optimizers.SGD(0.01), model, output=3.0, layers={"output": "core"})
    rates = steps_of(model, data, optimizer)
    assert rates == pytest.approx({"extractor": 0.01, "table": 0.01, "core": 0.03, "output_layer": 0.01}, rel=1e-3)


def test_multipliers_follow_the_optimizers_rate(model, data):
    optimizer = kser_tf.learning_rates(tf.keras.optimizers.SGD(0.01), model, extractor=5.0)
    model.compile(optimizer=optimizer, loss="mse")
    optimizer.learning_rate = 0.002
    assert float(optimizer.learning_rate) == pytest.approx(0.002)
    assert steps_of(model, data, optimizer)["extractor"] == pytest.approx(0.01, rel=1e-3)


def test_multipliers_of_one_change_no_bit(data):
    weights = []
    for with_rates in (False, True):
        tf.keras.utils.set_random_seed(3)
        model = Model()
        model(data[0])
        optimizer = tf.keras.optimizers.Adam(0.01)
        if with_rates:
            optimizer = kser_tf.learning_rates(optimizer, model, extractor=1.0, embedding=1.0)
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(*data, epochs=3, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_schedules_are_multiplied_too(model, data):
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.01, 0.001])
    rates = steps_of(model, data, kser_tf.learning_rates(tf.keras.optimizers.SGD(schedule), model, extractor=5.0))
    assert rates["extractor"] == pytest.approx(5 * rates["core"], rel=1e-3)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"core": -1.0}, "`core` must be at least 0. Received: -1.0"),
        ({"layers": {"head": "core"}}, "names those of embedding and output. Received: head"),
        ({"output": 2.0, "layers": {"output": "*head"}}, "no layer fits the pattern"),
    ],
)
def test_wrong_multipliers(model, multipliers, message):
    with pytest.raises(ValueError, match=message):
        kser_tf.learning_rates(tf.keras.optimizers.Adam(), model, **multipliers)


def test_legacy_optimizers_are_refused(model):
    with pytest.raises(ValueError, match="has no learning rate for each weight"):
        kser_tf.learning_rates(object(), model, extractor=2.0)


class Attached(tf.keras.Model):
    def __init__(self, store):
        super().__init__()
        self.table = tf.keras.layers.Embedding(5, 4)
        self.knowledge = KnowledgeEmbedding(store, extractor={"num_heads": 1, "output_initializer": "glorot_uniform"})
        self.core = tf.keras.layers.Dense(3, activation="relu")
        self.output_layer = tf.keras.layers.Dense(1)

    @property
    def extractor(self):
        return self.knowledge.extractor

    def call(self, inputs):
        return self.output_layer(self.core(self.knowledge(self.table(inputs["id"]), inputs["id"])))


def test_what_holds_an_extractor_for_an_embedding_is_none_of_the_backbones_embeddings(data, tmp_path):
    chunks = np.random.default_rng(1).normal(size=(5, 1, 2, 4)).astype("float32")
    store = kser_tf.KnowledgeStore.write(
        tmp_path / "store", np.arange(5), chunks, np.ones((5, 1, 2), bool), fields=["text"], encoder="none"
    )
    model = Attached(store)
    model(data[0])
    assert list(model_parts(model).embedding) == ["table"]
    optimizer = kser_tf.learning_rates(tf.keras.optimizers.SGD(0.01), model, extractor=5.0, embedding=0.5, core=0.0)
    expected = {"extractor": 0.05, "table": 0.005, "core": 0.0, "output_layer": 0.01}
    assert steps_of(model, data, optimizer) == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.tfrs
@pytest.mark.parametrize("fused", [False, True])
def test_a_ranking_models_extractor_has_its_own_rate_though_it_lies_in_the_embedding(tmp_path, fused):
    """Adam's first step is the rate itself, whatever the gradient."""
    import small_world as world

    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.pipelines.fused_adam import FusedAdam
    from kser_tf.schema import DatasetSchema

    prepared, stores = world.make_prepared(tmp_path), {"item": kser_tf.KnowledgeStore.open(world.make_store(tmp_path))}
    config = RankingModelConfig(embedding_width=4, hidden_units=(8,), user_knowledge="texts")
    model = RankingModel(DatasetSchema.load(prepared), config, stores)
    model.make_weights()
    model.adapt(stores)
    rates = {"extractor": 5.0, "embedding": 0.5, "output": 2.0}
    optimizer = FusedAdam(1e-3) if fused else tf.keras.optimizers.Adam(1e-3)
    model.compile(kser_tf.learning_rates(optimizer, model, **rates))
    weights = {
        "extractor": model.extractors["item"].alignment._output_kernel,
        "user knowledge": model.user_knowledge._likeness["past"]._output_kernel,
        "embedding": model.embedding._tables["place"].embeddings,
        "output": model.output_layer.kernel,
        "core": model.core.trainable_weights[-1],
    }
    before = {name: weight.numpy() for name, weight in weights.items()}
    model.fit(IndexedExamples(prepared, "train", stores).shuffled_batches(64, seed=1, epochs=1).take(1), verbose=0)
    moved = {name: float(np.abs(weight.numpy() - before[name]).max()) for name, weight in weights.items()}
    expected = {"extractor": 5e-3, "user knowledge": 5e-3, "embedding": 5e-4, "output": 2e-3, "core": 1e-3}
    assert moved == pytest.approx(expected, rel=1e-2)
