"""Knowledge at the output of models that are black boxes: those of the zoo, and small ones that show one thing each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import KERAS

import kser_tf
from kser_tf.attachment.at_output import attach_at_output
from kser_tf.attachment.output_corrected import _added
from kser_tf.errors import AttachError
from kser_tf.layers import OutputCorrection

pytestmark = pytest.mark.usefixtures("seed")

BATCHES = (1, 7, 1024)
# How each model of the zoo is attached to: features and stores, and what else must be said.
WAYS: dict[str, tuple[Callable[[zoo.Stores], dict[Any, Any]], dict[str, Any]]] = {
    "tutorial_ranking": (lambda s: {"movie_title": s.movies, "user_name": s.users}, {"output_kind": "score"}),
    "tutorial_dcn": (lambda s: {"movie_id": s.movie_numbers, "user_name": s.users}, {"output_kind": "score"}),
    "tutorial_multitask": (lambda s: {"movie_title": s.movies}, {"output": 2, "output_kind": "score"}),
    "listwise": (lambda s: {"list_title": s.movies, "user_name": s.users}, {}),
    "query_tower": (lambda s: {"movie_title": s.movies}, {"context": ["age"], "backbone_logit": True}),
    "dlrm": (
        lambda s: {"sparse_features.movie_id": s.movie_numbers, "sparse_features.user_id": s.user_numbers},
        {"output_kind": "probability", "xla": True},
    ),
    "functional": (lambda s: {"movie_title": s.movies, "user_name": s.users}, {}),
    "functional_numbers": (lambda s: {"movie_id": s.movie_numbers}, {"xla": True}),
    "subclassed": (lambda s: {"movie_title": s.movies}, {"backbone_logit": True}),
    "keras_rs": (lambda s: {"movie_id": s.movie_numbers, "user_id": s.user_numbers}, {"xla": True}),
}
CASES = [case for case in zoo.cases() if case.name in WAYS]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> zoo.Stores:
    return zoo.make_stores(tmp_path_factory.mktemp("stores"))


def attached(case: zoo.Case, stores: zoo.Stores, model: Any = None, **options: Any) -> Any:
    features, way = WAYS[case.name]
    model = case.built() if model is None else model
    tf.keras.utils.set_random_seed(12)
    return attach_at_output(model, features(stores), **way, **options)


def backbone_weights(model: Any) -> list[Any]:
    correction = {id(weight) for weight in getattr(model, "output_correction", tf.keras.layers.Layer()).weights}
    return [weight for weight in model.weights if id(weight) not in correction]


def values(weights: list[Any]) -> list[np.ndarray]:
    return [np.array(weight) for weight in weights]


def assert_identical(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def names(model: Any) -> list[str]:
    return [getattr(weight, "path", weight.name) for weight in model.weights]


def train_extractor(case: zoo.Case, model: Any, epochs: int = 1) -> None:
    kser_tf.extractor_only(model, also=())
    # Many short trainings: tracing would take longer. Traced ones are in `test_all_ways_to_run` and those behind it.
    case.compile(model, tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    case.fit(model, epochs=epochs)


def test_every_model_of_the_zoo_is_tried() -> None:
    # A Sequential of several ids a row has no id for its score; one of one id is in test_attach_both.
    assert {case.name for case in zoo.CASES} - set(WAYS) == {"sequential"}


@each_case
@pytest.mark.parametrize("xla", [False, True], ids=["", "xla"])
def test_freshly_attached_predicts_what_the_backbone_did(case: zoo.Case, stores: zoo.Stores, xla: bool) -> None:
    if xla and not case.xla:
        pytest.skip("XLA cannot compile the backbone")
    model = case.built()

    def compiled() -> Any:
        return tf.function(lambda inputs: model(inputs), jit_compile=True) if xla else case.traced(model)

    batches = [zoo.raw_features(rows) for rows in BATCHES]
    call = compiled()
    before = [case.scores(model, batch, call) for batch in batches]
    assert attached(case, stores, model) is model
    call = compiled()
    assert_identical([case.scores(model, batch, call) for batch in batches], before)
    if not xla:
        eager = [case.scores(model, batch) for batch in batches]
        kser_tf.detach(model)
        assert_identical(eager, [case.scores(model, batch) for batch in batches])
    assert all(np.std(scores) > 0 for scores in before[1:])


@each_case
def test_extractor_alone_leaves_the_backbone_and_what_it_predicts(case: zoo.Case, stores: zoo.Stores) -> None:
    model = case.built()
    features, unknown = zoo.raw_features(40, seed=5), zoo.raw_features(40, without_knowledge=True, seed=6)
    before, names_before, weights_before = case.scores(model, features), names(model), values(model.weights)
    unknown_before = case.scores(model, unknown)

    attached(case, stores, model)
    train_extractor(case, model)
    assert not np.array_equal(case.scores(model, features), before)
    # At every point of training, this one included: what is not known is predicted as before.
    np.testing.assert_array_equal(case.scores(model, unknown), unknown_before)
    assert_identical(values(backbone_weights(model)), weights_before)

    assert kser_tf.detach(model) is model
    assert names(model) == names_before
    assert_identical(values(model.weights), weights_before)
    np.testing.assert_array_equal(case.scores(model, features), before)


def test_a_detached_model_trains_on_as_the_model_it_was(stores: zoo.Stores) -> None:
    case = next(case for case in CASES if case.name == "functional")
    never, model = case.built(), attached(case, stores)
    kser_tf.detach(model)
    for one in (never, model):
        case.compile(one)
        case.fit(one)
    assert_identical(values(model.weights), values(never.weights))


@pytest.mark.parametrize("case", CASES[:1] + CASES[-2:], ids=lambda case: case.name)
def test_weight_files_and_going_on(case: zoo.Case, stores: zoo.Stores, tmp_path: Path) -> None:
    """Without stopping, and stopped after an epoch: the same weights and predictions."""
    straight = attached(case, stores)
    train_extractor(case, straight, epochs=1)
    straight.save_weights(tmp_path / "attached.weights.h5")
    checkpoint = tf.train.Checkpoint(model=straight, optimizer=straight.optimizer).write(str(tmp_path / "checkpoint"))
    features = zoo.raw_features(20, seed=9)
    expected = case.scores(straight, features)

    from_file = attached(case, stores)
    from_file.load_weights(tmp_path / "attached.weights.h5")
    np.testing.assert_array_equal(case.scores(from_file, features), expected)

    case.fit(straight)
    resumed = attached(case, stores)
    kser_tf.extractor_only(resumed, also=())
    case.compile(resumed, tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    resumed.optimizer.build(resumed.trainable_variables)
    status = tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).read(checkpoint)
    status.assert_existing_objects_matched()
    if case.name != "subclassed" or KERAS == 2:  # Keras 3 leaves the layers in a list out of TensorFlow's checkpoints
        np.testing.assert_array_equal(case.scores(resumed, features), expected)
    case.fit(resumed)
    assert_identical(values(resumed.output_correction.weights), values(straight.output_correction.weights))


def test_keras_file_and_going_on(stores: zoo.Stores, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "functional")
    straight = attached(case, stores)
    train_extractor(case, straight, epochs=1)
    features = zoo.raw_features(20, seed=9)
    expected = case.scores(straight, features)
    straight.save(tmp_path / "attached.keras")
    np.testing.assert_array_equal(case.scores(straight, features), expected)  # saving left it as it was
    case.fit(straight)

    loaded = tf.keras.models.load_model(tmp_path / "attached.keras")
    with pytest.raises(ValueError, match="has no store"):
        case.scores(loaded, features)
    kser_tf.connect(loaded, {"movie_title": stores.movies, "user_name": stores.users})
    np.testing.assert_array_equal(case.scores(loaded, features), expected)
    assert len(loaded.trainable_weights) == len(straight.trainable_weights)  # still the extractor alone
    case.fit(loaded)  # compiled, with the optimizer's state
    assert_identical(values(loaded.output_correction.weights), values(straight.output_correction.weights))
    assert type(kser_tf.detach(loaded)) is type(case.built())


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}], ids=str)
def test_all_ways_to_run(how: dict[str, Any], stores: zoo.Stores) -> None:
    case = next(case for case in CASES if case.name == "functional")
    model = attached(case, stores)
    kser_tf.extractor_only(model, also=())
    model.compile("adam", loss="mse", metrics=["mae"], **how)
    case.fit(model)
    features, labels = case.example(zoo.tensors(zoo.raw_features(16)))
    loss = model.evaluate(features, labels, verbose=0, return_dict=True)["loss"]
    expected = np.mean((model.predict(features, verbose=0)[:, 0] - labels) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    first = model.train_on_batch(features, labels, return_dict=True)["loss"]
    assert np.isfinite(first)


def test_compiled_with_xla(stores: zoo.Stores) -> None:
    case = next(case for case in CASES if case.name == "functional_numbers")
    models = [attached(case, stores) for _ in range(2)]
    for model, jit_compile in zip(models, (True, False), strict=True):
        kser_tf.extractor_only(model, also=())
        model.compile(tf.keras.optimizers.SGD(0.1), loss="mse", jit_compile=jit_compile)
        case.fit(model, epochs=2)
    for one, other in zip(*(values(model.output_correction.weights) for model in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_rows_found_by_search_are_those_of_the_table(stores: zoo.Stores) -> None:
    ids = tf.constant([8, 39, 7, 40, -1, 2**40, 9, 9], tf.int64)  # the store begins at 8 and ends at 39
    plain, xla = (OutputCorrection({"movie": stores.movie_numbers}, xla=xla) for xla in (False, True))
    for layer in (plain, xla):
        layer.build()
    xla.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in plain.weights])
    plain.set_weights(xla.get_weights())
    answers = np.asarray(xla({"movie": ids}))
    np.testing.assert_allclose(plain({"movie": ids}), answers, rtol=1e-5, atol=1e-6)
    assert answers.any()
    np.testing.assert_array_equal(answers[2:6], 0)


class Backbone(tf.keras.Model):
    """Features -> logit, with what behaves otherwise in training."""

    def __init__(self, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = tf.keras.layers.Embedding(len(zoo.MOVIES), 4)
        self.batch_norm = tf.keras.layers.BatchNormalization()
        self.dropout = tf.keras.layers.Dropout(0.5)
        self.score = tf.keras.layers.Dense(1, activation=activation)

    def call(self, features: Any, training: bool | None = None) -> Any:
        hidden = self.batch_norm(self.embedding(features["movie_id"]), training=training)
        return self.score(self.dropout(hidden, training=training))


class BackboneWithoutTraining(Backbone):
    """Its layers learn from Keras alone whether it is trained."""

    def call(self, features: Any) -> Any:
        return self.score(self.dropout(self.batch_norm(self.embedding(features["movie_id"]))))


def log(rows: int = 64) -> tuple[dict[str, Any], np.ndarray]:
    raw = zoo.raw_features(rows)
    return {"movie_id": tf.constant(raw["movie_id"])}, (raw["rating"] > 3).astype("float32")


@pytest.mark.parametrize("backbone", [Backbone, BackboneWithoutTraining])
def test_a_frozen_backbone_runs_as_in_inference(backbone: Any, stores: zoo.Stores) -> None:
    """The extractor's gradient is that of the loss on the backbone's inference, which Dropout would change."""
    features, labels = log()
    model = backbone()
    model(features)
    loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
    expected = float(loss(labels[:, None], model(features, training=False)))
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    kser_tf.extractor_only(model, also=())
    model.compile(tf.keras.optimizers.SGD(0.0), loss=loss)
    assert model.train_on_batch(features, labels[:, None]) == pytest.approx(expected, rel=1e-5)
    before = values(backbone_weights(model))
    model.fit(features, labels[:, None], verbose=0)
    assert_identical(values(backbone_weights(model)), before)


def test_a_trained_backbone_runs_as_in_training(stores: zoo.Stores) -> None:
    features, labels = log()
    model = Backbone()
    model(features)
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    model.compile("sgd", tf.keras.losses.BinaryCrossentropy(from_logits=True))
    before = values(model.batch_norm.weights)
    model.fit(features, labels[:, None], verbose=0)
    assert not np.array_equal(values(model.batch_norm.weights)[2], before[2])  # the moving mean


def test_a_probability_is_corrected_in_the_space_of_its_logit() -> None:
    probability = tf.constant([0.0, 1e-30, 0.2, 0.5, 0.99, 1.0], tf.float32)
    same = _added(probability, tf.zeros(6), "probability")
    np.testing.assert_array_equal(same, probability)
    for correction in (-3.0, -1e-4, 0.7, 20.0, 100.0):
        wide = np.asarray(probability, np.float64)
        with np.errstate(divide="ignore"):
            logit = np.log(wide) - np.log1p(-wide)
        expected = 1 / (1 + np.exp(-(logit + correction)))
        corrected = _added(probability, tf.fill([6], correction), "probability")
        # Past 40 a correction counts as 40.
        np.testing.assert_allclose(corrected[2:], expected[2:], rtol=2e-6)
        np.testing.assert_array_equal(corrected[:1], 0)
    with tf.GradientTape() as tape:
        start = tf.Variable([0.0])
        moved = _added(tf.constant([0.2]), start, "probability")
    np.testing.assert_allclose(tape.gradient(moved, start), [0.2 * 0.8], rtol=1e-6)


def test_a_sigmoid_at_the_end_is_found_or_asked_about(stores: zoo.Stores) -> None:
    features, _ = log()
    backbone = Backbone("sigmoid")
    backbone(features)
    with pytest.raises(AttachError, match="output_kind='probability' or output_kind='logit'"):
        attach_at_output(backbone, {"movie_id": stores.movie_numbers})
    inputs = tf.keras.Input((), dtype="int64", name="movie_id")
    hidden = tf.keras.layers.Embedding(len(zoo.MOVIES), 4)(inputs)
    model = tf.keras.Model({"movie_id": inputs}, tf.keras.layers.Dense(1, activation="sigmoid")(hidden))
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    model.output_correction.projection.set_weights([np.full((32, 1), 50.0)])
    answers = np.asarray(model(features))
    assert answers.min() >= 0
    assert answers.max() <= 1
    assert np.ptp(answers) > 0.3


def test_several_outputs_of_which_one_is_corrected(stores: zoo.Stores) -> None:
    class TwoHeads(Backbone):
        def call(self, features: Any, training: bool | None = None) -> Any:
            score = super().call(features, training=training)
            return {"ctr": score, "dwell": 2 * score}

    features, _ = log()
    model = TwoHeads()
    before = {name: np.asarray(answer) for name, answer in model(features).items()}
    attach_at_output(model, {"movie_id": stores.movie_numbers}, output="ctr")
    model.output_correction.projection.set_weights([np.ones((32, 1))])
    after = model(features)
    np.testing.assert_array_equal(after["dwell"], before["dwell"])
    assert np.abs(after["ctr"] - before["ctr"]).max() > 0.01
    kser_tf.detach(model)
    for wrong, message in ((None, "several outputs, .'ctr', 'dwell'.: say with `output`"), ("cvr", "no output 'cvr'")):
        attach_at_output(model, {"movie_id": stores.movie_numbers}, output=wrong)
        with pytest.raises(ValueError, match=message):
            model(features)
        kser_tf.detach(model)


@pytest.mark.parametrize("style", ["tuple", "arguments"])
def test_positional_inputs(style: str, stores: zoo.Stores) -> None:
    class Tuple(Backbone):
        def call(self, inputs: Any) -> Any:
            return self.score(self.embedding(inputs[1]))

    class Arguments(Backbone):
        def call(self, price: Any, movie_id: Any = None) -> Any:
            return self.score(self.embedding(movie_id))

    ids, price = log()[0]["movie_id"], tf.ones((64, 1))
    model = Tuple() if style == "tuple" else Arguments()

    def call() -> Any:
        return np.asarray(model((price, ids)) if style == "tuple" else model(price, movie_id=ids))

    before = call()
    attach_at_output(model, {1 if style == "tuple" else "movie_id": stores.movie_numbers})
    np.testing.assert_array_equal(call(), before)
    model.output_correction.projection.set_weights([np.ones((32, 1))])
    unknown = np.asarray(ids) < len(zoo.MOVIES_WITHOUT_KNOWLEDGE)
    np.testing.assert_array_equal(call()[unknown], before[unknown])
    assert np.all(call()[~unknown] != before[~unknown])


def test_context_and_the_backbones_logit_change_what_knowledge_says(stores: zoo.Stores) -> None:
    features, _ = log()
    model = Backbone()
    model(features)
    attach_at_output(model, {"movie_id": stores.movie_numbers}, context=["age"], backbone_logit=True)
    randomised = np.random.default_rng(3)
    model.output_correction.set_weights(
        [randomised.normal(size=weight.shape) + 1.5 for weight in model.output_correction.weights]
    )

    def corrections(ages: Any) -> np.ndarray:
        return np.asarray(model({**features, "age": tf.constant(ages, tf.float32)}))[:, 0]

    young, old, missing = (corrections(np.full(64, age)) for age in (20.0, 60.0, np.nan))
    unknown = np.asarray(features["movie_id"]) < len(zoo.MOVIES_WITHOUT_KNOWLEDGE)
    assert np.all(young[~unknown] != old[~unknown])
    np.testing.assert_array_equal(young[unknown], old[unknown])
    assert np.isfinite(missing).all()
    np.testing.assert_array_equal(missing, corrections(np.zeros(64)))
    with tf.GradientTape() as tape:
        variables = [w if KERAS == 2 else w.value for w in model.score.trainable_weights]
        total = tf.reduce_sum(model({**features, "age": tf.zeros(64)}))
    # d(sum of logits)/d(bias): 1 a row. Through the context it would be more.
    np.testing.assert_allclose(tape.gradient(total, variables)[1], [64.0], rtol=1e-5)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_loss_past_the_models_call_is_refused_before_anything_is_trained(
    run_eagerly: bool, stores: zoo.Stores
) -> None:
    class PastItsCall(Backbone):
        def train_step(self, data: Any) -> Any:
            features, labels = data
            with tf.GradientTape() as tape:
                answer = self.score(self.embedding(features["movie_id"]))
                loss = self.compute_loss(features, labels, answer)
            weights = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

    features, labels = log()
    model = PastItsCall()
    model(features)
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    before = values(model.weights)
    with pytest.raises(ValueError, match=r"does not call the model itself.*into="):
        model.fit(features, labels[:, None], verbose=0)
    assert_identical(values(model.weights), before)


@pytest.mark.tfrs
def test_a_tfrs_loss_past_the_models_call_is_refused(stores: zoo.Stores) -> None:
    import tensorflow_recommenders as tfrs

    class PastItsCall(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.ranker = Backbone()
            self.task = tfrs.tasks.Ranking(tf.keras.losses.MeanSquaredError())

        def call(self, features: Any) -> Any:
            return self.ranker(features)

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            return self.task(labels=inputs[1], predictions=self.ranker(inputs[0]))

    features, labels = log()
    model = PastItsCall()
    model(features)
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    model.compile("sgd")
    data = tf.data.Dataset.from_tensors((features, labels[:, None]))
    for run in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"`PastItsCall.compute_loss` does not call the model itself"):
            run(data, verbose=0)
    kser_tf.detach(model)
    # The way that works: the sub-model that the loss calls.
    attach_at_output(model.ranker, {"movie_id": stores.movie_numbers})
    model.compile("sgd")
    model.fit(data, verbose=0)
    assert np.any(model.ranker.output_correction.projection.get_weights()[0])


def test_a_compiled_model_must_be_compiled_again(stores: zoo.Stores) -> None:
    features, labels = log()
    model = Backbone()
    model.compile("adam", "mse")
    model.fit(features, labels[:, None], verbose=0)
    before = model.predict(features, verbose=0)
    attach_at_output(model, {"movie_id": stores.movie_numbers})
    np.testing.assert_array_equal(model.predict(features, verbose=0), before)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        model.fit(features, labels[:, None], verbose=0)


def ragged(features: dict[str, Any]) -> dict[str, Any]:
    return {"movie_id": tf.RaggedTensor.from_row_lengths(features["movie_id"], [32, 32])}


@pytest.mark.parametrize(
    ("feature", "change", "message"),
    [
        ("film_id", dict, r"without the feature 'film_id'. It was called with the features 'movie_id'"),
        (
            "movie_id",
            lambda f: {"movie_id": tf.strings.as_string(f["movie_id"])},
            "'movie_id': the store's ids are int64",
        ),
        ("other", lambda f: {**f, "other": tf.zeros((64, 3), tf.int64)}, r"'other' has shape \(64, 3\).*into="),
        ("other", lambda f: {**f, "other": ragged(f)["movie_id"]}, "is a RaggedTensor.*into="),
    ],
)
def test_wrong_features_are_told_when_the_model_is_called(
    feature: str, change: Any, message: str, stores: zoo.Stores
) -> None:
    class Casting(Backbone):
        def call(self, features: Any) -> Any:
            ids = features["movie_id"]
            return super().call({"movie_id": tf.strings.to_number(ids, tf.int64) if ids.dtype == tf.string else ids})

    features, _ = log()
    model = Casting()
    model(features)
    attach_at_output(model, {feature: stores.movie_numbers})
    with pytest.raises(ValueError, match=message):
        model(change(features))


def test_what_cannot_be_attached_is_refused(stores: zoo.Stores) -> None:
    store = {"movie_id": stores.movie_numbers}
    features, _ = log()
    model = Backbone()
    model(features)
    with pytest.raises(AttachError, match="must name features and their stores"):
        attach_at_output(model, {})
    with pytest.raises(AttachError, match=r"`output_kind` must be one of logit, probability, score. Received: 'odds'"):
        attach_at_output(model, store, output_kind="odds")
    with pytest.raises(AttachError, match=r"must be a tf.keras.Model"):
        attach_at_output(object(), store)
    with pytest.raises(AttachError, match="nothing is attached to the model"):
        kser_tf.detach(model)
    attach_at_output(model, store)
    with pytest.raises(AttachError, match="corrected already, from 'movie_id'"):
        attach_at_output(model, store)
    with pytest.raises(AttachError, match=r"nothing is attached at 'user_id'; attached is: 'movie_id'"):
        kser_tf.connect(model, {"user_id": stores.user_numbers})
    functional = zoo.functional()
    with pytest.raises(AttachError, match=r"has no input 'movie_id'. It has: 'movie_title', 'user_name'"):
        attach_at_output(functional, store)


def test_sorted_names_keep_the_extractors_apart(stores: zoo.Stores, tmp_path: Path) -> None:
    """The order in which the caller names the features must not decide which weights are whose."""
    case = next(case for case in CASES if case.name == "functional")
    one = attach_at_output(case.built(), {"movie_title": stores.movies, "user_name": stores.users})
    train_extractor(case, one)
    one.save_weights(tmp_path / "one.weights.h5")
    other = attach_at_output(case.built(), {"user_name": stores.users, "movie_title": stores.movies})
    other.load_weights(tmp_path / "one.weights.h5")
    features = zoo.raw_features(20)
    np.testing.assert_array_equal(case.scores(other, features), case.scores(one, features))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs in order, counted one by one."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    return float(np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)))


def test_it_learns_from_knowledge_and_not_from_shuffled_knowledge(tmp_path: Path) -> None:
    """Labels depend on what an item's text says and whom it suits; the backbone has ids alone. Judged on items that no
    training row has."""
    rng = np.random.default_rng(4)
    items, users, width, rows = 600, 200, 16, 12_000
    quality, taste = rng.normal(size=items), rng.normal(size=(items, 2))
    likes = rng.normal(size=(users, 2))
    reads = rng.normal(size=(5, width))
    text = np.concatenate([quality[:, None], taste], 1) @ reads[:3] + 0.3 * rng.normal(size=(items, width))
    words = likes @ reads[3:] + 0.3 * rng.normal(size=(users, width))
    stores = {
        name: kser_tf.KnowledgeStore.write(
            tmp_path / name,
            np.arange(len(vectors)),
            np.stack([vectors, rng.normal(size=vectors.shape)], 1)[:, None],
            np.ones((len(vectors), 1, 2), bool),
            fields=["story"],
            encoder="test",
            dtype="float32",
        )
        for name, vectors in (("item", text), ("user", words))
    }
    item, user = rng.integers(0, items, rows), rng.integers(0, users, rows)
    logit = quality[item] + np.sum(taste[item] * likes[user], 1)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype("float32")
    cold = item >= 500
    features = {"item": item, "user": user}
    train, test = ({name: tf.constant(v[at]) for name, v in features.items()} for at in (~cold, cold))

    class Ids(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.users = tf.keras.layers.Embedding(items, 8), tf.keras.layers.Embedding(users, 8)
            self.ratings = tf.keras.Sequential([tf.keras.layers.Dense(16, activation="relu"), tf.keras.layers.Dense(1)])

        def call(self, features: Any) -> Any:
            return self.ratings(tf.concat([self.items(features["item"]), self.users(features["user"])], -1))

    def fit(model: Any, rate: float, epochs: int) -> float:
        model.compile(tf.keras.optimizers.Adam(rate), tf.keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(train, labels[~cold][:, None], batch_size=256, epochs=epochs, verbose=0)
        return auc(labels[cold], model.predict(test, batch_size=4096, verbose=0)[:, 0])

    model = Ids()
    base = fit(model, 0.003, 3)
    found = {}
    for kind in ("knowledge", "placebo"):
        given = stores if kind == "knowledge" else {name: store.shuffled(1) for name, store in stores.items()}
        attach_at_output(model, given)
        kser_tf.extractor_only(model, also=())
        found[kind] = fit(model, 0.003, 6)
        kser_tf.detach(model)
    print(f"AUC on cold items: base {base:.3f}, knowledge {found['knowledge']:.3f}, placebo {found['placebo']:.3f}")
    assert auc(labels[cold], logit[cold]) > 0.75
    assert base < 0.58
    assert found["knowledge"] > base + 0.1
    assert abs(found["placebo"] - base) < 0.03
