"""Files and directories that are either whole or not there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kser_tf.errors import FileError, PathExistsError, PathLockedError

_HASH_BLOCK_BYTES = 1 << 20

# No space left, the user's quota is used up, the file would be larger than the file system or the process's limit
# allows.
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

# From <fcntl.h> and <linux/fs.h>, for renameat2.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_of_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value in its canonical form (sorted keys, no white space)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) such that a reader sees the old or the new one, never a part.

    Raises:
        FileError: The disk is full, or the place may not be written to. The old file, if there was one, is still there.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file (UTF-8, indented, a final newline), whole or not at all. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: str | Path, values: np.ndarray) -> None:
    """Writes an array as a `.npy` file, and syncs it to the disk.

    Not by `np.save` alone: into a file it writes through a buffer of C, and loses the error when that is emptied onto a
    full disk.
    """
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    with open(path, "wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read_json(path: str | Path) -> Any:
    """Reads a JSON file (UTF-8)."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def new_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Builds a directory beside its final place and moves it there when the block ends without an error.

    Whoever opens `path` meanwhile finds what was there before. If the block fails, nothing is left; if the process is
    killed, a hidden folder is left beside `path`, which the next call for the same path removes. One process at a time
    can be at it. A symbolic link at `path` is followed.

    Args:
        path: The directory's final place.
        overwrite: bool. Whether a directory that is there already is replaced, whatever it holds. Defaults to `False`.

    Yields:
        The temporary directory to write into (same parent, so that the move is a rename).

    Raises:
        PathExistsError: `path` exists and `overwrite` is false, or it is a file. Raised before anything is written. (It
            is a `FileExistsError` too.)
        FileError: Another process is writing to `path`, the disk is full, or the place may not be written to.
    """
    path = Path(os.path.realpath(path))
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(path.with_name(f".{path.name}.new.lock"), resource=path):
        if path.exists() and not path.is_dir():
            raise PathExistsError(
                f"{path} is a file, and a folder is to be written there. Remove it, or choose another path."
            )
        if path.exists() and not overwrite:
            raise PathExistsError(f"{path} exists already. Remove it, choose another path, or pass overwrite=True.")
        with _explained(path):
            _remove_leftovers(path)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_temporary_prefix(path)))
        try:
            temporary.chmod(0o755)
            with _explained(path, only=_FULL_DISK):  # other errors in the block may be about its inputs
                yield temporary
            with _explained(path):
                _sync(temporary)
                _move(temporary, path)
                _sync_entry(path.parent)
        finally:  # after a replacement this is the old content
            shutil.rmtree(temporary, ignore_errors=True)


def move_up(folder: Path) -> None:
    """Moves all that is in a folder beside it, and removes the folder."""
    for entry in folder.iterdir():
        entry.rename(folder.parent / entry.name)
    folder.rmdir()


@contextlib.contextmanager
def exclusive_lock(path: str | Path, *, resource: str | Path | None = None) -> Iterator[None]:
    """Holds an advisory lock on the file `path` for the block; released even if the process dies.

    The file is made if need be, and removed at the end of the block.

    Args:
        path: The lock file.
        resource: What the lock guards, for the message. Defaults to the lock file itself.

    Raises:
        FileError: Another process, or another thread of this one, holds the lock, or the place may not be written to.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _explained(path):
            file = open(path, "a+")  # noqa: SIM115 (closed by the next `with`)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PathLockedError(
                    f"{resource or path} is locked: another process is writing there. Wait for it to end, or choose "
                    f"another output path. (The lock is held on {path}.)"
                ) from None
            if not _is_same_file(file.fileno(), path):  # its last holder has removed it between our open and our flock
                continue
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            return


@contextlib.contextmanager
def _explained(path: Path, *, only: tuple[int, ...] = (*_FULL_DISK, *_NOT_WRITABLE)) -> Iterator[None]:
    """Turns the operating system's refusals to write into a `FileError` that names the place and the mend."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileError) or error.errno not in only:
            raise
        if error.errno in _FULL_DISK:
            message = (
                f"{path}: the disk is full ({error.strerror}). What was written is removed again. "
                "Free some space there, or choose another output path."
            )
        else:
            message = (
                f"{path} cannot be written ({error.strerror}). "
                "Choose another output path, or change who may write there."
            )
        raise FileError(message) from error


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}.new."


def _remove_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` have left. The caller holds the lock, so there is no living one."""
    prefix = _temporary_prefix(path)
    with os.scandir(path.parent) as entries:  # not a glob: the name may hold glob characters
        leftovers = [
            entry.path for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def _move(temporary: Path, path: Path) -> None:
    """Moves `temporary` to `path`; what was there before is in `temporary` afterwards."""
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        # No way to swap two names at once here: for a moment there is nothing at `path`.
        old = temporary.with_name(temporary.name + ".old")
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        old.rename(temporary)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step. Returns false where the C library, kernel or file system cannot do it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _sync(folder: Path) -> None:
    """Waits until all of a folder is on the disk."""
    for entry in (folder, *folder.rglob("*")):
        _sync_entry(entry)


def _sync_entry(path: Path) -> None:
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
