"""The checksum: what it promises to find, it finds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.checksum import checksum

PAGE, CHUNK = 4096, 2**20
DATA = np.random.default_rng(3).integers(0, 256, CHUNK + 3 * PAGE + 100, np.uint8)
WORDS = len(DATA) // 8


def test_it_depends_on_nothing_but_the_bytes() -> None:
    shifted = np.concatenate([np.zeros(13, np.uint8), DATA])[13:]
    assert checksum(memoryview(shifted)) == checksum(memoryview(DATA)) == checksum(memoryview(DATA.tobytes()))
    assert len(checksum(memoryview(b""))) == 32


@given(st.dictionaries(st.integers(0, WORDS - 1), st.integers(1, 2**64 - 1), min_size=1, max_size=3))
def test_a_change_of_up_to_three_words_is_found(changes: dict[int, int]) -> None:
    damaged = DATA.copy()
    words = damaged[: WORDS * 8].view(np.uint64)
    for at, bits in changes.items():
        words[at] ^= np.uint64(bits)
    assert checksum(memoryview(damaged)) != checksum(memoryview(DATA))


@given(st.integers(0, len(DATA)))
def test_a_missing_end_is_found(length: int) -> None:
    assert (checksum(memoryview(DATA[:length])) == checksum(memoryview(DATA))) == (length == len(DATA))


def test_zeros_are_not_nothing() -> None:
    """A lost end that reads as zeros, and more or fewer of them."""
    seen = {checksum(memoryview(bytes(length))) for length in (0, 1, PAGE, 2 * PAGE, CHUNK, CHUNK + PAGE)}
    assert len(seen) == 6


@given(st.integers(0, 258), st.integers(0, 258))
def test_pages_that_changed_places_or_were_lost_are_found(one: int, other: int) -> None:
    pages = DATA[: 259 * PAGE].reshape(259, PAGE)
    swapped = pages.copy()
    swapped[[one, other]] = swapped[[other, one]]
    lost = pages.copy()
    lost[one] = 0
    whole = checksum(memoryview(pages.reshape(-1)))
    assert (checksum(memoryview(swapped.reshape(-1))) == whole) == (one == other)
    assert checksum(memoryview(lost.reshape(-1))) != whole
