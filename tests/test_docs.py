"""What the pages of docs/ show runs as it stands: the Python blocks of a page, one after the other, in an empty folder.

What a page takes for given may stand in a comment of it, `<!-- python ... -->`.
"""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.tfrs

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^(?:```|<!-- )python\n(.*?)^(?:```|-->)$", re.DOTALL | re.MULTILINE)


def test_there_are_pages():
    assert PAGES


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "serving"], ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):  # those of serving.md, with its commands: test_docs_serving.py
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names = {"__name__": page.stem}
    for block in _BLOCK.finditer(text):
        # As many empty lines before it as there are in the page, so that a traceback names the line of the page.
        code = "\n" * text.count("\n", 0, block.start(1)) + block.group(1)
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
