"""Segments -> one ONNX graph per route, without reading a single weight.

A segment's graph keeps its large tensors in the bundle's weights.bin (ONNX external data, location `weights.bin`
relative to the bundle). Joining copies nodes and references only, so a route of any size is joined in milliseconds.
"""

import math
import re
from collections.abc import Mapping, Sequence

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf carries no types
from onnx import numpy_helper

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.files import read_checked
from restnet_runtime.manifest import PAGE_BYTES, WEIGHTS_FILE, Precision, Segment
from restnet_runtime.quantised import unshare
from restnet_runtime.routes import Route

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


def compose(bundle: Bundle, route: Route) -> onnx.ModelProto:
    """Join the segments of `route` into one graph: input `x` (batch, *shape) float32, output `y` (batch, classes).

    Its external data still points into weights.bin. Raises `BundleError` for a segment that is not what the manifest says.
    """
    parts = list(zip(route.segments, route.precisions, strict=True))
    models = [(name, load_segment(bundle, bundle.segments[name], precision)) for name, precision in parts]
    opsets = [_opset(model) for _, model in models]
    for (name, precision), opset in zip(parts, opsets, strict=True):
        if opset != opsets[0]:
            file = bundle.segments[name].graphs[precision].file
            raise BundleError(file, f"uses opset {opset}, the segments before it use {opsets[0]}")
    return join(models, bundle.manifest.input.shape, len(bundle.manifest.classes))


def join(segments: Sequence[tuple[str, onnx.ModelProto]], input_shape: Sequence[int], classes: int) -> onnx.ModelProto:
    """One graph of segments of one opset, by name in the order in which they run: what `compose` makes, of graphs that are at hand.

    Where a segment ends with a DequantizeLinear and the next begins with a pair of QuantizeLinear and DequantizeLinear, that pair is left
    out: what arrives is quantised already, and quantising it anew would cost time and accuracy.
    """
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    current = INPUT
    for index, (name, model) in enumerate(segments):
        exit_ = OUTPUT if index == len(segments) - 1 else border(name)
        renamed = within(model.graph, name, current, exit_)
        unshare(renamed)
        if any(node.op_type == "DequantizeLinear" and current in node.output for node in nodes):
            _leave_out_pair(renamed, current, exit_)
        nodes.extend(renamed.node)
        initializers.extend(renamed.initializer)
        current = exit_
    graph = onnx.helper.make_graph(
        _with_floats_kept(nodes),
        "route",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["batch", *input_shape])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", classes])],
        initializers,
    )
    imports = [onnx.helper.make_opsetid("", _opset(segments[0][1])), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version for _, model in segments))


def _with_floats_kept(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same with a node that does nothing between a product in float32 and the QuantizeLinear behind it.

    Of a convolution or product between DequantizeLinear and QuantizeLinear ONNX Runtime quantises float weights by itself, with one scale
    for all channels: a segment that is kept in float32 in a mixed route, because it loses, would lose more than in int8. ONNX Runtime
    takes `Identity` away before it looks, but not `Max` of one value.
    """
    makers = {name: node for node in nodes for name in node.output}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        if node.op_type == "QuantizeLinear" and node.input and _is_float_product(node.input[0], makers):
            held = f"//{len(kept)}"  # no segment's name is empty, so no other value is called so
            kept.append(onnx.helper.make_node("Max", [node.input[0]], [held], held))
            node.input[0] = held
        kept.append(node)
    return kept


def _is_float_product(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Is a value what a product with float weights makes of what was dequantised, an activation function behind it or not?"""
    node = makers.get(name)
    while node is not None and node.op_type in ("Relu", "LeakyRelu", "Clip") and node.input:
        node = makers.get(node.input[0])
    if node is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 2:
        return False
    before = makers.get(node.input[0])
    return before is not None and before.op_type == "DequantizeLinear" and node.input[1] not in makers


def _leave_out_pair(graph: onnx.GraphProto, entry: str, exit_: str) -> None:
    """Let what reads the quantised and dequantised `entry` read it as it is. `exit_` is the graph's output: what makes it stays."""
    quantised = {name for node in graph.node if node.op_type == "QuantizeLinear" and entry in node.input[:1] for name in node.output}
    again = {
        name for node in graph.node if node.op_type == "DequantizeLinear" and quantised.intersection(node.input[:1]) for name in node.output
    }
    read_otherwise = {
        name for node in graph.node if node.op_type != "DequantizeLinear" for name in node.input if name in quantised
    }  # an integer operator of its own: then the pair stays
    if read_otherwise or exit_ in again | quantised or not again:
        return
    left = [node for node in graph.node if not (quantised | again).intersection(node.output)]
    del graph.node[:]
    graph.node.extend(left)
    for node in graph.node:
        node.input[:] = [entry if name in again else name for name in node.input]
    read = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def border(segment: str) -> str:
    """What a segment's output is called in a joined graph; no prefix begins with a slash, so no inner value has this name."""
    return f"/{segment}"


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


def _check_graph(model: onnx.ModelProto, segment: Segment, file: str) -> None:
    graph = model.graph
    if model.functions:
        raise BundleError(file, "holds local functions, a segment has nodes only")
    if graph.sparse_initializer:
        raise BundleError(file, "holds sparse tensors, a segment has dense ones only")
    if _opset(model) < 1:
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


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def within(graph: onnx.GraphProto, segment: str, entry: str, exit_: str) -> onnx.GraphProto:
    """A copy for a joined graph: values and nodes carry the segment's name, input and output are called as given, shapes are dropped."""
    renamed = onnx.GraphProto()
    renamed.CopyFrom(graph)
    prefix = f"{segment}/"

    def name(old: str) -> str:
        return {"": "", INPUT: entry, OUTPUT: exit_}.get(old, prefix + old)

    for index, node in enumerate(renamed.node):
        node.name = f"{prefix}{index}.{node.name}"  # names are optional in ONNX, but ONNX Runtime takes no two that are the same
        node.input[:] = [name(old) for old in node.input]
        node.output[:] = [name(old) for old in node.output]
    for tensor in renamed.initializer:
        tensor.name = name(tensor.name)
    return renamed
