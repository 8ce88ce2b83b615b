"""Links that are replaced at once. Names in a directory survive a loss of power only once it is synced."""

import ctypes
import os
import secrets
from pathlib import Path

from restnet_runtime.errors import UpdateError

_EXCHANGE = 2
_HERE = -100


def sync(path: Path) -> None:
    """What a file holds, or which names a directory has, is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch_link(link: Path, target: str) -> Path:
    """A new link to `target` beside `link`, which `put_link` takes there."""
    scratch = link.with_name(f".{link.name}.link-{secrets.token_hex(4)}")
    scratch.symlink_to(target, target_is_directory=True)
    return scratch


def put_link(scratch: Path, link: Path) -> Path | None:
    """Let the link at `scratch` take the place of `link`: at any moment there is the one or the other.

    Returns where a directory lies now that was in its place, `None` where it was a link or nothing. Raises `UpdateError` where the
    file system cannot exchange the two, and `OSError`.
    """
    if link.is_dir() and not link.is_symlink():
        _exchange(scratch, link)
        sync(link.parent)
        return scratch
    scratch.replace(link)
    sync(link.parent)
    return None


def _exchange(one: Path, other: Path) -> None:
    """Two names change places in one step, which only Linux can, and not on every file system."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:  # a C library before 2018
        raise UpdateError(_cannot(other)) from error
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise UpdateError(f"{_cannot(other)} ({os.strerror(number)})")


def _cannot(path: Path) -> str:
    return f"{path}: is a directory, and this system cannot put a link in its place at once: move it away, then install"
