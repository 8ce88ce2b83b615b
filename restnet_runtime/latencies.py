"""Latencies: what requests took lately, by route."""

from collections import deque
from collections.abc import Mapping

from restnet_runtime.profile import percentile
from restnet_runtime.reading import RouteLatency


class Latencies:
    """The requests of the last `ticks` ticks, at most `most` of each route.

    `observe` may be called from any thread and costs one append; `tick` from one thread at a time.
    """

    def __init__(self, ticks: int = 10, most: int = 256) -> None:
        self._ticks, self._most = ticks, most
        self._new: deque[tuple[str, float]] = deque(maxlen=4096)
        self._kept: dict[str, deque[tuple[int, float]]] = {}
        self._tick = 0

    def observe(self, route: str, latency_ms: float) -> None:
        """One request of batch 1."""
        self._new.append((route, latency_ms))

    def tick(self) -> Mapping[str, RouteLatency] | None:
        """By route, the one with the latest request last; `None` where no route answered lately."""
        self._tick += 1
        for _ in range(len(self._new)):
            route, latency_ms = self._new.popleft()
            kept = self._kept.pop(route, None) or deque(maxlen=self._most)
            kept.append((self._tick, latency_ms))
            self._kept[route] = kept
        found = {}
        for route, kept in list(self._kept.items()):
            while kept and kept[0][0] <= self._tick - self._ticks:
                kept.popleft()
            if not kept:
                del self._kept[route]
                continue
            times = [latency_ms for _, latency_ms in kept]
            found[route] = RouteLatency(percentile(times, 0.5), percentile(times, 0.95), len(times))
        return found or None
