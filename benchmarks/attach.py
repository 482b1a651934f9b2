"""What `kser_tf.attach` brings a TFRS ranking model on MovieLens-1M: AUC on slices, share of parameters, time of training.

    .venv/bin/python benchmarks/attach.py --data FOLDER --work runs/attach          # or, of `kser-tf run configs/movielens-1m.yaml`:
    .venv/bin/python benchmarks/attach.py --prepared runs/movielens-1m/prepared --store runs/movielens-1m/stores/movie --work runs/attach

The model is in `movielens_ranker.py`. For each seed the base is trained until its validation AUC falls, and saved. `extractor_only`
warm-starts from it, attaches into the film's embedding and, from the user's history, at the output, and trains one epoch;
`all_parameters` attaches to a model that is trained from scratch. What is done lies in the work folder, a file for each training, and
is not done again. Choices were made on validation rows of seed 1 (`--validation` prints its AUC and leaves the test rows alone). On a
busy machine the clock says little, so times are the processor's; with TF_NUM_INTRAOP_THREADS=1 and TF_NUM_INTEROP_THREADS=1 those of one
thread. Writes `benchmarks/results/attach.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from movielens_ranker import CATEGORIES, UNKNOWN_FILM, MovieLensRanker
from results import write_results

import kser_tf
from kser_tf.files import read_json, write_json
from kser_tf.metrics import evaluate_slices, paired_difference
from kser_tf.pipelines.callbacks import EpochTimer, ValidationAUC, predict_logits
from kser_tf.pipelines.config import from_mapping, load_config
from kser_tf.pipelines.encode import EncodeConfig, encode
from kser_tf.pipelines.examples import raw_features
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.pipelines.run import RunConfig
from kser_tf.schema import (
    ITEM_IS_COLD,
    ITEM_TRAINING_ROWS,
    LABEL,
    USER_INTERACTIONS,
    DatasetSchema,
)

BASE = "base"
EVALUATION_BATCH = 8192
SLICES = ("all", "warm", "head", "tail", "cold", "active_users", "quiet_users")
AVERAGED = (
    "seconds",
    "processor_seconds",
    "seconds_to_attach",
    "rows_per_second",
    "rows_per_processor_second",
    "epochs",
    "validation_auc",
)
CONFIG = Path(__file__).parent.parent / "configs" / "movielens-1m.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a variant is trained.

    Args:
        strategy: Of `kser_tf`; none for the base.
        from_base: Whether it begins with the weights of the seed's base.
        history: Whether the user's history corrects the output.
        epochs: At most.
        batch_size: Rows a step.
        rate: Learning rate.
        decay: Whether it falls to 0, along a cosine.
        rates: Multipliers for parts of the model.
        id_dropout: Share of the films of a batch that are taken for unknown.
        patience: Epochs without a better validation AUC after which the training ends.
    """

    strategy: str | None = None
    from_base: bool = False
    history: bool = True
    epochs: int = 12
    batch_size: int = 1024
    rate: float = 2e-3
    decay: bool = False
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    id_dropout: float = 0.15
    patience: int = 2


VARIANTS = {
    BASE: Training(),
    "extractor_only": Training(
        strategy="extractor_only",
        from_base=True,
        epochs=1,
        batch_size=4096,
        rate=2e-3,
        decay=True,
        rates={"extractor": 5.0, "embedding": 0.5, "output": 0.5},
        id_dropout=0.3,
    ),
    "all_parameters": Training(strategy="all_parameters"),
    "all_parameters_from_base": Training(
        strategy="all_parameters", from_base=True, epochs=6, rate=5e-4, rates={"extractor": 4.0}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="folder as configs/movielens-1m.yaml wants it; what is made of it goes into --work"
    )
    parser.add_argument("--prepared")
    parser.add_argument("--store")
    parser.add_argument("--work", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, to try out")
    parser.add_argument("--validation", action="store_true", help="print the validation AUC; no test, no results")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "attach.json"))
    given = parser.parse_args()
    work = Path(given.work)
    prepared, store_path = (given.prepared, given.store) if given.data is None else make_data(given.data, work)
    if prepared is None or store_path is None:
        parser.error("--data, or --prepared and --store")

    store = kser_tf.KnowledgeStore.open(store_path)
    splits = {name: Examples(prepared, name) for name in ("train", "validation", "test")}
    trainings = {name: changed(VARIANTS[name], given.set) for name in given.variants}
    results: dict[str, dict[int, dict]] = {}
    for name, training in trainings.items():
        for seed in given.seeds:
            folder = work / name / f"seed-{seed}"
            base = None if name == BASE else work / BASE / f"seed-{seed}" / "model.weights.h5"
            done = run(training, seed, folder, base, store, splits, test=not given.validation)
            results.setdefault(name, {})[seed] = done
            print(name, seed, {key: done[key] for key in ("validation_auc", "seconds", "rows_per_second")}, flush=True)
            tf.keras.backend.clear_session()
    if not given.validation:
        summary = summarise(results)
        print_table(summary)
        figures = {
            "store": {key: value for key, value in store.describe().items() if key != "path"},
            "trainings": {name: dataclasses.asdict(training) for name, training in trainings.items()},
            "summary": summary,
            "by_seed": results,
        }
        kept = {key: value for key, value in vars(given).items() if key not in ("data", "work")}
        write_results(given.output, kept, figures)


class ProcessorTimer(tf.keras.callbacks.Callback):
    """Adds to each epoch's log the `processor_seconds` of its training steps, which a busy machine does not make longer."""

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Starts the clock."""
        self._begin = self._end = time.process_time()

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Notes the time."""
        self._end = time.process_time()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Stops the clock."""
        logs["processor_seconds"] = self._end - self._begin


class Examples:
    """The examples of a split: film ids and stars as they are, all else looked up once."""

    def __init__(self, prepared: str, split: str) -> None:
        schema = DatasetSchema.load(prepared)
        table = Path(prepared) / f"{split}.parquet"
        raw = next(raw_features(table, schema.features, pq.read_metadata(table).num_rows))
        self.sizes = {}
        self.tensors = {name: raw[name] for name in ("movie_id", "history_movie_id", "history_rating")}
        for name in ("genres", *CATEGORIES):
            values = schema.vocabularies[name]
            kind = tf.keras.layers.StringLookup if isinstance(values[0], str) else tf.keras.layers.IntegerLookup
            self.tensors[name], self.sizes[name] = self._indices(kind, list(values), raw[name]), len(values) + 2
        self.tensors = {name: tf.constant(values) for name, values in self.tensors.items()}
        self.film_ids = list(schema.vocabularies["movie_id"])
        names = [LABEL, schema.user_id, ITEM_TRAINING_ROWS, ITEM_IS_COLD, USER_INTERACTIONS]
        columns = {
            name: column.to_numpy() for name, column in zip(names, pq.read_table(table, columns=names), strict=True)
        }
        self.labels = columns[LABEL].astype(np.float32)
        self.columns = {
            "users": columns[schema.user_id],
            "item_training_rows": columns[ITEM_TRAINING_ROWS],
            "item_is_cold": columns[ITEM_IS_COLD],
            "user_interactions": columns[USER_INTERACTIONS],
        }

    @staticmethod
    def _indices(kind, values: list, column: np.ndarray) -> np.ndarray:
        # 0 for a value that is missing, 1 for one that is unknown.
        missing = "" if kind is tf.keras.layers.StringLookup else -1
        lookup = kind(vocabulary=values, mask_token=missing, **({} if missing == "" else {"oov_token": -2}))
        found = tf.concat([lookup(column[i : i + 65536]) for i in range(0, len(column), 65536)], 0)
        return tf.cast(found, tf.int32).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Batches an epoch."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """All examples in their order."""
        return tf.data.Dataset.from_tensor_slices(({**self.tensors}, self.labels)).batch(batch_size)

    def shuffled(self, batch_size: int, seed: int, epochs: int, id_dropout: float) -> tf.data.Dataset:
        """The examples of `epochs`, each in an order of its own; a share of the films of each batch is unknown."""
        labels, films, steps = tf.constant(self.labels), 1 + max(self.film_ids), self.steps(batch_size)

        def batch(step):
            epoch, number = step // steps, step % steps
            places = tf.range(number * batch_size, tf.minimum((number + 1) * batch_size, len(self)))
            keys = tf.stack([tf.constant(seed, tf.int64), epoch])
            rows = tf.random.experimental.index_shuffle(places, seed=keys, max_index=len(self) - 1)
            features = {name: tf.gather(tensor, rows) for name, tensor in self.tensors.items()}
            if id_dropout:
                unknown = (
                    tf.random.stateless_uniform([films], tf.stack([tf.constant(seed, tf.int64), step])) < id_dropout
                )
                for name in ("movie_id", "history_movie_id"):
                    drawn = tf.gather(unknown, tf.maximum(features[name], 0)) & (features[name] >= 0)
                    features[name] = tf.where(drawn, tf.constant(UNKNOWN_FILM, tf.int64), features[name])
            return features, tf.gather(labels, rows)

        return tf.data.Dataset.range(epochs * steps).map(batch, num_parallel_calls=1).prefetch(2)


def run(training: Training, seed: int, folder: Path, base: Path | None, store, splits, *, test: bool) -> dict:
    """Trains one model and measures it, unless that has been done."""
    report = folder / "report.json"
    settings = {**dataclasses.asdict(training), "seed": seed, "store": store.fingerprint if training.strategy else None}
    if report.is_file() and (done := read_json(report))["settings"] == settings and (not test or "slices" in done):
        return done
    train, validation = splits["train"], splits["validation"]
    tf.keras.utils.set_random_seed(seed)
    model = MovieLensRanker(train.film_ids, train.sizes)
    first = next(iter(validation.batches(EVALUATION_BATCH)))[0]
    model(first)
    attaching = 0.0
    if training.strategy is not None:
        model, attaching = attached(model, training, base, store, first)
        trained = getattr(kser_tf, training.strategy)(model)
    else:
        trained = kser_tf.trainable_report(model)
    rate, steps = training.rate, train.steps(training.batch_size)
    if training.decay:
        rate = tf.keras.optimizers.schedules.CosineDecay(rate, steps * training.epochs)
    optimizer = tf.keras.optimizers.Adam(rate)
    if training.rates:
        optimizer = kser_tf.learning_rates(optimizer, model, **training.rates)
    model.compile(optimizer=optimizer)

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.weights.h5"
    history = model.fit(
        train.shuffled(
            training.batch_size, seed, training.epochs, training.id_dropout if training.strategy is None else 0.0
        ),
        epochs=training.epochs,
        steps_per_epoch=steps,
        callbacks=[
            EpochTimer(training.batch_size, steps),
            ProcessorTimer(),
            ValidationAUC(validation, EVALUATION_BATCH),
            tf.keras.callbacks.ModelCheckpoint(
                weights, monitor="val_auc", mode="max", save_best_only=True, save_weights_only=True
            ),
            tf.keras.callbacks.EarlyStopping(monitor="val_auc", mode="max", patience=training.patience),
        ],
        verbose=2,
    ).history
    model.load_weights(weights)
    done = {
        "settings": settings,
        "epochs": len(history["val_auc"]),
        "best_epoch": int(np.argmax(history["val_auc"])) + 1,
        "validation_auc": max(history["val_auc"]),
        "validation_slices": aucs(model, validation),
        "seconds": round(sum(history["seconds"]), 2),
        "processor_seconds": round(sum(history["processor_seconds"]), 2),
        "seconds_to_attach": round(attaching, 2),
        "rows_per_second": round(max(history["rows_per_second"])),
        "rows_per_processor_second": round(len(train) / min(history["processor_seconds"])),
        "trained_parameters": trained.trained_parameters,
        "total_parameters": trained.total_parameters,
    }
    if test:
        done["slices"] = aucs(model, splits["test"])
    write_json(report, done)
    return done


def attached(model, training: Training, base: Path | None, store, features):
    """The model with knowledge, after making sure that it predicts what it did; and the seconds that attaching took."""
    if training.from_base:
        kser_tf.warm_start(model, base, verbose=False)
    before = model(features).numpy()
    started = time.perf_counter()
    at_output = None
    if training.history:
        stars = list(range(1, 6))
        at_output = {
            "movie_id": kser_tf.Attachment(store, history="history_movie_id", feedback={"history_rating": stars})
        }
    model = kser_tf.attach(
        model, into={"movie_embeddings": store}, at_output=at_output, id_dropout=training.id_dropout, num_heads=2
    )
    seconds = time.perf_counter() - started
    if not np.array_equal(model(features), before):
        raise AssertionError("the first predictions are not the backbone's, bit for bit")
    return model, seconds


def aucs(model, examples: Examples) -> dict[str, float]:
    """AUC on each slice that there is."""
    logits = predict_logits(model, examples.batches(EVALUATION_BATCH))
    measured = evaluate_slices(examples.labels, logits, **examples.columns)
    return {name: measured[name]["auc"] for name in SLICES}


def summarise(results: dict[str, dict[int, dict]]) -> dict[str, dict]:
    """Means over the seeds, and paired differences to the base with Student's 95 % interval."""
    summary = {}
    base = results.get(BASE, {})
    for name, by_seed in results.items():
        seeds = list(by_seed)
        one = by_seed[seeds[0]]
        mean = {key: float(np.mean([by_seed[seed][key] for seed in seeds])) for key in AVERAGED}
        summary[name] = {
            "seeds": seeds,
            **mean,
            "trained_share": one["trained_parameters"] / one["total_parameters"],
            "auc": {slice_: float(np.mean([by_seed[seed]["slices"][slice_] for seed in seeds])) for slice_ in SLICES},
        }
        both = [seed for seed in seeds if seed in base]
        if name != BASE and both:
            for key in ("seconds", "processor_seconds"):
                ratios = [by_seed[seed][key] / base[seed][key] for seed in both]
                summary[name][f"{key}_of_base"] = {"mean": float(np.mean(ratios)), "highest": max(ratios)}
            summary[name]["to_base"] = {
                slice_: paired_difference(*([r[s]["slices"][slice_] for s in both] for r in (by_seed, base)))
                for slice_ in SLICES
            }
    return summary


def print_table(summary: dict[str, dict]) -> None:
    """Prints the summary, a row a variant."""
    print("variant".ljust(16), *(name.rjust(22) for name in SLICES), "processor s  rows/s  trained")
    for name, row in summary.items():
        cells = []
        for slice_ in SLICES:
            if (paired := row.get("to_base", {}).get(slice_)) is None:
                cells.append(f"{row['auc'][slice_]:.4f}")
            else:
                half = "" if paired["low"] is None else f" +- {paired['high'] - paired['difference']:.4f}"
                cells.append(f"{paired['difference']:+.4f}{half}")
        end = f"{row['processor_seconds']:11.1f} {row['rows_per_processor_second']:7,.0f} {row['trained_share']:8.1%}"
        print(name.ljust(16), *(cell.rjust(22) for cell in cells), end)


def make_data(data: str, work: Path) -> tuple[str, str]:
    """Prepares examples and store as configs/movielens-1m.yaml says, unless they are there."""
    config = load_config(RunConfig, CONFIG, data=data, work=str(work))
    prepared, store = str(work / "prepared"), str(work / "stores" / "movie")
    prepare(from_mapping(PrepareConfig, {"output": prepared, **config.prepare}, source="prepare"))
    encode(from_mapping(EncodeConfig, {"output": store, **config.encode["movie"]}, source="encode"))
    return prepared, store


def changed(training: Training, settings: list[str]) -> Training:
    """A training with some settings changed: `KEY=VALUE`, the value as YAML."""
    import yaml

    values = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}
    return dataclasses.replace(training, **values)


if __name__ == "__main__":
    main()
