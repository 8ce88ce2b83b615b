"""The one reader of a bundle: opens the directory, checks that it is whole and consistent, and refuses it otherwise.

`open_bundle` checks the manifest, how its parts fit together, and every file's size and digest. What is inside a
segment's graph is checked where graphs are parsed: `compose.py`.
"""

import hashlib
import json
import os
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restnet_runtime.errors import BundleError
from restnet_runtime.fields import FieldError, read
from restnet_runtime.files import check_file, read_file
from restnet_runtime.manifest import FORMAT, MANIFEST_FILE, VERSION, WEIGHTS_FILE, Manifest, RouteEntry, Segment
from restnet_runtime.routes import Route, fronts, largest_activations, precision_of

if TYPE_CHECKING:
    from restnet_runtime.signatures import Keyring

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "digits"
"""The bundle that comes with the package: scikit-learn's digits, 8x8, light ink on dark."""
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_GRAPH_BYTES = 8 * 2**20
"""Parsing takes up to some hundred times the bytes of a hostile file: these bound it on a small device."""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60
_shown.maxlevel = 1


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    digest: SHA-256 of manifest.json, which holds the SHA-256 of every other file: two bundles with the same digest are the same.
    weights_checked: whether weights.bin was found to be what the manifest says; if not, `check_weights` before anything is read from it
    signed_by: fingerprint of the required key that has signed it; `None` where none was required
    """

    path: Path
    manifest: Manifest
    digest: str
    routes: tuple[Route, ...]
    segments: dict[str, Segment]
    weights_checked: bool = True
    signed_by: str | None = None

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


def open_bundle(path: str | Path, *, weights_later: bool = False, keys: "Keyring | None" = None) -> Bundle:
    """Open and check the bundle at `path`, a directory.

    weights_later: leave the digest of weights.bin (not its size) to `check_weights`; a start from a warm cache does not read it
    keys: one of them must have signed the bundle, and nothing may lie in it that is not covered; weights.bin is then checked now
    Raises `BundleError`, naming the file and the reason, for everything that is wrong with it.
    """
    try:
        root = Path(path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BundleError(str(path), f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not root.is_dir():
        raise BundleError(str(path), "is not a directory")
    if not os.path.lexists(root / MANIFEST_FILE):
        raise BundleError(str(path), f"is no bundle: there is no {MANIFEST_FILE} in it")
    raw = read_file(root, MANIFEST_FILE, at_most=MAX_MANIFEST_BYTES)
    signed_by = None if keys is None else keys.check(root, raw)  # before anything else is made of these bytes
    manifest = _parse_manifest(raw)
    if keys is not None:
        from restnet_runtime.signatures import check_covered  # not above: most bundles are not asked for a signature

        weights_later = False
        check_covered(root, manifest)
    segments = _check_consistency(manifest)
    for name, entry in manifest.files.items():
        check_file(root, name, entry, digest=name != WEIGHTS_FILE or not weights_later)
    return Bundle(
        path=root,
        manifest=manifest,
        digest=hashlib.sha256(raw).hexdigest(),
        routes=tuple(_route(entry) for entry in manifest.routes),
        segments=segments,
        weights_checked=not weights_later,
        signed_by=signed_by,
    )


def check_weights(bundle: Bundle) -> None:
    """Raise `BundleError` unless weights.bin is what the manifest says."""
    check_file(bundle.path, WEIGHTS_FILE, bundle.manifest.files[WEIGHTS_FILE])


def _parse_manifest(raw: bytes) -> Manifest:
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(MANIFEST_FILE, f"is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(MANIFEST_FILE, f"is not a bundle manifest: its format must be {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        hint = "; a newer restnet-runtime may" if type(version) is int and version > VERSION else ""
        raise BundleError(MANIFEST_FILE, f"has version {_shown.repr(version)}, this reader understands {VERSION}{hint}")
    try:
        return read(Manifest, document)
    except FieldError as error:
        where = error.where[:200]
        where = where if where.isprintable() else ascii(where)
        raise BundleError(MANIFEST_FILE, f"{where}: {error.message} (got {_shown.repr(error.found)})") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError(f"it has the key {_shown.repr(_first_repeat(key for key, _ in pairs))} twice")
    return document


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _check_consistency(manifest: Manifest) -> dict[str, Segment]:
    """Check that the parts refer to each other soundly; return the segments by name."""

    def refuse(reason: str) -> BundleError:
        return BundleError(MANIFEST_FILE, reason)

    for kind, names in (
        ("anchor", [anchor.name for anchor in manifest.anchors]),
        ("segment", [segment.name for segment in manifest.segments]),
        ("route", [route.name for route in manifest.routes]),
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
    named: set[str] = set()
    for anchor in manifest.anchors:
        if twice := _first_repeat(anchor.segments):
            raise refuse(f"anchor {anchor.name!r} has the block {twice!r} twice")
        for name in anchor.segments:
            if name not in segments or segments[name].anchor != anchor.name:
                raise refuse(f"anchor {anchor.name!r} names {name!r}, which is not a block of it")
        named.update(anchor.segments)
    for segment in manifest.segments:
        if segment.anchor is not None and segment.name not in named:
            raise refuse(f"segment {segment.name!r} is a block of the anchor {segment.anchor!r}, which does not name it")
    for route in manifest.routes:
        _check_route(manifest, route, segments)
    front = fronts((precision_of(route.precisions), route.macs, route.accuracy) for route in manifest.routes)
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
    most = largest_activations(segments[name].activation_bytes for name in route.segments)
    if route.activation_bytes != most:
        raise refuse(f"claims activations of {route.activation_bytes} bytes, its segments have at most {most}")
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
