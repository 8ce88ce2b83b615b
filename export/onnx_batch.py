"""The batch of an ONNX graph: made dynamic where a file fixes it, and counted from the graph's own input."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from restnet_runtime.errors import SpecError

from .onnx_shapes import Shape, affine_in_batch, image_values, value_shapes
from .segments import INPUT, OUTPUT

BATCH = "batch"
"""Name of the dynamic dimension."""

COUNT = "the batch, counted"
"""Name of the value that holds it, int64 of shape (1,)."""

TOLERANCE = 1e-4
"""Largest difference allowed between an image in a batch and alone, relative to the largest output."""


def dynamic_batch(model: onnx.ModelProto, fixed: int | None, path: Path) -> onnx.ModelProto:
    """The model as it is if it answers each image of a batch as it answers it alone, else with its shapes repaired so that it does.

    `fixed` is the batch that the file declares; None says dynamic. Constants that hold it are replaced: the target of a Reshape, and
    tensors that are joined to every image (the class token). Raises SpecError where that is not enough.
    """
    alone = fixed or 1
    try:
        expected = _answers(model, alone)
    except Exception as error:  # ONNX Runtime's errors share no public base
        raise SpecError(f"onnx:{path}: ONNX Runtime cannot run it: {_told(error)}") from error
    candidates = [] if fixed is not None and fixed > 1 else [model]
    reason = ""
    for candidate in (*candidates, _repaired(model, alone)):
        try:
            if _same(_answers(candidate, len(_images(model))), expected):
                return candidate
            reason = "images of one batch change each other's scores"
        except Exception as error:
            reason = _told(error)
    what = f"fixes a batch of {fixed}" if fixed else "declares a dynamic batch, but its shapes hold a fixed one"
    raise SpecError(f"onnx:{path} {what}, and it cannot be made dynamic: {reason}; export it with a dynamic batch")


def _images(model: onnx.ModelProto) -> np.ndarray:
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(0).standard_normal((3, *sizes), dtype=np.float32)


def _answers(model: onnx.ModelProto, size: int) -> np.ndarray:
    """The scores of three images in batches of `size`, the last one filled up with zeros: (3, ...)."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = _images(model)
    rows = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.float32)])
        rows.append(session.run([OUTPUT], {INPUT: filled})[0][: len(batch)])
    return np.concatenate(rows)


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE * max(float(np.abs(expected).max()), 1e-12))


def _repaired(model: onnx.ModelProto, alone: int) -> onnx.ModelProto:
    shapes = value_shapes(model, alone)
    repaired = onnx.ModelProto()
    repaired.CopyFrom(model)
    graph = repaired.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes.update({name: tensor.shape for name, tensor in constants.items()})
    dependent = image_values(graph)
    nodes = [_count()]
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] in dependent and node.input[1] not in dependent:
            _free(node, constants.get(node.input[1]), shapes, alone, graph)
        elif node.op_type == "Concat" and alone == 1 and not dependent.isdisjoint(node.input):
            nodes += _repeat(node, shapes, dependent, graph)
        nodes.append(node)
    replace_nodes(graph, nodes)
    return repaired


def _free(node: onnx.NodeProto, target: np.ndarray | None, shapes: Mapping[str, Shape], alone: int, graph: onnx.GraphProto) -> None:
    """Let the first dimension of a Reshape's result follow the batch, unless it does already or does not hold it."""
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    follows = target is not None and (not len(target) or target[0] in (0, -1))
    if follows or not source or not result or source[0] % alone or result[0] % alone:
        return
    name = f"{node.output[0]}, target"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, *result[1:]], np.int64), name))
    node.input[1] = name


def _repeat(node: onnx.NodeProto, shapes: Mapping[str, Shape], dependent: set[str], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Repeat what a Concat joins to one image for every image: the nodes that do so; the Concat's inputs are changed."""
    axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
    added = []
    for index, name in enumerate(node.input):
        rank = len(shapes.get(name, ()))
        if name in dependent or rank < 2 or shapes[name][0] != 1 or axis in (0, -rank):
            continue
        ones, size, repeated = (f"{node.output[0]}, {what} {index}" for what in ("ones", "size", "input"))
        graph.initializer.append(numpy_helper.from_array(np.ones(rank - 1, np.int64), ones))
        added += [helper.make_node("Concat", [COUNT, ones], [size], axis=0), helper.make_node("Expand", [name, size], [repeated])]
        node.input[index] = repeated
    return added


def recount_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every shape that depends on the batch alone computed from the batch of `x`.

    Exporters take it from the nearest tensor at hand, which would tie a block to a tensor of the block before.
    """
    shapes = affine_in_batch(value_shapes(model, 2), value_shapes(model, 3))
    counted = onnx.ModelProto()
    counted.CopyFrom(model)
    graph = counted.graph
    nodes = [] if any(COUNT in node.output for node in graph.node) else [_count()]
    for node in graph.node:
        if COUNT in node.output or node.op_type not in ("Shape", "Size") or node.input[0] not in shapes:
            nodes.append(node)
        else:
            nodes += _recounted(node, *shapes[node.input[0]], graph)
    replace_nodes(graph, nodes)
    return counted


def _recounted(node: onnx.NodeProto, fixed: Shape, per_image: Shape, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    (made,) = node.output
    if node.op_type == "Size":
        if any(per_image):
            return [node]
        graph.initializer.append(numpy_helper.from_array(np.array(np.prod(fixed), np.int64), made))
        return []
    given = {attribute.name: attribute.i for attribute in node.attribute}
    part = slice(given.get("start"), given.get("end"))
    constant, factor = np.array(fixed[part], np.int64), np.array(per_image[part], np.int64)
    if not factor.any():
        graph.initializer.append(numpy_helper.from_array(constant, made))
        return []
    names = f"{made}, per image", f"{made}, of all", f"{made}, fixed"
    graph.initializer.extend((numpy_helper.from_array(factor, names[0]), numpy_helper.from_array(constant, names[2])))
    return [helper.make_node("Mul", [COUNT, names[0]], [names[1]]), helper.make_node("Add", [names[1], names[2]], [made])]


def _count() -> onnx.NodeProto:
    return helper.make_node("Shape", [INPUT], [COUNT], name=COUNT, start=0, end=1)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph other nodes, some of which may be its own."""
    copies = []
    for node in nodes:
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
