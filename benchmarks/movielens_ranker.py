"""A ranking model of MovieLens as a user of TFRS writes it: nothing of this project is in it."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_recommenders as tfrs

# What the log never holds: a history's empty places, and a film that is taken for unknown.
NOTHING, UNKNOWN_FILM = -1, 0
STARS = 5
CATEGORIES = ("year", "gender", "age", "occupation")
_FAR_BELOW = -1e9


class MovieLensRanker(tfrs.Model):
    """Target attention over what the user rated, in the manner of DIN, and a multilayer perceptron.

    Film ids come as they are in the log; the layer that embeds them looks them up. All else comes as indices.

    Args:
        film_ids: The films of the training log.
        sizes: For `genres` and each of `CATEGORIES` the number of indices.
        width: int. Of the embeddings.
        recent: int. So many of the history, the most recent ones, it looks at.
        l2: float. Weight of the L2 penalty on the embeddings.

    Call arguments:
        features: `movie_id` `(batch,)`, `history_movie_id` and `history_rating` `(batch, length)`, `genres` `(batch, n)`,
            0 for none, and `CATEGORIES` `(batch,)`.

    Returns:
        The logit, `(batch, 1)`.
    """

    def __init__(self, film_ids, sizes, width=32, l2=2e-5, recent=20):
        super().__init__()
        self.recent = recent

        def embedding(size):
            return tf.keras.layers.Embedding(
                size,
                width,
                embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=0.05),
                embeddings_regularizer=tf.keras.regularizers.L2(l2),
            )

        self.movie_embeddings = tf.keras.Sequential(
            [tf.keras.layers.IntegerLookup(vocabulary=film_ids), embedding(len(film_ids) + 1)]
        )
        self.rating_embeddings = embedding(STARS + 1)
        self.genre_embeddings = embedding(sizes["genres"])
        self.category_embeddings = {name: embedding(sizes[name]) for name in CATEGORIES}
        self.attention_of_place = tf.keras.layers.Dense(32, use_bias=False)
        self.attention_of_film = tf.keras.layers.Dense(32)
        self.attention_of_both = tf.keras.layers.Dense(32, use_bias=False)
        self.attention_score = tf.keras.layers.Dense(1)
        self.deep = tf.keras.Sequential([tf.keras.layers.Dense(units, activation="relu") for units in (128, 64)])
        self.output_layer = tf.keras.layers.Dense(1)
        self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True))

    def call(self, features):
        """Returns the logit."""
        history_ids = features["history_movie_id"][:, : self.recent]
        ratings = features["history_rating"][:, : self.recent]
        films = self.movie_embeddings(tf.concat([features["movie_id"][:, None], history_ids], 1))
        film, history = films[:, 0], films[:, 1:]
        place = tf.concat([history, self.rating_embeddings(tf.maximum(ratings, 0))], -1)
        vectors = [film, self._genres(features["genres"])]
        vectors += [layer(features[name]) for name, layer in self.category_embeddings.items()]
        vectors.append(self._interest(film, history, place, history_ids != NOTHING))
        return self.output_layer(self.deep(tf.concat(vectors, -1)))

    def _genres(self, genres):
        there = tf.cast(genres != 0, tf.float32)[..., None]
        return tf.reduce_sum(self.genre_embeddings(genres) * there, 1) / tf.maximum(tf.reduce_sum(there, 1), 1)

    def _interest(self, film, history, place, there):
        hidden = self.attention_of_place(place) + self.attention_of_both(history * film[:, None])
        hidden = tf.nn.relu(hidden + self.attention_of_film(film)[:, None])
        score = tf.where(there, self.attention_score(hidden)[..., 0], _FAR_BELOW)
        weights = tf.nn.softmax(score) * tf.cast(there, tf.float32)
        return tf.matmul(weights[:, None], place)[:, 0]

    def compute_loss(self, inputs, training=False):
        """Returns the loss of a batch of `(features, labels)`."""
        features, labels = inputs
        return self.task(labels=labels[:, None], predictions=self(features))
