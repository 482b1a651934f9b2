"""Profiles that are adapted to what users like: against NumPy, on data where it is known, and within models and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world as world

from kser_tf import KnowledgeStore
from kser_tf.layers import KnowledgeLookup, KnowledgeProfile, Past, adapt_to_preferences

FIELDS, CHUNKS, WIDTH, ENTITIES, LENGTH = 2, 2, 4, 120, 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeStore:
    """Entities with knowledge in two fields, of some only in one, and of the last of none."""
    rng = np.random.default_rng(4)
    chunks = rng.normal(size=(ENTITIES, FIELDS, CHUNKS, WIDTH)) * [2.5, 1.0, 1.0, 1.0] + 2.0
    mask = rng.random((ENTITIES, FIELDS, CHUNKS)) < 0.8
    mask[:, :, 0] |= rng.random((ENTITIES, FIELDS)) < 0.7
    mask[-1] = False
    folder = tmp_path_factory.mktemp("stores") / "store"
    KnowledgeStore.write(
        folder,
        np.arange(ENTITIES),
        chunks.astype("float32"),
        mask,
        fields=["plot", "style"],
        dtype="float32",
        encoder="test",
    )
    return KnowledgeStore.open(folder)


def profile_of(store: KnowledgeStore, dims: int = 3) -> KnowledgeProfile:
    profile = KnowledgeProfile(dims)
    profile.build((None, FIELDS, CHUNKS, WIDTH))
    profile.adapt(store)
    return profile


def parts_by_hand(store: KnowledgeStore) -> np.ndarray:
    """What each field of each entity says, seen from the catalogue's middle, float64; a last row of zeros for row -1."""
    chunks, mask = store.lookup(store.ids)
    count = mask.sum((1, 2))
    total = np.where(mask[..., None], chunks, 0).astype("float64").sum((1, 2))
    center = (total[count > 0] / count[count > 0, None]).mean(0)
    parts = np.where(mask[..., None], chunks - center, 0).sum(2) / np.maximum(count, 1)[:, None, None]
    return np.concatenate([parts.reshape(ENTITIES, -1), np.zeros((1, FIELDS * WIDTH))])


def examples_of(store: KnowledgeStore, rows: int = 4000, *, stars: bool = True, seed: int = 1) -> list[Past]:
    """Users who like what has much, or little, of the second number of the field "style", in two batches.

    The first number of both fields differs most among entities, and nobody cares for it.
    """
    rng = np.random.default_rng(seed)
    liked_for = parts_by_hand(store)[:-1, WIDTH + 1]
    taste = rng.choice([-1.0, 1.0], rows)
    candidate = rng.integers(-1, ENTITIES, rows)
    history = rng.integers(-1, ENTITIES, (rows, LENGTH))
    there = np.arange(LENGTH) < rng.integers(0, LENGTH + 1, (rows, 1))
    likes = (
        taste[:, None] * np.where(history >= 0, liked_for[history], 0) + rng.normal(scale=0.3, size=history.shape) > 0
    )
    feedback = np.stack([likes, ~likes], -1) if stars else np.zeros((rows, LENGTH, 0))
    if not stars:
        history = np.where(likes, history, -1)
    labels = taste * np.where(candidate >= 0, liked_for[candidate], 0) + rng.normal(scale=0.3, size=rows) > 0
    whole = (
        candidate.astype("int32"),
        history.astype("int32"),
        there,
        feedback.astype("float32"),
        labels.astype("float32"),
    )
    return [Past(*(each[:2500] for each in whole)), Past(*(each[2500:] for each in whole))]


def directions_by_hand(store: KnowledgeStore, examples: list[Past], dims: int) -> tuple[np.ndarray, int]:
    """The docstring's formulas, row by row, in float64."""
    parts, rows = parts_by_hand(store), []
    for batch in examples:
        for candidate, history, there, feedback, label in zip(*batch, strict=True):
            if candidate >= 0 and there.any():
                rows.append((candidate, history[there], feedback[there].astype("float64"), float(label)))
    labels = np.array([label for *_, label in rows])
    surprise = labels - labels.mean()
    candidates = np.array([candidate for candidate, *_ in rows])
    for entity in np.unique(candidates):
        own = candidates == entity
        surprise[own] -= surprise[own].sum() / (own.sum() + 10)
    mean = np.array([feedback.mean(0) for _, _, feedback, _ in rows])
    if numbers := mean.shape[1]:
        centred = mean - mean.mean(0)
        explaining = np.linalg.inv(centred.T @ centred + 10 * np.eye(numbers)) @ centred.T @ surprise
        surprise = surprise - centred @ explaining
    products = []
    for v in range(max(numbers, 1)):
        users = []
        for _, history, feedback, _ in rows:
            thought = feedback[:, v] - feedback[:, v].mean() if numbers else np.ones(len(history))
            users.append((thought[:, None] * parts[history]).sum(0) / np.sqrt(len(history)))
        products.append((parts[candidates] * surprise[:, None]).T @ np.array(users))
    worth = np.linalg.svd(np.reshape(products, (len(products), -1)))[0][:, 0]
    covariance = parts[candidates].T @ parts[candidates] / len(rows)
    inverse = np.linalg.inv(covariance + 0.1 * np.linalg.eigvalsh(covariance).max() * np.eye(len(covariance)))
    metric = inverse @ sum(w * product for w, product in zip(worth, products, strict=True)) @ inverse
    metric = metric + metric.T if np.trace(metric) > 0 else -metric - metric.T
    values, vectors = np.linalg.eigh(metric)
    order = np.argsort(-values)[:dims]
    return vectors[:, order] * np.sqrt(np.maximum(values[order], 0)), len(rows)


@pytest.mark.parametrize("stars", [True, False])
def test_as_the_formula_has_it(store: KnowledgeStore, stars: bool) -> None:
    profile, examples = profile_of(store), examples_of(store, stars=stars)
    learned_from = adapt_to_preferences(profile, KnowledgeLookup(store), examples)
    directions, count = directions_by_hand(store, examples, 3)
    assert learned_from == count
    vectors = parts_by_hand(store)[: ENTITIES - 1] @ directions
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = profile(*store.lookup(store.ids[:-1])).numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-5, atol=1e-3)
    assert not profile(*store.lookup(store.ids[-1:])).numpy().any()
    adapt_to_preferences(again := profile_of(store), KnowledgeLookup(store), examples)
    np.testing.assert_array_equal(again.directions, profile.directions)


@pytest.mark.parametrize("stars", [True, False])
def test_alike_is_then_what_the_same_users_like(store: KnowledgeStore, stars: bool) -> None:
    """Of the texts alone the number that differs most decides; of the preferences the one that users go by."""
    cared_for = np.sign(parts_by_hand(store)[: ENTITIES - 1, WIDTH + 1])
    together = cared_for[:, None] * cared_for
    agreement = []
    profile = profile_of(store, dims=1)
    for _ in range(2):
        found = profile(*store.lookup(store.ids[:-1])).numpy()
        agreement.append((np.sign(found @ found.T) * together).mean())
        adapt_to_preferences(profile, KnowledgeLookup(store), examples_of(store, stars=stars))
    assert agreement[0] < 0.3
    assert agreement[1] > 0.7


def test_examples_that_tell_nothing_leave_the_texts(store: KnowledgeStore) -> None:
    profile = profile_of(store)
    before = profile.directions
    batch = examples_of(store)[0]
    same = batch._replace(labels=np.ones_like(batch.labels))
    unknown = batch._replace(candidate=np.full_like(batch.candidate, -1))
    new = batch._replace(there=np.zeros_like(batch.there))
    for nothing in ([], [unknown], [new], [same]):
        assert adapt_to_preferences(profile, KnowledgeLookup(store), nothing) == 0
        np.testing.assert_array_equal(profile.directions, before)


def test_what_stands_where_nothing_is_does_not_matter(store: KnowledgeStore) -> None:
    examples = examples_of(store)
    adapt_to_preferences(expected := profile_of(store), KnowledgeLookup(store), examples)
    rubbish = [
        each._replace(
            history=np.where(each.there, each.history, 7),
            feedback=np.where(each.there[..., None], each.feedback, np.nan),
        )
        for each in examples
    ]
    adapt_to_preferences(profile := profile_of(store), KnowledgeLookup(store), rubbish)
    np.testing.assert_array_equal(profile.directions, expected.directions)


def test_the_order_of_the_examples_does_not_matter_not_even_between_the_passes(store: KnowledgeStore) -> None:
    """Data sets that are shuffled anew for each pass are what people have."""
    (one, other), lookup = examples_of(store), KnowledgeLookup(store)
    adapt_to_preferences(expected := profile_of(store), lookup, [one, other])

    class Shuffled:
        passes = 0

        def __iter__(self) -> Iterator[Past]:
            self.passes += 1
            order = np.random.default_rng(self.passes).permutation(len(one.labels))
            yield from ([other] if self.passes % 2 else [])
            yield Past(*(each[order] for each in one))
            yield from ([] if self.passes % 2 else [other])

    adapt_to_preferences(profile := profile_of(store), lookup, Shuffled())
    np.testing.assert_allclose(profile.directions, expected.directions, rtol=1e-5, atol=1e-5)


def test_labels_must_be_one_for_each_candidate(store: KnowledgeStore) -> None:
    batch = examples_of(store)[0]
    with pytest.raises(ValueError, match=r"one label for each candidate\. Received: labels of shape \(2500, 2\)"):
        adapt_to_preferences(
            profile_of(store), KnowledgeLookup(store), [batch._replace(labels=np.zeros((2500, 2), "float32"))]
        )


class Again:
    """A data set of `(features, labels)` that counts how often it is read."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.times = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.batches)


@pytest.mark.tfrs
def test_training_adapts_to_its_own_examples_once_for_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directions that a trained model holds are those of its training examples; another run on the same reads them."""
    from kser_tf.models.model_folder import load_model
    from kser_tf.models.ranking_model import RankingModel
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.pipelines.train import TrainConfig, train

    prepared, stored = world.make_prepared(tmp_path), world.make_store(tmp_path)
    settings: dict[str, Any] = {
        "prepared": str(prepared),
        "stores": {"item": str(stored)},
        "strategy": "all_parameters",
        "epochs": 1,
        "batch_size": 64,
        "tensorboard": False,
        "model": {"embedding_width": 4, "hidden_units": (8,)},
    }

    def trained(name: str, user_knowledge: Any, **more: Any) -> Any:
        from kser_tf.models.config import RankingModelConfig

        config = RankingModelConfig(**{**settings["model"], "user_knowledge": user_knowledge})
        train(TrainConfig(**{**settings, **more, "model": config, "output": str(tmp_path / name)}))
        return load_model(tmp_path / name)

    model, by_hand = trained("first", "preferences"), trained("by-hand", "texts")
    learned, texts = (made.embedding.entity_profiles["item"].directions for made in (model, by_hand))
    assert np.abs(learned - texts).max() > 0.01
    examples = Again(list(IndexedExamples(prepared, "train", {"item": KnowledgeStore.open(stored)}).batches(64)))
    assert by_hand.adapt_to_preferences(examples) > 0
    assert examples.times == 2
    np.testing.assert_allclose(by_hand.embedding.entity_profiles["item"].directions, learned, rtol=1e-5, atol=1e-5)

    fewer = trained("fewer", "preferences", training_users=0.5)
    assert np.abs(fewer.embedding.entity_profiles["item"].directions - learned).max() > 1e-3

    base = trained("base", "preferences", strategy="base", stores={})
    assert base.user_knowledge is None

    def refuse(*_: Any) -> int:
        raise AssertionError("was learned again")

    monkeypatch.setattr(RankingModel, "adapt_to_preferences", refuse)
    second = trained("second", "preferences", seed=2)
    np.testing.assert_array_equal(second.embedding.entity_profiles["item"].directions, learned)
