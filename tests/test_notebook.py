"""The notebooks run as they stand, in fresh kernels, and show what they say."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = [pytest.mark.tfrs, pytest.mark.slow]

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def outputs_of(name, folder):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in git"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return "\n".join(
        output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_attach_layers(tmp_path):
    outputs = outputs_of("attach_layers.ipynb", tmp_path)
    assert "the same predictions, bit for bit" in outputs
    assert "runs" in outputs
    (table,) = (line.split() for line in outputs.splitlines() if line.startswith("cold "))
    base, with_knowledge = map(float, table[1:])
    assert with_knowledge > base + 0.01, f"cold films: {base} without knowledge, {with_knowledge} with it"


def test_attach_to_your_tfrs_model(tmp_path, monkeypatch):
    # The notebook's cells assert what they say; this is about time.
    monkeypatch.setenv("KSER_TF_NOTEBOOK_DRAWS", "1")
    monkeypatch.setenv("KSER_TF_NOTEBOOK_USERS", "1200")
    outputs = outputs_of("attach_to_your_tfrs_model.ipynb", tmp_path)
    assert "the first predictions are the old ones, bit for bit" in outputs
    assert "detached, it predicts as before, bit for bit" in outputs
    (path,) = (line.split() for line in outputs.splitlines() if line.startswith("ranking_model.film_embeddings "))
    assert path[-5:] == ["204", "of", "204", "ids", "(100.0%)"]
    (gain,) = (line.split() for line in outputs.splitlines() if line.startswith("cold ") and len(line.split()) == 4)
    extractor_only, no_id_dropout, placebo = map(float, gain[1:])
    assert extractor_only > max(no_id_dropout, placebo), outputs
