"""What each text is worth to the user's side: `HistoryLikeness` on the logits of a trained base, text by text.

    .venv/bin/python benchmarks/texts.py --prepared runs/movielens-1m/prepared --base runs/movielens-1m/models/din/base/seed-1 \
        --store runs/benchmark-movielens-1m/stores/mixed/movie \
        --together three_llms=colakg_deepseek,gearrec_qwenmax,agent4rec_gpt35_summary

Nothing of the base is trained. What the user thought of what is like the candidate is compared by each field of the store alone, by all
of them together, and by each combination named, with a width of the profiles of 32 and of 64, the profiles those of the texts, and
those adapted to preferences on training rows; the correction is fitted on two thirds of the validation users and its gain in AUC
measured on the others. Test rows are not read. Writes `benchmarks/results/texts.json`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from results import write_results

from kser_tf import KnowledgeStore
from kser_tf.layers import KnowledgeLookup, adapt_to_preferences
from kser_tf.layers.entity_profiles import EntityProfiles
from kser_tf.metrics import auc
from kser_tf.models.feature_indexer import rows_name
from kser_tf.models.model_folder import load_model
from kser_tf.models.user_knowledge import AllGroups, UserKnowledge
from kser_tf.pipelines.callbacks import predict_logits
from kser_tf.pipelines.examples import IndexedExamples
from kser_tf.pipelines.train import PREFERENCE_EXAMPLES
from kser_tf.schema import DatasetSchema

ROWS_AT_ONCE = 4096
FITTED_ON = 2 / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--base", required=True, help="folder of a trained model without knowledge")
    parser.add_argument("--store", required=True, help="knowledge store of the candidate's entity, with all fields")
    parser.add_argument("--together", nargs="*", default=[], metavar="NAME=FIELD,FIELD")
    parser.add_argument("--dims", nargs="+", type=int, default=[32, 64], help="widths of the profiles")
    parser.add_argument("--seeds", type=int, default=5, help="ways to divide the users")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "texts.json"))
    given = parser.parse_args()

    store = KnowledgeStore.open(given.store, verify=False)
    choices = {field: [field] for field in store.fields} | {"all": list(store.fields)}
    choices |= {name: fields.split(",") for name, fields in (each.split("=", 1) for each in given.together)}
    schema = DatasetSchema.load(given.prepared)
    stores = {schema.feature(schema.item_id).entity: store}
    examples = IndexedExamples(given.prepared, "validation", stores)
    training = IndexedExamples(given.prepared, "train", stores)
    logits = predict_logits(load_model(given.base), examples.batches(ROWS_AT_ONCE)).ravel()
    users = examples.column(examples.schema.user_id)
    measured = []
    for name, fields in choices.items():
        with tempfile.TemporaryDirectory() as folder:
            chosen = with_fields(store, fields, Path(folder) / "store")
            for dims, adapted_to in itertools.product(given.dims, (None, training)):
                compared = compare(examples, chosen, dims, adapted_to)
                gains = [gain(compared, logits, examples.labels, users, seed) for seed in range(given.seeds)]
                measured.append(
                    {
                        "texts": name,
                        "fields": fields,
                        "dims": dims,
                        "profiles": "texts" if adapted_to is None else "preferences",
                        "gain": round(statistics.fmean(gains), 5),
                        "gains": [round(each, 5) for each in gains],
                    }
                )
                print(measured[-1], flush=True)
    arguments = {key: value for key, value in vars(given).items() if key != "base"}
    write_results(given.output, arguments, {"base_auc": round(auc(examples.labels, logits), 5), "measured": measured})


def with_fields(store: KnowledgeStore, fields: list[str], folder: Path) -> KnowledgeStore:
    """A store that holds some of a store's fields."""
    places = [list(store.fields).index(field) for field in fields]
    chunks, mask = store.lookup(store.ids)
    KnowledgeStore.write(
        folder,
        store.ids,
        chunks[:, places],
        mask[:, places],
        fields=fields,
        dtype="float32",
        encoder=store.describe()["encoder"],
    )
    return KnowledgeStore.open(folder)


def compare(
    examples: IndexedExamples, store: KnowledgeStore, dims: int, training: IndexedExamples | None
) -> np.ndarray:
    """What `UserKnowledge` compares of each row, `(rows, n)`. The examples' rows are those of any store of the same ids.

    The profiles are adapted to the preferences in training examples, if there are any.
    """
    lookup = KnowledgeLookup(store)
    profiles = EntityProfiles(lookup, dims)
    profiles.build((None, *lookup.shape))
    profiles.adapt(store)
    knowledge, found = UserKnowledge(examples.schema, profiles.width), []
    if training is not None:
        adapt_to_preferences(profiles, lookup, AllGroups(knowledge, training.some(PREFERENCE_EXAMPLES, ROWS_AT_ONCE)))
    profiles.remember()
    for features, _ in examples.batches(ROWS_AT_ONCE):
        of_each = {
            feature.name: profiles.of_rows(features[rows_name(feature.name)], training=True)
            for feature in knowledge.profiled_features()
        }
        found.append(knowledge.compare(of_each, features)[knowledge.names[0]].numpy())
    return np.concatenate(found)


def gain(compared: np.ndarray, logits: np.ndarray, labels: np.ndarray, users: np.ndarray, seed: int) -> float:
    """By how much the correction raises the AUC of users that it was not fitted on."""
    tf.keras.utils.set_random_seed(seed)
    distinct = np.random.default_rng(seed).permutation(np.unique(users))
    fitted = np.isin(users, distinct[: round(FITTED_ON * len(distinct))])
    scaled = (compared - compared[fitted].mean(0)) / np.maximum(compared[fitted].std(0), 1e-6)
    offset, seen = tf.keras.Input(()), tf.keras.Input(scaled.shape[1:])
    hidden = tf.keras.layers.Dense(16, "relu")(seen)
    correction = tf.keras.layers.Dense(1, kernel_initializer="zeros")(hidden)[:, 0]
    model = tf.keras.Model([offset, seen], offset + correction)
    model.compile(tf.keras.optimizers.Adam(3e-3), tf.keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit([logits[fitted], scaled[fitted]], labels[fitted], batch_size=512, epochs=6, verbose=0)
    corrected = model.predict([logits[~fitted], scaled[~fitted]], batch_size=ROWS_AT_ONCE, verbose=0)
    return auc(labels[~fitted], corrected) - auc(labels[~fitted], logits[~fitted])


if __name__ == "__main__":
    main()
