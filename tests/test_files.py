"""Files and directories are whole or not there: after errors, kills, full disks, and with several processes at work."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from kser_tf import files
from kser_tf.errors import FileError, KserError, PathExistsError
from kser_tf.files import (
    exclusive_lock,
    new_directory,
    read_json,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)

# Starts new_directory at argv[1], writes a part, says so, and waits for a line on stdin before it ends the block.
SLOW_WRITER = """
import sys
from kser_tf.files import new_directory
with new_directory(sys.argv[1], overwrite=True) as folder:
    (folder / "part.txt").write_text("from the other process")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def start_slow_writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def no_space(*_arguments: object, **_keywords: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(path: Path, last_act: Callable[[], None]) -> None:
    with new_directory(path) as folder:
        (folder / "a.txt").write_text("a")
        last_act()


def stop() -> None:
    raise RuntimeError("stop")


def test_sha256_of_file_is_that_of_its_bytes_across_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_of_json({"a": 1, "b": [True, "é"]}) == hashlib.sha256('{"a":1,"b":[true,"é"]}'.encode()).hexdigest()
    assert sha256_of_json({"b": [True, "é"], "a": 1}) == sha256_of_json({"a": 1, "b": [True, "é"]})


def test_write_json_is_read_back_and_leaves_no_other_file(tmp_path: Path) -> None:
    value = {"title": "Ночной дозор 夜", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == value
    assert names_in(tmp_path / "new") == ["a.json"]


def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"auc": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auc": float("nan")})
    assert read_json(tmp_path / "a.json") == {"auc": 0.5}
    assert names_in(tmp_path) == ["a.json"]


def test_write_text_on_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(FileError, match=r"a\.txt: the disk is full \(No space left on device\).*Free some space"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_new_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "result"
    with new_directory(path) as folder:
        (folder / "a.txt").write_text("a")
        assert not path.exists()
    assert names_in(path) == ["a.txt"]
    assert names_in(path.parent) == ["result"]


def test_new_directory_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        fill(tmp_path / "result", stop)
    assert names_in(tmp_path) == []


def test_new_directory_refuses_what_exists(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    with (
        pytest.raises(PathExistsError, match=r"result exists already.*overwrite=True"),
        new_directory(tmp_path / "result"),
    ):
        pytest.fail("the block must not be entered")
    assert issubclass(PathExistsError, FileExistsError)
    assert issubclass(PathExistsError, KserError)
    assert names_in(tmp_path) == ["result"]


def test_new_directory_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("precious")
    with pytest.raises(PathExistsError, match="result is a file"), new_directory(tmp_path / "result", overwrite=True):
        pytest.fail("the block must not be entered")
    assert (tmp_path / "result").read_text() == "precious"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_new_directory_replaces_the_whole_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    path = tmp_path / "result"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with new_directory(path, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
        assert names_in(path) == ["old.txt"]
    assert names_in(path) == ["new.txt"]
    assert names_in(tmp_path) == ["result"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_new_directory_keeps_the_old_one_when_the_block_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    path = tmp_path / "result"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), new_directory(path, overwrite=True):
        stop()
    assert (path / "old.txt").read_text() == "old"
    assert names_in(tmp_path) == ["result"]


def test_new_directory_puts_the_old_one_back_when_the_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == path and ".old" not in self.name:
            no_space()
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(FileError, match="the disk is full"), new_directory(path, overwrite=True):
        pass
    assert (path / "old.txt").read_text() == "old"
    assert names_in(tmp_path) == ["result"]


def test_there_is_always_a_directory_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "result"
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((path / "which.txt").read_text() if path.exists() else "nothing")

    with new_directory(path) as folder:
        (folder / "which.txt").write_text("first")
    if not files._exchange(tmp_path, tmp_path):
        pytest.skip("this file system cannot swap two names")
    reader = threading.Thread(target=read)
    reader.start()
    for index in range(20):
        with new_directory(path, overwrite=True) as folder:
            (folder / "which.txt").write_text(f"number {index}")
    done.set()
    reader.join()
    assert "nothing" not in seen


def test_new_directory_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "result").symlink_to(tmp_path / "large_disk")
    with new_directory(tmp_path / "result", overwrite=True) as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "result").is_symlink()
    assert names_in(tmp_path / "large_disk") == ["a.txt"]


@pytest.mark.parametrize("where", ["in the block", "at the end"])
def test_new_directory_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "at the end":
        monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(FileError, match=r"result: the disk is full"):
        fill(tmp_path / "result", no_space if where == "in the block" else lambda: None)
    assert names_in(tmp_path) == []


def test_new_directory_passes_other_errors_of_the_block_on(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="input"), new_directory(tmp_path / "result"):
        raise PermissionError(errno.EACCES, "input")
    assert names_in(tmp_path) == []


def test_new_directory_names_a_place_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "mkdtemp", read_only)
    with (
        pytest.raises(FileError, match=r"result cannot be written \(Read-only file system\).*another output path"),
        new_directory(tmp_path / "result"),
    ):
        pytest.fail("the block must not be entered")


def test_two_processes_cannot_write_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "result"
    process = start_slow_writer(path)
    try:
        with (
            pytest.raises(FileError, match=r"result is locked: another process is writing there\. Wait"),
            new_directory(path),
        ):
            pytest.fail("the block must not be entered")
    finally:
        process.communicate("go on\n", timeout=60)
    assert (path / "part.txt").read_text() == "from the other process"
    assert names_in(tmp_path) == ["result"]


def test_a_killed_writer_leaves_no_directory_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "result"
    (tmp_path / ".result.newer").mkdir()  # somebody else's
    process = start_slow_writer(path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not path.exists()
    assert any(entry.is_dir() for entry in tmp_path.glob(".result.new.*")), "the test should see a leftover"
    with new_directory(path) as folder:
        (folder / "a.txt").write_text("a")
    assert names_in(tmp_path) == [".result.newer", "result"]


def test_exclusive_lock_is_free_again_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive_lock(lock), pytest.raises(FileError, match="lock is locked"), exclusive_lock(lock):
        pytest.fail("the lock was given twice")
    with pytest.raises(RuntimeError, match="stop"), exclusive_lock(lock):
        stop()
    with exclusive_lock(lock):
        assert lock.exists()
    assert names_in(tmp_path) == []


def test_exclusive_lock_is_not_taken_on_a_removed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder removes the file between our open and our flock; who came next would lock a new one."""
    lock = tmp_path / "lock"
    flock = fcntl.flock
    calls = 0

    def removed_before_the_first(file: IO[str], operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            lock.unlink()
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", removed_before_the_first)
    with exclusive_lock(lock), pytest.raises(FileError, match="lock is locked"), exclusive_lock(lock):
        pytest.fail("the lock was given twice")
