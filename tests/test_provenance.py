"""What made a result: the command without a machine's folders, and the commit of this code and no other."""

import re
import shutil
import subprocess
import sys

import pytest

from kser_tf.pipelines import provenance


def test_command_can_be_typed_elsewhere(monkeypatch):
    given = [
        "/somewhere/bin/kser-tf",
        "benchmark",
        "c.yaml",
        "--data",
        "/here/my data",
        "--work=/there",
        "--records",
        "/kept",
        "--set",
        "seeds=[1, 2]",
    ]
    monkeypatch.setattr(sys, "argv", given)
    expected = "kser-tf benchmark c.yaml --data FOLDER --work=FOLDER --records FOLDER --set 'seeds=[1, 2]'"
    assert provenance.command() == expected


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def test_no_commit_outside_the_repository(root):
    assert provenance.commit() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_and_changes_since(root):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "core.hooksPath=/dev/null"]
        return subprocess.run(
            ["git", *who, *words], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (root / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "--quiet", "-m", "one")
    git("tag", "v1")
    clean = provenance.commit()
    assert clean == git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (root / "code.py").write_text("2")
    provenance.commit.cache_clear()
    assert provenance.commit() == f"{clean}-dirty"
