"""Files looked at in place."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.mapping import mapped, same
from restnet_runtime.memory import footprint


def test_what_is_mapped_is_the_file(tmp_path: Path) -> None:
    path, data = tmp_path / "file", os.urandom(10_000)
    path.write_bytes(data)
    with mapped(path) as view:
        assert bytes(view) == data
        assert view[4096:8192] == data[4096:8192]
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1


def test_a_view_outlives_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"still here" * 1000)
    view = mapped(path)
    path.unlink()
    path.write_bytes(b"another")
    assert view[:10] == b"still here"


def test_nothing_is_read_before_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * 2**20))
    before = footprint().pss_bytes
    with mapped(path) as view:
        assert len(view) == 64 * 2**20
        assert footprint().pss_bytes - before < 8 * 2**20


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("missing", "empty"):
        with mapped(tmp_path / name) as data:
            assert bytes(data) == b""


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 4096 + 2**20, 4097 + 2**20, 3 * 2**20])
def test_equal_bytes_are_the_same_and_any_other_byte_is_not(size: int) -> None:
    data = os.urandom(size)
    assert same(memoryview(data), memoryview(bytes(data)))
    for at in {0, size // 2, 4096, size - 1} & set(range(size)):
        other = bytearray(data)
        other[at] ^= 1
        assert not same(memoryview(data), memoryview(other)), at


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_same_is_equality(one: bytes, other: bytes) -> None:
    assert same(memoryview(one), memoryview(other)) == (one == other)
