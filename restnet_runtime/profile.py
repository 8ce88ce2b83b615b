"""The profile of a route: what it costs on this device, measured here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RouteProfile:
    """What one compiled route costs on this device.

    latency_ms:    median of one request, batch 1
    p95_ms:        95th percentile of the same
    memory_bytes:  predicted proportional set size (PSS) of the process while this route serves
    threads:       of one request, which both latencies hold for
    """

    latency_ms: float
    p95_ms: float
    memory_bytes: int
    threads: int = 1


@dataclass(frozen=True)
class Timing:
    """Latencies of a session at batch 1, median and 95th percentile; what the cache keeps from one start to the next."""

    latency_ms: float
    p95_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> "Timing":
        return cls(percentile(times_ms, 0.5), percentile(times_ms, 0.95))

    def better(self, other: "Timing") -> "Timing":
        """The quicker of two: what disturbs a measurement makes it slower, never quicker."""
        return self if self.latency_ms <= other.latency_ms else other


def time_runs(
    run: Callable[[], object], clock: Callable[[], float], min_runs: int = 5, max_runs: int = 50, max_s: float = 0.3
) -> list[float]:
    """Milliseconds of each of `min_runs` to `max_runs` calls, as many as fit into `max_s` seconds of `clock`."""
    times: list[float] = []
    started = clock()
    while len(times) < min_runs or (len(times) < max_runs and clock() - started < max_s):
        before = clock()
        run()
        times.append((clock() - before) * 1e3)
    return times


def compare_runs(
    run: Callable[[], object], reference: Callable[[], object], clock: Callable[[], float], max_rounds: int = 6, max_s: float = 0.3
) -> list[float]:
    """Both are run in turns, in each round as often as fits into two milliseconds: the median time of the first over that of the second.

    At least one round, and then as many as fit into `max_s` seconds. What disturbs the device for longer than a round disturbs both, so
    the quotient depends little on how busy it is.
    """
    quotients: list[float] = []
    started = clock()
    for index in range(max_rounds):
        if index and clock() - started >= max_s:
            break
        taken = [0.0, 0.0]
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times = time_runs((run, reference)[which], clock, min_runs=1, max_runs=25, max_s=0.002)
            taken[which] = percentile(times, 0.5)
        if taken[1] > 0:
            quotients.append(taken[0] / taken[1])
    return quotients


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0..1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
