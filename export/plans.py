"""Plans: which stitched routes there are by the cuts at which they cross, and which crossings share a stitching layer.

Block numbers are ours: 0 is the stem, 1..d the blocks, d+1 the head. A pair (j, k) keeps the front's blocks 0..j and the
end's blocks k.., and its stitching layer carries cut j of the front to cut k-1 of the end. SN-Net's block i is our i+1.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from restnet_runtime.errors import RuleError

Pair = tuple[int, int]
_NAME_CHARACTERS = 100  # what manifest.Name allows


@dataclass(frozen=True)
class AnchorShape:
    """What a rule knows of an anchor: its name and its number of blocks per stage, stem and head left out."""

    name: str
    stages: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of blocks, stem and head left out."""
        return sum(self.stages)


@dataclass(frozen=True)
class LayerPlan:
    """One stitching layer and the pairs that share it; named after the first of them."""

    name: str
    front: str
    end: str
    pairs: tuple[Pair, ...]


class Crossing(NamedTuple):
    """From cut j of one anchor to block k of another; its layer is the one that has the pair (j, k)."""

    front: str
    end: str
    j: int
    k: int


Crossings = tuple[Crossing, ...]
"""Of one route, in order; the end of each is the front of the next."""


@dataclass(frozen=True)
class RoutePlan:
    """What a rule decides: the stitched routes by their crossings, and the layers, each crossing's pair in exactly one of them."""

    layers: tuple[LayerPlan, ...]
    routes: tuple[Crossings, ...]

    def layer_of(self) -> dict[Crossing, str]:
        """The name of each crossing's layer."""
        return {Crossing(layer.front, layer.end, *pair): layer.name for layer in self.layers for pair in layer.pairs}

    def only(self, routes: Sequence[Crossings]) -> "RoutePlan":
        """The plan of some of its routes: pairs and layers that none of them needs are left out."""
        used = {crossing for route in routes for crossing in route}
        layers = []
        for layer in self.layers:
            pairs = tuple(pair for pair in layer.pairs if Crossing(layer.front, layer.end, *pair) in used)
            if pairs:
                layers.append(replace(layer, name=layer_name(layer.front, layer.end, pairs[0]), pairs=pairs))
        return RoutePlan(tuple(layers), tuple(routes))


def split_shared(plan: RoutePlan, layouts: Mapping[str, Sequence[Hashable]]) -> RoutePlan:
    """Give pairs of different layouts layers of their own: one affine map cannot serve two shapes.

    layouts: for each anchor the layout of every cut. Pairs of one layer that agree on both layouts stay together; order is kept.
    """
    split = []
    for layer in plan.layers:
        groups: dict[tuple[Hashable, Hashable], list[Pair]] = {}
        for j, k in layer.pairs:
            groups.setdefault((layouts[layer.front][j], layouts[layer.end][k - 1]), []).append((j, k))
        for pairs in groups.values():
            split.append(replace(layer, name=layer_name(layer.front, layer.end, pairs[0]), pairs=tuple(pairs)))
    return RoutePlan(tuple(split), plan.routes)


def crossed_once(layers: Sequence[LayerPlan]) -> RoutePlan:
    """A route for each pair of each layer, crossing there alone."""
    return RoutePlan(tuple(layers), tuple((Crossing(layer.front, layer.end, *pair),) for layer in layers for pair in layer.pairs))


def layer_name(front: str, end: str, pair: Pair) -> str:
    """What a layer is called whose first pair is `pair`: `deit-ti.3~deit-s.4`. Raises `RuleError` where a bundle takes no such name."""
    name = f"{front}.{pair[0]}~{end}.{pair[1]}"
    if len(name) > _NAME_CHARACTERS:
        raise RuleError(f"layer name {name!r} is longer than {_NAME_CHARACTERS} characters: give the anchors shorter names (NAME=SPEC)")
    return name
