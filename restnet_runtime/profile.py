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
    """

    latency_ms: float
    p95_ms: float
    memory_bytes: int


@dataclass(frozen=True)
class Measurement:
    """What running a session alone showed, without what the process needs anyway; this is what the cache keeps.

    anonymous_bytes:  memory of its own that loading and running the session added
    """

    latency_ms: float
    p95_ms: float
    anonymous_bytes: int

    def profile(self, base_bytes: int, touched_bytes: int) -> RouteProfile:
        """The route's profile in a process of `base_bytes` without routes, when the session maps and reads `touched_bytes`."""
        return RouteProfile(self.latency_ms, self.p95_ms, base_bytes + touched_bytes + self.anonymous_bytes)


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


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0..1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
