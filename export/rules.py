"""Stitching rules: which block of one anchor may follow which block of another, and which pairs share a stitching layer.

Block numbers are ours: 0 is the stem, 1..d the blocks, d+1 the head. A pair (j, k) keeps the front's blocks 0..j and the
end's blocks k.., and its stitching layer carries cut j of the front to cut k-1 of the end. SN-Net's block i is our i+1.
Anchors are given small to large; only neighbours in that order are joined.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

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


def sn_net(anchors: Sequence[AnchorShape], kernel: int = 2, stride: int = 1, stages: Sequence[int] | None = None) -> list[LayerPlan]:
    """Small front, large end, in sliding windows (Pan et al., Stitchable Neural Networks, CVPR 2023).

    A single stage of equal depth takes every pair of a window, backward ones too; several stages are windowed one by one and
    take only pairs that go forward. Pairs that are new in a window share a layer. Unequal depths, in one stage or in several,
    use the unpaired rule: block floor(i*d1/d2) of the front is followed by block i of the end for every i > 0, one layer per
    front block. For d1 < d2 that is the paper's condition floor(i*d1/d2) < i; d1 > d2, which it leaves open, goes the same way.

    stages: which stages to stitch, counted from 0; by default the only one, or all but the last. The published ResNets use (1, 2).
    Raises `RuleError` for anchors whose numbers of stages differ, for settings out of range, and when two neighbours share no pair.
    """
    if kernel < 1 or stride < 1:
        raise RuleError(f"sn-net: kernel {kernel} and stride {stride} must be at least 1")
    plans = []
    for front, end in _neighbours(anchors, "sn-net"):
        count = len(front.stages)
        if count != len(end.stages):
            raise RuleError(
                f"sn-net: {front.name} has {count} stages and {end.name} {len(end.stages)}:"
                " it joins equal numbers only, the rule restnet joins any"
            )
        chosen = range(max(1, count - 1)) if stages is None else stages
        if not all(0 <= stage < count for stage in chosen) or len(set(chosen)) != len(chosen):
            raise RuleError(f"sn-net: stages {tuple(chosen)} must be different and from 0..{count - 1}, the stages of {front.name}")
        found = []
        for stage in chosen:
            d1, d2 = front.stages[stage], end.stages[stage]
            groups = _paired(d1, kernel, stride, forward_only=count > 1) if d1 == d2 else _unpaired(d1, d2)
            before1, before2 = sum(front.stages[:stage]), sum(end.stages[:stage])
            found += [_plan(front, end, [(before1 + j + 1, before2 + k + 1) for j, k in group]) for group in groups]
        if not found:
            raise RuleError(
                f"sn-net: no pair between {front.name} {front.stages} and {end.name} {end.stages}"
                f" in stages {tuple(chosen)} with kernel {kernel} and stride {stride}"
            )
        plans += found
    return plans


def restnet(anchors: Sequence[AnchorShape], similarity: Mapping[tuple[str, str], ArrayLike]) -> list[LayerPlan]:
    """Early blocks of the larger anchor, late blocks of the smaller, joined where their features are most alike (ReStNet).

    similarity: for each (larger, smaller) pair of neighbours an array [cut of the larger, cut of the smaller] of shape
    (d_large + 1, d_small + 1); higher is more alike, a NaN is never chosen.

    Each early part of the larger takes the most similar late part of the smaller and the other way round; each pair found, once,
    is a layer of its own. A part is proper: it keeps at least one block besides stem and head and leaves at least one out, so
    1 <= j < d_large and 2 <= k <= d_small. Otherwise a pair would be an anchor with a foreign stem or head, or run all blocks
    of one anchor and some more.
    Raises `RuleError` for a missing or wrongly shaped similarity, for one without a number, and for anchors of fewer than two blocks.
    """
    plans = []
    for small, large in _neighbours(anchors, "restnet"):
        if (large.name, small.name) not in similarity:
            raise RuleError(f"restnet: no similarity between {large.name} and {small.name}; there are {sorted(similarity)}")
        alike = np.asarray(similarity[large.name, small.name], dtype=np.float64)
        expected = (large.depth + 1, small.depth + 1)
        if alike.shape != expected:
            raise RuleError(f"restnet: similarity of {large.name} and {small.name} has shape {alike.shape}, not {expected}")
        if min(large.depth, small.depth) < 2:
            raise RuleError(
                f"restnet: {large.name} has {large.depth} and {small.name} {small.depth} blocks besides stem and head: both need 2"
            )
        # Row r is j = r + 1; column c is cut c + 1 of the smaller, the output of block k - 1, so k = c + 2.
        inner = np.nan_to_num(alike[1 : large.depth, 1 : small.depth], nan=-np.inf, neginf=-np.inf)
        if not np.isfinite(inner).any():
            raise RuleError(f"restnet: similarity of {large.name} and {small.name} holds no number between proper parts")
        found = {(row, int(inner[row].argmax())) for row in range(inner.shape[0])}
        found |= {(int(inner[:, column].argmax()), column) for column in range(inner.shape[1])}
        plans += [_plan(large, small, [(r + 1, c + 2)]) for r, c in sorted(found) if np.isfinite(inner[r, c])]
    return plans


def split_shared(plans: Sequence[LayerPlan], layouts: Mapping[str, Sequence[Hashable]]) -> list[LayerPlan]:
    """Give pairs of different layouts layers of their own: one affine map cannot serve two shapes.

    layouts: for each anchor the layout of every cut. Pairs of one plan that agree on both layouts stay together; order is kept.
    """
    split = []
    for plan in plans:
        groups: dict[tuple[Hashable, Hashable], list[Pair]] = {}
        for j, k in plan.pairs:
            groups.setdefault((layouts[plan.front][j], layouts[plan.end][k - 1]), []).append((j, k))
        for pairs in groups.values():
            split.append(replace(plan, name=_name(plan.front, plan.end, pairs[0]), pairs=tuple(pairs)))
    return split


def _neighbours(anchors: Sequence[AnchorShape], rule: str) -> Iterator[tuple[AnchorShape, AnchorShape]]:
    """Neighbours in size, smaller first, after checking what every rule needs."""
    names = [anchor.name for anchor in anchors]
    if len(anchors) < 2 or len(set(names)) < len(names):
        raise RuleError(f"{rule}: anchors {names}: at least two are needed, with different names")
    for anchor in anchors:
        if not anchor.stages or min(anchor.stages) < 1:
            raise RuleError(f"{rule}: {anchor.name} has stages {anchor.stages}: each needs at least one block")
    return pairwise(anchors)


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


def _plan(front: AnchorShape, end: AnchorShape, pairs: list[Pair]) -> LayerPlan:
    return LayerPlan(_name(front.name, end.name, pairs[0]), front.name, end.name, tuple(pairs))


def _name(front: str, end: str, pair: Pair) -> str:
    name = f"{front}.{pair[0]}~{end}.{pair[1]}"
    if len(name) > _NAME_CHARACTERS:
        raise RuleError(f"layer name {name!r} is longer than {_NAME_CHARACTERS} characters: give the anchors shorter names (NAME=SPEC)")
    return name
