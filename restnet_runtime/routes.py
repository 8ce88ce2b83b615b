"""Routes: what they are made of, what they cost, and which of them are worth having."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from restnet_runtime.manifest import Precision


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
    on_front:      no other route is as cheap in MACs and more accurate
    """

    name: str
    segments: tuple[str, ...]
    precisions: tuple[Precision, ...]
    macs: int
    params: int
    weight_bytes: int
    accuracy: float | None
    on_front: bool


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
