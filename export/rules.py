"""Stitching rules: which routes there are through blocks of several anchors, given small to large."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, pairwise, permutations
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from restnet_runtime.errors import RuleError

from .plans import AnchorShape, Crossing, Crossings, LayerPlan, Pair, RoutePlan, crossed_once, layer_name

Promise = Mapping[tuple[str, str], ArrayLike]
"""[cut of the first, cut of the second] by a pair of anchors in either order; higher promises a better stitch."""


class Rule(Protocol):
    """A rule with its options, which are its fields."""

    @property
    def nearest(self) -> bool:
        """Only neighbours in size are joined, not any two anchors."""

    def plan(self, anchors: Sequence[AnchorShape], promise: Promise, /) -> RoutePlan:
        """The layers and the routes through them. Raises `RuleError` where the rule does not apply to these anchors."""


@dataclass(frozen=True)
class SnNet:
    """Small front, large end, in sliding windows (Pan et al., Stitchable Neural Networks, CVPR 2023).

    A single stage of equal depth takes every pair of a window, backward ones too; several stages are windowed one by one and
    take only pairs that go forward. Pairs that are new in a window share a layer. Unequal depths, in one stage or in several,
    use the unpaired rule: block floor(i*d1/d2) of the front is followed by block i of the end for every i > 0, one layer per
    front block. For d1 < d2 that is the paper's condition floor(i*d1/d2) < i; d1 > d2, which it leaves open, goes the same way.

    kernel, stride: blocks in a window, step between windows
    stages:  which to stitch, counted from 0; by default the only one, or all but the last. The published ResNets use (1, 2)
    nearest: join only neighbours in size, not any two anchors
    """

    kernel: int = 2
    stride: int = 1
    stages: tuple[int, ...] | None = None
    nearest: bool = True

    def plan(self, anchors: Sequence[AnchorShape], _promise: Promise, /) -> RoutePlan:
        """Raises `RuleError` for anchors whose numbers of stages differ, for settings out of range, and when two share no pair."""
        if self.kernel < 1 or self.stride < 1:
            raise RuleError(f"sn-net: kernel {self.kernel} and stride {self.stride} must be at least 1")
        return crossed_once([layer for front, end in _joined(anchors, "sn-net", self.nearest) for layer in self._layers(front, end)])

    def _layers(self, front: AnchorShape, end: AnchorShape) -> list[LayerPlan]:
        count = len(front.stages)
        if count != len(end.stages):
            raise RuleError(
                f"sn-net: {front.name} has {count} stages and {end.name} {len(end.stages)}:"
                " it joins equal numbers only, the other rules join any"
            )
        chosen = range(max(1, count - 1)) if self.stages is None else self.stages
        if not all(0 <= stage < count for stage in chosen) or len(set(chosen)) != len(chosen):
            raise RuleError(f"sn-net: stages {tuple(chosen)} must be different and from 0..{count - 1}, the stages of {front.name}")
        found = []
        for stage in chosen:
            d1, d2 = front.stages[stage], end.stages[stage]
            groups = _paired(d1, self.kernel, self.stride, forward_only=count > 1) if d1 == d2 else _unpaired(d1, d2)
            before1, before2 = sum(front.stages[:stage]), sum(end.stages[:stage])
            found += [_layer(front, end, [(before1 + j + 1, before2 + k + 1) for j, k in group]) for group in groups]
        if not found:
            raise RuleError(
                f"sn-net: no pair between {front.name} {front.stages} and {end.name} {end.stages}"
                f" in stages {tuple(chosen)} with kernel {self.kernel} and stride {self.stride}"
            )
        return found


@dataclass(frozen=True)
class ReStNet:
    """Early blocks of the larger anchor, late blocks of the smaller, joined where the promise is highest (ReStNet).

    Each early part of the larger takes the most promising late part of the smaller and the other way round; each pair found, once,
    is a layer of its own. Parts are proper: they keep at least one block besides stem and head and leave at least one out.

    nearest: join only neighbours in size, not any two anchors
    ends:    each part takes so many of the most promising, not one as in the paper
    """

    nearest: bool = True
    ends: int = 1

    def plan(self, anchors: Sequence[AnchorShape], promise: Promise, /) -> RoutePlan:
        """Raises `RuleError` for a missing or wrongly shaped promise, one without a number, anchors of fewer than two blocks, no ends."""
        if self.ends < 1:
            raise RuleError(f"restnet: ends {self.ends} must be at least 1")
        layers = []
        for small, large in _joined(anchors, "restnet", self.nearest):
            _need_two_blocks(small, large, "restnet")
            alike = promise_between(promise, large, small)
            # Row r is j = r + 1; column c is cut c + 1 of the smaller, the output of block k - 1, so k = c + 2.
            inner = np.nan_to_num(alike[1 : large.depth, 1 : small.depth], nan=-np.inf, neginf=-np.inf)
            if not np.isfinite(inner).any():
                raise RuleError(f"restnet: what {large.name} and {small.name} promise holds no number between proper parts")
            of_row, of_column = (np.argsort(-inner, axis, kind="stable") for axis in (1, 0))  # of equals the earlier
            found = {(row, int(column)) for row, best in enumerate(of_row[:, : self.ends]) for column in best}
            found |= {(int(row), column) for column, best in enumerate(of_column[: self.ends].T) for row in best}
            layers += [_layer(large, small, [(r + 1, c + 2)]) for r, c in sorted(found) if np.isfinite(inner[r, c])]
        return crossed_once(layers)


@dataclass(frozen=True)
class BothWays:
    """Small to large, large to small, and there and back, where both have run the same share of their blocks (SN-Netv2).

    After Pan et al., "Stitched ViTs are Flexible Vision Foundation Models", ECCV 2024. Two anchors are matched after each block of the
    shallower one: of depths 12 and 24 its block i goes with block 2i. Equal numbers of stages are matched stage by stage. Every match is
    crossed upward, and every one but the last, where only a head would follow, downward. Routes that cross twice use the layers of those
    that cross once, a later match each time.

    nearest: join only neighbours in size, not any two anchors
    """

    nearest: bool = True

    def plan(self, anchors: Sequence[AnchorShape], _promise: Promise, /) -> RoutePlan:
        """Raises `RuleError` for anchors of fewer than two blocks."""
        layers: list[LayerPlan] = []
        routes: list[Crossings] = []
        for small, large in _joined(anchors, "both-ways", self.nearest):
            _need_two_blocks(small, large, "both-ways")
            matches = _matches(small, large)
            up = [Crossing(small.name, large.name, a, b + 1) for a, b in matches]
            down = [Crossing(large.name, small.name, b, a + 1) for a, b in matches[:-1]]
            layers += [_layer(small, large, [(c.j, c.k)]) for c in up] + [_layer(large, small, [(c.j, c.k)]) for c in down]
            routes += [(crossing,) for crossing in (*up, *down)]
            # The last match upward is left out of what goes on: after it there is nothing to come back from or to.
            routes += [(there, back) for first, there in enumerate(down) for back in up[first + 1 : -1]]
            routes += [(there, back) for first, there in enumerate(up) for back in down[first + 1 :]]
        return RoutePlan(tuple(layers), tuple(routes))


@dataclass(frozen=True)
class EveryPair:
    """Every early part of every anchor before every late part of every other, each pair with a layer of its own.

    An early part keeps a block besides the stem and leaves one out; a late part leaves one out and may be the head alone, which is what
    serves best behind the last blocks of a front. Other pairs would cost more than one of their anchors, or have a foreign stem.

    nearest: join only neighbours in size, not any two anchors
    """

    nearest: bool = False

    def plan(self, anchors: Sequence[AnchorShape], _promise: Promise, /) -> RoutePlan:
        """Raises `RuleError` for anchors of fewer than two blocks."""
        layers = []
        for small, large in _joined(anchors, "all", self.nearest):
            _need_two_blocks(small, large, "all")
            for front, end in permutations((small, large)):
                layers += [_layer(front, end, [(j, k)]) for j in range(1, front.depth) for k in range(2, end.depth + 2)]
        return crossed_once(layers)


RULES: dict[str, Callable[..., Rule]] = {"restnet": ReStNet, "sn-net": SnNet, "both-ways": BothWays, "all": EveryPair}


def make_rule(name: str, **options: object) -> Rule:
    """The rule of that name. Raises `RuleError` for a name or an option that there is not."""
    if name not in RULES:
        raise RuleError(f"rule {name!r} is not one of {', '.join(RULES)}")
    allowed = options_of(name)
    for option in options:
        if option not in allowed:
            raise RuleError(f"rule {name} has no option {option!r}; it has {', '.join(allowed)}")
    return RULES[name](**options)


def options_of(name: str) -> tuple[str, ...]:
    """The names of a rule's options."""
    kind: Any = RULES[name]
    return tuple(field.name for field in fields(kind))


def needs_promise(name: str) -> bool:
    """The promise decides which routes the rule has, not only which of them are made under a limit."""
    return name == "restnet"


def promise_between(promise: Promise, front: AnchorShape, end: AnchorShape) -> NDArray[np.float64]:
    """[cut of the front, cut of the end], float64 (d_front + 1, d_end + 1). Raises `RuleError` where it is missing or wrongly shaped."""
    if (front.name, end.name) in promise:
        found = np.asarray(promise[front.name, end.name], dtype=np.float64)
    elif (end.name, front.name) in promise:
        found = np.asarray(promise[end.name, front.name], dtype=np.float64).T
    else:
        raise RuleError(f"nothing says what stitches of {front.name} and {end.name} promise; there are {sorted(promise)}")
    expected = (front.depth + 1, end.depth + 1)
    if found.shape != expected:
        raise RuleError(f"what stitches of {front.name} and {end.name} promise has shape {found.shape}, not {expected}")
    return found


def _joined(anchors: Sequence[AnchorShape], rule: str, nearest: bool) -> Iterator[tuple[AnchorShape, AnchorShape]]:
    """Neighbours in size or any two, smaller first, after checking what every rule needs."""
    names = [anchor.name for anchor in anchors]
    if len(anchors) < 2 or len(set(names)) < len(names):
        raise RuleError(f"{rule}: anchors {names}: at least two are needed, with different names")
    for anchor in anchors:
        if not anchor.stages or min(anchor.stages) < 1:
            raise RuleError(f"{rule}: {anchor.name} has stages {anchor.stages}: each needs at least one block")
    return pairwise(anchors) if nearest else combinations(anchors, 2)


def _need_two_blocks(small: AnchorShape, large: AnchorShape, rule: str) -> None:
    if min(large.depth, small.depth) < 2:
        raise RuleError(f"{rule}: {large.name} has {large.depth} and {small.name} {small.depth} blocks besides stem and head: both need 2")


def _paired(depth: int, kernel: int, stride: int, forward_only: bool) -> list[list[Pair]]:
    """Pairs by window, each pair in the first window that holds it; windows that bring nothing new are left out."""
    seen: set[Pair] = set()
    groups = []
    for start in range(0, depth, stride):
        window = range(start, min(start + kernel, depth))
        new = [(j, k) for j in window for k in window if (j, k) not in seen and (j < k or not forward_only)]
        seen.update(new)
        groups.append(new)
    return [group for group in groups if group]


def _unpaired(front: int, end: int) -> list[list[Pair]]:
    """Pairs by front block: block floor(i * front / end) of the front before block i of the end, for i > 0."""
    groups: dict[int, list[Pair]] = {}
    for i in range(1, end):
        j = i * front // end
        groups.setdefault(j, []).append((j, i))
    return list(groups.values())


def _matches(small: AnchorShape, large: AnchorShape) -> list[tuple[int, int]]:
    """Cuts at which both have run the same share of a stage, or of all their blocks where the numbers of stages differ; ascending."""
    by_stage = len(small.stages) == len(large.stages)
    matches = []
    before1 = before2 = 0
    for d1, d2 in zip(small.stages, large.stages, strict=True) if by_stage else [(small.depth, large.depth)]:
        shallower = min(d1, d2)
        matches += [(before1 + step * d1 // shallower, before2 + step * d2 // shallower) for step in range(1, shallower + 1)]
        before1, before2 = before1 + d1, before2 + d2
    return matches


def _layer(front: AnchorShape, end: AnchorShape, pairs: list[Pair]) -> LayerPlan:
    return LayerPlan(layer_name(front.name, end.name, pairs[0]), front.name, end.name, tuple(pairs))
