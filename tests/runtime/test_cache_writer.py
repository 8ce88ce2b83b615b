"""The writer of a cache: where tensors come to lie, that each is there once, and that nothing counts before the commit."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restnet_runtime import cache_writer
from restnet_runtime.cache import Cache
from restnet_runtime.cache_writer import CacheWriter
from restnet_runtime.catalog import LINKED, Catalog, CompiledRoute, DamagedCacheError
from restnet_runtime.checksum import checksum
from restnet_runtime.errors import RoomError
from restnet_runtime.mapping import mapped

KEY = {"test": "writer"}


def view(data: bytes) -> memoryview:
    return memoryview(data)


def content(route: CompiledRoute) -> list[bytes]:
    """What a session would find at each extent of a route."""
    found = []
    for file, extents in route.located([extent[:2] for extent in route.extents]).items():
        with mapped(file) as data:
            found += [bytes(data[offset : offset + length]) for offset, length in extents]
    return found


def test_nothing_counts_before_the_commit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, {"test": "commit"})
    with cache.locked() as held, held.scratch() as scratch, held.writer() as writer:
        writer.place(view(b"lost"))
        assert scratch.is_dir()
    assert not scratch.exists()
    assert cache.get("route") is None
    with cache.locked() as held, held.writer() as writer:
        offsets = [writer.place(view(data)) for data in (b"a" * 5000, b"small", b"b" * 5000, b"a" * 5000)]
        made = writer.commit("route", b"graph", [0])
    assert offsets == [0, 5056, 8192, 0]
    assert cache.get("route") == made
    assert made.graph.read_bytes() == b"graph"
    assert [extent[:2] for extent in made.extents] == [(0, 5000), (5056, 5), (8192, 5000)]
    assert made.touched == {(0, 5000)}
    assert content(made) == [b"a" * 5000, b"small", b"b" * 5000]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([1, 63, 64, 65, 4095, 4096, 4097, 20_000]), st.integers(0, 3)), min_size=1, max_size=12))
def test_every_tensor_is_there_once_aligned_and_as_it_was(tmp_path_factory: pytest.TempPathFactory, wanted) -> None:
    tensors = [bytes([letter]) * size for size, letter in wanted]
    cache = Cache(tmp_path_factory.mktemp("cache"), KEY)
    with cache.locked() as held, held.writer() as writer:
        addresses = [writer.place(view(data)) for data in tensors]
        made = writer.commit("route", b"graph", addresses)
    assert len(set(addresses)) == len(set(tensors))
    for address, data in zip(addresses, tensors, strict=True):
        assert address % (4096 if len(data) >= 4096 else 64) == 0
        with mapped(made.weights) as file:
            assert file[address : address + len(data)] == data
    spans = sorted({(address, address + len(data)) for address, data in zip(addresses, tensors, strict=True)})
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "they overlap"
    assert cache.look_up("route") == made


def test_a_later_route_shares_what_is_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path, KEY)
    made = {}
    for name, letters in {"first": b"ab", "second": b"bc"}.items():
        with cache.locked() as held, held.writer() as writer:
            made[name] = writer.commit(name, name.encode(), [writer.place(view(bytes([letter]) * 5000)) for letter in letters])
    assert made["first"].weights.stat().st_size == 2 * 8192 + 5000
    assert content(made["second"]) == [b"b" * 5000, b"c" * 5000]
    assert len(made["first"].touched & made["second"].touched) == 1
    assert content(made["first"]) == [b"a" * 5000, b"b" * 5000]


def test_a_tensor_that_went_bad_is_written_anew(tmp_path: Path) -> None:
    """Its catalog entry still says what it was: content is compared, not only checksums."""
    cache = Cache(tmp_path, KEY)
    with cache.locked() as held, held.writer() as writer:
        first = writer.place(view(b"a" * 9000))
        made = writer.commit("first", b"graph", [first])
    with made.weights.open("r+b") as file:
        file.seek(first + 8000)
        file.write(b"!")
    with cache.locked() as held, held.writer() as writer:
        second = writer.place(view(b"a" * 9000))
        assert second != first
        assert content(writer.commit("second", b"graph", [second])) == [b"a" * 9000]


def test_what_went_bad_is_not_used_by_its_address(tmp_path: Path) -> None:
    first = Cache(tmp_path, KEY)
    with first.locked() as held, held.writer() as writer:
        made = writer.commit("first", b"graph", [writer.place(view(b"a" * 9000))])
    os.truncate(made.weights, 8999)
    with made.weights.open("ab") as file:
        file.write(b"!")
    with Cache(tmp_path, KEY).locked() as held, held.writer() as writer, pytest.raises(DamagedCacheError, match="has changed at 0"):
        writer.use(0)


class Crash(BaseException):
    """As when the process is killed: nothing is tidied up that an `except` would tidy up."""


@pytest.mark.parametrize("step", ["placed", "graph", "catalog"])
def test_a_crash_at_any_step_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    cache = Cache(tmp_path, KEY)
    with cache.locked() as held, held.writer() as writer:
        old = writer.commit("old", b"old graph", [writer.place(view(b"a" * 5000))])
    really = cache_writer.write_atomically

    def crash(path: Path, data: bytes, sync: bool = True) -> None:
        if (path.name == "cache.json") == (step == "catalog"):
            raise Crash
        really(path, data, sync)

    monkeypatch.setattr(cache_writer, "write_atomically", crash)
    monkeypatch.setattr(CacheWriter, "close", lambda self: os.close(self._descriptor))

    def add() -> None:
        with cache.locked() as held, held.writer() as writer:
            writer.place(view(b"b" * 5000))
            if step == "placed":
                raise Crash
            writer.commit("new", b"new graph", [])

    with pytest.raises(Crash):
        add()
    monkeypatch.undo()
    later = Cache(tmp_path, KEY)  # another process
    assert later.look_up("old") == old
    assert later.look_up("new") is None
    assert len(list(cache.path.glob("route-*"))) == (2 if step == "catalog" else 1)
    with later.locked() as held, held.writer() as writer:
        assert len(list(cache.path.glob("route-*"))) == 1, "what was left is removed"
        new = writer.commit("new", b"new graph", [writer.place(view(b"c" * 5000))])
    assert content(new) == [b"c" * 5000]
    assert content(old) == [b"a" * 5000]
    assert later.look_up("old") == old


def test_what_is_not_committed_is_given_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path, KEY)
    with cache.locked() as held, held.writer() as writer:
        made = writer.commit("old", b"graph", [writer.place(view(b"a" * 5000))])
    with cache.locked() as held, held.writer() as writer:
        lost = writer.place(view(b"b" * 9000))
    assert made.weights.stat().st_size == 5000
    with cache.locked() as held, held.writer() as writer:
        assert writer.place(view(b"c" * 9000)) == lost, "its place is free again"
        assert content(writer.commit("new", b"graph", [lost])) == [b"c" * 9000]


def write_many(root: Path, number: int) -> None:
    cache = Cache(root, KEY)
    for turn in range(15):
        with cache.locked() as held, held.writer() as writer:
            own, shared = bytes([number, turn]) * 3000, bytes([99, turn]) * 3000
            addresses = [writer.place(view(data)) for data in (own, shared)]
            writer.commit(f"{number}.{turn}", own[:10], addresses)


def test_two_processes_that_write_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, number)) for number in range(2)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert [one.exitcode for one in writers] == [0, 0]
    cache = Cache(tmp_path, KEY)
    for number in range(2):
        for turn in range(15):
            route = cache.look_up(f"{number}.{turn}")
            assert route is not None
            assert set(content(route)) == {bytes([number, turn]) * 3000, bytes([99, turn]) * 3000}
    assert len({extent for name in cache.names() for extent in cache.look_up(name).extents}) == 3 * 15  # type: ignore[union-attr]


def test_tensors_of_the_bundle_are_linked_to(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"x" * 4096 + b"y" * 5000)
    cache = Cache(tmp_path / "cache", KEY)
    with cache.locked() as held, held.writer(weights) as writer:
        address = writer.refer(4096, view(b"y" * 5000))
        assert address == LINKED + 4096
        file, offset = writer.location(address)
        assert (cache.path / file).samefile(weights)
        assert offset == 4096
        made = writer.commit("route", b"graph", [address])
    assert made.weights.stat().st_size == 0
    assert content(made) == [b"y" * 5000]
    assert cache.look_up("route") == made


def test_where_no_link_can_be_made_the_tensor_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"y" * 5000)
    cache = Cache(tmp_path / "cache", KEY)
    with cache.locked() as held, held.writer(weights) as writer:
        assert writer.refer(0, view(b"y" * 5000)) == 0
        made = writer.commit("route", b"graph", [0])
    weights.unlink()
    assert content(made) == [b"y" * 5000]


def limited(room: int) -> Callable[[int], int]:
    return lambda _: room


def test_no_byte_is_written_for_which_there_is_no_room(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, KEY, Catalog(weights="weights-0.bin"), set(), limited(6000))
    writer.place(view(b"a" * 5000))
    with pytest.raises(RoomError, match=r"have room for .* more, .* are needed"):
        writer.place(view(b"b" * 7000))
    assert (tmp_path / "weights-0.bin").stat().st_size == 5000
    writer.close()


def test_packed_blocks_become_part_of_the_route_that_asks_for_them(tmp_path: Path) -> None:
    cache, data = Cache(tmp_path, KEY), b"p" * 5000
    with cache.locked() as held, held.writer() as writer:
        assert writer.packed("MatMul:0") is None
        address = writer.place(view(data))
        writer.pack("MatMul:0", [("key", ((address, len(data), "1"),))])
        writer.pack("Conv:0", ())
        writer.commit("first", b"graph", [])
    with cache.locked() as held, held.writer() as writer:
        assert writer.packed("Conv:0") == ()  # tried, and nothing is packed
        assert writer.packed("MatMul:0") == (("key", ((address, len(data), "1"),)),)
        second = writer.commit("second", b"graph", [address])
    assert second.extents == ((address, len(data), checksum(view(data))),)
