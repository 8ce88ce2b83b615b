"""The graphs of a bundle's segments: read, and refused unless they are what the contract allows (`docs/bundle.md`)."""

import math
import re

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf carries no types
from onnx import numpy_helper

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.files import read_checked
from restnet_runtime.manifest import PAGE_BYTES, WEIGHTS_FILE, Precision, Segment

INPUT, OUTPUT = "x", "y"
"""Names of the one input and the one output of every segment and of every route."""

INLINE_BELOW_BYTES = 1024
"""Smaller tensors lie in the graph, because a page of weights.bin for each would cost more than it shares; others may not."""

_MAX_RANK = 16
_DECIMAL = re.compile(r"[0-9]{1,18}")
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


def load_segment(bundle: Bundle, segment: Segment, precision: Precision) -> onnx.ModelProto:
    """Parse and check one segment's graph; its large tensors stay in weights.bin.

    Raises `BundleError` naming the file for anything that the contract does not allow.
    """
    entry = segment.graphs[precision]
    data = read_checked(bundle.path, entry.file, bundle.manifest.files[entry.file])
    try:
        model = onnx.load_model_from_string(data, format="protobuf")
    except (DecodeError, ValueError) as error:
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
    """(offset, length) in weights.bin of a tensor that was checked; (0, 0) for one inside the graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0, 0
    fields = {item.key: item.value for item in tensor.external_data}
    return int(fields["offset"]), int(fields["length"])


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators; 0 where the graph does not say."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def _check_graph(model: onnx.ModelProto, segment: Segment, file: str) -> None:
    graph = model.graph
    if model.functions:
        raise BundleError(file, "holds local functions, a segment has nodes only")
    if graph.sparse_initializer:
        raise BundleError(file, "holds sparse tensors, a segment has dense ones only")
    if opset_of(model) < 1:
        raise BundleError(file, "does not say which opset its nodes are of")
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
    seen = {INPUT}
    for tensor in graph.initializer:
        _make(tensor.name, seen, file)
    if OUTPUT in seen:
        raise BundleError(file, f"has a tensor as its output {OUTPUT!r}, which a node must make")
    for node in graph.node:
        _check_node(node, file)
        for name in node.input:
            if name and name not in seen:
                raise BundleError(file, f"node {node.name!r} takes {name!r}, which nothing before it makes")
        for name in node.output:
            if name:
                _make(name, seen, file)
    if OUTPUT not in seen:
        raise BundleError(file, f"never makes its output {OUTPUT!r}")


def _make(name: str, seen: set[str], file: str) -> None:
    if not isinstance(name, str):  # protobuf hands out what is not UTF-8 as bytes
        raise BundleError(file, f"makes a value whose name is not UTF-8: {name!r}")
    if name in seen:
        raise BundleError(file, f"makes the value {name!r} twice")
    seen.add(name)


def _check_node(node: onnx.NodeProto, file: str) -> None:
    if node.domain not in _DOMAINS:
        raise BundleError(file, f"node {node.name!r} is of the domain {node.domain!r}, allowed are {sorted(_DOMAINS)}")
    for attribute in node.attribute:
        # By what is there, not by the declared type, which a reader may ignore.
        if attribute.HasField("g") or attribute.graphs:
            raise BundleError(file, f"node {node.name!r} holds a graph of its own, a segment has none")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise BundleError(file, f"node {node.name!r} holds a sparse tensor, a segment has dense ones only")
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise BundleError(file, f"node {node.name!r} reads a file, only initializers may")
            _check_inline(tensor, _tensor_bytes(tensor, file), file)


def _check_tensor(tensor: onnx.TensorProto, file: str, weights_bytes: int) -> tuple[int, int]:
    """Check one initializer; return its extent in weights.bin, (0, 0) if it lies in the graph."""
    size = _tensor_bytes(tensor, file)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _check_inline(tensor, size, file)
        return 0, 0
    fields = {item.key: item.value for item in tensor.external_data}
    if fields.get("location") != WEIGHTS_FILE:
        raise BundleError(file, f"tensor {tensor.name!r} lies in {fields.get('location')!r}, only {WEIGHTS_FILE!r} is allowed")
    # ONNX Runtime acts on further keys: `prepacked_0` would make it map blocks that nobody checked.
    if sorted(str(item.key) for item in tensor.external_data) != ["length", "location", "offset"]:
        keys = [item.key for item in tensor.external_data]
        raise BundleError(file, f"tensor {tensor.name!r} is placed by {keys}, it must be location, offset and length, once each")
    if not all(_DECIMAL.fullmatch(str(fields[key])) for key in ("offset", "length")):
        raise BundleError(file, f"tensor {tensor.name!r} has an offset or length that is not a plain decimal number")
    offset, length = external_extent(tensor)
    if length != size:
        raise BundleError(file, f"tensor {tensor.name!r} claims {length} bytes, its shape needs {size}")
    if offset % PAGE_BYTES:
        raise BundleError(file, f"tensor {tensor.name!r} starts at {offset}, not at a multiple of {PAGE_BYTES}")
    if offset + length > weights_bytes:
        raise BundleError(file, f"tensor {tensor.name!r} ends at {offset + length}, {WEIGHTS_FILE} has {weights_bytes} bytes")
    return offset, length


def _tensor_bytes(tensor: onnx.TensorProto, file: str) -> int:
    item = _ITEM_BYTES.get(tensor.data_type)
    if item is None:
        raise BundleError(file, f"tensor {tensor.name!r} has the type {tensor.data_type}, which no segment has")
    if len(tensor.dims) > _MAX_RANK or any(dim < 0 for dim in tensor.dims):
        raise BundleError(file, f"tensor {tensor.name!r} has the shape {list(tensor.dims[:_MAX_RANK])}, which none can have")
    return item * math.prod(int(dim) for dim in tensor.dims)


def _check_inline(tensor: onnx.TensorProto, size: int, file: str) -> None:
    if size >= INLINE_BELOW_BYTES:
        raise BundleError(file, f"tensor {tensor.name!r} of {size} bytes lies in the graph, only those under {INLINE_BELOW_BYTES} may")
    try:
        numpy_helper.to_array(tensor)
    except Exception as error:  # onnx raises what numpy and protobuf happen to raise
        raise BundleError(file, f"tensor {tensor.name!r} cannot be read: {error}") from error
