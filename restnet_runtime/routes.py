"""Routes: what they are made of, what they cost, and which of them are worth having."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from restnet_runtime.manifest import Precision

LONGEST_NAME = 400
"""Characters of a route's name that a manifest takes."""


class Part(NamedTuple):
    """Blocks `first`..`last` (inclusive; 0 is the stem, the highest is the head) of one anchor."""

    anchor: str
    first: int
    last: int


@dataclass(frozen=True)
class Route:
    """One runnable network.

    segments:      segment names in the order in which they run
    precisions:    the precision of each segment, same length
    macs:          multiply-accumulates for one input
    params:        trained numbers of its segments, stitching layers included
    weight_bytes:  bytes of weights.bin that it reads
    accuracy:      top-1 on held-out data, 0..1; `None` when it was not measured
    on_front:      no other route of the same precision is as cheap in MACs and more accurate
    """

    name: str
    segments: tuple[str, ...]
    precisions: tuple[Precision, ...]
    macs: int
    params: int
    weight_bytes: int
    accuracy: float | None
    on_front: bool

    @property
    def precision(self) -> str:
        """`fp32`, `int8`, or `fp32+int8` for a mixed route."""
        return precision_of(self.precisions)


def precision_of(precisions: Iterable[Precision]) -> str:
    """What a route is called by the precisions of its segments: one alone, or all that there are, `fp32+int8`."""
    return "+".join(sorted(set(precisions)))


def in_precision(name: str, segments: Sequence[str], precisions: Sequence[Precision]) -> str:
    """Name of a route whose fp32 twin is called `name`: itself, `NAME@int8`, or `NAME@int8+fp32[SEGMENT+SEGMENT]`.

    In the brackets are the segments of the precision that fewer have; of equal numbers those in fp32. Where that is longer than a name may
    be, it is how many they are and eight digits that tell them apart.
    """
    kinds = sorted(set(precisions), key=lambda kind: (-sum(one == kind for one in precisions), kind == "fp32"))
    if len(kinds) == 1:
        return name if kinds[0] == "fp32" else f"{name}@{kinds[0]}"
    kept = {kind: [segment for segment, one in zip(segments, precisions, strict=True) if one == kind] for kind in kinds[1:]}
    whole = f"{name}@{kinds[0]}" + "".join(f"+{kind}[{'+'.join(named)}]" for kind, named in kept.items())
    if len(whole) <= LONGEST_NAME:
        return whole
    return f"{name}@{kinds[0]}" + "".join(
        f"+{kind}[{len(named)}-{hashlib.sha256('+'.join(named).encode()).hexdigest()[:8]}]" for kind, named in kept.items()
    )


def route_name(parts: Sequence[Part], blocks: dict[str, int]) -> str:
    """Name a route by what it is made of: `cnn-s` for a whole anchor, else `cnn-s[0-3]>cnn-l[4-9]`.

    blocks: how many blocks each anchor has, stem and head included.
    """
    if len(parts) == 1 and parts[0].first == 0 and parts[0].last == blocks[parts[0].anchor] - 1:
        return parts[0].anchor
    return ">".join(f"{part.anchor}[{part.first}-{part.last}]" for part in parts)


def largest_activations(segments: Iterable[int | None]) -> int | None:
    """Activation bytes of a route from those of its segments, which run one after another; `None` where one was not counted."""
    counted = list(segments)
    return max((size for size in counted if size is not None), default=None) if None not in counted else None


def fronts(points: Iterable[tuple[str, float, float | None]]) -> list[bool]:
    """For each (precision, cost, accuracy): is it on the front of its precision? Which precision is cheaper only a device can tell."""
    listed = list(points)
    flags = [False] * len(listed)
    for kind in {precision for precision, _, _ in listed}:
        indices = [index for index, (precision, _, _) in enumerate(listed) if precision == kind]
        for index, flag in zip(indices, pareto_front(listed[index][1:] for index in indices), strict=True):
            flags[index] = flag
    return flags


def pareto_front(points: Iterable[tuple[float, float | None]]) -> list[bool]:
    """For each (cost, accuracy): is it on the front, that is, beaten by no point that is at most as dear and at least as accurate?

    Of equal points the first is on the front. Points without accuracy are never on it, unless none has one: then all are.
    """
    listed = list(points)
    if all(accuracy is None for _, accuracy in listed):
        return [True] * len(listed)
    flags = [False] * len(listed)
    best = float("-inf")
    order = sorted(
        (index for index, (_, accuracy) in enumerate(listed) if accuracy is not None),
        key=lambda index: (listed[index][0], -(listed[index][1] or 0.0), index),
    )
    for index in order:
        accuracy = listed[index][1]
        if accuracy is not None and accuracy > best:
            flags[index], best = True, accuracy
    return flags
