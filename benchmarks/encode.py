"""Texts per second of encoding: plain sentence-transformers against `kser-tf encode`, side by side in one process.

    .venv/bin/python benchmarks/encode.py
    .venv/bin/python benchmarks/encode.py --table item_text.parquet --columns story,craft

The texts are passages as `encode` makes them, of a table, or of the built-in catalogue; each different one once, as
many as `--texts`, spread over all. The ways take turns, round after round, so that a machine that becomes slower or faster
does so for all of them; ratios are taken round by round, and figures are medians. `plain` is
`SentenceTransformer.encode(texts)`: float32, batches of 32. Loading the model and the check that `auto` makes before it
starts (a second or two) are not in the figures. Writes `benchmarks/results/encode.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import write_results
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from kser_tf.pipelines.catalogue import load_films
from kser_tf.pipelines.chunking import split_into_passages
from kser_tf.pipelines.encode import DEFAULT_CHUNKS_PER_FIELD
from kser_tf.pipelines.encoder import DEFAULT_ENCODER, TextEncoder, processor_flags
from kser_tf.pipelines.text_table import find_tables, read_rows

PLAIN = "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", help="Parquet, CSV or JSON lines; default: the built-in catalogue")
    parser.add_argument("--columns", help="the table's text columns, with commas between")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "encode.json"))
    given = parser.parse_args()
    if (given.table is None) != (given.columns is None):
        parser.error("--table and --columns go together")

    torch.set_num_threads(given.threads)
    everything = passages(given.table, given.columns)
    places = np.linspace(0, len(everything) - 1, min(given.texts, len(everything))).astype(int)
    texts = [everything[place] for place in places]

    exact, auto = TextEncoder(given.encoder), TextEncoder(given.encoder)
    exact.choose_backend(texts, "exact")
    choice = auto.choose_backend(texts, "auto")
    plain = SentenceTransformer(exact.location, device="cpu")
    ways: dict[str, Callable[[], np.ndarray]] = {
        PLAIN: lambda: plain.encode(texts, show_progress_bar=False),
        "exact": lambda: exact.encode(texts).vectors,
        "auto": lambda: auto.encode(texts).vectors,
    }
    vectors = {name: way() for name, way in ways.items()}  # and warm up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(given.rounds), desc="rounds"):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)

    figures = {
        "texts": len(texts),
        "mean_words": round(statistics.mean(len(text.split()) for text in texts), 1),
        "mean_tokens": round(statistics.mean(token_counts(plain, texts)), 1),
        "threads": given.threads,
        "processor_flags": sorted(processor_flags()),
        "backend": choice.backend,
        "backend_reason": choice.reason,
        "ways": {
            name: {
                "texts_per_second": round(len(texts) / statistics.median(measured), 1),
                "ratio": round(statistics.median(np.divide(seconds[PLAIN], measured).tolist()), 3),
                "lowest_ratio": round(float(np.divide(seconds[PLAIN], measured).min()), 3),
                **cosines(vectors[PLAIN], vectors[name]),
            }
            for name, measured in seconds.items()
        },
    }
    print(f"{figures['texts']} texts of {figures['mean_tokens']} tokens, {given.threads} threads, {choice}")
    for name, row in figures["ways"].items():
        print(f"{name:6} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    write_results(given.output, vars(given), figures)


def passages(table: str | None, columns: str | None) -> list[str]:
    """Each different passage of the texts once."""
    if table is None or columns is None:
        fields = [" ".join(chunks) for film in load_films() for chunks in film.text.values()]
    else:
        names = columns.split(",")
        rows = read_rows(find_tables(table), names, text_columns=names)
        fields = [text for row in rows for text in row.values if text]
    return list(
        dict.fromkeys(passage for text in fields for passage in split_into_passages(text, DEFAULT_CHUNKS_PER_FIELD))
    )


def token_counts(model: SentenceTransformer, texts: list[str]) -> list[int]:
    return model.preprocess(texts)["attention_mask"].sum(dim=1).tolist()


def cosines(reference: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    reference, vectors = (v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True) for v in (reference, vectors))
    found = (reference * vectors).sum(axis=1)
    return {"mean_cosine": round(float(found.mean()), 6), "lowest_cosine": round(float(found.min()), 6)}


if __name__ == "__main__":
    main()
