"""Counting how often a marked table lies in this process's memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

# The first number of each row of the table, and of nothing else: a given number of 32 bits is in a gigabyte of others by
# chance 0.06 times.
MARK = np.float32(-0.71392465)
_AT_ONCE = 1 << 24


def held_rows() -> int:
    """Returns how many rows that begin with `MARK` are in memory; what is read from a mapped file is not.

    It looks at what the memory holds, not at how much there is: what allocators, threads and the rest of the process take
    is not counted. Freed memory is, unless the environment variable `MALLOC_PERTURB_` has the C library overwrite it.
    """
    lines = Path("/proc/self/maps").read_text().splitlines()  # before there is a buffer, which must not be searched
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        with mmap.mmap(-1, _AT_ONCE) as buffer:
            return sum(_marks(memory, buffer, start, stop) for start, stop in _searched(lines))
    finally:
        os.close(memory)


def _searched(lines: list[str]) -> list[tuple[int, int]]:
    """Where each part of the memory begins and ends, but for files that are only read (libraries are too) and the kernel's."""
    found = []
    for line in lines:
        bounds, rights, _, _, inode, *path = line.split(maxsplit=5)
        is_a_file_to_read = inode != "0" and "w" not in rights
        is_the_kernels = path and path[0].startswith(("[v", "[sys"))
        if "r" in rights and not is_a_file_to_read and not is_the_kernels:
            start, stop = (int(bound, 16) for bound in bounds.split("-"))
            found.append((start, stop))
    return found


def _marks(memory: int, buffer: mmap.mmap, start: int, stop: int) -> int:
    count = 0
    for at in range(start, stop, _AT_ONCE):
        with memoryview(buffer)[: min(_AT_ONCE, stop - at)] as part:
            read = os.preadv(memory, [part], at)
            count += int(np.count_nonzero(np.frombuffer(part, np.uint32, read // 4) == MARK.view(np.uint32)))
    return count
