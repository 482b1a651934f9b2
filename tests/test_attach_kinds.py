"""What an embedding layer may look like, and what is refused, with the reason and the way that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_zoo import KERAS_2, MOVIE_VOCABULARY, MOVIES, MOVIES_WITHOUT_KNOWLEDGE, Stores, make_stores

import kser_tf
from kser_tf.errors import AttachError, LayerPathError
from kser_tf.layer_paths import find_layer

layers = tf.keras.layers
ROWS = len(MOVIES)
TITLES = tf.constant(MOVIES)
HAS_KNOWLEDGE = np.array([title not in MOVIES_WITHOUT_KNOWLEDGE for title in MOVIES])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


class One(tf.keras.Model):
    """A model around one embedding layer, which it calls with whatever it is called with."""

    def __init__(self, movie: Any) -> None:
        super().__init__()
        self.movie = movie
        self.head = layers.Dense(1)

    def call(self, ids: Any) -> Any:
        return self.head(self.movie(ids))


def strings() -> Any:
    return tf.keras.Sequential(
        [layers.StringLookup(vocabulary=MOVIE_VOCABULARY, name="ids"), layers.Embedding(33, 4, name="table")]
    )


def built(movie: Any, ids: Any = TITLES) -> One:
    model = One(movie)
    model(ids)
    return model


def attached(model: Any, into: Any, **options: Any) -> Any:
    return kser_tf.attach(model, into=into, verbose=False, **options)


def has_effect(model: Any, ids: Any, before: Any, path: str = "movie") -> np.ndarray:
    """Gives the extractor weights, and says at which places the result is another one than before."""
    np.testing.assert_array_equal(np.asarray(model(ids)), before)
    alignment = model.attached_knowledge.movie.extractor.alignment
    alignment.set_weights([np.ones_like(weight) for weight in alignment.get_weights()])
    return (np.asarray(model(ids)) != before)[..., 0]


def test_raw_ids_that_the_vocabulary_does_not_know_get_knowledge_too(stores: Stores) -> None:
    model = built(strings())
    before = model(TITLES).numpy()
    changed = has_effect(attached(model, {"movie": stores.movies}), TITLES, before)
    np.testing.assert_array_equal(changed, HAS_KNOWLEDGE)


def test_an_inner_embedding_takes_its_vocabulary_from_the_lookup_before_it(stores: Stores) -> None:
    model = built(strings())
    before = model(TITLES).numpy()
    model = attached(model, {"movie.table": stores.movies})
    np.testing.assert_array_equal(np.asarray(model(TITLES)), before)
    knowledge = model.attached_knowledge.movie_table
    knowledge.extractor.alignment.set_weights([np.ones_like(w) for w in knowledge.extractor.alignment.get_weights()])
    known = HAS_KNOWLEDGE & np.isin(MOVIES, MOVIE_VOCABULARY)
    np.testing.assert_array_equal((model(TITLES).numpy() != before)[:, 0], known)
    assert "indices of 'ids'" in str(kser_tf.attachments(model))


def test_hashed_ids(stores: Stores) -> None:
    ids = tf.range(ROWS, dtype=tf.int64)
    model = built(tf.keras.Sequential([layers.Hashing(16), layers.Embedding(16, 4, name="table")]), ids)
    before = model(ids).numpy()
    with pytest.raises(AttachError, match=r"cannot be turned back. Attach to the whole of 'movie'"):
        attached(model, {"movie.table": stores.movie_numbers})
    changed = has_effect(attached(model, {"movie": stores.movie_numbers}), ids, before)
    np.testing.assert_array_equal(changed, HAS_KNOWLEDGE)


def test_a_layer_of_ones_own(stores: Stores) -> None:
    class OwnEmbedding(layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(name="table", shape=(7, 4), initializer="uniform")

        def call(self, ids: Any) -> Any:
            return tf.gather(self.table, tf.cast(ids, tf.int64) % 7)

    ids = tf.range(ROWS, dtype=tf.int64)
    with pytest.raises(
        AttachError, match=r"has not been built, so that its width is not known. Call the model on a batch"
    ):
        attached(One(OwnEmbedding()), {"movie": stores.movie_numbers})
    model = built(OwnEmbedding(), ids)
    before = model(ids).numpy()
    changed = has_effect(attached(model, {"movie": stores.movie_numbers}), ids, before)
    np.testing.assert_array_equal(changed, HAS_KNOWLEDGE)


def test_pooling_inside_is_refused_and_the_way_that_is_named_works(stores: Stores) -> None:
    pooled = [
        layers.StringLookup(vocabulary=MOVIE_VOCABULARY, mask_token=""),
        layers.Embedding(34, 4, mask_zero=True, name="table"),
        layers.GlobalAveragePooling1D(name="mean"),
    ]
    ids = tf.constant([[MOVIES[9], MOVIES[10]], [MOVIES[0], MOVIES[1]], [MOVIES[9], ""]])
    model = built(tf.keras.Sequential(pooled), ids)
    before = np.asarray(model(ids))
    with pytest.raises(
        AttachError, match=r"pools .* in 'mean' \(GlobalAveragePooling1D\).*into=\{'movie.table': \.\.\.\}"
    ):
        attached(model, {"movie": stores.movies})
    model = attached(model, {"movie.table": stores.movies})
    np.testing.assert_array_equal(np.asarray(model(ids)), before)  # the mask passes, too
    alignment = model.attached_knowledge.movie_table.extractor.alignment
    alignment.set_weights([np.ones_like(weight) for weight in alignment.get_weights()])
    np.testing.assert_array_equal((np.asarray(model(ids)) != before)[:, 0], [True, False, True])


def test_the_mask_of_a_whole_sequential_passes(stores: Stores) -> None:
    class Reader(One):
        def __init__(self, movie: Any) -> None:
            super().__init__(movie)
            self.gru = layers.GRU(3)

        def call(self, ids: Any) -> Any:
            return self.head(self.gru(self.movie(ids)))

    def score(mask_zero: bool, attach: bool) -> np.ndarray:
        tf.keras.utils.set_random_seed(4)
        lookup = layers.StringLookup(vocabulary=MOVIE_VOCABULARY, mask_token="")
        model = Reader(tf.keras.Sequential([lookup, layers.Embedding(34, 4, mask_zero=mask_zero)]))
        ids = tf.constant([[MOVIES[9], MOVIES[10], "", ""], [MOVIES[1], "", "", ""]])
        model(ids)
        return np.asarray((attached(model, {"movie": stores.movies}) if attach else model)(ids))

    np.testing.assert_array_equal(score(True, True), score(True, False))
    assert (score(True, True) != score(False, True)).all(), "where there is no mask, the padding counts"


@pytest.mark.skipif(KERAS_2, reason="keras-rs is of Keras 3")
def test_embeddings_of_keras_rs(stores: Stores) -> None:
    import keras_rs

    several = tf.zeros((2, 3), tf.int64)
    with pytest.raises(AttachError, match=r"'movie' \(EmbedReduce, combiner='mean'\) pools .*at_output="):
        attached(built(keras_rs.layers.EmbedReduce(ROWS, 4), several), {"movie": stores.movie_numbers})
    table = keras_rs.layers.TableConfig("table", ROWS, 4, placement="default_device")
    feature = keras_rs.layers.FeatureConfig("id", table, (ROWS,), (ROWS, 4))

    class Distributed(One):
        def call(self, ids: Any) -> Any:
            return self.head(self.movie({"id": ids})["id"])

    model, ids = Distributed(keras_rs.layers.DistributedEmbedding({"id": feature})), tf.range(ROWS, dtype=tf.int64)
    before = np.asarray(model(ids))
    with pytest.raises(AttachError, match=r"inside it.*'(movie\..*\.id)'") as refused:
        attached(model, {"movie": stores.movie_numbers})
    path = re.findall(r"\('(movie\..*?)'\)", str(refused.value))[0]
    model = attached(model, {path: stores.movie_numbers}, output_initializer="ones")
    np.testing.assert_array_equal((np.asarray(model(ids)) != before)[:, 0], HAS_KNOWLEDGE)


def test_a_tower_of_several_inputs_is_refused(stores: Stores) -> None:
    one, two = tf.keras.Input((), dtype="int64"), tf.keras.Input((), dtype="int64")
    table = layers.Embedding(ROWS, 4, name="table")
    tower = tf.keras.Model([one, two], layers.Add()([table(one), table(two)]))
    with pytest.raises(AttachError, match=r"'movie' has 2 inputs, not ids alone.*\('movie.table'\)"):
        attached(One(tower), {"movie": stores.movie_numbers})


def test_ragged_ids(stores: Stores) -> None:
    numbers = tf.ragged.constant([[9, 10], [0], []], dtype=tf.int64)
    movie = layers.Embedding(ROWS, 4)
    model = built(movie, tf.range(3))
    before = movie(numbers)
    attached(model, {"movie": stores.movie_numbers}, output_initializer="ones")
    after = movie(numbers)
    assert isinstance(after, tf.RaggedTensor)
    np.testing.assert_array_equal(after.row_lengths(), [2, 1, 0])
    np.testing.assert_array_equal((after.flat_values != before.flat_values).numpy().any(1), [True, True, False])

    ids = tf.ragged.constant([[MOVIES[9], MOVIES[10]], [MOVIES[0]], []])
    knowledge = kser_tf.layers.KnowledgeEmbedding(stores.movies, extractor={"output_initializer": "ones"})
    knowledge(tf.ones((1, 4)), tf.constant([MOVIES[9]]))
    ragged = knowledge.call(ids.with_flat_values(tf.ones((3, 4))), ids)
    dense = knowledge(tf.ones((3, 4)), ids.flat_values)
    np.testing.assert_array_equal(ragged.flat_values, dense)
    np.testing.assert_array_equal((dense.numpy() != 1).all(1), [True, True, False])


def test_an_id_is_aligned_once_wherever_it_stands(stores: Stores) -> None:
    model = built(strings(), TITLES[:, None])
    model = attached(model, {"movie": stores.movies})
    knowledge, seen = model.attached_knowledge.movie, []
    aligned = knowledge.aligned
    knowledge.aligned = lambda query, ids, **training: seen.append(ids.numpy().tolist()) or aligned(query, ids)
    model(tf.constant([[MOVIES[9], MOVIES[10], MOVIES[9]], [MOVIES[9], MOVIES[0], MOVIES[10]]]))
    assert seen == [[title.encode() for title in (MOVIES[9], MOVIES[10], MOVIES[0])]]


def test_residual_is_the_extractor_of_the_layers(stores: Stores) -> None:
    """Against the extractor called row by row, as one would by hand."""
    knowledge = kser_tf.layers.KnowledgeEmbedding(stores.movies, extractor={"output_initializer": "glorot_uniform"})
    embedded = tf.random.stateless_normal((ROWS, 4), (1, 2))
    result = knowledge(embedded, TITLES)
    chunks, mask = stores.movies.lookup(np.array(MOVIES))
    for row in range(ROWS):
        one = slice(row, row + 1)
        aligned = knowledge.extractor(embedded[one, None], chunks[one], mask=mask[one])[:, 0]
        np.testing.assert_allclose(result[one], embedded[one] + aligned, rtol=1e-5, atol=1e-5)


def test_append_for_a_model_that_is_yet_to_be_built(stores: Stores) -> None:
    model = attached(One(strings()), {"movie": stores.movies}, mode="append", output_initializer="glorot_uniform")
    model.compile("sgd", "mse")
    model.fit(TITLES, tf.ones((ROWS, 1)), verbose=0)
    assert tuple(model.head.kernel.shape) == (8, 1)
    vectors = np.asarray(model.movie(TITLES))
    assert vectors.shape == (ROWS, 8)
    np.testing.assert_array_equal((vectors[:, 4:] != 0).any(1), HAS_KNOWLEDGE)
    with pytest.raises(AttachError, match="built for embeddings with knowledge beside them"):
        kser_tf.detach(model)


def test_append_is_refused_where_layers_behind_have_been_built(stores: Stores) -> None:
    with pytest.raises(AttachError, match=r"have been built for the old width: 'head'.*mode='residual'"):
        attached(built(strings()), {"movie": stores.movies}, mode="append")


def test_a_call_under_tf_function_is_traced_anew(stores: Stores) -> None:
    class Traced(One):
        @tf.function
        def call(self, ids: Any) -> Any:
            return self.head(self.movie(ids))

    model = Traced(strings())
    before = model(TITLES).numpy()
    model = attached(model, {"movie": stores.movies})
    np.testing.assert_array_equal(has_effect(model, TITLES, before), HAS_KNOWLEDGE)
    np.testing.assert_array_equal(np.asarray(kser_tf.detach(model)(TITLES)), before)


def test_a_function_that_was_traced_and_kept_is_warned_of(stores: Stores) -> None:
    model = built(strings())
    model.fast = tf.function(lambda ids: model.movie(ids))
    model.fast(TITLES)
    with pytest.warns(UserWarning, match="`fast` of .* is a tf.function that was traced before"):
        attached(model, {"movie": stores.movies})


def test_a_table_that_is_read_without_a_call_is_told(stores: Stores) -> None:
    class Reads(One):
        def call(self, ids: Any) -> Any:
            return self.head(tf.gather(self.movie.embeddings, ids))

    table = layers.Embedding(ROWS, 4)
    table.build((None,))
    model = Reads(table)
    model(tf.range(3))
    model = attached(model, {"movie": stores.movie_numbers})
    model(tf.range(3))
    assert kser_tf.attachments(model).places[0].calls == 0


def test_mixed_precision(stores: Stores) -> None:
    table = layers.Embedding(ROWS, 4, dtype="mixed_float16")
    ids = tf.range(ROWS, dtype=tf.int64)
    model = built(table, ids)
    before = model(ids).numpy()
    model = attached(model, {"movie": stores.movie_numbers})
    assert model.attached_knowledge.movie.compute_dtype == "float16"
    np.testing.assert_array_equal(has_effect(model, ids, before), HAS_KNOWLEDGE)


def test_a_new_store_is_taken_and_the_weights_stay(stores: Stores, tmp_path: Path) -> None:
    model = attached(built(strings()), {"movie": stores.movies})
    extractor = [weight.copy() for weight in model.attached_knowledge.get_weights()]
    more = kser_tf.KnowledgeStore.write(
        tmp_path / "more", ["new", *MOVIES], np.ones((ROWS + 1, 2, 2, 6), "float32"), np.ones((ROWS + 1, 2, 2), bool),
        fields=["story", "craft"], encoder="test",
    )  # fmt: skip
    assert attached(model, {"movie": more}) is model
    assert kser_tf.attachments(model).places[0].coverage == 1
    for ours, theirs in zip(extractor, model.attached_knowledge.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    wide = kser_tf.KnowledgeStore.write(
        tmp_path / "wide", MOVIES, np.ones((ROWS, 2, 2, 7), "float32"), np.ones((ROWS, 2, 2), bool),
        fields=["story", "craft"], encoder="test",
    )  # fmt: skip
    with pytest.raises(
        AttachError, match=r"at 'movie' .*\(2, 2, 6\), and the store .* has \(2, 2, 7\).*kser_tf.detach"
    ):
        attached(model, {"movie": wide})
    assert kser_tf.attachments(model).places[0].store == str(more.path)
    with pytest.raises(AttachError, match="it takes a new store, not another mode"):
        attached(model, {"movie": more}, mode="append")


def test_the_report(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    model = kser_tf.attach(built(strings()), into={"movie": stores.movies})
    place = kser_tf.attachments(model).places[0]
    # Of the 32 titles in the vocabulary, the first 8 are not in the store.
    assert (place.path, place.width, place.vocabulary, place.covered, place.rows) == ("movie", 4, 32, 24, 32)
    printed = capsys.readouterr().out
    assert "24 of 32 ids (75.0%)" in printed
    assert "string ids, 'ids'" in printed
    assert printed.strip() == str(kser_tf.attachments(model))
    assert kser_tf.attachments(built(strings())).places == []


def indices() -> Any:
    class Apart(One):
        def __init__(self) -> None:
            super().__init__(layers.Embedding(33, 4))
            self.ids = layers.StringLookup(vocabulary=MOVIE_VOCABULARY)

        def call(self, ids: Any) -> Any:
            return self.head(self.movie(self.ids(ids)))

    model = Apart()
    model(TITLES)
    return model


def numbers() -> Any:
    return built(layers.Embedding(ROWS, 4), tf.range(ROWS))


@pytest.mark.parametrize(
    ("make", "into", "message"),
    [
        (strings, lambda s, m: {"movies": s.movies}, r"has no layer 'movies'\. Near it: 'movie'"),
        (strings, lambda s, m: {"movie": s.movie_numbers}, r"string ids .*has int64 ids.*ids.astype\(str\)"),
        (strings, lambda s, m: {"movie": "stores/movies"}, r"must be a kser_tf.KnowledgeStore.*Received: str"),
        (strings, lambda s, m: {}, "must be a dict from paths"),
        (strings, lambda s, m: {"head": s.movies}, r"'head' \(Dense\) does not map ids to vectors.*at_output="),
        (strings, lambda s, m: {"movie": s.movies, "movie.layers.0": s.movies}, "does not map ids to vectors"),
        (
            strings,
            lambda s, m: {"movie": kser_tf.Attachment(s.movies, ["a"])},
            "`vocabulary` is for an Embedding that is",
        ),
        (
            indices,
            lambda s, m: {"movie": s.movies},
            r"called with indices, and the store's ids are strings.*vocabulary=kser_tf.find_layer\(model, 'ids'\)",
        ),
        (
            indices,
            lambda s, m: {"movie": s.movie_numbers},
            r"makes as many indices as it has rows.*vocabulary=range\(33\)",
        ),
        (numbers, lambda s, m: {"movie": s.movies}, "vocabulary=<the look-up layer, or a list of ids>"),
        (
            numbers,
            lambda s, m: {"movie": kser_tf.Attachment(s.movies, [*MOVIES, "more"])},
            "has 41 indices, .* has 40 rows",
        ),
        (numbers, lambda s, m: {"movie": kser_tf.Attachment(s.movies, range(4))}, "int64 ids .*has string ids"),
        (numbers, lambda s, m: {"movie": kser_tf.Attachment(s.movies, 3)}, "or a list of ids. Received: int"),
    ],
)
def test_refused(stores: Stores, make: Any, into: Any, message: str) -> None:
    model = built(make()) if make is strings else make()
    kind = type(model)
    with pytest.raises((AttachError, LayerPathError), match=message):
        attached(model, into(stores, model))
    assert type(model) is kind, "what is refused leaves the model as it was"
    assert not kser_tf.attachments(model).places


def test_the_ways_that_errors_name_work(stores: Stores) -> None:
    model = indices()
    before = model(TITLES).numpy()
    vocabulary = find_layer(model, "ids")
    changed = has_effect(attached(model, {"movie": kser_tf.Attachment(stores.movies, vocabulary)}), TITLES, before)
    np.testing.assert_array_equal(changed, HAS_KNOWLEDGE & np.isin(MOVIES, MOVIE_VOCABULARY))
    model = numbers()
    ids = tf.range(ROWS)
    before = model(ids).numpy()
    changed = has_effect(attached(model, {"movie": kser_tf.Attachment(stores.movies, MOVIES)}), ids, before)
    np.testing.assert_array_equal(changed, HAS_KNOWLEDGE)


def test_a_layer_of_the_other_keras_is_refused(stores: Stores) -> None:
    import keras
    import tf_keras

    other = keras if KERAS_2 else tf_keras
    name = "Keras 3" if KERAS_2 else "Keras 2"
    model = One(strings())
    model.strange = other.layers.Dense(1)
    with pytest.raises(
        AttachError, match=f"`strange` of the model is a {name} layer.*neither trained nor saved.*TF_USE_LEGACY"
    ):
        attached(model, {"movie": stores.movies})
    with pytest.raises(AttachError, match=f"the model is a {name} model.*TF_USE_LEGACY_KERAS"):
        attached(other.Sequential([other.layers.Dense(1)]), {"movie": stores.movies})
    with pytest.raises(AttachError, match=r"must be a tf.keras.Model. Received: dict"):
        attached({}, {"movie": stores.movies})


def test_nothing_to_attach_or_to_detach(stores: Stores) -> None:
    model = built(strings())
    with pytest.raises(AttachError, match="say where"):
        kser_tf.attach(model)
    with pytest.raises(AttachError, match="nothing is attached"):
        kser_tf.detach(model)
    with pytest.raises(AttachError, match="`mode` must be one of residual, append"):
        attached(model, {"movie": stores.movies}, mode="beside")
    with pytest.raises(AttachError, match=r"'movie.table' and 'movie.layers.1' are the same layer"):
        attached(model, {"movie.table": stores.movies, "movie.layers.1": stores.movies})
