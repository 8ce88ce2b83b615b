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


def hand_back(
    file: Path,
    extents: Iterable[tuple[int, int]],
    kept: Iterable[tuple[int, int]] = (),
    proc: Path = Path("/proc/self"),
    page_bytes: int = mmap.PAGESIZE,
) -> int:
    """Drop the pages of these (offset, length) of `file` from this process, and from the page cache unless another process maps them.

    A page goes with anything of `extents` on it and nothing of `kept`, which is what is still read: tensors lie closer together than
    pages of 16 or 64 KB. What both have stays. Returns how many bytes of the file that were, in whole pages; 0 where the system cannot
    do it. Contents stay what they are: nothing ever writes to these mappings.
    """
    madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    try:
        mappings = mappings_of(file.resolve(), (proc / "maps").read_text())
    except OSError:
        return 0
    if madvise is None or not mappings:
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    whole = idle_pages(extents, kept, page_bytes)
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


def idle_pages(extents: Iterable[tuple[int, int]], kept: Iterable[tuple[int, int]], page_bytes: int) -> list[tuple[int, int]]:
    """[first, last) of a file, multiples of `page_bytes`, in order and apart: pages with some of `extents` and none of `kept` on them.

    extents, kept: (offset, length) each, in any order
    """
    free: list[tuple[int, int]] = []
    needed = _pages_of(kept, page_bytes)
    place = 0
    for first, last in _pages_of(extents, page_bytes):
        while place < len(needed) and needed[place][1] <= first:
            place += 1
        at = place
        while at < len(needed) and needed[at][0] < last:
            if first < needed[at][0]:
                free.append((first, needed[at][0]))
            first = needed[at][1]
            at += 1
        if first < last:
            free.append((first, last))
    return free


def _pages_of(extents: Iterable[tuple[int, int]], page_bytes: int) -> list[tuple[int, int]]:
    """All pages with something of these on them, in order; neighbours are one."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(extent for extent in extents if extent[1] > 0):
        first, last = offset // page_bytes * page_bytes, -(-(offset + length) // page_bytes) * page_bytes
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
