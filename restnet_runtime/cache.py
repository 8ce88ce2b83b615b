"""The compiled cache of one bundle on one device: optimised graphs, and one weights file that all of them share.

    ROOT/KEY/cache.json            the key in full, the tensors and the routes; replaced whole, by rename
    ROOT/KEY/weights-ID.bin        every tensor once, raw and prepacked, appended only; sessions map it
    ROOT/KEY/ROUTE-ID.onnx         one optimised graph per compiled route
    ROOT/KEY/lock                  held (flock) while a process adds to the cache

The key covers all that makes a compiled graph valid: bundle, ONNX Runtime, processor, options. Readers check every
byte that they are about to map once. A cache that is damaged or not ours is left alone on disk by those that mapped it
(unlinked, never truncated) and started anew under new file names.
"""

import fcntl
import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

FORMAT = 2
_SMALL_ALIGN = 64
_PAGE_ALIGN = max(4096, mmap.ALLOCATIONGRANULARITY)


@dataclass(frozen=True)
class CompiledRoute:
    """One compiled route on disk.

    extents:  (offset, length, SHA-256) of everything in the weights file that its graph refers to
    touched:  (offset, length) of what a session really reads (a raw tensor with a prepacked twin is never touched)
    """

    name: str
    graph: Path
    graph_sha256: str
    extents: tuple[tuple[int, int, str], ...]
    touched: frozenset[tuple[int, int]]
    weights: Path = Path()
    level: Literal["prepacked"] = "prepacked"

    def located(self, extents: Iterable[tuple[int, int]]) -> dict[Path, list[tuple[int, int]]]:
        """Extents by the file that they lie in."""
        return {self.weights: sorted(extents)}

    @property
    def touched_bytes(self) -> int:
        return sum(length for _, length in self.touched)


class DamagedCacheError(Exception):
    """What is on disk is not what this cache wrote. Never leaves this package: the cache is rebuilt instead."""


_DAMAGE = (DamagedCacheError, OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass
class _State:
    weights: str
    weights_bytes: int = 0
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Cache:
    """The cache of one key under `root`. Several processes may use it at once."""

    def __init__(self, root: Path, key: dict[str, str]) -> None:
        self.key = key
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = root / digest[:32]
        self.path.mkdir(parents=True, exist_ok=True)
        self._verified: set[tuple[str, int, int]] = set()

    def get(self, name: str) -> CompiledRoute | None:
        """The compiled route of that name, every byte of it checked; `None` if it has to be compiled.

        A damaged cache is dropped whole, because what is wrong with one file says nothing good about the others.
        """
        try:
            return self.look_up(name)
        except _DAMAGE:
            with self.locked() as held:
                return held.get(name)

    def look_up(self, name: str) -> CompiledRoute | None:
        """Like `get`, but raises what is wrong with a damaged cache (one of `_DAMAGE`) and changes nothing."""
        state = self._read()
        entry = state.routes.get(name) if state else None
        if state is None or entry is None:
            return None
        compiled = self._compiled(name, entry)
        self._verify(compiled, self.path / state.weights)
        return compiled

    @contextmanager
    def locked(self) -> Iterator["LockedCache"]:
        """Hold the cache's lock: one process (and one thread of it) at a time adds to the cache."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield LockedCache(self)

    def _read(self) -> _State | None:
        """The state on disk; `None` for an empty cache. Raises `DamagedCacheError` and what parsing raises."""
        try:
            document = json.loads((self.path / "cache.json").read_bytes())
        except FileNotFoundError:
            return None
        if document["format"] != FORMAT or document["key"] != self.key:
            raise DamagedCacheError("written for another bundle, device or version")
        state = _State(
            weights=_plain_name(document["weights"]),
            weights_bytes=int(document["weights_bytes"]),
            tensors={sha: (int(offset), int(length)) for sha, (offset, length) in document["tensors"].items()},
            routes=dict(document["routes"]),
        )
        for name, entry in state.routes.items():
            self._compiled(name, entry)
        if (self.path / state.weights).stat().st_size < state.weights_bytes:
            raise DamagedCacheError(f"{state.weights} is truncated")
        return state

    def _compiled(self, name: str, entry: dict[str, Any]) -> CompiledRoute:
        return CompiledRoute(
            name=name,
            graph=self.path / _plain_name(entry["graph"]),
            graph_sha256=entry["graph_sha256"],
            extents=tuple((int(offset), int(length), str(sha)) for offset, length, sha in entry["extents"]),
            touched=frozenset((int(offset), int(length)) for offset, length in entry["touched"]),
            weights=next(self.path.glob("weights-*.bin"), Path()),
        )

    def _verify(self, compiled: CompiledRoute, weights: Path) -> None:
        if hashlib.sha256(compiled.graph.read_bytes()).hexdigest() != compiled.graph_sha256:
            raise DamagedCacheError(f"{compiled.graph.name} has changed")
        with mapped(weights) as data:
            for offset, length, sha in compiled.extents:
                if (weights.name, offset, length) in self._verified:
                    continue
                if hashlib.sha256(data[offset : offset + length]).hexdigest() != sha:
                    raise DamagedCacheError(f"{weights.name} has changed at {offset}")
                self._verified.add((weights.name, offset, length))


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

    def drop(self) -> None:
        """Forget everything. Files that sessions have mapped stay valid for them: they are unlinked, not truncated."""
        for path in self._cache.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "lock":
                path.unlink(missing_ok=True)
        self._cache._verified.clear()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory on the same file system, removed afterwards; so is what a killed process left in its own."""
        for left in self._cache.path.glob("tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        path = self._cache.path / f"tmp-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def writer(self) -> Iterator["CacheWriter"]:
        """Add one route. Without a `commit` the cache stays as it was."""
        state = self._cache._read() or _State(weights=f"weights-{secrets.token_hex(8)}.bin")
        self._sweep(state)
        path = self._cache.path / state.weights
        with path.open("r+b" if path.exists() else "w+b") as file:
            yield CacheWriter(self._cache, state, file)

    def _sweep(self, state: _State) -> None:
        """Remove what a killed process wrote and never committed."""
        listed = {state.weights, *(entry["graph"] for entry in state.routes.values())}
        for pattern in ("weights-*.bin", "route-*.onnx", ".cache.json.*", ".route-*"):
            for path in self._cache.path.glob(pattern):
                if path.name not in listed:
                    path.unlink(missing_ok=True)


class CacheWriter:
    """Adds one route: `place` its tensors, write its graph, `commit`. Nothing counts before `commit`."""

    def __init__(self, cache: Cache, state: _State, file: BinaryIO) -> None:
        self._cache, self._state, self._file = cache, state, file
        self._used: dict[str, tuple[int, int]] = {}

    @property
    def weights_name(self) -> str:
        """File name of the shared weights, beside the graphs."""
        return self._state.weights

    def place(self, data: memoryview) -> int:
        """Offset of `data` in the shared weights, written only if no tensor with the same content is there yet."""
        sha = hashlib.sha256(data).hexdigest()
        if sha not in self._state.tensors or not self._holds(self._state.tensors[sha], data):
            align = _PAGE_ALIGN if len(data) >= _PAGE_ALIGN else _SMALL_ALIGN
            offset = -(-self._state.weights_bytes // align) * align
            self._file.seek(offset)
            self._file.write(data)
            self._state.tensors[sha] = (offset, len(data))
            self._state.weights_bytes = offset + len(data)
        self._used[sha] = self._state.tensors[sha]
        return self._used[sha][0]

    def _holds(self, extent: tuple[int, int], data: memoryview) -> bool:
        """Is the file's content there still what was once written? Tensors of other routes have not been looked at in this process."""
        offset, length = extent
        self._file.seek(offset)
        pieces = (data[start : start + 2**20] for start in range(0, len(data), 2**20))
        return length == len(data) and all(self._file.read(len(piece)) == piece for piece in pieces)

    def commit(self, name: str, graph: bytes, touched: Iterable[tuple[int, int]]) -> CompiledRoute:
        """Make the route durable: weights first, then the graph, then the list that names them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        file = f"route-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{secrets.token_hex(4)}.onnx"
        write_atomically(self._cache.path / file, graph)
        self._state.routes[name] = {
            "graph": file,
            "graph_sha256": hashlib.sha256(graph).hexdigest(),
            "extents": [[offset, length, sha] for sha, (offset, length) in sorted(self._used.items(), key=lambda item: item[1])],
            "touched": sorted(touched),
        }
        document = {
            "format": FORMAT,
            "key": self._cache.key,
            "weights": self._state.weights,
            "weights_bytes": self._state.weights_bytes,
            "tensors": self._state.tensors,
            "routes": self._state.routes,
        }
        write_atomically(self._cache.path / "cache.json", json.dumps(document).encode())
        return self._cache._compiled(name, self._state.routes[name])


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, mapped read-only; empty for a file that does not exist or has none."""
    if not path.exists() or not path.stat().st_size:
        yield memoryview(b"")
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        yield view


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a crash leaves the old file or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise DamagedCacheError(f"{name!r} is not a file name")
    return name
