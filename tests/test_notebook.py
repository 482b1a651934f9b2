"""The notebook runs as it stands, in a fresh kernel, and shows what it says."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = [pytest.mark.tfrs, pytest.mark.slow]

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "attach_layers.ipynb"


def test_attach_layers(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in git"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = "\n".join(
        output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "the same predictions, bit for bit" in outputs
    assert "runs" in outputs
    (table,) = (line.split() for line in outputs.splitlines() if line.startswith("cold "))
    base, with_knowledge = map(float, table[1:])
    assert with_knowledge > base + 0.01, f"cold films: {base} without knowledge, {with_knowledge} with it"
