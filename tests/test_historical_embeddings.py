"""Historical embeddings: a training step aligns its candidates, and takes the histories' knowledge from memory."""

import numpy as np
import pytest
import small_world as world
import tensorflow as tf

from kser_tf import KnowledgeStore
from kser_tf.schema import DatasetSchema

pytestmark = pytest.mark.tfrs


def test_memory_by_hand():
    from kser_tf.models.historical_embeddings import HistoricalEmbeddings

    memory = HistoricalEmbeddings(3, 2)
    memory.write(tf.constant([2, -1, 0]), tf.constant([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(memory.read(tf.constant([0, 1, 2, -1])), [[3, 4], [0, 0], [1, 2], [0, 0]])


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    from kser_tf.pipelines.examples import IndexedExamples

    store = KnowledgeStore.open(world.make_store(tmp_path_factory.mktemp("store")))
    prepared = world.make_prepared(tmp_path_factory.mktemp("prepared"))
    found = IndexedExamples(prepared, "train", {"item": store})
    return DatasetSchema.load(prepared), store, found


@pytest.fixture
def model(examples):
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel

    schema, store, _ = examples
    made = RankingModel(schema, RankingModelConfig(embedding_width=4, hidden_units=(8,)), {"item": store})
    made.make_weights()
    made.adapt({"item": store})
    rng = np.random.default_rng(0)
    for weight in made.trainable_weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32") * 0.3)
    return made


@pytest.fixture
def batch(examples):
    return next(iter(examples[2].shuffled_batches(8, seed=1, epochs=1)))[0]


def history_only(batch):
    """The known store rows that stand in the batch's histories and are no candidate's."""
    rows = set(batch["past_item/row"].numpy().ravel().tolist()) - {-1}
    return sorted(rows - set(batch["item/row"].numpy().tolist()))


def test_after_a_refresh_a_step_sees_what_it_would_see_without_memory(model, batch):
    expected = model(batch, training=True)
    model.keep_historical_embeddings()
    stale = model(batch, training=True)
    assert np.abs(stale - expected).max() > 1e-3, "an empty memory should show"
    model.embedding.refresh_historical_embeddings()
    np.testing.assert_allclose(model(batch, training=True), expected, rtol=1e-5, atol=1e-6)


def test_predictions_do_not_read_the_memory(model, batch):
    expected = model(batch, training=False)
    model.keep_historical_embeddings()
    np.testing.assert_array_equal(model(batch, training=False), expected)


def test_a_step_remembers_what_it_aligns_and_nothing_else(model, batch):
    model.keep_historical_embeddings()
    memory = model.embedding._historical["item"]
    model(batch, training=True)
    candidates = sorted(set(batch["item/row"].numpy().tolist()) - {-1})
    outside = sorted(set(range(len(world.ITEMS) - 1)) - set(candidates) - set(history_only(batch)))
    written = memory.read(tf.constant(candidates)).numpy()
    assert candidates
    assert outside
    assert (np.abs(written).max(-1) > 0).all()
    np.testing.assert_array_equal(memory.read(tf.constant([*outside, -1])), 0)
    model.embedding.refresh_historical_embeddings()
    np.testing.assert_allclose(memory.read(tf.constant(candidates)), written, rtol=1e-5, atol=1e-6)


def extractor_gradient(model, batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch, training=True) ** 2)
    weights = [weight for weight in model.extractors["item"].trainable_weights if "output_kernel" in weight.name]
    return tape.gradient(loss, weights)[0].numpy()


def test_over_all_samples_the_extractors_gradient_is_that_of_all(model, batch, monkeypatch):
    expected = extractor_gradient(model, batch)
    model.keep_historical_embeddings()
    model.embedding.refresh_historical_embeddings()
    assert len(history_only(batch)) > 8
    gradients = []
    for offset in range(8):
        monkeypatch.setattr(
            model.embedding._historical["item"], "_sample_offset", lambda rows, one_of, offset=offset: offset
        )
        gradients.append(extractor_gradient(model, batch))
    assert np.abs(gradients[0] - expected).max() > 1e-3, "one sample is not all"
    np.testing.assert_allclose(np.mean(gradients, 0), expected, rtol=1e-4, atol=1e-4)


def test_every_other_candidate_counts_twice(model, batch, monkeypatch):
    from kser_tf.models import historical_embeddings

    model.keep_historical_embeddings(0, decoupled=True)
    memory = model.embedding._historical["item"]
    gradients = []
    for one_of, offset in ((1, 0), (2, 0), (2, 1)):
        monkeypatch.setattr(historical_embeddings, "_ONE_OF_CANDIDATES", one_of)
        monkeypatch.setattr(memory, "_sample_offset", lambda rows, one_of, offset=offset: offset)
        model.embedding.refresh_historical_embeddings()
        gradients.append(extractor_gradient(model, batch))
    expected, *halves = gradients
    assert np.abs(halves[0] - expected).max() > 1e-3, "one half is not all"
    np.testing.assert_allclose(np.mean(halves, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one_of", [0, 8])
def test_outside_the_sample_histories_train_their_embeddings_only(model, batch, monkeypatch, one_of):
    model.keep_historical_embeddings(one_of)
    model.embedding.refresh_historical_embeddings()
    if one_of:  # Beyond the last key: the sample is empty.
        monkeypatch.setattr(model.embedding._historical["item"], "_sample_offset", lambda rows, one_of: tf.size(rows))
    nothing = {"item": tf.zeros_like(batch["item"]), "item/row": -tf.ones_like(batch["item/row"])}
    table = model.embedding._tables["item"].trainable_weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model({**batch, **nothing}, training=True))
    gradients = tape.gradient(loss, [*model.extractors["item"].trainable_weights, *table])
    for gradient in gradients[:-1]:
        assert gradient is None or np.abs(gradient).max() == 0
    assert np.abs(tf.convert_to_tensor(gradients[-1])).max() > 0


def remember_anything(model):
    """Fills the memory with random vectors, and returns them; the last one is that of entities without knowledge."""
    memory = model.embedding._historical["item"]
    in_memory = tf.random.stateless_normal(memory._vectors.shape, seed=[1, 2]).numpy()
    in_memory[-1] = 0
    memory._vectors.assign(in_memory)
    return in_memory


def test_decoupled_the_extractor_learns_from_candidates_alone(model, batch):
    """Histories see what is remembered, of a candidate too, and pass their gradient to the embedding tables."""
    model.keep_historical_embeddings(0, decoupled=True)
    in_memory = remember_anything(model)
    feature = next(f for f in model.schema.features if f.name == "past_item")
    with tf.GradientTape(persistent=True) as tape:
        embedded = model.embedding(batch, training=True)
        candidate, history = tf.reduce_sum(embedded["item"] ** 2), tf.reduce_sum(embedded["past_item"] ** 2)
    rows = batch["past_item/row"].numpy()
    assert set(rows.ravel()) & set(batch["item/row"].numpy()) - {-1}, "a candidate should stand in a history"
    base = model.embedding._tables[feature.vocabulary](batch["past_item"])
    np.testing.assert_allclose(embedded["past_item"], base + in_memory[rows], rtol=1e-5, atol=1e-6)
    extractor = model.extractors["item"].trainable_weights
    assert all(gradient is None for gradient in tape.gradient(history, extractor))
    assert any(gradient is not None and np.abs(gradient).max() > 0 for gradient in tape.gradient(candidate, extractor))
    table = model.embedding._tables[feature.vocabulary].embeddings
    assert np.abs(tf.convert_to_tensor(tape.gradient(history, table))).max() > 0


def without_history_of_others(batch):
    """The batch, without what stands in its histories and is no candidate."""
    kept = np.isin(batch["past_item/row"], batch["item/row"])
    assert kept.any()
    assert not kept.all()
    none = {
        "past_item": np.where(kept, batch["past_item"], 0),
        "past_item/row": np.where(kept, batch["past_item/row"], -1),
    }
    return {**batch, **{name: tf.constant(value, batch[name].dtype) for name, value in none.items()}}


def test_without_a_sample_histories_teach_the_extractor_through_candidates(model, batch):
    """Where histories hold candidates alone, a fresh memory gives the gradient of all; others add nothing to it."""
    candidates_alone = without_history_of_others(batch)
    expected = extractor_gradient(model, candidates_alone)
    model.keep_historical_embeddings(0)
    model.embedding.refresh_historical_embeddings()
    np.testing.assert_allclose(extractor_gradient(model, candidates_alone), expected, rtol=1e-4, atol=1e-4)
    model.keep_historical_embeddings(0, decoupled=True)
    model.embedding.refresh_historical_embeddings()
    assert np.abs(extractor_gradient(model, candidates_alone) - expected).max() > 1e-3, "histories teach nothing there"


def test_without_a_sample_histories_see_what_is_remembered(model, batch):
    model.keep_historical_embeddings(0)
    in_memory = remember_anything(model)
    embedded = model.embedding(batch, training=True)["past_item"]
    base = model.embedding._tables["item"](batch["past_item"])
    np.testing.assert_allclose(embedded, base + in_memory[batch["past_item/row"].numpy()], rtol=1e-5, atol=1e-6)


def test_memory_is_no_weight_and_no_part_of_checkpoints(model, tmp_path):
    before = [weight.name for weight in model.weights]
    model.keep_historical_embeddings()
    assert [weight.name for weight in model.weights] == before
    names = tf.train.list_variables(tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint")))
    assert not [name for name, _ in names if "historical" in name]


@pytest.mark.parametrize("with_knowledge", [False, True])
def test_id_dropout_takes_a_share_of_the_known_entities_for_unknown(examples, batch, with_knowledge):
    """With knowledge worth nothing, or none, a dropped item's embedding is that of an unknown one; others stay."""
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.ranking_model import RankingModel

    schema, store, _ = examples
    tf.keras.utils.set_random_seed(1)
    config = RankingModelConfig(embedding_width=4, hidden_units=(8,), id_dropout=0.5)
    model = RankingModel(schema, config, {"item": store} if with_knowledge else {})
    model.make_weights()
    table = model.embedding._tables["item"].weights[0]
    table.assign(tf.random.normal(table.shape))
    trained = model.embedding(batch, training=True)["item"].numpy()
    own = model.embedding(batch, training=False)["item"].numpy()
    is_own = np.isclose(trained, own).all(-1)
    is_unknown = np.isclose(trained, table.numpy()[1]).all(-1)
    assert (is_own | is_unknown).all()
    assert is_own.any()
    assert is_unknown.any()
    np.testing.assert_array_equal(trained, model.embedding(batch, training=True)["item"], err_msg="told by the batch")
    if with_knowledge:
        assert is_own[batch["item/row"].numpy() < 0].all()
