"""What is stitched: the routes of a rule, and where only some of many are wanted, those that promise most."""

from collections.abc import Mapping
from functools import cache

from restnet_runtime.errors import RuleError

from .costs import count_macs
from .cuts import CutAnchor
from .layouts import Layout
from .plans import AnchorShape, RoutePlan, split_shared
from .rules import Promise, Rule, promise_between
from .selection import spread
from .stitching import StitchingLayer

MOST_ROUTES = 1000
"""More stitched routes than this are made only where a limit asks for fewer: each layer is fitted, each route scored and written."""
CANDIDATES = 2
"""So many routes are made for each that is kept, so that their scores have something to choose from."""


def plan_routes(
    rule: Rule, anchors: Mapping[str, CutAnchor], promise: Promise, limit: int | None = None, candidates: int = CANDIDATES, kernel: int = 1
) -> RoutePlan:
    """The rule's plan; with a limit on all routes, the anchors among them, `candidates` times the stitched ones that it leaves room for.

    promise: what a stitch of two cuts promises, 0 at best and lower the worse, for every two anchors that the rule joins. What is left
    out is neither fitted nor tuned nor scored. kernel: of the stitching layers.
    Raises `RuleError` where the rule does not apply, and for more than `MOST_ROUTES` stitched routes without a limit.
    """
    shapes = {name: AnchorShape(name, anchor.stages) for name, anchor in anchors.items()}
    plan = rule.plan(list(shapes.values()), promise)
    if limit is not None:
        wanted = candidates * max(1, limit - len(anchors))
        if wanted < len(plan.routes):
            whole = [sum(block_macs(anchor)) for anchor in anchors.values()]
            kept = spread(route_macs(plan, anchors, kernel), route_promises(plan, shapes, promise), whole, wanted)
            plan = plan.only([plan.routes[index] for index in kept])
    if len(plan.routes) > MOST_ROUTES:
        raise RuleError(
            f"{len(plan.routes)} stitched routes between {', '.join(anchors)} are more than the {MOST_ROUTES} that are made:"
            " ask for the most promising with --max-routes N"
        )
    return split_shared(plan, {name: anchor.layouts for name, anchor in anchors.items()})


def route_promises(plan: RoutePlan, shapes: Mapping[str, AnchorShape], promise: Promise) -> list[float]:
    """Of each route: what its crossings promise, added up."""
    between = {
        ends: promise_between(promise, shapes[ends[0]], shapes[ends[1]])
        for ends in {(crossing.front, crossing.end) for route in plan.routes for crossing in route}
    }
    return [float(sum(between[c.front, c.end][c.j, c.k - 1] for c in route)) for route in plan.routes]


def route_macs(plan: RoutePlan, anchors: Mapping[str, CutAnchor], kernel: int = 1) -> list[int]:
    """Of each route: multiply-accumulates for one input, its stitching layers among them. Nothing needs to be fitted."""
    blocks = {name: block_macs(anchor) for name, anchor in anchors.items()}

    @cache
    def layer_macs(source: Layout, target: Layout) -> int:
        return count_macs(StitchingLayer(source, target, kernel=kernel), source.shape)

    costs = []
    for route in plan.routes:
        total, first = 0, 0
        for c in route:
            total += sum(blocks[c.front][first : c.j + 1])
            total += layer_macs(anchors[c.front].layouts[c.j], anchors[c.end].layouts[c.k - 1])
            first = c.k
        costs.append(total + sum(blocks[route[-1].end][first:]))
    return costs


def family_macs(plan: RoutePlan, anchors: Mapping[str, CutAnchor], kernel: int = 1) -> list[int]:
    """Of the anchors, then of each route: in the order of `routes_of`."""
    return [*(sum(block_macs(anchor)) for anchor in anchors.values()), *route_macs(plan, anchors, kernel)]


def block_macs(anchor: CutAnchor) -> list[int]:
    """Of each block: multiply-accumulates for one input."""
    shapes = (anchor.input_shape, *(cut.shape for cut in anchor.cuts))
    return [count_macs(block, shape) for block, shape in zip(anchor.blocks, shapes, strict=True)]
