"""HistoryLikeness: what a user thought of what is like the candidate."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kser_tf.layers.shaped_layer import ShapedLayer, with_shape

# A cosine of 1 counts e^10 times as much as one of 0 to the first head; each further head looks less sharply.
_SHARPEST = 10.0


@tf.keras.utils.register_keras_serializable("kser_tf")
class HistoryLikeness(ShapedLayer):
    """A correction of the logit, from what a user did with the entities whose knowledge is like the candidate's.

    The user's side of the knowledge: nothing is written about users, who change; what their past tells is read in the light
    of the candidate. With the profiles `c` of the candidate and `h_i` of the history (`KnowledgeProfile`), what the user
    thought of each, `r_i` (a rating, a dwell time), its mean `m` over the history, and for each head its sharpness `s`,

        a = softmax_i(s c . h_i)        o = [sum_i a_i (r_i - m), sum_i a_i (c . h_i)]
        correction = v . relu(U [o of every head] + b)

    A head of great sharpness sees what is most like the candidate, one of small sharpness what is somewhat like it. What the
    user thinks in general, `m`, is taken off: it is no matter of knowledge, and on shuffled knowledge would pass for a gain.
    `v` starts at 0, so the correction too. Since the likeness is of knowledge and not of ids, it holds for candidates that no
    user has seen yet. (A learned matrix between `c` and `h_i` was tried: it adds as much time as all the rest, and next to
    nothing.)

    Args:
        num_heads: int. Defaults to `2`.
        units: int. Width of the hidden layer. Defaults to `16`.

    Call arguments:
        candidate: `(batch, width)`. Its profile; zeros where nothing is known of it. No gradient is passed into profiles.
        history: `(batch, length, width)`. The profiles of what the user did before. One of zeros is as like as a random
            entity: its cosine is 0.
        feedback: `(batch, length, n)`. What the user thought of each.
        mask: `(batch, length)` bool, true where there is something in the history. Defaults to all true.

    Returns:
        `(batch, 1)`, in the layer's compute dtype; exactly 0 for candidates of which nothing is known.

    Raises:
        ValueError: A shape is wrong.

    Example:

    >>> likeness = kser_tf.layers.HistoryLikeness()
    >>> logit += likeness(profile(*lookup(movie)), profiles_of_history, rating_vectors, mask=history != "")

    References:
        - [He et al., NAIS: Neural Attentive Item Similarity Model for Recommendation,
          2018](https://arxiv.org/abs/1809.07053): attention over the history by the likeness of items, of their ids there
    """

    shaped_arguments = ("candidate", "history", "feedback")

    def __init__(self, num_heads: int = 2, units: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("num_heads", num_heads), ("units", units)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        self.num_heads = num_heads
        self.units = units

    def build(self, candidate_shape: Any, history_shape: Any, feedback_shape: Any) -> None:
        width, feedback = tuple(candidate_shape)[-1], tuple(feedback_shape)[-1]
        if width is None or feedback is None:
            raise ValueError(
                "the last dimensions of `candidate` and `feedback` must be known. Received: "
                f"shapes {tuple(candidate_shape)} and {tuple(feedback_shape)}"
            )
        heads = self.num_heads
        self._width, self._feedback = width, feedback
        self._sharpness = self.add_weight(
            name="sharpness",
            shape=(heads,),
            initializer=lambda shape, dtype=None, **_: tf.constant([_SHARPEST / 2**i for i in range(heads)], dtype),
        )
        self._hidden_kernel = self.add_weight(
            name="hidden_kernel", shape=(heads * (feedback + 1), self.units), initializer="glorot_uniform"
        )
        self._hidden_bias = self.add_weight(name="hidden_bias", shape=(self.units,), initializer="zeros")
        self._output_kernel = self.add_weight(name="output_kernel", shape=(self.units, 1), initializer="zeros")
        self._remember_shapes(candidate=candidate_shape, history=history_shape, feedback=feedback_shape)

    def call(self, candidate: Any, history: Any, feedback: Any, mask: Any = None) -> Any:
        dtype = self.compute_dtype
        # Constants to the training: nothing flows back into what they were made of.
        candidate = tf.stop_gradient(tf.cast(with_shape("candidate", candidate, (self._width,)), dtype))
        history = tf.stop_gradient(tf.cast(with_shape("history", history, (None, self._width)), dtype))
        feedback = tf.cast(with_shape("feedback", feedback, (None, self._feedback)), dtype)
        cosine = tf.linalg.matrix_transpose(tf.matmul(history, candidate[..., None]))  # (batch, 1, length)
        there = tf.ones(tf.shape(cosine)[::2], tf.bool) if mask is None else tf.cast(mask, tf.bool)
        score = cosine * tf.cast(self._sharpness, dtype)[:, None]
        # Half of what the dtype can hold, so that it can be added to a score.
        score += tf.where(there, tf.zeros((), dtype), tf.constant(tf.as_dtype(dtype).min / 2, dtype))[:, None]
        attention = tf.nn.softmax(score)
        # The mean is taken off the weights in place of the feedback, which is far larger.
        present = tf.cast(there, dtype)
        even = present / tf.maximum(tf.reduce_sum(present, 1, keepdims=True), 1)
        thought = tf.matmul(attention - even[:, None], feedback)
        found = tf.concat([thought, tf.reduce_sum(attention * cosine, -1, keepdims=True)], -1)
        found = tf.reshape(found, (-1, self.num_heads * (self._feedback + 1)))
        found = tf.where(tf.reduce_any(there, -1, keepdims=True), found, tf.zeros_like(found))
        hidden = tf.nn.relu(tf.matmul(found, tf.cast(self._hidden_kernel, dtype)) + tf.cast(self._hidden_bias, dtype))
        correction = tf.matmul(hidden, tf.cast(self._output_kernel, dtype))
        known = tf.reduce_any(candidate != 0, -1, keepdims=True)
        return tf.where(known, correction, tf.zeros_like(correction))

    def compute_output_shape(self, candidate_shape: Any, *others: Any) -> Any:
        return (candidate_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads, "units": self.units}
