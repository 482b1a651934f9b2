"""The ranking model: neutral knowledge at the start, one computation for each entity, every backbone."""

import numpy as np
import pytest
import small_world as world
import tensorflow as tf

from kser_tf import KnowledgeStore
from kser_tf.errors import ConfigError, DataError, StoreError
from kser_tf.schema import DatasetSchema, Feature

pytestmark = pytest.mark.tfrs

BACKBONES = ["autoint", "dcn", "dcn_v2", "deepfm", "dien", "din", "dlrm", "fibinet", "fignn", "xdeepfm"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return world.make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return KnowledgeStore.open(world.make_store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def schema(prepared):
    return DatasetSchema.load(prepared)


@pytest.fixture(scope="module")
def raw(prepared, schema):
    from kser_tf.pipelines.examples import raw_features

    return next(raw_features(prepared / "test.parquet", schema.features, 64))


def make(schema, store=None, **config):
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel

    stores = {"item": store} if store is not None else {}
    model = RankingModel(schema, RankingModelConfig(embedding_width=4, hidden_units=(8,), **config), stores)
    model.make_weights()
    model.adapt(stores)
    return model


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=weight.shape).astype("float32") for weight in model.get_weights()])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_fresh_knowledge_changes_no_prediction_by_a_bit(schema, store, raw, backbone):
    base = make(schema, backbone=backbone)
    randomise(base)
    with_knowledge = make(schema, store, backbone=backbone)
    with_knowledge.copy_backbone(base)
    np.testing.assert_array_equal(base.serve(raw)["logit"], with_knowledge.serve(raw)["logit"])


def test_indices_rows_and_numbers_by_hand(store):
    from kser_tf.layers import KnowledgeLookup
    from kser_tf.models.feature_indexer import FeatureIndexer

    known = store.ids[3]
    schema = DatasetSchema(
        features=(
            Feature("item", "categorical", "string", vocabulary="item", entity="item"),
            Feature("past", "sequence", "string", length=3, vocabulary="item", entity="item", group="g"),
            Feature("price", "numeric", "float32", mean=10.0, std=2.0),
        ),
        user_id="user",
        item_id="item",
        vocabularies={"item": ["影", known]},
    )
    indexed = FeatureIndexer(schema, {"item": KnowledgeLookup(store)})(
        {
            "item": np.array(["影", "never seen", ""], object),
            "past": np.array([[known, "影", "", ""], [known] * 4, [""] * 4], object),
            "price": np.array([14.0, np.nan, 8.0], np.float32),
        }
    )
    np.testing.assert_array_equal(indexed["item"], [2, 1, 0])
    np.testing.assert_array_equal(indexed["past"], [[3, 2, 0], [3, 3, 3], [0, 0, 0]])
    np.testing.assert_array_equal(indexed["item/row"], [-1, -1, -1])
    np.testing.assert_array_equal(indexed["past/row"], [[3, -1, -1], [3, 3, 3], [-1, -1, -1]])
    np.testing.assert_array_equal(indexed["price"], [2.0, 0.0, -1.0])


def test_aligned_knowledge_is_added_wherever_the_entity_stands(schema, store, raw):
    """Against a computation without `tf.unique`, position by position."""
    model = make(schema, store)
    randomise(model)
    features = model.indexer(raw)
    embedded = model.embedding(features)
    table = model.embedding._tables["item"].get_weights()[0]
    extractor = model.extractors["item"]
    for name in ("item", "past_item"):
        ids = raw[name].ravel()
        base = table[features[name].numpy().ravel()]
        chunks, mask = store.lookup(ids)
        expected = base + extractor(base[:, None], chunks, mask=mask).numpy()[:, 0]
        np.testing.assert_allclose(embedded[name].numpy().reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_multi_valued_features_are_averaged_over_what_is_there(schema, store):
    model = make(schema)
    row = {
        f.name: np.full((1,) if f.length is None else (1, 1), f.missing, object if f.dtype == "string" else None)
        for f in schema.features
    }
    row["tags"] = np.array([["red", "new", ""]], object)
    table = model.embedding._tables["tags"].get_weights()[0]
    index = {value: i + 2 for i, value in enumerate(schema.vocabularies["tags"])}
    got = model.embedding(model.indexer(row))["tags"].numpy()[0]
    np.testing.assert_allclose(got, (table[index["red"]] + table[index["new"]]) / 2, rtol=1e-6)


def test_an_item_without_knowledge_gets_the_base_prediction(schema, store, raw):
    base, model = make(schema), make(schema, store)
    randomise(model)
    base_weights = make(schema)
    base_weights.embedding.copy_tables(model.embedding)
    base_weights.core.set_weights(model.core.get_weights())
    base_weights.output_layer.set_weights(model.output_layer.get_weights())
    del base
    rows = {name: values[:3].copy() for name, values in raw.items()}
    rows["item"][:] = world.WITHOUT_KNOWLEDGE
    rows["past_item"][:] = ""
    np.testing.assert_array_equal(model.serve(rows)["logit"], base_weights.serve(rows)["logit"])


@pytest.mark.parametrize("backbone", ["din", "dcn_v2"])
def test_a_row_alone_is_answered_as_in_a_batch(schema, store, raw, backbone):
    model = make(schema, store, backbone=backbone)
    randomise(model)
    together = model.serve(raw)["logit"].numpy()
    alone = [
        model.serve({name: values[i : i + 1] for name, values in raw.items()})["logit"].numpy()[0] for i in range(8)
    ]
    np.testing.assert_allclose(alone, together[:8], rtol=1e-4, atol=1e-4)


def test_padding_of_a_history_does_not_matter(schema, store, raw):
    model = make(schema, store)
    randomise(model)
    longer = dict(raw)
    longer["past_item"] = np.concatenate([raw["past_item"], np.full((64, 3), "", object)], 1)
    longer["past_stars"] = np.concatenate([raw["past_stars"], np.full((64, 3), -1)], 1)
    np.testing.assert_array_equal(model.serve(raw)["logit"], model.serve(longer)["logit"])


def test_din_attention_against_numpy():
    from kser_tf.models.backbones.din import DIN

    schema = DatasetSchema(
        features=(
            Feature("item", "categorical", "int64", vocabulary="item"),
            Feature("past", "sequence", "int64", length=3, vocabulary="item", group="g"),
            Feature("stars", "sequence", "int64", length=3, vocabulary="stars", group="g"),
        ),
        user_id="user",
        item_id="item",
        vocabularies={"item": [1], "stars": [1]},
    )
    rng = np.random.default_rng(0)
    item, past, stars = (rng.normal(size=shape).astype("float32") for shape in ((2, 4), (2, 3, 4), (2, 3, 4)))
    mask = np.array([[True, True, False], [False, False, False]])
    core = DIN(schema, hidden_units=(5,), attention_units=6)
    core({"item": item, "past": past, "stars": stars}, {"g": mask})
    randomise(core)
    got = core({"item": item, "past": past, "stars": stars}, {"g": mask}).numpy()

    place, candidate, product, score = (
        getattr(core, name)["g"].get_weights() for name in ("_place", "_candidate", "_product", "_score")
    )
    # One dense layer over [h, r, h * c, c], its kernel put together from the blocks.
    kernel = np.concatenate([place[0], product[0], candidate[0]]).astype("float64")
    x = np.concatenate([past, stars, past * item[:, None], np.repeat(item[:, None], 3, 1)], -1).astype("float64")
    a = np.maximum(x @ kernel + candidate[1], 0) @ score[0].astype("float64") + score[1]
    weights = np.where(mask, np.exp(a[..., 0]), 0)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
    pooled = (weights[..., None] * np.concatenate([past, stars], -1)).sum(1)
    deep_kernel, deep_bias = core._deep[0].get_weights()
    expected = np.maximum(np.concatenate([item, pooled], -1) @ deep_kernel + deep_bias, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dcn_v2_crosses_against_numpy():
    from kser_tf.models.backbones.dcn_v2 import DCNv2

    schema = DatasetSchema(
        features=(Feature("item", "categorical", "int64", vocabulary="item"), Feature("n", "numeric", "float32")),
        user_id="user",
        item_id="item",
        vocabularies={"item": [1]},
    )
    rng = np.random.default_rng(0)
    embeddings = {"item": rng.normal(size=(3, 4)).astype("float32"), "n": rng.normal(size=(3, 4)).astype("float32")}
    core = DCNv2(schema, hidden_units=(5,), cross_layers=2, projection_dim=2)
    core(embeddings, {})
    randomise(core)
    first = np.concatenate([embeddings["item"], embeddings["n"]], -1).astype("float64")
    crossed = first
    for layer in core._crosses:  # x0 * (U V x + b) + x, Wang et al. 2021, equation 2
        u, v, bias = layer.get_weights()
        crossed = first * (crossed @ u @ v + bias) + crossed
    deep = np.maximum(first @ core._deep[0].get_weights()[0] + core._deep[0].get_weights()[1], 0)
    np.testing.assert_allclose(core(embeddings, {}).numpy(), np.concatenate([crossed, deep], -1), rtol=1e-4, atol=1e-4)


def test_a_backbone_of_ones_own_needs_no_change_here(schema):
    from kser_tf.models import backbones

    assert backbones.names() == BACKBONES
    model = make(schema, backbone="test_ranking_model:LastLayerOnly")
    assert model.core.__class__.__name__ == "LastLayerOnly"


def test_unknown_backbones_are_refused(schema):
    with pytest.raises(ConfigError, match=r"no backbone is called 'dim'\. There are: autoint, dcn, dcn_v2, deepfm"):
        make(schema, backbone="dim")
    with pytest.raises(ConfigError, match="cannot be imported"):
        make(schema, backbone="no_such_module:Class")
    with pytest.raises(ConfigError, match="not a subclass of"):
        make(schema, backbone="collections:OrderedDict")


def test_a_base_of_another_kind_is_refused(schema, store):
    with pytest.raises(ConfigError, match="base was trained with backbone='dcn_v2', this model has 'din'"):
        make(schema, store).copy_backbone(make(schema, backbone="dcn_v2"))


def test_a_backbones_own_options(schema, raw, tmp_path):
    from kser_tf.models.model_folder import WEIGHTS_FILE, load_model, save_model

    model = make(schema, backbone="xdeepfm", backbone_options={"cin_units": (3, 2)})
    randomise(model)
    assert [layer.units for layer in model.core._cin] == [3, 2]
    save_model(tmp_path, model, {})
    model.save_weights(tmp_path / WEIGHTS_FILE)
    loaded = load_model(tmp_path)
    np.testing.assert_array_equal(loaded.serve(raw)["logit"], model.serve(raw)["logit"])
    again = make(schema, backbone="xdeepfm", backbone_options={"cin_units": (3, 2)})
    again.copy_backbone(loaded)
    np.testing.assert_array_equal(again.serve(raw)["logit"], model.serve(raw)["logit"])
    with pytest.raises(ConfigError, match="base was trained with backbone_options="):
        make(schema, backbone="xdeepfm").copy_backbone(loaded)


def test_options_that_a_backbone_does_not_have_are_refused(schema):
    with pytest.raises(
        ConfigError, match=r"dcn has no option 'cross_layer'\. Did you mean 'cross_layers'\? It has: cross_l"
    ):
        make(schema, backbone="dcn", backbone_options={"cross_layer": 2})
    with pytest.raises(ConfigError, match=r"deepfm has no option 'hidden_units'\. It has: none"):
        make(schema, backbone="deepfm", backbone_options={"hidden_units": (2,)})


def test_training_takes_in_diens_auxiliary_loss(schema, raw):
    model = make(schema, backbone="dien", backbone_options={"auxiliary_loss": 0.5})
    model.compile(tf.keras.optimizers.SGD(0.0))
    features = model.indexer(raw)
    found = model.train_step((features, tf.ones(64)))
    assert found["regularization_loss"] > 0.1
    np.testing.assert_allclose(found["total_loss"], found["loss"] + found["regularization_loss"], rtol=1e-6)
    assert model.test_step((features, tf.ones(64)))["regularization_loss"] == 0


def test_a_model_folder_is_read_back_and_guards_its_store(schema, raw, tmp_path):
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model

    path = world.make_store(tmp_path, dtype="int8")
    reference = StoreReference.to(path)
    model = make(schema, reference.open())
    randomise(model)
    save_model(tmp_path / "model", model, {"item": reference})
    with pytest.raises(DataError, match=r"holds no trained model: model\.weights\.h5 is missing"):
        load_model(tmp_path / "model")
    model.save_weights(tmp_path / "model" / WEIGHTS_FILE)
    np.testing.assert_array_equal(model.serve(raw)["logit"], load_model(tmp_path / "model").serve(raw)["logit"])

    old = KnowledgeStore.open(path)
    chunks, mask = old.lookup(old.ids)
    KnowledgeStore.write(path, old.ids, -chunks, mask, fields=["a", "b"], encoder="test", overwrite=True)
    with pytest.raises(StoreError, match="the model was trained with the store"):
        load_model(tmp_path / "model")


def _last_layer_only():
    from kser_tf.models.backbone import Backbone

    class LastLayerOnly(Backbone):
        def call(self, embeddings, masks, training=None):
            return tf.concat(self.flat_fields(embeddings), -1)

    LastLayerOnly.__module__ = __name__
    return LastLayerOnly


def __getattr__(name):
    if name == "LastLayerOnly":
        return _last_layer_only()
    raise AttributeError(name)


def test_statistics_kept_for_training_follow_weights_that_are_loaded(schema, store, raw):
    """A step that was traced before reads the statistics of the weights there are when `fit` begins."""
    model = make(schema, store, backbone="dcn_v2")
    indexed = model.indexer(raw)
    train = tf.function(lambda: model(indexed, training=True), autograph=False)
    model.compile(optimizer=tf.keras.optimizers.SGD(0.0))
    batches = tf.data.Dataset.from_tensors((indexed, tf.ones(len(raw["place"]))))
    randomise(model)
    model.fit(batches, verbose=0)
    before = train().numpy()
    np.testing.assert_allclose(before, model(indexed), rtol=1e-4, atol=1e-5)
    mean = model.extractors["item"].esf_net.catalogue_mean
    mean.assign(1.0 - 2.0 * mean)
    model.fit(batches, verbose=0)
    np.testing.assert_allclose(train(), model(indexed), rtol=1e-4, atol=1e-5)
    assert np.abs(train() - before).max() > 1e-3
