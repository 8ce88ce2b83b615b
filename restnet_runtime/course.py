"""A course: the requests that a trace brings, each with what the device leaves at that moment, the same for every policy that runs it."""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from restnet_runtime.ladder import Candidate
from restnet_runtime.traces import Moment, Trace

_SPIKES = 0.002
_SPIKE = 1.5


@dataclass(frozen=True)
class Fare:
    """What a route costs in a replay: profiled latency in ms, memory in bytes, accuracy (0 where it was not measured)."""

    name: str
    run_ms: float
    memory_bytes: float
    accuracy: float


@dataclass(frozen=True)
class Course:
    """One trace for one set of routes under one latency budget.

    arrivals_s:  when requests come, ascending
    noise:       for each request, how much longer than usual its run takes on whichever route
    limit_ms:    from its arrival to its answer
    """

    trace: Trace
    fares: tuple[Fare, ...]
    arrivals_s: tuple[float, ...]
    noise: tuple[float, ...]
    limit_ms: float

    def moment(self, now_s: float) -> Moment:
        """What the trace says for a time; its end holds from there on."""
        moments = self.trace.moments
        return moments[max(0, bisect_right(moments, now_s, key=lambda moment: moment.t_s) - 1)]


def make_course(
    trace: Trace, candidates: Sequence[Candidate], limit_ms: float, *, spread: float, at_random: bool = False, seed: int = 0
) -> Course:
    """spread: standard deviation of the logarithm of run times; one in 500 takes half as long again. at_random: Poisson's gaps."""
    fares = tuple(
        Fare(one.route.name, one.profile.latency_ms, one.profile.memory_bytes, one.route.accuracy or 0.0)
        for one in candidates
        if one.profile is not None
    )
    rng = random.Random(f"course {seed}")
    arrivals = tuple(_arrivals(trace, rng if at_random else None))
    noise = tuple(
        math.exp(spread * max(-3.0, min(3.0, rng.gauss(0.0, 1.0)))) * (_SPIKE if rng.random() < _SPIKES else 1.0) for _ in arrivals
    )
    return Course(trace, fares, arrivals, noise, limit_ms)


def _arrivals(trace: Trace, rng: random.Random | None) -> list[float]:
    """Each when the integral of the rate has grown by one, or by an exponential share of it."""
    arrivals: list[float] = []
    need, ends = 0.5 if rng is None else rng.expovariate(1.0), [moment.t_s for moment in trace.moments[1:]] + [trace.end_s]
    for moment, end_s in zip(trace.moments, ends, strict=True):
        now_s = moment.t_s
        while moment.requests_per_s > 0 and now_s + need / moment.requests_per_s < end_s:
            now_s += need / moment.requests_per_s
            arrivals.append(now_s)
            need = 1.0 if rng is None else rng.expovariate(1.0)
        need -= (end_s - now_s) * moment.requests_per_s
    return arrivals
