"""Routes in torch: blocks of one anchor, or of several joined by stitching layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from restnet_runtime.routes import Part, route_name

from .cuts import CutAnchor
from .rules import LayerPlan
from .stitching import StitchingLayer


@dataclass(frozen=True)
class StitchedRoute:
    """A route in torch. An anchor is a route of one part and no layer.

    parts:   one part, or several joined by `layers`
    layers:  names of the stitching layers between them, one fewer than parts
    """

    name: str
    parts: tuple[Part, ...]
    layers: tuple[str, ...] = ()

    def module(self, anchors: Mapping[str, CutAnchor], layers: Mapping[str, StitchingLayer]) -> nn.Sequential:
        """The network itself: (B, C, H, W) -> (B, classes). It shares its parameters with the anchors and the layers."""
        steps: list[nn.Module] = []
        for part, layer in zip(self.parts, (*self.layers, None), strict=True):
            steps.extend(anchors[part.anchor].blocks[part.first : part.last + 1])
            if layer is not None:
                steps.append(layers[layer])
        return nn.Sequential(*steps)

    def segments(self) -> tuple[str, ...]:
        """Names of its segments in order."""
        names: list[str] = []
        for part, layer in zip(self.parts, (*self.layers, None), strict=True):
            names.extend(block_name(part.anchor, block) for block in range(part.first, part.last + 1))
            if layer is not None:
                names.append(layer)
        return tuple(names)


def block_name(anchor: str, block: int) -> str:
    """The segment name of a block: `deit-ti.3`."""
    return f"{anchor}.{block}"


def routes_of(anchors: Mapping[str, CutAnchor], plans: Sequence[LayerPlan]) -> list[StitchedRoute]:
    """The anchors, then every pair of every plan."""
    blocks = {name: len(anchor.blocks) for name, anchor in anchors.items()}
    parts: list[tuple[tuple[Part, ...], tuple[str, ...]]] = [((Part(name, 0, count - 1),), ()) for name, count in blocks.items()]
    for plan in plans:
        parts += [((Part(plan.front, 0, j), Part(plan.end, k, blocks[plan.end] - 1)), (plan.name,)) for j, k in plan.pairs]
    return [StitchedRoute(route_name(part, blocks), part, layers) for part, layers in parts]


def joined_cuts(routes: Sequence[StitchedRoute]) -> dict[tuple[str, str], set[tuple[int, int]]]:
    """Where the routes cross: (cut of the front, cut of the end) by (front, end)."""
    found: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for route in routes:
        for front, end in pairwise(route.parts):
            found.setdefault((front.anchor, end.anchor), set()).add((front.last, end.first - 1))
    return found
