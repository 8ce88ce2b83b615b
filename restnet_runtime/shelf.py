"""The shelf: caches of several keys side by side under one root, and the room that they may take together.

    ROOT/KEY/in-use    locked (flock, shared) by every process that has the cache open; its time is that of the last opening

A cache that nobody has open is taken off the shelf, the longest unused first, when there is no room. Only files that this
package writes are removed, and engines that a provider has built there.
"""

import errno
import fcntl
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

DEFAULT_CAP_BYTES = 2 * 10**9
IN_USE = "in-use"
OURS = ("cache.json", "lock", "profiles.json", IN_USE, "weights-*.bin", "bundle-*.bin", "route-*.onnx", ".*.json.*", ".route-*")
SCRATCH = "tmp-*"
ENGINES = "tensorrt"
"""What an execution provider has built, in a directory of its own (`providers.py`); it takes minutes and knows what it is valid for."""
_TRIES = 1000
_KEY = re.compile(r"[0-9a-f]{32}")


class Shelf:
    """Caches under `root`.

    asked_bytes: what they may take together, by default 2 GB, or half of what the disk has for them where that is less
    """

    def __init__(self, root: Path, asked_bytes: int | None = None) -> None:
        self.root = root
        self.asked_bytes = asked_bytes

    @property
    def cap_bytes(self) -> int:
        if self.asked_bytes is not None:
            return self.asked_bytes
        return min(DEFAULT_CAP_BYTES, (shutil.disk_usage(self.root).free + self.used_bytes()) // 2)

    def used_bytes(self) -> int:
        """What the caches take; a link to a bundle's weights takes nothing while the bundle is there."""
        return sum(self._size(path) for path in self._caches())

    def claim(self, key: str) -> int:
        """Make `root/KEY` if need be and keep it from being pruned until the returned file descriptor is closed. Raises `OSError`."""
        path = self.root / key
        for tries_left in reversed(range(_TRIES)):
            try:
                path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):  # pruned since, or between two looks of `mkdir`
                if not tries_left:
                    raise
                continue
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EROFS):
                    raise
                # A cache that we may only read: nobody prunes it who could not write it either.
                return os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if _is(path / IN_USE, descriptor):
                    os.utime(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "it is removed again and again", str(path))

    def make_room(self, need_bytes: int = 0) -> int:
        """Prune until `need_bytes` more would fit, if that can be had; return the room that there is then, which may be negative."""
        cap, sizes = self.cap_bytes, {path: self._size(path) for path in self._caches()}
        for path in sorted(sizes, key=_last_use):
            if cap - sum(sizes.values()) >= need_bytes:
                break
            if _prune(path):
                del sizes[path]
        return cap - sum(sizes.values())

    def _caches(self) -> list[Path]:
        try:
            return [path for path in self.root.iterdir() if _KEY.fullmatch(path.name) and (path / IN_USE).is_file()]
        except OSError:
            return []

    def _size(self, path: Path) -> int:
        total = 0
        engines = (Path(folder, name) for folder, _, names in os.walk(path / ENGINES) for name in names)
        for entry in [*_entries(path), *engines]:
            try:
                found = entry.stat()
            except OSError:  # removed since
                continue
            if not (entry.name.startswith("bundle-") and found.st_nlink > 1):
                total += found.st_size
        return total


def _prune(path: Path) -> bool:
    """Remove a cache unless a process has it open."""
    try:
        descriptor = os.open(path / IN_USE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is(path / IN_USE, descriptor):
            return False
        for entry in _entries(path):
            if entry.name == IN_USE:
                continue  # last: who waits for it starts over
            if entry.is_dir():
                if entry.name == ENGINES or fnmatch(entry.name, SCRATCH):
                    shutil.rmtree(entry, ignore_errors=True)
            elif any(fnmatch(entry.name, pattern) for pattern in OURS):
                entry.unlink(missing_ok=True)
        (path / IN_USE).unlink()
        path.rmdir()
    except OSError:  # in use, or something in it is not ours
        return not (path / IN_USE).exists()
    finally:
        os.close(descriptor)
    return True


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _last_use(path: Path) -> float:
    try:
        return (path / IN_USE).stat().st_mtime
    except OSError:
        return 0.0
