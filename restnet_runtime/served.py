"""Served: what requests show of the device, beside what its sensors do. It completes a reading."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from restnet_runtime.latencies import Latencies
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.slowdown import Slowdown, slowdown_by_threads


class Served:
    """Told of every request of batch 1, asked once a tick.

    queue_depth: how many requests wait or run; `None` where nobody counts them
    """

    def __init__(self, cores: int) -> None:
        """cores: that this process may run on."""
        self._cores = cores
        self._latencies = Latencies()
        self._slowdown = Slowdown()
        self._threads = 1
        self.queue_depth: Callable[[], int] | None = None

    def observe(self, route: str, latency_ms: float, profile: RouteProfile | None) -> None:
        """One answered request. For the request path: no lock, two appends. Routes without profile are left out, and what is no latency."""
        if profile is not None and profile.latency_ms > 0 and 0 < latency_ms < math.inf:
            self._latencies.observe(route, latency_ms)
            self._slowdown.observe(latency_ms / profile.latency_ms)
            self._threads = profile.threads

    def complete(self, reading: Reading, threads: Iterable[int]) -> Reading:
        """The reading with what requests showed since the last one; from one thread at a time.

        threads: numbers that routes have, for which the slowdown is asked
        """
        slowdown = self._slowdown.tick()
        return replace(
            reading,
            queue_depth=None if self.queue_depth is None else self.queue_depth(),
            latencies=self._latencies.tick(),
            slowdown=slowdown,
            slowdown_by_threads=slowdown_by_threads(slowdown, self._threads, set(threads), self._cores, reading),
        )
