r"""Rows per second in training beside FuxiCTR, an open library of the field, and KAR's own code: DIN on the same rows.

    python -m venv peers && peers/bin/pip install fuxictr torch
    .venv/bin/python benchmarks/peer_speed.py --python peers/bin/python --kar KAR/RS \
        --prepared WORK/prepared/kar --store WORK/stores/llm/movie

with what `kser-tf benchmark configs/benchmark-movielens-1m.yaml --data FOLDER --work WORK --part kar` prepared (item id, first genre, a
history of 10 with ratings), and KAR a clone of its repository (Open-World-Knowledge-Augmented-Recommendation, on GitHub).

The peers have an environment and processes of their own (`fuxictr_worker.py`, `kar_worker.py`), their own loader with as many loading
processes as is best for it, and once no loader at all: one batch again and again. FuxiCTR's knowledge is one frozen vector an item, the
mean of the chunks, added to the id's embedding or concatenated to it; KAR's these and one of the user, the mean of the first films, with
its adaptor; ours the whole of KSER, with what the user's first 30 films tell. The contestants take turns; each waits while another trains.
Widths, hidden units, batch, optimizer and threads are the same for all.

`--intra-op-threads 1`, the default, has TensorFlow give each operation to one thread, which is what short operations need; for any program
the variable TF_NUM_INTRAOP_THREADS=1 does so. Writes `benchmarks/results/peer_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import tensorflow as tf
from results import write_results
from training import CONFIG, EXTRACTOR_ONLY, Contestant, Variant, take_turns

from kser_tf import KnowledgeStore, extractor_only
from kser_tf.files import write_json
from kser_tf.models.config import RankingModelConfig
from kser_tf.pipelines.chunk_means import chunk_means
from kser_tf.schema import DatasetSchema

THREADS = 2
HISTORY = 10
ATTENTION_UNITS = 32  # DIN's own default
# As many as a contestant takes in a round: its files hold each row by itself, and are JSON.
ROWS_FOR_KAR = 65536
SETTING = {"backbone_history": {"first": 0}, "id_dropout": 0.0}
OURS = {
    "base": Variant(model=SETTING, knowledge=False),
    "all_parameters": Variant(model=SETTING),
    "all_parameters, histories from memory": Variant(model=SETTING, one_of=0),
    "extractor_only": Variant(model=SETTING, strategy=extractor_only, **EXTRACTOR_ONLY),
    "kar": Variant(
        model={**SETTING, "adaptor": "kar", "adaptor_options": {"placement": "residual"}, "user_knowledge": False}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the Python in whose environment FuxiCTR and torch are")
    parser.add_argument("--kar", help="the folder RS of KAR's code; without it, KAR is left out")
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--store", required=True, help="knowledge store of the candidate's entity")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows-a-round", type=int, default=65536)
    parser.add_argument(
        "--intra-op-threads",
        type=int,
        default=1,
        help=f"of TensorFlow: threads that share an operation; {THREADS} operations run at a time in any case",
    )
    parser.add_argument("--config", default=CONFIG, help="the run whose models ours are")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "peer_speed.json"))
    given = parser.parse_args()

    schema = DatasetSchema.load(given.prepared)
    entity = schema.feature(schema.item_id).entity
    store = KnowledgeStore.open(given.store, verify=False)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.config.threading.set_intra_op_parallelism_threads(given.intra_op_threads)
    arguments = {key: value for key, value in vars(given).items() if key not in ("python", "kar")}
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        means = chunk_means(*store.lookup(store.ids))
        peers = dict(fuxictr(given, Path(work), store.ids, means))
        if given.kar:
            peers |= kar(given, Path(work), store.ids, means)
        for batch_size in given.batch_sizes:
            contestants: dict[str, Any] = {
                name: Contestant(given, schema, "din", batch_size, {entity: store}, variant)
                for name, variant in OURS.items()
            }
            workers = {name: Worker(given.python, command, batch_size) for name, command in peers.items()}
            speeds = take_turns(contestants | workers, given.rounds, max(2, given.rows_a_round // batch_size))
            for name, rates in speeds.items():
                measured.append(
                    {
                        "batch_size": batch_size,
                        "contestant": name,
                        "rows_per_second": round(statistics.median(rates)),
                        "against_the_best_of": against_the_best(speeds, name),
                    }
                )
                print(measured[-1], flush=True)
            built: dict[str, str] = {}
            for worker in workers.values():
                built |= worker.built
                worker.stop()
            tf.keras.backend.clear_session()
            write_results(given.output, arguments, {"peers": built, "measured": measured})


def fuxictr(
    given: argparse.Namespace, work: Path, ids: np.ndarray, means: np.ndarray
) -> Iterator[tuple[str, list[str]]]:
    """FuxiCTR's contestants, by name, and their commands."""
    vectors = work / "vectors.npz"
    np.savez(vectors, key=ids, value=means)
    for knowledge, usage in (("no vectors", []), ("sum", ["--usage=sum"]), ("concat", ["--usage=concat"])):
        for feeding, options in feedings(least_processes=1):
            command = ["fuxictr_worker.py", f"--prepared={given.prepared}", f"--vectors={vectors}", *usage, *options]
            yield f"fuxictr, {knowledge}, {feeding}", [*command, f"--work={work / 'fuxictr'}"]


def kar(given: argparse.Namespace, work: Path, ids: np.ndarray, means: np.ndarray) -> Iterator[tuple[str, list[str]]]:
    """KAR's contestants, likewise."""
    folder = work / "kar"
    write_kar_files(given, folder, dict(zip(ids.tolist(), means, strict=True)))
    for knowledge, usage in (("no vectors", []), ("its adaptor", ["--adaptor"])):
        for feeding, options in feedings(least_processes=0):
            command = ["kar_worker.py", f"--code={given.kar}", f"--work={folder}", *usage, *options]
            yield f"kar's code, {knowledge}, {feeding}", command


def feedings(least_processes: int) -> Iterator[tuple[str, list[str]]]:
    """What a peer's loader leaves to be chosen, by name, as options; and the step alone."""
    for processes, threads in ((least_processes, THREADS), (1, 1), (2, 1), (2, THREADS)):
        options = [f"--loading-workers={processes}", f"--threads={threads}"]
        yield f"{processes} loading, {threads} training", options
    yield "one cached batch", ["--loading-workers=0", f"--threads={THREADS}", "--cached"]


def write_kar_files(given: argparse.Namespace, folder: Path, vectors: dict[int, np.ndarray]) -> None:
    """Writes rows with a full history (0.9997 of them) in the form of its preprocessing, which its data set reads.

    Each row is a sequence of its own, the history and the candidate, whose features are looked up as those of its sequences are.
    """
    rows = pd.read_parquet(Path(given.prepared) / "train.parquet")
    rows = rows[rows["history_movie_id"].map(len) == HISTORY].sample(ROWS_FOR_KAR, random_state=1)
    items = pd.unique(np.concatenate([rows["movie_id"], np.concatenate(rows["history_movie_id"].to_list())]))
    item = {key: number for number, key in enumerate(items.tolist(), start=1)}
    genres = rows["genres"].str[0]
    genre = {key: number for number, key in enumerate(genres.unique().tolist(), start=1)}
    # The genre of a film that is no candidate among these rows is not in them.
    genre_of = dict.fromkeys(items.tolist(), 0) | dict(zip(rows["movie_id"], genres.map(genre), strict=True))

    unknown = np.zeros_like(next(iter(vectors.values())))
    first = rows.drop_duplicates("user_id").set_index("user_id")["first_movie_id"]
    users = {
        str(user): np.mean([unknown, *(vectors.get(film, unknown) for film in films)], 0).tolist()
        for user, films in first.items()
    }

    folder.mkdir()
    sequences = {
        str(number): [[item[film] for film in (*past, candidate)], [*map(int, ratings), 0]]
        for number, (candidate, past, ratings) in enumerate(
            zip(rows["movie_id"], rows["history_movie_id"], rows["history_rating"], strict=True)
        )
    }
    (folder / "ctr.train").write_bytes(
        pickle.dumps([[number, HISTORY, int(label)] for number, label in enumerate(rows["label"])])
    )
    write_json(folder / "sequential_data.json", sequences)
    write_json(folder / "item2attributes.json", {str(item[key]): [int(genre_of[key])] for key in item})
    write_json(
        folder / "datamaps.json",
        {
            "id2item": {str(number): str(key) for key, number in item.items()},
            "id2user": {str(number): str(user) for number, user in enumerate(rows["user_id"])},
        },
    )
    write_json(folder / "mean_augment.item", {str(key): vectors.get(key, unknown).tolist() for key in item})
    write_json(folder / "mean_augment.hist", users)
    write_json(
        folder / "stat.json",
        {
            "item_num": len(item),
            "attribute_num": len(genre),
            "attribute_ft_num": 1,
            "rating_num": 5,
            "dense_dim": len(unknown),
        },
    )


def against_the_best(speeds: dict[str, list[float]], name: str) -> dict[str, dict[str, Any]]:
    """How many times as fast as each peer where it is fastest with a loader, without knowledge and with it."""
    found = {}
    for peer in ("fuxictr", "kar's code"):
        for knowledge, is_it in (("without", True), ("with", False)):
            rivals = [
                rival
                for rival in speeds
                if rival.startswith(peer) and "loading" in rival and ("no vectors" in rival) == is_it
            ]
            if not rivals:
                continue
            best = max(rivals, key=lambda rival: statistics.median(speeds[rival]))
            times = [own / other for own, other in zip(speeds[name], speeds[best], strict=True)]
            found[f"{peer} {knowledge} vectors"] = {
                "times": round(statistics.median(times), 2),
                "lowest": round(min(times), 2),
                "highest": round(max(times), 2),
                "best": best,
            }
    return found


class Worker:
    """A peer in a process of its own, which trains when it is asked to."""

    def __init__(self, python: str, command: list[str], batch_size: int) -> None:
        self.batch_size = batch_size
        script, *options = command
        ours = RankingModelConfig()
        options += [
            f"--batch-size={batch_size}",
            f"--width={ours.embedding_width}",
            f"--attention-units={ATTENTION_UNITS}",
        ]
        options += ["--hidden-units", *map(str, ours.hidden_units)]
        self.process = subprocess.Popen(
            [python, str(Path(__file__).parent / script), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.built = json.loads(self._answer())

    def run(self, steps: int) -> float:
        """Trains so many steps and returns rows per second."""
        print(steps, file=self.process.stdin, flush=True)
        return steps * self.batch_size / float(self._answer())

    def stop(self) -> None:
        """Ends the process, which ends when nothing more can be asked."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer's process ended with code {self.process.wait()}; what it said stands above.")
        return line


if __name__ == "__main__":
    main()
