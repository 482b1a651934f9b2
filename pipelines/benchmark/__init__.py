"""`kser-tf benchmark`: a matrix of models, and what is said of them."""

from kser_tf.pipelines.benchmark.benchmark import benchmark
from kser_tf.pipelines.benchmark.config import BenchmarkConfig

__all__ = ["BenchmarkConfig", "benchmark"]
