"""Every backbone against its paper's formula in float64, written out row by row; and what all of them must do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_world
import small_world as world
import tensorflow as tf

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.schema import DatasetSchema, Feature
from kser_tf.serving.check import TOLERANCE

pytestmark = pytest.mark.tfrs

CONFIGS = Path(__file__).parent.parent / "configs"
BATCH, LENGTH, WIDTH = 5, 3, 4
# Of the group `past`, the ratings come first here: the backbones put what can be compared with the candidate first.
GROUPS = {"past": ("past_item", "past_stars"), "seen": ("seen",)}
FLAT = ("item", "place", "tags", "price")
SCHEMA = DatasetSchema(
    features=(
        Feature("item", "categorical", "int64", vocabulary="item"),
        Feature("past_stars", "sequence", "int64", length=LENGTH, vocabulary="stars", group="past"),
        Feature("past_item", "sequence", "int64", length=LENGTH, vocabulary="item", group="past"),
        Feature("place", "categorical", "int64", vocabulary="place"),
        Feature("tags", "multi", "int64", length=2, vocabulary="tags"),
        Feature("seen", "sequence", "int64", length=LENGTH, vocabulary="place", group="seen"),
        Feature("price", "numeric", "float32"),
    ),
    user_id="user",
    item_id="item",
    vocabularies={"item": [1], "stars": [1], "place": [1], "tags": [1]},
)
# Whole histories, shorter ones, one with a gap, one that is empty.
MASKS = {
    "past": np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]], bool),
    "seen": np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]], bool),
}

Array = np.ndarray
Embeddings = Mapping[str, Array]


@pytest.fixture(scope="module")
def embeddings() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        feature.name: rng.normal(size=(BATCH, LENGTH, WIDTH) if feature.kind == "sequence" else (BATCH, WIDTH)).astype(
            "float32"
        )
        for feature in SCHEMA.features
    }


def make_core(
    name: str,
    embeddings: Embeddings,
    schema: DatasetSchema = SCHEMA,
    hidden_units: tuple[int, ...] = (6, 5),
    **options: Any,
) -> Any:
    """A backbone whose every weight is random."""
    from kser_tf.models import backbones

    core = backbones.get(name)(schema, hidden_units=hidden_units, **options)
    core(embeddings, MASKS)
    rng = np.random.default_rng(2)
    core.set_weights([rng.normal(scale=0.5, size=weight.shape) for weight in core.get_weights()])
    return core


# The references. Each takes a core's weights and computes what its paper says, one row at a time.


def weights(layer: Any) -> list[Array]:
    return [weight.astype("float64") for weight in layer.get_weights()]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


def deep(core: Any, x: Array) -> Array:
    for layer in core._deep:
        kernel, bias = weights(layer)
        x = relu(x @ kernel + bias)
    return x


def places(embeddings: Embeddings, row: int, group: str) -> list[Array]:
    """The places of a history, the oldest first, each with its features side by side."""
    return [
        np.concatenate([embeddings[name][row, t] for name in GROUPS[group]]).astype("float64")
        for t in reversed(range(LENGTH))
        if MASKS[group][row, t]
    ]


def fields(core: Any, embeddings: Embeddings, row: int) -> Array:
    """The field vectors, `(fields, width)`."""
    found = [embeddings[name][row].astype("float64") for name in FLAT]
    for group in GROUPS:
        kernel, bias = weights(core._place[group])
        there = [relu(place @ kernel + bias) for place in places(embeddings, row, group)]
        found.append(np.mean(there, 0) if there else np.zeros(WIDTH))
    return np.stack(found)


def dcn(core: Any, embeddings: Embeddings, row: int) -> Array:
    first = fields(core, embeddings, row).ravel()
    x = first
    for layer in core._crosses:
        kernel, bias = weights(layer)
        x = first * (x @ kernel[:, 0]) + bias + x
    return np.concatenate([x, deep(core, first)])


def deepfm(core: Any, embeddings: Embeddings, row: int) -> Array:
    v = fields(core, embeddings, row)
    pairs = sum(v[i] @ v[j] for i, j in itertools.combinations(range(len(v)), 2))
    return np.concatenate([v.ravel(), [pairs], deep(core, v.ravel())])


def xdeepfm(core: Any, embeddings: Embeddings, row: int) -> Array:
    first = fields(core, embeddings, row)
    rows, pooled = first, []
    for layer in core._cin:
        [kernel] = weights(layer)
        kernel = kernel.reshape(len(rows), len(first), -1)
        rows = np.stack(
            [
                sum(kernel[i, j, h] * rows[i] * first[j] for i in range(len(rows)) for j in range(len(first)))
                for h in range(kernel.shape[-1])
            ]
        )
        pooled.append(rows.sum(1))
    return np.concatenate([first.ravel(), *pooled, deep(core, first.ravel())])


def attention(layer: Any, e: Array) -> Array:
    """One interacting layer, head by head and field by field."""
    query, key, value, residual = (
        weights(part)[0] for part in (layer._query, layer._key, layer._value, layer._residual)
    )
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * layer.head_width, (head + 1) * layer.head_width)
        q, k, v = e @ query[:, part], e @ key[:, part], e @ value[:, part]
        heads.append(np.stack([softmax(k @ q[m]) @ v for m in range(len(e))]))
    return relu(np.concatenate(heads, 1) + e @ residual)


def autoint(core: Any, embeddings: Embeddings, row: int) -> Array:
    e = fields(core, embeddings, row)
    attended = e
    for layer in core._attention:
        attended = attention(layer, attended)
    return np.concatenate([attended.ravel(), deep(core, e.ravel())])


def fibinet(core: Any, embeddings: Embeddings, row: int) -> Array:
    e = fields(core, embeddings, row)
    importance = relu(relu(e.mean(1) @ weights(core._squeezed)[0]) @ weights(core._importance)[0])
    found = []
    for vectors, layer in ((e, core._plain), (e * importance[:, None], core._weighed)):
        [matrices] = weights(layer)
        for number, (i, j) in enumerate(itertools.combinations(range(len(e)), 2)):
            which = {"all": 0, "each": i, "interaction": number}[layer.bilinear]
            found.append((vectors[i] @ matrices[which]) * vectors[j])
    return np.concatenate([e.ravel(), deep(core, np.concatenate(found))])


def dlrm(core: Any, embeddings: Embeddings, row: int) -> Array:
    z = embeddings["price"][row].astype("float64")
    for layer in core._bottom:
        kernel, bias = weights(layer)
        z = relu(z @ kernel + bias)
    vectors = [z, *np.delete(fields(core, embeddings, row), FLAT.index("price"), 0)]
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    return deep(core, np.concatenate([z, dots]))


def fignn(core: Any, embeddings: Embeddings, row: int) -> Array:
    e = fields(core, embeddings, row)
    nodes = range(len(e))
    w = np.concatenate([weights(core._hears)[0], weights(core._tells)[0]])[:, 0]
    edges = np.zeros((len(e), len(e)))
    for i in nodes:
        others = [j for j in nodes if j != i]
        score = np.array([np.concatenate([e[i], e[j]]) @ w for j in others])
        edges[i, others] = softmax(np.where(score > 0, score, 0.2 * score))
    w_out, w_in, bias = weights(core._graph)
    kernel, recurrent, gru_bias = weights(core._update)
    first = states = attention(core._state, e)
    units = states.shape[1]
    for _ in range(core.steps):
        after = []
        for i in nodes:
            heard = sum(edges[i, j] * states[j] @ w_out[j] for j in nodes) @ w_in[i] + bias
            x = heard @ kernel + gru_bias
            # Keras' update gate says how much stays, the paper's how much is new.
            stays = sigmoid(x[:units] + states[i] @ recurrent[:, :units])
            reset = sigmoid(x[units : 2 * units] + states[i] @ recurrent[:, units : 2 * units])
            new = np.tanh(x[2 * units :] + (reset * states[i]) @ recurrent[:, 2 * units :])
            after.append(stays * states[i] + (1 - stays) * new + first[i])
        states = np.stack(after)
    node_weights = sigmoid(states.ravel() @ weights(core._weight)[0])
    return sum(node_weights[i] * deep(core, states[i]) for i in nodes)


def interests(core: Any, history: list[Array]) -> list[Array]:
    """What DIEN's first GRU makes of a history: Keras' GRU, with a bias of its own in the reset recurrent part."""
    kernel, recurrent, (bias, recurrent_bias) = weights(core._interest["past"])
    units = kernel.shape[1] // 3
    h, found = np.zeros(units), []
    for place in history:
        x, s = np.split(place @ kernel + bias, 3), np.split(h @ recurrent + recurrent_bias, 3)
        stays, reset = sigmoid(x[0] + s[0]), sigmoid(x[1] + s[1])
        h = stays * h + (1 - stays) * np.tanh(x[2] + reset * s[2])
        found.append(h)
    return found


def dien(core: Any, embeddings: Embeddings, row: int) -> Array:
    history = interests(core, places(embeddings, row, "past"))
    candidate = embeddings["item"][row].astype("float64")
    kernel, recurrent, bias = weights(core._evolution["past"])
    evolved = np.zeros(2 * WIDTH)
    if history:
        relevance = softmax(np.array([h @ weights(core._relevance["past"])[0] @ candidate for h in history]))
        for h, a in zip(history, relevance, strict=True):
            x, s = np.split(h @ kernel + bias, 3), np.split(evolved @ recurrent, 3)
            update = a * sigmoid(x[0] + s[0])
            new = np.tanh(x[2] + sigmoid(x[1] + s[1]) * s[2])
            evolved = (1 - update) * evolved + update * new
    seen = places(embeddings, row, "seen")
    flat = [embeddings[name][row] for name in FLAT]
    return deep(core, np.concatenate([*flat, evolved, np.mean(seen, 0) if seen else np.zeros(WIDTH)]))


REFERENCES: dict[str, Callable[[Any, Embeddings, int], Array]] = {
    "autoint": autoint,
    "dcn": dcn,
    "deepfm": deepfm,
    "dien": dien,
    "dlrm": dlrm,
    "fibinet": fibinet,
    "fignn": fignn,
    "xdeepfm": xdeepfm,
}
# Small, and with every number that could be mixed up with another one different from it.
OPTIONS: dict[str, dict[str, Any]] = {
    "autoint": {"attention_layers": 2, "num_heads": 2, "head_width": 3},
    "dcn": {"cross_layers": 3},
    "dlrm": {"bottom_units": (7,)},
    "fignn": {"steps": 2, "num_heads": 2, "head_width": 3},
    "xdeepfm": {"cin_units": (3, 2)},
}
NAMES = sorted(REFERENCES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, OPTIONS.get(name, {})) for name in NAMES),
        ("fibinet", {"bilinear": "each", "reduction": 2}),
        ("fibinet", {"bilinear": "all"}),
        ("fignn", {"steps": 1, "num_heads": 1, "head_width": 5}),
        ("dlrm", {"bottom_units": ()}),
        ("autoint", {"attention_layers": 1, "head_width": 2, "hidden_units": ()}),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(map(str, given.values())),
)
def test_a_backbone_computes_what_its_paper_says(
    name: str, options: dict[str, Any], embeddings: dict[str, Array]
) -> None:
    core = make_core(name, embeddings, **options)
    expected = np.stack([REFERENCES[name](core, embeddings, row) for row in range(BATCH)])
    assert np.abs(expected).max() < 1e4
    assert np.std(expected, 0).max() > 0.1  # the rows differ
    np.testing.assert_allclose(core(embeddings, MASKS).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_a_masked_place_does_not_matter(name: str, embeddings: dict[str, Array]) -> None:
    core = make_core(name, embeddings, **OPTIONS.get(name, {}))
    other = dict(embeddings)
    for group, members in GROUPS.items():
        for member in members:
            other[member] = np.where(MASKS[group][..., None], embeddings[member], np.float32(50))
    np.testing.assert_array_equal(core(other, MASKS), core(embeddings, MASKS))
    shown = {**MASKS, "past": np.ones_like(MASKS["past"])}
    assert not np.allclose(core(other, shown), core(embeddings, MASKS))


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_give_what_a_row_gives_alone(name: str, embeddings: dict[str, Array]) -> None:
    core = make_core(name, embeddings, **OPTIONS.get(name, {}))
    expected = core(embeddings, MASKS).numpy()
    any_batch = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), (embeddings, MASKS))
    traced = tf.function(core, input_signature=any_batch)
    for rows in (slice(0, 0), slice(2, 3), slice(None)):
        got = traced(*tf.nest.map_structure(lambda x, rows=rows: tf.constant(x[rows]), (embeddings, MASKS)))
        np.testing.assert_allclose(got, expected[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_weight_and_every_embedding(name: str, embeddings: dict[str, Array]) -> None:
    core = make_core(name, embeddings, **OPTIONS.get(name, {}))
    given = {feature: tf.constant(values) for feature, values in embeddings.items()}
    with tf.GradientTape() as tape:
        tape.watch(given)
        output = core(given, MASKS, training=True)
        loss = tf.reduce_sum(output * np.random.default_rng(3).normal(size=output.shape).astype("float32"))
    by_weight, by_embedding = tape.gradient(loss, (core.trainable_weights, given))
    found = {weight.name: gradient for weight, gradient in zip(core.trainable_weights, by_weight, strict=True)}
    found |= by_embedding
    assert [name for name, gradient in found.items() if gradient is None or not np.any(gradient)] == []
    assert len(core.trainable_weights) == len(core.weights) > 2 * len(core._deep)


def test_dien_adds_the_auxiliary_loss_in_training_alone(embeddings: dict[str, Array]) -> None:
    core = make_core("dien", embeddings, auxiliary_loss=0.5)
    core(embeddings, MASKS, training=True)
    total, count = 0.0, 0
    # Row 2 has a gap, so no place of it follows another.
    pairs = [(row, t) for row in range(BATCH) for t in range(LENGTH - 1) if MASKS["past"][row, t : t + 2].all()]
    assert pairs == [(0, 0), (0, 1), (1, 0), (4, 0), (4, 1)]
    for row, t in pairs:  # place t is the later one of the two
        history = interests(core, places(embeddings, row, "past"))
        before = history[MASKS["past"][row].sum() - 2 - t]
        following = np.concatenate([embeddings[name][row, t] for name in GROUPS["past"]])
        total -= np.log(sigmoid(before @ following))
        count += 1
        next_row = (row + 1) % BATCH
        if MASKS["past"][next_row, t]:
            other = np.concatenate([embeddings[name][next_row, t] for name in GROUPS["past"]])
            total -= np.log(1 - sigmoid(before @ other))
    [loss] = core.losses
    np.testing.assert_allclose(loss, 0.5 * total / count, rtol=1e-5)
    core(embeddings, MASKS, training=False)
    assert core.losses == []
    without = make_core("dien", embeddings)
    without(embeddings, MASKS, training=True)
    assert without.losses == []


def test_diens_auxiliary_loss_of_a_row_alone_has_no_negative(embeddings: dict[str, Array]) -> None:
    core = make_core("dien", embeddings, auxiliary_loss=1.0)
    alone = tf.nest.map_structure(lambda x: x[:1], (embeddings, MASKS))
    core(*alone, training=True)
    history, steps = interests(core, places(embeddings, 0, "past")), places(embeddings, 0, "past")
    expected = -np.mean([np.log(sigmoid(history[t] @ steps[t + 1])) for t in range(2)])
    np.testing.assert_allclose(core.losses[0], expected, rtol=1e-5)


def test_dlrm_without_numeric_features_has_no_bottom_part(embeddings: dict[str, Array]) -> None:
    schema = DatasetSchema(
        features=tuple(feature for feature in SCHEMA.features if feature.kind != "numeric"),
        user_id="user",
        item_id="item",
        vocabularies=SCHEMA.vocabularies,
    )
    given = {feature.name: embeddings[feature.name] for feature in schema.features}
    core = make_core("dlrm", given, schema, hidden_units=())
    full = make_core("dlrm", embeddings, hidden_units=())
    for group in GROUPS:
        full._place[group].set_weights(core._place[group].get_weights())
    v = np.delete(fields(full, embeddings, 0), FLAT.index("price"), 0)
    dots = [v[i] @ v[j] for i in range(len(v)) for j in range(i)]
    np.testing.assert_allclose(core(given, MASKS)[0], dots, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fibinet", {"bilinear": "some"}, "`bilinear` must be one of all, each, interaction. Received: 'some'"),
        ("fibinet", {"reduction": 0}, "`reduction` must be at least 1. Received: 0"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    from kser_tf.models import backbones

    with pytest.raises(ValueError, match=message):
        backbones.get(name)(SCHEMA, **options)


@pytest.mark.parametrize("name", ["fibinet", "fignn"])
def test_one_field_alone_is_refused_where_pairs_are_needed(name: str) -> None:
    from kser_tf.models import backbones

    schema = DatasetSchema(features=SCHEMA.features[:1], user_id="user", item_id="item", vocabularies={"item": [1]})
    with pytest.raises(ValueError, match=r"needs at least two\. Received: 1"):
        backbones.get(name)(schema)


# The whole ranking model with each backbone.


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, store_path: Path) -> Any:
    return served_world.ranking_model(KnowledgeStore.open(store_path), request.param)


@pytest.mark.usefixtures("check_in_process")
def test_a_model_is_exported_and_passes_the_check(model: Any, tmp_path: Path) -> None:
    """With the signature that holds all of the backbone; test_signatures.py has the others."""
    rows = served_world.rows(32)
    assert np.std(served_world.own(model, rows)) > 500 * TOLERANCE  # else any answer would pass
    exported = kser_tf.export(model, tmp_path / "ranker", examples=rows, signatures=())
    report = kser_tf.check(exported.path)
    assert report.ok, report.text()


def test_a_model_folder_is_read_back(model: Any, store_path: Path, tmp_path: Path) -> None:
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model

    save_model(tmp_path, model, {"item": StoreReference.to(store_path)})
    model.save_weights(tmp_path / WEIGHTS_FILE)
    rows = served_world.rows(16)
    np.testing.assert_array_equal(served_world.own(load_model(tmp_path), rows), served_world.own(model, rows))


@pytest.mark.parametrize("name", NAMES)
def test_extractor_only_leaves_the_core_as_it_was(name: str, store_path: Path) -> None:
    model = served_world.ranking_model(KnowledgeStore.open(store_path), name)
    kser_tf.extractor_only(model)
    model.compile(tf.keras.optimizers.Adam(0.01))
    core, output = model.core.get_weights(), model.output_layer.get_weights()
    model.train_step((model.indexer(served_world.rows(16)), tf.constant([0.0, 1.0] * 8)))
    for before, after in zip(core, model.core.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(output[0], model.output_layer.get_weights()[0])
    assert model.core.weights
    assert not model.core.trainable_weights


def test_a_report_shows_the_names_that_people_know() -> None:
    from kser_tf.models import backbones
    from kser_tf.pipelines.report_figures import backbone_name

    assert {name: backbone_name(name) for name in [*backbones.names(), "other"]} == {
        "autoint": "AutoInt",
        "dcn": "DCN",
        "dcn_v2": "DCN-v2",
        "deepfm": "DeepFM",
        "dien": "DIEN",
        "din": "DIN",
        "dlrm": "DLRM",
        "fibinet": "FiBiNET",
        "fignn": "FiGNN",
        "xdeepfm": "xDeepFM",
        "other": "other",
    }


def test_the_configuration_for_comparing_backbones_has_them_all() -> None:
    from kser_tf.models import backbones
    from kser_tf.pipelines.run import load_run_config, train_config

    config = load_run_config(CONFIGS / "backbones-movielens-1m.yaml", data="folder")
    assert sorted(config.train.backbones) == backbones.names()
    for name in config.train.backbones:
        assert train_config(config, {}, name, config.serve.variant, 1).model.backbone == name
