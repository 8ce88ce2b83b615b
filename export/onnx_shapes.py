"""The shapes of all values in an ONNX graph, by running it: shape inference stops where shapes are computed."""

from collections.abc import Container, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from .segments import INPUT

_SHAPE_OF = "shape of "

Shape = tuple[int, ...]


def value_shapes(model: onnx.ModelProto, batch: int) -> dict[str, Shape]:
    """The shape of every value that a node makes, and of the input `x`, at a batch size.

    Only shapes are kept while the graph runs, so this takes the memory of one ordinary run. Raises what ONNX Runtime raises where the graph
    cannot run at this batch.
    """
    names = [name for node in model.graph.node for name in node.output if name]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    graph.node.extend(helper.make_node("Shape", [name], [_SHAPE_OF + name], name=_SHAPE_OF + name) for name in names)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(_SHAPE_OF + name, onnx.TensorProto.INT64, [None]) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = (batch, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    found = session.run(None, {INPUT: np.zeros(image, np.float32)})
    return {INPUT: image, **{name: tuple(int(size) for size in shape) for name, shape in zip(names, found, strict=True)}}


def image_values(graph: onnx.GraphProto, except_by: Container[str] = ("Shape", "Size")) -> set[str]:
    """Values reached from the image `x`, by other operators than those named: shapes may tell only how many images there are."""
    dependent = {INPUT}
    for node in graph.node:
        if node.op_type not in except_by and not dependent.isdisjoint(node.input):
            dependent.update(name for name in node.output if name)
    return dependent


def affine_in_batch(at_two: Mapping[str, Shape], at_three: Mapping[str, Shape]) -> dict[str, tuple[Shape, Shape]]:
    """For each value (fixed, per_image) with shape = fixed + per_image * batch; without those whose number of dimensions differs."""
    found = {}
    for name, two in at_two.items():
        three = at_three[name]
        if len(two) == len(three):
            per_image = tuple(b - a for a, b in zip(two, three, strict=True))
            found[name] = tuple(a - 2 * k for a, k in zip(two, per_image, strict=True)), per_image
    return found


def crosses(shape: tuple[Sequence[int], Sequence[int]]) -> bool:
    """Whether (fixed, per_image) is of a value that can be handed over: the batch as first and only dynamic dimension."""
    fixed, per_image = shape
    return len(fixed) >= 2 and fixed[0] == 0 and per_image[0] == 1 and not any(per_image[1:])
