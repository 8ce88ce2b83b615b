"""Slowdown: how much slower than profiled requests are being answered."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median

from restnet_runtime.contention import demand_cores
from restnet_runtime.reading import Reading

_SPARE = 0.25
"""A core that others use for less than this is taken for free."""


class Slowdown:
    """Per tick the median of latency over profiled latency, smoothed over ticks (exponentially weighted moving average).

    The median keeps single slow requests out; the average starts from 1.0, which is what the profile promises. It is that of requests
    with as many threads as the latest one; where that number changes, what was seen before is converted.

    weight:       of the newest tick, 0..1
    stale_ticks:  after so many ticks without a request the value is unknown again
    relation:     of a number of threads: how slow such requests should be now; only quotients of it matter
    """

    def __init__(self, weight: float = 0.5, stale_ticks: int = 30, relation: Callable[[int], float] = lambda _: 1.0) -> None:
        self._weight = weight
        self._stale_ticks = stale_ticks
        self._relation = relation
        self._ratios: deque[tuple[float, int]] = deque(maxlen=512)
        self._value = 1.0
        self._threads = 1
        self._idle_ticks = stale_ticks

    @property
    def threads(self) -> int:
        """Of the requests that the value is of."""
        return self._threads

    def observe(self, ratio: float, threads: int = 1) -> None:
        """One request: measured over profiled latency. Costs one append; safe from any thread. A ratio that is none is left out."""
        if 0 < ratio < math.inf:
            self._ratios.append((ratio, threads))

    def tick(self) -> float | None:
        """Take in what was observed since the last tick, from one thread at a time. `None`: no request yet, or none for long."""
        seen = [self._ratios.popleft() for _ in range(len(self._ratios))]
        if seen:
            before = self._value if self._idle_ticks < self._stale_ticks else 1.0
            latest = seen[-1][1]
            factors = {threads: self._conversion(threads, latest) for threads in {self._threads, *(threads for _, threads in seen)}}
            before *= factors[self._threads] if before != 1.0 else 1.0
            self._value = before + self._weight * (median(ratio * factors[threads] for ratio, threads in seen) - before)
            self._threads = latest
            self._idle_ticks = 0
        else:
            self._idle_ticks = min(self._idle_ticks + 1, self._stale_ticks)
        return self._value if self._idle_ticks < self._stale_ticks else None

    def _conversion(self, threads: int, latest: int) -> float:
        return 1.0 if threads == latest else self._relation(latest) / self._relation(threads)


def slowdown_by_threads(slowdown: float | None, seen: int, stretched: Mapping[int, float]) -> Mapping[int, float] | None:
    """The slowdown of requests of each number of threads, from that of the number that was seen; `None` where that is unknown.

    seen:       threads of the requests that the slowdown is of
    stretched:  `stretch` of each number that is asked for, `seen` among them
    """
    if slowdown is None:
        return None
    return {threads: slowdown * stretched[threads] / stretched[seen] for threads in stretched}


def stretch(threads: int, cores: int, reading: Reading) -> float:
    """How much longer than alone a request of so many threads takes beside what others would use, on a fair scheduler; 1.0 and more.

    Threads for each core, on the mean: so much a single thread is slowed down, which is moved to whichever core has least. A request of
    several waits for the slowest, which at worst has a core with as many as there are for each core, rounded up; how long it stays there
    differs, and half-way is taken (`benchmarks/prediction.py --mixed`). A quota below the threads stretches by the ratio.
    """
    others = demand_cores(reading.others_cpu_cores or 0.0, reading.waiting_share, 1.0)
    crowd = (threads + others) / cores
    worst = crowd if threads == 1 else max(crowd, min(1 + others, math.ceil(crowd - _SPARE)))
    quota = reading.cpu_quota_cores
    return max(1.0, (crowd + worst) / 2, threads / quota if quota else 1.0)
