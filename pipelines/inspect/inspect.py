"""The job `inspect`: what a trained model weighs up and down, whom it holds to be alike, and where knowledge hurts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from kser_tf.errors import ConfigError, DataError, KserError
from kser_tf.files import new_directory
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.metrics import TAIL_TRAINING_ROWS, slice_rows
from kser_tf.pipelines.chunk_means import chunk_means
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.inspect import gains, spaces, weights
from kser_tf.pipelines.inspect.page import write_page
from kser_tf.pipelines.job import current_result, fingerprint_of, read_job, refuse_foreign_folder, write_job
from kser_tf.pipelines.names import NameTable
from kser_tf.pipelines.report import require_report_extra
from kser_tf.schema import (
    FIRST_INDEX,
    ITEM_IS_COLD,
    ITEM_TRAINING_ROWS,
    LABEL,
    USER_INTERACTIONS,
    DatasetSchema,
)

# Of the items and groups that gain and lose most. All of them are in inspect.json.
_SHOWN = 12
_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Looks inside a trained model: what it weighs up and down, whom it holds to be alike, where knowledge helps and hurts.

    Args:
        model: Folder that `train` wrote, of a model with knowledge. Its stores must be where they were.
        prepared: Folder that `prepare` wrote.
        base: Folder of the base, trained without knowledge on the same data set. Without it nothing is said of where
            knowledge helps and hurts, nor of the base's feature space.
        output: Folder for inspect.json and inspect.html. Defaults to `<model>/inspect`.
        names: For kinds of entities where their names are, such as `{movie: {table: .., id_column: .., name_column: ..}}`.
            Defaults to none: ids are shown.
        neighbours: How many nearest neighbours of an item are compared.
        least_common_users: Two items that fewer users like are not co-rated.
        most_items: Of more items a random sample of so many is compared.
        least_users: Items and groups with test rows of fewer users are not listed.
        batch_size: Rows predicted at once.
        seed: Of the sample of items.
    """

    __pydantic_config__ = STRICT_KEYS

    model: str
    prepared: str
    base: str | None = None
    output: str | None = None
    names: dict[str, NameTable] = field(default_factory=dict)
    neighbours: int = 10
    least_common_users: int = 5
    most_items: int = 5000
    least_users: int = 30
    batch_size: int = 8192
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (
            ("neighbours", 1),
            ("least_common_users", 1),
            ("most_items", 2),
            ("least_users", 2),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}. Received: {getattr(self, name)}")

    @property
    def folder(self) -> Path:
        """Where the figures go."""
        return Path(self.output) if self.output is not None else Path(self.model) / "inspect"


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Does what `InspectConfig` says: writes `inspect.json`, and `inspect.html` of the same figures, one file for people.

    Returns:
        The page's path, and its first sentences.

    Raises:
        ConfigError: The model has no knowledge, or the output folder holds something else.
        DataError, StoreError: An input is missing, damaged or does not fit.
        KerasVersionError: Keras 3 is active.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_report_extra()
    refuse_foreign_folder(config.folder, job="inspect")
    inputs = {"model": fingerprint_of(config.model), "prepared": fingerprint_of(config.prepared)}
    if config.base is not None:
        inputs["base"] = fingerprint_of(config.base)
    for entity, table in config.names.items():
        inputs[f"names {entity}"] = fingerprint_of(table.table)
    if (done := current_result(config.folder, job="inspect", config=config, inputs=inputs)) is not None:
        return done
    started = time.monotonic()
    content = _look(config)
    with new_directory(config.folder, overwrite=True) as folder:
        sentences = write_page(folder, content)
        result = {"page": str(config.folder / "inspect.html"), "summary": sentences}
        write_job(
            folder, job="inspect", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
        )
    return result


def _look(config: InspectConfig) -> dict[str, Any]:
    from kser_tf.models.model_folder import load_model, store_references

    references = store_references(config.model)
    if not references:
        raise ConfigError(f"{config.model} has no knowledge, so there is nothing to look into. Give it as `base`.")
    stores = {entity: reference.open() for entity, reference in references.items()}
    model = load_model(config.model)
    schema = DatasetSchema.load(config.prepared)
    base = load_model(config.base) if config.base is not None else None
    for folder, other in ((config.model, model), (config.base, base)):
        if other is not None and other.schema.fingerprint != schema.fingerprint:
            raise DataError(
                f"{folder} was trained on other features or vocabularies than {config.prepared} has. Give the folder that "
                "it was trained on."
            )
    for entity in config.names:
        if entity not in {feature.entity for feature in schema.features}:
            raise ConfigError(f"`names` has names of {entity!r}, but no feature names such entities.")
    names = {entity: table.read() for entity, table in config.names.items()}
    items = _ItemRows(Path(config.prepared), schema)
    texts: dict[str, dict[weights.Place, weights.Chunk]] = {}
    remarks = []
    for entity, store in stores.items():
        if references[entity].shuffle_seed is not None:
            remarks.append(f"The knowledge about each {entity} is another's (a placebo), so no text is shown.")
            continue
        texts[entity], why = _texts(store)
        remarks += [f"The texts about each {entity} are not at hand: {why}"] if why else []
    content: dict[str, Any] = {
        "title": f"A look inside {config.model}",
        "model": config.model,
        "base": config.base,
        "settings": {
            "neighbours": config.neighbours,
            "least_common_users": config.least_common_users,
            "least_users": config.least_users,
        },
        "stores": {entity: store.describe() for entity, store in stores.items()},
        "remarks": remarks,
    }
    content |= weights.look_at_weights(model, stores, texts, names, run=config.model)
    content |= _on_what(model, stores, texts, items)
    content["spaces"] = _spaces(config, model, base, stores, items)
    content["gains"] = None if base is None else _gains(config, model, base, stores, items, names)
    return content


class _ItemRows:
    """Rows of the prepared tables, and what they say of the items."""

    def __init__(self, prepared: Path, schema: DatasetSchema) -> None:
        self.schema = schema
        self.item = schema.feature(schema.item_id)
        wanted = [schema.item_id, schema.user_id, LABEL]
        further = [ITEM_IS_COLD, ITEM_TRAINING_ROWS, USER_INTERACTIONS]
        further += [feature.name for feature in schema.features if feature.kind in ("categorical", "multi")]
        self.train = pq.read_table(prepared / "train.parquet", columns=wanted).to_pandas()
        self.test = pq.read_table(prepared / "test.parquet", columns=list(dict.fromkeys(wanted + further))).to_pandas()
        self.training_rows = self.train[schema.item_id].value_counts()

    def training_rows_of(self, ids: np.ndarray) -> np.ndarray:
        """How many training rows each id has, int64 `(ids,)`."""
        return self.training_rows.reindex(ids, fill_value=0).to_numpy()

    def all_ids(self) -> np.ndarray:
        """The items of training and test rows, the most frequent of the training rows first."""
        in_test = pd.unique(self.test[self.schema.item_id].to_numpy())
        known = self.training_rows.index.to_numpy()
        return np.concatenate([known, in_test[~np.isin(in_test.astype(str), known.astype(str))]]).astype(known.dtype)


def _texts(store: KnowledgeStore) -> tuple[dict[weights.Place, weights.Chunk], str | None]:
    """The texts of a store's chunks, read again from what it was encoded from; or why they are not at hand."""
    from kser_tf.pipelines.encode import EncodeConfig, read_passages

    job = read_job(store.path)
    if job is None or job["job"] != "encode":
        return {}, "the store was not written by `kser-tf encode`."
    config = EncodeConfig(**job["config"])
    try:
        if read_passages(config).fingerprint != store.manifest["text_hash"]:
            return {}, f"{config.table} holds other texts now than those that were encoded."
        return weights.chunk_texts(config, store), None
    except KserError as error:
        return {}, str(error)


def _on_what(
    model: Any,
    stores: Mapping[str, KnowledgeStore],
    texts: Mapping[str, Mapping[weights.Place, weights.Chunk]],
    items: _ItemRows,
) -> dict[str, Any]:
    """What the weights go with, and which kinds of entities have no weights."""
    from kser_tf.layers.statistics_at_hand import statistics_of_store

    found: dict[str, Any] = {"associations": [], "explained_by_place": {}, "without_esf_net": []}
    for entity, store in stores.items():
        esf_net = model.extractors[entity].esf_net
        if esf_net is None:
            found["without_esf_net"].append({"entity": entity, "adaptor": model.config.adaptor})
            continue
        of_chunks = weights.chunk_weights(model, entity, len(store))
        found["associations"] += weights.weight_associations(
            entity,
            store,
            of_chunks,
            statistics_of_store(model.embedding.lookups[entity], esf_net).numpy(),
            texts.get(entity, {}),
            items.training_rows_of(store.ids) if entity == items.item.entity else None,
        )
        found["explained_by_place"][entity] = weights.share_explained_by_place(of_chunks, np.asarray(store.mask))
    return found


def _spaces(
    config: InspectConfig, model: Any, base: Any, stores: Mapping[str, KnowledgeStore], items: _ItemRows
) -> dict[str, Any] | None:
    """How far the feature spaces of the items agree; `None` where nothing is known of items."""
    import tensorflow as tf

    entity, schema = items.item.entity, items.schema
    if entity is None or entity not in stores:
        return None
    store = stores[entity]
    ids = items.all_ids()
    chunks, mask = store.lookup(ids)
    ids, chunks, mask = ids[known := mask.any((1, 2))], chunks[known], mask[known]
    chosen = spaces.chosen_items(len(ids), config.most_items, config.seed)
    ids, chunks, mask = ids[chosen], chunks[chosen], mask[chosen]
    training_rows = items.training_rows_of(ids)
    tensor = tf.convert_to_tensor(ids)
    of_model = _described(next(table for table in model.bakeable_tables() if table.name == entity), tensor)
    found: dict[str, spaces.Space] = {"text": spaces.VectorSpace(chunk_means(chunks, mask))}
    if base is not None:
        vocabulary = str(items.item.vocabulary)
        indices = base.indexer.indices(vocabulary, tensor)
        # All items that the vocabulary does not hold have one embedding between them.
        found["base_ids"] = spaces.VectorSpace(
            base.embedding.base_embeddings(vocabulary, indices).numpy(), indices.numpy() >= FIRST_INDEX
        )
    found["aligned"] = spaces.VectorSpace(of_model["aligned"])
    found["embedding"] = spaces.VectorSpace(of_model["embedding"])
    if (profiles := model.embedding.entity_profiles.get(entity)) is not None:
        of_items = (
            profiles(chunks[start : start + _BATCH], mask=mask[start : start + _BATCH])
            for start in range(0, len(ids), _BATCH)
        )
        found["profiles"] = spaces.VectorSpace(np.concatenate([part.numpy() for part in of_items]))
    for name, rows in (("co_rated_in_training", items.train), ("co_rated_in_test", items.test)):
        liked = rows[rows[LABEL] == 1]
        found[name] = spaces.CoRatedSpace(
            pd.Index(ids).get_indexer(liked[schema.item_id]),
            liked[schema.user_id].to_numpy(),
            len(ids),
            least_common=config.least_common_users,
        )
    groups = {
        "all": np.ones(len(ids), np.bool_),
        "head": training_rows >= TAIL_TRAINING_ROWS,
        "tail": (training_rows > 0) & (training_rows < TAIL_TRAINING_ROWS),
        "cold": training_rows == 0,
    }
    return {
        "neighbours": config.neighbours,
        "items": {name: int(members.sum()) for name, members in groups.items()},
        "sampled_from": int(known.sum()) if len(ids) < known.sum() else None,
        "agreements": spaces.agreements(found, groups, config.neighbours),
    }


def _described(table: Any, ids: Any) -> dict[str, np.ndarray]:
    """The model's embeddings of items with their knowledge, and the knowledge alone."""
    parts = [table.describe(ids[start : start + _BATCH]) for start in range(0, len(ids), _BATCH)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in ("embedding", "aligned")}


def _gains(
    config: InspectConfig,
    model: Any,
    base: Any,
    stores: Mapping[str, KnowledgeStore],
    items: _ItemRows,
    names: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Differences of the log loss on the test rows: on slices, and for each item and each value of the features."""
    from kser_tf.pipelines.callbacks import predict_logits
    from kser_tf.pipelines.examples import IndexedExamples

    schema, rows = items.schema, items.test
    labels, users = rows[LABEL].to_numpy(), rows[schema.user_id].to_numpy()
    losses = {}
    for name, one, known in (("model", model, stores), ("base", base, {})):
        examples = IndexedExamples(config.prepared, "test", known)
        losses[name] = gains.row_losses(labels, predict_logits(one, examples.batches(config.batch_size)))

    def compared(groups: np.ndarray, places: Any = slice(None)) -> pd.DataFrame:
        return gains.differences_by_group(groups, users[places], losses["base"][places], losses["model"][places])

    slices = slice_rows(
        users,
        rows[ITEM_TRAINING_ROWS].to_numpy(),
        rows[ITEM_IS_COLD].to_numpy(),
        rows[USER_INTERACTIONS].to_numpy(),
    )
    of_slices = [
        {"name": name, **compared(np.where(members, 0, -1)).to_dict("records")[0]}
        for name, members in slices.items()
        if members.any()
    ]
    kinds, all_groups, tables = [], [], []
    for feature in schema.features:
        if feature.kind not in ("categorical", "multi"):
            continue
        places, codes, values = _groups(rows[feature.name], feature.missing)
        figures, name_of = compared(codes, places), names.get(feature.entity or "", {})
        figures = figures.assign(
            feature=feature.name, name=[name_of.get(values[code], values[code]) for code in figures.index]
        )
        kinds.append({"feature": feature.name, **gains.count_worse(figures, config.least_users)})
        all_groups += figures[figures["users"] >= config.least_users].to_dict("records")
        tables.append(figures)
    parts = {
        "items": [figures for figures in tables if (figures["feature"] == schema.item_id).all()],
        "groups": [figures for figures in tables if not (figures["feature"] == schema.item_id).any()],
    }
    found: dict[str, Any] = {"rows": len(rows), "slices": of_slices, "kinds": kinds, "all": all_groups}
    for part, of_part in parts.items():
        together = pd.concat(of_part) if of_part else pd.DataFrame()
        for side, worse in (("worst", True), ("best", False)):
            chosen = gains.most_sure(together, config.least_users, _SHOWN, worse=worse) if len(together) else together
            found[f"{side}_{part}"] = chosen.to_dict("records")
    return found


def _groups(column: Any, missing: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The rows of a column's values, the number of each one's group, and the groups' names; missing values are left out.

    A row whose list holds a value twice is in that group once.
    """
    exploded = column.reset_index(drop=True).explode().dropna()
    exploded = exploded[exploded != missing]
    codes, values = pd.factorize(exploded)
    pairs = np.unique(np.stack([exploded.index.to_numpy(), codes], 1), axis=0).astype(np.int64)
    return pairs[:, 0], pairs[:, 1], [str(value) for value in values]
