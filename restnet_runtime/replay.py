"""Replay: a policy on a virtual clock. Requests queue, and each takes what the trace makes of its route's profile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from restnet_runtime.course import Course

START_S = 5.0
"""In which nothing is known of the device yet."""


class Player(Protocol):
    """A policy that is replayed.

    beat_s:   how often `step` is called
    """

    name: str
    beat_s: float

    def step(self, now_s: float, /) -> None:
        """Look at the device, decide."""

    def arrive(self, now_s: float, /) -> None:
        """A request has come."""

    def choose(self, now_s: float, waited_ms: float, /) -> int:
        """The route (index of `Course.fares`) for a request that begins now."""

    def observe(self, now_s: float, route: int, run_ms: float, /) -> None:
        """A request has been answered."""

    @property
    def switched(self) -> int | None:
        """How often the route that stands was another one; `None` where none stands for longer than a request."""

    def free_s(self, now_s: float, /) -> float:
        """From when on a route is there: later than now while one is being loaded."""


@dataclass(frozen=True)
class Run:
    """What became of each request: the route (index), when it began, how long from its arrival to its answer, whether in the budget.

    switched, starting: how often the route that stands was another one, and how often of them in the first `START_S` seconds
    """

    name: str
    routes: tuple[int, ...]
    began_s: tuple[float, ...]
    response_ms: tuple[float, ...]
    met: tuple[bool, ...]
    switched: int | None = None
    starting: int = 0


def replay(course: Course, player: Player) -> Run:
    """Every request of the course, one after another."""
    moments, fares, arrivals, noise = course.trace.moments, course.fares, course.arrivals_s, course.noise
    times = [*(moment.t_s for moment in moments[1:]), float("inf")]
    routes, began, responses, met = [], [], [], []
    free_s, at, told, due_s, beat_s = 0.0, 0, 0, 0.0, player.beat_s
    moment, starting = moments[0], 0
    for index, arrived_s in enumerate(arrivals):
        now_s = max(arrived_s, free_s)
        while due_s <= now_s:  # the policy's beats until then, each with the arrivals before it
            while told < len(arrivals) and arrivals[told] <= due_s:
                player.arrive(arrivals[told])
                told += 1
            player.step(due_s)
            due_s += beat_s
        while told < len(arrivals) and arrivals[told] <= now_s:
            player.arrive(arrivals[told])
            told += 1
        now_s = max(now_s, player.free_s(now_s))
        while times[at] <= now_s:
            at += 1
            moment = moments[at]
        route = player.choose(now_s, (now_s - arrived_s) * 1e3)
        fare = fares[route]
        run_ms = fare.run_ms * moment.slowdown / moment.cpu_share * noise[index]
        free_s = now_s + run_ms / 1e3
        response_ms = (free_s - arrived_s) * 1e3
        routes.append(route)
        began.append(now_s)
        responses.append(response_ms)
        met.append(response_ms <= course.limit_ms and fare.memory_bytes <= moment.memory_available_bytes)
        while due_s < free_s:
            while told < len(arrivals) and arrivals[told] <= due_s:
                player.arrive(arrivals[told])
                told += 1
            player.step(due_s)
            due_s += beat_s
        player.observe(free_s, route, run_ms)
        if free_s < START_S:
            starting = player.switched or 0
    return Run(player.name, tuple(routes), tuple(began), tuple(responses), tuple(met), player.switched, starting)


def feasible(course: Course) -> tuple[bool, ...]:
    """For each request: could a route have kept its budget, had all before it run on the fastest that keeps memory?"""
    fastest = sorted(range(len(course.fares)), key=lambda route: course.fares[route].run_ms)

    class Fastest:
        name, beat_s, switched = "fastest", float("inf"), None

        def step(self, now_s: float) -> None: ...
        def arrive(self, now_s: float) -> None: ...
        def observe(self, now_s: float, route: int, run_ms: float) -> None: ...
        def free_s(self, now_s: float) -> float:
            return now_s

        def choose(self, now_s: float, _waited_ms: float) -> int:
            left = course.moment(now_s).memory_available_bytes
            fitting = (route for route in fastest if course.fares[route].memory_bytes <= left)
            return next(fitting, fastest[0])

    return replay(course, Fastest()).met


@dataclass(frozen=True)
class Score:
    """How a policy did.

    over_budget_share:     of the requests for which a route could have kept the budget, those that did not
    accuracy_mean:         of all answers
    accuracy_won_share:    what it won over always-small, over what the oracle won; late answers win nothing; `None`: nothing to win
    regret:                accuracy that the oracle won more per request
    switches_per_minute:   times that the policy took another route
    switches_starting:     of the switches, those in the first `START_S` seconds
    changes_per_minute:    times that a request ran on another route than the one before it
    """

    name: str
    over_budget_share: float
    accuracy_mean: float
    accuracy_won_share: float | None
    regret: float
    switches_per_minute: float
    changes_per_minute: float
    switches_starting: int = 0


def score(course: Course, run: Run, can: Sequence[bool], small: int, oracle: Run) -> Score:
    """small: the route of always-small. can: as `feasible` has it."""
    fares, base = course.fares, course.fares[small].accuracy
    accuracy = [fares[route].accuracy for route in run.routes]
    best = _won(course, oracle, can, base)
    won = _won(course, run, can, base)
    possible = sum(can)
    late = sum(1 for able, met in zip(can, run.met, strict=True) if able and not met)
    changes = sum(1 for one, other in zip(run.routes, run.routes[1:], strict=False) if one != other)
    minutes = course.trace.end_s / 60.0
    return Score(
        run.name,
        late / possible if possible else 0.0,
        sum(accuracy) / len(accuracy) if accuracy else 0.0,
        won / best if best > 0 else None,
        (best - won) / possible if possible else 0.0,
        (changes if run.switched is None else run.switched) / minutes,
        changes / minutes,
        run.starting,
    )


def _won(course: Course, run: Run, can: Sequence[bool], base: float) -> float:
    fares = course.fares
    return sum(fares[route].accuracy - base for route, met, able in zip(run.routes, run.met, can, strict=True) if met and able)
