"""Mapping: files whose bytes are looked at in place."""

import mmap
from pathlib import Path

import numpy as np


def mapped(path: Path) -> memoryview:
    """A file's bytes, mapped read-only until the last view of them is gone; empty for a file that does not exist or has none."""
    if not path.exists() or not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def same(one: memoryview, other: memoryview) -> bool:
    """Are the bytes equal? Stops at the first piece that is not."""
    start, size = 0, 4096
    while len(one) == len(other) and start < len(one):
        if not np.array_equal(np.frombuffer(one[start : start + size], np.uint8), np.frombuffer(other[start : start + size], np.uint8)):
            return False
        start, size = start + size, 2**20
    return len(one) == len(other)
