"""An anchor as a graph: what depends on the image, where one tensor alone is live, and the part between two such places as a module."""

import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from restnet_runtime.errors import CutError

from .liveness import LiveGraph, Part, Span

MAX_BATCH = 64
"""The range of batch sizes torch.export reasons about. Nothing checks it later: segments carry no guards."""

_TORCH_WARNINGS = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # A cache that a model fills while it runs (LeViT's attention biases) is recomputed in the graph.
    (UserWarning, r"The tensor attributes? self\."),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters are known to warn about on their own account, and nothing else."""
    with warnings.catch_warnings():
        for category, message in _TORCH_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def exported(module: nn.Module, input_shape: tuple[int, ...]) -> ExportedProgram:
    """torch.export's program of a module that takes (B, *input_shape) float32, with a dynamic first dimension called `batch`."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    return torch.export.export(module, (torch.zeros(2, *input_shape),), dynamic_shapes=({0: batch},), strict=False)


@dataclass(frozen=True)
class Trace(LiveGraph):
    """A module's graph over shared parameters: `program` as torch.export traced it."""

    program: fx.GraphModule
    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    live: tuple[tuple[fx.Node, ...], ...]

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of a cut's tensor without the batch."""
        return tuple(int(size) for size in self.nodes[position].meta["val"].shape[1:])

    def segment(self, start: int | None, end: int) -> fx.GraphModule:
        """The operations after cut `start` (None: from the image) up to and with `nodes[end]`: (B, *in) float32 to (B, *out) float32.

        Parameters and buffers are those of the traced module, not copies; autograd flows to them.
        """
        origin = self.entry if start is None else self.nodes[start]
        needed = self._needed(origin, self.nodes[end])
        graph = fx.Graph()
        values: dict[fx.Node, Any] = {origin: graph.placeholder("x")}
        batch: fx.Node | None = None
        for node in self.program.graph.nodes:
            if node not in needed:
                continue
            multiple = _batch_multiple(node, self.entry)
            if multiple is None:
                values[node] = graph.node_copy(node, lambda used: values[used])
                continue
            if batch is None:
                batch = graph.call_function(torch.ops.aten.sym_size.int, (values[origin], 0))
            values[node] = batch if multiple == 1 else graph.call_function(operator.mul, (batch, multiple))
        graph.output(values[self.nodes[end]])
        graph.lint()
        return fx.GraphModule(self.program, graph).eval()

    def has_weights(self, start: int | None, end: int) -> bool:
        """Whether the operations between two cuts use a weight matrix or kernel."""
        origin = self.entry if start is None else self.nodes[start]
        used = (node.meta.get("val") for node in self._needed(origin, self.nodes[end]) if node.op == "get_attr")
        return any(isinstance(value, Tensor) and value.ndim >= 2 for value in used)

    def _needed(self, origin: fx.Node, end: fx.Node) -> set[fx.Node]:
        needed: set[fx.Node] = set()
        pending = [end]
        while pending:
            node = pending.pop()
            if node in needed or node is origin:
                continue
            needed.add(node)
            if _batch_multiple(node, self.entry) is None:
                pending.extend(node.all_input_nodes)
        return needed


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Trace a module in eval mode that takes (B, *input_shape) float32 and returns one tensor.

    Raises CutError if torch.export cannot trace it with a dynamic batch, or it returns anything but one tensor.
    """
    # What a network keeps from an earlier run (LeViT's attention biases) would enter the graph as a constant; training mode forgets it.
    module.train().eval()
    try:
        with quiet():
            program = _functional(exported(module, input_shape), input_shape)
    except Exception as error:  # torch.export fails in as many ways as there are models
        fixed = "Constraints violated (batch)" in str(error)
        told = "its code fixes the batch, as len(x) and int(x.shape[0]) do; x.shape[0] leaves it open" if fixed else _first_line(error)
        raise CutError(f"torch.export cannot trace {type(module).__name__} with a dynamic batch: {told}") from error
    graph = program.graph
    entries = [node for node in graph.nodes if node.op == "placeholder"]
    results = graph.output_node().args[0]
    if len(entries) != 1 or len(cast(Any, results)) != 1 or not isinstance(cast(Any, results)[0], fx.Node):
        raise CutError(f"{type(module).__name__} must take one tensor and return one tensor")
    entry, result = entries[0], cast(Any, results)[0]
    nodes = _dependent(graph, entry)
    if result not in nodes:
        raise CutError(f"{type(module).__name__} returns something that does not depend on its input")
    nodes = nodes[: nodes.index(result) + 1]
    live = _live(entry, nodes)
    cuts = tuple(i for i, node in enumerate(nodes[:-1]) if live[i] == (node,) and _crosses(node, entry))
    parts = {name: _part(submodule) for name, submodule in module.named_modules(remove_duplicate=False)}
    return Trace(entry=entry, nodes=tuple(nodes), live=live, cuts=cuts, spans=_spans(nodes), parts=parts, program=program)


def _functional(source: ExportedProgram, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """The program without in-place operations: one that wrote to a cut's tensor would change what another route reads."""
    program = source.module()
    for node in reversed(program.graph.nodes):
        # Checks of shapes and dtypes belong to the trace; a segment sees other batches.
        if not node.users and (node.op == "call_module" or "assert" in str(node.target)):
            program.graph.erase_node(node)
    for node in program.graph.nodes:
        # Whether memory can be looked at in another shape depends on the kernels of the device and of the batch that was traced.
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    if not any(_writes(node) for node in program.graph.nodes):
        return program
    check = _AliasCheck(program)
    with torch.no_grad():
        check.run(torch.zeros(2, *input_shape))
    if not check.safe:
        return cast(fx.GraphModule, source.run_decompositions({}).module())
    for node in program.graph.nodes:
        if _writes(node):
            node.target = _out_of_place(node.target)
    return program


class _AliasCheck(fx.Interpreter):
    """Runs the graph once to see whether each in-place operation could as well return a new tensor: nothing reads that memory later."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.safe = True
        self._order = {node: i for i, node in enumerate(program.graph.nodes)}

    def run_node(self, n: fx.Node) -> Any:
        if _writes(n):
            written = {_storage(self.env[n.args[0]])} if isinstance(n.args[0], fx.Node) else set()
            for other, value in self.env.items():
                read_later = other.op != "call_function" or any(self._order[user] > self._order[n] for user in other.users)
                if read_later and isinstance(value, Tensor) and _storage(value) in written:
                    self.safe = False
            self.safe = self.safe and bool(written) and _out_of_place(n.target) is not None
        return super().run_node(n)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(node.op == "call_function" and schema is not None and schema.is_mutable)


def _out_of_place(target: Any) -> Any:
    """aten.relu_.default -> aten.relu.default; None if there is no such overload."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _batch_multiple(node: fx.Node, entry: fx.Node) -> int | None:
    """k if the node is the integer k * batch, which any segment can compute from its own input; None for everything else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt):
        return None
    ratio = value.node.expr / entry.meta["val"].shape[0].node.expr
    return int(ratio) if ratio.is_Integer else None


def _dependent(graph: fx.Graph, entry: fx.Node) -> list[fx.Node]:
    """Operations that need the image itself, not only how many images there are; those nobody reads are left out."""
    dependent = {entry}
    for node in graph.nodes:
        if node.op == "call_function" and _batch_multiple(node, entry) is None and not dependent.isdisjoint(node.all_input_nodes):
            dependent.add(node)
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in read:
            read.update(node.all_input_nodes)
    return [node for node in graph.nodes if node is not entry and node in dependent and node in read]


def _live(entry: fx.Node, nodes: list[fx.Node]) -> tuple[tuple[fx.Node, ...], ...]:
    position = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((position.get(user, -1) for user in node.users), default=-1) for node in (entry, *nodes)}
    last_use[nodes[-1]] = len(nodes)
    alive = [entry]
    result = []
    for i, node in enumerate(nodes):
        alive = [other for other in (*alive, node) if last_use[other] > i]
        result.append(tuple(alive))
    return tuple(result)


def _crosses(node: fx.Node, entry: fx.Node) -> bool:
    """Whether a value can be handed from one segment to the next: one float tensor of which only the batch varies."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return False
    sizes = value.shape
    same_batch = isinstance(sizes[0], torch.SymInt) and sizes[0].node.expr == entry.meta["val"].shape[0].node.expr
    return same_batch and all(isinstance(size, int) for size in sizes[1:])


def _spans(nodes: list[fx.Node]) -> tuple[Span, ...]:
    """Calls by key, which tells two calls of one module apart."""
    found: dict[str, Span] = {}
    for i, node in enumerate(nodes):
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            if path:
                first = found[key].first if key in found else i
                found[key] = Span(path, first, i)
    return tuple(sorted(found.values(), key=lambda span: (span.first, -span.last, span.module.count("."))))


def _part(module: nn.Module) -> Part:
    return Part(
        kind=type(module),
        container=type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict),
        children=next(module.children(), None) is not None,
        matrix=any(weight.ndim >= 2 for weight in module.parameters()),
        own_matrix=any(weight.ndim >= 2 for weight in module.parameters(recurse=False)),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
