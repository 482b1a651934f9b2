"""A small log with string ids in several scripts, prepared, and a store of knowledge about its items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kser_tf import KnowledgeStore
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.prepare import PrepareConfig, prepare

SCRIPTS = ("फ़िल्म", "影片", "фильм", "film")
ITEMS = [f"{SCRIPTS[i % 4]}-{i}" for i in range(24)]
WITHOUT_KNOWLEDGE = ITEMS[5]
FIELDS, CHUNKS, WIDTH = 2, 2, 8
USERS = 60
INTERACTIONS = 30

SCHEMA = {
    "user_id": {"column": "user"},
    "item_id": {"column": "item", "min_count": 2},
    "label": {"rule": "stars > 3"},
    "timestamp": "time",
    "features": [
        {"name": "place", "kind": "categorical"},
        {"name": "price", "kind": "numeric"},
        {"name": "tags", "kind": "multi", "separator": "|", "length": 3},
        {"name": "past_item", "kind": "sequence", "of": "item", "length": 5, "group": "past"},
        {"name": "past_stars", "kind": "sequence", "of": "stars", "dtype": "int64", "length": 5, "group": "past"},
    ],
}


def write_log(folder: Path) -> Path:
    """Writes the log. What a user likes hangs on a hidden quality of the item that the first number of its knowledge tells."""
    rng = np.random.default_rng(3)
    quality = np.array([hidden_quality(item) for item in ITEMS])
    rows = []
    for user in range(USERS):
        taste = rng.choice([-2.0, 2.0])
        for time in range(INTERACTIONS):
            item = int(rng.integers(len(ITEMS)))
            liked = rng.random() < 1 / (1 + np.exp(-taste * quality[item]))
            rows.append(
                {
                    "user": f"u{user}",
                    "item": ITEMS[item],
                    "stars": int(rng.integers(4, 6) if liked else rng.integers(1, 4)),
                    "time": time // 2,
                    "place": rng.choice(["web", "app", ""]),
                    "price": rng.choice([1.0, 2.5, np.nan]),
                    "tags": "|".join(rng.choice(["red", "blue", "new"], 2, replace=False)),
                }
            )
    pd.DataFrame(rows).to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def hidden_quality(item: str) -> float:
    return 1.5 if ITEMS.index(item) % 2 else -1.5


# What a user began with, beside what came last.
BEGUN_WITH = [
    {"name": "first_item", "kind": "sequence", "of": "item", "length": 4, "group": "first", "history_only": True},
    {
        **{"name": "first_stars", "kind": "sequence", "of": "stars", "dtype": "int64", "length": 4, "group": "first"},
        "history_only": True,
    },
]


def make_prepared(folder: Path, *further: dict[str, object]) -> Path:
    """Prepares the log, with features beside those of `SCHEMA`."""
    values = {
        "output": str(folder / "prepared"),
        "data": str(write_log(folder)),
        "schema": {**SCHEMA, "features": [*SCHEMA["features"], *further]},
        "split": {"by": "user", "fractions": [0.7, 0.15, 0.15]},
        "cold_items": 0.2,
        "history_only": {"fraction": 0.2, "at_most": 5},
    }
    prepare(from_mapping(PrepareConfig, values, source="test"))
    return folder / "prepared"


def make_store(folder: Path, dtype: str = "float32") -> Path:
    rng = np.random.default_rng(4)
    ids = [item for item in ITEMS if item != WITHOUT_KNOWLEDGE]
    chunks = rng.normal(size=(len(ids), FIELDS, CHUNKS, WIDTH)).astype(np.float32)
    chunks[..., 0] = np.array([hidden_quality(item) for item in ids])[:, None, None]
    mask = rng.random((len(ids), FIELDS, CHUNKS)) < 0.8
    mask[:, 0, 0] = True
    KnowledgeStore.write(folder / "store", ids, chunks, mask, fields=["a", "b"], encoder="test", dtype=dtype)
    return folder / "store"
