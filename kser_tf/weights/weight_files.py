"""Weights in files of all kinds that TensorFlow and Keras write: what is in them, and where a model's own are.

Nothing in a file is executed: of a `.keras` file only the weights are read, of a SavedModel its checkpoint.
"""

from __future__ import annotations

import abc
import contextlib
import shutil
import tempfile
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from kser_tf.errors import DataError
from kser_tf.model_parts import own_weights

Rename = Callable[[str], str | None]

_H5_MEMBER = "model.weights.h5"
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VARIABLE = "VARIABLE_VALUE"
# What a trainer keeps beside the weights: optimizers and their slots, metrics, random states, traced functions.
_BESIDE_THE_WEIGHTS = {
    "optimizer",
    "_optimizer",
    "metrics",
    "_metrics",
    "loss_tracker",
    "_loss_tracker",
    "compile_metrics",
    "_compile_metrics",
    "compiled_loss",
    "compiled_metrics",
    "seed_generator",
    "_seed_generators",
    "_compiled_trainable_state",
    "keras_api",
    "signatures",
    "save_counter",
}
# No weight has this shape, so that nothing but our recorder takes such a value.
_TAG_SHAPE = (1, 1, 1, 1, 1, 2)
_TAG = 0x6B736572


@dataclass(frozen=True)
class ModelWeight:
    """A weight of a model, and the layer that it is the own weight of.

    Args:
        variable: The Keras variable.
        name: str. As Keras names it.
        layer: The layer.
    """

    variable: Any
    name: str
    layer: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(int(size) for size in self.variable.shape)


def model_weights(model: Any) -> list[ModelWeight]:
    """Returns all weights of a model, each once; metrics are none."""
    found: dict[int, ModelWeight] = {}
    for layer in _layers(model):
        for variable in own_weights(layer):
            name = getattr(variable, "path", None) or variable.name.removesuffix(":0")
            found.setdefault(id(variable), ModelWeight(variable, name, layer))
    return list(found.values())


def _layers(model: Any) -> list[Any]:
    layers = model._flatten_layers(include_self=True, recursive=True)
    return [layer for layer in layers if not isinstance(layer, tf.keras.metrics.Metric)]


class WeightFile(abc.ABC):
    """Weights in a file.

    Args:
        path: What was opened, for messages.
        shapes: For each weight in it, by its name there, its shape. What is no weight is left out.
    """

    hint = ""  # What to say of the file where it does not match.

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = path
        self.shapes = dict(shapes)

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Returns the value of a weight."""

    @abc.abstractmethod
    def places(self, model: Any, rename: Rename | None) -> dict[int, str]:
        """Returns for each of the model's weights that are in the file, by its `id`, its name there."""


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[WeightFile]:
    """Opens a file of weights for the block.

    Args:
        path: A `.weights.h5` or `.keras` file, a checkpoint's prefix or a folder with the file `checkpoint`, or a
            SavedModel's folder.

    Raises:
        DataError: It is nothing of that, or damaged.
    """
    path = Path(path)
    if path.name.endswith(".weights.h5"):
        with _h5(path, path) as file:
            yield file
    elif path.suffix == ".keras":
        with (
            tempfile.TemporaryDirectory(prefix="kser_tf_weights_") as folder,
            _h5(_extracted(path, folder), path) as file,
        ):
            yield file
    elif (path / tf.saved_model.SAVED_MODEL_FILENAME_PB).is_file():
        yield _Checkpoint(path, str(path / "variables" / "variables"), saved_model=True)
    else:
        yield _Checkpoint(path, _checkpoint_prefix(path))


def _extracted(path: Path, folder: str) -> Path:
    target = Path(folder) / _H5_MEMBER
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_H5_MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .keras file with {_H5_MEMBER} in it: {error}") from error
    return target


@contextlib.contextmanager
def _h5(path: Path, shown: Path) -> Iterator[WeightFile]:
    if not path.is_file():
        raise DataError(f"{shown} is not there.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{shown} cannot be read as an HDF5 file: {error}") from error
    with file:
        if "layer_names" in file.attrs:
            raise DataError(
                f"{shown} is in the old HDF5 format of Keras, which goes by the order of the layers. Load it into the "
                "model that wrote it, with load_weights, and save that as .weights.h5."
            )
        yield _H5File(shown, file)


class _H5File(WeightFile):
    """What `save_weights("x.weights.h5")` and `save("x.keras")` write, in either Keras."""

    def __init__(self, path: Path, file: Any) -> None:
        self._file = file
        self._datasets: list[str] = []
        file.visititems(lambda name, item: self._datasets.append(name) if isinstance(item, h5py.Dataset) else None)
        weights = [name for name in self._datasets if not _BESIDE_THE_WEIGHTS & set(name.split("/"))]
        super().__init__(path, {name: tuple(file[name].shape) for name in weights})

    def read(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._file[name])
        except OSError as error:
            raise DataError(
                f"{self.path}: the value of {name} cannot be read: {error}. The file is damaged."
            ) from error

    def places(self, model: Any, rename: Rename | None) -> dict[int, str]:
        """Has Keras itself find them: it loads a file in which each value is the number of its dataset.

        Where Keras looks for a layer depends on its version, on attributes and on containers; so its own loader is
        asked. The layers do not take the values, they note them; whatever else is loaded refuses their shape.
        """
        found: dict[int, str] = {}
        with tempfile.TemporaryDirectory(prefix="kser_tf_weights_") as folder:
            tags = Path(folder) / "tags.weights.h5"
            self._write_tags(tags, rename)
            with _recording(model, found, self._datasets), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ValueError, KeyError):  # what is missing is reported by the caller
                    model.load_weights(str(tags), skip_mismatch=True)
        return found

    def _write_tags(self, path: Path, rename: Rename | None) -> None:
        with h5py.File(path, "w") as file:
            file.create_group("vars")
            for number, name in enumerate(self._datasets):
                target = rename(name) if rename and name in self.shapes else name
                if target is None:
                    continue
                if target in file:
                    raise DataError(f"`names` gives two weights in {self.path} the same name, {target!r}.")
                file[target] = np.array([_TAG, number], np.int64).reshape(_TAG_SHAPE)


@contextlib.contextmanager
def _recording(model: Any, found: dict[int, str], datasets: Sequence[str]) -> Iterator[None]:
    """Has the layers of a model note what they would load, for the block."""

    def recorder(variables: list[Any]) -> Callable[[Any], None]:
        def record(store: Any) -> None:
            if sorted(store.keys()) != sorted(str(i) for i in range(len(variables))):
                raise ValueError("other weights")  # Keras may try another place, and reports none at last
            for i, variable in enumerate(variables):
                tag = np.asarray(store[str(i)]).reshape(-1)
                if tag.shape == (2,) and tag[0] == _TAG:
                    found[id(variable)] = datasets[int(tag[1])]

        return record

    layers = [(layer, variables) for layer in _layers(model) if (variables := own_weights(layer))]
    try:
        for layer, variables in layers:
            object.__setattr__(layer, "load_own_variables", recorder(variables))
        yield
    finally:
        for layer, _ in layers:
            vars(layer).pop("load_own_variables", None)


def _checkpoint_prefix(path: Path) -> str:
    if path.is_dir():
        prefix = tf.train.latest_checkpoint(str(path))
        if prefix is None:
            raise DataError(f"{path} holds neither a SavedModel nor a checkpoint with the file `checkpoint`.")
        return prefix
    prefix = str(path).removesuffix(".index")
    if not Path(f"{prefix}.index").is_file():
        raise DataError(
            f"{path}: there is no such file of weights. Expected a .weights.h5 or .keras file, the prefix of a checkpoint "
            "(without .index), a folder with the file `checkpoint`, or a SavedModel's folder."
        )
    return prefix


@dataclass(frozen=True)
class _Node:
    """An object in a file: its children by name, and the checkpoint's key of its value, if it is a variable."""

    children: Mapping[str, int]
    key: str | None


class _Checkpoint(WeightFile):
    """What `tf.train.Checkpoint`, `save_weights(..., save_format="tf")` and savers of SavedModels write."""

    def __init__(self, path: Path, prefix: str, *, saved_model: bool = False) -> None:
        try:
            self._reader = tf.train.load_checkpoint(prefix)
            shapes = self._reader.get_variable_to_shape_map()
            graph = trackable_object_graph_pb2.TrackableObjectGraph()
            if _GRAPH_KEY in shapes:
                graph.ParseFromString(self._reader.get_tensor(_GRAPH_KEY))
        except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"{path} cannot be read as a checkpoint: {error}") from error
        if not graph.nodes:
            raise DataError(
                f"{path} is a checkpoint of TensorFlow 1, which goes by names alone. Load it where it was made, and save "
                "the model as .weights.h5."
            )
        self._nodes = [
            _Node(
                {child.local_name: child.node_id for child in node.children},
                next((a.checkpoint_key for a in node.attributes if a.name == _VARIABLE), None),
            )
            for node in graph.nodes
        ]
        self._variable_names = _saved_names(path, self._nodes) if saved_model else {}
        slots = {slot.slot_variable_node_id for node in graph.nodes for slot in node.slot_variables}
        keys = {node.key for i, node in enumerate(self._nodes) if node.key and i not in slots}
        self._shapes_of_keys = {key: tuple(shapes[key]) for key in keys if key in shapes}
        super().__init__(path, {})
        self._choose(0)

    def _choose(self, root: int) -> None:
        """Names the weights from `root` on."""
        self._root = root
        self._keys = {}
        for node, name in _named(root, lambda node: self._nodes[node].children, lambda node: node):
            key = self._nodes[node].key
            if key is not None and key in self._shapes_of_keys:
                self._keys[name] = key
        self.shapes = {name: self._shapes_of_keys[key] for name, key in self._keys.items()}

    def read(self, name: str) -> np.ndarray:
        try:
            return self._reader.get_tensor(self._keys[name])
        except (tf.errors.OpError, RuntimeError, IndexError) as error:
            raise DataError(
                f"{self.path}: the value of {name} cannot be read: {error}. The file is damaged."
            ) from error

    def places(self, model: Any, rename: Rename | None) -> dict[int, str]:
        view = tf.train.TrackableView(model)
        best: dict[int, str] = {}
        roots = [0, *(node for name, node in self._nodes[0].children.items() if name not in _BESIDE_THE_WEIGHTS)]
        chosen = 0
        for root in roots:
            self._choose(root)
            found = self._renamed(view, model, rename) if rename else self._walked(view, model, root)
            if len(found) > len(best):
                best, chosen = found, root
        self._choose(chosen)
        return best or self._by_variable_names(model, rename)

    def _walked(self, view: Any, model: Any, root: int) -> dict[int, str]:
        """Goes through the file's objects and the model's together, along the same names, as TensorFlow does."""
        names = {key: name for name, key in self._keys.items()}
        wanted = {id(weight.variable) for weight in model_weights(model)}
        found: dict[int, str] = {}
        seen, waiting = {id(model)}, deque([(root, model)])
        while waiting:
            node, value = waiting.popleft()
            key = self._nodes[node].key
            if key in names and id(value) in wanted:
                found[id(value)] = names[key]
            children = view.children(value)
            for name, child_node in self._nodes[node].children.items():
                child = children.get(name)
                if child is not None and name not in _BESIDE_THE_WEIGHTS and id(child) not in seen:
                    seen.add(id(child))
                    waiting.append((child_node, child))
        return found

    def _renamed(self, view: Any, model: Any, rename: Rename) -> dict[int, str]:
        wanted = {id(weight.variable) for weight in model_weights(model)}
        ours = {name: id(value) for value, name in _named(model, view.children, id) if id(value) in wanted}
        found: dict[int, str] = {}
        for name in self.shapes:
            target = rename(name)
            if target in ours:
                if ours[target] in found:
                    raise DataError(f"`names` gives two weights in {self.path} the same name, {target!r}.")
                found[ours[target]] = name
        return found

    def _by_variable_names(self, model: Any, rename: Rename | None) -> dict[int, str]:
        """For what an export wrote, without the model's objects: by the variables' own names, where they are the model's."""
        keys: dict[str, str] = {}
        for key, name in sorted(self._variable_names.items()):
            if key in self._shapes_of_keys:
                keys[_unlike(name, keys)] = key
        if not keys:
            return {}
        self._keys = keys
        self.shapes = {name: self._shapes_of_keys[key] for name, key in keys.items()}
        self.hint = (
            "It was written by an export, which keeps the variables' names but not the layers that they belong to: use the "
            "file that the model's weights were saved in, or take it as a black box, kser_tf.SavedModelBackbone(path). "
        )
        ours: dict[str, list[int]] = {}
        for weight in model_weights(model):
            ours.setdefault(weight.name, []).append(id(weight.variable))
        targets = {name: rename(name) if rename else name for name in keys}
        return {
            ours[target][0]: name
            for name, target in targets.items()
            if target is not None and len(ours.get(target, ())) == 1 and list(targets.values()).count(target) == 1
        }


def _unlike(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, with a number if it is taken."""
    return next(new for i in range(1, len(taken) + 2) if (new := name if i == 1 else f"{name}#{i}") not in taken)


def _named(
    root: Any, children_of: Callable[[Any], Mapping[str, Any]], identity: Callable[[Any], Any]
) -> list[tuple[Any, str]]:
    """Each object below the root with the shortest path to it; of two paths, the first in their order.

    The optimizer and the like are left out: its references to the weights are there or not, and would change the names.
    """
    found = []
    seen, waiting = {identity(root)}, deque([("", root)])
    while waiting:
        path, value = waiting.popleft()
        if path:
            found.append((value, path))
        for name, child in sorted(children_of(value).items(), key=lambda item: item[0]):
            if name not in _BESIDE_THE_WEIGHTS and identity(child) not in seen:
                seen.add(identity(child))
                waiting.append((f"{path}/{name}" if path else name, child))
    return found


def _saved_names(path: Path, nodes: Sequence[_Node]) -> dict[str, str]:
    """For each key of a SavedModel's checkpoint the name of its variable, where one is saved."""
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((path / tf.saved_model.SAVED_MODEL_FILENAME_PB).read_bytes())
    except Exception as error:  # protobuf's own DecodeError, of which there are several
        raise DataError(f"{path}: saved_model.pb is damaged: {error}") from error
    objects = saved.meta_graphs[0].object_graph_def.nodes
    names: dict[str, str] = {}
    seen, waiting = {0}, deque([(0, 0)])
    while waiting:
        node, number = waiting.popleft()
        key = nodes[node].key
        if key and objects[number].WhichOneof("kind") == "variable":
            names[key] = objects[number].variable.name
        numbers = {child.local_name: child.node_id for child in objects[number].children}
        for name, child in nodes[node].children.items():
            if name in numbers and child not in seen:
                seen.add(child)
                waiting.append((child, numbers[name]))
    return names
