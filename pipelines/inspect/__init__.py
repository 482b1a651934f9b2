"""`kser-tf inspect`: what a trained model makes of its knowledge, looked at from inside."""

from kser_tf.pipelines.inspect.inspect import InspectConfig, inspect

__all__ = ["InspectConfig", "inspect"]
