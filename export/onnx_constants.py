"""Constants of an ONNX graph as initialisers, so that only work on the image is left as nodes."""

from typing import TypeVar, cast

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf carries no types
from onnx import helper, numpy_helper

from .onnx_batch import replace_nodes
from .onnx_shapes import image_values

_Proto = TypeVar("_Proto", bound=Message)

_MOST_NUMBERS = 1024
"""Shapes, axes and paddings are smaller; weights that are computed from weights stay nodes."""


def lift_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes become initialisers, and mere copies of initialisers their originals."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    same: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        tensor = _constant(node)
        if tensor is not None:
            tensor.name = node.output[0]
            tensors[tensor.name] = tensor
        elif node.op_type == "Identity" and node.input[0] in tensors and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    # Before IR version 4 every initialiser was listed as an input too.
    inputs = [_copy(value) for value in graph.input if value.name not in tensors]
    graph.ClearField("input")
    graph.input.extend(inputs)
    _keep(graph, kept, tensors)


def fold_constants(model: onnx.ModelProto) -> None:
    """Evaluate what is computed from constants alone, as exporters leave it around shapes: small integers only."""
    graph = model.graph
    dependent = image_values(graph, except_by=())
    alone = [node for node in graph.node if dependent.isdisjoint(node.input) and not dependent.intersection(node.output) and node.input]
    if not alone:
        return
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    replace_nodes(bare.graph, alone)
    bare.graph.ClearField("input")
    bare.graph.ClearField("output")
    names = [name for node in alone for name in node.output if name]
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    values = ort.InferenceSession(bare.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {})
    small = {name: value for name, value in zip(names, values, strict=True) if value.dtype.kind in "iub" and value.size <= _MOST_NUMBERS}
    kept = [node for node in graph.node if not node.output or not all(name in small for name in node.output if name)]
    _keep(graph, kept, {t.name: t for t in (*graph.initializer, *(numpy_helper.from_array(v, n) for n, v in small.items()))})


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], tensors: dict[str, onnx.TensorProto]) -> None:
    """Give the graph these nodes, and of the initialisers those that are used."""
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    replace_nodes(graph, nodes)
    copies = [_copy(tensor) for name, tensor in tensors.items() if name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(copies)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant":
        return None
    (attribute,) = node.attribute
    if attribute.name == "value":
        return _copy(cast(onnx.TensorProto, attribute.t))
    kind = np.float32 if "float" in attribute.name else np.int64
    value = helper.get_attribute_value(attribute)
    return numpy_helper.from_array(np.array(value, kind)) if attribute.name.startswith(("value_int", "value_float")) else None


def _copy(message: _Proto) -> _Proto:
    copied: _Proto = type(message)()
    copied.CopyFrom(message)
    return copied
