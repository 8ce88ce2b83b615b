"""Pages: mapped weights leave the process when they are handed back, and come back unchanged."""

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from restnet_runtime.pages import Mapping, hand_back, mappings_of

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
def test_whole_pages_of_what_is_handed_back_leave_and_return_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    content = bytes(range(256)) * (16 * PAGE // 256)
    file.write_bytes(content)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as data:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        assert data[:] == content
        assert all(resident_pages(address, 16))
        # Pages 1 and 2; the first and the last are shared with what stays. Then page 8.
        assert hand_back(file, [(PAGE // 2, 3 * PAGE), (8 * PAGE, PAGE), (12 * PAGE + 1, PAGE)]) == 3 * PAGE
        assert [index for index, there in enumerate(resident_pages(address, 16)) if not there] == [1, 2, 8]
        assert data[:] == content


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(4 * PAGE))
    assert hand_back(file, [(0, 4 * PAGE)]) == 0
    assert hand_back(tmp_path / "missing.bin", [(0, 4 * PAGE)]) == 0
