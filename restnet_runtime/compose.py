"""Segments -> one ONNX graph per route, without reading a single weight.

A segment's graph keeps its large tensors in the bundle's weights.bin (ONNX external data, location `weights.bin`
relative to the bundle). Joining copies nodes and references only, so a route of any size is joined in milliseconds.
"""

import math

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf carries no types

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.manifest import PAGE_BYTES, WEIGHTS_FILE, Precision, Segment
from restnet_runtime.routes import Route

INPUT, OUTPUT = "x", "y"
"""Names of the one input and the one output of every segment and of every route."""

MAX_INLINE_BYTES = 2**20
"""A tensor larger than this must lie in weights.bin, where its digest and its page are."""

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_ITEM_BYTES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.BOOL: 1,
}


def compose(bundle: Bundle, route: Route) -> onnx.ModelProto:
    """Join the segments of `route` into one graph: input `x` (batch, *shape) float32, output `y` (batch, classes).

    Its external data still points into weights.bin. Raises `BundleError` for a segment that is not what the manifest says.
    """
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    opset, ir_version = 0, 0
    current = INPUT
    for index, (name, precision) in enumerate(zip(route.segments, route.precisions, strict=True)):
        segment = bundle.segments[name]
        model = load_segment(bundle, segment, precision)
        version = _opset(model)
        if opset not in (0, version):
            raise BundleError(segment.graphs[precision].file, f"uses opset {version}, the segments before it use {opset}")
        opset, ir_version = version, max(ir_version, model.ir_version)
        last = index == len(route.segments) - 1
        renamed = _rename(model.graph, prefix=f"{name}/", entry=current, exit_=OUTPUT if last else f"{name}/out")
        nodes.extend(renamed.node)
        initializers.extend(renamed.initializer)
        current = f"{name}/out"
    shape = bundle.manifest.input.shape
    graph = onnx.helper.make_graph(
        nodes,
        "route",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", len(bundle.manifest.classes)])],
        initializers,
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def load_segment(bundle: Bundle, segment: Segment, precision: Precision) -> onnx.ModelProto:
    """Parse and check one segment's graph; its large tensors stay in weights.bin.

    Raises `BundleError` naming the file for anything that the contract does not allow.
    """
    entry = segment.graphs[precision]
    try:
        model = onnx.load_model(bundle.path / entry.file, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(entry.file, f"is not an ONNX graph: {error}") from error
    _check_graph(model, segment, entry.file)
    weights_bytes = bundle.manifest.files[WEIGHTS_FILE].bytes
    extents = {_check_tensor(tensor, entry.file, weights_bytes) for tensor in model.graph.initializer}
    used = sum(length for _, length in extents)
    if used != entry.weight_bytes:
        raise BundleError(entry.file, f"reads {used} bytes of {WEIGHTS_FILE}, the manifest says {entry.weight_bytes}")
    return model


def check_graphs(bundle: Bundle) -> None:
    """Check every graph of the bundle, and the weight bytes that each route claims. Raises `BundleError`."""
    extents: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for segment in bundle.segments.values():
        for precision in segment.graphs:
            model = load_segment(bundle, segment, precision)
            extents[segment.name, precision] = {external_extent(tensor) for tensor in model.graph.initializer} - {(0, 0)}
    for route in bundle.routes:
        parts = zip(route.segments, route.precisions, strict=True)
        used = sum(length for _, length in set().union(*(extents[part] for part in parts)))
        if used != route.weight_bytes:
            raise BundleError(WEIGHTS_FILE, f"route {route.name!r} claims {route.weight_bytes} bytes of it, its graphs read {used}")


def external_extent(tensor: onnx.TensorProto) -> tuple[int, int]:
    """(offset, length) of a tensor in its external file; (0, 0) for one inside the graph. Raises `ValueError` for nonsense."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0, 0
    fields = {item.key: item.value for item in tensor.external_data}
    return int(fields.get("offset", "0")), int(fields["length"])


def _check_graph(model: onnx.ModelProto, segment: Segment, file: str) -> None:
    graph = model.graph
    if model.functions:
        raise BundleError(file, "holds local functions, a segment has nodes only")
    if graph.sparse_initializer:
        raise BundleError(file, "holds sparse tensors, a segment has dense ones only")
    for side, values, name, shape in (
        ("input", graph.input, INPUT, segment.input_shape),
        ("output", graph.output, OUTPUT, segment.output_shape),
    ):
        if [value.name for value in values] != [name]:
            raise BundleError(file, f"has the {side}s {[value.name for value in values]}, a segment has the one {side} {name!r}")
        tensor = values[0].type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if tensor.elem_type != onnx.TensorProto.FLOAT or dims != [None, *shape]:
            raise BundleError(file, f"has an {side} of shape {dims}, the manifest says batch x {list(shape)} in float32")
    seen: set[str] = {INPUT} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise BundleError(file, f"node {node.name!r} is of the domain {node.domain!r}, allowed are {sorted(_DOMAINS)}")
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise BundleError(file, f"node {node.name!r} holds a graph of its own, a segment has none")
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                raise BundleError(file, f"node {node.name!r} reads a file, only initializers may")
        for name in node.input:
            if name and name not in seen:
                raise BundleError(file, f"node {node.name!r} takes {name!r}, which nothing before it makes")
        seen.update(name for name in node.output if name)
    if OUTPUT not in seen:
        raise BundleError(file, f"never makes its output {OUTPUT!r}")


def _check_tensor(tensor: onnx.TensorProto, file: str, weights_bytes: int) -> tuple[int, int]:
    """Check one initializer; return its extent in weights.bin, (0, 0) if it lies in the graph."""

    def refuse(reason: str) -> BundleError:
        return BundleError(file, f"tensor {tensor.name!r} {reason}")

    item = _ITEM_BYTES.get(tensor.data_type)
    if item is None or any(dim < 0 for dim in tensor.dims):
        raise refuse(f"has the type {tensor.data_type} and shape {list(tensor.dims)}, which no segment has")
    size = math.prod(tensor.dims) * item
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if size > MAX_INLINE_BYTES:
            raise refuse(f"of {size} bytes lies in the graph, above {MAX_INLINE_BYTES} it must lie in {WEIGHTS_FILE}")
        if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise refuse(f"holds {len(tensor.raw_data)} bytes, its shape needs {size}")
        return 0, 0
    location = {item.key: item.value for item in tensor.external_data}.get("location", "")
    if location != WEIGHTS_FILE:
        raise refuse(f"lies in {location!r}, only {WEIGHTS_FILE} is allowed")
    try:
        offset, length = external_extent(tensor)
    except (KeyError, ValueError) as error:
        raise refuse(f"has no sound offset and length: {error}") from error
    if length != size:
        raise refuse(f"claims {length} bytes, its shape needs {size}")
    if offset < 0 or offset % PAGE_BYTES or offset + length > weights_bytes:
        raise refuse(f"claims bytes {offset} to {offset + length}, {WEIGHTS_FILE} has {weights_bytes} in pages of {PAGE_BYTES}")
    return offset, length


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def _rename(graph: onnx.GraphProto, prefix: str, entry: str, exit_: str) -> onnx.GraphProto:
    """A copy whose values and nodes carry `prefix`, with input and output named as given; shapes of inner values are dropped."""
    renamed = onnx.GraphProto()
    renamed.CopyFrom(graph)

    def name(old: str) -> str:
        return {"": "", INPUT: entry, OUTPUT: exit_}.get(old, prefix + old)

    for node in renamed.node:
        node.name = prefix + node.name
        node.input[:] = [name(old) for old in node.input]
        node.output[:] = [name(old) for old in node.output]
    for tensor in renamed.initializer:
        tensor.name = name(tensor.name)
    return renamed
