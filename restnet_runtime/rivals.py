"""Who plays: the server's own controller, and what a user would do without it. All see the device once a second and the same requests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from restnet_runtime.budget import NO_LIMITS, Budget
from restnet_runtime.controller import Controller
from restnet_runtime.course import Course
from restnet_runtime.ladder import Candidate, Ladder
from restnet_runtime.policy import DEFAULTS, PolicySettings
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route
from restnet_runtime.slowdown import Slowdown

OURS = "restnet"
_PATIENCE = 5


class VirtualDevice:
    """An executor and sensors that a controller takes for real ones: routes with profiles, and the memory that a trace leaves."""

    def __init__(self, course: Course, candidates: Sequence[Candidate]) -> None:
        self._course = course
        self._routes = tuple(candidate.route for candidate in candidates)
        self._profiles = {candidate.route.name: candidate.profile for candidate in candidates}
        self.index = {route.name: place for place, route in enumerate(self._routes)}
        self.loaded = tuple(self.index)
        self.current: Route | None = None
        self.now_s = 0.0

    @property
    def bundle(self) -> "VirtualDevice":
        return self

    @property
    def routes(self) -> Sequence[Route]:
        return self._routes

    def profile(self, name: str) -> RouteProfile | None:
        return self._profiles.get(name)

    def switch(self, name: str) -> None:
        self.current = self._routes[self.index[name]]

    def read(self) -> Reading:
        """What this process takes is what its route takes; the rest of what the trace leaves is available."""
        available = self._course.moment(self.now_s).memory_available_bytes
        if available == math.inf:
            return Reading()
        profile = None if self.current is None else self._profiles[self.current.name]
        own = 0 if profile is None else profile.memory_bytes
        return Reading(memory_available_bytes=int(available) - own, own_memory_bytes=own)

    def clock(self) -> float:
        return self.now_s


class Ours:
    """`Controller` itself, as `restnet-serve` runs it, on a virtual device."""

    def __init__(self, course: Course, candidates: Sequence[Candidate], budget: Budget, settings: PolicySettings = DEFAULTS) -> None:
        self.name = OURS
        self._device = device = VirtualDevice(course, candidates)
        clock = device.clock
        self.controller = Controller(device, device, budget, settings=settings, clock=clock, wall=clock, cpu_s=None, log_length=4096)
        self.beat_s = self.controller.beat_s
        self._names = device.loaded

    def step(self, now_s: float) -> None:
        self._device.now_s = now_s
        self.controller.step()

    def arrive(self, now_s: float) -> None:
        self._device.now_s = now_s
        self.controller.arrive()

    def choose(self, now_s: float, waited_ms: float) -> int:
        self._device.now_s = now_s
        return self._device.index[self.controller.decide_request(NO_LIMITS, waited_ms).route]

    def observe(self, now_s: float, route: int, run_ms: float) -> None:
        self._device.now_s = now_s
        if self.controller.observe(self._names[route], run_ms):
            self.controller.react()

    @property
    def switched(self) -> int:
        """The first route is no switch."""
        return self.controller.status().switched - 1

    def free_s(self, now_s: float) -> float:
        return now_s


class _Rival:
    """One route until `step` says another."""

    name, beat_s, switched = "", math.inf, None

    def __init__(self, route: int) -> None:
        self.route = route

    def step(self, now_s: float) -> None: ...
    def arrive(self, now_s: float) -> None: ...
    def observe(self, _now_s: float, _route: int, _run_ms: float) -> None: ...
    def choose(self, _now_s: float, _waited_ms: float) -> int:
        return self.route

    def free_s(self, now_s: float) -> float:
        return now_s


class Always(_Rival):
    """One route whatever happens."""

    def __init__(self, name: str, route: int) -> None:
        super().__init__(route)
        self.name = name


class _Watching(_Rival):
    """Knows the slowdown as our controller does, and the memory that is left, once a second."""

    beat_s = 1.0

    def __init__(self, course: Course, candidates: Sequence[Candidate], route: int) -> None:
        super().__init__(route)
        self._course, self._slowdown, self._seen = course, Slowdown(), 1.0
        self._left_bytes = math.inf
        self._index = {candidate.route.name: place for place, candidate in enumerate(candidates)}
        self._ladder = Ladder(candidates)

    def step(self, now_s: float) -> None:
        self._seen = self._slowdown.tick() or self._seen
        self._left_bytes = self._course.moment(now_s).memory_available_bytes

    def observe(self, _now_s: float, route: int, run_ms: float) -> None:
        self._slowdown.observe(run_ms / self._course.fares[route].run_ms)

    def best(self, limit_ms: float) -> int:
        """The most accurate that is predicted to keep the limit, else the cheapest."""
        longest_ms = limit_ms / self._seen
        rungs = self._ladder.rungs
        fitting = (rung for rung in rungs if rung.latency_ms <= longest_ms and rung.memory_bytes <= self._left_bytes)
        chosen = next(fitting, None) or min(rungs, key=lambda rung: (rung.memory_bytes > self._left_bytes, rung.latency_ms))
        return self._index[chosen.name]


class NoHysteresis(_Watching):
    """Every second the most accurate route that is predicted to fit."""

    name = "no hysteresis"

    def step(self, now_s: float) -> None:
        super().step(now_s)
        self.route = self.best(self._course.limit_ms)


class Slack(_Watching):
    """As SlackFit of SuperServe (NSDI 2025): for each request the most accurate route that fits the time it has left.

    There the latencies are the profiled ones; here the observed slowdown is given to it too.
    """

    name = "slack"

    def choose(self, _now_s: float, waited_ms: float) -> int:
        return self.best(self._course.limit_ms - waited_ms)


class TwoAnchors(_Watching):
    """A small and a large network of which one is in memory: the other is loaded while requests wait.

    load_s: what that takes
    """

    name = "two anchors, reload"

    def __init__(self, course: Course, candidates: Sequence[Candidate], small: int, large: int, load_s: float) -> None:
        super().__init__(course, candidates, large)
        self._small, self._large, self._load_s = small, large, load_s
        self._loaded_s, self._clean = 0.0, 0

    def step(self, now_s: float) -> None:
        super().step(now_s)
        fare = self._course.fares[self._large]
        fits = fare.run_ms * self._seen <= self._course.limit_ms and fare.memory_bytes <= self._left_bytes
        self._clean = self._clean + 1 if fits else 0
        wanted = self._large if self._clean >= (1 if self.route == self._large else _PATIENCE) else self._small
        if wanted != self.route:
            self.route, self._loaded_s = wanted, now_s + self._load_s

    def free_s(self, now_s: float) -> float:
        return max(now_s, self._loaded_s)


@dataclass(frozen=True)
class Cast:
    """Who is replayed with what.

    candidates:  routes with profiles, in the order of `Course.fares`
    small, large: the two anchors (indices): the cheapest and the most accurate, of what keeps the budget's other limits
    load_s:      what loading an anchor takes
    """

    candidates: tuple[Candidate, ...]
    budget: Budget
    small: int
    large: int
    load_s: float

    @classmethod
    def of(cls, candidates: Sequence[Candidate], budget: Budget, load_s: float, anchors: Sequence[str] = ()) -> "Cast":
        """anchors: names; by default the cheapest and the most accurate route stand in for them."""
        profiled = tuple(candidate for candidate in candidates if candidate.profile is not None)
        known = [place for place, one in enumerate(profiled) if one.route.name in anchors] or list(range(len(profiled)))
        small = min(known, key=lambda place: profiled[place].route.macs)
        best = Ladder(profiled[place] for place in known).rungs[0].name
        large = next(place for place, one in enumerate(profiled) if one.route.name == best)
        return cls(profiled, budget, small, large, load_s)

    def players(self, course: Course) -> "list[Ours | _Rival]":
        """All but the oracle, ours first."""
        return [
            Ours(course, self.candidates, self.budget),
            Always("always small", self.small),
            Always("always large", self.large),
            TwoAnchors(course, self.candidates, self.small, self.large, self.load_s),
            NoHysteresis(course, self.candidates, self.large),
            Slack(course, self.candidates, self.large),
        ]
