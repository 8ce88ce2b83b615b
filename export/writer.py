"""The one writer of a bundle: segments, routes and what goes with them -> a directory that `open_bundle` accepts.

Specified in docs/bundle.md. Everything is written to a temporary directory beside the target, opened and checked by
the reader, and only then renamed: a crash leaves the old bundle or none.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError, ExportError
from restnet_runtime.fields import FieldError, read
from restnet_runtime.files import file_sha256
from restnet_runtime.graphs import INLINE_BELOW_BYTES, check_graphs, external_extent
from restnet_runtime.links import sync
from restnet_runtime.manifest import (
    FORMAT,
    MANIFEST_FILE,
    PAGE_BYTES,
    WEIGHTS_FILE,
    Anchor,
    FileEntry,
    Graph,
    Input,
    Manifest,
    Precision,
    Preprocessing,
    Provenance,
    RouteEntry,
    Segment,
)
from restnet_runtime.routes import fronts, largest_activations, precision_of

from .scratch import put_in_place, scratch_of

_Extents = dict[tuple[str, Precision], set[tuple[int, int]]]
"""(offset, length) in weights.bin of what a segment reads, by segment and precision."""


@dataclass(frozen=True)
class SegmentSource:
    """A segment to be written.

    model: input `x` (batch, *input_shape), output `y` (batch, *output_shape), float32, its weights inside
    others: the same in other precisions, with the same input and output
    activation_bytes: the most that is live at a time for one input; None where it was not counted
    """

    name: str
    kind: Literal["block", "stitch"]
    anchor: str | None
    module: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    params: int
    model: onnx.ModelProto
    activation_bytes: int | None = None
    others: Mapping[Precision, onnx.ModelProto] = field(default_factory=dict)

    def graphs(self) -> dict[Precision, onnx.ModelProto]:
        """By precision, fp32 first."""
        return {"fp32": self.model, **self.others}


@dataclass(frozen=True)
class RouteSource:
    """A route to be written: its segments in order and its top-1 accuracy (0..1) on held-out data.

    precisions: of each segment; by default all are fp32
    """

    name: str
    segments: tuple[str, ...]
    accuracy: float | None
    precisions: tuple[Precision, ...] = ()

    def parts(self) -> tuple[tuple[str, Precision], ...]:
        """Segment and precision, in order."""
        plain: list[Precision] = ["fp32"] * len(self.segments)
        return tuple(zip(self.segments, self.precisions or plain, strict=True))


@dataclass(frozen=True)
class BundleSource:
    """All that a bundle is made of. reports: files for people, by path (`report/...`)."""

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    anchors: tuple[Anchor, ...]
    segments: tuple[SegmentSource, ...]
    routes: tuple[RouteSource, ...]
    provenance: Provenance
    reports: Mapping[str, bytes] = field(default_factory=dict)


def write_bundle(
    source: BundleSource,
    out: str | Path,
    check: Callable[[Bundle], None] | None = None,
    sign: Callable[[Bundle], object] | None = None,
) -> Bundle:
    """Write `source` to the directory `out`, replacing an older bundle there.

    check: a last look at what was written, before it takes its place; what it raises leaves the old bundle where it was.
    sign:  puts a signature into the directory of a bundle that passed, before it takes its place (`restnet_runtime.signing.signer`)
    Raises `ExportError` if something that is not a bundle is in the way, `source` does not fit the manifest's fields or the disk has no
    room for it, `BundleError` if what was written would be refused.
    """
    target = Path(out).resolve()  # through a link, what it leads to is replaced, not the link
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch_of(target) as scratch:
            _write(source, scratch)
            written = open_bundle(scratch)
            check_graphs(written)
            if check is not None:
                check(written)
            if sign is not None:
                sign(written)
                sync(scratch)
            put_in_place(scratch, target)
    except FieldError as error:
        raise ExportError(f"the bundle {source.name!r} cannot be written: {error.where}: {error.message}") from error
    except OSError as error:
        raise ExportError(f"the bundle {target} cannot be written: {error.strerror or error}; an older one is as it was") from error
    return open_bundle(target)


def check_target(target: Path) -> None:
    """Raise `ExportError` unless `target` can become a bundle: absent, an empty directory, or an older bundle."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:  # other software has files called manifest.json too
        if json.loads((target / MANIFEST_FILE).read_bytes())["format"] == FORMAT:
            return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ExportError(f"{target} is in the way: it is not a bundle, so it is not replaced")


def _write(source: BundleSource, root: Path) -> None:
    (root / "segments").mkdir(parents=True)
    segments: list[Segment] = []
    extents: _Extents = {}
    with (root / WEIGHTS_FILE).open("wb") as file:
        weights = _Weights(file)
        for part in source.segments:
            graphs: dict[Precision, Graph] = {}
            for precision, model in part.graphs().items():
                moved = weights.externalise(model)
                path = f"segments/{part.name}.{precision}.onnx"
                (root / path).write_bytes(moved.SerializeToString(deterministic=True))
                used = {external_extent(tensor) for tensor in moved.graph.initializer} - {(0, 0)}
                extents[part.name, precision] = used
                graphs[precision] = Graph(file=path, weight_bytes=_bytes(used))
            segments.append(
                Segment(
                    name=part.name,
                    kind=part.kind,
                    anchor=part.anchor,
                    module=part.module,
                    input_shape=part.input_shape,
                    output_shape=part.output_shape,
                    macs=part.macs,
                    params=part.params,
                    activation_bytes=part.activation_bytes,
                    graphs=graphs,
                )
            )
    for path, data in source.reports.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)
    manifest = Manifest(
        format=FORMAT,
        version=1,
        name=source.name,
        task="classification",
        classes=source.classes,
        input=Input(shape=source.input_shape),
        preprocessing=source.preprocessing,
        anchors=source.anchors,
        segments=tuple(segments),
        routes=_routes(source, segments, extents),
        files={
            path.relative_to(root).as_posix(): FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        },
        provenance=source.provenance,
    )
    text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n"
    read(Manifest, json.loads(text))
    (root / MANIFEST_FILE).write_text(text, encoding="utf-8")
    for written in root.rglob("*"):
        sync(written)
    sync(root)


def _routes(source: BundleSource, segments: Sequence[Segment], extents: _Extents) -> tuple[RouteEntry, ...]:
    by_name = {segment.name: segment for segment in segments}
    for route in source.routes:
        if unknown := [name for name in route.segments if name not in by_name]:
            raise BundleError(MANIFEST_FILE, f"route {route.name!r} names {unknown[0]!r}, which is not among the segments")
        if lacking := [part for part in route.parts() if part not in extents]:
            raise BundleError(MANIFEST_FILE, f"route {route.name!r} wants {lacking[0][0]!r} in {lacking[0][1]}, which it does not have")
    costs = [sum(by_name[name].macs for name in route.segments) for route in source.routes]
    front = fronts(
        (precision_of(kind for _, kind in route.parts()), macs, route.accuracy) for macs, route in zip(costs, source.routes, strict=True)
    )
    return tuple(
        RouteEntry(
            name=route.name,
            segments=route.segments,
            precisions=tuple(precision for _, precision in route.parts()),
            macs=macs,
            params=sum(by_name[name].params for name in route.segments),
            weight_bytes=_bytes(set().union(*(extents[part] for part in route.parts()))),
            activation_bytes=largest_activations(by_name[name].activation_bytes for name in route.segments),
            accuracy=route.accuracy,
            on_front=on_front,
        )
        for route, macs, on_front in zip(source.routes, costs, front, strict=True)
    )


class _Weights:
    """weights.bin while it is written: every tensor once, by content, at a page of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[str, int] = {}
        self._end = 0

    def externalise(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` whose tensors of `INLINE_BELOW_BYTES` and more lie in weights.bin."""
        moved = onnx.ModelProto()
        moved.CopyFrom(model)
        _lift_constants(moved.graph)
        for tensor in moved.graph.initializer:
            data = np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()
            if len(data) < INLINE_BELOW_BYTES:
                continue
            offset = self._place(data)
            for part in ("raw_data", "float_data", "int64_data", "int32_data", "double_data"):
                tensor.ClearField(part)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(len(data)))):
                tensor.external_data.add(key=key, value=value)
        return moved

    def _place(self, data: bytes) -> int:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._offsets:
            offset = -(-self._end // PAGE_BYTES) * PAGE_BYTES
            self._file.write(b"\0" * (offset - self._end) + data)
            self._offsets[digest], self._end = offset, offset + len(data)
        return self._offsets[digest]


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of large `Constant` nodes: only those can lie in weights.bin."""
    for node in list(graph.node):
        tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type != "Constant" or not tensors or numpy_helper.to_array(tensors[0]).nbytes < INLINE_BELOW_BYTES:
            continue
        graph.initializer.add().CopyFrom(tensors[0])
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _bytes(extents: set[tuple[int, int]]) -> int:
    return sum(length for _, length in extents)
