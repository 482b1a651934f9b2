"""Every adaptor against its formula in float64, written out entity by entity; and what models with each of them must do."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import served_world
import small_world as world
import tensorflow as tf

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.errors import ConfigError
from kser_tf.models import adaptors
from kser_tf.models.config import RankingModelConfig
from kser_tf.schema import UNKNOWN_INDEX

tfrs = pytest.mark.tfrs

Array = np.ndarray
NAMES = ["alignment_only", "concat", "esf_net_only", "kar", "kser", "mlp", "moe"]
RESIDUAL_BY_DEFAULT = ["alignment_only", "esf_net_only", "kser", "moe"]
PLACEMENTS = ["residual", "field"]

# Every number that could be mixed up with another one differs from it.
BATCH, FIELDS, CHUNKS, TEXT, WIDTH = 6, 3, 2, 7, 4
CONFIG = RankingModelConfig(embedding_width=WIDTH, num_heads=2, gate_units=5)
# All chunks, some, one field without any, one chunk alone, an entity without knowledge.
MASK = np.array(
    [
        [[1, 1], [1, 1], [1, 1]],
        [[1, 0], [1, 1], [0, 1]],
        [[1, 1], [0, 0], [1, 0]],
        [[0, 0], [0, 1], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[1, 0], [1, 0], [1, 0]],
    ],
    bool,
)
NOTHING_KNOWN = 4
SMALL: dict[str, dict[str, Any]] = {
    "kar": {"shared_experts": 1, "own_experts": 2, "hidden_units": (8,)},
    "mlp": {"hidden_units": (9, 8)},
    "moe": {"experts": 3, "components": 10},
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    chunks = rng.normal(size=(BATCH, FIELDS, CHUNKS, TEXT)).astype("float32")
    return {"query": rng.normal(size=(BATCH, 1, WIDTH)).astype("float32"), "chunks": chunks, "mask": MASK}


def make(name: str, placement: str, *, any_width: bool = False, config: Any = CONFIG, **options: Any) -> Any:
    """An adaptor that is built, with every weight random."""
    options = SMALL.get(name, {}) | options
    adaptor = adaptors.get(name)(config, placement=placement, any_width=any_width, name="adaptor", **options)
    adaptor(tf.zeros((1, 1, WIDTH)), tf.zeros((1, FIELDS, CHUNKS, TEXT)))
    rng = np.random.default_rng(2)
    adaptor.set_weights([rng.uniform(0.2, 1, w.shape) * rng.choice([-1, 1], w.shape) for w in adaptor.get_weights()])
    if adaptor.esf_net is not None:
        adaptor.esf_net.adapt(rng.normal(size=TEXT), center=rng.normal(size=3), scale=rng.uniform(0.5, 2, 3))
    return adaptor


# The references. Each takes an adaptor's weights and computes the formula for one entity.


def f64(weight: Any) -> Array:
    return np.asarray(weight).astype("float64")


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


def means(chunks: Array, mask: Array) -> Array:
    """The mean of each field, `(fields, width)`."""
    return np.stack([c[m].mean(0) if m.any() else np.zeros(TEXT) for c, m in zip(chunks, mask, strict=True)])


def concat(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    mean = chunks[mask].mean(0)
    return mean[None] if not adaptor.weights else mean[None] @ f64(adaptor.get_weights()[0])


def mlp(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    x = means(chunks, mask).ravel()
    layers = list(zip(map(f64, adaptor._kernels), map(f64, adaptor._biases), strict=True))
    for kernel, bias in layers[:-1]:
        x = relu(x @ kernel + bias)
    kernel, bias = layers[-1]
    return (x @ kernel + bias)[None]


def moe(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    z = (means(chunks, mask).ravel() - f64(adaptor._center)) @ f64(adaptor._axes)
    gate = softmax(z @ f64(adaptor._gate))
    experts = zip(f64(adaptor._kernel), f64(adaptor._shift), strict=True)
    return sum(g * ((z - shift) @ kernel) for g, (kernel, shift) in zip(gate, experts, strict=True))[None]


def kar(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    mixed = np.zeros((FIELDS, WIDTH))
    for field, x in enumerate(means(chunks, mask)):
        if not mask[field].any():
            continue
        kernel, bias = map(f64, adaptor._gates[field])
        told = []
        for layers, count in (
            (adaptor._experts[0], adaptor.shared_experts),
            (adaptor._experts[1 + field], adaptor.own_experts),
        ):
            for expert in range(count):
                h = x
                for kernels, biases in layers:
                    h = relu(h @ f64(kernels)[expert] + f64(biases)[expert, 0])
                told.append(h)
        mixed[field] = softmax(x @ kernel + bias) @ np.stack(told)
    return mixed if adaptor.placement == "field" else mixed.ravel()[None] @ f64(adaptor._kernel)


def gate(esf_net: Any, query: Array, chunks: Array, mask: Array) -> Array:
    """ESFNet's weights of the chunks that are there, in their order."""
    there = chunks[mask]
    unit = there / np.linalg.norm(there, axis=-1, keepdims=True)
    average = f64(esf_net.catalogue_mean)
    scores = []
    for i, (field, e) in enumerate(zip(np.nonzero(mask)[0], there, strict=True)):
        cosines = np.delete(unit @ unit[i], i)
        seen = [cosines.max(initial=-np.inf), cosines.mean()] if len(cosines) else [0.0, 0.0]
        seen.append(unit[i] @ average / np.linalg.norm(average))
        hidden = (np.array(seen) - f64(esf_net._center)) / f64(esf_net._scale) @ f64(esf_net._statistics_kernel)
        hidden = hidden + e @ f64(esf_net._chunk_kernel) + query[0] @ f64(esf_net._context_kernel) + f64(esf_net._bias)
        scores.append((relu(hidden) @ f64(esf_net._score_kernel))[0] + f64(esf_net._field_bias)[field, 0])
    return 2 / (1 + np.exp(-np.array(scores)))


def align(alignment: Any, query: Array, chunks: Array, mask: Array, weights: Array) -> Array:
    weighted, fields = chunks[mask] * weights[:, None], np.nonzero(mask)[0]
    attended = []
    for head in range(CONFIG.num_heads):
        asked = query[0] @ f64(alignment._query_kernel)[:, head * TEXT : (head + 1) * TEXT]
        attended.append(softmax(weighted @ asked + f64(alignment._field_bias)[head, fields]) @ weighted)
    return (np.concatenate(attended) @ f64(alignment._output_kernel))[None]


def kser(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    return align(adaptor.alignment, query, chunks, mask, gate(adaptor.esf_net, query, chunks, mask))


def alignment_only(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    return align(adaptor.alignment, query, chunks, mask, np.ones(mask.sum()))


def esf_net_only(adaptor: Any, query: Array, chunks: Array, mask: Array) -> Array:
    weighted = gate(adaptor.esf_net, query, chunks, mask)[:, None] * chunks[mask]
    return (weighted.sum(0) / mask.sum() @ f64(adaptor._kernel))[None]


REFERENCES: dict[str, Callable[[Any, Array, Array, Array], Array]] = {
    "alignment_only": alignment_only,
    "concat": concat,
    "esf_net_only": esf_net_only,
    "kar": kar,
    "kser": kser,
    "mlp": mlp,
    "moe": moe,
}


def test_all_adaptors_are_tested() -> None:
    assert adaptors.names() == sorted(REFERENCES) == NAMES


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES),
        ("concat", {"any_width": True}),
        ("concat", {"any_width": True, "projected": True}),
        ("kar", {"shared_experts": 0}),
        ("kar", {"own_experts": 0, "hidden_units": ()}),
        ("mlp", {"hidden_units": ()}),
        ("moe", {"components": 1000, "noise": False}),
    ],
    ids=str,
)
def test_an_adaptor_computes_its_formula(
    name: str, options: dict[str, Any], placement: str, inputs: dict[str, Array]
) -> None:
    adaptor = make(name, placement, **options)
    expected = np.stack(
        [
            REFERENCES[name](adaptor, *(f64(inputs["query"][i]), f64(inputs["chunks"][i])), MASK[i])
            if i != NOTHING_KNOWN
            else np.zeros(adaptor.outputs((FIELDS, CHUNKS, TEXT)))
            for i in range(BATCH)
        ]
    )
    assert expected.shape == (BATCH, *adaptor.outputs((FIELDS, CHUNKS, TEXT)))
    assert np.std(expected, 0).max() > 0.1  # the entities differ
    # What stands in a chunk that is not there does not matter.
    hidden = {**inputs, "chunks": np.where(MASK[..., None], inputs["chunks"], np.float32(np.nan))}
    np.testing.assert_allclose(adaptor(**hidden), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    finite = np.where(MASK[..., None], inputs["chunks"], np.float32(50))
    got = adaptor.vectors_of_checked(tf.constant(inputs["query"]), tf.constant(finite), tf.constant(MASK))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(got[NOTHING_KNOWN], 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_give_what_an_entity_gives_alone(
    name: str, placement: str, inputs: dict[str, Array]
) -> None:
    adaptor = make(name, placement)
    together = adaptor(**inputs).numpy()
    of_any_size = tf.function(
        lambda query, chunks, mask: adaptor(query, chunks, mask=mask),
        input_signature=[
            tf.TensorSpec([None, 1, WIDTH]),
            tf.TensorSpec([None, FIELDS, CHUNKS, TEXT]),
            tf.TensorSpec([None, FIELDS, CHUNKS], tf.bool),
        ],
    )
    for rows in (slice(0, BATCH), slice(2, 3), slice(NOTHING_KNOWN, NOTHING_KNOWN + 1), slice(0, 0)):
        alone = of_any_size(*(tf.constant(values[rows]) for values in inputs.values()))
        np.testing.assert_allclose(alone, together[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_in_half_precision(name: str, placement: str, inputs: dict[str, Array]) -> None:
    adaptor, half = make(name, placement), make(name, placement, dtype="mixed_float16")
    expected = adaptor(**inputs).numpy()
    got = half(**inputs)
    assert got.dtype == tf.float16
    assert all(weight.dtype in (tf.float32, "float32") for weight in half.weights)
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())
    np.testing.assert_array_equal(got[NOTHING_KNOWN], 0)
    training = half.vectors_of_checked(
        *(tf.cast(inputs[n], tf.float16) for n in ("query", "chunks")), MASK, training=True
    )
    assert np.isfinite(training).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_that_begins_at_zero_learns(name: str, inputs: dict[str, Array]) -> None:
    """With half of them, all weights would get the same gradient, or none."""
    adaptor = make(name, "residual")
    adaptor.set_weights([np.random.default_rng(3).normal(size=w.shape, scale=0.3) for w in adaptor.get_weights()])
    if name in ("kser", "alignment_only", "esf_net_only"):  # these begin so, whatever the base
        adaptor = adaptors.get(name)(CONFIG, name="adaptor")
        adaptor(**inputs)
    adaptor.begin_at_zero()
    np.testing.assert_array_equal(adaptor(**inputs), 0)
    given = [tf.constant(inputs[argument]) for argument in ("query", "chunks", "mask")]
    target = tf.constant(np.random.default_rng(4).normal(size=(BATCH, 1, WIDTH)), tf.float32)
    known = MASK.any((1, 2))[:, None, None]
    optimizer = tf.keras.optimizers.Adam(0.02)
    optimizer.build(adaptor.trainable_weights)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            made = adaptor.vectors_of_checked(*given)
            loss = tf.reduce_sum(tf.where(known, made - target, 0) ** 2)
        gradients = tape.gradient(loss, adaptor.trainable_weights)
        seen = [(g, w) for g, w in zip(gradients, adaptor.trainable_weights, strict=True) if g is not None]
        optimizer.apply_gradients(seen)
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    if name == "moe":
        kernels = f64(adaptor._kernel)
        assert np.abs(kernels[0] - kernels[1]).max() > 1e-3, "the experts have become one"


# MoE: its principal components, and what is random in its training.


def test_moe_finds_the_principal_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    chunks = rng.normal(size=(40, FIELDS, CHUNKS, TEXT)).astype("float32") * np.linspace(0.2, 2, TEXT, dtype="float32")
    mask = rng.random((40, FIELDS, CHUNKS)) < 0.7
    mask[7] = False  # an entity without knowledge does not count
    KnowledgeStore.write(tmp_path / "store", np.arange(40), chunks, mask, fields=["a", "b", "c"], encoder="test")
    store = KnowledgeStore.open(tmp_path / "store")
    monkeypatch.setattr("kser_tf.layers.catalogue._BATCH", 16)
    adaptor = make("moe", "residual")
    assert adaptor.adapt(store) is None
    stored, _ = store.lookup(store.ids)
    known = mask.any((1, 2))
    x = np.stack([means(f64(c), m).ravel() for c, m in zip(stored[known], mask[known], strict=True)])
    assert len(x) == 39
    axes = f64(adaptor._axes)
    np.testing.assert_allclose(f64(adaptor._center), x.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(axes.T @ axes, np.eye(10), rtol=1e-5, atol=1e-5)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm((x - x.mean(0)) @ axes, axis=0), singular[:10], rtol=1e-4)
    assert (axes[np.abs(axes).argmax(0), np.arange(10)] > 0).all()
    assert {weight.name.rpartition("/")[2].split(":")[0] for weight in adaptor.non_trainable_weights} == {
        "center",
        "axes",
    }


def moe_in_training(inputs: dict[str, Array], rows: int = BATCH, **options: Any) -> tuple[Any, Array]:
    adaptor = make("moe", "residual", **options)
    given = (tf.constant(inputs[name][:rows]) for name in ("query", "chunks", "mask"))
    return adaptor, adaptor.vectors_of_checked(*given, training=True).numpy()


def test_what_moe_draws_is_told_by_the_batch(inputs: dict[str, Array]) -> None:
    adaptor, first = moe_in_training(inputs)
    np.testing.assert_array_equal(moe_in_training(inputs)[1], first)
    known = MASK.any((1, 2))
    assert (np.abs(first - adaptor(**inputs))[known] > 1e-4).any((1, 2)).all()
    assert np.abs(moe_in_training(inputs, 3)[1] - first[:3]).max() > 1e-4, "another batch, other numbers"
    np.testing.assert_array_equal(first[NOTHING_KNOWN], 0)
    adaptor, plain = moe_in_training(inputs, noise=False, dropout=0.0)
    np.testing.assert_array_equal(plain, adaptor(**inputs))


def test_on_average_moe_is_trained_on_what_it_predicts(inputs: dict[str, Array]) -> None:
    """With dropout alone, which is linear here; each row of the batch draws for itself."""
    adaptor = make("moe", "residual", noise=False)
    given = [np.repeat(inputs[name][:1], 8000, 0) for name in ("query", "chunks", "mask")]
    drawn = adaptor.vectors_of_checked(*map(tf.constant, given), training=True).numpy()
    expected = adaptor(*(values[:1] for values in given)).numpy()
    error = 5 * drawn.std(0) / np.sqrt(len(drawn))
    assert error.min() > 0
    assert (np.abs(drawn.mean(0) - expected[0]) < error).all()


def test_moes_noise_is_as_wide_as_it_says(inputs: dict[str, Array]) -> None:
    """Two experts: the difference of their scores tells what the noise was."""
    adaptor = make("moe", "residual", experts=2, dropout=0.0)
    adaptor._gate.assign(tf.zeros_like(adaptor._gate))
    adaptor._noise.assign(tf.zeros_like(adaptor._noise))
    adaptor._shift.assign([[-1.0] * 10, [0.0] * 10])
    adaptor._kernel.assign(tf.zeros_like(adaptor._kernel))
    # The first expert says z + 1, the second z: the mixture is z_0 + the first one's share.
    kernel = np.zeros(adaptor._kernel.shape)
    kernel[:, 0, 0] = 1
    adaptor._kernel.assign(kernel)
    given = [np.repeat(inputs[name][:1], 20000, 0) for name in ("query", "chunks", "mask")]
    drawn = adaptor.vectors_of_checked(*map(tf.constant, given), training=True).numpy()[:, 0, 0].astype("float64")
    share = drawn - (adaptor(*(values[:1] for values in given)).numpy()[0, 0, 0] - 0.5)
    noise = np.log(share / (1 - share))  # the difference of two
    np.testing.assert_allclose(noise.std(), np.sqrt(2) * (np.log(2) + 0.01), rtol=0.03)
    assert abs(noise.mean()) < 0.04


def test_kars_weights_begin_as_wide_as_the_authors(inputs: dict[str, Array]) -> None:
    tf.keras.utils.set_random_seed(0)
    adaptor = adaptors.get("kar")(RankingModelConfig(embedding_width=32), name="adaptor")
    adaptor(tf.zeros((1, 1, 32)), tf.zeros((1, 2, 1, 400)))
    shapes = sorted(tuple(weight.shape) for weight in adaptor.weights)
    own = [(5, 1, 32), (5, 1, 128), (5, 128, 32), (5, 400, 128)]
    shared = [(2, 1, 32), (2, 1, 128), (2, 128, 32), (2, 400, 128)]
    assert shapes == sorted([*shared, *own, *own, (400, 7), (400, 7), (7,), (7,)])
    first, second = (f64(layer[0]) for layer in adaptor._experts[1])
    for kernel, bound in ((first, 1 / 20), (second, 1 / np.sqrt(128))):
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)


# Choosing one.


@pytest.mark.parametrize("name", NAMES)
def test_where_an_adaptor_puts_its_vectors_by_default(name: str) -> None:
    placement = "residual" if name in RESIDUAL_BY_DEFAULT else "field"
    assert adaptors.get(name)(CONFIG).placement == placement


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"adaptor": "kare"},
            r"no adaptor is called 'kare'\. There are: alignment_only, concat, .*'package.module:Class'",
        ),
        ({"adaptor_options": {"experts": 3}}, r"adaptor_options: kser has no option 'experts'\. It has: placement\."),
        (
            {"adaptor": "kar", "adaptor_options": {"own_expert": 3}},
            r"kar has no option 'own_expert'\. Did you mean 'own_experts'\?",
        ),
        ({"adaptor": "concat", "adaptor_options": {"any_width": True}}, "concat has no option 'any_width'"),
        (
            {"adaptor": "mlp", "adaptor_options": {"placement": "everywhere"}},
            r"`placement` must be residual or field\. Received: 'everywhere'",
        ),
        ({"adaptor": "kser_tf.layers:ESFNet"}, "is not a subclass of kser_tf.models.adaptor.Adaptor"),
        ({"adaptor": "no_such_package:Own"}, "cannot be imported"),
    ],
)
@tfrs
def test_what_cannot_be_chosen(config: dict[str, Any], message: str, store: KnowledgeStore) -> None:
    with pytest.raises(ConfigError, match=message):
        served_world.ranking_model(store, **config)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kar", {"shared_experts": 0, "own_experts": 0}, "at least one expert"),
        ("moe", {"experts": 0}, r"`experts` must be at least 1\. Received: experts=0"),
        ("moe", {"dropout": 1.0}, r"below 1\. Received: dropout=1.0"),
    ],
)
def test_numbers_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptors.get(name)(CONFIG, **options)


def test_one_of_your_own() -> None:
    assert adaptors.get("kser_tf.models.adaptors.kar:KAR") is adaptors.get("kar")


# The whole ranking model with each adaptor.


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def store(store_path: Path) -> KnowledgeStore:
    return KnowledgeStore.open(store_path)


def ranking_model(store: Any, adaptor: str, placement: str | None = None, **config: Any) -> Any:
    options = SMALL.get(adaptor, {}) | ({} if placement is None else {"placement": placement})
    return served_world.ranking_model(store, adaptor=adaptor, adaptor_options=options, **config)


def train(model: Any, steps: int = 2) -> None:
    model.compile(tf.keras.optimizers.Adam(0.01))
    for seed in range(steps):
        model.train_step((model.indexer(served_world.rows(16, seed)), tf.constant([0.0, 1.0] * 8)))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, store: KnowledgeStore) -> Any:
    """One of each, adapted and trained for two steps."""
    made = ranking_model(store, request.param)
    made.adapt({"item": store})
    before = made.get_weights()
    made.keep_historical_embeddings(2)
    train(made)
    assert all(np.isfinite(weight).all() for weight in made.get_weights())
    changed = {w.name for w, b in zip(made.weights, before, strict=True) if not np.array_equal(w.numpy(), b)}
    assert changed == {weight.name for weight in made.trainable_weights}
    return made


@tfrs
def test_a_served_model_answers_as_it_predicts(model: Any, tmp_path: Path) -> None:
    rows = served_world.rows(48)
    own = served_world.own(model, rows)
    assert own.std() > 0.05  # else any answer would pass
    result = kser_tf.export(model, tmp_path / "ranker", examples=rows, signatures=())
    assert (result.baking["how"], result.baking["tables"]) == ("baked", ["item"])
    served = served_world.Served(result.path)
    np.testing.assert_allclose(served(**rows)["logit"], own, rtol=1e-5, atol=1e-5)
    alone = {name: values[:1] for name, values in rows.items()}
    np.testing.assert_allclose(served(**alone)["logit"], own[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(served_world.own(model, rows), own)


@tfrs
def test_a_model_folder_is_read_back(model: Any, store_path: Path, tmp_path: Path) -> None:
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model

    save_model(tmp_path, model, {"item": StoreReference.to(store_path)})
    model.save_weights(tmp_path / WEIGHTS_FILE)
    rows, loaded = served_world.rows(), load_model(tmp_path)
    np.testing.assert_array_equal(served_world.own(loaded, rows), served_world.own(model, rows))
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@tfrs
def test_knowledge_that_comes_with_a_request_counts_as_that_of_the_store(model: Any, store: KnowledgeStore) -> None:
    rows = served_world.rows(32)
    chunks, mask = store.lookup(rows["item"])
    chunks = np.where(mask[..., None], chunks, np.float32(np.nan))
    own = served_world.own(model, rows)
    given = served_world.own(model, {**rows, "item_chunks": chunks, "item_mask": mask})
    # An id that the vocabulary lacks is unknown to the recommender either way.
    np.testing.assert_allclose(given, own, rtol=1e-4, atol=1e-5)
    known = mask.any((1, 2))
    other = served_world.own(model, {**rows, "item_chunks": -2 * chunks, "item_mask": mask})
    assert known.sum() > 10
    assert np.mean(np.abs(other - own)[known] > 1e-3) > 0.8


@tfrs
def test_what_is_baked_and_what_is_knowledge_in_it(model: Any, store: KnowledgeStore) -> None:
    """For each entity the embedding, and behind it what comes in fields of its own."""
    [table] = model.bakeable_tables()
    adaptor = model.extractors["item"]
    ids = np.array([store.ids[3], store.ids[20], world.WITHOUT_KNOWLEDGE, "никто"], object)
    described = {name: values.numpy() for name, values in table.describe(tf.constant(ids)).items()}
    count, width = adaptor.outputs(store.vectors.shape[1:])
    assert described["embedding"].shape == (4, 4 if adaptor.placement == "residual" else 4 + count * width)
    vocabulary = model.schema.vocabularies["item"]
    index = [vocabulary.index(i) + 2 if i in vocabulary else UNKNOWN_INDEX for i in ids]
    base = model.embedding._tables["item"].get_weights()[0][index]
    knowledge = adaptor(base[:, None], *store.lookup(ids)).numpy().reshape(4, -1)
    if adaptor.placement == "residual":
        expected = {"embedding": base + knowledge, "aligned": knowledge}
    else:
        expected = {
            "embedding": np.concatenate([base, knowledge], 1),
            "aligned": np.concatenate([np.zeros_like(base), knowledge], 1),
        }
    for name, values in expected.items():
        np.testing.assert_allclose(described[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(described["aligned"][2:], 0)


@tfrs
@pytest.mark.parametrize("name", ["kar", "kser", "concat"])
def test_fields_of_knowledge_stand_beside_the_candidate_alone(name: str, store: KnowledgeStore) -> None:
    """Against a computation without `tf.unique`, row by row."""
    model = ranking_model(store, name, "field")
    rows = served_world.rows()
    embedded = model.embedding(model.indexer(rows))
    table = model.embedding._tables["item"].get_weights()[0]
    indexed = model.indexer(rows)
    for feature in ("item", "past_item"):
        np.testing.assert_array_equal(embedded[feature], table[indexed[feature]])
    base = table[indexed["item"]]
    chunks, mask = store.lookup(rows["item"])
    expected = model.extractors["item"](base[:, None], chunks, mask=mask).numpy()
    names = [feature.name for feature in model.core.schema.features if feature.kind == "knowledge"]
    assert names == [f"item/knowledge_{i}" for i in range(world.FIELDS if name == "kar" else 1)]
    assert names == [name for name in embedded if "/" in name]
    for i, field in enumerate(names):
        np.testing.assert_allclose(embedded[field], expected[:, i], rtol=1e-4, atol=1e-5)
    assert embedded[names[0]].shape[1] == (world.WIDTH if name == "concat" else 4)  # raw, since DIN takes any width


@tfrs
@pytest.mark.parametrize(
    "backbone", ["autoint", "dcn", "dcn_v2", "deepfm", "dien", "dlrm", "fibinet", "fignn", "xdeepfm"]
)
def test_every_backbone_takes_fields_of_knowledge(backbone: str, store: KnowledgeStore) -> None:
    from kser_tf.serving.baking import logits_when_baked

    model = ranking_model(store, "kar", backbone=backbone)
    rows = served_world.rows()
    own = served_world.own(model, rows)
    np.testing.assert_allclose(logits_when_baked(model, [rows], "float32"), own, rtol=1e-4, atol=1e-5)
    known = store.lookup(rows["item"])[1].any((1, 2))
    kernels = model.extractors["item"]._experts[0]
    for weight in tf.nest.flatten(kernels):
        weight.assign(weight * 3)
    changed = np.abs(served_world.own(model, rows) - own) > 1e-6
    np.testing.assert_array_equal(changed[~known], False)
    assert changed[known].mean() > 0.4
    raw = ranking_model(store, "concat", backbone=backbone)
    width = world.WIDTH if backbone in ("dcn", "dcn_v2", "dien") else 4
    assert raw.embedding(raw.indexer(rows))["item/knowledge_0"].shape == (64, width)


@tfrs
@pytest.mark.parametrize("name", NAMES)
def test_extractor_only_starts_from_the_base_and_trains_the_adaptor(name: str, store: KnowledgeStore) -> None:
    base, model = served_world.ranking_model(None), ranking_model(store, name, "residual")
    if name in ("alignment_only", "esf_net_only", "kser"):  # these begin at zero by themselves
        fresh = kser_tf.RankingModel(model.schema, model.config, {"item": store})
        fresh.make_weights()
        model = fresh
    model.adapt({"item": store})
    model.copy_backbone(base)
    rows = served_world.rows()
    np.testing.assert_array_equal(served_world.own(model, rows), served_world.own(base, rows))
    report = kser_tf.extractor_only(model, also=())
    assert report.parts is not None
    assert list(report.parts.extractor.values()) == [model.extractors["item"]]
    assert set(report.trained) == {weight.name for weight in model.extractors["item"].trainable_weights}
    train(model, 3)
    for ours, theirs in zip(model.core.get_weights(), base.core.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(served_world.own(model, rows) - served_world.own(base, rows)).max() > 1e-3


@tfrs
def test_a_base_has_no_inputs_for_fields_of_knowledge(store: KnowledgeStore) -> None:
    message = r"adaptor kar makes further fields .* set adaptor_options: \{placement: residual\}"
    with pytest.raises(ConfigError, match=message):
        ranking_model(store, "kar").copy_backbone(served_world.ranking_model(None))
    model = ranking_model(store, "kar")
    other = ranking_model(store, "kar", id_dropout=0.5)
    other.core.set_weights([2 * weight for weight in other.core.get_weights()])
    model.copy_backbone(other)
    np.testing.assert_array_equal(model.core.get_weights()[0], other.core.get_weights()[0])


@tfrs
def test_fields_of_knowledge_need_a_candidate(store: KnowledgeStore) -> None:
    import dataclasses

    from kser_tf.models.ranking_model import RankingModel

    schema = served_world.schema()
    features = [dataclasses.replace(f, entity=None) if f.name == "item" else f for f in schema.features]
    features = [dataclasses.replace(f, vocabulary="past") if f.name == "past_item" else f for f in features]
    vocabularies = {**schema.vocabularies, "past": schema.vocabularies["item"]}
    other = dataclasses.replace(schema, features=tuple(features), vocabularies=vocabularies)
    config = RankingModelConfig(adaptor="concat", embedding_width=4)
    with pytest.raises(ConfigError, match="no categorical feature names a item"):
        RankingModel(other, config, {"item": store})


@tfrs
def test_dropped_ids_keep_their_fields_of_knowledge(store: KnowledgeStore) -> None:
    model = ranking_model(store, "concat", id_dropout=1 - 1e-9)
    features = model.indexer(served_world.rows())
    held = features["item/row"].numpy() >= 0
    assert 10 < held.sum() < len(held)
    plain, dropped = model.embedding(features), model.embedding(features, training=True)
    unknown = model.embedding._tables["item"].get_weights()[0][UNKNOWN_INDEX]
    np.testing.assert_array_equal(dropped["item"].numpy()[held], np.tile(unknown, (held.sum(), 1)))
    np.testing.assert_array_equal(dropped["item"].numpy()[~held], plain["item"].numpy()[~held])
    np.testing.assert_array_equal(dropped["item/knowledge_0"], plain["item/knowledge_0"])


@tfrs
def test_histories_without_knowledge_need_no_memory(store: KnowledgeStore) -> None:
    model = ranking_model(store, "mlp")
    features = model.indexer(served_world.rows())
    expected = model(features, training=True)
    model.keep_historical_embeddings(0)
    model.embedding.refresh_historical_embeddings()
    np.testing.assert_array_equal(model(features, training=True), expected)


@tfrs
@pytest.mark.parametrize(("name", "how"), [("esf_net_only", "precomputed"), ("kar", "none")])
def test_a_model_that_is_not_baked_serves_its_knowledge(
    name: str, how: str, store: KnowledgeStore, tmp_path: Path
) -> None:
    """ESFNet's statistics are computed ahead where there is one."""
    model, rows = ranking_model(store, name), served_world.rows()
    result = kser_tf.export(model, tmp_path, examples=rows, bake=None, signatures=())
    assert result.baking["how"] == how
    own = served_world.own(model, rows)
    assert own.std() > 0.05
    np.testing.assert_allclose(served_world.Served(result.path)(**rows)["logit"], own, rtol=1e-5, atol=1e-5)


@tfrs
def test_an_export_with_fields_of_knowledge_passes_the_check(store: KnowledgeStore, tmp_path: Path) -> None:
    result = kser_tf.export(ranking_model(store, "kar"), tmp_path, examples=served_world.rows(), signatures=())
    report = kser_tf.check(result.path)
    assert report.ok, report.text()


@tfrs
def test_statistics_at_hand_change_nothing(store: KnowledgeStore) -> None:
    model = ranking_model(store, "esf_net_only")
    features = model.indexer(served_world.rows())
    model.adapt({"item": store})
    assert "item" in model.embedding._statistics.value
    np.testing.assert_allclose(model(features, training=True), model(features), rtol=1e-5, atol=1e-6)


@tfrs
def test_only_what_has_an_esf_net_weighs_chunks(store: KnowledgeStore, store_path: Path, tmp_path: Path) -> None:
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, save_model
    from kser_tf.pipelines.run_report import look_inside

    model = ranking_model(store, "esf_net_only")
    rows = np.arange(5, dtype=np.int32)
    base = model.embedding._tables["item"].get_weights()[0][model.embedding.store_row_indices("item")[rows]]
    chunks, mask = store.lookup(store.ids[rows])
    weights = model.embedding.chunk_weights("item", rows).numpy()
    for i in rows:
        expected = gate(model.extractors["item"].esf_net, f64(base[i : i + 1]), f64(chunks[i]), mask[i])
        np.testing.assert_allclose(weights[i][mask[i]], expected, rtol=1e-4)
    kar = ranking_model(store, "kar")
    with pytest.raises(ConfigError, match="without ESFNet does not weigh"):
        kar.embedding.chunk_weights("item", rows)
    save_model(tmp_path, kar, {"item": StoreReference.to(store_path)})
    kar.save_weights(tmp_path / WEIGHTS_FILE)
    trained = types.SimpleNamespace(folder=tmp_path, backbone="din", variant="all_parameters", seed=1)
    inside = look_inside(trained, {}, {})
    assert (inside["weights"]["fields"], inside["kept"], inside["faults"]) == ([], [], None)


# KSER itself, which other adaptors stand in for.


@tfrs
def test_kser_is_saved_under_the_names_that_it_had_before_there_were_others(
    store: KnowledgeStore, tmp_path: Path
) -> None:
    model = ranking_model(store, "kser")
    model.save_weights(tmp_path / "model.weights.h5")
    names: dict[str, tuple[int, ...]] = {}
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, value: names.update({name: value.shape}) if hasattr(value, "shape") else None)
    start = "layers/feature_embedding/extractors/knowledge_extractor"
    assert {name: shape for name, shape in names.items() if "extractors" in name} == {
        f"{start}/alignment/vars/0": (4, 8),
        f"{start}/alignment/vars/1": (8, 4),
        f"{start}/alignment/vars/2": (1, 2),
        f"{start}/esf_net/vars/0": (8, 8),
        f"{start}/esf_net/vars/1": (3, 8),
        f"{start}/esf_net/vars/2": (4, 8),
        f"{start}/esf_net/vars/3": (8,),
        f"{start}/esf_net/vars/4": (8, 1),
        f"{start}/esf_net/vars/5": (2, 1),
        f"{start}/esf_net/vars/6": (8,),
        f"{start}/esf_net/vars/7": (3,),
        f"{start}/esf_net/vars/8": (3,),
    }


@tfrs
def test_kser_is_the_default_and_the_layer(store: KnowledgeStore) -> None:
    """Bit by bit what `kser_tf.layers.KnowledgeExtractor` with the same weights adds."""
    model = served_world.ranking_model(store)
    ours = model.extractors["item"]
    layer = kser_tf.layers.KnowledgeExtractor(1, 8)
    chunks, mask = store.lookup(store.ids)
    base = model.embedding._tables["item"].get_weights()[0][model.embedding.store_row_indices("item")]
    layer(base[:, None], chunks, mask=mask)
    layer.set_weights(ours.get_weights())
    rows = np.arange(len(store.ids), dtype=np.int32)
    got = model.embedding.embed_entities("item", model.embedding.store_row_indices("item"), rows)
    np.testing.assert_array_equal(got, base + layer(base[:, None], chunks, mask=mask)[:, 0])
    fresh = kser_tf.RankingModel(model.schema, model.config, {"item": store})
    fresh.make_weights()
    assert not f64(fresh.extractors["item"].alignment._output_kernel).any()
