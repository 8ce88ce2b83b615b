"""Pages: mapped weights leave the process when they are handed back, and come back unchanged."""

import ctypes
import mmap
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.pages import Mapping, hand_back, idle_pages, mappings_of

MAPS = """7f00-7f10 r--p 00002000 fe:00 12 /cache/weights.bin
7f20-7f30 r--s 00000000 fe:00 12 /cache/weights.bin
7f40-7f50 rw-p 00000000 00:00 0
7f60-7f70 rw-p 00010000 fe:00 12    /cache/weights.bin
7f80-7f90 r-xp 00000000 fe:00 13    /cache/weights.bin (deleted)
7fa0-7fb0 r-xp 00000000 fe:00 14    /cache/other weights.bin
"""
PAGE = mmap.PAGESIZE


def test_private_mappings_of_one_file() -> None:
    assert mappings_of(Path("/cache/weights.bin"), MAPS) == [Mapping(0x7F00, 0x7F10, 0x2000), Mapping(0x7F60, 0x7F70, 0x10000)]
    assert mappings_of(Path("/cache/other weights.bin"), MAPS) == [Mapping(0x7FA0, 0x7FB0, 0)]
    assert mappings_of(Path("/cache/none.bin"), MAPS) == []


def resident_pages(address: int, pages: int) -> list[bool]:
    """Which pages are mapped in the process's page table: bit 63 of /proc/self/pagemap (admin-guide/mm/pagemap.rst)."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(address // PAGE * 8)
        entries = memoryview(file.read(pages * 8)).cast("Q")
    return [bool(entry >> 63) for entry in entries]


@pytest.mark.skipif(sys.platform != "linux", reason="page tables are read from /proc")
# Of this machine, of a Raspberry Pi 5, and the largest of 64-bit ARM.
@pytest.mark.parametrize("page", sorted({PAGE, *(size for size in (16384, 65536) if size >= PAGE)}))
def test_pages_of_what_is_handed_back_leave_and_return_unchanged(tmp_path: Path, page: int) -> None:
    file = tmp_path / "weights.bin"
    content = bytes(range(256)) * (16 * page // 256)
    file.write_bytes(content)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as data:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        assert data[:] == content
        pages = 16 * page // PAGE
        assert all(resident_pages(address, pages))
        # Pages 1 and 2; the first and the last are shared with what stays. Then page 8, and 12, of which nothing else is read.
        idle = [(page // 2, 3 * page), (8 * page, page), (12 * page + 1, page // 2)]
        assert hand_back(file, idle, [(0, page // 2), (3 * page + page // 2, page)], page_bytes=page) == 4 * page
        gone = [index * PAGE // page for index, there in enumerate(resident_pages(address, pages)) if not there]
        assert gone == [index for index in (1, 2, 8, 12) for _ in range(page // PAGE)]
        assert data[:] == content


EXTENTS = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 150)), max_size=8)


@given(EXTENTS, EXTENTS, st.sampled_from([1, 7, 16, 64]))
def test_a_page_is_idle_where_something_idle_and_nothing_kept_is_on_it(extents, kept, page: int) -> None:
    def on(page_at: int, some) -> bool:
        return any(offset < page_at + page and page_at < offset + length for offset, length in some if length)

    found = idle_pages(extents, kept, page)
    assert all(last[1] <= first[0] for last, first in pairwise(found))
    pages = [at for first, last in found for at in range(first, last, page)]
    assert pages == [at for at in range(0, 800, page) if on(at, extents) and not on(at, kept)]


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_the_end_of_one_tensor_does_not_keep_the_next(page: int) -> None:
    """Fifty tensors of 40,000 bytes, each at a multiple of 4096: with large pages almost every page has two of them on it."""
    step = 10 * 4096
    tensors = [(place * step, 40_000) for place in range(50)]
    last = -(-50 * step // page) * page
    assert idle_pages(tensors, [], page) == [(0, last)]
    gone = idle_pages(tensors[:10] + tensors[11:], tensors[10:11], page)
    assert last - sum(end - start for start, end in gone) <= 40_000 + 2 * page


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(4 * PAGE))
    assert hand_back(file, [(0, 4 * PAGE)]) == 0
    assert hand_back(tmp_path / "missing.bin", [(0, 4 * PAGE)]) == 0
