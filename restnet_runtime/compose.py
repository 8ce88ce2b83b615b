"""Segments -> one ONNX graph per route, without reading a single weight.

A segment's graph keeps its large tensors in the bundle's weights.bin (ONNX external data, location `weights.bin`
relative to the bundle). Joining copies nodes and references only, so a route of any size is joined in milliseconds.
"""

from collections.abc import Mapping, Sequence

import onnx

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.graphs import INPUT, OUTPUT, load_segment, opset_of
from restnet_runtime.quantised import unshare
from restnet_runtime.routes import Route


def compose(bundle: Bundle, route: Route) -> onnx.ModelProto:
    """Join the segments of `route` into one graph: input `x` (batch, *shape) float32, output `y` (batch, classes).

    Its external data still points into weights.bin. Raises `BundleError` for a segment that is not what the manifest says.
    """
    parts = list(zip(route.segments, route.precisions, strict=True))
    models = [(name, load_segment(bundle, bundle.segments[name], precision)) for name, precision in parts]
    opsets = [opset_of(model) for _, model in models]
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
    imports = [onnx.helper.make_opsetid("", opset_of(segments[0][1])), onnx.helper.make_opsetid("com.microsoft", 1)]
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
    drop_unread(graph)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out the tensors that no node reads."""
    read = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def border(segment: str) -> str:
    """What a segment's output is called in a joined graph; no prefix begins with a slash, so no inner value has this name."""
    return f"/{segment}"


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
