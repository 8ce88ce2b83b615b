"""What an ONNX graph costs, read from its nodes: multiply-accumulates, weights, and the activations that are live at a time."""

import math
from collections.abc import Mapping

import onnx

from .onnx_shapes import Shape, image_values, value_shapes

_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose result is their input's memory read in another shape."""

_FLOAT_BYTES = 4


def graph_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for one input, as torch's FLOP counter counts them: a bias is free."""
    shapes = _shapes(model)
    return sum(_macs(node, shapes) for node in model.graph.node)


def graph_params(model: onnx.ModelProto) -> int:
    """Numbers in the graph's weights, each tensor once: initialisers of a float or 8-bit type, without single numbers."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in kinds and math.prod(tensor.dims) > 1)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the graph's weights, in whatever type they are held."""
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in model.graph.initializer
    )


def activation_bytes(model: onnx.ModelProto) -> int:
    """The most that is live at a time while the graph runs on one input: the largest sum of a node's inputs, its outputs and what is read
    later.

    Counted are values that depend on the input, four bytes a number; a view shares the memory of what it views. ONNX Runtime may need less
    (it writes in place and fuses nodes), never counted are its packed weights and scratch space.
    """
    graph = model.graph
    shapes, dependent = _shapes(model), image_values(graph)
    memory = _memory(graph)
    last = {memory[name]: i for i, node in enumerate(graph.node) for name in node.input if name in dependent}
    last.update({memory[value.name]: len(graph.node) for value in graph.output})
    sizes = {name: _FLOAT_BYTES * math.prod(shapes[name]) for name in dependent}
    alive = {name for name in dependent if memory[name] == name and name not in {made for node in graph.node for made in node.output}}
    peak = sum(sizes[name] for name in alive)
    for i, node in enumerate(graph.node):
        alive |= {memory[name] for name in node.output if name in dependent}
        peak = max(peak, sum(sizes[name] for name in alive))
        alive = {name for name in alive if last.get(name, -1) > i}
    return peak


def _memory(graph: onnx.GraphProto) -> dict[str, str]:
    """For each value the one that holds its memory: another one for a view, else itself."""
    memory = {value.name: value.name for value in graph.input}
    memory.update({tensor.name: tensor.name for tensor in graph.initializer})
    for node in graph.node:
        for name in node.output:
            memory[name] = memory.get(node.input[0], name) if node.op_type in _VIEWS else name
    return memory


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    return {**{tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}, **value_shapes(model, 1)}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv", "FusedConv"):
        kernel = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
        return math.prod(shapes[node.output[0]]) * math.prod(kernel[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "MatMulInteger", "FusedMatMul"):
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "QLinearMatMul":
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if flipped else -1]
    if node.op_type == "Einsum":
        return _einsum_macs(node, shapes)
    return 0


def _einsum_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Every index once, as of two factors; one factor alone is only moved and summed."""
    if len(node.input) < 2:
        return 0
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation").replace(" ", "")
    sizes: dict[str, int] = {}
    for term, name in zip(equation.partition("->")[0].split(","), node.input, strict=True):
        named = term.replace("...", "")
        shape = shapes[name]
        sizes.update(zip(named, shape[len(shape) - len(named) :], strict=True))
        if "..." in term:
            sizes["..."] = max(sizes.get("...", 1), math.prod(shape[: len(shape) - len(named)]))
    return math.prod(sizes.values())
