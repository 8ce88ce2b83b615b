"""An anchor from an ONNX file as operations: what is live after each, and the part between two cuts as a graph of its own."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import helper, shape_inference

from restnet_runtime.errors import CutError

from .liveness import LiveGraph
from .onnx_batch import BATCH, COUNT
from .onnx_module import OnnxModule
from .onnx_scopes import Scope, parts_of, spans_of
from .onnx_shapes import Shape, affine_in_batch, crosses, image_values, value_shapes
from .segments import INPUT, OUTPUT


@dataclass(frozen=True, eq=False)
class OnnxOperation:
    """A node, or the input. `name` is the node's, else its first value's."""

    name: str


@dataclass(frozen=True)
class OnnxTrace(LiveGraph):
    """The nodes of an ONNX graph whose result depends on the image.

    `values[i]` is the value that alone is live after `nodes[i]`, "" where there is none; `shapes` are those of the input, the output and
    what crosses at a cut, without the batch.
    """

    module: OnnxModule
    values: tuple[str, ...]
    shapes: dict[str, Shape]

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of a cut's tensor without the batch."""
        return self.shapes[self.values[position]]

    def segment(self, start: int | None, end: int) -> OnnxModule:
        """The nodes after cut `start` (None: from the image) up to and with `nodes[end]`, with copies of their initialisers."""
        origin, result = INPUT if start is None else self.values[start], self.values[end]
        nodes, tensors = self._needed(origin, result)
        taken = {name for node in nodes for name in (*node.input, *node.output)}
        names = {origin: INPUT, result: OUTPUT, **{name: _free(name, taken) for name in (INPUT, OUTPUT) if name not in (origin, result)}}
        ends = [_batch_first(INPUT, self.shapes[origin])], [_batch_first(OUTPUT, self.shapes[result])]
        graph = helper.make_graph([], "segment", *ends, tensors)
        for node in nodes:
            copied = graph.node.add()
            copied.CopyFrom(node)
            # The batch is counted from the segment's own input, which is called as the network's.
            copied.input[:] = [INPUT if COUNT in node.output else names.get(name, name) for name in node.input]
            copied.output[:] = [names.get(name, name) for name in node.output]
            copied.ClearField("metadata_props")
            copied.ClearField("doc_string")
        whole = self.module.model
        used = {node.domain for node in nodes} | {""}
        imports = [item for item in whole.opset_import if item.domain in used]
        return OnnxModule(helper.make_model(graph, opset_imports=imports, ir_version=whole.ir_version))

    def has_weights(self, start: int | None, end: int) -> bool:
        """Whether the nodes between two cuts use a weight matrix or kernel."""
        _, tensors = self._needed(INPUT if start is None else self.values[start], self.values[end])
        return any(map(is_matrix, tensors))

    def _needed(self, origin: str, result: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Nodes and initialisers behind `result`, back to `origin`."""
        graph = self.module.model.graph
        wanted, nodes = {result}, []
        for node in reversed(graph.node):
            if wanted.isdisjoint(node.output) or origin in node.output:
                continue
            nodes.append(node)
            if COUNT not in node.output:
                wanted.update(node.input)
        return nodes[::-1], [tensor for tensor in graph.initializer if tensor.name in wanted]


def trace_onnx(module: OnnxModule) -> OnnxTrace:
    """The operations of a network that `read_onnx` read. Raises CutError if its output does not depend on the image."""
    graph = module.model.graph
    dependent = image_values(graph, except_by=()) - _counted(graph)
    if OUTPUT not in dependent:
        raise CutError(f"{graph.name} returns something that does not depend on its input")
    nodes = _read_nodes(graph, dependent)
    operations = [OnnxOperation(node.name or node.output[0]) for node in nodes]
    entry = OnnxOperation(INPUT)
    makers = {INPUT: entry, **{name: operation for node, operation in zip(nodes, operations, strict=True) for name in node.output}}
    live = _live(nodes, dependent)
    alone = [names[0] if len(names) == 1 and names[0] in node.output else "" for node, names in zip(nodes, live, strict=True)]
    shapes = affine_in_batch(value_shapes(module.model, 2), value_shapes(module.model, 3))
    floats = _floats(module.model)
    cuts = tuple(i for i, name in enumerate(alone[:-1]) if name in floats and name in shapes and crosses(shapes[name]))
    matrices = {tensor.name for tensor in graph.initializer if is_matrix(tensor)}
    scopes = [_scopes(module, node) for node in nodes]
    if not any(scopes):  # then every node is a module of its own
        scopes = [((operation.name, None),) for operation in operations]
    return OnnxTrace(
        entry=entry,
        nodes=tuple(operations),
        live=tuple(tuple(makers[name] for name in names) for names in live),
        cuts=cuts,
        spans=spans_of(scopes),
        parts=parts_of(scopes, [not matrices.isdisjoint(node.input) for node in nodes]),
        module=module,
        values=tuple(alone),
        shapes={name: shapes[name][0][1:] for name in (INPUT, *(alone[i] for i in cuts), OUTPUT)},
    )


def _read_nodes(graph: onnx.GraphProto, dependent: set[str]) -> list[onnx.NodeProto]:
    """Nodes whose result depends on the image and is read on the way to the output, in order."""
    needed = {OUTPUT}
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output) and not dependent.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    return nodes[::-1]


def _live(nodes: list[onnx.NodeProto], dependent: set[str]) -> list[list[str]]:
    """For each node the values that are still needed after it."""
    last_use = {name: i for i, node in enumerate(nodes) for name in node.input}
    last_use[OUTPUT] = len(nodes)
    alive = [INPUT]
    result = []
    for i, node in enumerate(nodes):
        alive = [name for name in (*alive, *node.output) if name in dependent and last_use.get(name, -1) > i]
        result.append(alive)
    return result


def _batch_first(name: str, shape: Shape) -> onnx.ValueInfoProto:
    """A float32 value of shape (batch, *shape)."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [BATCH, *shape])


def is_matrix(tensor: onnx.TensorProto) -> bool:
    """Whether an initialiser is a weight matrix or kernel: it extends in two directions."""
    return len([size for size in tensor.dims if size > 1]) >= 2


def _scopes(module: OnnxModule, node: onnx.NodeProto) -> tuple[Scope, ...]:
    return next((module.scopes[name] for name in node.output if name in module.scopes), ())


def _counted(graph: onnx.GraphProto) -> set[str]:
    """Values that depend on the batch alone."""
    counted, constant = {COUNT}, {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if all(name in counted or name in constant for name in node.input):
            counted.update(node.output)
    return counted


def _floats(model: onnx.ModelProto) -> set[str]:
    """Values that are float32, as far as types are known; those of foreign operators are taken for it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer)
    graph.ClearField("initializer")
    found = shape_inference.infer_shapes(bare).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*found.value_info, *found.output)}
    return {name for node in model.graph.node for name in node.output if kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT}


def _free(name: str, taken: Iterable[str]) -> str:
    used = set(taken)
    return next(free for i in range(len(used) + 1) if (free := f"{name}_{i}") not in used)
