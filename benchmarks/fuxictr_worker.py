"""FuxiCTR's side of `peer_speed.py`: DIN of FuxiCTR's own layers, as its model zoo composes them.

FuxiCTR encodes the prepared training rows and feeds them, and trains with its own step.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import fuxictr
import numpy as np
import peer_worker
import polars as pl
import torch
from fuxictr.preprocess import FeatureProcessor
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel

HISTORY = 10


def main() -> None:
    parser = peer_worker.arguments(__doc__)
    parser.add_argument("--prepared", required=True, type=Path)
    parser.add_argument("--vectors", type=Path, help="npz of key and value: one vector an item")
    parser.add_argument(
        "--usage", choices=["sum", "concat"], help="what becomes of the vectors; without it, none are used"
    )
    given = parser.parse_args()

    logging.disable(logging.CRITICAL)
    answers = peer_worker.begin(given.threads)
    processor, examples = encoded(given)
    model = DIN(processor.feature_map, given)
    loader = RankDataLoader(
        processor.feature_map,
        stage="train",
        train_data=str(examples),
        batch_size=given.batch_size,
        shuffle=True,
        data_format="npz",
        num_workers=given.loading_workers,
    )[0]
    model.train()
    batches = peer_worker.endless(loader, "label", given.batch_size, cached=given.cached)
    built = {"fuxictr": fuxictr.__version__, "torch": torch.__version__}
    peer_worker.answer(answers, built, lambda batch: model.train_step(batch).item(), batches)


def encoded(given: argparse.Namespace) -> tuple[FeatureProcessor, Path]:
    """The training rows as FuxiCTR encodes them: item, genre, and the history with its ratings."""
    history = {
        "dtype": "str",
        "active": True,
        "type": "sequence",
        "max_len": HISTORY,
        "splitter": "^",
        "feature_encoder": None,
        "padding": "pre",
    }
    item = {"name": "movie_id", "dtype": "str", "active": True, "type": "categorical"}
    if given.usage:
        pretrained = {"pretrained_emb": str(given.vectors), "pretrain_usage": given.usage, "freeze_emb": True}
        item |= {**pretrained, "pretrain_dim": int(np.load(given.vectors)["value"].shape[1])}
    columns = [
        item,
        {"name": "genres", "dtype": "str", "type": "categorical", "active": True},
        {"name": "history_movie_id", **history, "share_embedding": "movie_id"},
        {"name": "history_rating", **history},
    ]
    label = {"name": "label", "dtype": "float"}
    processor = FeatureProcessor(columns, label, dataset_id=f"prepared_{given.usage}", data_root=str(given.work))
    path = Path(processor.data_dir) / "train.npz"
    if path.exists():  # by an earlier worker with the same columns
        return processor.load_pickle(), path
    rows = pl.scan_parquet(given.prepared / "train.parquet").with_columns(
        pl.col("movie_id").cast(pl.String),
        pl.col("genres").list.first(),
        pl.col("label").cast(pl.Float64),
        pl.col("history_movie_id", "history_rating").cast(pl.List(pl.String)).list.join("^"),
    )
    rows = processor.preprocess(rows)
    processor.fit(rows, min_categr_count=1)
    table = rows.collect()
    columns = processor.transform({name: table[name].to_numpy() for name in table.columns})
    np.savez(path, **columns)
    return processor, path


class DIN(BaseModel):
    """The candidate with its genre, against a history of items with their ratings; no L2, which only costs it time."""

    def __init__(self, feature_map: Any, given: argparse.Namespace) -> None:
        super().__init__(feature_map, verbose=0, model_root=str(given.work), metrics=["AUC"])
        self._max_gradient_norm = 10.0  # what `fit` sets by default
        width = 2 * given.width
        self.embeddings = FeatureEmbeddingDict(feature_map, given.width)
        self.attention = DIN_Attention(width, attention_units=[given.attention_units], use_softmax=True)
        self.deep = MLP_Block(
            input_dim=2 * width,
            output_dim=1,
            hidden_units=given.hidden_units,
            hidden_activations="ReLU",
            output_activation=self.output_activation,
        )
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Encoded features of a batch -> the probability, `(batch, 1)`, under FuxiCTR's name for it."""
        inputs = self.get_inputs(inputs)
        embedded = self.embeddings(inputs)
        candidate = torch.cat([embedded["movie_id"], embedded["genres"]], -1)
        history = torch.cat([embedded["history_movie_id"], embedded["history_rating"]], -1)
        seen = self.attention(candidate, history, inputs["history_movie_id"].long() != 0)
        return {"y_pred": self.deep(torch.cat([candidate, seen], -1))}


if __name__ == "__main__":
    main()
