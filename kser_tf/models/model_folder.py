"""A trained ranking model in a folder: what it was made from, and its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kser_tf.errors import DataError, StoreError
from kser_tf.files import read_json, write_json
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.models.config import RankingModelConfig
from kser_tf.models.ranking_model import RankingModel
from kser_tf.schema import DatasetSchema

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.weights.h5"


@dataclass(frozen=True, kw_only=True)
class StoreReference:
    """Which store a model was trained with.

    Args:
        path: The store's folder.
        fingerprint: Its fingerprint at that time.
        shuffle_seed: For a placebo: the seed that the knowledge was shuffled between the entities with.
    """

    path: str
    fingerprint: str
    shuffle_seed: int | None = None

    @classmethod
    def to(cls, path: str | Path, *, shuffle_seed: int | None = None) -> StoreReference:
        """Refers to the store at `path` as it is now."""
        return cls(path=str(path), fingerprint=KnowledgeStore.open(path).fingerprint, shuffle_seed=shuffle_seed)

    def open(self) -> KnowledgeStore:
        """Opens the store; `StoreError` if it is not the one that was referred to."""
        store = KnowledgeStore.open(self.path)
        if store.fingerprint != self.fingerprint:
            raise StoreError(
                f"{self.path}: the model was trained with the store {self.fingerprint[:12]}, this is {store.fingerprint[:12]}. "
                "Train the model anew, or put the store back."
            )
        return store if self.shuffle_seed is None else store.shuffled(self.shuffle_seed)


def save_model(folder: str | Path, model: RankingModel, stores: Mapping[str, StoreReference]) -> None:
    """Writes a model's schema, hyper-parameters and store references; the weights go to `WEIGHTS_FILE` by themselves."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.schema.save(folder)
    write_json(
        folder / MODEL_FILE,
        {
            "config": dataclasses.asdict(model.config),
            "stores": {entity: dataclasses.asdict(reference) for entity, reference in stores.items()},
        },
    )


def load_model(folder: str | Path, stores: Mapping[str, KnowledgeStore] | None = None) -> RankingModel:
    """Reads a trained model.

    Args:
        folder: What `train` wrote.
        stores: For kinds of entities a store in place of the one that the model was trained with: one that extends it, for
            `refresh`. `export` and `refresh` refuse others. Defaults to none.

    Raises:
        DataError: The folder holds no model.
        StoreError: A store that the model was trained with is not there, or is another one.
    """
    folder = Path(folder)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no trained model: {name} is missing. Make one with `kser-tf train`.")
    content = read_json(folder / MODEL_FILE)
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content["config"].items()
    }
    references = store_references(folder)
    model = RankingModel(
        DatasetSchema.load(folder),
        RankingModelConfig(**config),
        {
            entity: stores[entity] if stores and entity in stores else reference.open()
            for entity, reference in references.items()
        },
    )
    for entity, lookup in model.embedding.lookups.items():
        if stores and entity in stores:
            lookup.trained_with = references[entity].fingerprint
    model.make_weights()
    model.load_weights(folder / WEIGHTS_FILE)
    return model


def store_references(folder: str | Path) -> dict[str, StoreReference]:
    """Returns which stores the model in `folder` was trained with, for each kind of entity."""
    content = read_json(Path(folder) / MODEL_FILE)
    return {entity: StoreReference(**reference) for entity, reference in content["stores"].items()}
