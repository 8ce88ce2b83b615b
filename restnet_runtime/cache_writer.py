"""The cache writer: adds one route to a compiled cache, every tensor once, and nothing counts before it is committed."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from restnet_runtime.catalog import FILE, LEVELS, LINKED, Catalog, CompiledRoute, DamagedCacheError, Packed
from restnet_runtime.checksum import checksum, file_checksum
from restnet_runtime.errors import RoomError
from restnet_runtime.replacement import write_atomically
from restnet_runtime.units import format_bytes

_SMALL_ALIGN = 64
_PAGE_ALIGN = 4096
_FIRST_BYTES, _PIECE_BYTES = 4096, 2**20


class CacheWriter:
    """Adds one route: `place` or `refer` to its tensors, `pack` what belongs to them, `commit`. Used under the cache's lock.

    intact:     addresses that this process has written, or has read and found as the catalog says
    make_room:  asked for bytes, gives the bytes that may be written
    """

    def __init__(
        self,
        path: Path,
        key: dict[str, str],
        catalog: Catalog,
        intact: set[tuple[str, int]],
        make_room: Callable[[int], int],
        bundle_weights: Path | None = None,
    ) -> None:
        self._path, self._key, self._catalog, self._intact, self._make_room = path, key, catalog, intact, make_room
        self._room = 0
        self._used: set[int] = set()
        self._by_length: dict[int, list[int]] = {}
        for address, (length, _) in catalog.tensors.items():
            if address < LINKED:
                self._by_length.setdefault(length, []).append(address)
        self._committed_bytes = catalog.weights_bytes
        self._bundle_weights = bundle_weights
        self._descriptor = os.open(path / catalog.weights, os.O_RDWR | os.O_CREAT, 0o666)

    @property
    def weights_name(self) -> str:
        """File name of the shared weights, beside the graphs."""
        return self._catalog.weights

    def location(self, address: int) -> tuple[str, int]:
        """File name and offset of an address."""
        if address < LINKED:
            return self._catalog.weights, address
        if self._catalog.linked is None:
            raise DamagedCacheError(f"{address} is in the bundle's weights, which have no link")
        return self._catalog.linked, address - LINKED

    def place(self, data: memoryview) -> int:
        """Address of `data` in the weights file, written only if no tensor with the same content is there yet."""
        for address in self._by_length.get(len(data), ()):
            if self._holds(address, data):
                break
        else:
            address = self._append(data)
        self._intact.add((self._catalog.weights, address))
        self._used.add(address)
        return address

    def refer(self, offset: int, data: memoryview) -> int:
        """Address of `data`, which lies at `offset` in the bundle's weights: through the link, or a copy where none could be made."""
        if self._catalog.linked is None and self._bundle_weights is not None:
            self._catalog.linked, self._bundle_weights = _link(self._bundle_weights, self._path), None
        address = LINKED + offset
        length, _ = self._catalog.tensors.get(address, (len(data), ""))
        if self._catalog.linked is None or length != len(data):
            return self.place(data)
        if address not in self._catalog.tensors:
            self._catalog.tensors[address] = (length, checksum(data))
            self._intact.add((self._catalog.linked, address))
        self.use(address)
        return address

    def use(self, address: int) -> None:
        """The route needs what is at that address already. Raises `DamagedCacheError` if it has changed."""
        length, check = self._catalog.tensors[address]
        name, offset = self.location(address)
        if (name, address) not in self._intact:
            with (self._path / name).open("rb") as file:
                if file_checksum(file.fileno(), offset, length) != check:
                    raise DamagedCacheError(f"{name} has changed at {offset}")
            self._intact.add((name, address))
        self._used.add(address)

    def packed(self, signature: str) -> tuple[Packed, ...] | None:
        """What is packed for that signature, `None` if nobody has tried. Its blocks become part of the route."""
        found = self._catalog.packed.get(signature)
        for _, blocks in found or ():
            for address, length, _ in blocks:
                if length:
                    self.use(address)
        return found

    def pack(self, signature: str, packed: Iterable[Packed]) -> None:
        """Remember what is packed for a signature; its blocks have been placed."""
        self._catalog.packed[signature] = tuple(packed)

    def commit(self, name: str, graph: bytes, touched: Iterable[int], level: str = LEVELS[0]) -> CompiledRoute:
        """Make the route count: the graph, then the list that names it and the tensors.

        Nothing is synced: what a power failure leaves unwritten is found by its checksum, and a cache can be made again.
        """
        self._reserve(len(graph))
        file = f"route-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{os.urandom(4).hex()}.onnx"
        write_atomically(self._path / file, graph, sync=False)
        self._catalog.add(name, file, hashlib.sha256(graph).hexdigest(), self._used, touched, level)
        write_atomically(self._path / FILE, self._catalog.dump(self._key), sync=False)
        self._committed_bytes = self._catalog.weights_bytes
        compiled = self._catalog.compiled(name, self._path)
        assert compiled is not None
        return compiled

    def close(self) -> None:
        """Give back what was written and not committed; nobody has mapped that."""
        try:
            if os.fstat(self._descriptor).st_size > self._committed_bytes:
                os.truncate(self._descriptor, self._committed_bytes)
            for address in list(self._catalog.tensors):
                if self._committed_bytes <= address < LINKED:
                    self._intact.discard((self._catalog.weights, address))
        finally:
            os.close(self._descriptor)

    def _holds(self, address: int, data: memoryview) -> bool:
        """Is the file's content there still what was once written? Compares, so that neither damage nor chance is taken for equality."""
        start, size = 0, _FIRST_BYTES
        while start < len(data):
            piece = np.frombuffer(data[start : start + size], np.uint8)
            found = os.pread(self._descriptor, len(piece), address + start)
            if len(found) != len(piece) or not np.array_equal(np.frombuffer(found, np.uint8), piece):
                return False
            start, size = start + size, _PIECE_BYTES
        return True

    def _append(self, data: memoryview) -> int:
        align = _PAGE_ALIGN if len(data) >= _PAGE_ALIGN else _SMALL_ALIGN
        offset = -(-self._catalog.weights_bytes // align) * align
        self._reserve(offset + len(data) - self._catalog.weights_bytes)
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written : written + 2**26], offset + written)
        self._catalog.weights_bytes = offset + len(data)
        self._catalog.tensors[offset] = (len(data), checksum(data))
        self._by_length.setdefault(len(data), []).append(offset)
        return offset

    def _reserve(self, size: int) -> None:
        if size > self._room:
            self._room = self._make_room(size)
        if size > self._room:
            room = format_bytes(max(0, self._room))
            raise RoomError(f"the caches under {self._path.parent} have room for {room} more, {format_bytes(size)} are needed")
        self._room -= size


def _link(source: Path, path: Path) -> str | None:
    """A hard link to the bundle's weights beside the graphs: ONNX Runtime takes no weights from outside, nor a symbolic link there."""
    name = f"bundle-{os.urandom(8).hex()}.bin"
    try:
        if not source.stat().st_size:
            return None
        os.link(source, path / name)
    except OSError:  # another file system, or not our file
        return None
    return name
