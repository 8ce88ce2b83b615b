"""Pages of mapped files: hand back to the kernel what no current route reads.

Weights are mapped, clean and backed by their file, so the kernel can always take them; under pressure it is told which ones to take
first. They come back by themselves, from the page cache or the disk, when a session reads them again.
"""

import ctypes
import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+ +(/.*)$", re.MULTILINE)
_MADV_DONTNEED = 4


@dataclass(frozen=True)
class Mapping:
    """One mapping of a file into this process: addresses [start, end) show the file from `offset` on."""

    start: int
    end: int
    offset: int


def mappings_of(file: Path, maps: str) -> list[Mapping]:
    """The private mappings of `file` in the text of `/proc/PID/maps`."""
    found = (match.groups() for match in _LINE.finditer(maps))
    return [
        Mapping(int(start, 16), int(end, 16), int(offset, 16))
        for start, end, flags, offset, path in found
        if path == str(file) and flags.endswith("p")
    ]


def hand_back(file: Path, extents: Iterable[tuple[int, int]], proc: Path = Path("/proc/self")) -> int:
    """Drop the whole pages of these (offset, length) of `file`, which do not overlap, from this process, and from the page cache
    unless another process maps them.

    Returns how many bytes of the file that were; 0 where the system cannot do it. Contents stay what they are: nothing ever writes
    to these mappings.
    """
    madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    try:
        mappings = mappings_of(file.resolve(), (proc / "maps").read_text())
    except OSError:
        return 0
    if madvise is None or not mappings:
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    whole = sorted((-(-offset // page) * page, (offset + length) // page * page) for offset, length in extents)
    whole = [(first, last) for first, last in whole if first < last]
    ends = [last for _, last in whole]
    for mapping in mappings:
        till = mapping.offset + mapping.end - mapping.start
        for first, last in whole[bisect_right(ends, mapping.offset) :]:
            if first >= till:
                break
            low, high = max(first, mapping.offset), min(last, till)
            madvise(mapping.start + low - mapping.offset, high - low, _MADV_DONTNEED)
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            for first, last in whole:
                os.posix_fadvise(opened.fileno(), first, last - first, os.POSIX_FADV_DONTNEED)
    return sum(last - first for first, last in whole)
