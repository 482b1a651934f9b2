"""The job `refresh`: new entities into a served model, from their texts, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kser_tf.errors import ConfigError
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.encode import encode_further


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """Adds new entities to a served model, as a new version, without training.

    Args:
        model: Folder that `train` wrote: the model that is served.
        served: The model's base folder, which `export` wrote to.
        stores: For each kind of entity the folder of the store with all entities. It is written here (made from the
            model's store at the first refresh, added to at the later ones), unless `tables` says nothing of the entity.
        tables: For each kind of entity the new ones' texts, a table with the columns that `encode` was given. Entities
            that the store holds already are left as they are.
        version: Number of the new version. Defaults to the next one.
    """

    __pydantic_config__ = STRICT_KEYS

    model: str
    served: str
    stores: dict[str, str]
    tables: dict[str, str] = field(default_factory=dict)
    version: int | None = None

    def __post_init__(self) -> None:
        if not self.stores:
            raise ConfigError("`stores` is empty: say where the store with the new entities is, or is to be written.")
        if without := sorted(self.tables.keys() - self.stores.keys()):
            raise ConfigError(f"`tables` has {', '.join(without)}, but `stores` does not say where they go.")


def refresh(config: RefreshConfig) -> dict[str, Any]:
    """Does what `RefreshConfig` says.

    What has been done is not done again: a store that holds all entities is not written, and a model that serves all of
    them gets no new version. Stopped at any point, the job goes on there when it is run again.

    Returns:
        Path, version, signatures and size of the version that serves all entities, and under `encoded` for each entity
        what was encoded.

    Raises:
        ConfigError: The configuration contradicts itself, or names an entity that the model has no knowledge of.
        ExportError: What is served is of another model, or a store does not only add to the one it was made from.
        KerasVersionError: Keras 3 is active.
    """
    import kser_tf
    from kser_tf.models.model_folder import load_model, store_references

    references = store_references(config.model)
    if unknown := sorted(config.stores.keys() - references.keys()):
        raise ConfigError(
            f"`stores` names {', '.join(unknown)}; the model has knowledge of {', '.join(references) or 'nothing'}."
        )
    if shuffled := sorted(entity for entity in config.stores if references[entity].shuffle_seed is not None):
        raise ConfigError(
            f"the model was trained on shuffled knowledge of {', '.join(shuffled)}: a placebo is not served."
        )
    paths, encoded = dict(config.stores), {}
    for entity, table in config.tables.items():
        live = Path(config.stores[entity])
        before = live if live.is_dir() else references[entity].path
        encoded[entity] = encode_further(before, table, live)
        paths[entity] = encoded[entity]["store"]
    stores = {entity: kser_tf.KnowledgeStore.open(path) for entity, path in paths.items()}
    model = load_model(config.model, stores=stores)
    return {**kser_tf.refresh(model, config.served, version=config.version).as_dict(), "encoded": encoded}
