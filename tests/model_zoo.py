"""Ranking models as their users write them, from the public API of TFRS, Keras and keras-rs, with small data made here.

Each `Case` makes a model, data for it, and the arguments with which knowledge is attached to it. The models know nothing of
this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import kser_tf
from kser_tf.layer_paths import find_layer

KERAS_2 = tf.keras.layers.Layer.__module__.startswith("tf_keras")
layers = tf.keras.layers
if not KERAS_2:
    import keras_rs  # here, since importing it draws from the seed that a model is made with

MOVIES = [f"Фильм {i} (199{i % 10})" for i in range(40)]
USERS = [f"user-{i}" for i in range(25)]
# In the vocabulary but not in the store, and the other way round.
MOVIES_WITHOUT_KNOWLEDGE, MOVIES_WITHOUT_EMBEDDING = MOVIES[:8], MOVIES[32:]
USERS_WITHOUT_KNOWLEDGE = USERS[:6]
MOVIE_VOCABULARY, USER_VOCABULARY = MOVIES[:32], USERS[:20]
FIELDS, CHUNKS, WIDTH = 2, 2, 6
WIDTH_R = 8
HISTORY, LIST = 4, 5


@dataclass(frozen=True)
class Stores:
    """Knowledge of movies and users, by title or name, and by number."""

    movies: kser_tf.KnowledgeStore
    users: kser_tf.KnowledgeStore
    movie_numbers: kser_tf.KnowledgeStore
    user_numbers: kser_tf.KnowledgeStore


def make_stores(folder: Path) -> Stores:
    rng = np.random.default_rng(8)

    def write(name: str, ids: Any) -> kser_tf.KnowledgeStore:
        chunks = rng.normal(size=(len(ids), FIELDS, CHUNKS, WIDTH)).astype("float32")
        mask = rng.random((len(ids), FIELDS, CHUNKS)) < 0.7
        mask[:, 0, 0] = True
        return kser_tf.KnowledgeStore.write(
            folder / name, ids, chunks, mask, fields=["story", "craft"], encoder="test", dtype="float32"
        )

    movies, users = len(MOVIES_WITHOUT_KNOWLEDGE), len(USERS_WITHOUT_KNOWLEDGE)
    return Stores(
        write("movies", MOVIES[movies:]),
        write("users", USERS[users:]),
        write("movie_numbers", np.arange(movies, len(MOVIES))),
        write("user_numbers", np.arange(users, len(USERS))),
    )


def raw_features(rows: int, *, without_knowledge: bool = False, seed: int = 1) -> dict[str, np.ndarray]:
    """What a log holds: ids, context, a history, a list of candidates; with ids that no vocabulary knows."""
    rng = np.random.default_rng(seed)
    movies = len(MOVIES_WITHOUT_KNOWLEDGE) if without_knowledge else len(MOVIES)
    users = len(USERS_WITHOUT_KNOWLEDGE) if without_knowledge else len(USERS)
    numbers = {
        "movie_id": rng.integers(movies, size=rows),
        "user_id": rng.integers(users, size=rows),
        "history_id": rng.integers(movies, size=(rows, HISTORY)),
        "list_id": rng.integers(movies, size=(rows, LIST)),
    }
    titles, names = np.array(MOVIES, dtype=object), np.array(USERS, dtype=object)
    history = titles[numbers["history_id"]]
    history[np.arange(HISTORY) >= rng.integers(HISTORY + 1, size=(rows, 1))] = ""
    return {
        **{name: values.astype("int64") for name, values in numbers.items()},
        "movie_title": titles[numbers["movie_id"]],
        "user_name": names[numbers["user_id"]],
        "history_title": history,
        "list_title": titles[numbers["list_id"]],
        "timestamp": rng.uniform(8.7e8, 8.9e8, rows).astype("float32"),
        "age": rng.uniform(18, 70, rows).astype("float32"),
        "price": rng.normal(size=(rows, 3)).astype("float32"),
        "rating": rng.integers(1, 6, rows).astype("float32"),
        "list_rating": rng.integers(1, 6, (rows, LIST)).astype("float32"),
    }


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    Args:
        name: The case's name.
        make: Makes the model.
        inputs: Of raw features, what the model is called with.
        example: Of raw features, what `fit` is given for a batch: inputs, and labels if they stand apart.
        into: Of the stores, the argument `into` of `kser_tf.attach`, for this model.
        score: Of what the model returns, the scores.
        loss: The loss to compile with; none for a TFRS model, which has its own.
        tfrs: Whether the model is a `tfrs.Model`.
        xla: Whether XLA can compile the model: it cannot look up strings.
        smallest_batch: The model fails with smaller batches.
    """

    name: str
    make: Callable[[], Any]
    inputs: Callable[[Mapping[str, Any]], Any]
    example: Callable[[Mapping[str, Any]], Any]
    into: Callable[[Any, Stores], dict[str, Any]]
    score: Callable[[Any], Any] = lambda returned: returned
    loss: Any = None
    tfrs: bool = False
    xla: bool = False
    smallest_batch: int = 1

    def built(self) -> Any:
        """The model with its weights, the same at each call."""
        tf.keras.utils.set_random_seed(11)
        model = self.make()
        model(self.inputs(tensors(raw_features(8))))
        return model

    def attached(self, stores: Stores, model: Any = None, **options: Any) -> Any:
        model = self.built() if model is None else model
        tf.keras.utils.set_random_seed(12)
        return kser_tf.attach(model, into=self.into(model, stores), verbose=False, **options)

    def scores(self, model: Any, features: Mapping[str, Any], call: Callable[[Any], Any] | None = None) -> np.ndarray:
        """The scores of a batch, `call` standing for the model.

        `tfrs.experimental.models.Ranking` squeezes a batch of one row away: such a row is scored with a copy of itself.
        """
        rows = len(features["movie_id"])
        if rows < self.smallest_batch:
            features = {name: np.repeat(values, self.smallest_batch, 0) for name, values in features.items()}
        returned = self.score((call or model)(self.inputs(tensors(features))))
        return np.asarray(returned)[:rows]

    def traced(self, model: Any) -> Callable[[Any], Any]:
        """The model as a graph, of batches of any size: traced once."""
        example = self.inputs(tensors(raw_features(2)))
        specs = tf.nest.map_structure(lambda value: tf.TensorSpec((None, *value.shape[1:]), value.dtype), example)
        return tf.function(lambda inputs: model(inputs), input_signature=[specs])

    def compile(self, model: Any, optimizer: Any = None, **arguments: Any) -> None:
        optimizer = optimizer or tf.keras.optimizers.SGD(0.1)
        if not self.tfrs:
            arguments["loss"] = self.loss
        model.compile(optimizer, **arguments)

    def fit(self, model: Any, *, epochs: int = 1, rows: int = 48, seed: int = 2, **arguments: Any) -> Any:
        """Trains on always the same batches."""
        example = self.example(tensors(raw_features(rows, seed=seed)))
        return model.fit(tf.data.Dataset.from_tensor_slices(example).batch(16), epochs=epochs, verbose=0, **arguments)


def tensors(features: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tf.constant(values) for name, values in features.items()}


def lookup_and_embedding(vocabulary: list[str], width: int = WIDTH_R) -> Any:
    """As all the tutorials of TFRS do it."""
    return tf.keras.Sequential(
        [layers.StringLookup(vocabulary=vocabulary, mask_token=None), layers.Embedding(len(vocabulary) + 1, width)]
    )


# --- tensorflow.org/recommenders/examples/basic_ranking


def tutorial_ranking() -> Any:
    import tensorflow_recommenders as tfrs

    class RankingModel(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.user_embeddings = lookup_and_embedding(USER_VOCABULARY)
            self.movie_embeddings = lookup_and_embedding(MOVIE_VOCABULARY)
            self.ratings = tf.keras.Sequential(
                [layers.Dense(16, activation="relu"), layers.Dense(8, activation="relu"), layers.Dense(1)]
            )

        def call(self, inputs: Any) -> Any:
            user_id, movie_title = inputs
            user_embedding = self.user_embeddings(user_id)
            movie_embedding = self.movie_embeddings(movie_title)
            return self.ratings(tf.concat([user_embedding, movie_embedding], axis=1))

    class MovielensModel(tfrs.models.Model):
        def __init__(self) -> None:
            super().__init__()
            self.ranking_model: tf.keras.Model = RankingModel()
            self.task: tf.keras.layers.Layer = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
            )

        def call(self, features: Any) -> Any:
            return self.ranking_model((features["user_name"], features["movie_title"]))

        def compute_loss(self, features: Any, training: bool = False) -> Any:
            features = dict(features)
            labels = features.pop("rating")
            return self.task(labels=labels[:, None], predictions=self(features))

    return MovielensModel()


# --- tensorflow.org/recommenders/examples/dcn


def tutorial_dcn() -> Any:
    import tensorflow_recommenders as tfrs

    class DCN(tfrs.Model):
        def __init__(self, use_cross_layer: bool = True, deep_layer_sizes: Any = (16, 16)) -> None:
            super().__init__()
            self._all_features = ["movie_id", "user_name"]
            self._embeddings = {}
            self._embeddings["user_name"] = lookup_and_embedding(USER_VOCABULARY)
            vocabulary = list(range(len(MOVIE_VOCABULARY)))
            self._embeddings["movie_id"] = tf.keras.Sequential(
                [
                    layers.IntegerLookup(vocabulary=vocabulary, mask_value=None),
                    layers.Embedding(len(vocabulary) + 1, WIDTH_R),
                ]
            )
            self._cross_layer = tfrs.layers.dcn.Cross(kernel_initializer="glorot_uniform") if use_cross_layer else None
            self._deep_layers = [layers.Dense(size, activation="relu") for size in deep_layer_sizes]
            self._logit_layer = layers.Dense(1)
            self.task = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError("RMSE")]
            )

        def call(self, features: Any) -> Any:
            x = tf.concat([self._embeddings[name](features[name]) for name in self._all_features], axis=1)
            if self._cross_layer is not None:
                x = self._cross_layer(x)
            for deep_layer in self._deep_layers:
                x = deep_layer(x)
            return self._logit_layer(x)

        def compute_loss(self, features: Any, training: bool = False) -> Any:
            features = dict(features)
            labels = features.pop("rating")
            return self.task(labels=labels[:, None], predictions=self(features))

    return DCN()


# --- tensorflow.org/recommenders/examples/multitask


def tutorial_multitask() -> Any:
    import tensorflow_recommenders as tfrs

    movies = tf.data.Dataset.from_tensor_slices(MOVIE_VOCABULARY)

    class MovielensModel(tfrs.models.Model):
        def __init__(self, rating_weight: float, retrieval_weight: float) -> None:
            super().__init__()
            self.movie_model: tf.keras.layers.Layer = lookup_and_embedding(MOVIE_VOCABULARY)
            self.user_model: tf.keras.layers.Layer = lookup_and_embedding(USER_VOCABULARY)
            self.rating_model = tf.keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(1)])
            self.rating_task: tf.keras.layers.Layer = tfrs.tasks.Ranking(loss=tf.keras.losses.MeanSquaredError())
            self.retrieval_task: tf.keras.layers.Layer = tfrs.tasks.Retrieval(
                metrics=tfrs.metrics.FactorizedTopK(candidates=movies.batch(128).map(self.movie_model))
            )
            self.rating_weight = rating_weight
            self.retrieval_weight = retrieval_weight

        def call(self, features: Any) -> Any:
            user_embeddings = self.user_model(features["user_name"])
            movie_embeddings = self.movie_model(features["movie_title"])
            ratings = self.rating_model(tf.concat([user_embeddings, movie_embeddings], axis=1))
            return user_embeddings, movie_embeddings, ratings

        def compute_loss(self, features: Any, training: bool = False) -> Any:
            features = dict(features)
            ratings = features.pop("rating")
            user_embeddings, movie_embeddings, rating_predictions = self(features)
            rating_loss = self.rating_task(labels=ratings[:, None], predictions=rating_predictions)
            retrieval_loss = self.retrieval_task(user_embeddings, movie_embeddings, compute_metrics=not training)
            return self.rating_weight * rating_loss + self.retrieval_weight * retrieval_loss

    return MovielensModel(rating_weight=1.0, retrieval_weight=0.1)


# --- tensorflow.org/recommenders/examples/listwise_ranking; its loss is of tensorflow_ranking, this one is written by hand


def listwise() -> Any:
    import tensorflow_recommenders as tfrs

    def softmax_loss(labels: Any, predictions: Any) -> Any:
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(labels), predictions))

    class RankingModel(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.user_embeddings = lookup_and_embedding(USER_VOCABULARY)
            self.movie_embeddings = lookup_and_embedding(MOVIE_VOCABULARY)
            self.score_model = tf.keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(1)])

        def call(self, features: Any) -> Any:
            user_embeddings = self.user_embeddings(features["user_name"])
            movie_embeddings = self.movie_embeddings(features["list_title"])
            user_embedding_repeated = tf.repeat(tf.expand_dims(user_embeddings, 1), [LIST], axis=1)
            return self.score_model(tf.concat([user_embedding_repeated, movie_embeddings], 2))

        def compute_loss(self, features: Any, training: bool = False) -> Any:
            features = dict(features)
            labels = features.pop("list_rating")
            return softmax_loss(labels, tf.squeeze(self(features), axis=-1))

    return RankingModel()


# --- A query tower with context and history (sequential_retrieval, context_features, deep_recommenders); the history is
#     ragged, and the candidate's embedding is the history's too.


def query_tower() -> Any:
    import tensorflow_recommenders as tfrs

    class QueryModel(tf.keras.Model):
        def __init__(self, movie_embedding: Any) -> None:
            super().__init__()
            self.user_embedding = lookup_and_embedding(USER_VOCABULARY)
            self.movie_embedding = movie_embedding
            buckets = np.linspace(8.7e8, 8.9e8, 10).tolist()
            self.timestamp_embedding = tf.keras.Sequential([layers.Discretization(buckets), layers.Embedding(12, 4)])
            self.normalized_age = layers.Normalization(axis=None, mean=40.0, variance=200.0)
            self.dense_layers = tf.keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(WIDTH_R)])

        def call(self, inputs: Any) -> Any:
            history = tf.RaggedTensor.from_tensor(inputs["history_title"], padding="")
            watched = tf.math.divide_no_nan(
                tf.reduce_sum(self.movie_embedding(history), 1),
                tf.cast(history.row_lengths(), tf.float32)[:, None],
            )
            context = [
                self.user_embedding(inputs["user_name"]),
                watched,
                self.timestamp_embedding(inputs["timestamp"]),
                tf.reshape(self.normalized_age(inputs["age"]), (-1, 1)),
            ]
            return self.dense_layers(tf.concat(context, axis=1))

    class CandidateModel(tf.keras.Model):
        def __init__(self, movie_embedding: Any) -> None:
            super().__init__()
            self.title_embedding = movie_embedding
            words = layers.TextVectorization(vocabulary=["фильм", "1990", "1991"], standardize="lower")
            self.title_text_embedding = tf.keras.Sequential(
                [words, layers.Embedding(5, 4, mask_zero=True), layers.GlobalAveragePooling1D()]
            )
            self.dense_layers = tf.keras.Sequential([layers.Dense(WIDTH_R)])

        def call(self, titles: Any) -> Any:
            return self.dense_layers(tf.concat([self.title_embedding(titles), self.title_text_embedding(titles)], 1))

    class ContextModel(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            movie_embedding = lookup_and_embedding(MOVIE_VOCABULARY)
            self.query_model = QueryModel(movie_embedding)
            self.candidate_model = CandidateModel(movie_embedding)
            self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))

        def call(self, features: Any) -> Any:
            query, candidate = self.query_model(features), self.candidate_model(features["movie_title"])
            return tf.reduce_sum(query * candidate, axis=1, keepdims=True)

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            features, labels = inputs
            return self.task(labels=labels[:, None], predictions=self(features))

    return ContextModel()


# --- tfrs.experimental.models.Ranking as DLRM. It takes batches of at least two rows (it squeezes without an axis), and its
#     embedding layer maps a dict of ids to a dict of vectors, as TPUEmbedding does.


def dlrm() -> Any:
    import tensorflow_recommenders as tfrs

    class Tables(layers.Layer):
        def __init__(self, sizes: Mapping[str, int]) -> None:
            super().__init__()
            self.tables = {name: layers.Embedding(size, WIDTH_R) for name, size in sizes.items()}

        def call(self, inputs: Any) -> Any:
            return {name: self.tables[name](ids) for name, ids in inputs.items()}

    return tfrs.experimental.models.Ranking(
        Tables({"movie_id": len(MOVIES), "user_id": len(USERS)}),
        bottom_stack=tfrs.layers.blocks.MLP(units=[16, WIDTH_R], final_activation="relu"),
        feature_interaction=tfrs.layers.feature_interaction.DotInteraction(),
        top_stack=tfrs.layers.blocks.MLP(units=[16, 1], final_activation="sigmoid"),
    )


def dlrm_inputs(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"dense_features": raw["price"], "sparse_features": {name: raw[name] for name in ("movie_id", "user_id")}}


# --- Models of Keras alone, for both Kerases


def functional() -> Any:
    """String ids, the look-ups apart from the embeddings, as in the examples of keras.io."""
    title = tf.keras.Input((), dtype="string", name="movie_title")
    name = tf.keras.Input((), dtype="string", name="user_name")
    movie = layers.StringLookup(vocabulary=MOVIE_VOCABULARY, name="movie_index")(title)
    user = layers.StringLookup(vocabulary=USER_VOCABULARY, name="user_index")(name)
    movie = layers.Embedding(len(MOVIE_VOCABULARY) + 1, WIDTH_R, name="movie_embedding")(movie)
    user = layers.Embedding(len(USER_VOCABULARY) + 1, WIDTH_R, name="user_embedding")(user)
    both = layers.Concatenate()([movie, user, layers.Multiply()([movie, user])])
    hidden = layers.Dense(16, activation="relu")(both)
    return tf.keras.Model({"movie_title": title, "user_name": name}, layers.Dense(1, name="logit")(hidden))


def functional_numbers() -> Any:
    """Integer ids, and one embedding for the candidate and the history."""
    movie_id = tf.keras.Input((), dtype="int64", name="movie_id")
    history_id = tf.keras.Input((HISTORY,), dtype="int64", name="history_id")
    table = layers.Embedding(len(MOVIES), WIDTH_R, name="movie")
    movie, history = table(movie_id), layers.GlobalAveragePooling1D()(table(history_id))
    hidden = layers.Dense(16, activation="relu")(layers.Concatenate()([movie, history]))
    return tf.keras.Model({"movie_id": movie_id, "history_id": history_id}, layers.Dense(1)(hidden))


def sequential() -> Any:
    return tf.keras.Sequential(
        [
            tf.keras.Input((HISTORY,), dtype="int64"),
            layers.Embedding(len(MOVIES), WIDTH_R, name="movie"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(16, activation="relu"),
            layers.Dense(1),
        ]
    )


def subclassed() -> Any:
    """Masked histories through a GRU, embeddings in a list and a dict."""

    class Ranker(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.lookups = {
                "movie": layers.StringLookup(vocabulary=MOVIE_VOCABULARY, mask_token=""),
                "user": layers.StringLookup(vocabulary=USER_VOCABULARY),
            }
            self.tables = [
                layers.Embedding(len(MOVIE_VOCABULARY) + 2, WIDTH_R, mask_zero=True),
                layers.Embedding(len(USER_VOCABULARY) + 1, WIDTH_R),
            ]
            self.gru = layers.GRU(WIDTH_R)
            self.head = layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            movie = self.tables[0](self.lookups["movie"](inputs["movie_title"]))
            user = self.tables[1](self.lookups["user"](inputs["user_name"]))
            watched = self.gru(self.tables[0](self.lookups["movie"](inputs["history_title"])))
            return self.head(tf.concat([movie, user, watched, movie * watched], 1))

    return Ranker()


def keras_rs_model() -> Any:
    class Ranker(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.movie_embedding = layers.Embedding(len(MOVIES), WIDTH_R)
            self.user_embedding = layers.Embedding(len(USERS), WIDTH_R)
            self.bottom = layers.Dense(WIDTH_R)
            self.interaction = keras_rs.layers.DotInteraction()
            self.cross = keras_rs.layers.FeatureCross()
            self.head = layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            parts = [
                self.movie_embedding(inputs["movie_id"]),
                self.user_embedding(inputs["user_id"]),
                self.bottom(inputs["price"]),
            ]
            crossed = self.cross(tf.concat(parts, 1))
            return self.head(tf.concat([crossed, self.interaction(parts)], 1))

    return Ranker()


def take(*names: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda raw: {name: raw[name] for name in names}


def with_label(inputs: Callable[[Any], Any], label: str = "rating") -> Callable[[Mapping[str, Any]], Any]:
    return lambda raw: (inputs(raw), raw[label])


def click(raw: Mapping[str, Any]) -> Any:
    return tf.cast(raw["rating"] > 3, tf.float32)


_tower = take("user_name", "movie_title", "history_title", "timestamp", "age")
_functional = take("movie_title", "user_name")
_numbers = take("movie_id", "history_id")
_subclassed = take("movie_title", "user_name", "history_title")
_keras_rs = take("movie_id", "user_id", "price")

CASES = [
    Case(
        "tutorial_ranking",
        tutorial_ranking,
        take("user_name", "movie_title"),
        take("user_name", "movie_title", "rating"),
        lambda model, s: {"ranking_model.movie_embeddings": s.movies, "ranking_model.user_embeddings": s.users},
        tfrs=True,
    ),
    Case(
        "tutorial_dcn",
        tutorial_dcn,
        take("user_name", "movie_id"),
        take("user_name", "movie_id", "rating"),
        lambda model, s: {"_embeddings.movie_id": s.movie_numbers, "_embeddings.user_name": s.users},
        tfrs=True,
    ),
    Case(
        "tutorial_multitask",
        tutorial_multitask,
        take("user_name", "movie_title"),
        take("user_name", "movie_title", "rating"),
        lambda model, s: {"movie_model": s.movies, "user_model": s.users},
        score=lambda returned: returned[2],
        tfrs=True,
    ),
    Case(
        "listwise",
        listwise,
        take("user_name", "list_title"),
        take("user_name", "list_title", "list_rating"),
        lambda model, s: {"movie_embeddings": s.movies, "user_embeddings": s.users},
        tfrs=True,
    ),
    Case(
        "query_tower",
        query_tower,
        _tower,
        lambda raw: (_tower(raw), click(raw)),
        lambda model, s: {"candidate_model.title_embedding": s.movies, "query_model.user_embedding": s.users},
        tfrs=True,
    ),
    Case(
        "dlrm",
        dlrm,
        dlrm_inputs,
        lambda raw: (dlrm_inputs(raw), click(raw)),
        lambda model, s: {
            "_embedding_layer.tables.movie_id": s.movie_numbers,
            "_embedding_layer.tables.user_id": s.user_numbers,
        },
        tfrs=True,
        xla=True,
        smallest_batch=2,
    ),
    Case(
        "functional",
        functional,
        _functional,
        with_label(_functional),
        lambda model, s: {
            "movie_embedding": kser_tf.Attachment(s.movies, vocabulary=find_layer(model, "movie_index")),
            "user_embedding": kser_tf.Attachment(s.users, vocabulary=find_layer(model, "user_index")),
        },
        loss="mse",
    ),
    Case(
        "functional_numbers",
        functional_numbers,
        _numbers,
        with_label(_numbers),
        lambda model, s: {"movie": s.movie_numbers},
        loss="mse",
        xla=True,
    ),
    Case(
        "sequential",
        sequential,
        lambda raw: raw["history_id"],
        lambda raw: (raw["history_id"], raw["rating"]),
        lambda model, s: {"movie": s.movie_numbers},
        loss="mse",
        xla=True,
    ),
    Case(
        "subclassed",
        subclassed,
        _subclassed,
        with_label(_subclassed),
        lambda model, s: {
            "tables.0": kser_tf.Attachment(s.movies, vocabulary=model.lookups["movie"]),
            "tables.1": kser_tf.Attachment(s.users, vocabulary=["", *USER_VOCABULARY]),
        },
        loss="mse",
    ),
    Case(
        "keras_rs",
        keras_rs_model,
        _keras_rs,
        with_label(_keras_rs),
        lambda model, s: {"movie_embedding": s.movie_numbers, "user_embedding": s.user_numbers},
        loss="mse",
        xla=True,
    ),
]


def cases(**wanted: bool) -> list[Case]:
    """The cases that run under the active Keras, with the attributes wanted."""
    found = [case for case in CASES if not (case.tfrs and not KERAS_2) and not (case.name == "keras_rs" and KERAS_2)]
    return [case for case in found if all(getattr(case, name) == value for name, value in wanted.items())]
