"""The checksum: of bytes and of files alike, and what it has to find."""

import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.checksum import checksum, file_checksum

PAGE, PIECE = 4096, 2**20
DATA = np.random.default_rng(3).integers(0, 256, PIECE + 3 * PAGE + 100, np.uint8)


def test_it_depends_on_nothing_but_the_bytes() -> None:
    shifted = np.concatenate([np.zeros(13, np.uint8), DATA])[13:]
    assert checksum(memoryview(shifted)) == checksum(memoryview(DATA)) == checksum(memoryview(DATA.tobytes()))
    assert len(checksum(memoryview(b""))) == 32


def test_a_part_of_a_file_has_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA.tobytes())
    with path.open("rb") as file:
        for offset, length in ((0, len(DATA)), (0, 0), (7, 1), (PAGE, PIECE), (100, PIECE + PAGE)):
            assert file_checksum(file.fileno(), offset, length) == checksum(memoryview(DATA[offset : offset + length])), (offset, length)
        whole = file_checksum(file.fileno(), 0, len(DATA))
        os.truncate(path, len(DATA) - 1)
        assert file_checksum(file.fileno(), 0, len(DATA)) != whole
        assert file_checksum(file.fileno(), len(DATA) + PAGE, PAGE) != checksum(memoryview(bytes(PAGE)))


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_change_is_found(at: int, bits: int) -> None:
    damaged = DATA.copy()
    damaged[at] ^= bits
    assert checksum(memoryview(damaged)) != checksum(memoryview(DATA))


def test_zeros_are_not_nothing() -> None:
    """A lost end that reads as zeros, and more or fewer of them."""
    seen = {checksum(memoryview(bytes(length))) for length in (0, 1, PAGE, 2 * PAGE, PIECE, PIECE + PAGE)}
    assert len(seen) == 6
