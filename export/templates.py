"""Translations to ONNX that segments share: those that differ in their weights alone are translated once.

A network repeats its blocks. torch takes a second to translate one, and the translation, before constants are folded, does not look at the
weights: so the same graph with other weights in it is the translation of the next block.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import onnx
from onnx import numpy_helper
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from .trace import exported


@dataclass(frozen=True)
class _Signature:
    """key: equal for graphs that differ in their weights alone. weights: their names, in the order in which the graph first uses them."""

    key: Hashable
    weights: tuple[str, ...]


class Templates:
    """Translations that were made, by what is the same in all segments that share one."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[onnx.ModelProto, tuple[str, ...]]] = {}

    def translated(
        self, module: nn.Module, input_shape: tuple[int, ...], translate: Callable[[ExportedProgram], onnx.ModelProto]
    ) -> onnx.ModelProto:
        """The translation of a module, by `translate` or from one that was made before.

        translate: a graph that computes from the weights as they are, as initialisers of the names that they have in the module
        """
        traced = None if isinstance(module, fx.GraphModule) else exported(module, input_shape)
        program = module if traced is None else traced.module()
        signature = _signature(program, input_shape)
        if signature is None or (made := self._made.get(signature.key)) is None:
            model = translate(traced or exported(module, input_shape))
            if signature is not None and set(signature.weights) <= {tensor.name for tensor in model.graph.initializer}:
                self._made[signature.key] = _without_weights(model, signature.weights), signature.weights
            return model
        template, names = made
        return _filled(template, dict(zip(names, signature.weights, strict=True)), program)


def _signature(program: nn.Module, input_shape: tuple[int, ...]) -> _Signature | None:
    """None where the graph calls other graphs, whose weights are not seen here."""
    nodes = {node: index for index, node in enumerate(program.graph.nodes)} if isinstance(program, fx.GraphModule) else {}
    lines: list[Hashable] = [input_shape]
    weights: dict[str, int] = {}
    for node in nodes:
        if node.op == "get_attr":
            value = _attribute(program, str(node.target))
            if not isinstance(value, Tensor):
                return None
            if value.is_floating_point() and value.ndim:
                index = weights.setdefault(str(node.target), len(weights))
                lines.append(("weight", index, value.dtype, tuple(value.shape)))
            else:
                lines.append(("constant", value.dtype, tuple(value.shape), value.numpy(force=True).tobytes()))
        elif node.op == "call_module":
            if node.users:
                return None
        else:
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda used: f"%{nodes[used]}")
            lines.append((node.op, str(node.target) if node.op == "call_function" else "", repr(arguments)))
    return _Signature(tuple(lines), tuple(weights)) if nodes else None


def _attribute(program: nn.Module, target: str) -> object:
    value: object = program
    for step in target.split("."):
        value = getattr(value, step, None)
    return value


def _without_weights(model: onnx.ModelProto, weights: tuple[str, ...]) -> onnx.ModelProto:
    template = onnx.ModelProto()
    template.CopyFrom(model)
    for tensor in template.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    return template


def _filled(template: onnx.ModelProto, names: dict[str, str], program: nn.Module) -> onnx.ModelProto:
    """The template with the weights of `program` under their own names."""
    model = onnx.ModelProto()
    model.CopyFrom(template)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            name = names[tensor.name]
            value = _attribute(program, name)
            assert isinstance(value, Tensor)
            tensor.CopyFrom(numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), name))
    for node in model.graph.node:
        node.input[:] = [names.get(used, used) for used in node.input]
    for value_info in model.graph.value_info:
        value_info.name = names.get(value_info.name, value_info.name)
    return model
