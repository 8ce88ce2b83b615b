"""Versions: where `restnet-update` keeps the bundles that a path has led to (`install.py`), and how a server keeps the one that it uses."""

import fcntl
import os
from pathlib import Path

PREVIOUS = "previous"
PENDING = ".previous"
"""What `PREVIOUS` is to become, from just before the exchange until just after it: `settle` tells which of the two a killed run left."""


def versions_of(dest: Path) -> Path:
    """Where the versions of DEST lie."""
    return dest.with_name(f"{dest.name}.versions")


def previous_of(dest: Path) -> Path | None:
    """The link to the bundle that DEST led to before, where there is one that it does not lead to now."""
    store = versions_of(dest.absolute())
    for link in (store / PENDING, store / PREVIOUS):
        if link.is_dir() and not (dest.exists() and link.resolve() == dest.resolve()):
            return link
    return None


def settle(dest: Path, store: Path) -> None:
    """End what a killed run had begun to remember: it counts where DEST was exchanged. Needs the lock on the store."""
    pending = store / PENDING
    if not pending.is_symlink():
        return
    if dest.exists() and pending.resolve() == dest.resolve():
        pending.unlink()
    else:
        pending.replace(store / PREVIOUS)


class Hold:
    """Keeps the bundle at `path` from being removed by `restnet-update` until it is closed, where its file system has locks."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # no locks there, or it is being removed
            self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Does some process have a `Hold` of it?"""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
