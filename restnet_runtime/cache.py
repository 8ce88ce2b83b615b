"""The compiled cache of one bundle on one device: optimised graphs, and weights that all of them share.

    ROOT/KEY/cache.json            the catalog: tensors, packed blocks and routes; replaced whole, by rename
    ROOT/KEY/weights-ID.bin        every tensor once that the bundle does not have in this form, appended only; sessions map it
    ROOT/KEY/bundle-ID.bin         hard link to the bundle's weights, where one can be made
    ROOT/KEY/route-ID.onnx         one optimised graph per compiled route
    ROOT/KEY/tensorrt/             engines of that execution provider, which are its own business
    ROOT/KEY/lock                  held (flock) while a process adds to the cache
    ROOT/KEY/in-use                held (flock, shared) while a process has the cache open

The key covers all that makes a compiled graph valid: bundle, ONNX Runtime, processor, options. Readers check every
byte that they are about to map once. A cache that is damaged or not ours is left alone on disk by those that mapped it
(unlinked, never truncated) and started anew under new file names.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from restnet_runtime.cache_writer import CacheWriter
from restnet_runtime.catalog import FILE, LEVELS, LINKED, Catalog, CompiledRoute, DamagedCacheError, Shortage
from restnet_runtime.checksum import file_checksum
from restnet_runtime.replacement import write_atomically
from restnet_runtime.shelf import ENGINES, IN_USE, SCRATCH, Shelf

__all__ = ["Cache", "CompiledRoute", "DamagedCacheError", "LockedCache"]

_DAMAGE = (DamagedCacheError, OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class Cache:
    """The cache of one key under `root`. Several processes may use it at once; none removes it while this object lives, or until `release`.

    cap_bytes: what all caches under `root` may take together, by default as `Shelf` has it
    """

    def __init__(self, root: Path, key: dict[str, str], cap_bytes: int | None = None) -> None:
        self.key = key
        self.shelf = Shelf(root, cap_bytes)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.path = root / digest
        self._unclaim = weakref.finalize(self, os.close, self.shelf.claim(digest))
        self.shelf.make_room()
        self._intact: set[tuple[str, int]] = set()
        self._checking = threading.Lock()  # or two threads would read what their routes share twice
        self._read_as: tuple[tuple[int, int, int], Catalog] | None = None

    def release(self) -> None:
        """Let others remove it from now on. Releasing twice is harmless."""
        self._unclaim()

    def get(self, name: str) -> CompiledRoute | None:
        """The compiled route of that name, every byte of it checked; `None` if it has to be compiled.

        A damaged cache is dropped whole, because what is wrong with one file says nothing good about the others.
        """
        try:
            return self.look_up(name)
        except _DAMAGE:
            with self.locked() as held:
                return held.get(name)

    def names(self) -> tuple[str, ...]:
        """Of the routes that are compiled; not checked."""
        try:
            catalog = self._read()
        except _DAMAGE:
            return ()
        return tuple(catalog.routes) if catalog else ()

    def look_up(self, name: str) -> CompiledRoute | None:
        """Like `get`, but raises what is wrong with a damaged cache (one of `_DAMAGE`) and changes nothing."""
        catalog = self._read()
        compiled = catalog.compiled(name, self.path) if catalog else None
        if catalog is None or compiled is None:
            return None
        if hashlib.sha256(compiled.graph.read_bytes()).hexdigest() != compiled.graph_sha256:
            raise DamagedCacheError(f"{compiled.graph.name} has changed")
        files = {catalog.weights: 0, **({catalog.linked: LINKED} if catalog.linked else {})}
        for file, base in files.items():
            extents = [extent for extent in compiled.extents if (extent[0] >= LINKED) == (base == LINKED)]
            self._verify(file, [(address - base, address, length, check) for address, length, check in extents])
        return compiled

    @contextmanager
    def locked(self) -> Iterator["LockedCache"]:
        """Hold the cache's lock: one process (and one thread of it) at a time adds to the cache."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield LockedCache(self)

    def _read(self, anew: bool = False) -> Catalog | None:
        """The catalog on disk; `None` for an empty cache. Raises `DamagedCacheError` and what parsing raises.

        anew: one of its own, to be changed
        """
        try:
            found = (self.path / FILE).stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            catalog = self._read_as[1] if self._read_as and self._read_as[0] == version else None
            if catalog is None or anew:
                catalog = Catalog.parse((self.path / FILE).read_bytes(), self.key)
        except FileNotFoundError:
            return None
        if (self.path / catalog.weights).stat().st_size < catalog.weights_bytes:
            raise DamagedCacheError(f"{catalog.weights} is truncated")
        if not anew:
            self._read_as = (version, catalog)
        return catalog

    def _verify(self, file: str, extents: list[tuple[int, int, int, str]]) -> None:
        """Check (offset, address, length, checksum) in a file, each once in this process."""
        with self._checking:
            self._check(file, extents)

    def _check(self, file: str, extents: list[tuple[int, int, int, str]]) -> None:
        unknown = [extent for extent in extents if (file, extent[1]) not in self._intact]
        if not unknown:
            return
        with (self.path / file).open("rb") as opened:
            for offset, address, length, check in unknown:
                if file_checksum(opened.fileno(), offset, length) != check:
                    raise DamagedCacheError(f"{file} has changed at {offset}")
                self._intact.add((file, address))


class LockedCache:
    """What may be done to a cache while its lock is held."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def get(self, name: str) -> CompiledRoute | None:
        """The compiled route of that name, or `None`; a damaged cache is dropped."""
        try:
            return self._cache.look_up(name)
        except _DAMAGE:
            self.drop()
            return None

    def mark(self, name: str, shortage: Shortage) -> bool:
        """Remember why a route is at a lesser level. Returns whether that is on disk: not if the route is at the best level by now."""
        try:
            catalog = self._cache._read(anew=True)
            if catalog is None or name not in catalog.routes or catalog.routes[name]["level"] == LEVELS[0]:
                return False
            catalog.mark(name, shortage)
            write_atomically(self._cache.path / FILE, catalog.dump(self._cache.key), sync=False)
        except _DAMAGE:
            return False
        return True

    def drop(self) -> None:
        """Forget everything compiled. Files that sessions have mapped stay valid for them: they are unlinked, not truncated."""
        for path in self._cache.path.iterdir():
            if path.name in ("lock", IN_USE, ENGINES):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._cache._intact.clear()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory on the same file system, removed afterwards; so is what a killed process left in its own."""
        for left in self._cache.path.glob(SCRATCH):
            shutil.rmtree(left, ignore_errors=True)
        path = self._cache.path / f"tmp-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def writer(self, bundle_weights: Path | None = None) -> Iterator[CacheWriter]:
        """Add one route. Without a `commit` the cache stays as it was.

        bundle_weights: the file to share tensors with, if there is one
        """
        cache = self._cache
        catalog = cache._read(anew=True) or Catalog(weights=f"weights-{os.urandom(8).hex()}.bin")
        self._sweep(catalog)
        writer = CacheWriter(cache.path, cache.key, catalog, cache._intact, cache.shelf.make_room, bundle_weights)
        try:
            yield writer
        finally:
            writer.close()

    def _sweep(self, catalog: Catalog) -> None:
        """Remove what a killed process wrote and never committed."""
        listed = catalog.files()
        for pattern in ("weights-*.bin", "bundle-*.bin", "route-*.onnx", f".{FILE}.*", ".route-*"):
            for path in self._cache.path.glob(pattern):
                if path.name not in listed:
                    path.unlink(missing_ok=True)
