"""The ladder: the routes that could serve, the best first, with what each needs of a limit laid out for quick comparison."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from restnet_runtime.profile import RouteProfile
from restnet_runtime.routes import Route

KEPT, UNKNOWN, BROKEN = 0, 1, 2
"""Of a limit, by a route."""

_WORTH = 0.02
"""Of the accuracy between the worst and the best route."""


@dataclass(frozen=True)
class Candidate:
    """A route that could serve, and what it costs on this device (`None`: not profiled)."""

    route: Route
    profile: RouteProfile | None


class Rung(NamedTuple):
    """One candidate. Without a profile latency and memory are infinite: they fit no limit.

    merit:  the place in the order of merit, 0 is the best; equals share one
    """

    name: str
    macs: int
    latency_ms: float
    memory_bytes: float
    accuracy: float | None
    profiled: bool
    merit: int
    candidate: Candidate


class Bounds(NamedTuple):
    """The most that a route's constants may be; infinite is no limit.

    unprofiled: memory taken for a route without profile: infinite under a memory budget, else what the process has now
    """

    macs: float
    latency_ms: float
    memory_bytes: float
    unprofiled: float

    def hold(self, rung: Rung) -> bool:
        """Does it keep all of them?"""
        memory = rung.memory_bytes if rung.profiled else self.unprofiled
        return rung.macs <= self.macs and rung.latency_ms <= self.latency_ms and memory <= self.memory_bytes

    def judge(self, rung: Rung) -> tuple[int, int]:
        """(hard, soft): 0 kept, 1 unknown, 2 broken. They sort by what to prefer."""
        if rung.profiled:
            hard = KEPT if rung.memory_bytes <= self.memory_bytes else BROKEN
            latency = KEPT if rung.latency_ms <= self.latency_ms else BROKEN
        else:
            known = self.unprofiled < math.inf or self.memory_bytes == math.inf
            hard = UNKNOWN if not known else KEPT if self.unprofiled <= self.memory_bytes else BROKEN
            latency = KEPT if self.latency_ms == math.inf else UNKNOWN
        return hard, latency if rung.macs <= self.macs else BROKEN


class Ladder:
    """Candidates in the order of merit. Made once for many decisions: it does not change."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        ordered = sorted(candidates, key=merit, reverse=True)
        rungs, place, last = [], 0, None
        for index, candidate in enumerate(ordered):
            worth, profile = merit(candidate), candidate.profile
            if worth != last:
                place, last = index, worth
            latency, memory = (math.inf, math.inf) if profile is None else (profile.latency_ms, float(profile.memory_bytes))
            route = candidate.route
            rungs.append(Rung(route.name, route.macs, latency, memory, route.accuracy, profile is not None, place, candidate))
        self.rungs: tuple[Rung, ...] = tuple(rungs)
        sizes = [rung.memory_bytes for rung in rungs if rung.profiled]
        self.spread_bytes = max(sizes) - min(sizes) if sizes else 0.0
        self.quickest_ms = min((rung.latency_ms for rung in rungs if rung.profiled), default=0.0)
        self._needs = tuple((rung.macs, rung.latency_ms, rung.memory_bytes) for rung in rungs)
        self._most = tuple(max(needs, default=0.0) for needs in zip(*self._needs, strict=True)) or (0.0, 0.0, 0.0)
        self._losses = [-rung.accuracy for rung in rungs if rung.accuracy is not None]  # ascending: the best come first
        self._profiled = all(rung.profiled for rung in rungs)
        self.cheapest: tuple[int, ...] = tuple(sorted(range(len(rungs)), key=lambda place: by_cost(rungs[place])))
        """Places of the rungs, the cheapest first."""
        self._named = {rung.name: rung for rung in reversed(rungs)}

    @classmethod
    def of(cls, candidates: "Sequence[Candidate] | Ladder") -> "Ladder":
        return candidates if isinstance(candidates, Ladder) else cls(candidates)

    def find(self, name: str | None) -> Rung | None:
        return None if name is None else self._named.get(name)

    def without(self, name: str) -> "Ladder":
        """The same but for one route."""
        return Ladder(rung.candidate for rung in self.rungs if rung.name != name)

    def above(self, accuracy: float | None) -> int:
        """How many rungs, the best, are at least so accurate; `None` is no floor."""
        if accuracy is None:
            return len(self.rungs)
        return bisect_right(self._losses, -accuracy)

    def worth(self, current: Rung, other: Rung) -> bool:
        """Does the other one win so much accuracy that a switch which noise may undo is worth it? Yes where it is not known."""
        if current.accuracy is None or other.accuracy is None:
            return True
        return other.accuracy - current.accuracy >= _WORTH * (self._losses[-1] - self._losses[0])

    def holding(self, bounds: Bounds, count: int) -> list[Rung]:
        """Of the best `count` rungs those that keep all bounds, the best first."""
        if not self._profiled:
            return [rung for rung in self.rungs[:count] if bounds.hold(rung)]
        found, (macs, latency_ms, memory_bytes) = list(self.rungs[:count]), self._most
        if bounds.latency_ms < latency_ms:
            found = [rung for rung in found if rung.latency_ms <= bounds.latency_ms]
        if bounds.memory_bytes < memory_bytes:
            found = [rung for rung in found if rung.memory_bytes <= bounds.memory_bytes]
        if bounds.macs < macs:
            found = [rung for rung in found if rung.macs <= bounds.macs]
        return found

    def first(self, bounds: Bounds, count: int) -> Rung | None:
        """The best of the best `count` rungs that keeps all bounds."""
        found = self.holding(bounds, count)
        return found[0] if found else None

    def judged(self, bounds: Bounds, count: int) -> list[tuple[int, int]]:
        """(hard, soft) of the best `count` rungs: 0 kept, 1 unknown, 2 broken. They sort by what to prefer."""
        if not self._profiled:
            return [bounds.judge(rung) for rung in self.rungs[:count]]
        most_macs, most_ms, most_bytes, _ = bounds
        return [
            (0 if memory_bytes <= most_bytes else 2, 0 if macs <= most_macs and latency_ms <= most_ms else 2)
            for macs, latency_ms, memory_bytes in self._needs[:count]
        ]

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)

    def __len__(self) -> int:
        return len(self.rungs)


def merit(candidate: Candidate) -> tuple[float, ...]:
    """Higher is better: accuracy, or macs where it was not measured, then below every measured route; of equals the cheaper."""
    route, profile = candidate.route, candidate.profile
    latency, memory = (math.inf, math.inf) if profile is None else (profile.latency_ms, float(profile.memory_bytes))
    return (route.accuracy is not None, route.macs if route.accuracy is None else route.accuracy, -route.macs, -latency, -memory)


def by_cost(rung: Rung) -> tuple[float, float, float]:
    """Fewest macs first."""
    return rung.macs, rung.latency_ms, rung.memory_bytes


def by_memory(rung: Rung) -> tuple[float, float, float]:
    """Least memory first."""
    return rung.memory_bytes, rung.macs, rung.latency_ms
