"""Prepared examples as TensorFlow reads them: indexed once, kept in mapped files, gathered batch by batch."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from kser_tf.errors import DataError
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.layers import KnowledgeLookup
from kser_tf.layers.mapped_tensor import mapped_tensor
from kser_tf.models.feature_indexer import FeatureIndexer, rows_name
from kser_tf.schema import LABEL, DatasetSchema, Feature

INDEX_FOLDER = "indexed"
_ROWS_AT_ONCE = 65536
# Of a history of 100 and profiles of 32 numbers: 105 MB.
_ROWS_COMPARED_AT_ONCE = 8192


class IndexedExamples:
    """The examples of one split of a prepared data set, indexed.

    Indexing a column takes its time, so the result is kept beside the prepared tables (`<prepared>/indexed/<split>`), a
    `.npy` file a feature, and used again by every run on the same tables.

    Args:
        prepared: The prepared folder.
        split: `"train"`, `"validation"` or `"test"`.
        stores: For each kind of entity with knowledge its store; the features that name such entities get the store's rows.
        users: The share of the split's users whose examples these are (see `chosen_users`). Defaults to all of them.
    """

    def __init__(
        self,
        prepared: str | Path,
        split: str,
        stores: Mapping[str, KnowledgeStore] | None = None,
        *,
        users: float = 1.0,
    ) -> None:
        self.schema = DatasetSchema.load(prepared)
        self._table = Path(prepared) / f"{split}.parquet"
        self._folder = Path(prepared) / INDEX_FOLDER / split
        self._files = self._index(dict(stores or {}))
        self._indexed = {name: mapped_tensor(np.load(path, mmap_mode="r")) for name, path in self._files.items()}
        self.tensors = dict(self._indexed)
        # The rows of the table that are examples; None where all are.
        self._rows: np.ndarray | None = None
        self._users = users
        if users < 1:
            self._rows = np.flatnonzero(chosen_users(self.column(self.schema.user_id), users))
        self.labels = self.column(LABEL).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def prepare_for(self, model: Any) -> None:
        """Makes these the examples that a model is trained with.

        What `RankingModel.compare_histories` makes of each example is added, so that no epoch computes it again; and of
        histories what the backbone does not see is left out. Both are kept beside the indexed columns.
        """
        self._compare_histories(model)
        for feature in self.schema.features:
            if feature.kind == "sequence" and feature.name not in model.seen_lengths:
                self.tensors.pop(feature.name)
                self.tensors.pop(rows_name(feature.name), None)
        seen = {part: length for name, length in model.seen_lengths.items() for part in (name, rows_name(name))}
        cut = {name: n for name, n in seen.items() if name in self._indexed and self._indexed[name].shape[1] > n}
        files = {name: self._files[name].with_suffix(f".first-{n}.npy") for name, n in cut.items()}
        self._add(files, lambda features: {name: features[name][:, :n] for name, n in cut.items()}, _ROWS_AT_ONCE)

    def _compare_histories(self, model: Any) -> None:
        if model.user_knowledge is None:
            return
        key = model.comparison_fingerprint()[:16]
        files = {name: self._folder / f"{name.replace('/', '.')}.{key}.npy" for name in model.user_knowledge.names}
        compare = tf.function(model.compare_histories, reduce_retracing=True)
        self._add(files, compare, _ROWS_COMPARED_AT_ONCE)

    def _add(self, files: dict[str, Path], make: Callable[[dict[str, Any]], Mapping[str, Any]], rows: int) -> None:
        """Adds tensors that are made of the indexed ones, `rows` examples at once, or reads them if that was done before."""
        missing = {name: path for name, path in files.items() if not path.is_file()}
        if missing:
            starts = range(0, pq.read_metadata(self._table).num_rows, rows)
            batches = ({name: all_[start : start + rows] for name, all_ in self._indexed.items()} for start in starts)
            self._write_arrays(missing, map(make, batches))
        self.tensors.update((name, mapped_tensor(np.load(path, mmap_mode="r"))) for name, path in files.items())

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns what `make` makes of these examples, or reads it if that was done before.

        Args:
            name: Of the file beside the indexed columns, without its ending; it must tell all that the array depends on, but for
                the examples themselves.
            make: Makes the array.
        """
        path = self._folder / f"{name}{'' if self._rows is None else f'.users-{self._users}'}.npy"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                np.save(made := Path(temporary) / path.name, make())
                os.replace(made, path)
        array: np.ndarray = np.load(path)
        return array

    def require_same_schema(self, schema: DatasetSchema) -> None:
        """Raises `DataError` unless a model of `schema` can read these examples."""
        if schema.fingerprint != self.schema.fingerprint:
            raise DataError(
                f"{self._table.parent} has other features or vocabularies than the data the model was trained on. "
                "Evaluate on the folder that it was trained on, or train it anew."
            )

    def column(self, name: str) -> np.ndarray:
        """Returns a column of the prepared table as it is there, of the rows that are examples."""
        values: np.ndarray = pq.read_table(self._table, columns=[name])[name].to_numpy()
        return values if self._rows is None else values[self._rows]

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """Returns all examples in the table's order, `(features, labels)`."""
        rows, gather = len(self), self._gather()

        def batch(number: Any) -> Any:
            return gather(tf.range(number * batch_size, tf.minimum((number + 1) * batch_size, rows)))

        count = -(-rows // batch_size)
        batches = tf.data.Dataset.range(count).map(batch).prefetch(2)
        return _untuned(batches.apply(tf.data.experimental.assert_cardinality(count)))

    def shuffled_batches(self, batch_size: int, *, seed: int, epochs: int, first_epoch: int = 0) -> tf.data.Dataset:
        """Returns the examples of epochs `first_epoch` to `epochs`, each in an order of its own, `(features, labels)`.

        The order depends on seed and epoch alone, so a run that was stopped sees after it what it would have seen.
        """
        rows, gather = len(self), self._gather()
        count = self.steps(batch_size)

        def batch(step: Any) -> Any:
            epoch, number = step // count, step % count
            places = tf.range(number * batch_size, tf.minimum((number + 1) * batch_size, rows))
            places = tf.random.experimental.index_shuffle(
                places, seed=tf.stack([tf.cast(seed, tf.int64), epoch]), max_index=rows - 1
            )
            return gather(places)

        steps = tf.data.Dataset.range(first_epoch * count, epochs * count)
        return _untuned(steps.map(batch, num_parallel_calls=1).prefetch(2))

    def some(self, count: int, batch_size: int) -> tf.data.Dataset:
        """Returns at most `count` examples, evenly spread over the table, `(features, labels)`."""
        gather, count = self._gather(), min(count, len(self))
        numbers = np.linspace(0, len(self) - 1, count).astype(np.int64)
        return _untuned(tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size).map(gather))

    def steps(self, batch_size: int) -> int:
        """Batches an epoch."""
        return -(-len(self) // batch_size)

    def raw_batches(self, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the features of the whole split as they are in the table, padded, `rows` at a time: what a request would hold."""
        yield from raw_features(self._table, self.schema.features, rows)

    def _gather(self) -> Callable[[Any], Any]:
        """Returns a function of examples' numbers that gives their `(features, labels)`."""
        labels = tf.constant(self.labels)
        rows = None if self._rows is None else tf.constant(self._rows)

        def gather(numbers: Any) -> Any:
            places = numbers if rows is None else tf.gather(rows, numbers)
            return {name: tf.gather(tensor, places) for name, tensor in self.tensors.items()}, tf.gather(
                labels, numbers
            )

        return gather

    def _index(self, stores: dict[str, KnowledgeStore]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for feature in self.schema.features:
            files[feature.name] = self._folder / f"{feature.name}.npy"
            if feature.entity in stores:
                files[rows_name(feature.name)] = (
                    self._folder / f"{feature.name}.{stores[feature.entity].fingerprint[:16]}.npy"
                )
        missing = {name: path for name, path in files.items() if not path.is_file()}
        if missing:
            features = [f for f in self.schema.features if f.name in missing or rows_name(f.name) in missing]
            lookups = {entity: KnowledgeLookup(store) for entity, store in stores.items()}
            self._write(missing, features, lookups)
        return files

    def _write(self, files: dict[str, Path], features: Sequence[Feature], lookups: dict[str, KnowledgeLookup]) -> None:
        indexer = FeatureIndexer(self.schema, lookups)
        index = tf.function(lambda raw: indexer.index(raw, features), reduce_retracing=True)
        self._write_arrays(files, map(index, raw_features(self._table, features, _ROWS_AT_ONCE)))

    def _write_arrays(self, files: dict[str, Path], batches: Iterable[Mapping[str, Any]]) -> None:
        """Writes features, batch by batch, each to its file; none is there before all are."""
        rows, start = pq.read_metadata(self._table).num_rows, 0
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            arrays: dict[str, np.memmap] = {}
            for batch in batches:
                for name, path in files.items():
                    values = batch[name].numpy()
                    if name not in arrays:
                        whole = (rows, *values.shape[1:])
                        arrays[name] = np.lib.format.open_memmap(
                            os.path.join(temporary, path.name), "w+", values.dtype, whole
                        )
                    arrays[name][start : start + len(values)] = values
                start += len(values)
            for name, array in arrays.items():
                array.flush()
                os.replace(os.path.join(temporary, files[name].name), files[name])


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Without the thread that tunes what is left to tune, here nothing: it holds up the end of training by up to a minute."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def chosen_users(users: np.ndarray, share: float) -> np.ndarray:
    """Returns which rows are of the chosen share of the users, bool `(rows,)`.

    Users are put in the order of a hash of their ids, and the first ones are taken: of n users the first ceil(share * n).
    So the choice is the same for everything that is trained, and a smaller share lies within a larger one.

    Args:
        users: `(rows,)`, the user of each row, integers or strings.
        share: Above 0, at most 1.
    """
    ids, numbers = np.unique(users.astype(str) if users.dtype == object else users, return_inverse=True)
    hashes = [hashlib.sha256(str(user).encode()).digest() for user in ids.tolist()]
    in_order = sorted(range(len(ids)), key=hashes.__getitem__)
    chosen = np.zeros(len(ids), np.bool_)
    chosen[in_order[: math.ceil(share * len(ids))]] = True
    return chosen[numbers]


def raw_features(table: Path, features: Sequence[Feature], rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields features of a prepared table as requests hold them: `(rows,)`, or padded `(rows, length)`."""
    by_name = {feature.name: feature for feature in features}
    for batch in pq.ParquetFile(table).iter_batches(rows, columns=list(by_name)):
        yield {name: _raw_column(batch[name], feature) for name, feature in by_name.items()}


def _raw_column(column: pa.Array, feature: Feature) -> np.ndarray:
    dtype = object if feature.dtype == "string" else np.dtype(feature.dtype)
    if feature.length is None:
        return column.to_numpy(zero_copy_only=False).astype(dtype)
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = np.minimum(column.value_lengths().to_numpy(zero_copy_only=False), feature.length)
    starts = column.offsets.to_numpy()[:-1] - column.offsets.to_numpy()[0]
    places = np.arange(feature.length)
    present = places < lengths[:, None]
    padded = np.full((len(column), feature.length), feature.missing, dtype)
    padded[present] = values[(starts[:, None] + places)[present]]
    return padded
