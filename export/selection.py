"""Which routes are worth making, and which keeping, when there may not be all of them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from restnet_runtime.routes import pareto_front

from .routes import StitchedRoute

STRETCHES = 4
"""Of the gap between two anchors. More of them make routes that promise little, only because no other costs the same."""


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

    kept = [index for index, route in enumerate(routes) if not route.layers]
    weak = [any(macs[a] <= macs[index] and accuracies[a] > accuracies[index] for a in kept) for index in range(len(routes))]
    low, high = min(macs), max(macs)
    left = {index: lost(index) for index in range(len(routes)) if index not in kept}
    while left and len(kept) < limit:
        there = Counter(stretch(index) for index in kept)
        best = min(left, key=lambda index: (weak[index], not front[index], there[stretch(index)], left[index], macs[index]))
        del left[best]
        kept.append(best)
    return [routes[index] for index in sorted(kept)]


def spread(costs: Sequence[int], promises: Sequence[float], anchors: Sequence[int], count: int) -> list[int]:
    """Which `count` stitched routes to make, told before any is: indices, ascending.

    Each gap between the costs of neighbouring anchors is cut into `STRETCHES` equal stretches, and in turn a stretch with the fewest chosen
    gets its most promising route; of equals the cheaper. Routes that cost less than every anchor or more than every anchor, which skip
    blocks or repeat them, come last.
    anchors: their costs.
    """
    ordered = sorted(anchors)
    edges = [low + (high - low) * step / STRETCHES for low, high in pairwise(ordered) for step in range(STRETCHES)]
    taken: Counter[int] = Counter()
    turns: list[tuple[bool, int, int, int]] = []
    for rank, index in enumerate(sorted(range(len(costs)), key=lambda index: (-promises[index], costs[index]))):
        stretch = bisect_right(edges, costs[index])
        outside = not ordered[0] <= costs[index] <= ordered[-1]
        turns.append((outside, taken[stretch], rank, index))
        if not outside:
            taken[stretch] += 1
    return sorted(index for *_, index in sorted(turns)[:count])
