"""Served: what requests show of the device, beside what its sensors do. It completes a reading."""

import math
from collections.abc import Callable

from restnet_runtime.latencies import Latencies
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.slowdown import Slowdown, slowdown_by_threads, stretch

_MOST_THREADS = 16
"""For so many threads of a request, and fewer, the slowdown is told."""


class Served:
    """Told of every request of batch 1, asked whenever there is a reading.

    slowdown:     how much slower than profiled they are, which whoever ticks it puts into the reading
    queue_depth:  how many requests to the model wait or run; `None` where nobody counts them
    """

    def __init__(self, cores: int) -> None:
        """cores: that this process may run on."""
        self._cores = cores
        self._counts = range(1, min(cores, _MOST_THREADS) + 1)
        self._latencies = Latencies()
        self._last = Reading()
        self._stretched: dict[int, float] = {}
        self.slowdown = Slowdown(relation=lambda threads: stretch(threads, self._cores, self._last))
        self.queue_depth: Callable[[], int] | None = None

    def observe(self, route: str, latency_ms: float, profile: RouteProfile) -> None:
        """One answered request. For the request path: no lock, one append. What is no latency is left out."""
        if 0 < latency_ms < math.inf:
            self._latencies.observe(route, profile.threads, latency_ms)

    def complete(self, reading: Reading, now_s: float, *, look: bool = True) -> Reading:
        """A reading that has its slowdown, with what else requests show; from one thread at a time. now_s: seconds that never step back.

        look: the device has been looked at; else what only a look changes, and latencies, which are for people, stay as they are
        """
        self._last = reading
        seen = self.slowdown.threads
        if look or seen not in self._stretched:
            self._stretched = {threads: stretch(threads, self._cores, reading) for threads in sorted({*self._counts, seen})}
        return reading.updated(
            queue_depth=None if self.queue_depth is None else self.queue_depth(),
            latencies=self._latencies.take(now_s) if look else reading.latencies,
            request_threads=None if reading.slowdown is None else self.slowdown.threads,
            slowdown_by_threads=slowdown_by_threads(reading.slowdown, seen, self._stretched),
        )
