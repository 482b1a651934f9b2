"""What the user did before, as a correction of the output: on subclassed, functional and TFRS models and on a SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import served_world as served
import tensorflow as tf

import kser_tf
from kser_tf.attachment.at_output import attach_at_output
from kser_tf.errors import AttachError
from kser_tf.layers import KnowledgeProfile, Past, adapt_to_preferences

pytestmark = pytest.mark.usefixtures("seed")

EVENTS = ["view", "cart", "buy"]
KNOWN = len(zoo.MOVIES_WITHOUT_KNOWLEDGE)  # ids from here on are in the store
LOSS = tf.keras.losses.BinaryCrossentropy(from_logits=True)
FEEDBACK = {"stars": None, "event": EVENTS}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> zoo.Stores:
    return zoo.make_stores(tmp_path_factory.mktemp("stores"))


def rows(count: int = 64, *, unknown: bool = False, seed: int = 3) -> dict[str, np.ndarray]:
    """Candidates and histories of films that are known, that are not, and of none."""
    rng = np.random.default_rng(seed)
    movies = rng.integers(0 if unknown else 4, KNOWN if unknown else 40, count)
    history = rng.integers(4, 40, (count, 6))
    history[np.arange(6) >= rng.integers(0, 7, (count, 1))] = -1
    return {
        "movie_id": movies,
        "history": history,
        "stars": rng.choice(np.array([0.5, 3.0, 5.0, np.nan], np.float32), (count, 6)),
        "event": rng.choice(np.array([*EVENTS, "other", ""], object), (count, 6)),
    }


def labels(features: dict[str, np.ndarray]) -> np.ndarray:
    return (features["movie_id"] % 2).astype("float32")[:, None]


class Subclassed(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.movie, self.score = tf.keras.layers.Embedding(40, 8), tf.keras.layers.Dense(1)

    def call(self, features: Any) -> Any:
        return self.score(self.movie(known(features["movie_id"])))


def known(ids: Any) -> Any:
    """0 for what the embedding has no row of."""
    return tf.where((ids >= 0) & (ids < 40), ids, tf.zeros_like(ids))


def functional() -> Any:
    kinds = {
        "movie_id": ((), "int64"),
        "history": ((6,), "int64"),
        "stars": ((6,), "float32"),
        "event": ((6,), "string"),
    }
    inputs = {name: tf.keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in kinds.items()}
    movie = tf.keras.layers.Embedding(40, 8, name="movie")(inputs["movie_id"])
    return tf.keras.Model(inputs, tf.keras.layers.Dense(1)(movie))


def tfrs_model() -> Any:
    import tensorflow_recommenders as tfrs

    class Ranker(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie, self.score = tf.keras.layers.Embedding(40, 8), tf.keras.layers.Dense(1)
            self.task = tfrs.tasks.Ranking(loss=LOSS)

        def call(self, features: Any) -> Any:
            return self.score(self.movie(features["movie_id"]))

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            return self.task(labels=inputs[1], predictions=self(inputs[0]))

    return Ranker()


KINDS = {"subclassed": Subclassed, "functional": functional, "tfrs": tfrs_model}
each = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.tfrs) if kind == "tfrs" else kind for kind in KINDS]
)


def built(kind: str) -> Any:
    tf.keras.utils.set_random_seed(5)
    model = KINDS[kind]()
    model(zoo.tensors(rows(2)))
    return model


def attached(model: Any, store: Any, feedback: Any = FEEDBACK, **ways: Any) -> Any:
    tf.keras.utils.set_random_seed(6)
    given = kser_tf.Attachment(store, history="history", feedback=feedback)
    return kser_tf.attach(model, at_output={"movie_id": given}, verbose=False, **ways)


def predicted(model: Any, features: dict[str, Any]) -> np.ndarray:
    return np.asarray(model(zoo.tensors(features)))[:, 0]


def fit(model: Any, epochs: int = 1) -> None:
    features = rows()
    data = tf.data.Dataset.from_tensor_slices((features, labels(features))).batch(16)
    model.fit(data, epochs=epochs, verbose=0)


def compiled(model: Any, also: Any = ()) -> Any:
    kser_tf.extractor_only(model, also=also)
    tfrs_loss = {} if hasattr(model, "task") else {"loss": LOSS}
    model.compile(tf.keras.optimizers.Adam(0.01), **tfrs_loss)
    return model


def randomise(layer: Any, seed: int = 1) -> None:
    """Everything but the profiles, which `adapt` has made."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))


def same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@each
def test_trained_alone_it_leaves_the_backbone_as_it_was(kind: str, stores: zoo.Stores) -> None:
    model = built(kind)
    weights, batches = model.get_weights(), [rows(count) for count in (1, 7, 1024)]
    before, unknown = [predicted(model, batch) for batch in batches], rows(unknown=True)
    before_unknown = predicted(model, unknown)

    attached(model, stores.movie_numbers, into={"movie": stores.movie_numbers})
    same([predicted(model, batch) for batch in batches], before)
    report = kser_tf.extractor_only(model, also=())
    assert sum("history" in name for name in report.trained) == 3  # HistoryLikeness'
    fit(compiled(model), 2)
    assert (predicted(model, batches[2]) != before[2]).mean() > 0.5
    assert model.output_correction.histories["movie_id"].likeness.get_weights()[2].any()
    np.testing.assert_array_equal(predicted(model, unknown), before_unknown)

    assert kser_tf.detach(model) is model
    same(model.get_weights(), weights)
    same([predicted(model, batch) for batch in batches], before)


def by_the_formula(model: Any, store: Any, features: dict[str, np.ndarray]) -> np.ndarray:
    """The correction in float64, row by row, from the store's own vectors."""
    history = model.output_correction.histories["movie_id"]
    center, directions = (np.asarray(w, "float64") for w in history.profiles.get_weights())
    kernel, bias, output = (np.asarray(w, "float64") for w in history.likeness.get_weights())
    values = np.eye(len(EVENTS) + 1)

    def profile(movie: int) -> np.ndarray:
        chunks, mask = store.lookup([movie])
        centred = np.where(mask[0][..., None], chunks[0].astype("float64") - center, 0).sum(1) / mask[0].sum()
        vector = np.einsum("fw,fwd->d", centred, directions)
        return vector / np.linalg.norm(vector)

    found = []
    for row, movie in enumerate(features["movie_id"]):
        if movie < KNOWN:
            found.append(0.0)
            continue
        seen, cosines = [], []
        for place, other in enumerate(features["history"][row]):
            if other < KNOWN:
                continue
            stars, event = features["stars"][row, place], features["event"][row, place]
            number = 0.0 if np.isnan(stars) else np.log1p(np.float64(stars))
            cosines.append(profile(movie) @ profile(other))
            seen.append([number, *values[EVENTS.index(event) if event in EVENTS else 3]])
        if not seen:
            found.append(0.0)
            continue
        summed = []
        for one in history.likeness.sharpness:
            attention = np.exp(one * np.array(cosines))
            attention /= attention.sum()
            summed += [*(attention @ (np.array(seen) - np.mean(seen, 0))), attention @ cosines]
        found.append(float(np.maximum(np.array(summed) @ kernel + bias, 0) @ output[:, 0]))
    return np.array(found)


@pytest.mark.parametrize("kind", ["subclassed", "functional"])
def test_as_the_formula_has_it_padded_and_ragged(kind: str, stores: zoo.Stores) -> None:
    model, features = built(kind), rows()
    before = predicted(model, features)
    attached(model, stores.movie_numbers)
    randomise(model.output_correction.histories["movie_id"])  # and the other correction stays 0
    corrections = predicted(model, features) - before
    expected = by_the_formula(model, stores.movie_numbers, features)
    np.testing.assert_allclose(corrections, expected, atol=2e-6)
    assert (expected != 0).sum() > 40
    padded = {**features, "history": np.where(features["history"] < KNOWN, 999, features["history"])}
    np.testing.assert_array_equal(predicted(model, padded), predicted(model, features))
    if kind == "subclassed":  # a functional model has the length in its inputs
        lengths = (features["history"] != -1).sum(1)
        ragged = {
            name: tf.RaggedTensor.from_tensor(value, lengths) if np.ndim(value) == 2 else tf.constant(value)
            for name, value in features.items()
        }
        np.testing.assert_allclose(np.asarray(model(ragged))[:, 0] - before, expected, atol=2e-6)
        inside = tf.function(lambda given: model(given))
        np.testing.assert_allclose(np.asarray(inside(ragged))[:, 0] - before, expected, atol=2e-6)


def test_profiles_are_of_the_store_in_training_too(stores: zoo.Stores, tmp_path: Path) -> None:
    """What is kept for training is made anew with another store, and with weights that were loaded."""
    numbers = stores.movie_numbers
    chunks, mask = numbers.lookup(numbers.ids)
    other = kser_tf.KnowledgeStore.write(
        tmp_path / "other", numbers.ids, chunks[::-1], mask, fields=["story", "craft"], encoder="test", dtype="float32"
    )
    features = rows()
    model = attached(built("subclassed"), numbers)
    randomise(model.output_correction)

    def loss_in_training() -> float:
        return float(model.train_on_batch(zoo.tensors(features), labels(features)))

    def loss_of_predictions() -> float:
        return float(LOSS(labels(features), predicted(model, features)[:, None]))

    kser_tf.extractor_only(model, also=())
    model.compile(tf.keras.optimizers.SGD(0.0), LOSS)
    first = loss_in_training()
    assert first == pytest.approx(loss_of_predictions(), rel=1e-5)
    kser_tf.connect(model, {"movie_id": other})
    assert loss_in_training() == pytest.approx(loss_of_predictions(), rel=1e-5)
    assert loss_in_training() != pytest.approx(first, rel=1e-3)
    kser_tf.connect(model, {"movie_id": other}, adapt=True)
    fresh = KnowledgeProfile()
    fresh.build((None, *chunks.shape[1:]))
    fresh.adapt(other)
    same(model.output_correction.histories["movie_id"].profiles.get_weights(), fresh.get_weights())
    assert loss_in_training() == pytest.approx(loss_of_predictions(), rel=1e-5)
    weights = model.output_correction.get_weights()
    model.output_correction.set_weights([weight[::-1] for weight in weights])
    assert loss_in_training() == pytest.approx(loss_of_predictions(), rel=1e-5)


@pytest.mark.parametrize("kind", ["functional", pytest.param("tfrs", marks=pytest.mark.tfrs)])
def test_what_is_alike_is_learned_from_the_data_set(kind: str, stores: zoo.Stores, tmp_path: Path) -> None:
    """As the layer's function learns it from rows made by hand; no prediction changes before training, and it is trained with."""
    store, features = stores.movie_numbers, rows(256)
    model, before = built(kind), predicted(built(kind), features)
    attached(model, store)
    history = model.output_correction.histories["movie_id"]
    texts = history.profiles.directions
    told, clicks = zoo.tensors(features), labels(features)
    assert kser_tf.adapt_to_preferences(model, [(told, clicks)], at_most=1) == {"movie_id": counted(features)}
    learned = history.profiles.directions
    assert np.abs(learned - texts).max() > 0.01
    np.testing.assert_array_equal(predicted(model, features), before)

    by_hand = attached(built(kind), store).output_correction.histories["movie_id"]
    numbers = np.log1p(np.nan_to_num(features["stars"]))[..., None]
    events = (
        np.array([*EVENTS, None], object)
        == np.where(np.isin(features["event"], EVENTS), features["event"], None)[..., None]
    )
    found = {movie: row for row, movie in enumerate(store.ids.tolist())}
    row_of = np.vectorize(lambda movie: found.get(movie, -1))
    history_rows = row_of(features["history"])
    feedback = np.concatenate([numbers, events.astype("float32")], -1)
    past = Past(row_of(features["movie_id"]), history_rows, history_rows >= 0, feedback, clicks)
    by_hand.profiles.adapt(store)
    adapt_to_preferences(by_hand.profiles, by_hand.lookup, [past])
    np.testing.assert_allclose(learned, by_hand.profiles.directions, rtol=1e-5, atol=1e-4)

    kser_tf.extractor_only(model, also=())
    fit(compiled(model))
    np.testing.assert_array_equal(history.profiles.directions, learned)
    correction = predicted(model, features) - before
    np.testing.assert_allclose(
        correction, others(model, features) + by_the_formula(model, store, features), rtol=1e-5, atol=1e-5
    )


def counted(features: dict[str, np.ndarray]) -> int:
    return int(((features["movie_id"] >= KNOWN) & (features["history"] >= KNOWN).any(1)).sum())


def others(model: Any, features: dict[str, np.ndarray]) -> np.ndarray:
    """The correction without that by the history."""
    output = model.output_correction
    ids = {"movie_id": tf.constant(features["movie_id"])}
    likeness = output.histories["movie_id"].likeness
    weights = likeness.get_weights()
    likeness.set_weights([np.zeros_like(weight) for weight in weights])
    found = output(
        ids,
        histories={"movie_id": (tf.constant(features["history"]), [features["stars"], tf.constant(features["event"])])},
    )
    likeness.set_weights(weights)
    return np.asarray(found)


def test_preferences_need_labels_and_a_history(stores: zoo.Stores) -> None:
    model, features = built("subclassed"), zoo.tensors(rows())
    with pytest.raises(AttachError, match="no history is attached to this model"):
        kser_tf.adapt_to_preferences(model, [])
    attached(model, stores.movie_numbers)
    with pytest.raises(AttachError, match="name with `label` the feature"):
        kser_tf.adapt_to_preferences(model, [features])
    with pytest.raises(AttachError, match=r"no feature is called 'click', as `label` says\. There are: 'movie_id'"):
        kser_tf.adapt_to_preferences(model, [features], label="click")
    clicks = tf.constant(labels(rows()))
    named = attached(built("subclassed"), stores.movie_numbers)
    assert kser_tf.adapt_to_preferences(named, [{**features, "click": clicks}], label="click") == {
        "movie_id": kser_tf.adapt_to_preferences(model, [(features, clicks)])["movie_id"]
    }
    same(
        named.output_correction.histories["movie_id"].profiles.get_weights(),
        model.output_correction.histories["movie_id"].profiles.get_weights(),
    )


@pytest.mark.parametrize("kind", ["functional", pytest.param("tfrs", marks=pytest.mark.tfrs)])
def test_saved_loaded_and_gone_on_with(kind: str, stores: zoo.Stores, tmp_path: Path) -> None:
    ways, features = {"into": {"movie": stores.movie_numbers}}, rows()
    straight = compiled(attached(built(kind), stores.movie_numbers, **ways))
    fit(straight)
    expected = predicted(straight, features)
    straight.save_weights(tmp_path / "model.weights.h5")
    if kind == "functional":
        straight.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras")
        assert "history 'history'" in str(kser_tf.attachments(loaded))
        kser_tf.connect(loaded, {"movie": stores.movie_numbers, "movie_id": stores.movie_numbers})
    else:
        straight.optimizer.build(straight.trainable_variables)
        loaded = compiled(attached(built(kind), stores.movie_numbers, **ways))
        loaded.optimizer.build(loaded.trainable_variables)
        path = tf.train.Checkpoint(model=straight, optimizer=straight.optimizer).write(str(tmp_path / "checkpoint"))
        tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer).read(path).assert_consumed()
    np.testing.assert_array_equal(predicted(loaded, features), expected)
    for model in (straight, loaded):
        fit(model)
    same(loaded.get_weights(), straight.get_weights())

    warm = attached(built(kind), stores.movie_numbers, **ways)
    kser_tf.warm_start(warm, tmp_path / "model.weights.h5", verbose=False)
    np.testing.assert_array_equal(predicted(warm, features), expected)


SPECS = {
    "movie_id": tf.TensorSpec((None,), tf.int64),
    "history": tf.TensorSpec((None, 6), tf.int64),
    "stars": tf.TensorSpec((None, 6), tf.float32),
    "event": tf.TensorSpec((None, 6), tf.string),
}


@pytest.mark.usefixtures("check_in_process", "no_cpp_program")
@pytest.mark.parametrize("bake", ["float32", None])
def test_exported(bake: Any, stores: zoo.Stores, tmp_path: Path) -> None:
    features = rows()
    model = attached(built("subclassed"), stores.movie_numbers, into={"movie": stores.movie_numbers})
    for number, layer in enumerate((model.output_correction, model.attached_knowledge)):
        randomise(layer, number)
    own = predicted(model, features)
    result = kser_tf.export(model, tmp_path / "ranker", inputs=SPECS, examples=features, bake=bake)
    found = kser_tf.check(result.path)
    assert found.ok, found.text()
    serve = served.Served(result.path)
    np.testing.assert_allclose(serve(**features)["logit"], own, atol=1e-5, rtol=1e-5)
    assert set(result.baking["tables"]) == (
        set() if bake is None else {"movie", "correction_movie_id", "profile_movie_id"}
    )
    assert {"serving_default", "examples", "classify", "regress"} < set(result.signatures)
    profiles = serve("embeddings_profile_movie_id", profile_movie_id_id=np.array([3, 8, 39]))["embedding"]
    lengths = np.linalg.norm(profiles, axis=1)
    np.testing.assert_allclose(lengths, [0, 1, 1], atol=0.02)
    np.testing.assert_array_equal(predicted(model, features), own)  # the model computes again


@pytest.mark.usefixtures("check_in_process", "no_cpp_program")
def test_a_baked_table_is_refreshed_with_new_films(stores: zoo.Stores, tmp_path: Path) -> None:
    features = rows()
    model = attached(built("subclassed"), stores.movie_numbers)
    randomise(model.output_correction)
    kser_tf.export(model, tmp_path / "ranker", inputs=SPECS, examples=features)
    rng = np.random.default_rng(9)
    new = np.array([1000]), rng.normal(size=(1, 2, 2, 6)).astype("float32"), np.ones((1, 2, 2), bool)
    more = stores.movie_numbers.extended(tmp_path / "more", [new])
    kser_tf.connect(model, {"movie_id": more})
    result = kser_tf.refresh(model, tmp_path / "ranker", inputs=SPECS)
    features["history"][:, 0] = 1000
    own = predicted(model, features)
    np.testing.assert_allclose(served.Served(result.path)(**features)["logit"], own, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("check_in_process", "no_cpp_program")
def test_on_a_saved_model(stores: zoo.Stores, tmp_path: Path) -> None:
    backbone = built("subclassed")
    features, ids = rows(), {"movie_id": SPECS["movie_id"]}
    path = kser_tf.export(backbone, tmp_path / "old", inputs=ids, examples={"movie_id": features["movie_id"]}).path
    model = kser_tf.SavedModelBackbone(path, output="logit")
    before = np.asarray(model(zoo.tensors(features)))
    attached(model, stores.movie_numbers)
    np.testing.assert_array_equal(model(zoo.tensors(features)), before)
    fit(compiled(model))
    after = np.asarray(model(zoo.tensors(features)))
    known = features["movie_id"] >= KNOWN
    np.testing.assert_array_equal(after[~known], before[~known])
    assert (after[known] != before[known]).mean() > 0.9
    result = kser_tf.export(model, tmp_path / "new", inputs=SPECS, examples=features)
    assert kser_tf.check(result.path).ok
    np.testing.assert_allclose(served.Served(result.path)(**features)["logit"], after, atol=1e-5, rtol=1e-5)
    kser_tf.detach(model)
    np.testing.assert_array_equal(model(zoo.tensors(features)), before)


class Listwise(Subclassed):
    """Scores `(batch, list)`; of a squeezed one not even the rank is known."""

    def __init__(self, squeezed: bool) -> None:
        super().__init__()
        self.squeezed = squeezed

    def call(self, features: Any) -> Any:
        scores = self.score(self.movie(known(features["movie_id"])))
        return tf.squeeze(scores) if self.squeezed else scores[..., 0]


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_list_of_candidates_has_one_history(squeezed: bool, ragged: bool, stores: zoo.Stores) -> None:
    features = rows(5)
    several = {**features, "movie_id": np.random.default_rng(1).integers(4, 40, (5, 3))}
    model = Listwise(squeezed)
    model(zoo.tensors(several))
    attached(model, stores.movie_numbers)
    randomise(model.output_correction)
    given = zoo.tensors(several)
    if ragged:
        given |= {name: tf.RaggedTensor.from_tensor(given[name]) for name in ("history", "stars", "event")}
    unknown_size = {
        name: tf.RaggedTensorSpec((None, None), value.dtype, 1)
        if isinstance(value, tf.RaggedTensor)
        else tf.TensorSpec((None, *([None] * (value.shape.rank - 1))), value.dtype)
        for name, value in given.items()
    }
    scores = tf.function(lambda given: model(given), input_signature=[unknown_size])(given)
    for place in range(3):
        one = {**features, "movie_id": several["movie_id"][:, place : place + 1]}
        alone = np.ravel(model(zoo.tensors(one)))
        np.testing.assert_allclose(np.asarray(scores)[:, place], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("feedback", [(), "stars", ["stars", "stars"], {"stars": [0.5, 3, 5.0]}], ids=str)
def test_kinds_of_feedback(feedback: Any, stores: zoo.Stores) -> None:
    model, features = built("subclassed"), rows()
    attached(model, stores.movie_numbers, feedback)
    randomise(model.output_correction.histories["movie_id"])
    first = predicted(model, features)
    other = predicted(model, {**features, "stars": np.full((64, 6), 2.0, np.float32)})
    assert (first != other).any() == bool(feedback)
    assert np.isfinite(first).all()


@pytest.mark.parametrize("count", [1, 7, 1024])
def test_first_predictions_with_xla(count: int, stores: zoo.Stores) -> None:
    features = zoo.tensors({name: value for name, value in rows(count).items() if name != "event"})
    model = built("subclassed")
    before = tf.function(model, jit_compile=True, autograph=False)(features).numpy()
    attached(model, stores.movie_numbers, "stars", xla=True)
    after = tf.function(lambda given: model(given), jit_compile=True, autograph=False)(features).numpy()
    np.testing.assert_array_equal(after, before)


def test_compiled_with_xla(stores: zoo.Stores) -> None:
    features = {name: value for name, value in rows().items() if name != "event"}
    models = [attached(built("subclassed"), stores.movie_numbers, "stars", xla=xla) for xla in (True, False)]
    for model in models:
        kser_tf.extractor_only(model, also=())
        model.compile(tf.keras.optimizers.SGD(0.5), LOSS, jit_compile=model.output_correction.xla)
        model.fit(zoo.tensors(features), labels(features), batch_size=32, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(*(model.output_correction.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert models[0].output_correction.histories["movie_id"].likeness.get_weights()[2].any()
    own = [np.asarray(model.predict(zoo.tensors(features), verbose=0)) for model in models]
    np.testing.assert_allclose(*own, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_with_the_mend(stores: zoo.Stores) -> None:
    store = stores.movie_numbers
    model = built("subclassed")
    for attachment, message in (
        (
            {"feedback": "stars"},
            "`feedback` tells what the user thought of what is in `history`. Name that feature too",
        ),
        ({"history": "history", "vocabulary": [1]}, "`vocabulary` is of the way into an embedding"),
        (
            {"history": "history", "feedback": {"event": []}},
            "the feedback 'event' has 0 values; there are to be 1 to 256",
        ),
        ({"history": "history", "feedback": {"event": range(300)}}, "has 300 values"),
    ):
        with pytest.raises(AttachError) as caught:
            attach_at_output(model, {"movie_id": kser_tf.Attachment(store, **attachment)})
        assert message in str(caught.value)
    with pytest.raises(AttachError, match=r"must be a kser_tf.KnowledgeStore, or a kser_tf.Attachment with one"):
        attach_at_output(model, {"movie_id": kser_tf.Attachment("stores/movies", history="history")})
    with pytest.raises(AttachError, match="`history` and `feedback` are of the way at the output"):
        kser_tf.attach(model, into={"movie": kser_tf.Attachment(store, history="history")})
    with pytest.raises(AttachError, match=r"has no input 'past'. It has: "):
        attach_at_output(built("functional"), {"movie_id": kser_tf.Attachment(store, history="past")})
    attached(model, store)
    with pytest.raises(AttachError, match=r"'movie_id' must be a kser_tf.KnowledgeStore. Received: Attachment"):
        kser_tf.connect(model, {"movie_id": kser_tf.Attachment(store, history="history")})
    features = rows()
    for change, message in (
        ({"history": None}, "was called without the feature 'history'"),
        ({"stars": None}, "was called without the feature 'stars'"),
        ({"history": features["movie_id"]}, r"'history' must be \(batch, length\), or ragged. Received: shape \(64,\)"),
        ({"stars": features["stars"][:, :3]}, r"'stars' must be shaped as 'history'.*\(64, 3\) and shape \(64, 6\)"),
        (
            {"history": features["event"]},
            "the history for 'movie_id': the store's ids are int64, the ids looked up are string",
        ),
        (
            {"event": features["history"]},
            r"are listed as \['view', 'cart', 'buy'\], and the feature holds int64 values",
        ),
        ({"history": tf.sparse.from_dense(features["history"])}, "'history' is a SparseTensor. Pad it"),
        ({"history": tf.RaggedTensor.from_tensor(features["history"])}, r"'stars' must be shaped as 'history'"),
    ):
        given = {name: value for name, value in {**features, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            model(given)
