"""The ladder: the routes that could serve, the best first, with what each needs of a limit laid out for quick comparison."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from restnet_runtime.profile import RouteProfile
from restnet_runtime.routes import Route


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
        self._named = {rung.name: rung for rung in reversed(rungs)}

    @classmethod
    def of(cls, candidates: "Sequence[Candidate] | Ladder") -> "Ladder":
        return candidates if isinstance(candidates, Ladder) else cls(candidates)

    def find(self, name: str | None) -> Rung | None:
        return None if name is None else self._named.get(name)

    def without(self, name: str) -> "Ladder":
        """The same but for one route."""
        return Ladder(rung.candidate for rung in self.rungs if rung.name != name)

    def above(self, accuracy: float | None) -> "Sequence[Rung]":
        """The rungs at least so accurate; `None` is no floor."""
        if accuracy is None:
            return self.rungs
        return [rung for rung in self.rungs if rung.accuracy is not None and rung.accuracy >= accuracy]

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
