from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_cases as cases
import tensorflow as tf

import kser_tf
from kser_tf.errors import ExportError, FileError
from kser_tf.layers import KnowledgeLookup
from kser_tf.serving import contract, resources, session_client
from kser_tf.serving.export import MAX_EXAMPLES, ExportResult

COMBINATIONS = [("string", "int8"), ("int64", "float16"), ("string", "float32")]
NUMBER = {"x": tf.TensorSpec((None, 3), tf.float32)}


class Case:
    """A ranker, exported."""

    def __init__(self, folder: Path, ids: str, dtype: str) -> None:
        values = cases.STRING_IDS if ids == "string" else cases.INTEGER_IDS
        self.store = cases.write_store(folder / "store", ids=values, dtype=dtype)
        self.model = cases.ranker(self.store)
        self.examples = cases.rows(600, store=self.store)
        self.tables = self.model.knowledge[0]["item"].tables()
        self.before = np.ravel(self.model(self.examples))
        self.base = folder / "ranker"
        self.result: ExportResult = kser_tf.export(
            self.model,
            self.base,
            inputs=cases.inputs(self.store),
            examples=self.examples,
            metadata={"schema": "abc", "rows": 3},
        )


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), *request.param)


@pytest.fixture
def dense() -> tf.keras.Model:
    """A functional model with one number as its output."""
    x = tf.keras.Input((3,), name="x")
    return tf.keras.Model(x, tf.keras.layers.Dense(1, bias_initializer="ones")(x))


def call(path: Path, rows: dict[str, Any]) -> dict[str, np.ndarray]:
    """Answers of a SavedModel, through the session loader."""
    report, answers = session_client.examine(str(path), rows, [])
    assert "load_error" not in report, report
    assert "error" not in report["runs"]["all"], report
    return {name: answers[f"all/{name}"] for name in ("probability", "logit")}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_served_answers_are_the_models_own(case: Case) -> None:
    answers = call(case.result.path, case.examples)
    np.testing.assert_allclose(answers["logit"], case.before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answers["probability"], sigmoid(case.before), rtol=1e-5, atol=1e-6)
    assert np.std(case.before) > 0.1  # they depend on something


def test_knowledge_is_served(case: Case) -> None:
    """With the same index of the item, the answer still depends on the item: on its knowledge."""
    unknown_to_vocabulary = case.store.ids[4:6]
    rows = {"item_id": unknown_to_vocabulary, "country": ["de", "de"], "price": [1.0, 1.0]}
    first, second = call(case.result.path, rows)["logit"]
    assert abs(first - second) > 1e-3


def test_an_id_of_a_million_characters_is_an_unknown_one(case: Case) -> None:
    if case.store.id_dtype != "string":
        pytest.skip("the ids are integers")
    rows = {"item_id": ["?" * 1_000_000, "?"], "country": ["de", "de"], "price": [1.0, 1.0]}
    long, short = call(case.result.path, rows)["logit"]
    assert long == short


def test_the_signature_is_the_documented_one(case: Case) -> None:
    id_dtype = case.store.id_dtype
    expected_inputs = {"item_id": id_dtype, "country": "string", "price": "float32"}
    signature = case.result.signatures["serving_default"]
    assert {name: (s["dtype"], s["shape"]) for name, s in signature["inputs"].items()} == {
        name: (dtype, [None]) for name, dtype in expected_inputs.items()
    }
    assert {name: (s["dtype"], s["shape"]) for name, s in signature["outputs"].items()} == {
        "probability": ("float32", [None]),
        "logit": ("float32", [None]),
    }


def test_the_model_stays_as_it_was(case: Case) -> None:
    lookup = case.model.knowledge[0]["item"]
    assert lookup.tables() is case.tables
    assert not case.tables.in_variables
    np.testing.assert_array_equal(np.ravel(case.model(case.examples)), case.before)
    assert not any("vectors" in weight.name for weight in case.model.weights)


def test_another_store_than_that_of_the_training_is_refused(tmp_path: Path) -> None:
    store = cases.write_store(tmp_path / "store")
    other = cases.write_store(tmp_path / "other", seed=1)
    model = cases.ranker(store)
    lookup = model.knowledge[0]["item"]

    def export(connected: kser_tf.KnowledgeStore) -> ExportResult:
        lookup.connect(connected)
        return kser_tf.export(model, tmp_path / "ranker", inputs=cases.inputs(store), signatures=())

    new = np.array(["new", "newer"], dtype=object)
    chunks, mask = store.lookup(store.ids[:2])
    between = store.extended(tmp_path / "between", [(new[:1], chunks[:1], mask[:1])])
    larger = between.extended(tmp_path / "larger", [(new[1:], chunks[1:], mask[1:])])
    for connected in (other, larger.shuffled(1)):
        with pytest.raises(ExportError, match=f"trained with the store {store.fingerprint}, and is connected to"):
            export(connected)
    assert not (tmp_path / "ranker").exists()
    assert [export(connected).version for connected in (store, between, larger)] == [1, 2, 3]
    lookup.trained_with = other.fingerprint
    assert export(other).version == 4
    with pytest.raises(ExportError, match=f"trained with the store {other.fingerprint}"):
        export(store)


def test_the_model_trains_on_and_is_exported_again(tmp_path: Path) -> None:
    store = cases.write_store(tmp_path / "store")
    model = cases.ranker(store)
    rows = cases.rows(64, store=store)
    data = tf.data.Dataset.from_tensors((rows, np.arange(64.0) % 2))
    model.compile("sgd", tf.keras.losses.BinaryCrossentropy(from_logits=True))
    answers = []
    for version in (1, 2):
        model.fit(data, verbose=0)  # traced before the first export, with the mapped tables
        result = kser_tf.export(model, tmp_path / "ranker", inputs=cases.inputs(store))
        assert result.version == version
        answers.append(call(result.path, rows)["logit"])
        np.testing.assert_allclose(answers[-1], np.ravel(model(rows)), rtol=1e-5, atol=1e-5)
    assert np.abs(answers[0] - answers[1]).max() > 1e-5


def test_the_description_holds_what_belongs_together(case: Case) -> None:
    description = json.loads((case.result.path / contract.DESCRIPTION_FILE).read_text())
    assert description["metadata"] == {"schema": "abc", "rows": 3}
    assert description["knowledge"] == [
        {"layer": "item_lookup", "store_fingerprint": case.store.fingerprint, "shape": [2, 3, 8]}
    ]
    assert description["signatures"] == case.result.signatures
    assert description["fingerprint"] == case.result.fingerprint
    assert description["versions"]["tensorflow"] == tf.__version__
    on_disk = {str(p.relative_to(case.result.path)) for p in case.result.path.rglob("*") if p.is_file()}
    assert set(description["files"]) == on_disk - {contract.DESCRIPTION_FILE}
    assert case.result.bytes == sum((case.result.path / name).stat().st_size for name in on_disk)
    assert json.loads(json.dumps(case.result.as_dict()))["path"] == str(case.result.path)


def test_some_examples_are_kept_with_the_models_answers(case: Case) -> None:
    inputs, outputs = contract.load_examples(case.result.path / contract.EXAMPLES_FILE)
    assert len(outputs["logit"]) == MAX_EXAMPLES
    np.testing.assert_allclose(outputs["logit"], case.before[:MAX_EXAMPLES], rtol=1e-5, atol=1e-5)
    ids = inputs["item_id"].tolist()
    assert [i.decode() if isinstance(i, bytes) else i for i in ids] == list(case.examples["item_id"][:MAX_EXAMPLES])


def test_knowledge_and_ids_are_in_variables_and_not_in_the_graph(tmp_path: Path) -> None:
    ids = np.array([f"{i:0100d}" for i in range(5_000)])
    vectors = np.random.default_rng(0).normal(size=(len(ids), 1, 4, 64)).astype(np.float32)
    mask = np.ones((len(ids), 1, 4), bool)
    store = kser_tf.KnowledgeStore.write(
        tmp_path / "store", ids, vectors, mask, fields=["text"], encoder="test", dtype="float32"
    )
    ids_in = tf.keras.Input((), dtype="string", name="item_id")
    chunks, _ = KnowledgeLookup(store)(ids_in)
    model = tf.keras.Model({"item_id": ids_in}, tf.keras.layers.Dense(1)(tf.keras.layers.Flatten()(chunks)))
    spec = {"item_id": tf.TensorSpec((None,), tf.string)}
    result = kser_tf.export(model, tmp_path / "model", inputs=spec)
    assert (result.path / "saved_model.pb").stat().st_size < sum(map(len, ids)) / 2
    assert (result.path / "variables" / "variables.data-00000-of-00001").stat().st_size > vectors.nbytes
    rows = {"item_id": np.array([*ids[[0, 4_999]], "", "0"])}
    expected = np.ravel(model({"item_id": tf.constant(rows["item_id"])}))
    np.testing.assert_allclose(call(result.path, rows)["logit"], expected, rtol=1e-5, atol=1e-5)
    python = tf.saved_model.load(str(result.path)).signatures["serving_default"]
    np.testing.assert_allclose(python(item_id=tf.constant(rows["item_id"]))["logit"], expected, rtol=1e-5, atol=1e-5)


def test_a_functional_model_that_returns_probabilities(tmp_path: Path) -> None:
    x = tf.keras.Input((3,), name="x")
    y = tf.keras.Input((), dtype="string", name="y")
    table = tf.keras.layers.StringLookup()
    table.adapt(["a", "b", "b"])
    dense = tf.keras.layers.Dense(1, activation="sigmoid")
    encoded = tf.keras.layers.Embedding(4, 2)(table(y))
    model = tf.keras.Model({"x": x, "y": y}, dense(tf.keras.layers.Concatenate()([x, encoded])))
    spec = NUMBER | {"y": tf.TensorSpec((None,), tf.string)}
    result = kser_tf.export(model, tmp_path / "m", inputs=spec, output="probability")
    rows = {"x": np.ones((3, 3), np.float32), "y": np.array([b"a", b"b", b"unknown"])}
    expected = np.ravel(model({name: tf.constant(value) for name, value in rows.items()})).astype(np.float64)
    answers = call(result.path, rows)
    np.testing.assert_allclose(answers["probability"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers["logit"], np.log(expected / (1 - expected)), rtol=1e-5, atol=1e-5)


def test_probabilities_of_0_and_1_have_finite_logits(tmp_path: Path, dense: Any) -> None:
    result = kser_tf.export(
        dense,
        tmp_path,
        inputs=NUMBER,
        output="probability",
        serve=lambda given: dense(given["x"]) * 0 + given["x"][:, :1],
    )
    x = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0], [0.25, 0, 0]], np.float32)
    answers = call(result.path, {"x": x})
    np.testing.assert_array_equal(answers["probability"], x[:, 0])
    # ln(1e-7 / (1 - 1e-7)) = -16.118; 1 - 1e-7 is 1 - 2**-23 in float32: ln((2**23 - 1) / 1) = 15.942
    np.testing.assert_allclose(answers["logit"], [-16.118096, 15.942385, 0, np.log(1 / 3)], rtol=1e-6, atol=1e-7)


def test_a_sequential_model_takes_its_tensor_by_preprocess(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("a\nb\n")
    model = tf.keras.Sequential(
        [
            tf.keras.Input((1,), dtype="string"),
            tf.keras.layers.StringLookup(vocabulary=str(vocabulary)),
            tf.keras.layers.Embedding(4, 1, embeddings_initializer="uniform"),
            tf.keras.layers.Flatten(),
        ]
    )
    spec = {"item": tf.TensorSpec((None,), tf.string)}
    result = kser_tf.export(model, tmp_path / "m", inputs=spec, preprocess=lambda given: given["item"][:, None])
    vocabulary.unlink()  # it goes with the model
    moved = tmp_path / "elsewhere" / "1"
    shutil.copytree(result.path, moved)
    expected = np.ravel(model.layers[-2].get_weights()[0])[[1, 2, 0]]
    np.testing.assert_allclose(call(moved, {"item": ["a", "b", "?"]})["logit"], expected, rtol=1e-5, atol=1e-7)


def test_a_table_that_preprocess_refers_to_is_served(tmp_path: Path, dense: Any) -> None:
    index = tf.keras.layers.IntegerLookup(vocabulary=[10, 20])
    spec = {"id": tf.TensorSpec((None,), tf.int32)}

    def one_hot(given: Any) -> Any:
        return tf.one_hot(index(given["id"]), 3)

    result = kser_tf.export(dense, tmp_path, inputs=spec, preprocess=one_hot)
    expected = np.ravel(dense(np.eye(3, dtype=np.float32)[[1, 2, 0]]))
    np.testing.assert_allclose(call(result.path, {"id": [10, 20, 30]})["logit"], expected, rtol=1e-5, atol=1e-6)


class Mean(tf.keras.Model):
    """A `call` without `training`."""

    def call(self, features: Any) -> Any:
        return tf.reduce_mean(features["x"], axis=-1)


def test_a_model_whose_call_has_no_training_argument(tmp_path: Path) -> None:
    result = kser_tf.export(Mean(), tmp_path, inputs=NUMBER)
    answers = call(result.path, {"x": [[1.0, 2.0, 6.0]]})
    np.testing.assert_allclose(answers["logit"], [3.0])
    np.testing.assert_allclose(answers["probability"], [1 / (1 + np.exp(-3.0))], rtol=1e-6)


class TakesLabels(tf.keras.Model):
    """As much code in use does it: labels go in, a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = tf.keras.layers.Dense(1)

    def call(self, given: Any) -> Any:
        features, labels = given
        scores = self.dense(features["x"])
        return {"ctr": scores, "loss": tf.reduce_mean((labels - scores) ** 2)}


def test_a_model_with_a_label_in_and_a_dict_out_is_called_by_serve(tmp_path: Path) -> None:
    model = TakesLabels()
    x = np.eye(3, dtype=np.float32)
    expected = np.ravel(model(({"x": x}, tf.zeros((3, 1))))["ctr"])
    with pytest.raises(ExportError, match=r"(?s)cannot be called with the inputs x.*`serve`"):
        kser_tf.export(model, tmp_path, inputs=NUMBER)
    with pytest.raises(ExportError, match=r"returns a dict of 'ctr', 'loss', and not of 'probability' and 'logit'"):
        kser_tf.export(model, tmp_path, inputs=NUMBER, serve=lambda given: model((given, tf.zeros((1, 1)))))
    with pytest.raises(ExportError, match=r"input `label`: a request has no label and no weight.*`serve`"):
        kser_tf.export(model, tmp_path, inputs={**NUMBER, "label": tf.TensorSpec((None,), tf.float32)})
    assert not list(tmp_path.iterdir())
    result = kser_tf.export(model, tmp_path, inputs=NUMBER, serve=lambda given: model((given, tf.zeros((1, 1))))["ctr"])
    np.testing.assert_allclose(call(result.path, {"x": x})["logit"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.tfrs
def test_a_users_tfrs_model(tmp_path: Path) -> None:
    import tensorflow_recommenders as tfrs

    class Users(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = tf.keras.Sequential(
                [tf.keras.layers.StringLookup(vocabulary=["u1", "u2"]), tf.keras.layers.Embedding(4, 4)]
            )
            self.score = tf.keras.layers.Dense(1)
            self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))

        def call(self, features: Any) -> Any:
            return self.score(self.embedding(features["user_id"]))

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            features, labels = inputs
            return self.task(labels=labels, predictions=self(features))

    model = Users()
    rows = {"user_id": np.array(["u1", "u2", "nobody", ""])}
    model.compile("adagrad")
    model.fit(tf.data.Dataset.from_tensors((rows, np.array([[0.0], [1], [0], [1]]))), verbose=0)
    result = kser_tf.export(model, tmp_path, inputs={"user_id": tf.TensorSpec((None,), tf.string)}, examples=rows)
    np.testing.assert_allclose(call(result.path, rows)["logit"], np.ravel(model.predict(rows)), rtol=1e-5, atol=1e-6)


@pytest.mark.tfrs
def test_a_ranking_model_says_its_inputs_itself(tmp_path: Path) -> None:
    from kser_tf.schema import DatasetSchema, Feature

    schema = DatasetSchema(
        features=(
            Feature("item_id", "categorical", "string", vocabulary="item", entity="item"),
            Feature("history", "sequence", "string", length=4, vocabulary="item", entity="item", group="history"),
            Feature("price", "numeric", "float32", mean=1.0, std=2.0),
        ),
        user_id="user",
        item_id="item_id",
        vocabularies={"item": list(cases.STRING_IDS[:4])},
    )
    store = cases.write_store(tmp_path / "store")
    model = kser_tf.RankingModel(schema, stores={"item": store})
    rows = {
        "item_id": np.array(["tt0001", "Amélie", "?"]),
        "history": np.array([["天国", "", "", ""], ["Ран", "tt0002", "", ""], ["", "", "", ""]]),
        "price": np.array([1.0, np.nan, 3.0], np.float32),
    }
    model(model.indexer(rows))
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0.2, 0.5, weight.shape) for weight in model.get_weights()])
    result = kser_tf.export(model, tmp_path / "m", examples=rows)
    assert json.loads((result.path / contract.DESCRIPTION_FILE).read_text())["nan_is_missing"] is True
    assert result.signatures["serving_default"]["inputs"]["history"]["shape"] == [None, None]
    expected = model.serve({name: tf.constant(value) for name, value in rows.items()})
    answers = call(result.path, rows)
    # The logits are in the thousands, and the baked table's sums are taken in batches of another size.
    np.testing.assert_allclose(answers["logit"], expected["logit"], rtol=1e-6)
    np.testing.assert_allclose(answers["probability"], expected["probability"], rtol=1e-5, atol=1e-6)
    assert not model.indexer._lookups["item"].tables().in_variables


class TestVersions:
    def test_the_next_integer_by_default(self, tmp_path: Path, dense: Any) -> None:
        (tmp_path / "7").mkdir()
        for name in ("latest", ".8.new.abc", "9.tmp"):
            (tmp_path / name).mkdir()
        assert kser_tf.export(dense, tmp_path, inputs=NUMBER).version == 8
        assert kser_tf.export(dense, tmp_path, inputs=NUMBER, version=20).path == tmp_path / "20"

    def test_one_that_is_there_stays(self, tmp_path: Path, dense: Any) -> None:
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / "kept").touch()
        with pytest.raises(ExportError, match=r"holds version 3 already. Leave `version` out for the next one, 4"):
            kser_tf.export(dense, tmp_path, inputs=NUMBER, version=3)
        assert (tmp_path / "3" / "kept").exists()

    @pytest.mark.parametrize("version", [0, -1, True, "2", 1.0])
    def test_of_another_kind(self, tmp_path: Path, dense: Any, version: Any) -> None:
        with pytest.raises(ExportError, match=r"`version` must be an integer from 1. Received: version="):
            kser_tf.export(dense, tmp_path, inputs=NUMBER, version=version)


class TestNothingIsLeft:
    def test_after_a_failure_at_the_end(self, tmp_path: Path, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def interrupted(path: Path, *_: Any) -> None:
            seen.extend(entry.name for entry in tmp_path.iterdir() if entry.is_dir())
            raise KeyboardInterrupt

        monkeypatch.setattr(contract, "save_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kser_tf.export(dense, tmp_path, inputs=NUMBER, examples={"x": np.zeros((2, 3), np.float32)})
        # While it was being written, its name was none that a server parses as an integer.
        assert len(seen) == 1
        assert seen[0].startswith(".")
        assert not list(tmp_path.iterdir())

    def test_on_a_full_disk(self, tmp_path: Path, dense: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        try:
            with pytest.raises(FileError, match=r"cannot be written to.*Free some space|the disk is full"):
                kser_tf.export(dense, tmp_path, inputs=NUMBER)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.iterdir())

    def test_the_knowledge_goes_back_to_the_store(self, tmp_path: Path) -> None:
        store = cases.write_store(tmp_path / "store")
        model = cases.ranker(store)
        hidden = _hidden_table()
        with pytest.raises(ExportError, match=r"look-up table.*LookupTableFindV2"):
            kser_tf.export(
                model, tmp_path / "m", inputs=cases.inputs(store), serve=lambda given: model(given) + hidden(given)
            )
        assert not model.knowledge[0]["item"].tables().in_variables
        assert not list((tmp_path / "m").iterdir())


def _hidden_table() -> Callable[[Any], Any]:
    """A look-up table where nobody finds it: behind a function behind a function."""
    initializer = tf.lookup.KeyValueTensorInitializer(["de", "jp"], [1.0, 2.0])
    table = tf.lookup.StaticHashTable(initializer, 0.0)
    return lambda given: table.lookup(given["country"])[:, None]


class TestRefused:
    @pytest.fixture(autouse=True)
    def _base(self, tmp_path: Path) -> Iterator[None]:
        self.base = tmp_path
        yield
        assert not list(tmp_path.iterdir())

    def refused(self, message: str, model: Any, **arguments: Any) -> None:
        with pytest.raises(ExportError, match=message):
            kser_tf.export(model, self.base, **{"inputs": NUMBER, **arguments})

    def test_no_inputs(self, dense: Any) -> None:
        self.refused(r"`inputs` is missing: say for each input", dense, inputs=None)
        self.refused(r"`inputs` is empty", dense, inputs={})

    @pytest.mark.parametrize("name", ["Sample_Weight", "y_true", "LABEL"])
    def test_labels_and_weights(self, dense: Any, name: str) -> None:
        self.refused(rf"input `{name}`: a request has no label", dense, inputs={name: tf.TensorSpec((None,))})

    @pytest.mark.parametrize("name", ["movie id", "фильм", "_id", "1st", "a.b", ""])
    def test_names_that_tensorflow_changes(self, dense: Any, name: str) -> None:
        self.refused(rf"input `{name}`: a name begins with a letter", dense, inputs={name: tf.TensorSpec((None,))})

    def test_names_that_tensorflow_mixes_up(self, dense: Any) -> None:
        self.refused(r"`x` and `X` differ in case alone", dense, inputs={"x": NUMBER["x"], "X": NUMBER["x"]})

    def test_shapes_and_dtypes(self, dense: Any) -> None:
        self.refused(r"must be None. Received: shape=\(8, 3\)", dense, inputs={"x": tf.TensorSpec((8, 3))})
        self.refused(r"must be None. Received: shape=\(\)", dense, inputs={"x": tf.TensorSpec(())})
        self.refused(r"expected a tf.TensorSpec.*complex64", dense, inputs={"x": tf.TensorSpec((None,), tf.complex64)})
        self.refused(r"expected a tf.TensorSpec.*Received: 'int64'", dense, inputs={"x": "int64"})

    def test_output(self, dense: Any) -> None:
        self.refused(r"`output` must be one of probability, logit. Received: output='score'", dense, output="score")

    @pytest.mark.parametrize(
        ("serve", "received"),
        [
            (lambda given: given["x"], r"float32 of shape \(2, 3\)"),
            (lambda given: tf.reduce_sum(given["x"]), r"float32 of shape \(\)"),
            (lambda given: tf.argmax(given["x"], -1), r"int64 of shape \(2,\)"),
        ],
    )
    def test_other_than_one_score_a_row(self, dense: Any, serve: Any, received: str) -> None:
        self.refused(rf"\(batch,\) or \(batch, 1\). Received: {received}", dense, serve=serve)

    def test_a_model_that_was_never_built(self) -> None:
        model = tf.keras.Sequential([tf.keras.layers.Dense(4), tf.keras.layers.Dense(1)])
        for _ in range(2):  # trying does not build it
            self.refused(r"the model is not built: its variable .* random values", model, preprocess=lambda g: g["x"])

    def test_python_functions(self, dense: Any) -> None:
        def serve(given: Any) -> Any:
            return (
                tf.ensure_shape(tf.numpy_function(np.sum, [given["x"], 1], tf.float32), (None,))
                + dense(given["x"])[:, 0]
            )

        self.refused(r"calls Python functions.*PyFunc.*TensorFlow's operations", dense, serve=serve)

    def test_a_function_traced_before_with_the_mapped_tables(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        store = cases.write_store(tmp_path_factory.mktemp("other") / "store")
        model = cases.ranker(store)
        traced = tf.function(model)
        rows = {name: tf.constant(values) for name, values in cases.rows(2, store=store).items()}
        traced(rows)
        # The eager call and the export's call have the same signature but for the batch: relaxed, it is found again.
        traced = tf.function(model.__call__, input_signature=[cases.inputs(store)])
        traced(rows)
        self.refused(r"does not hold.*leave out its decorator", model, inputs=cases.inputs(store), serve=traced)

    def test_a_lookup_without_its_store(self, dense: Any) -> None:
        dense.forgotten = KnowledgeLookup(shape=(1, 2, 3), name="forgotten")
        self.refused(r"forgotten has no store", dense)

    def test_a_large_constant(self, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resources, "LARGEST_CONSTANT_BYTES", 1_000_000)
        large = tf.random.stateless_uniform((300_000, 1), (1, 2))
        self.refused(
            r"constant of 1 MB into the graph, float32 of shape \(300000, 1\).*tf.Variable",
            dense,
            serve=lambda given: dense(given["x"]) + tf.gather(large, tf.cast(given["x"][:, 0], tf.int32)),
        )

    def test_metadata(self, dense: Any) -> None:
        self.refused(r"`metadata` must be JSON-able.*ndarray", dense, metadata={"a": np.zeros(3)})
        self.refused(r"`metadata` must be JSON-able", dense, metadata={"a": float("nan")})

    @pytest.mark.parametrize(
        ("examples", "message"),
        [
            ({}, r"the examples lack `x`"),
            ({"x": np.zeros((2, 3)), "z": [1, 2]}, r"the examples have no use for `z`"),
            ({"x": np.zeros((2, 4))}, r"input `x`: expected values of shape \(rows, 3\). Received: \(2, 4\)"),
            ({"x": [["a", "b", "c"]]}, r"input `x`: expected float32 values. Received: <U1"),
        ],
    )
    def test_examples(self, dense: Any, examples: Any, message: str) -> None:
        self.refused(message, dense, examples=examples)


class TestExamples:
    def test_strings_of_all_kinds(self) -> None:
        for values in (["é", ""], [b"\xc3\xa9", b""], np.array(["é", ""], object), tf.constant(["é", ""])):
            rows = contract.as_rows("x", values, "string", [None])
            assert rows.dtype.kind == "S"
            assert rows.tolist() == ["é".encode(), b""]
        assert contract.as_rows("x", np.array([], object), "string", [None]).shape == (0,)

    @pytest.mark.parametrize(
        ("values", "dtype", "message"),
        [
            (np.array([["a"], ["b", "c"]], object), "string", r"Received: \['a'\] \(list\).*padded"),
            (np.array(["a", None], object), "string", r"Received: None \(NoneType\)"),
            ([1, 2], "string", r"expected strings. Received: int64"),
            ([2**40], "int32", r"does not fit into int32. Received: 1099511627776"),
            ([1.5], "int64", r"expected int64 values. Received: float64"),
            ([True], "int64", r"expected int64 values. Received: bool"),
        ],
    )
    def test_values_of_another_type(self, values: Any, dtype: str, message: str) -> None:
        with pytest.raises(ExportError, match=f"input `x`: .*{message}"):
            contract.as_rows("x", values, dtype, None)

    def test_lengths_differ(self) -> None:
        inputs = {name: {"dtype": "int64", "shape": [None]} for name in "ab"}
        with pytest.raises(ExportError, match=r"different numbers of rows: \{'a': 2, 'b': 1\}"):
            contract.as_table({"a": [1, 2], "b": [1]}, inputs)

    def test_they_come_back(self, tmp_path: Path) -> None:
        rows = {"a": np.array([b"x", b"yz"]), "b": np.array([[1.5, np.nan], [0, 1]], np.float32)}
        answers = {"logit": np.array([1.0, 2.0], np.float32)}
        contract.save_examples(tmp_path / "e.npz", rows, answers)
        for saved, loaded in zip((rows, answers), contract.load_examples(tmp_path / "e.npz"), strict=True):
            assert list(saved) == list(loaded)
            for name, array in saved.items():
                np.testing.assert_array_equal(loaded[name], array)


def test_lookups_are_found_wherever_they_are() -> None:
    def lookup() -> KnowledgeLookup:
        return KnowledgeLookup(shape=(1, 1, 1))

    module = tf.Module()
    layer = tf.keras.layers.Layer()
    model = tf.keras.Sequential([layer])
    places = [lookup() for _ in range(6)]
    layer.in_attribute = places[0]
    layer.in_list_in_dict = {"a": [places[1]]}
    module.in_tuple = (1, (places[2],))
    module.again = places[0]
    module.itself = module
    model.module = module

    class Serve(tf.Module):
        held = None

        def call(self, given: Any) -> Any:
            return given

    holder = Serve()
    holder.held = places[3]
    around = {"x": [places[4]]}

    def serve(given: Any) -> Any:
        return around, NOT_A_LOOKUP

    global NOT_A_LOOKUP
    NOT_A_LOOKUP = {"global": places[5]}
    found = [value for value in resources.objects_in(model, holder.call, serve) if isinstance(value, KnowledgeLookup)]
    assert len(found) == len(places)
    assert {id(value) for value in found} == {id(place) for place in places}
