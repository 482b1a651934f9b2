"""docs/serving.md runs as it stands: its commands, and its Python, on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world as world

import kser_tf
from kser_tf import KnowledgeStore, cli
from kser_tf.serving import contract
from kser_tf.serving.loaded_model import LoadedModel

pytestmark = pytest.mark.tfrs

ROOT = Path(__file__).parent.parent
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page takes for granted: a model, its prepared data, and a store that has grown."""
    from kser_tf import RankingModel
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, save_model
    from kser_tf.schema import DatasetSchema

    folder = tmp_path_factory.mktemp("docs")
    prepared = world.make_prepared(folder)
    store = KnowledgeStore.open(world.make_store(folder))
    model = RankingModel(
        DatasetSchema.load(prepared), RankingModelConfig(embedding_width=4, hidden_units=(8,)), {"item": store}
    )
    model.make_weights()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    save_model(folder / "models" / "knowledge", model, {"item": StoreReference.to(store.path)})
    model.save_weights(folder / "models" / "knowledge" / WEIGHTS_FILE)
    new = rng.normal(size=(2, world.FIELDS, world.CHUNKS, world.WIDTH)).astype(np.float32)
    store.extended(folder / "stores" / "item-new", [(["новый", "新しい"], new, np.ones(new.shape[:-1], bool))])
    return folder


def commands(page: str) -> list[list[str]]:
    lines = [line.strip() for line in page.splitlines() if line.startswith("    kser-tf ")]
    return [shlex.split(line)[1:] for line in lines]


def share_of_pairs_in_order(labels: np.ndarray, logits: np.ndarray) -> float:
    """AUC by its definition."""
    clicked, other = logits[labels == 1][:, None], logits[labels == 0]
    return float(np.mean((clicked > other) + 0.5 * (clicked == other)))


def test_the_page_on_serving(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kser_tf.models.model_folder import load_model
    from kser_tf.pipelines.examples import IndexedExamples
    from kser_tf.serving.double.protocol_double import ProtocolDouble

    monkeypatch.chdir(place)
    assert [command[0] for command in commands(SERVING)] == ["export", "check", "refresh", "serving-config"]
    printed = []
    for command in commands(SERVING):
        assert cli.main(command) == 0, command
        printed.append(capsys.readouterr().out)
    effect = json.loads(printed[0])["effect"]
    examples = IndexedExamples("prepared", "test")
    raw = next(examples.raw_batches(len(examples)))
    own = load_model("models/knowledge").serve(raw)["logit"].numpy()
    with LoadedModel("serving/ranker/1") as loaded:
        small = loaded.run("serving_default", contract.as_table(raw, loaded.signatures["serving_default"]["inputs"]))
    for told, logits in ((effect, own), (effect["int8"], small["logit"])):
        assert told["auc"] == pytest.approx(share_of_pairs_in_order(examples.labels, logits), abs=1e-4)
    assert effect["rows"] == len(own) > 100
    assert effect["int8"]["auc_difference"] == effect["int8"]["auc"] - effect["auc"]
    assert effect["int8"]["largest"] == pytest.approx(np.abs(small["logit"] - own).max(), abs=1e-5)
    assert effect["int8"]["largest"] > effect["int8"]["mean"] > 0
    assert "C++ program" in printed[1]
    assert sorted(entry.name for entry in (place / "serving" / "ranker").iterdir() if entry.name.isdecimal()) == [
        "1",
        "2",
    ]
    assert "stable 1, canary 2" in printed[3]

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    blocks = re.findall(r"```python\n(.*?)```", SERVING, re.DOTALL)
    names: dict[str, Any] = {
        "kser_tf": kser_tf,
        "model": load_model("models/knowledge"),
        "rows": next(IndexedExamples("prepared", "test").raw_batches(50)),
    }
    exec(blocks[0], names)
    assert names["result"].version == 3
    grpc = pytest.importorskip("grpc")
    with ProtocolDouble("serving/ranker", name="ranker", grpc_port=0, rest_port=0) as double:
        names["url"] = f"http://{double.rest_address}/v1/models/ranker"
        with grpc.insecure_channel(double.grpc_address) as names["channel"]:
            for block in blocks[1:]:
                exec(block, names)
    expected = names["model"].serve({name: np.array([value]) for name, value in names["row"].items()})["logit"]
    np.testing.assert_allclose(names["answer"]["logit"], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(names["answers"]["logit"], expected, rtol=1e-5, atol=1e-5)


def test_the_signatures_are_those_of_the_page(place: Path) -> None:
    named = set(re.findall(r"^\| `(\w+)` \| ", SERVING.partition("## Baking")[0], re.MULTILINE))
    assert named == {
        contract.SIGNATURE,
        contract.WITH_KNOWLEDGE,
        contract.EXAMPLES,
        contract.CLASSIFY,
        contract.REGRESS,
        contract.EMBEDDINGS,
    }


def test_files_that_the_pages_name_are_there() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`((?:benchmarks|examples|tests)/[\w/.-]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
