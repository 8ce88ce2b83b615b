"""Directories that take their place when they are whole, and what a killed run left of them.

    .NAME.1a2b3c4d        being written; locked (flock) by the run that writes
    .NAME.old-1a2b3c4d    the older directory, for the moment of the exchange; locked too

A lock ends with its process, however that ended: what is not locked is left over.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from restnet_runtime.links import sync


@contextmanager
def scratch_of(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, removed at the end unless `put_in_place` moved it."""
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    path.mkdir(parents=True)
    try:
        with _locked(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def put_in_place(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; what was there is removed, or back again where that fails or is interrupted."""
    if not target.exists():
        scratch.rename(target)
    else:
        with _locked(target):
            _exchange(scratch, target)
    sync(target.parent)


def clear_leftovers(target: Path) -> list[str]:
    """Remove what killed runs left beside `target`; a bundle that was being exchanged is put back. Returns a line for each."""
    told = []
    name = re.compile(rf"\.{re.escape(target.name)}\.(old-)?[0-9a-f]{{8}}")
    for path in sorted(target.parent.glob(f".{target.name}.*")) if target.parent.is_dir() else ():
        found = name.fullmatch(path.name)
        if found is None or not path.is_dir() or _in_use(path):
            continue
        if found[1] and not target.exists():
            path.rename(target)
            told.append(f"put {target} back, which a run that was killed had moved away")
        else:
            shutil.rmtree(path, ignore_errors=True)
            told.append(f"removed {path}, left by a run that was killed")
    return told


def _exchange(scratch: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    try:
        target.rename(old)
        scratch.rename(target)
    except BaseException:  # Ctrl-C between the two as well
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: leftovers stay there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _in_use(path: Path) -> bool:
    """Does a living run write there? Where locks do not work, say yes."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
