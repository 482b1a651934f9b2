"""Strategies set `trainable` and nothing else; what is frozen stays bit-identical."""

import numpy as np
import pytest
import tensorflow as tf

from kser_tf import all_parameters, extractor_only, trainable_report
from kser_tf.layers import KnowledgeExtractor

ROWS, IDS, FIELDS, CHUNKS, WIDTH = 64, 10, 2, 3, 8


class Model(tf.keras.Model):
    """A backbone with an embedding, a core with BatchNormalization, an output layer, and knowledge added by hand."""

    def __init__(self):
        super().__init__()
        self.table = tf.keras.layers.Embedding(IDS, 4, name="table")
        self.extractor = KnowledgeExtractor(num_heads=2, name="extractor")
        self.core = tf.keras.Sequential(
            [tf.keras.layers.Dense(6, activation="relu"), tf.keras.layers.BatchNormalization()], name="core"
        )
        self.output_layer = tf.keras.layers.Dense(1, name="output")

    def call(self, inputs, training=None):
        embedding = self.table(inputs["id"])
        embedding += self.extractor(embedding[:, None], inputs["chunks"], mask=inputs["mask"])[:, 0]
        return self.output_layer(self.core(embedding, training=training))


@pytest.fixture
def data(rng):
    inputs = {
        "id": rng.integers(0, IDS, ROWS),
        "chunks": rng.normal(size=(ROWS, FIELDS, CHUNKS, WIDTH)).astype("float32"),
        "mask": rng.random((ROWS, FIELDS, CHUNKS)) < 0.8,
    }
    return inputs, rng.integers(0, 2, (ROWS, 1)).astype("float32")


@pytest.fixture
def model(data):
    made = Model()
    made(data[0])
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def fit(model, data, epochs=3):
    model.compile(optimizer=tf.keras.optimizers.Adam(0.05), loss="mse")
    model.fit(*data, epochs=epochs, batch_size=16, verbose=0)


def changed(before, layer):
    return [not np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True)]


def test_extractor_only_freezes_the_core_alone(model, data):
    report = extractor_only(model, embedding=model.table)
    before = {name: getattr(model, name).get_weights() for name in ("table", "core", "output_layer")}
    statistics = [weight.copy() for weight in model.core.layers[1].get_weights()]
    fit(model, data)
    assert not any(changed(before["core"], model.core)), "frozen weights, moving averages too, must not move by a bit"
    assert all(changed(before["table"], model.table))
    assert all(changed(before["output_layer"], model.output_layer))
    for ours, after in zip(statistics, model.core.layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, after)
    assert report.trained_parameters == sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_extractor_alone_leaves_the_whole_backbone_as_it_was(model, data):
    extractor_only(model, also=())
    before = {name: getattr(model, name).get_weights() for name in ("table", "core", "output_layer")}
    extractor = [weight.copy() for weight in model.extractor.get_weights()]
    fit(model, data)
    for name, weights in before.items():
        assert not any(changed(weights, getattr(model, name))), name
    assert any(changed(extractor, model.extractor))


def test_all_parameters_trains_everything_again(model, data):
    everything = {id(weight) for weight in model.trainable_weights}
    extractor_only(model, also=())
    report = all_parameters(model)
    assert {id(weight) for weight in model.trainable_weights} == everything
    # By hand: table 40; ESFNet 8*16 + 3*16 + 4*16 + 16 + 16 + 2; attention 4*16 + 16*4 + 4; dense 30; BN 12; output 7.
    extractor = (8 * 16 + 3 * 16 + 4 * 16 + 16 + 16 + 2) + (4 * 16 + 16 * 4 + 2 * 2)
    assert report.trained_parameters == 40 + extractor + 30 + 12 + 7
    # Not trained: BatchNormalization's moving mean and variance; ESFNet's catalogue mean, center and scale.
    assert report.total_parameters - report.trained_parameters == 6 + 6 + WIDTH + 3 + 3


def test_optimizer_has_slots_for_trained_weights_only(model, data):
    extractor_only(model, also=())
    fit(model, data, epochs=1)
    variables = model.optimizer.variables
    variables = variables() if callable(variables) else variables
    slots = [v for v in variables if len(v.shape) > 0]
    trained = [w for w in model.trainable_weights if len(w.shape) > 0]
    assert len(slots) == 2 * len(trained), "Adam keeps two slots a weight"


def test_after_a_change_fit_refuses_until_the_model_is_compiled(model, data):
    all_parameters(model)
    model.compile(optimizer="adam", loss="mse")
    model.fit(*data, verbose=0)
    with pytest.warns(UserWarning, match="call `compile\\(\\)` again"):
        report = extractor_only(model, also=())
    assert report.compile_again
    assert "call `compile()` again" in str(report)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        model.fit(*data, verbose=0)
    before = model.core.get_weights()
    fit(model, data, epochs=1)
    assert not any(changed(before, model.core))


def test_a_strategy_that_changes_nothing_leaves_the_model_compiled(model, data):
    model.compile(optimizer="adam", loss="mse")
    assert not all_parameters(model).compile_again
    model.fit(*data, verbose=0)


class WithDropout(Model):
    def __init__(self):
        super().__init__()
        self.core = tf.keras.Sequential(
            [tf.keras.layers.Dense(6), tf.keras.layers.Dropout(0.5), tf.keras.layers.GaussianNoise(1.0)], name="core"
        )


def test_frozen_dropout_lets_everything_through_and_thawed_dropout_drops(data):
    model = WithDropout()
    model(data[0])

    def is_random():
        return not np.array_equal(model(data[0], training=True), model(data[0], training=False))

    assert is_random()
    for _ in range(2):
        extractor_only(model)
        assert not is_random()
        all_parameters(model)
        assert is_random()


def test_parts_are_found_and_shown(model):
    parts = extractor_only(model).parts
    assert {name: list(getattr(parts, name)) for name in ("extractor", "embedding", "output", "core")} == {
        "extractor": ["extractor"],
        "embedding": ["table"],
        "output": ["output_layer"],
        "core": [f"core.{layer.name}" for layer in model.core.layers],
    }
    assert "embedding  table" in str(extractor_only(model))


def test_parts_can_be_named_by_patterns_and_paths(model):
    dense = f"core.{model.core.layers[0].name}"
    parts = extractor_only(model, embedding=["tab*"], output=["output_layer", dense]).parts
    assert list(parts.embedding) == ["table"]
    assert list(parts.output) == ["output_layer", dense]
    assert model.core.layers[0].trainable
    assert not model.core.layers[1].trainable


def test_the_output_of_a_functional_model_is_where_it_ends():
    query, chunks = tf.keras.Input((1, 4)), tf.keras.Input((FIELDS, CHUNKS, WIDTH))
    hidden = tf.keras.layers.Flatten()(KnowledgeExtractor(name="extractor")(query, chunks))
    gate = tf.keras.layers.Dense(1, name="attention")(hidden)
    end = tf.keras.layers.Dense(1, name="end")(hidden * gate)
    report = extractor_only(tf.keras.Model([query, chunks], end), also=("output",))
    assert list(report.parts.output) == ["end"]
    assert list(report.parts.core) == ["attention"]


def test_of_several_single_units_the_one_named_as_output_is_taken():
    class Several(tf.keras.Model):
        def __init__(self, name):
            super().__init__()
            self.extractor = KnowledgeExtractor()
            self.attention = tf.keras.layers.Dense(1)
            self.final = tf.keras.layers.Dense(1, name=name)

        def call(self, inputs):
            hidden = self.extractor(inputs["query"], inputs["chunks"])[:, 0]
            return self.final(hidden * self.attention(hidden))

    inputs = {"query": tf.ones((2, 1, 4)), "chunks": tf.ones((2, FIELDS, CHUNKS, WIDTH))}
    named, unnamed = Several("logit"), Several("final")
    named(inputs), unnamed(inputs)
    assert list(extractor_only(named, also=("output",)).parts.output) == ["final"]
    with pytest.raises(ValueError, match="several may be it: 'attention', 'final'"):
        extractor_only(unnamed, also=("output",))
    assert not extractor_only(unnamed, also=()).parts.output


def test_report_names_every_weight_once(model, capsys):
    extractor_only(model, also=("output",))
    report = trainable_report(model)
    assert capsys.readouterr().out == f"{report}\n"
    assert len(report.trained) + len(report.frozen) == len(model.weights)
    assert f"{report.trained_parameters:,} of {report.total_parameters:,}" in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"also": ("head",)}, r"`also` may name embedding and output. Received: also=\('head',\)"),
        ({"also": "output"}, "Received: also='output'"),
        ({"embedding": "tabel"}, "has no layer 'tabel'. Near it: 'table'"),
        ({"embedding": "*_model"}, r"no layer fits the pattern '\*_model'"),
        ({"output": tf.keras.layers.Dense(1)}, "is no layer of the model's backbone"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises((ValueError, LookupError), match=message):
        extractor_only(model, **arguments)


def test_a_model_whose_output_cannot_be_told_is_refused(data):
    class TwoUnits(Model):
        def __init__(self):
            super().__init__()
            self.end = tf.keras.layers.Dense(2)
            self.output_layer = lambda hidden: self.end(hidden)

    two = TwoUnits()
    two(data[0])
    with pytest.raises(ValueError, match=r"cannot be told; none has one unit. Its layers: .*'table'"):
        extractor_only(two)


def test_a_model_without_extractor_is_refused():
    plain = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="there is no extractor to train"):
        extractor_only(plain)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="call it on a batch once"):
        extractor_only(Model())


def test_own_weights_around_an_extractor_are_refused(data):
    class Around(tf.keras.layers.Layer):
        def __init__(self):
            super().__init__(name="around")
            self.extractor = KnowledgeExtractor()
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def call(self, inputs):
            return self.scale * self.extractor(inputs["query"], inputs["chunks"])

    class Outer(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.around = Around()

        def call(self, inputs):
            return self.around(inputs)

    outer = Outer()
    outer({"query": tf.ones((2, 1, 4)), "chunks": tf.ones((2, FIELDS, CHUNKS, WIDTH))})
    with pytest.raises(
        ValueError, match=r"'around' holds a layer that is to be trained and weights of its own .*scale"
    ):
        extractor_only(outer, also=())
