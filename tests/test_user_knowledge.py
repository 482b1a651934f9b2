"""HistoryLikeness and KnowledgeProfile against NumPy, and ranking models that read the knowledge of the user's past."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world as world
import tensorflow as tf
from layer_test_case import randomise, run_layer_test

from kser_tf import KnowledgeStore
from kser_tf.errors import ConfigError
from kser_tf.layers import HistoryLikeness, KnowledgeProfile

BATCH, LENGTH, WIDTH, FEEDBACK, UNITS = 4, 5, 3, 2, 6
SHARPNESS = (7.0, 2.0)


@pytest.fixture
def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Four rows: a full history, one with gaps, an empty one, and a candidate of which nothing is known."""
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1, 2:] = False
    mask[2] = False
    candidate, history = unit(rng.normal(size=(BATCH, WIDTH))), unit(rng.normal(size=(BATCH, LENGTH, WIDTH)))
    candidate[3] = 0
    return {
        "candidate": candidate,
        "history": history,
        "feedback": rng.normal(size=(BATCH, LENGTH, FEEDBACK)).astype("float32"),
        "mask": mask,
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("float32")


def test_the_likeness_layer(inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    run_layer_test(
        HistoryLikeness,
        {"sharpness": list(SHARPNESS), "units": UNITS},
        inputs,
        output_shapes=[(1,)],
        weight_shapes=[
            ("hidden_kernel", (len(SHARPNESS) * (FEEDBACK + 1), UNITS)),
            ("hidden_bias", (UNITS,)),
            ("output_kernel", (UNITS, 1)),
        ],
        tmp_path=tmp_path,
    )


def test_the_profile_layer(rng: np.random.Generator, tmp_path: Path) -> None:
    run_layer_test(
        KnowledgeProfile,
        {"dims": 3},
        {"chunks": rng.normal(size=(4, 2, 3, 5)).astype("float32"), "mask": rng.random((4, 2, 3)) < 0.6},
        output_shapes=[(3,)],
        weight_shapes=[("center", (5,)), ("directions", (2, 5, 3))],
        frozen=("center", "directions"),
        tmp_path=tmp_path,
    )


def test_likeness_as_the_formula_has_it(inputs: dict[str, np.ndarray]) -> None:
    layer = HistoryLikeness(SHARPNESS, UNITS)
    assert not layer(**inputs).numpy().any()  # starts at 0
    randomise(layer)
    weights = {weight.name.split("/")[-1].split(":")[0]: weight.numpy().astype("float64") for weight in layer.weights}
    given = {name: value.astype("float64") for name, value in inputs.items() if name != "mask"}
    for row, corrected in enumerate(layer(**inputs).numpy()):
        there = inputs["mask"][row]
        seen = []
        for sharpness in SHARPNESS:
            cosines = given["history"][row, there] @ given["candidate"][row]
            attention = np.exp(sharpness * cosines)
            attention = attention / attention.sum() if there.any() else attention
            opinions = given["feedback"][row, there]
            opinions = opinions - opinions.mean(0) if there.any() else opinions
            seen.append((attention @ opinions, attention @ cosines))
        features = np.concatenate([[*opinion, cosine] for opinion, cosine in seen])
        hidden = np.maximum(features @ weights["hidden_kernel"] + weights["hidden_bias"], 0)
        compared = given["candidate"][row].any() and there.any()
        expected = hidden @ weights["output_kernel"] if compared else [0.0]
        np.testing.assert_allclose(corrected, expected, rtol=1e-5, atol=1e-6)
    assert corrected == 0


def test_what_stands_behind_the_mask_does_not_matter(inputs: dict[str, np.ndarray]) -> None:
    layer = HistoryLikeness(SHARPNESS, UNITS)
    layer(**inputs)
    randomise(layer)
    expected = layer(**inputs)
    inputs["history"][~inputs["mask"]] = 7.0
    inputs["feedback"][~inputs["mask"]] = -3.0
    np.testing.assert_array_equal(layer(**inputs), expected)


def test_without_feedback_the_likeness_alone_counts(inputs: dict[str, np.ndarray]) -> None:
    nothing = {**inputs, "feedback": np.zeros((BATCH, LENGTH, 0), "float32")}
    layer = HistoryLikeness(SHARPNESS, UNITS)
    layer(**nothing)
    randomise(layer)
    whole = HistoryLikeness(SHARPNESS, UNITS).compare(**inputs).numpy().reshape(BATCH, len(SHARPNESS), FEEDBACK + 1)
    np.testing.assert_array_equal(layer.compare(**nothing), whole[..., -1])
    assert layer(**nothing).numpy()[:2].all()


def test_what_the_user_thinks_in_general_is_no_matter_of_likeness(inputs: dict[str, np.ndarray]) -> None:
    layer = HistoryLikeness(SHARPNESS, UNITS)
    layer(**inputs)
    randomise(layer)
    expected = layer(**inputs)
    np.testing.assert_allclose(
        layer(**{**inputs, "feedback": inputs["feedback"] + 2.0}), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "shape"), [("candidate", (BATCH, 4)), ("history", (BATCH, LENGTH, 4)), ("feedback", (BATCH, LENGTH))]
)
def test_wrong_shapes_are_refused(inputs: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    layer = HistoryLikeness(SHARPNESS, UNITS)
    layer(**inputs)
    with pytest.raises(ValueError, match=f"`{name}` must have shape"):
        layer(**{**inputs, name: np.zeros(shape, "float32")})


class Store:
    """Entities along two axes, far from the origin: the first axis tells them apart more than the second."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ids = np.arange(200)
        spread = rng.normal(size=(200, 2)) * [4.0, 1.0]
        turned = spread @ np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]])
        self._chunks = np.repeat((turned + np.array([5.0, -2.0, 3.0]))[:, None, None], 2, axis=2).astype("float32")
        self._chunks[:, 0, 0] += 0.5
        self._chunks[:, 0, 1] -= 0.5  # the mean stays
        self._mask = np.ones((200, 1, 2), bool)
        self._mask[7] = False

    def lookup(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._chunks[ids], self._mask[ids]


def test_a_profile_is_the_mean_seen_from_the_catalogues_middle_along_its_main_directions() -> None:
    store, layer = Store(), KnowledgeProfile(dims=2)
    layer.build((None, 1, 2, 3))
    layer.adapt(store)
    chunks, mask = store.lookup(store.ids)
    profiles = layer(chunks, mask=mask).numpy()
    known = mask.any((1, 2))
    means = chunks.mean((1, 2)).astype("float64")
    directions = np.linalg.svd(means[known] - means[known].mean(0), full_matrices=False)[2][:2]
    expected = unit((means - means[known].mean(0)) @ directions.T)
    signs = np.sign((profiles[known] * expected[known]).sum(0))
    np.testing.assert_allclose(profiles[known], (expected * signs)[known], rtol=1e-5, atol=1e-4)
    assert not profiles[~known].any()
    again = KnowledgeProfile(dims=2)
    again.build((None, 1, 2, 3))
    again.adapt(store)
    np.testing.assert_array_equal(again(chunks, mask=mask), profiles)


def test_a_store_of_another_shape_is_refused() -> None:
    layer = KnowledgeProfile(dims=2)
    layer.build((None, 1, 2, 5))
    with pytest.raises(ValueError, match="built for knowledge of shape"):
        layer.adapt(Store())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeStore:
    return KnowledgeStore.open(world.make_store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def raw(prepared: Path) -> Any:
    from kser_tf.pipelines.examples import raw_features
    from kser_tf.schema import DatasetSchema

    return next(raw_features(prepared / "test.parquet", DatasetSchema.load(prepared).features, 64))


def make_model(prepared: Path, store: KnowledgeStore | None, **config: Any) -> Any:
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.schema import DatasetSchema

    stores = {} if store is None else {"item": store}
    config = {"embedding_width": 4, "hidden_units": (8,), "user_knowledge": "texts", **config}
    model = RankingModel(DatasetSchema.load(prepared), RankingModelConfig(**config), stores)
    model.make_weights()
    model.adapt(stores)
    return model


def stir(model: Any) -> None:
    """Sets every trained weight to something that counts; what was learned of the catalogue stays."""
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))


def take_backbone(model: Any, other: Any) -> None:
    """All lengths of history have the same weights, so `copy_backbone` is gone round, which would refuse."""
    model.embedding.copy_tables(other.embedding)
    model.core.set_weights(other.core.get_weights())
    model.output_layer.set_weights(other.output_layer.get_weights())


@pytest.mark.tfrs
def test_a_fresh_model_predicts_as_its_base(prepared: Path, store: KnowledgeStore, raw: Any) -> None:
    base, model = make_model(prepared, None), make_model(prepared, store)
    stir(base)
    model.copy_backbone(base)
    np.testing.assert_array_equal(model.serve(raw)["logit"], base.serve(raw)["logit"])
    assert base.user_knowledge is None


@pytest.mark.tfrs
def test_the_users_past_is_read_in_the_light_of_the_candidates_knowledge(
    prepared: Path, store: KnowledgeStore, raw: Any
) -> None:
    """The model's correction is that of the layer on profiles made by hand; without knowledge of the candidate, none."""
    model, without = make_model(prepared, store), make_model(prepared, store, user_knowledge=False)
    stir(model)
    without.copy_backbone(model)
    without.extractors["item"].set_weights(model.extractors["item"].get_weights())
    correction = model.serve(raw)["logit"] - without.serve(raw)["logit"]
    profile = model.embedding.entity_profiles["item"]
    likeness = model.user_knowledge._likeness["past"]
    indexed = model.indexer(raw)
    candidate = profile(*store.lookup(ids_of(raw["item"])))
    history = tf.stack([profile(*store.lookup(ids_of(ids))) for ids in np.asarray(raw["past_item"])[:, :5]])
    stars = np.eye(likeness._feedback, dtype="float32")[np.asarray(indexed["past_stars"])]
    expected = likeness(candidate, history, stars, mask=indexed["past_item"] != 0)[:, 0]
    np.testing.assert_allclose(correction, expected, rtol=1e-3, atol=1e-4)
    unknown = ids_of(raw["item"]) == world.WITHOUT_KNOWLEDGE
    assert unknown.any()
    assert not np.asarray(expected)[unknown].any()
    assert np.asarray(expected)[~unknown].any()


def ids_of(values: Any) -> np.ndarray:
    return np.array([v.decode() if isinstance(v, bytes) else v for v in np.asarray(values).ravel().tolist()], object)


@pytest.mark.tfrs
def test_what_is_compared_ahead_is_what_the_model_compares(prepared: Path, store: KnowledgeStore, raw: Any) -> None:
    """With the examples goes what the model would compute, of each store its own, and it is what the model then takes."""
    from kser_tf.pipelines.examples import IndexedExamples

    model, placebo = make_model(prepared, store), make_model(prepared, store.shuffled(3))
    stir(model)
    placebo.set_weights(model.get_weights())
    features = {}
    for name, made in (("model", model), ("placebo", placebo), ("again", model)):
        examples = IndexedExamples(prepared, "test", {"item": store})
        examples.prepare_for(made)
        features[name], _ = next(iter(examples.batches(64)))
    compared = features["model"].pop("past/compared")
    assert compared.shape == (64, model.user_knowledge._likeness["past"].compared_width(7))
    np.testing.assert_array_equal(features["again"]["past/compared"], compared)
    assert np.abs(features["placebo"]["past/compared"] - compared).max() > 0.01
    expected = model(features["model"])
    np.testing.assert_allclose(model({**features["model"], "past/compared": compared}), expected, rtol=1e-4, atol=1e-5)
    moved = model({**features["model"], "past/compared": -compared})
    assert np.abs(moved - expected).max() > 0.01
    without = IndexedExamples(prepared, "test")
    without.prepare_for(make_model(prepared, None))
    assert "past/compared" not in without.tensors


@pytest.mark.tfrs
@pytest.mark.parametrize("with_knowledge", [True, False])
def test_prepared_examples_hold_what_the_model_sees_and_no_more(
    prepared: Path, store: KnowledgeStore, with_knowledge: bool
) -> None:
    """The places that the backbone does not see are left out after they were compared; predictions are as they were."""
    from kser_tf.pipelines.examples import IndexedExamples

    stores = {"item": store} if with_knowledge else {}
    model = make_model(prepared, stores.get("item"), backbone_history=2)
    stir(model)
    whole = IndexedExamples(prepared, "test", stores)
    features, _ = next(iter(whole.batches(64)))
    expected = model(features)
    for _ in range(2):  # made, then read again
        examples = IndexedExamples(prepared, "test", stores)
        examples.prepare_for(model)
        cut, _ = next(iter(examples.batches(64)))
        lengths = {
            name: values.shape[1] for name, values in cut.items() if name.startswith(("past_item", "past_stars"))
        }
        assert set(lengths.values()) == {2}
        assert ("past_item/row" in lengths) == with_knowledge
        np.testing.assert_allclose(model(cut), expected, rtol=1e-5, atol=1e-6)
    # Another model may compare and see more.
    examples.prepare_for(longer := make_model(prepared, stores.get("item"), backbone_history=3))
    cut, _ = next(iter(examples.batches(64)))
    np.testing.assert_allclose(longer(cut), longer(features), rtol=1e-5, atol=1e-6)


@pytest.mark.tfrs
@pytest.mark.parametrize(
    ("adaptor", "bake"), [("kser", "float32"), ("kser", "int8"), ("kser", None), ("kar", "float16")]
)
def test_served_as_trained(
    prepared: Path, store: KnowledgeStore, raw: Any, tmp_path: Path, bake: str | None, adaptor: str
) -> None:
    import kser_tf
    from kser_tf.serving.loaded_model import LoadedModel

    model = make_model(prepared, store, adaptor=adaptor)
    stir(model)
    exported = kser_tf.export(model, tmp_path / "served", bake=bake)
    with LoadedModel(exported.path) as loaded:
        served = loaded.run("serving_default", {name: np.asarray(values) for name, values in raw.items()})
    tolerance = {"float32": 1e-5, None: 1e-5, "float16": 2e-2, "int8": 0.3}[bake]
    np.testing.assert_allclose(served["logit"], model.serve(raw)["logit"], rtol=tolerance, atol=tolerance)


@pytest.mark.tfrs
def test_knowledge_that_comes_with_a_request_is_compared_too(prepared: Path, store: KnowledgeStore, raw: Any) -> None:
    """An item that the store does not hold, with another's chunks in the request, has the other's correction."""
    model, without = make_model(prepared, store), make_model(prepared, store, user_knowledge=False)
    stir(model)
    without.copy_backbone(model)
    without.extractors["item"].set_weights(model.extractors["item"].get_weights())
    known = {**raw, "item": tf.fill(tf.shape(raw["item"]), world.ITEMS[0])}
    chunks, mask = store.lookup(np.array([world.ITEMS[0]] * 64, object))
    new = {**raw, "item": tf.fill(tf.shape(raw["item"]), "brand new"), "item_chunks": chunks, "item_mask": mask}
    corrections = [model.serve(rows)["logit"] - without.serve(rows)["logit"] for rows in (known, new)]
    np.testing.assert_allclose(*corrections, rtol=1e-3, atol=1e-4)


@pytest.mark.tfrs
def test_extractor_only_trains_it_and_the_core_stays(prepared: Path, store: KnowledgeStore) -> None:
    import kser_tf

    model = make_model(prepared, store)
    report = kser_tf.extractor_only(model, also=())
    trained = {id(weight) for weight in model.trainable_variables}
    assert {id(weight) for weight in model.user_knowledge.trainable_variables} <= trained
    assert trained == {
        id(weight)
        for layer in (model.user_knowledge, *model.extractors.values())
        for weight in layer.trainable_variables
    }
    assert report.trained_parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)


@pytest.mark.tfrs
def test_saved_and_loaded_it_predicts_the_same(prepared: Path, store: KnowledgeStore, raw: Any, tmp_path: Path) -> None:
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model

    model = make_model(prepared, store)
    stir(model)
    save_model(tmp_path, model, {"item": StoreReference.to(store.path)})
    model.save_weights(tmp_path / WEIGHTS_FILE)
    np.testing.assert_array_equal(load_model(tmp_path).serve(raw)["logit"], model.serve(raw)["logit"])


@pytest.mark.tfrs
def test_without_a_history_of_items_it_is_refused(prepared: Path, store: KnowledgeStore) -> None:
    import dataclasses

    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.schema import DatasetSchema

    schema = DatasetSchema.load(prepared)
    features = tuple(feature for feature in schema.features if feature.kind != "sequence")
    with pytest.raises(ConfigError, match="no sequence feature is of the vocabulary of item"):
        RankingModel(
            dataclasses.replace(schema, features=features), RankingModelConfig(user_knowledge="texts"), {"item": store}
        )


@pytest.mark.tfrs
@pytest.mark.parametrize("backbone", ["din", "dcn_v2"])
def test_the_backbone_sees_the_latest_places_and_the_likeness_all(
    prepared: Path, store: KnowledgeStore, raw: Any, backbone: str
) -> None:
    """As if the older places were not there, but for what is known of the items in them."""
    model = make_model(prepared, store, backbone=backbone, backbone_history=2)
    base = make_model(prepared, None, backbone=backbone, backbone_history=2)
    whole = make_model(prepared, None, backbone=backbone)
    stir(model)
    for other in (base, whole):
        take_backbone(other, model)
    recent = {
        name: values if name not in ("past_item", "past_stars") else np.asarray(values)[:, :2]
        for name, values in raw.items()
    }
    older = (np.asarray(raw["past_item"])[:, 2:] != b"").any(1)
    assert older.any()
    np.testing.assert_allclose(base.serve(raw)["logit"], whole.serve(recent)["logit"], rtol=1e-5, atol=1e-6)
    difference = np.abs(model.serve(raw)["logit"] - model.serve(recent)["logit"])
    assert (difference[older] > 1e-4).mean() > 0.5
    assert not difference[~older].any()


@pytest.mark.tfrs
def test_a_long_history_is_served_as_trained(prepared: Path, store: KnowledgeStore, raw: Any, tmp_path: Path) -> None:
    import kser_tf
    from kser_tf.serving.loaded_model import LoadedModel

    model = make_model(prepared, store, backbone_history=2)
    stir(model)
    exported = kser_tf.export(model, tmp_path / "served")
    with LoadedModel(exported.path) as loaded:
        served = loaded.run("serving_default", {name: np.asarray(values) for name, values in raw.items()})
    np.testing.assert_allclose(served["logit"], model.serve(raw)["logit"], rtol=1e-5, atol=1e-5)


@pytest.mark.tfrs
def test_a_base_that_sees_another_history_is_refused(prepared: Path, store: KnowledgeStore) -> None:
    with pytest.raises(ConfigError, match="the base was trained with backbone_history=2"):
        make_model(prepared, store).copy_backbone(make_model(prepared, None, backbone_history=2))
    with pytest.raises(ConfigError, match="backbone_history must be at least 1"):
        make_model(prepared, None, backbone_history=0)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples with a second history: what users began with."""
    return world.make_prepared(tmp_path_factory.mktemp("begun"), *world.BEGUN_WITH)


@pytest.mark.tfrs
def test_a_history_that_the_backbone_does_not_see_is_compared(
    begun: Path, store: KnowledgeStore, tmp_path: Path
) -> None:
    """The base takes no such input; with knowledge what a user began with counts, and is served as trained."""
    import kser_tf
    from kser_tf.pipelines.examples import IndexedExamples, raw_features
    from kser_tf.schema import DatasetSchema
    from kser_tf.serving.loaded_model import LoadedModel

    unseen = {"first": 0}
    base = make_model(begun, None, backbone_history=unseen)
    assert not {"first_item", "first_stars"} & set(base.serving_inputs())
    model = make_model(begun, store, backbone_history=unseen)
    assert {"first_item", "first_stars"} < set(model.serving_inputs()) == set(model.serving_defaults())
    stir(base)
    model.copy_backbone(base)
    raw = next(raw_features(begun / "test.parquet", DatasetSchema.load(begun).features, 64))
    np.testing.assert_array_equal(model.serve(raw)["logit"], base.serve(raw)["logit"])
    stir(model)
    without = {
        **raw,
        "first_item": np.full_like(raw["first_item"], ""),
        "first_stars": np.full_like(raw["first_stars"], -1),
    }
    assert (np.abs(model.serve(raw)["logit"] - model.serve(without)["logit"]) > 1e-4).mean() > 0.5

    stores = {"item": store}
    examples = IndexedExamples(begun, "test", stores)
    features, _ = next(iter(IndexedExamples(begun, "test", stores).batches(64)))
    examples.prepare_for(model)
    compared, _ = next(iter(examples.batches(64)))
    assert "first/compared" in compared
    assert not [name for name in compared if name.startswith(("first_item", "first_stars"))]
    np.testing.assert_allclose(model(compared), model(features), rtol=1e-5, atol=1e-6)

    exported = kser_tf.export(model, tmp_path / "served")
    with LoadedModel(exported.path) as loaded:
        served = loaded.run("serving_default", {name: np.asarray(values) for name, values in raw.items()})
    np.testing.assert_allclose(served["logit"], model.serve(raw)["logit"], rtol=1e-5, atol=1e-5)


@pytest.mark.tfrs
def test_a_history_by_name_of_which_the_backbone_sees_some(begun: Path, raw: Any) -> None:
    some, all_of_it = (
        make_model(begun, None, backbone_history=length) for length in ({"past": 2, "first": 0}, {"first": 0})
    )
    take_backbone(some, all_of_it)
    recent = {name: values[:, :2] if name in ("past_item", "past_stars") else values for name, values in raw.items()}
    np.testing.assert_allclose(some.serve(raw)["logit"], all_of_it.serve(recent)["logit"], rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ConfigError, match="backbone_history names 'latest', and the groups of sequence features are: past, first"
    ):
        make_model(begun, None, backbone_history={"latest": 1})
    with pytest.raises(ConfigError, match="of a group by name it may be 0"):
        make_model(begun, None, backbone_history={"past": -1})
