"""Folding: a stitching layer and the block behind it as one segment, where the block begins with linear layers or convolutions.

The affine map is multiplied into their weights, so that a route pays nothing for it at run time (StitchNet, Teerapittayanon et al. 2023).
A convolution that pads with zeros sees the affine map's bias everywhere but in the padding: what it makes of the bias is then another
constant at the border than inside, and is added as a map of the output's size. So folding is exact for any padding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from .costs import count_macs
from .cuts import CutAnchor
from .routes import StitchedRoute, block_name, folded_name
from .stitching import StitchingLayer

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)


@dataclass(frozen=True)
class FoldedSegment:
    """A segment in place of a stitching layer and the block behind it, and their names."""

    module: nn.Module
    layer: str
    block: str


def fold_routes(
    routes: Sequence[StitchedRoute], anchors: Mapping[str, CutAnchor], layers: Mapping[str, StitchingLayer]
) -> tuple[list[StitchedRoute], dict[str, FoldedSegment]]:
    """The routes with every stitching layer folded where that is possible and costs no more MACs, and the folded segments by name.

    A folded block has weights of its own, of which the anchor's stay beside it: more bytes for less work.
    """
    known: dict[str, FoldedSegment | None] = {}
    folded = []
    for route in routes:
        chosen = set()
        for name, part in zip(route.layers, route.parts[1:], strict=True):
            segment = folded_name(name, part.first)
            if segment not in known:
                module = _cheaper(layers[name], anchors[part.anchor].blocks[part.first])
                known[segment] = FoldedSegment(module, name, block_name(part.anchor, part.first)) if module is not None else None
            if known[segment] is not None:
                chosen.add(name)
        folded.append(replace(route, folded=frozenset(chosen)))
    return folded, {name: segment for name, segment in known.items() if segment is not None}


def _cheaper(layer: StitchingLayer, block: nn.Module) -> nn.Module | None:
    """The folded module, or None where it cannot be or takes more multiply-accumulates than both apart."""
    found = fold(layer, block)
    if found is None:
        return None
    apart = count_macs(layer, layer.source.shape) + count_macs(block, layer.target.shape)
    return found if count_macs(found, layer.source.shape) <= apart else None


def fold(layer: StitchingLayer, block: nn.Module) -> fx.GraphModule | None:
    """One module that computes `block(layer(x))`, or None where that takes more than other weights.

    block: a block of a `CutAnchor`. It stays as it is; the result shares with it all weights that do not change.
    Folded is what needs no resampling and keeps the kind of the tensor and its prefix tokens, before a block that reads its input through
    `linear` over the channels and ungrouped `conv2d` alone. Blocks with a shortcut around them are not such.
    """
    if not _pure(layer) or not isinstance(block, fx.GraphModule):
        return None
    (entry,) = (node for node in block.graph.nodes if node.op == "placeholder")
    readers = [node for node in entry.users if node.target is not torch.ops.aten.sym_size.int]
    if not readers or not all(_foldable(node, entry, layer) for node in readers):
        return None
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(block.graph, values)
    graph.output(output)
    folded = fx.GraphModule(block, graph)
    with torch.no_grad():
        for index, node in enumerate(readers):
            _fold_into(folded, values[node], node, index, layer, block)
    for node in list(folded.graph.nodes):
        if node.op == "get_attr" and not node.users:
            folded.graph.erase_node(node)
    folded.graph.lint()
    return fx.GraphModule(folded, folded.graph).eval()  # takes over what the graph uses, and not the weights that were replaced


def _pure(layer: StitchingLayer) -> bool:
    """The same affine map at every position, and nothing else."""
    source, target = layer.source, layer.target
    return layer.kernel == 1 and (source.kind, source.height, source.width, source.prefix) == (
        target.kind,
        target.height,
        target.width,
        target.prefix,
    )


def _foldable(node: fx.Node, entry: fx.Node, layer: StitchingLayer) -> bool:
    reads_once = node.args[0] is entry and node.all_input_nodes.count(entry) == 1 and _weight(node) is not None
    if node.target is torch.ops.aten.linear.default:
        return reads_once and layer.target.kind != "map"
    ungrouped = len(node.args) < 7 or bool(node.args[6] == 1)
    return reads_once and bool(node.target in _CONVOLUTIONS) and layer.target.kind == "map" and ungrouped


def _weight(node: fx.Node) -> fx.Node | None:
    weight = node.args[1] if len(node.args) > 1 else None
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def _fold_into(folded: fx.GraphModule, node: fx.Node, original: fx.Node, index: int, layer: StitchingLayer, block: fx.GraphModule) -> None:
    """Give the copied `node` weights of its own; `original` is the same operation in `block`."""
    weight = _value(block, cast(fx.Node, original.args[1]))
    own_bias = original.args[2] if len(original.args) > 2 else None
    bias = _value(block, own_bias) if isinstance(own_bias, fx.Node) else torch.zeros(len(weight))
    rest = tuple(original.args[3:])
    constant = _of_bias(cast(Callable[..., Tensor], original.target), weight, bias, rest, layer)
    merged = torch.einsum("oi...,ic->oc...", weight.double(), layer.weight.double()).float()
    flat = constant.flatten(2) if layer.target.kind == "map" else constant.reshape(1, -1, len(weight)).transpose(1, 2)
    uniform = bool((flat - flat[..., :1]).abs().max() <= 1e-6 * flat.abs().max().clamp_min(1e-12))
    names = f"folded{index}_weight", f"folded{index}_bias"
    folded.register_parameter(names[0], nn.Parameter(merged, requires_grad=False))
    folded.register_parameter(names[1], nn.Parameter(flat[0, :, 0].clone() if uniform else constant.clone(), requires_grad=False))
    graph = folded.graph
    with graph.inserting_before(node):
        parameters = [graph.get_attr(name) for name in names]
    node.args = (node.args[0], parameters[0], parameters[1] if uniform else None, *rest)
    if not uniform:
        with graph.inserting_after(node):
            total = graph.call_function(torch.ops.aten.add.Tensor, (node, parameters[1]))
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _of_bias(operation: Callable[..., Tensor], weight: Tensor, bias: Tensor, rest: tuple[Any, ...], layer: StitchingLayer) -> Tensor:
    """What the operation makes of the affine map's bias at every position of one image, float32."""
    channels = layer.bias.double()
    shape = (1, *layer.target.shape)
    biases = (channels[:, None, None] if layer.target.kind == "map" else channels).expand(shape)
    return operation(biases, weight.double(), bias.double(), *rest).float()


def _value(block: fx.GraphModule, node: fx.Node) -> Tensor:
    found: Any = block
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return cast(Tensor, found).detach()
