"""What segments cost and what routes score."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from restnet_runtime.routes import Part, pareto_front

from .activations import cut_activations
from .cuts import CutAnchor
from .stitching import StitchingLayer


@dataclass(frozen=True)
class StitchedRoute:
    """A route in torch. An anchor is a route of one part and no layer.

    parts:   one part, or two joined by `layer`
    layer:   name of the stitching layer between them
    """

    name: str
    parts: tuple[Part, ...]
    layer: str | None

    def module(self, anchors: Mapping[str, CutAnchor], layers: Mapping[str, StitchingLayer]) -> nn.Sequential:
        """The network itself: (B, C, H, W) -> (B, classes). It shares its parameters with the anchors and the layer."""
        steps: list[nn.Module] = []
        for index, part in enumerate(self.parts):
            if index and self.layer is not None:
                steps.append(layers[self.layer])
            steps.extend(anchors[part.anchor].blocks[part.first : part.last + 1])
        return nn.Sequential(*steps)

    def segments(self) -> tuple[str, ...]:
        """Names of its segments in order."""
        names: list[str] = []
        for index, part in enumerate(self.parts):
            if index and self.layer is not None:
                names.append(self.layer)
            names.extend(block_name(part.anchor, block) for block in range(part.first, part.last + 1))
        return tuple(names)


def block_name(anchor: str, block: int) -> str:
    """The segment name of a block: `deit-ti.3`."""
    return f"{anchor}.{block}"


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention for one input, by torch's own FLOP counter."""
    # The counter does not know the fused attention of the CPU; MATH is the same as two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *input_shape))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-accumulate as two


def count_params(module: nn.Module) -> int:
    """Trained numbers of a module, each once."""
    return sum(parameter.numel() for parameter in module.parameters())


def score_routes(
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[float]:
    """Top-1 accuracy (0..1) of each route. The early blocks of an anchor run once per batch for all routes that begin with them."""
    correct = [0] * len(routes)
    total = 0
    modules = [route.module(anchors, layers) for route in routes]
    with torch.no_grad():
        for images, labels in batches:
            total += len(labels)
            known = {name: cut_activations(anchor, images) for name, anchor in anchors.items()}
            for index, route in enumerate(routes):
                x = _after_front(route, known)
                logits = modules[index][_front_steps(route) :](x)
                correct[index] += int((logits.argmax(1) == labels).sum())
    return [count / total for count in correct] if total else [math.nan] * len(routes)


def _front_steps(route: StitchedRoute) -> int:
    """How many steps of the route's first part end at a cut that is already known."""
    first = route.parts[0]
    return first.last + 1 if len(route.parts) > 1 else first.last


def _after_front(route: StitchedRoute, known: Mapping[str, Sequence[Tensor]]) -> Tensor:
    first = route.parts[0]
    return known[first.anchor][_front_steps(route) - 1]


def most_promising(
    routes: Sequence[StitchedRoute], macs: Sequence[int], accuracies: Sequence[float], limit: int | None
) -> list[StitchedRoute]:
    """The anchors and the stitched routes that are worth keeping, at most `limit` in all, in the order given.

    The Pareto front comes first, and what is less accurate than an anchor that costs less comes last. Within each of these the range of
    costs is filled evenly: it is cut into `limit` equal stretches, and in turn a stretch with the fewest kept routes gets the route that
    loses least accuracy against the best one that is at most as dear. Routes that lose least may lie side by side, and budgets do not.
    """
    if limit is None or len(routes) <= limit:
        return list(routes)
    front = pareto_front(zip(macs, accuracies, strict=True))

    def lost(index: int) -> float:
        best = max(accuracy for cost, accuracy in zip(macs, accuracies, strict=True) if cost <= macs[index])
        return best - accuracies[index]

    def stretch(index: int) -> int:
        return min((macs[index] - low) * limit // max(high - low, 1), limit - 1)

    kept = [index for index, route in enumerate(routes) if route.layer is None]
    weak = [any(macs[a] <= macs[index] and accuracies[a] > accuracies[index] for a in kept) for index in range(len(routes))]
    low, high = min(macs), max(macs)
    left = {index: lost(index) for index in range(len(routes)) if index not in kept}
    while left and len(kept) < limit:
        there = Counter(stretch(index) for index in kept)
        best = min(left, key=lambda index: (weak[index], not front[index], there[stretch(index)], left[index], macs[index]))
        del left[best]
        kept.append(best)
    return [routes[index] for index in sorted(kept)]
