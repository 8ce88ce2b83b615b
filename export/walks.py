"""Routes run for tuning: what an anchor computes once per batch serves every route that begins or ends with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from .activations import cut_activations
from .cuts import CutAnchor
from .objectives import Answer
from .routes import StitchedRoute
from .stitching import StitchingLayer


@dataclass(frozen=True)
class Seen:
    """What an anchor computes of a batch: the output of every block but the head, and its answer; without gradients."""

    cuts: Sequence[Tensor]
    answer: Answer


class Network:
    """Anchors and stitching layers as one network with many routes; shares all parameters with what it is made of."""

    def __init__(self, anchors: Mapping[str, CutAnchor], layers: Mapping[str, StitchingLayer]) -> None:
        self.anchors, self._layers = anchors, layers
        self._heads = {name: _with_features(anchor.blocks[-1]) for name, anchor in anchors.items()}

    def seen(self, images: Tensor) -> dict[str, Seen]:
        """Every anchor on images (B, C, H, W); all activations at cuts are held at once, so the batch bounds the memory."""
        found = {}
        for name, anchor in self.anchors.items():
            cuts = cut_activations(anchor, images, finite=False)  # steps that went too far are for the guard to take back
            with torch.no_grad():
                found[name] = Seen(cuts, self._answer(name, cuts[-1]))
        return found

    def from_front(self, route: StitchedRoute, seen: Mapping[str, Seen]) -> Answer:
        """A route from the end of its first part on. Gradients flow to what comes after; an anchor's answer has none."""
        first = route.parts[0]
        if not route.layers:
            return seen[first.anchor].answer
        return self._rest(route, seen[first.anchor].cuts[first.last])

    def from_images(self, route: StitchedRoute, images: Tensor) -> Answer:
        """A whole route; gradients flow to all of it."""
        first, x = route.parts[0], images
        for block in self.anchors[first.anchor].blocks[: first.last + (1 if route.layers else 0)]:
            x = block(x)
        return self._rest(route, x) if route.layers else self._answer(first.anchor, x)

    def _rest(self, route: StitchedRoute, x: Tensor) -> Answer:
        for name, part in zip(route.layers, route.parts[1:], strict=True):
            x = self._layers[name](x)
            anchor = self.anchors[part.anchor]
            for block in anchor.blocks[part.first : min(part.last + 1, len(anchor.blocks) - 1)]:
                x = block(x)
        return self._answer(route.parts[-1].anchor, x)

    def _answer(self, anchor: str, x: Tensor) -> Answer:
        return cast(Answer, self._heads[anchor](x))


class _Head(nn.Module):
    """A head that tells its features too."""

    def __init__(self, module: nn.Module, tells: bool) -> None:
        super().__init__()
        self._module, self._tells = module, tells

    def forward(self, x: Tensor) -> Answer:
        if self._tells:
            features, logits = self._module(x)
            return Answer(logits, features)
        return Answer(self._module(x), x)


def _with_features(head: nn.Module) -> _Head:
    """The features are what the last linear layer reads; where the graph has none, what the head reads."""
    if not isinstance(head, fx.GraphModule):
        return _Head(head, tells=False)
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(head.graph, values)
    linear = [node for node in head.graph.nodes if node.op == "call_function" and node.target is torch.ops.aten.linear.default]
    if not linear:
        return _Head(head, tells=False)
    graph.output((values[linear[-1].args[0]], result))
    return _Head(fx.GraphModule(head, graph), tells=True)
