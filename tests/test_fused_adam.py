"""FusedAdam against Adam, whose formula and slots it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.tfrs


def trained(optimizer: Any, dtype: str = "float32") -> list[np.ndarray]:
    """Two weights after six steps, one of them with sparse gradients."""
    rng = np.random.default_rng(0)
    dense = tf.Variable(rng.normal(size=(3, 2)), dtype=dtype)
    table = tf.Variable(rng.normal(size=(5, 2)), dtype=dtype)

    @tf.function
    def step(target: Any, places: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((dense - target) ** 2) + tf.reduce_sum(tf.gather(table, places) ** 3)
        gradients = tape.gradient(loss, [dense, table])
        assert isinstance(gradients[1], tf.IndexedSlices)
        optimizer.apply_gradients(zip(gradients, [dense, table], strict=True))

    for _ in range(6):
        step(tf.constant(rng.normal(size=(3, 2)), dtype), tf.constant(rng.integers(0, 5, 4)))
    return [dense.numpy(), table.numpy()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3},
        {"weight_decay": 0.01, "global_clipnorm": 0.5},
        {"amsgrad": True},
        {"use_ema": True},
        {"learning_rate": tf.keras.optimizers.schedules.CosineDecay(0.1, 8)},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_it_is_adam(options: dict[str, Any]) -> None:
    from kser_tf.pipelines.fused_adam import FusedAdam

    options = {"learning_rate": 0.1, **options}
    for ours, theirs in zip(trained(FusedAdam(**options)), trained(tf.keras.optimizers.Adam(**options)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_it_is_adam_by_hand() -> None:
    """The first step of Adam is the learning rate, against the sign of the gradient."""
    from kser_tf.pipelines.fused_adam import FusedAdam

    weight = tf.Variable([1.0, 2.0])
    FusedAdam(0.125).apply_gradients([(tf.constant([3.0, -0.5]), weight)])
    np.testing.assert_allclose(weight, [0.875, 2.125], rtol=1e-5)


def test_a_step_is_one_operation_a_weight() -> None:
    from kser_tf.pipelines.fused_adam import FusedAdam

    weight, optimizer = tf.Variable([1.0]), FusedAdam()
    optimizer.build([weight])
    graph = tf.function(lambda: optimizer.apply_gradients([(tf.constant([1.0]), weight)])).get_concrete_function().graph
    kinds = [op.type for op in graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 1
    assert "Sqrt" not in kinds


def test_its_checkpoints_are_those_of_adam(tmp_path: Path) -> None:
    from kser_tf.pipelines.fused_adam import FusedAdam

    weight = tf.Variable([1.0, 2.0])
    optimizer = FusedAdam(0.1)
    optimizer.apply_gradients([(tf.constant([3.0, -0.5]), weight)])
    path = tf.train.Checkpoint(weight=weight, optimizer=optimizer).save(str(tmp_path / "checkpoint"))
    again, adam = tf.Variable([0.0, 0.0]), tf.keras.optimizers.Adam(0.1)
    adam.build([again])
    tf.train.Checkpoint(weight=again, optimizer=adam).restore(path).assert_consumed()
    for one, other in ((optimizer, weight), (adam, again)):
        one.apply_gradients([(tf.constant([1.0, 1.0]), other)])
    np.testing.assert_allclose(again, weight, rtol=1e-6)
