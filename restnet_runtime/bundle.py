"""The one reader of a bundle: opens the directory, checks that it is whole and consistent, and refuses it otherwise.

`open_bundle` checks the manifest, how its parts fit together, and every file's size and digest. What is inside a
segment's graph is checked where graphs are parsed: `compose.py`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from restnet_runtime.errors import BundleError
from restnet_runtime.manifest import FORMAT, MANIFEST_FILE, VERSION, WEIGHTS_FILE, Manifest, RouteEntry, Segment
from restnet_runtime.routes import Route, pareto_front

MAX_MANIFEST_BYTES = 64 * 2**20
MAX_GRAPH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    digest: SHA-256 of manifest.json, which holds the SHA-256 of every other file: two bundles with the same digest are the same.
    """

    path: Path
    manifest: Manifest
    digest: str
    routes: tuple[Route, ...]
    segments: dict[str, Segment]

    def route(self, name: str) -> Route:
        """The route of that name. Raises `BundleError` listing some of the names there are."""
        for route in self.routes:
            if route.name == name:
                return route
        some = ", ".join([route.name for route in self.routes[:5]] + ["..."] * (len(self.routes) > 5))
        raise BundleError(str(self.path), f"has no route {name!r}; it has {len(self.routes)}: {some}")

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS_FILE


def open_bundle(path: str | Path) -> Bundle:
    """Open and check the bundle at `path`, a directory.

    Raises `BundleError`, naming the file and the reason, for everything that is wrong with it.
    """
    root = Path(path)
    if not root.is_dir():
        raise BundleError(str(root), "is not a directory" if root.exists() else "does not exist")
    raw = _read_manifest(root)
    manifest = _parse_manifest(raw)
    segments = _check_consistency(manifest)
    for name, entry in manifest.files.items():
        check_file(root, name, entry.bytes, entry.sha256)
    return Bundle(
        path=root.resolve(),
        manifest=manifest,
        digest=hashlib.sha256(raw).hexdigest(),
        routes=tuple(_route(entry) for entry in manifest.routes),
        segments=segments,
    )


def check_file(root: Path, name: str, size: int, sha256: str) -> None:
    """Raise `BundleError` unless `root/name` is a regular file inside `root` of that size and digest."""
    path = root / name
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleError(name, f"is missing: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
        raise BundleError(name, "is not a regular file inside the bundle (links are refused)")
    if status.st_size != size:
        raise BundleError(name, f"has {status.st_size} bytes, the manifest says {size}")
    found = file_sha256(path)
    if found != sha256:
        raise BundleError(name, f"has SHA-256 {found}, the manifest says {sha256}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
        # A digest reads every page once; handing them back keeps a small memory cgroup from filling with them.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_NOREUSE)
    return digest.hexdigest()


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST_FILE
    try:
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(MANIFEST_FILE, f"has {size} bytes, at most {MAX_MANIFEST_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(MANIFEST_FILE, f"cannot be read: {error.strerror}") from error


def _parse_manifest(raw: bytes) -> Manifest:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(MANIFEST_FILE, f"is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(MANIFEST_FILE, f"is not a bundle manifest: its format must be {FORMAT!r}")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > VERSION
        hint = "; a newer restnet-runtime may" if newer else ""
        raise BundleError(MANIFEST_FILE, f"has version {version!r}, this reader understands {VERSION}{hint}")
    try:
        # As JSON, so that lists are read as tuples and nothing is coerced from the wrong type.
        return Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        value = repr(first["input"])
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise BundleError(MANIFEST_FILE, f"{where}: {first['msg']} (got {shown})") from error


def _check_consistency(manifest: Manifest) -> dict[str, Segment]:
    """Check that the parts refer to each other soundly; return the segments by name."""

    def refuse(reason: str) -> BundleError:
        return BundleError(MANIFEST_FILE, reason)

    for kind, names in (
        ("anchor", [anchor.name for anchor in manifest.anchors]),
        ("segment", [segment.name for segment in manifest.segments]),
        ("route", [route.name for route in manifest.routes]),
        ("class", list(manifest.classes)),
    ):
        if twice := _first_repeat(names):
            raise refuse(f"has the {kind} {twice!r} twice")
    if MANIFEST_FILE in manifest.files:
        raise refuse("lists itself among its files")
    if WEIGHTS_FILE not in manifest.files:
        raise refuse(f"does not list {WEIGHTS_FILE}")
    channels = {"L": 1, "RGB": 3}[manifest.preprocessing.mode]
    sizes = {channels, manifest.input.shape[0], len(manifest.preprocessing.mean), len(manifest.preprocessing.std)}
    if len(sizes) != 1:
        raise refuse(
            f"preprocessing {manifest.preprocessing.mode} with {len(manifest.preprocessing.mean)} means and "
            f"{len(manifest.preprocessing.std)} deviations does not fit an input of {manifest.input.shape[0]} channels"
        )
    segments = {segment.name: segment for segment in manifest.segments}
    for segment in manifest.segments:
        for graph in segment.graphs.values():
            if graph.file not in manifest.files:
                raise refuse(f"segment {segment.name!r} names the file {graph.file!r}, which is not listed")
            if manifest.files[graph.file].bytes > MAX_GRAPH_BYTES:
                raise refuse(f"{graph.file} claims {manifest.files[graph.file].bytes} bytes, a graph has at most {MAX_GRAPH_BYTES}")
            if graph.weight_bytes > manifest.files[WEIGHTS_FILE].bytes:
                raise refuse(f"segment {segment.name!r} claims {graph.weight_bytes} bytes of weights, more than {WEIGHTS_FILE} has")
        if (segment.kind == "block") != (segment.anchor is not None):
            raise refuse(f"segment {segment.name!r} is a {segment.kind} with anchor {segment.anchor!r}: blocks and only blocks have one")
    for anchor in manifest.anchors:
        for name in anchor.segments:
            if name not in segments or segments[name].anchor != anchor.name:
                raise refuse(f"anchor {anchor.name!r} names {name!r}, which is not a block of it")
    for route in manifest.routes:
        _check_route(manifest, route, segments)
    front = pareto_front((route.macs, route.accuracy) for route in manifest.routes)
    for route, on_front in zip(manifest.routes, front, strict=True):
        if route.on_front != on_front:
            raise refuse(f"route {route.name!r} says on_front={route.on_front}, its cost and accuracy say {on_front}")
    return segments


def _check_route(manifest: Manifest, route: RouteEntry, segments: dict[str, Segment]) -> None:
    def refuse(reason: str) -> BundleError:
        return BundleError(MANIFEST_FILE, f"route {route.name!r} {reason}")

    if len(route.precisions) != len(route.segments):
        raise refuse(f"has {len(route.segments)} segments and {len(route.precisions)} precisions")
    if twice := _first_repeat(route.segments):
        raise refuse(f"runs segment {twice!r} twice: routes have no cycles")
    shape: tuple[int, ...] = manifest.input.shape
    before = "the input"
    macs = params = 0
    for name, precision in zip(route.segments, route.precisions, strict=True):
        segment = segments.get(name)
        if segment is None:
            raise refuse(f"names the segment {name!r}, which does not exist")
        if precision not in segment.graphs:
            raise refuse(f"wants {name!r} in {precision}, which it does not have")
        if segment.input_shape != shape:
            raise refuse(f"feeds {list(shape)} from {before} into {name!r}, which takes {list(segment.input_shape)}")
        shape, before = segment.output_shape, repr(name)
        macs, params = macs + segment.macs, params + segment.params
    if shape != (len(manifest.classes),):
        raise refuse(f"ends in {list(shape)}, but there are {len(manifest.classes)} classes")
    if (route.macs, route.params) != (macs, params):
        raise refuse(f"claims {route.macs} MACs and {route.params} parameters, its segments have {macs} and {params}")
    limit = manifest.files[WEIGHTS_FILE].bytes
    if route.weight_bytes > limit:
        raise refuse(f"claims {route.weight_bytes} bytes of weights, {WEIGHTS_FILE} has {limit}")


def _first_repeat(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _route(entry: RouteEntry) -> Route:
    return Route(
        name=entry.name,
        segments=entry.segments,
        precisions=entry.precisions,
        macs=entry.macs,
        params=entry.params,
        weight_bytes=entry.weight_bytes,
        accuracy=entry.accuracy,
        on_front=entry.on_front,
    )
