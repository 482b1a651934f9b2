"""New entities in a served model: scored as if they had been there at the export, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import served_world as served
import small_world as world

import kser_tf
from kser_tf import KnowledgeStore
from kser_tf.errors import ConfigError, ExportError, StoreError
from kser_tf.files import sha256_of_file
from kser_tf.serving import baking, contract
from kser_tf.serving.fingerprints import require_own_store

# Known to the vocabulary and to the store, to the vocabulary alone until the refresh, and to neither until then.
VOCABULARY = world.ITEMS[:10]
OLD = [*world.ITEMS[:4], *world.ITEMS[12:20]]
NEW = [world.ITEMS[7], *world.ITEMS[20:24], "новый", "新しい"]
NOWHERE = ["nobody", ""]


def knowledge(ids: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors and masks that hang on the id alone."""
    every = [*world.ITEMS, *NEW]
    rng = np.random.default_rng(6)
    shape = (len(every), world.FIELDS, world.CHUNKS, world.WIDTH)
    vectors, mask = rng.normal(size=shape).astype(np.float32), rng.random(shape[:-1]) < 0.8
    places = [every.index(i) for i in ids]
    return np.array(ids, object), vectors[places], mask[places]


def write_store(path: Path, ids: list[str], dtype: Any = "float32", **changes: Any) -> KnowledgeStore:
    arguments = {"fields": ["a", "b"], "encoder": "test", "encoder_fingerprint": "e", **changes}
    return KnowledgeStore.write(path, *knowledge(ids), dtype=dtype, **arguments)


class TestExtended:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
    def test_it_is_what_would_have_been_written_at_once(self, tmp_path: Path, dtype: Any) -> None:
        old = write_store(tmp_path / "old", OLD, dtype, text_hash="t")
        ids, vectors, mask = knowledge(NEW)
        batches = [(ids[:3], vectors[:3], mask[:3]), (ids[3:], vectors[3:], mask[3:])]
        new = old.extended(tmp_path / "new", batches, text_hash="u")
        at_once = write_store(tmp_path / "at-once", [*OLD, *NEW], dtype)
        for file in at_once.path.glob("*.npy"):
            assert (new.path / file.name).read_bytes() == file.read_bytes(), file.name
        ours, theirs = new.manifest, at_once.manifest
        for key in theirs.keys() - {"fingerprint", "text_hash"}:
            assert ours[key] == theirs[key], key
        assert ours["extends"] == [old.fingerprint]
        assert ours["text_hash"] not in ("t", "u", None)
        for name in ("vectors", "mask"):
            np.testing.assert_array_equal(getattr(new, name)[: len(OLD)], getattr(old, name))
        assert list(KnowledgeStore.open(new.path).ids) == [*OLD, *NEW]

    def test_integer_ids_no_rows_and_its_own_place(self, tmp_path: Path) -> None:
        _, vectors, mask = knowledge(OLD)
        empty = KnowledgeStore.write(
            tmp_path / "s", [], vectors[:0], mask[:0], fields=["a", "b"], encoder="test", dtype="int8"
        )
        some = empty.extended(tmp_path / "s", [(np.arange(3), vectors[:3], mask[:3])], overwrite=True)
        more = some.extended(tmp_path / "s", [(np.array([2**40]), vectors[3:4], mask[3:4])], overwrite=True)
        assert KnowledgeStore.open(tmp_path / "s").ids.tolist() == [0, 1, 2, 2**40] == more.ids.tolist()
        assert more.extended(tmp_path / "t", []).ids.tolist() == more.ids.tolist()

    def test_what_is_refused(self, tmp_path: Path) -> None:
        old = write_store(tmp_path / "old", OLD)
        ids, vectors, mask = knowledge(OLD[:1])
        with pytest.raises(StoreError, match=f"ids occur more than once: '{OLD[0]}'"):
            old.extended(tmp_path / "new", [(ids, vectors, mask)])
        with pytest.raises(StoreError, match=r"\(fields, chunks, width\) = \(2, 2, 7\), but \(2, 2, 8\)"):
            old.extended(tmp_path / "new", [(np.array(["x"], object), vectors[..., :7], mask)])
        with pytest.raises(StoreError, match="shuffled view cannot be extended"):
            old.shuffled(1).extended(tmp_path / "new", [])
        with pytest.raises(StoreError, match="exists already"):
            old.extended(tmp_path / "old", [])
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "kept").touch()
        with pytest.raises(StoreError, match="is not a knowledge store, and is not overwritten"):
            old.extended(tmp_path / "other", [], overwrite=True)
        assert not (tmp_path / "new").exists()


def rows(count: int = 48) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    items = np.array([*OLD, *NEW, *VOCABULARY, *NOWHERE], object)
    found = served.rows(count)
    found["item"] = np.resize(items, count)
    found["past_item"] = rng.choice(items, (count, 5))
    return found


@pytest.mark.tfrs
class TestRefresh:
    @pytest.fixture(autouse=True)
    def _stores(self, tmp_path: Path) -> None:
        self.old = write_store(tmp_path / "old", OLD)
        self.new = self.old.extended(tmp_path / "new", [knowledge(NEW)])
        self.base = tmp_path / "base"

    @pytest.mark.parametrize(
        ("backbone", "bake"),
        [("din", "float32"), ("dcn_v2", "int8"), ("din", None)],
    )
    def test_as_if_they_had_been_there_at_the_export(self, tmp_path: Path, backbone: str, bake: Any) -> None:
        given = rows()
        kinds = None if bake == "float32" else ("embeddings",)  # all of them once
        model = served.ranking_model(self.old, backbone)
        first = kser_tf.export(model, self.base, examples=given, metadata={"a": 1}, bake=bake, signatures=kinds)
        larger = served.ranking_model(self.new, backbone)
        refreshed = kser_tf.refresh(larger, self.base)
        assert refreshed.path == self.base / "2"
        full = kser_tf.export(larger, tmp_path / "full", bake=bake, signatures=("embeddings",))
        before, after, expected = (served.Served(result.path) for result in (first, refreshed, full))
        for name, inputs in {"serving_default": given, "embeddings": {"item_id": given["item"]}}.items():
            for output, values in expected(name, **inputs).items():
                np.testing.assert_array_equal(after(name, **inputs)[output], values)
        old_ones = np.array([*OLD, *NOWHERE, *sorted(set(VOCABULARY) - set(NEW))], object)
        new_ones = np.array(NEW, object)
        for output in ("embedding", "aligned"):
            np.testing.assert_array_equal(
                after("embeddings", item_id=old_ones)[output], before("embeddings", item_id=old_ones)[output]
            )
        assert (
            (before("embeddings", item_id=new_ones)["embedding"] != after("embeddings", item_id=new_ones)["embedding"])
            .any(-1)
            .all()
        )
        told = json.loads((refreshed.path / contract.DESCRIPTION_FILE).read_text())
        assert told["refreshed"] == {
            "version": 1,
            "fingerprint": first.fingerprint,
            "new_ids": {"item_lookup": len(NEW)},
        }
        assert told["metadata"] == {"a": 1}
        assert told["examples"] == len(given["item"])
        assert told["signatures"] == first.signatures
        assert not (self.base / ".baking").exists()

    def test_only_new_rows_are_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from kser_tf.models.bakeable_entity import BakeableEntity
        from kser_tf.serving import baking

        kser_tf.export(served.ranking_model(self.old), self.base, signatures=())
        computed = []
        whole = baking._reduced

        def noting(vectors: Any, dtype: Any, bakeable: BakeableEntity, rows: np.ndarray) -> Any:
            computed.extend(bakeable.keys[rows - (rows > bakeable.unknown_row)].tolist())
            return whole(vectors, dtype, bakeable, rows)

        monkeypatch.setattr(baking, "_reduced", noting)
        result = kser_tf.refresh(served.ranking_model(self.new), self.base)
        assert sorted(computed) == sorted(NEW)
        assert list(result.signatures) == ["serving_default"]
        assert kser_tf.refresh(served.ranking_model(self.new), self.base).version == result.version  # nothing is new

    def test_twice_in_a_row(self, tmp_path: Path) -> None:
        kser_tf.export(served.ranking_model(self.old), self.base, signatures=())
        between = self.old.extended(tmp_path / "between", [knowledge(NEW[:3])])
        last = between.extended(tmp_path / "last", [knowledge(NEW[3:])])
        for store in (between, last):
            result = kser_tf.refresh(served.ranking_model(store), self.base)
        full = kser_tf.export(served.ranking_model(self.new), tmp_path / "full", signatures=())
        given = rows()
        np.testing.assert_array_equal(
            served.Served(result.path)(**given)["logit"], served.Served(full.path)(**given)["logit"]
        )
        assert result.version == 3

    def test_what_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        model = served.ranking_model(self.new)
        with pytest.raises(ExportError, match="holds no version to refresh"):
            kser_tf.refresh(model, self.base)
        first = kser_tf.export(served.ranking_model(self.old), self.base, signatures=())

        def refused(message: str, model: Any, **arguments: Any) -> None:
            with pytest.raises(ExportError, match=message):
                kser_tf.refresh(model, self.base, **arguments)

        other = served.ranking_model(self.new)
        other.output_layer.set_weights([weight + 1e-6 for weight in other.output_layer.get_weights()])
        refused("its weights are others", other)

        def with_store(name: str, ids: list[str], **changes: Any) -> Any:
            return served.ranking_model(write_store(tmp_path / name, ids, **changes))

        every = [*OLD, *NEW]
        refused("encoder 'another' instead of 'test'", with_store("encoder", every, encoder="another"))
        refused("encoder_fingerprint 'f' instead of 'e'", with_store("weights", every, encoder_fingerprint="f"))
        refused(r"fields \['a', 'c'\] instead of", with_store("fields", every, fields=["a", "c"]))
        refused("vector_dtype 'int8' instead of 'float32'", with_store("dtype", every, dtype="int8"))
        refused(f"does not begin with the {len(OLD)} rows", with_store("order", every[::-1]))
        refused("does not begin with", with_store("less", OLD[:-1]))
        refused(r"shuffled \{.*\} instead of None", served.ranking_model(self.new.shuffled(3)))
        refused("4 was not written by kser_tf.export", model, of=4)
        with pytest.raises(TypeError, match="takes no argument 'bake'"):
            kser_tf.refresh(model, self.base, bake="int8")

        (self.base / "7").mkdir()
        refused("7 was not written by kser_tf.export: .* is missing", model)
        (self.base / "7").rmdir()
        with open(first.path / "variables" / "variables.data-00000-of-00001", "r+b") as file:
            file.seek(10)
            file.write(b"\xff")
        refused("variables.data-00000-of-00001 is missing, damaged or was changed", model)
        assert [entry.name for entry in self.base.iterdir()] == ["1"]

    def test_stopped_it_leaves_no_version_and_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kser_tf.export(served.ranking_model(self.old), self.base, signatures=())
        save = contract.describe_signatures

        def stopped(meta_graph: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(contract, "describe_signatures", stopped)
        model = served.ranking_model(self.new)
        with pytest.raises(KeyboardInterrupt):
            kser_tf.refresh(model, self.base)
        assert sorted(entry.name for entry in self.base.iterdir()) == [".baking", "1"]
        monkeypatch.setattr(contract, "describe_signatures", save)
        given = rows()
        result = kser_tf.refresh(model, self.base)
        np.testing.assert_allclose(
            served.Served(result.path)(**given)["logit"], served.own(model, given), rtol=1e-5, atol=1e-5
        )


@pytest.mark.tfrs
def test_killed_at_any_point_no_version_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()  # other points each time
    old = write_store(tmp_path / "old", OLD)
    base = tmp_path / "base"
    given = rows()
    before = served.Served(kser_tf.export(served.ranking_model(old), base, examples=given, signatures=()).path)(**given)
    ids = np.array([*NEW, *(f"id-{i}" for i in range(20_000))], object)
    vectors = rng.normal(size=(len(ids), world.FIELDS, world.CHUNKS, world.WIDTH)).astype(np.float32)
    store = old.extended(tmp_path / "new", [(ids, vectors, np.ones(vectors.shape[:-1], bool))])
    for _ in range(2):
        served.killed("kser_tf.refresh(model, base)", store.path, base, rng.uniform(0, 2))
        versions = [entry for entry in base.iterdir() if entry.name.isdecimal()]
        for version in versions:
            files = json.loads((version / contract.DESCRIPTION_FILE).read_text())["files"]
            assert all(sha256_of_file(version / name) == file["sha256"] for name, file in files.items())
        np.testing.assert_array_equal(served.Served(base / "1")(**given)["logit"], before["logit"])
    monkeypatch.setattr(baking, "ROWS_AT_ONCE", 256)
    model = served.ranking_model(store)
    result = kser_tf.refresh(model, base)
    assert result.version == 2
    np.testing.assert_allclose(
        served.Served(result.path)(**given)["logit"], served.own(model, given), rtol=1e-5, atol=1e-5
    )
    assert not (base / ".baking").exists()


@pytest.mark.tfrs
def test_from_texts_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    import small_encoder

    from kser_tf import cli
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, load_model, save_model
    from kser_tf.pipelines.encode import EncodeConfig, encode

    encoder = small_encoder.save_encoder(tmp_path / "encoder")

    def texts(ids: list[str], name: str) -> str:
        table = {
            "id": ids,
            "a": [f"Der Film {i} erzählt. Er ist lang." for i in ids],
            "b": [None if i == OLD[0] else f"{i}: 静かな映画。" for i in ids],
        }
        pd.DataFrame(table).to_parquet(tmp_path / name)
        return str(tmp_path / name)

    config = EncodeConfig(
        table=texts(OLD, "old.parquet"),
        output=str(tmp_path / "stores" / "item"),
        id_column="id",
        fields=["a", "b"],
        chunks_per_field=2,
        encoder=str(encoder),
        dimensions=8,
        speed="exact",
    )
    encode(config)
    model = served.ranking_model(KnowledgeStore.open(config.output))
    save_model(tmp_path / "model", model, {"item": StoreReference.to(config.output)})
    model.save_weights(tmp_path / "model" / WEIGHTS_FILE)
    kser_tf.export(load_model(tmp_path / "model"), tmp_path / "served", examples=rows(), bake="int8")

    live = tmp_path / "stores" / "live"
    arguments = ["refresh", "--model", str(tmp_path / "model"), "--served", str(tmp_path / "served")]
    arguments += ["--stores", f"{{item: {live}}}"]
    # Some of the table is known already, and its text is another now: it stays as it was.
    table = texts([*NEW[:3], *OLD[:2]], "new.parquet")
    pd.read_parquet(table).assign(a=lambda t: t["a"].where(t["id"] != OLD[1], "x")).to_parquet(table)
    assert cli.main([*arguments, "--tables", f"{{item: {table}}}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 2
    assert (told["encoded"]["item"]["new_entities"], told["encoded"]["item"]["known_entities"]) == (3, 2)
    old, new = KnowledgeStore.open(config.output), KnowledgeStore.open(live)
    assert list(new.ids) == [*OLD, *NEW[:3]]
    np.testing.assert_array_equal(new.vectors[: len(OLD)], old.vectors)
    np.testing.assert_array_equal(new.scales[: len(OLD)], old.scales)

    again = cli.main([*arguments, "--tables", f"{{item: {texts(NEW, 'all.parquet')}}}"])
    assert again == 0
    assert json.loads(capsys.readouterr().out)["version"] == 3
    newest = KnowledgeStore.open(live)
    assert list(newest.ids) == [*OLD, *NEW]
    np.testing.assert_array_equal(newest.vectors[: len(new)], new.vectors)
    given = rows()
    expected = served.own(load_model(tmp_path / "model", stores={"item": newest}), given)
    np.testing.assert_allclose(served.Served(tmp_path / "served" / "3")(**given)["logit"], expected, atol=0.05)
    assert np.abs(served.Served(tmp_path / "served" / "1")(**given)["logit"] - expected).max() > 0.05

    # The model's folder says which store it was trained with: an extension of it is exported, another one is not.
    require_own_store(load_model(tmp_path / "model", stores={"item": newest}).embedding.lookups["item"])
    other = write_store(tmp_path / "other", [*OLD, *NEW], "int8")
    with pytest.raises(ExportError, match=f"trained with the store {old.fingerprint}, and is connected to"):
        kser_tf.export(load_model(tmp_path / "model", stores={"item": other}), tmp_path / "refused")

    # Nothing new: no store, no version.
    assert cli.main([*arguments, "--tables", f"{{item: {texts(NEW, 'all.parquet')}}}"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 3
    assert cli.main([*arguments[:-1], "{film: x}"]) == cli.EXIT_ERROR
    assert "`stores` names film; the model has knowledge of item" in capsys.readouterr().err


def test_configurations_that_contradict_themselves() -> None:
    from kser_tf.pipelines.config import from_mapping
    from kser_tf.pipelines.refresh import RefreshConfig

    with pytest.raises(ConfigError, match="`stores` is empty"):
        from_mapping(RefreshConfig, {"model": "m", "served": "s", "stores": {}}, source="test")
    values = {"model": "m", "served": "s", "stores": {"item": "x"}, "tables": {"user": "y"}}
    with pytest.raises(ConfigError, match="`tables` has user, but `stores` does not say where they go"):
        from_mapping(RefreshConfig, values, source="test")
