"""KnowledgeLookup against the store's own look-up, and what it does to files, exports and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_test_case import KERAS, export, session_outputs

from kser_tf import KnowledgeStore
from kser_tf.layers import KnowledgeExtractor, KnowledgeLookup

pytestmark = pytest.mark.usefixtures("seed")

ENTITIES, FIELDS, CHUNKS, WIDTH = 20, 2, 3, 8
NAMES = [*(f"tt{i:04d}" for i in range(ENTITIES - 1)), "Амели 夜"]


@pytest.fixture
def content(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    chunks = rng.normal(size=(ENTITIES, FIELDS, CHUNKS, WIDTH)).astype("float32")
    mask = rng.random((ENTITIES, FIELDS, CHUNKS)) < 0.7
    mask[3] = False  # in the store, and nothing is known
    return chunks, mask


def write(folder: Path, content: tuple[np.ndarray, np.ndarray], ids: Any = None, **arguments: Any) -> KnowledgeStore:
    ids = np.arange(100, 100 + ENTITIES) if ids is None else ids
    return KnowledgeStore.write(folder, ids, *content, fields=["story", "craft"], encoder="random", **arguments)


@pytest.fixture
def store(tmp_path: Path, content: tuple[np.ndarray, np.ndarray]) -> KnowledgeStore:
    return write(tmp_path / "store", content)


def assert_same(found: Sequence[Any], expected: Sequence[np.ndarray], atol: float = 0) -> None:
    for one, other in zip(found, expected, strict=True):
        assert tuple(one.shape) == other.shape
        np.testing.assert_allclose(tf.cast(one, tf.float32), other.astype("float32"), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_finds_what_the_store_finds(
    dtype: Any, ids: str, policy: str, content: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    store = write(tmp_path / "store", content, NAMES if ids == "string" else None, dtype=dtype)
    asked = np.array(
        ["tt0003", "Амели 夜", "", "tt0007", "tt0007", "nobody"] if ids == "string" else [103, 119, -1, 107, 107, 5]
    )
    layer = KnowledgeLookup(store, dtype=policy)
    chunks, mask = layer(tf.constant(asked))
    assert chunks.dtype.name == policy.removeprefix("mixed_")
    assert mask.dtype == tf.bool
    expected = store.lookup(asked)
    assert expected[1].any()
    assert_same((chunks, mask), expected, atol={"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}.get(policy, 0))
    assert not tf.reduce_any(chunks[2] != 0)  # unknown ids
    assert not tf.reduce_any(mask[2])
    # From rows, under XLA too.
    by_row = tf.function(layer.lookup_rows, jit_compile=True)
    assert_same(by_row(layer.rows(tf.constant(asked))), (tf.cast(chunks, tf.float32).numpy(), mask.numpy()), atol=1e-6)


@pytest.mark.parametrize("id_type", ["int8", "int32", "int64", "uint16"])
def test_integers_of_any_width(id_type: str, store: KnowledgeStore) -> None:
    ids = np.array([100, 119, 5]).astype(id_type)
    layer = KnowledgeLookup(store)
    np.testing.assert_array_equal(layer.rows(tf.constant(ids)), [0, 19, -1])
    assert layer.rows(tf.constant(ids)).dtype == tf.int32
    assert_same(layer(tf.constant(ids)), store.lookup(ids))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (2, 1, 4)])
def test_ids_of_any_shape(shape: tuple[int, ...], store: KnowledgeStore, rng: np.random.Generator) -> None:
    ids = rng.integers(95, 125, shape)
    assert_same(KnowledgeLookup(store)(tf.constant(ids)), store.lookup(ids))


def test_arrays_and_an_unknown_shape(store: KnowledgeStore) -> None:
    layer = KnowledgeLookup(store)
    ids = np.array([[104, 117]])
    assert_same(layer(ids), store.lookup(ids))
    for signature in ([tf.TensorSpec((None,), tf.int64)], [tf.TensorSpec((None, None), tf.int64)]):
        function = tf.function(layer, input_signature=signature)
        values = ids if len(signature[0].shape) == 2 else ids[0]
        assert function.get_concrete_function().structured_outputs[0].shape[-3:] == (FIELDS, CHUNKS, WIDTH)
        assert_same(function(tf.constant(values)), store.lookup(values))


def test_rows_come_from_the_input_pipeline(store: KnowledgeStore) -> None:
    layer = KnowledgeLookup(store)
    data = tf.data.Dataset.from_tensor_slices(np.arange(98, 104)).batch(2).map(layer.rows)
    rows = np.concatenate([batch.numpy() for batch in data])
    np.testing.assert_array_equal(rows, [-1, -1, 0, 1, 2, 3])
    assert_same(layer.lookup_rows(rows.astype("int64")), store.lookup(np.arange(98, 104)))


@pytest.mark.parametrize("asked", [[7, 8], ["", "tt0001"]])
def test_an_empty_store_knows_nobody(asked: list[Any], content: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    store = write(tmp_path / "store", (content[0][:0], content[1][:0]), np.array(asked)[:0])
    layer = KnowledgeLookup(store)
    nothing = (np.zeros((2, FIELDS, CHUNKS, WIDTH)), np.zeros((2, FIELDS, CHUNKS), bool))
    assert_same(layer(tf.constant(asked)), nothing)

    def serve(tensors: Any) -> dict[str, Any]:
        return dict(zip(("chunks", "mask"), layer(tensors["ids"]), strict=True))

    export(tmp_path / "served", serve, {"ids": tf.constant(asked)}, layer.tables(copy=True))
    served = session_outputs(tmp_path / "served", {"ids": asked})
    assert_same((served["chunks"], served["mask"]), nothing)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["100"], "the store's ids are int64, the ids looked up are string. Convert them, or write .* string ids"),
        ([100.0], "the store's ids are int64, the ids looked up are float32. Convert them"),
        ([True], "the store's ids are int64, the ids looked up are bool. Convert them"),
    ],
)
def test_ids_of_another_type(ids: list[Any], message: str, store: KnowledgeStore) -> None:
    with pytest.raises(ValueError, match=message):
        KnowledgeLookup(store)(tf.constant(ids))


def test_integers_for_a_store_of_strings(content: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    layer = KnowledgeLookup(write(tmp_path / "store", content, NAMES))
    with pytest.raises(ValueError, match=r"the store's ids are string, the ids looked up are int32\. .* integer ids"):
        layer(tf.constant([1]))


def test_ragged_ids_are_refused_with_the_mend(store: KnowledgeStore) -> None:
    ids = tf.ragged.constant([[100, 101], [102]], dtype=tf.int64)
    layer = KnowledgeLookup(store)
    with pytest.raises(ValueError, match=r"ids must be a dense tensor.* Received: RaggedTensor.*`ids.to_tensor\(-1\)`"):
        layer.rows(ids)
    assert_same(layer(ids.to_tensor(-1)), store.lookup(np.array([[100, 101], [102, -1]])))


def test_connect_wants_the_shape_that_the_layer_was_made_for(
    store: KnowledgeStore, content: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    wider = write(tmp_path / "wider", (np.concatenate([content[0]] * 2, -1), content[1]))
    layer = KnowledgeLookup(store, name="movies")
    with pytest.raises(ValueError, match=r"movies was made for .* = \(2, 3, 8\), and the store has \(2, 3, 16\)"):
        layer.connect(wider)
    assert_same(layer(tf.constant([107])), store.lookup([107]))
    with pytest.raises(ValueError, match=r"= \(2, 3, 4\), and the store has \(2, 3, 8\)"):
        KnowledgeLookup(store, shape=(2, 3, 4))


def test_connect_takes_another_store(
    store: KnowledgeStore, content: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    layer = KnowledgeLookup(store)
    layer(tf.constant([100]))
    other = write(tmp_path / "other", (-content[0], content[1]), NAMES)
    layer.connect(other)
    assert_same(layer(tf.constant(NAMES)), other.lookup(NAMES))


def test_without_a_store() -> None:
    layer = KnowledgeLookup(shape=(FIELDS, CHUNKS, WIDTH), name="movies")
    for function in (layer, layer.rows, layer.lookup_rows, tf.function(layer)):
        with pytest.raises(ValueError, match=r"movies has no store: .* Call `connect\(KnowledgeStore.open\(path\)\)`"):
            function(tf.constant([1]))
    with pytest.raises(ValueError, match="movies has no store"):
        layer.tables()
    with pytest.raises(ValueError, match="has no store"):
        KnowledgeLookup()(tf.keras.Input((), dtype="int64"))


def ranker(store: KnowledgeStore | None) -> Any:
    """A functional model: an id, its embedding, and its knowledge beside it."""
    ids = tf.keras.Input((), dtype="int64", name="ids")
    chunks, mask = KnowledgeLookup(store, shape=(FIELDS, CHUNKS, WIDTH), name="movies")(ids)
    query = tf.keras.layers.Embedding(200, 4, name="embedding")(tf.keras.layers.Reshape((1,))(ids))
    aligned = KnowledgeExtractor(output_initializer="glorot_uniform", name="extractor")(query, chunks, mask=mask)
    return tf.keras.Model(ids, tf.keras.layers.Dense(1)(tf.keras.layers.Flatten()(aligned)))


def test_in_a_functional_model(store: KnowledgeStore) -> None:
    ids = tf.keras.Input((7,), dtype="int64")
    chunks, mask = KnowledgeLookup(store)(ids)
    assert tuple(chunks.shape) == (None, 7, FIELDS, CHUNKS, WIDTH)
    assert tuple(mask.shape) == (None, 7, FIELDS, CHUNKS)
    assert (tf.as_dtype(chunks.dtype), tf.as_dtype(mask.dtype)) == (tf.float32, tf.bool)
    asked = np.arange(95, 95 + 3 * 7).reshape(3, 7)
    assert_same(tf.keras.Model(ids, [chunks, mask]).predict(asked, verbose=0), store.lookup(asked))


@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`")
def test_a_model_that_looks_up_ids_trains_without_xla(store: KnowledgeStore) -> None:
    """Keras 3 compiles with XLA by itself where there is a GPU, unless a layer says that it cannot be."""
    model = ranker(store)
    model.compile("sgd", "mse", **({} if KERAS == 2 else {"jit_compile": True}))
    before = model.get_layer("extractor").get_weights()
    model.fit(np.arange(100, 110), np.ones((10, 1)), batch_size=4, verbose=0)
    after = model.get_layer("extractor").get_weights()
    assert any(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def test_saved_model_file_holds_no_vectors_and_is_connected_after_loading(
    store: KnowledgeStore, tmp_path: Path
) -> None:
    model = ranker(store)
    ids = np.arange(98, 112)
    expected = model.predict(ids, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="movies has no store"):
        loaded(ids)
    loaded.get_layer("movies").connect(KnowledgeStore.open(tmp_path / "store"))
    np.testing.assert_allclose(loaded.predict(ids, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_the_tables_are_in_no_weights_and_no_checkpoint(store: KnowledgeStore, tmp_path: Path) -> None:
    model = ranker(store)
    layer = model.get_layer("movies")
    for copied in (False, True):
        layer.tables(copy=copied)
        model(np.array([100]))
        assert layer.weights == []
        assert not layer.trainable
        assert len(model.weights) == 1 + 12 + 2  # embedding, extractor, dense
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / f"checkpoint{copied}"))
        shapes = [shape for _, shape in tf.train.list_variables(path)]
        assert [FIELDS, CHUNKS, WIDTH] not in [shape[-3:] for shape in shapes]
        assert [200, 4] in shapes  # the embedding is there
        model.save_weights(tmp_path / f"model{copied}.weights.h5")
    ranker(None).load_weights(tmp_path / "modelTrue.weights.h5")


@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_copied_tables_are_exported(
    ids: str, dtype: Any, content: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    store = write(tmp_path / "store", content, NAMES if ids == "string" else None, dtype=dtype)
    layer = KnowledgeLookup(store)
    asked = np.array([*NAMES, "nobody"], object) if ids == "string" else np.arange(98, 122)
    before = layer(tf.constant(asked))
    tables = layer.tables(copy=True)
    assert layer.tables(copy=True) is tables
    assert {variable.dtype.name for variable in tables.variables} == {"bool", dtype} | (
        {"float16"} if dtype == "int8" else set()
    )
    assert_same(layer(tf.constant(asked)), [part.numpy() for part in before])

    def serve(tensors: Any) -> dict[str, Any]:
        return dict(zip(("chunks", "mask"), layer(tensors["ids"]), strict=True))

    export(tmp_path / "served", serve, {"ids": tf.constant(asked)}, tables)
    served = session_outputs(tmp_path / "served", {"ids": asked})
    assert_same((served["chunks"], served["mask"]), [part.numpy() for part in before])


def test_a_store_that_is_replaced_on_disk_stays_as_it_was_opened(
    store: KnowledgeStore, content: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    expected = store.lookup([107])
    write(tmp_path / "store", (-content[0], content[1]), overwrite=True)
    assert_same(KnowledgeLookup(store)(tf.constant([107])), expected)
    assert_same(
        KnowledgeLookup(KnowledgeStore.open(tmp_path / "store"))(tf.constant([107])), (-expected[0], expected[1])
    )


def test_shuffled_stores(store: KnowledgeStore) -> None:
    placebo = store.shuffled(seed=1)
    ids = np.arange(98, 122)
    assert_same(KnowledgeLookup(placebo)(tf.constant(ids)), placebo.lookup(ids))


def test_arrays_that_may_still_change_are_copied(content: tuple[np.ndarray, np.ndarray]) -> None:
    class Arrays:
        ids, scales = np.arange(100, 100 + ENTITIES), None
        vectors, mask = content

    layer = KnowledgeLookup(Arrays())
    before = layer(tf.constant([107]))[0].numpy()
    Arrays.vectors[:] = 0
    np.testing.assert_array_equal(layer(tf.constant([107]))[0], before)


MEASURE_MEMORY = """
import sys
from collections.abc import Sequence
import numpy as np
import tensorflow as tf
from kser_tf.layers import KnowledgeLookup

def anonymous_megabytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

class Arrays:
    vectors = np.load(sys.argv[1], mmap_mode="r")
    ids, scales = np.arange(len(vectors)), np.ones(vectors.shape[:-1], "float16")
    mask = np.ones(vectors.shape[:-1], bool)

ids = np.random.default_rng(0).permutation(len(Arrays.ids)).reshape(-1, 100)
tf.constant(ids) + 1
before = anonymous_megabytes()
layer = KnowledgeLookup(Arrays)
total = tf.function(lambda ids: tf.reduce_sum(layer(ids)[0]))
by_row = tf.function(lambda rows: tf.reduce_sum(layer.lookup_rows(rows)[0]), jit_compile=True)
for batch in ids:
    total(tf.constant(batch)), by_row(layer.rows(tf.constant(batch)))
found, _ = layer(tf.constant([7]))
print(anonymous_megabytes() - before, float(tf.reduce_sum(found)))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of private memory")
def test_the_vectors_are_read_from_the_mapped_file_and_not_copied(tmp_path: Path) -> None:
    entities, chunks, width = 20_000, 20, 384
    vectors = np.lib.format.open_memmap(
        tmp_path / "vectors.npy", mode="w+", dtype="int8", shape=(entities, 1, chunks, width)
    )
    vectors[7] = 1
    vectors.flush()
    megabytes = vectors.nbytes / 2**20
    assert megabytes > 140
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(tmp_path / "vectors.npy")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    grown, found = map(float, output.split())
    assert found == chunks * width
    # What is left is the batches (3 megabytes each in float32), the table of ids, and what TensorFlow keeps at hand.
    assert grown < megabytes / 3


def test_serialization(store: KnowledgeStore) -> None:
    layer = KnowledgeLookup(store, name="movies", dtype="mixed_float16")
    serialized = tf.keras.layers.serialize(layer)
    assert serialized["registered_name"] == "kser_tf>KnowledgeLookup"
    again = tf.keras.layers.deserialize(serialized)
    assert isinstance(again, KnowledgeLookup)
    assert again.get_config() == layer.get_config()
    again.connect(store)
    assert_same(again(tf.constant([107])), [part.numpy() for part in layer(tf.constant([107]))])


def test_which_store_it_is_trained_with_goes_into_files(store: KnowledgeStore, tmp_path: Path) -> None:
    layer = KnowledgeLookup(store)
    assert layer.trained_with == store.fingerprint
    again = KnowledgeLookup.from_config(layer.get_config())
    larger = store.extended(tmp_path / "larger", [])
    again.connect(larger)
    assert again.trained_with == store.fingerprint != larger.fingerprint


def test_autograph_reads_it() -> None:
    """Where it cannot, each `fit` and `predict` of Keras 2 begins with a warning."""
    tf.autograph.to_code(KnowledgeLookup.lookup_rows)
