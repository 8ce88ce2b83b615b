"""Files of a bundle, read so that nothing outside it is reached, no pipe is waited for, and no claimed size is believed."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from restnet_runtime.errors import BundleError
from restnet_runtime.manifest import FileEntry


def check_file(root: Path, name: str, entry: FileEntry, digest: bool = True) -> None:
    """Raise `BundleError` unless `root/name` is a regular file inside `root` of that size and, if `digest`, of that digest."""
    with _opened(root, name) as file:
        _check_size(name, entry, file)
        if digest:
            _check_digest(name, entry, _digest(file))


def read_checked(root: Path, name: str, entry: FileEntry) -> bytes:
    """The content of a small file, checked as it is read: what is used is what was checked. Raises `BundleError`."""
    with _opened(root, name) as file:
        _check_size(name, entry, file)
        data = file.read(entry.bytes)
    _check_digest(name, entry, hashlib.sha256(data).hexdigest())
    return data


def read_file(root: Path, name: str, at_most: int) -> bytes:
    """The content of a regular file inside `root`. Raises `BundleError`, also when it has more than `at_most` bytes."""
    with _opened(root, name) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise BundleError(name, f"has more than {at_most} bytes, the most that is read")
    return data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return _digest(file)


@contextmanager
def _opened(root: Path, name: str) -> Iterator[BinaryIO]:
    path = root / name
    try:
        if path.is_symlink() or (path.parent != root and path.parent.is_symlink()):
            raise BundleError(name, "is a link or lies behind one: links are refused")
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleError(name, "is not a regular file")
            yield file
    except OSError as error:
        raise BundleError(name, f"cannot be read: {error.strerror or error}") from error


def _digest(file: BinaryIO) -> str:
    # Read once and not again from here: pages that are in use should not make room for these.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_NOREUSE)
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def _check_size(name: str, entry: FileEntry, file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        raise BundleError(name, f"has {size} bytes, the manifest says {entry.bytes}")


def _check_digest(name: str, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise BundleError(name, f"has SHA-256 {found}, the manifest says {entry.sha256}")
