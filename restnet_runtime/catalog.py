"""The catalog of a compiled cache: which tensors lie where, which packed blocks belong to which, and what each route uses.

    cache.json   one line with the SHA-256 of the rest, then the catalog as JSON

A tensor is named by its address: the offset in the weights file, or `LINKED` plus the offset in the bundle's own
weights, where the cache holds a link to them.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 3
FILE = "cache.json"
LINKED = 2**50
"""Addresses from here on are of the link to the bundle's weights: no weights file is a petabyte."""

CompiledLevel = Literal["prepacked", "mapped"]
LEVELS: tuple[CompiledLevel, ...] = ("prepacked", "mapped")
"""prepacked: weights as the kernels want them are in the cache and shared. mapped: the bundle's own; sessions should not pack them."""

Packed = tuple[str, tuple[tuple[int, int, str], ...]]
"""ONNX Runtime's key of a packed tensor, and its blocks: (address, length, flag)."""


class DamagedCacheError(Exception):
    """What is on disk is not what this cache wrote. Never leaves this package: the cache is rebuilt instead."""


@dataclass(frozen=True)
class Shortage:
    """Why a route was compiled to a lesser level than was asked for, where that was for want of room.

    tries: how often it has been tried again since
    """

    reason: str
    tries: int = 0


@dataclass(frozen=True)
class CompiledRoute:
    """One compiled route on disk.

    level:    how its weights are kept, one of `LEVELS`
    shortage: why it is not a better one, where there was no room for it
    extents:  (address, length, checksum) of everything that its graph refers to
    touched:  (address, length) of what a session reads when it runs (a raw tensor with a packed twin is read at load only)
    weights:  the shared weights file
    linked:   the link to the bundle's own weights, if there is one
    """

    name: str
    graph: Path
    graph_sha256: str
    extents: tuple[tuple[int, int, str], ...]
    touched: frozenset[tuple[int, int]]
    level: CompiledLevel
    weights: Path
    linked: Path | None
    shortage: Shortage | None = None

    def located(self, extents: Iterable[tuple[int, int]]) -> dict[Path, list[tuple[int, int]]]:
        """(address, length) as (offset, length) by the file that they lie in."""
        found: dict[Path, list[tuple[int, int]]] = {}
        for address, length in sorted(extents):
            in_link = self.linked is not None and address >= LINKED
            file = self.linked if in_link and self.linked is not None else self.weights
            found.setdefault(file, []).append((address - LINKED if in_link else address, length))
        return found

    @property
    def touched_bytes(self) -> int:
        return sum(length for _, length in self.touched)


@dataclass
class Catalog:
    """What a cache holds.

    weights, weights_bytes:  name of the weights file, and how much of it counts
    linked:                  name of the link to the bundle's weights, if there is one
    tensors:                 length and checksum by address
    packed:                  what ONNX Runtime packs for a node on a tensor, by a signature of both; empty where it packs nothing
    routes:                  by name, as JSON has them
    """

    weights: str
    weights_bytes: int = 0
    linked: str | None = None
    tensors: dict[int, tuple[int, str]] = field(default_factory=dict)
    packed: dict[str, tuple[Packed, ...]] = field(default_factory=dict)
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def compiled(self, name: str, path: Path) -> CompiledRoute | None:
        """The route of that name in the cache at `path`; `None` if it has none. Raises what a damaged entry raises."""
        if name not in self.routes:
            return None
        entry = self.routes[name]
        if entry["level"] not in LEVELS:
            raise DamagedCacheError(f"the level {entry['level']!r} is unknown")
        return CompiledRoute(
            name=name,
            graph=path / _plain_name(entry["graph"]),
            graph_sha256=entry["graph_sha256"],
            extents=tuple((address, *self.tensors[address]) for address in entry["extents"]),
            touched=frozenset((address, self.tensors[address][0]) for address in entry["touched"]),
            level=entry["level"],
            weights=path / self.weights,
            linked=None if self.linked is None else path / self.linked,
            shortage=_shortage(entry.get("shortage")),
        )

    def add(self, name: str, graph: str, graph_sha256: str, extents: Iterable[int], touched: Iterable[int], level: str) -> None:
        """Enter a route; extents and touched are addresses."""
        self.routes[name] = {
            "graph": graph,
            "graph_sha256": graph_sha256,
            "extents": sorted(extents),
            "touched": sorted(touched),
            "level": level,
        }

    def mark(self, name: str, shortage: Shortage) -> None:
        """Enter why a route is at a lesser level, until it is added anew."""
        self.routes[name]["shortage"] = [shortage.reason, shortage.tries]

    def files(self) -> set[str]:
        """Names of the files that it refers to."""
        return {self.weights, *([self.linked] if self.linked else []), *(entry["graph"] for entry in self.routes.values())}

    def dump(self, key: dict[str, str]) -> bytes:
        """As it is kept on disk, for the cache of that key."""
        document = {
            "format": FORMAT,
            "key": key,
            "weights": self.weights,
            "weights_bytes": self.weights_bytes,
            "linked": self.linked,
            "tensors": [[address, *rest] for address, rest in self.tensors.items()],
            "packed": self.packed,
            "routes": self.routes,
        }
        data = json.dumps(document, separators=(",", ":")).encode()
        return hashlib.sha256(data).hexdigest().encode() + b"\n" + data

    @classmethod
    def parse(cls, data: bytes, key: dict[str, str]) -> "Catalog":
        """What `dump` wrote. Raises `DamagedCacheError`, and what JSON of the wrong shape raises."""
        digest, _, rest = data.partition(b"\n")
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            raise DamagedCacheError(f"{FILE} has changed")
        document = json.loads(rest)
        if document["format"] != FORMAT or document["key"] != key:
            raise DamagedCacheError("written for another bundle, device or version")
        catalog = cls(
            weights=_plain_name(document["weights"]),
            weights_bytes=int(document["weights_bytes"]),
            linked=None if document["linked"] is None else _plain_name(document["linked"]),
            tensors={int(address): (int(length), str(check)) for address, length, check in document["tensors"]},
            packed={signature: tuple(_packed(one) for one in listed) for signature, listed in document["packed"].items()},
            routes=dict(document["routes"]),
        )
        for name in catalog.routes:
            catalog.compiled(name, Path())
        return catalog


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or not name or name == ".." or Path(name).name != name:
        raise DamagedCacheError(f"{name!r} is not a file name")
    return name


def _shortage(entry: Any) -> Shortage | None:
    if entry is None:
        return None
    reason, tries = entry
    return Shortage(str(reason), int(tries))


def _packed(entry: Any) -> Packed:
    key, blocks = entry
    return str(key), tuple((int(address), int(length), str(flag)) for address, length, flag in blocks)
