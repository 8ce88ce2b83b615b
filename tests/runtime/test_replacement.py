"""A file is replaced whole or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from restnet_runtime.replacement import write_atomically


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for data in (b"first", b"second and longer", b""):
        write_atomically(target, data)
        assert target.read_bytes() == data
        assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("sync", [True, False])
def test_it_is_on_disk_before_it_counts_where_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    target, really, synced = tmp_path / "file", os.fsync, []
    target.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        synced.append((target.read_bytes(), os.fstat(descriptor).st_size))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(target, b"new content", sync=sync)
    assert synced == ([(b"old", 11)] if sync else [])
    assert target.read_bytes() == b"new content"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    """Readers beside them never see a mixture, nor nothing."""
    target, contents = tmp_path / "file", [bytes([letter]) * size for letter, size in ((97, 100_000), (98, 50_000))]
    write_atomically(target, contents[0], sync=False)
    done, seen = threading.Event(), set[bytes]()

    def write(data: bytes) -> None:
        for _ in range(200):
            write_atomically(target, data, sync=False)

    def read() -> None:
        while not done.is_set():
            seen.add(target.read_bytes())

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in (reader, *writers):
        thread.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen <= set(contents)
    assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]
