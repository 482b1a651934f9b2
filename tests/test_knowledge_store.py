"""The knowledge store gives back what was written, refuses what it must, and is whole or not there."""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kser_tf
from kser_tf import store_format
from kser_tf.errors import StoreError
from kser_tf.files import sha256_of_json
from kser_tf.knowledge_store import KnowledgeStore

FIELDS = ["story", "craft"]
SETTINGS: dict[str, Any] = {"fields": FIELDS, "encoder": "an-encoder"}
GOOD_COSINE = 0.9999

# Writes one batch of argv[1]'s store, says so, and waits for a line on stdin before the second batch.
SLOW_WRITER = """
import sys
import numpy as np
from kser_tf.knowledge_store import KnowledgeStore

def batches():
    for row in range(2):
        yield [row], np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 3), bool)
        if row == 0:
            print("writing", flush=True)
            sys.stdin.readline()

KnowledgeStore.write(sys.argv[1], batches=batches(), fields=["story", "craft"], encoder="an-encoder", overwrite=True)
"""

# Writes a store where no file may be larger than 100 kB, which the operating system enforces.
LIMITED_WRITER = """
import resource, sys
import numpy as np
from kser_tf.errors import StoreError
from kser_tf.knowledge_store import KnowledgeStore

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    KnowledgeStore.write(
        sys.argv[1], range(1000), np.ones((1000, 1, 1, 128), np.float32), np.ones((1000, 1, 1), bool), fields=["story"],
        encoder="e"
    )
except StoreError as error:
    print(error)
"""


def random_rows(
    count: int, *, fields: int = 2, chunks: int = 3, width: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (not in order), vectors and mask."""
    generator = np.random.default_rng(seed)
    ids = generator.permutation(10 * count)[:count]
    vectors = generator.normal(size=(count, fields, chunks, width)).astype(np.float32)
    return ids, vectors, generator.random((count, fields, chunks)) < 0.7


def write(path: Path, ids: Any = None, chunks: Any = None, mask: Any = None, **changes: Any) -> KnowledgeStore:
    return KnowledgeStore.write(path, ids, chunks, mask, **{**SETTINGS, **changes})


def scales_of(store: KnowledgeStore) -> np.ndarray:
    assert store.scales is not None
    return store.scales


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row by row, in float64."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def change_manifest(path: Path, **changes: Any) -> None:
    """Changes a manifest as another version of this package could have written it: with a fingerprint that fits."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    manifest["fingerprint"] = sha256_of_json({key: value for key, value in manifest.items() if key != "fingerprint"})
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def stored(path: Path) -> KnowledgeStore:
    return write(path, *random_rows(20))


# --- what is written is given back ---------------------------------------------------------------------------------


def test_lookup_of_a_hand_made_store(path: Path) -> None:
    step = 2.0**-7  # the largest component is 127 steps, so the scale is one step
    chunks = np.array([[[[127, -64, 3, 0]]], [[[2.4, -127, 2.6, -0.4]]], [[[7, 7, 7, 7]]]], dtype=np.float32) * step
    mask = np.array([[[True]], [[True]], [[False]]])
    store = KnowledgeStore.write(path, ["a", "b", "c"], chunks, mask, fields=["story"], encoder="e")
    np.testing.assert_array_equal(store.vectors[:, 0, 0], [[127, -64, 3, 0], [2, -127, 3, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(scales_of(store)[:, 0, 0], [step, step, 0])
    vectors, found = store.lookup(["b", "nobody", "c", "a"])
    np.testing.assert_array_equal(
        vectors[:, 0, 0] / step, [[2, -127, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0], [127, -64, 3, 0]]
    )
    np.testing.assert_array_equal(found[:, 0, 0], [True, False, False, True])
    assert vectors.dtype == np.float32
    assert found.dtype == bool


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[Any], np.ndarray, np.ndarray, Any]:
    """Ids, vectors, mask, and an id that is not among them."""
    shape = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 5)))
    an_id: st.SearchStrategy[Any] = draw(
        st.sampled_from([st.integers(-(2**63), 2**63 - 1), st.text(max_size=8), st.text("aé夜\0", max_size=300)])
    )
    *ids, unknown = draw(st.lists(an_id, min_size=1, max_size=9, unique=True))
    chunks = draw(
        hnp.arrays(np.float32, (len(ids), *shape), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    )
    return ids, chunks, draw(hnp.arrays(np.bool_, (len(ids), *shape[:-1]))), unknown


@pytest.mark.filterwarnings("ignore:float16 changes the direction")
@settings(max_examples=60, deadline=None)
@given(stores(), st.sampled_from(["float32", "float16"]), st.randoms(use_true_random=False))
def test_write_open_lookup_are_inverse(
    case: tuple[list[Any], np.ndarray, np.ndarray, Any], dtype: Any, random: Any
) -> None:
    ids, chunks, mask, unknown = case
    if dtype == "float16":
        chunks = np.clip(chunks, -65504, 65504)
    expected = {key: np.where(mask[row][..., None], chunks[row].astype(dtype), 0) for row, key in enumerate(ids)}
    asked = random.choices([*ids, unknown], k=12)
    fields = [f"field {index}" for index in range(chunks.shape[1])]
    with tempfile.TemporaryDirectory() as folder:
        KnowledgeStore.write(Path(folder, "s"), ids, chunks, mask, fields=fields, encoder="e", dtype=dtype)
        store = KnowledgeStore.open(Path(folder, "s"))
        vectors, found = store.lookup(asked)
        assert store.ids.tolist() == ids
        assert store.mask.tolist() == mask.tolist()
    for row, key in enumerate(asked):
        wanted = expected.get(key, np.zeros(chunks.shape[1:])).astype(np.float32)
        assert vectors[row].tobytes() == wanted.tobytes()  # bit by bit: also -0.0 and denormal numbers
        np.testing.assert_array_equal(found[row], mask[ids.index(key)] if key in expected else False)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_lookup_over_many_blocks(path: Path, dtype: Any) -> None:
    """Large vectors, so that a block is three rows, with unknown ids among the known."""
    ids, chunks, mask = random_rows(40, width=15_000)
    store = write(path, ids, chunks, mask, dtype=dtype)
    asked = np.concatenate([ids[:10], [-5, -6], ids[::-3], [-7], ids[10:20]])
    vectors, found = store.lookup(asked)
    for row, key in enumerate(asked):
        place = np.flatnonzero(ids == key)
        wanted = store.vectors[place[0]].astype(np.float32) if place.size else np.zeros_like(chunks[0])
        if dtype == "int8" and place.size:
            wanted = wanted * scales_of(store)[place[0]].astype(np.float32)[..., None]
        np.testing.assert_array_equal(vectors[row], wanted)
        np.testing.assert_array_equal(found[row], mask[place[0]] if place.size else False)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 2), (2, 0, 3), (2, 1, 3)])
@pytest.mark.parametrize("kind", ["int64", "string"])
def test_lookup_keeps_the_shape_of_the_ids(path: Path, shape: tuple[int, ...], kind: str) -> None:
    ids, chunks, mask = random_rows(20)
    ids = ids.astype(str) if kind == "string" else ids
    store = write(path, ids, chunks, mask, dtype="float32")
    places = np.random.default_rng(1).integers(0, 20, shape)
    vectors, found = store.lookup(ids[places])
    assert vectors.shape == (*shape, 2, 3, 4)
    np.testing.assert_array_equal(vectors, np.where(mask[..., None], chunks, 0)[places])
    np.testing.assert_array_equal(found, mask[places])
    np.testing.assert_array_equal(store.rows(ids[places]), places)


@pytest.mark.parametrize("empty", [[], np.array([]), np.zeros((0,), dtype=object)], ids=["list", "float64", "object"])
def test_lookup_of_nothing(stored: KnowledgeStore, empty: Any) -> None:
    vectors, found = stored.lookup(empty)
    assert vectors.shape == (0, 2, 3, 4)
    assert found.shape == (0, 2, 3)


class Tensor:
    """What TensorFlow's eager tensors have in common with arrays."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        lambda ids: np.array(ids, dtype=np.int8),
        lambda ids: np.array(ids, dtype=">i4"),
        lambda ids: np.array(ids, dtype=np.uint64),
        lambda ids: np.array(ids, dtype=object),
        lambda ids: [np.int32(value) for value in ids],
        pd.Series,
        lambda ids: pd.Series(ids, dtype="Int64"),
        lambda ids: Tensor(np.array(ids)),
    ],
)
def test_integer_ids_of_every_kind(path: Path, convert: Callable[[list[int]], Any]) -> None:
    ids = [3, 120, 7]
    chunks, mask = random_rows(3)[1:]
    store = write(path, convert(ids), chunks, mask)
    assert store.id_dtype == "int64"
    assert store.ids.dtype == np.int64
    assert store.ids.tolist() == ids
    assert store.rows(convert([7, 8, 3])).tolist() == [2, -1, 0]


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        lambda ids: np.array(ids, dtype=object),
        lambda ids: np.array(ids, dtype=np.dtypes.StringDType()),
        lambda ids: [value.encode() for value in ids],
        lambda ids: np.array([value.encode() for value in ids]),
        lambda ids: [np.str_(value) for value in ids],
        pd.Series,
        lambda ids: pd.Series(ids, dtype="category"),
        lambda ids: Tensor(np.array([value.encode() for value in ids], dtype=object)),
    ],
)
def test_string_ids_of_every_kind(path: Path, convert: Callable[[list[str]], Any]) -> None:
    ids = ["Ночной дозор", "", "夜", "b" * 10_000, "🎬 e\u0301"]
    chunks, mask = random_rows(5)[1:]
    store = write(path, convert(ids), chunks, mask)
    assert store.id_dtype == "string"
    assert store.ids.tolist() == ids
    assert store.rows(convert(["夜", "🎬 \u00e9", "b" * 9_999, "", ids[4], "1"])).tolist() == [2, -1, -1, 1, 4, -1]


def test_integers_that_int64_does_not_hold_are_unknown(path: Path) -> None:
    chunks, mask = random_rows(3)[1:]
    store = write(path, [0, -1, 2**63 - 1], chunks, mask)
    asked = np.array([2**64 - 1, 2**63, 2**63 - 1, 0], dtype=np.uint64)
    assert store.rows(asked).tolist() == [-1, -1, 2, 0]
    assert store.rows([2**70, -(2**70), -1]).tolist() == [-1, -1, 1]


def test_strings_that_are_not_utf8_are_unknown(path: Path) -> None:
    chunks, mask = random_rows(2)[1:]
    store = write(path, ["a", "é"], chunks, mask)
    assert store.rows([b"\xff\xfe", "é".encode(), b"a\xc3"]).tolist() == [-1, 1, -1]
    assert store.rows(["\ud800", "a"]).tolist() == [-1, 0]


def test_masked_chunks_are_zero_whatever_they_were(path: Path) -> None:
    chunks = np.full((1, 2, 2, 3), np.nan, dtype=np.float32)
    chunks[0, 0, 0] = [1, 2, 4]
    chunks[0, 1, 0] = np.inf
    mask = np.array([[[True, False], [False, False]]])
    store = write(path, [5], chunks, mask)
    assert not store.vectors[~mask].any()
    assert not scales_of(store)[~mask].any()
    assert not store.lookup([5])[0][~mask].any()
    assert store.vectors[mask].tolist() == [[32, 64, 127]]


def test_float64_and_float16_vectors_are_taken(path: Path) -> None:
    ids, chunks, mask = random_rows(5)
    for dtype in (np.float64, np.float16):
        store = write(path, ids, chunks.astype(dtype), mask, dtype="float32", overwrite=True)
        np.testing.assert_array_equal(store.vectors[mask], chunks.astype(dtype).astype(np.float32)[mask])


# --- int8 ----------------------------------------------------------------------------------------------------------


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def spiky(count: int, width: int, share: float) -> np.ndarray:
    """Vectors of length 1, one component of which is `share`."""
    generator = np.random.default_rng(0)
    vectors = unit(generator.normal(size=(count, width))) * np.sqrt(1 - share**2)
    vectors[np.arange(count), generator.integers(0, width, count)] = share
    return unit(vectors)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "vectors",
    [
        unit(np.random.default_rng(0).normal(size=(2000, 384))),
        unit(np.random.default_rng(0).normal(size=(2000, 32))),
        spiky(2000, 384, 5 / 384**0.5),
        spiky(2000, 1024, 5 / 1024**0.5),
        unit(np.random.default_rng(0).normal(size=(2000, 384))) * np.float32(5000),
        unit(np.random.default_rng(0).normal(size=(2000, 384))) * np.float32(0.02),
        np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size=(2000, 384)),
    ],
    ids=["normal", "narrow", "spiky", "wide spiky", "long", "short", "signs"],
)
def test_int8_keeps_the_direction_of_vectors(path: Path, vectors: np.ndarray) -> None:
    chunks = vectors.reshape(-1, 2, 2, vectors.shape[-1])
    store = write(path, range(len(chunks)), chunks, np.ones(chunks.shape[:-1], bool))
    looked_up, _ = store.lookup(store.ids)
    lowest = cosines(looked_up, chunks).min()
    assert lowest >= GOOD_COSINE
    assert store.manifest["lowest_cosine"] == pytest.approx(lowest, abs=2e-6)
    # Rounding to the nearest level: half a level at most, but for what rounding the scale itself to float16 adds at the
    # top.
    error = np.abs(looked_up.astype(np.float64) - chunks)
    assert (error <= 0.501 * scales_of(store).astype(np.float64)[..., None]).all()


def test_int8_warns_where_it_does_not_keep_the_direction(path: Path) -> None:
    chunks = spiky(60, 384, 0.9).reshape(10, 2, 3, 384)
    chunks[4, 1, 2] = spiky(1, 384, 0.97)
    with pytest.warns(
        UserWarning, match=r"int8 changes .* 0\.99\d+, at id 4, field 'craft', chunk 2\. float16"
    ) as caught:
        store = write(path, range(10), chunks, np.ones((10, 2, 3), bool))
    assert caught[0].filename == __file__
    lowest = cosines(store.lookup(store.ids)[0], chunks).min()
    assert lowest < GOOD_COSINE
    assert store.describe()["lowest_cosine"] == pytest.approx(lowest, abs=2e-6)


def test_zero_vectors_that_are_there_stay_zero(path: Path) -> None:
    store = write(path, [1], np.zeros((1, 2, 3, 4)), np.ones((1, 2, 3), bool))
    vectors, found = store.lookup([1])
    assert not vectors.any()
    assert found.all()
    assert store.manifest["lowest_cosine"] == 1


@pytest.mark.parametrize(("largest", "dtype"), [(1e-3, "int8"), (1e7, "int8"), (70_000, "float16")])
def test_vectors_out_of_the_range_of_the_dtype_are_refused(path: Path, largest: float, dtype: Any) -> None:
    chunks = np.ones((3, 2, 3, 4), np.float32)
    chunks[1, 1, 0, 2:] = [-largest, 0]
    chunks[1, 1, 0, :2] = 0
    with pytest.raises(StoreError, match=r"id 20, field 'craft', chunk 0 .*Use|use dtype='float32'"):
        write(path, [10, 20, 30], chunks, np.ones((3, 2, 3), bool), dtype=dtype)
    assert names_in(path.parent) == []
    store = write(path, [10, 20, 30], chunks, np.ones((3, 2, 3), bool), dtype="float32")
    assert store.lookup(20)[0][1, 0].tolist() == chunks[1, 1, 0].tolist()


# --- the files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_files_are_those_of_numpy_aligned_and_without_pickle(path: Path, dtype: Any, kind: str) -> None:
    ids, chunks, mask = random_rows(20)
    ids = ids.astype(str) if kind == "string" else ids
    store = write(path, ids, chunks, mask, dtype=dtype)
    expected: dict[str, np.ndarray] = {"vectors.npy": np.array(store.vectors), "mask.npy": mask}
    if store.scales is not None:
        expected["scales.npy"] = np.array(store.scales)
        assert store.scales.dtype == np.float16
    if kind == "int64":
        expected["ids.npy"] = ids
    else:
        encoded = [value.encode() for value in ids.tolist()]
        expected["id_bytes.npy"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        expected["id_offsets.npy"] = np.cumsum([0, *map(len, encoded)])
    assert names_in(path) == sorted([*expected, "manifest.json"])
    for name, array in expected.items():
        np.save(path.parent / "numpy.npy", array, allow_pickle=False)
        assert (path / name).read_bytes() == (path.parent / "numpy.npy").read_bytes()
    for mapped in (store.vectors, store.mask, store.scales):
        if mapped is not None:
            assert isinstance(mapped, np.memmap)
            assert mapped.ctypes.data % 64 == 0
            assert not mapped.flags.writeable
    assert store.dtype == dtype
    assert store.vectors.dtype == dtype


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=6), st.sampled_from(["int8", "float16"]), st.sampled_from(["int64", "string"])
)
def test_batches_give_the_files_of_one_write(cuts: list[int], dtype: Any, kind: str) -> None:
    ids, chunks, mask = random_rows(60, width=3)
    ids = ids.astype(str) if kind == "string" else ids
    edges = [0, *sorted(cuts), 60]
    batches = [(ids[a:b], chunks[a:b], mask[a:b]) for a, b in itertools.pairwise(edges)]
    with tempfile.TemporaryDirectory() as folder:
        one = write(Path(folder, "one"), ids, chunks, mask, dtype=dtype)
        many = write(Path(folder, "many"), batches=iter(batches), dtype=dtype)
        assert names_in(one.path) == names_in(many.path)
        for name in names_in(one.path):
            assert (one.path / name).read_bytes() == (many.path / name).read_bytes()


def test_manifest_tells_what_the_store_is(path: Path) -> None:
    ids, chunks, mask = random_rows(20)
    store = write(path, ids, chunks, mask, encoder_fingerprint="abc", text_hash="def")
    manifest = json.loads((path / "manifest.json").read_text())
    assert store.manifest == manifest
    assert {key: manifest[key] for key in ("format_version", "rows", "fields", "chunks_per_field", "width")} == {
        "format_version": 1,
        "rows": 20,
        "fields": FIELDS,
        "chunks_per_field": 3,
        "width": 4,
    }
    assert (manifest["encoder"], manifest["encoder_fingerprint"], manifest["text_hash"]) == ("an-encoder", "abc", "def")
    assert (manifest["vector_dtype"], manifest["id_dtype"]) == ("int8", "int64")
    assert (store.fields, store.chunks_per_field, store.width, len(store)) == (("story", "craft"), 3, 4, 20)


def test_fingerprint_stands_for_the_content(tmp_path: Path) -> None:
    ids, chunks, mask = random_rows(20)
    other = chunks.copy()
    other[tuple(np.argwhere(mask)[-1])] *= -1
    prints = [
        write(tmp_path / "a", ids, chunks, mask).fingerprint,
        write(tmp_path / "b", ids, chunks, mask).fingerprint,
        write(tmp_path / "c", ids, other, mask).fingerprint,
        write(tmp_path / "d", ids + 1, chunks, mask).fingerprint,
        write(tmp_path / "e", ids, chunks, mask, encoder="another").fingerprint,
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_describe(path: Path) -> None:
    mask = np.zeros((4, 2, 3), dtype=bool)
    mask[0, 0] = mask[1, 0, 1] = mask[2, 1, 2] = True
    store = write(path, ["a", "b", "c", "d"], np.ones((4, 2, 3, 8)), mask, dtype="float16")
    description = store.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["coverage"] == {"story": 0.5, "craft": 0.25}
    assert description["chunks"] == 5
    assert description["rows"] == 4
    assert description["bytes"] == sum(
        (path / name).stat().st_size for name in names_in(path) if name != "manifest.json"
    )
    assert "4 rows, fields story, craft, 3 chunks of width 8, float16, string ids" in repr(store)


@pytest.mark.parametrize("ids", [np.zeros(0, np.int32), np.zeros(0, "U1"), []], ids=["int64", "string", "untyped"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_store_without_rows(path: Path, ids: Any, dtype: Any) -> None:
    write(path, ids, np.zeros((0, 2, 3, 4), np.float32), np.zeros((0, 2, 3), bool), dtype=dtype)
    store = KnowledgeStore.open(path)
    assert len(store) == 0
    for asked in ([1, 2], ["a", "b"]):
        vectors, found = store.lookup(asked)
        assert vectors.shape == (2, 2, 3, 4)
        assert not vectors.any()
        assert not found.any()
    assert store.vectors.shape == store.shuffled(0).vectors.shape == (0, 2, 3, 4)
    assert store.describe()["coverage"] == {"story": 0, "craft": 0}


def test_a_store_without_batches_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match=r"no batch came, .* give one batch"):
        write(path, batches=[])
    assert names_in(path.parent) == []


def test_the_store_does_not_import_tensorflow() -> None:
    code = "import sys, kser_tf; kser_tf.KnowledgeStore; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert kser_tf.KnowledgeStore is KnowledgeStore


# --- memory and speed ----------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_batch(path: Path) -> None:
    rows, batch = 20_000, 500
    total = rows * 2 * 2 * 64 * 4  # bytes in float32

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        generator = np.random.default_rng(0)
        for start in range(0, rows, batch):
            chunks = generator.normal(size=(batch, 2, 2, 64)).astype(np.float32)
            yield np.arange(start, start + batch), chunks, np.ones((batch, 2, 2), bool)

    for dtype in ("int8", "float32"):
        peak = peak_memory(functools.partial(write, path, batches=batches(), dtype=dtype, overwrite=True))
        assert peak < 0.25 * total  # measured: 0.13, of which most is the generator's batch and one block
    store = KnowledgeStore.open(path)
    placebo = store.shuffled(0)
    asked = np.random.default_rng(0).integers(0, rows, 1000)
    result = 1000 * 2 * 2 * 64 * 4
    assert peak_memory(lambda: store.lookup(asked)) < result + 0.1 * total
    assert peak_memory(lambda: placebo.lookup(asked)) < result + 0.1 * total
    assert peak_memory(lambda: KnowledgeStore.open(path)) < 0.2 * total


def peak_memory(act: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once, beyond those before."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_lookup_is_bound_by_memory_and_not_by_python(path: Path, kind: str) -> None:
    """21,000 ids of a 4,000-row store, against copying as many rows of float32."""
    generator = np.random.default_rng(0)
    chunks = generator.normal(size=(4000, 3, 3, 384)).astype(np.float32)
    ids = generator.permutation(4000).astype(str if kind == "string" else np.int64)
    store = write(path, ids, chunks, np.ones((4000, 3, 3), bool), fields=["a", "b", "c"])
    places = generator.integers(0, 4000, 21_000)
    asked = ids[places]
    lookup = min(seconds(lambda: store.lookup(asked)) for _ in range(3))
    copy = min(seconds(lambda: chunks[places]) for _ in range(3))
    assert lookup < 6 * copy  # measured: 1.2


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def test_lookup_from_many_threads_at_once(path: Path) -> None:
    ids = np.random.default_rng(0).permutation(50_000)
    chunks = ids.astype(np.float32).reshape(-1, 1, 1, 1)
    for kind in (str, np.int64):
        write(
            path,
            ids.astype(kind),
            chunks,
            np.ones(chunks.shape[:-1], bool),
            fields=["f"],
            dtype="float32",
            overwrite=True,
        )
        store = KnowledgeStore.open(path)  # its index is not made yet
        wrong: list[int] = []
        start = threading.Barrier(8)

        def work(store: KnowledgeStore = store, start: threading.Barrier = start, kind: Any = kind) -> None:
            start.wait()
            vectors, _ = store.lookup(ids.astype(kind))
            wrong.append(int((vectors.ravel() != ids).sum()))  # noqa: B023 (joined below)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [0] * 8


# --- the placebo ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 50])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_shuffled_gives_each_the_knowledge_of_another(path: Path, count: int, dtype: Any) -> None:
    ids, chunks, mask = random_rows(count)
    mask[:, 0, 0] = True
    store = write(path, ids, chunks, mask, dtype=dtype)
    own, own_mask = store.lookup(ids)
    for seed in range(5):
        placebo = store.shuffled(seed)
        vectors, found = placebo.lookup(ids)
        source = [next(k for k in range(count) if np.array_equal(own[k], vectors[row])) for row in range(count)]
        assert sorted(source) == list(range(count))
        assert all(source[row] != row for row in range(count))
        np.testing.assert_array_equal(found, own_mask[source])
        np.testing.assert_array_equal(placebo.vectors, store.vectors[source])
        np.testing.assert_array_equal(placebo.mask, store.mask[source])
        assert (placebo.scales is None) == (store.scales is None)
        if store.scales is not None:
            np.testing.assert_array_equal(placebo.scales, store.scales[source])
        assert placebo.vectors.ctypes.data % 64 == 0
        assert placebo.vectors is placebo.vectors
        assert placebo.ids.tolist() == store.ids.tolist()
        assert placebo.rows([-1, ids[1]]).tolist() == [-1, 1]


def test_shuffled_depends_on_the_seed_alone(path: Path) -> None:
    store = write(path, *random_rows(50))
    first, again, other = store.shuffled(1), KnowledgeStore.open(path).shuffled(1), store.shuffled(2)
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert not np.array_equal(first.vectors, other.vectors)
    assert first.fingerprint == again.fingerprint
    assert len({store.fingerprint, first.fingerprint, other.fingerprint}) == 3
    assert first.manifest["shuffled"] == {"seed": 1, "of": store.fingerprint}
    assert first.describe()["coverage"] == store.describe()["coverage"]


def test_shuffled_twice(path: Path) -> None:
    store = write(path, *random_rows(50)).shuffled(1)
    twice = store.shuffled(2)
    np.testing.assert_array_equal(
        np.sort(twice.vectors.reshape(50, -1), axis=0), np.sort(store.vectors.reshape(50, -1), axis=0)
    )
    np.testing.assert_allclose(
        twice.lookup(twice.ids)[0], twice.vectors * scales_of(twice)[..., None].astype(np.float32), rtol=1e-6
    )
    assert not (twice.vectors == store.vectors).all(axis=(1, 2, 3)).any()


def test_shuffled_store_of_one_entity_keeps_it(path: Path) -> None:
    store = write(path, *random_rows(1))
    np.testing.assert_array_equal(store.shuffled(0).vectors, store.vectors)


# --- what is refused when writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3, 2, 1], r"ids occur more than once: 1, 2\. Give each entity one row"),
        (["a", "b", "é", "é", "c"], r"ids occur more than once: 'é'"),
        ([0, *range(4)], "more than once: 0"),
        ([True, False, True, False, True], "all integers or all strings.*Received: bool"),
        (np.array([True] * 5), "Received: bool"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "Received: float .*first is 1.0"),
        (np.arange(5.0), "Received: float"),
        ([1, "a", 2, 3, 4], "Received: int, str"),
        ([1, True, 2, 3, 4], "Received: bool, int"),
        ([b"a", "b", "c", "d", "e"], "Received: bytes, str"),
        (["a", None, "c", "d", "e"], "Received: NoneType, str .*leave out those that are missing"),
        (["a", float("nan"), "c", "d", "e"], "Received: float, str"),
        (pd.Series([1, None, 3, 4, 5]), "Received: float"),
        (pd.to_datetime(["2020-01-01"] * 5), "must be all integers or all strings"),
        ([[1], [2], [3], [4], [5]], r"`ids` must have shape \(n,\)\. Received: \(5, 1\)"),
        ([1, 2, 3], "`ids` has 3 rows, but `chunks` has 5"),
        ([0, 1, 2, 3, 2**63], "id 9223372036854775808 does not fit into int64. Use strings"),
        (["a", "b", "c", "d", "\ud800"], r"id '\\ud800' cannot be written as UTF-8"),
    ],
)
def test_bad_ids_are_refused(path: Path, ids: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write(path, ids, *random_rows(5)[1:])
    assert names_in(path.parent) == []


def test_many_repeated_ids_are_not_all_named(path: Path) -> None:
    ids = [*range(8), *range(8)]
    with pytest.raises(StoreError, match="more than once: 0, 1, 2, 3, 4 and 3 more"):
        write(path, ids, *random_rows(16)[1:])


def test_ids_that_repeat_in_another_batch_are_refused(path: Path) -> None:
    ids, chunks, mask = random_rows(6)
    with pytest.raises(StoreError, match=f"more than once: {ids[1]}"):
        write(path, batches=[(ids[:4], chunks[:4], mask[:4]), (ids[1:2], chunks[4:5], mask[4:5])])
    assert names_in(path.parent) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("kind", [int, str])
def test_vectors_that_are_not_finite_are_refused(path: Path, bad: float, dtype: Any, kind: type) -> None:
    chunks = np.ones((4, 2, 3, 5))
    chunks[2, 1, 2, 3] = chunks[3, 0, 0, 0] = bad
    key = repr(kind(102))
    with pytest.raises(
        StoreError, match=f"id {key}, field 'craft', chunk 2 holds NaN or infinity .and 1 more.. Encode"
    ):
        write(path, [kind(100 + row) for row in range(4)], chunks, np.ones((4, 2, 3), bool), dtype=dtype)
    assert names_in(path.parent) == []


def test_float64_vectors_that_float32_does_not_hold_are_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="id 7, field 'story', chunk 0 holds NaN or infinity"):
        write(path, [7], np.full((1, 2, 3, 4), 1e300), np.ones((1, 2, 3), bool), dtype="float32")


@pytest.mark.parametrize(
    ("chunks", "mask", "message"),
    [
        (np.ones((2, 3, 3, 4)), np.ones((2, 3, 3), bool), r"`chunks` has 3 fields .* but 2 are named: story, craft"),
        (np.ones((2, 2, 4)), np.ones((2, 2), bool), r"`chunks` must have shape \(n, fields, chunks, width\)"),
        (np.ones((2, 2, 0, 4)), np.ones((2, 2, 0), bool), r"not 0 but for n\. Received: \(2, 2, 0, 4\)"),
        (np.ones((2, 2, 3, 0)), np.ones((2, 2, 3), bool), r"not 0 but for n\. Received: \(2, 2, 3, 0\)"),
        (np.ones((2, 2, 3, 4), int), np.ones((2, 2, 3), bool), "`chunks` must be floating point.*Received: int64"),
        (np.ones((2, 2, 3, 4)), np.ones((2, 2, 4), bool), r"`mask` must have shape \(2, 2, 3\).*Received: \(2, 2, 4\)"),
        (np.ones((2, 2, 3, 4)), np.ones((2, 2, 3)), "`mask` must be bool.*Received: float64"),
    ],
)
def test_bad_arrays_are_refused(path: Path, chunks: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write(path, [1, 2], chunks, mask)
    assert names_in(path.parent) == []


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            ([3], np.ones((1, 2, 3, 5)), np.ones((1, 2, 3), bool)),
            r"batch 2: .* = \(2, 3, 5\), but \(2, 3, 4\) in the batches",
        ),
        (([3], np.ones((1, 2, 2, 4)), np.ones((1, 2, 2), bool)), r"batch 2: .* = \(2, 2, 4\), but \(2, 3, 4\)"),
        (([3], np.ones((1, 1, 3, 4)), np.ones((1, 1, 3), bool)), "batch 2: `chunks` has 1 fields"),
        (
            (["3"], np.ones((1, 2, 3, 4)), np.ones((1, 2, 3), bool)),
            "batch 2: the ids are string, but int64 in the batches",
        ),
        (([3], np.full((1, 2, 3, 4), np.nan), np.ones((1, 2, 3), bool)), "batch 2: the vector of id 3, field 'story'"),
        (([3], np.ones((1, 2, 3, 4))), r"each batch must be a tuple \(ids, chunks, mask\)"),
    ],
)
def test_batches_that_do_not_go_together_are_refused(path: Path, second: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write(path, batches=[([1, 2], np.ones((2, 2, 3, 4)), np.ones((2, 2, 3), bool)), second])
    assert names_in(path.parent) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": []}, "`fields` is empty"),
        ({"fields": ["story", "story"]}, "`fields` names 'story' more than once"),
        ({"fields": "story"}, "`fields` must be a list of names. Received: 'story'"),
        ({"fields": ["story", ""]}, "`fields` must be a list of names"),
        ({"dtype": "int4"}, "`dtype` must be one of int8, float16, float32. Received: 'int4'"),
        ({"encoder": ""}, "`encoder` must be the encoder's name"),
        ({"encoder": None}, "`encoder` must be the encoder's name. Received: None"),
        ({"batches": []}, "give either `ids`, `chunks` and `mask`, or `batches`"),
    ],
)
def test_bad_arguments_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write(path, *random_rows(2), **changes)
    assert names_in(path.parent) == []


def test_missing_arrays_are_refused(path: Path) -> None:
    ids, chunks, _ = random_rows(2)
    with pytest.raises(StoreError, match="give either `ids`, `chunks` and `mask`, or `batches`"):
        write(path, ids, chunks)


def test_an_existing_store_is_kept_unless_told_otherwise(path: Path) -> None:
    ids, chunks, mask = random_rows(20)
    old = write(path, ids, chunks, mask, dtype="float32")
    vectors = old.lookup(ids)[0]
    with pytest.raises(StoreError, match=r"store exists already.*overwrite=True"):
        write(path, ids, chunks + 1, mask)
    new = write(path, ids, chunks + 1, mask, dtype="float32", overwrite=True)
    np.testing.assert_array_equal(old.lookup(ids)[0], vectors)  # who has it open keeps it
    np.testing.assert_array_equal(new.lookup(ids)[0][mask], (chunks + 1)[mask])
    assert names_in(path.parent) == ["store"]


def test_only_a_store_is_ever_overwritten(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("the only copy")
    (path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="is not a knowledge store, and is not overwritten"):
        write(path, *random_rows(2), overwrite=True)
    assert (path / "thesis.txt").read_text() == "the only copy"


def test_errors_of_the_stream_come_through_and_leave_nothing(path: Path) -> None:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        yield random_rows(5)
        raise ConnectionError("the text source is gone")

    with pytest.raises(ConnectionError, match="the text source is gone"):
        write(path, batches=batches())
    assert names_in(path.parent) == []


# --- other processes, kills, full disks ----------------------------------------------------------------------------


def start_slow_writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_two_processes_cannot_write_one_store(path: Path) -> None:
    process = start_slow_writer(path)
    try:
        with pytest.raises(StoreError, match="store is locked: another process is writing there"):
            write(path, *random_rows(20))
        assert not path.exists()
    finally:
        process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert KnowledgeStore.open(path).ids.tolist() == [0, 1]
    assert names_in(path.parent) == ["store"]


@pytest.mark.parametrize("there_is_an_old_one", [False, True])
def test_a_killed_writer_leaves_no_half_store(path: Path, there_is_an_old_one: bool) -> None:
    ids, chunks, mask = random_rows(20)
    if there_is_an_old_one:
        write(path, ids, chunks, mask)
    process = start_slow_writer(path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    if there_is_an_old_one:
        assert len(KnowledgeStore.open(path)) == 20
    else:
        with pytest.raises(StoreError, match="holds no knowledge store"):
            KnowledgeStore.open(path)
    assert len(write(path, ids[:7], chunks[:7], mask[:7], overwrite=True)) == 7
    assert names_in(path.parent) == ["store"], "what the killed writer left is removed"


def test_a_limit_on_file_sizes_leaves_nothing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED_WRITER, str(path)], capture_output=True, text=True, check=True)
    assert "store: the disk is full (File too large)" in done.stdout
    assert names_in(path.parent) == []


@pytest.mark.parametrize("after_bytes", [0, 100, 1000, 5000])
def test_a_full_disk_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    left = after_bytes

    class SmallDisk:
        """A file on a disk that has room for some bytes more."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            self.file = builtins.open(*arguments, **keywords)  # noqa: SIM115 (closed by its user)

        def write(self, data: Any) -> int:
            nonlocal left
            left -= memoryview(data).nbytes
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(store_format, "open", SmallDisk, raising=False)
    with pytest.raises(StoreError, match=r"store: the disk is full \(No space left on device\).*Free some space"):
        write(path, *random_rows(200))
    assert names_in(path.parent) == []


def test_a_full_disk_keeps_the_old_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(path, *random_rows(20))

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        write(path, *random_rows(30), overwrite=True)
    assert KnowledgeStore.open(path).fingerprint == store.fingerprint
    assert names_in(path.parent) == ["store"]


def test_a_reader_gets_the_old_or_the_new_store(path: Path) -> None:
    """Opened over and over while it is replaced, a store is never a mixture, and never missing."""

    def write_constant(value: int) -> None:
        chunks = np.full((40, 2, 3, 4), value, np.float32)
        write(path, np.arange(40) + value, chunks, np.ones((40, 2, 3), bool), dtype="float32", overwrite=True)

    write_constant(1)
    done = threading.Event()
    problems: list[str] = []
    opened = 0

    def read() -> None:
        nonlocal opened
        while not done.is_set():
            try:
                store = KnowledgeStore.open(path, verify=opened % 2 == 0)
            except StoreError as error:
                problems.append(str(error))
            else:
                opened += 1
                if {*np.unique(store.vectors).tolist()} != {int(store.ids[0])}:
                    problems.append("a mixture")

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(2, 30):
        write_constant(value)
    done.set()
    reader.join()
    assert problems == []
    assert opened > 0


# --- what is refused when opening ----------------------------------------------------------------------------------


def test_there_is_no_store(path: Path) -> None:
    with pytest.raises(StoreError, match=r"store holds no knowledge store: manifest\.json is missing\. Make one with"):
        KnowledgeStore.open(path)
    path.mkdir()
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        KnowledgeStore.open(path)
    (path / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match=r"manifest\.json is not the manifest of a knowledge store"):
        KnowledgeStore.open(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(path: Path, stored: KnowledgeStore, version: Any) -> None:
    change_manifest(path, format_version=version)
    with pytest.raises(
        StoreError, match=rf"manifest.json: format version {version!r}, expected 1. Write the store again"
    ):
        KnowledgeStore.open(path, verify=False)


FILES = ["vectors.npy", "scales.npy", "mask.npy", "id_bytes.npy", "id_offsets.npy"]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_flipped_bit_is_found(path: Path, name: str) -> None:
    ids, chunks, mask = random_rows(20)
    write(path, ids.astype(str), chunks, mask)
    whole = (path / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 40).tolist():
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (path / name).write_bytes(changed)
        with pytest.raises(StoreError, match=rf"store/{name}.*(damaged|changed|format version)"):
            KnowledgeStore.open(path)
    (path / name).write_bytes(whole)
    assert len(KnowledgeStore.open(path)) == 20


@pytest.mark.filterwarnings("ignore")  # NumPy's, about headers
@pytest.mark.parametrize("name", FILES)
def test_without_checksums_a_damaged_header_is_found_and_none_crashes(path: Path, name: str) -> None:
    ids, chunks, mask = random_rows(20)
    expected = write(path, ids.astype(str), chunks, mask).lookup(ids.astype(str))[0]
    whole = (path / name).read_bytes()
    for place in range(0, 8 * 128, 5):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (path / name).write_bytes(changed)
        with contextlib.suppress(StoreError):
            store = KnowledgeStore.open(path, verify=False)
            # Not found: then it must be a bit that does not matter, such as one in the header's padding.
            np.testing.assert_array_equal(store.lookup(ids.astype(str))[0], expected)


@pytest.mark.parametrize("offset", [-1, 10**12])
def test_string_offsets_that_lead_astray_are_found_without_checksums(path: Path, offset: int) -> None:
    ids, chunks, mask = random_rows(20)
    write(path, ids.astype(str), chunks, mask)
    offsets = np.load(path / "id_offsets.npy")
    offsets[7] = offset
    np.save(path / "id_offsets.npy", offsets)
    store = KnowledgeStore.open(path, verify=False)
    with pytest.raises(StoreError, match=r"id_offsets\.npy do not hold valid strings"):
        store.lookup(["a"])


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_a_longer_and_a_missing_file_are_found(path: Path, name: str, verify: bool) -> None:
    ids, chunks, mask = random_rows(20)
    write(path, ids.astype(str), chunks, mask)
    whole = (path / name).read_bytes()
    for changed in (whole[:-1], whole[:50], b"", whole + b"\0"):
        (path / name).write_bytes(changed)
        message = rf"{name} has {len(changed)} bytes, expected {len(whole)}: it is truncated or was changed"
        with pytest.raises(StoreError, match=message):
            KnowledgeStore.open(path, verify=verify)
    (path / name).unlink()
    with pytest.raises(StoreError, match=f"{name} is missing. Write the store again, or copy it again"):
        KnowledgeStore.open(path, verify=verify)


def test_a_truncated_manifest_is_found(path: Path, stored: KnowledgeStore) -> None:
    whole = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(whole[:-20])
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        KnowledgeStore.open(path)


def test_an_edited_manifest_is_found(path: Path, stored: KnowledgeStore) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("an-encoder", "another-encoder"))
    with pytest.raises(StoreError, match=r"manifest\.json was changed after it was written"):
        KnowledgeStore.open(path)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"rows": 19}, "vectors.npy"), ({"width": 5}, "vectors.npy"), ({"vector_dtype": "float16"}, "vectors.npy")],
)
def test_arrays_that_are_not_what_the_manifest_tells_are_found(
    path: Path, stored: KnowledgeStore, changes: dict[str, Any], name: str
) -> None:
    change_manifest(path, **changes)
    with pytest.raises(StoreError, match=rf"{name} holds int8 \(20, 2, 3, 4\), but the manifest tells"):
        KnowledgeStore.open(path)


# --- what is refused when looking up -------------------------------------------------------------------------------


def test_ids_of_the_other_type_are_refused(tmp_path: Path) -> None:
    ids, chunks, mask = random_rows(5)
    integers = write(tmp_path / "integers", ids, chunks, mask)
    strings = write(tmp_path / "strings", ids.astype(str), chunks, mask)
    with pytest.raises(
        StoreError, match=r"integers has int64 ids, but was asked for string ids .*'17'.*astype\('int64'\)"
    ):
        integers.lookup(["17"])
    with pytest.raises(
        StoreError, match=r"strings has string ids, but was asked for int64 ids .*17.*ids.astype\(str\)"
    ):
        strings.lookup(np.array([17]))


@pytest.mark.parametrize("ids", [[1.5], [None], [True], [1, "a"], [[1, 2], [3]], np.array([np.nan])])
def test_ids_that_are_no_ids_are_refused(stored: KnowledgeStore, ids: Any) -> None:
    with pytest.raises(StoreError, match="must be all integers or all strings"):
        stored.lookup(ids)
