"""HistoryLikeness: what a user thought of what is like the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from kser_tf.layers.shaped_layer import ShapedLayer, with_shape


def joined_feedback(feedback: Iterable[Any], there: Any, dtype: Any) -> Any:
    """Returns all feedback side by side, `(batch, length, n)`; of width 0 where there is none: then the likeness alone counts.

    Args:
        feedback: Each `(batch, length, any width)`, of `dtype`.
        there: `(batch, length)`.
        dtype: Of the result.
    """
    return tf.concat([*feedback, tf.zeros([*tf.unstack(tf.shape(there)), 0], dtype)], -1)


@tf.keras.utils.register_keras_serializable("kser_tf")
class HistoryLikeness(ShapedLayer):
    """A correction of the logit, from what a user did with the entities whose knowledge is like the candidate's.

    The user's side of the knowledge: nothing is written about users, who change; what their past tells is read in the light
    of the candidate. With the profiles `c` of the candidate and `h_i` of the history (`KnowledgeProfile`), what the user
    thought of each, `r_i` (a rating, a dwell time), its mean `m` over the history, and for each sharpness `s`,

        a = softmax_i(s c . h_i)        o = [sum_i a_i (r_i - m), sum_i a_i (c . h_i)]
        correction = v . relu(U [o of every s] + b)

    A great sharpness sees what is most like the candidate, a small one what is somewhat like it. What the user thinks in
    general, `m`, is taken off: it is no matter of knowledge, and on shuffled knowledge would pass for a gain. `v` starts at
    0, so the correction too. Since the likeness is of knowledge and not of ids, it holds for candidates that no user has
    seen yet.

    What is compared has no weights: `compare` gives every `o`, which training may compute once for all epochs, however long
    the histories are; `correct` makes the correction of it. The call does both. (Sharpness that is learned, and a learned
    matrix between `c` and `h_i`, were tried: they add much time, and next to nothing else.)

    Args:
        sharpness: floats. Defaults to `(20.0, 10.0, 5.0)`: a cosine of 0.3 counts 403, 20 and 4 times as much as one of 0.
        units: int. Width of the hidden layer. Defaults to `16`.

    Call arguments:
        candidate: `(batch, width)`. Its profile; zeros where nothing is known of it. No gradient is passed into profiles.
        history: `(batch, length, width)`. The profiles of what the user did before. One of zeros is as like as a random
            entity: its cosine is 0.
        feedback: `(batch, length, n)`. What the user thought of each.
        mask: `(batch, length)` bool, true where there is something in the history. Defaults to all true.

    Returns:
        `(batch, 1)`, in the layer's compute dtype; exactly 0 for candidates of which nothing is known, and for users without
        a history.

    Raises:
        ValueError: An argument is out of its range, or a shape is wrong.

    Example:

    >>> likeness = kser_tf.layers.HistoryLikeness()
    >>> logit += likeness(profile(*lookup(movie)), profiles_of_history, rating_vectors, mask=history != "")

    References:
        - [He et al., NAIS: Neural Attentive Item Similarity Model for Recommendation,
          2018](https://arxiv.org/abs/1809.07053): attention over the history by the likeness of items, of their ids there
        - [Pi et al., Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate
          Prediction, 2020](https://arxiv.org/abs/2006.05639): of a long history, what is like the candidate
    """

    shaped_arguments = ("candidate", "history", "feedback")

    def __init__(self, sharpness: Sequence[float] = (20.0, 10.0, 5.0), units: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not sharpness or min(sharpness) <= 0:
            raise ValueError(f"`sharpness` must hold numbers above 0. Received: sharpness={sharpness}")
        if units < 1:
            raise ValueError(f"`units` must be at least 1. Received: units={units}")
        self.sharpness = tuple(float(value) for value in sharpness)
        self.units = units

    def build(self, candidate_shape: Any, history_shape: Any, feedback_shape: Any) -> None:
        width, feedback = tuple(candidate_shape)[-1], tuple(feedback_shape)[-1]
        if width is None or feedback is None:
            raise ValueError(
                "the last dimensions of `candidate` and `feedback` must be known. Received: "
                f"shapes {tuple(candidate_shape)} and {tuple(feedback_shape)}"
            )
        self._width, self._feedback = width, feedback
        self._hidden_kernel = self.add_weight(
            name="hidden_kernel", shape=(self.compared_width(feedback), self.units), initializer="glorot_uniform"
        )
        self._hidden_bias = self.add_weight(name="hidden_bias", shape=(self.units,), initializer="zeros")
        self._output_kernel = self.add_weight(name="output_kernel", shape=(self.units, 1), initializer="zeros")
        self._remember_shapes(candidate=candidate_shape, history=history_shape, feedback=feedback_shape)

    def call(self, candidate: Any, history: Any, feedback: Any, mask: Any = None) -> Any:
        candidate = with_shape("candidate", candidate, (self._width,))
        history = with_shape("history", history, (None, self._width))
        feedback = with_shape("feedback", feedback, (None, self._feedback))
        return self.correct(self.compare(candidate, history, feedback, mask))

    def compared_width(self, feedback: int) -> int:
        """Returns how many numbers `compare` makes of a row, with feedback of so many."""
        return len(self.sharpness) * (feedback + 1)

    def compare(self, candidate: Any, history: Any, feedback: Any, mask: Any = None) -> Any:
        """Returns what the user thought of what is like the candidate, `(batch, compared_width(n))`.

        The arguments are the call's. Zeros for candidates of which nothing is known, and without a history.
        """
        dtype = self.compute_dtype
        # Nothing flows back into what the profiles were made of.
        candidate = tf.stop_gradient(tf.cast(candidate, dtype))
        history = tf.stop_gradient(tf.cast(history, dtype))
        feedback = tf.cast(feedback, dtype)
        cosine = tf.linalg.matrix_transpose(tf.matmul(history, candidate[..., None]))  # (batch, 1, length)
        there = tf.ones(tf.shape(cosine)[::2], tf.bool) if mask is None else tf.cast(mask, tf.bool)
        score = cosine * tf.constant(self.sharpness, dtype)[:, None]
        # Half of what the dtype can hold, so that it can be added to a score.
        score += tf.where(there, tf.zeros((), dtype), tf.constant(tf.as_dtype(dtype).min / 2, dtype))[:, None]
        attention = tf.nn.softmax(score)
        # The mean is taken off the weights in place of the feedback, which is far larger.
        present = tf.cast(there, dtype)
        even = present / tf.maximum(tf.reduce_sum(present, 1, keepdims=True), 1)
        thought = tf.matmul(attention - even[:, None], feedback)
        compared = tf.concat([thought, tf.reduce_sum(attention * cosine, -1, keepdims=True)], -1)
        compared = tf.reshape(compared, (-1, self.compared_width(feedback.shape[-1])))
        known = tf.reduce_any(candidate != 0, -1, keepdims=True) & tf.reduce_any(there, -1, keepdims=True)
        return tf.where(known, compared, tf.zeros_like(compared))

    def correct(self, compared: Any) -> Any:
        """Returns the correction, `(batch, 1)`, of what `compare` made; 0 for rows of zeros. The layer must be built."""
        dtype = self.compute_dtype
        compared = tf.cast(with_shape("compared", compared, (self.compared_width(self._feedback),)), dtype)
        kernel, bias = tf.cast(self._hidden_kernel, dtype), tf.cast(self._hidden_bias, dtype)
        hidden = tf.nn.relu(tf.matmul(compared, kernel) + bias)
        correction = tf.matmul(hidden, tf.cast(self._output_kernel, dtype))
        return tf.where(tf.reduce_any(compared != 0, -1, keepdims=True), correction, tf.zeros_like(correction))

    def compute_output_shape(self, candidate_shape: Any, *others: Any) -> Any:
        return (candidate_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sharpness": list(self.sharpness), "units": self.units}
