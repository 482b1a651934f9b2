"""LoadedModel: a SavedModel in a session, as TF Serving holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, saved_model_pb2

from kser_tf.serving import contract


class LoadedModel:
    """Loads a SavedModel by TensorFlow's session loader, which TF Serving uses too, and calls its signatures.

    Neither Keras nor any Python object of the model takes part. May be called from several threads at once.

    Args:
        path: The SavedModel, `<base>/<version>`.

    Raises:
        tf.errors.OpError, RuntimeError: As the session loader raises them.

    Example:

    >>> with LoadedModel("serving/ranker/1") as model:
    ...     answers = model.run("serving_default", {"movie_id": np.array([b"tt0001"])})
    """

    def __init__(self, path: str | Path) -> None:
        self._graph = tf.Graph()
        with self._graph.as_default():
            self.session = tf.compat.v1.Session(graph=self._graph)
            try:
                meta_graph = tf.compat.v1.saved_model.loader.load(self.session, [tf.saved_model.SERVING], str(path))
            except BaseException:
                self.session.close()
                raise
        self.signatures: dict[str, Any] = contract.describe_signatures(meta_graph)
        self.signature_defs = {name: meta_graph.signature_def[name] for name in self.signatures}

    def run(self, signature: str, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a signature's outputs for a value for each of its inputs."""
        spec = self.signatures[signature]
        feeds = {given["tensor"]: rows[name] for name, given in spec["inputs"].items()}
        return self.session.run({name: wanted["tensor"] for name, wanted in spec["outputs"].items()}, feeds)

    def direct(self, signature: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Returns a function that does the same as `run`, without the checks and the time of Python's `Session.run`.

        As in a server, a value of a wrong shape or dtype gets as far as TensorFlow's own code in C++.
        """
        spec = self.signatures[signature]
        options = config_pb2.CallableOptions()
        options.feed.extend(given["tensor"] for given in spec["inputs"].values())
        options.fetch.extend(wanted["tensor"] for wanted in spec["outputs"].values())
        call = self.session._make_callable_from_options(options)
        inputs, outputs = list(spec["inputs"]), list(spec["outputs"])
        return lambda rows: dict(zip(outputs, call(*(rows[name] for name in inputs)), strict=True))

    def close(self) -> None:
        """Frees what the model holds."""
        self.session.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_meta_graph(path: str | Path) -> Any:
    """Returns the `MetaGraphDef` that a server takes, without loading it.

    Raises:
        ValueError: No graph has the tag `serve`.
        OSError, google.protobuf.message.DecodeError: It cannot be read.
    """
    return served_graph(read_saved_model(path))


def read_saved_model(path: str | Path) -> Any:
    """Returns the whole `SavedModel` message, without loading it. Raises as `read_meta_graph`."""
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((Path(path) / tf.saved_model.SAVED_MODEL_FILENAME_PB).read_bytes())
    return content


def served_graph(saved_model: Any) -> Any:
    """Returns that `MetaGraphDef` of a `SavedModel` message which a server takes.

    Raises:
        ValueError: No graph has the tag `serve`.
    """
    for meta_graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in meta_graph.meta_info_def.tags:
            return meta_graph
    raise ValueError(f"no graph in it has the tag `{tf.saved_model.SERVING}`")
