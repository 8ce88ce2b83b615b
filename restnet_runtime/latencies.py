"""Latencies: what requests took lately, by route."""

from collections import deque
from collections.abc import Mapping

from restnet_runtime.profile import percentile
from restnet_runtime.reading import RouteLatency


class Latencies:
    """The requests of the last `keep_s` seconds, at most `most` of each route.

    `observe` may be called from any thread and costs one append; `take` from one thread at a time.
    """

    def __init__(self, keep_s: float = 10.0, most: int = 256) -> None:
        self._keep_s, self._most = keep_s, most
        self._new: deque[tuple[str, int, float]] = deque(maxlen=4096)
        self._kept: dict[str, tuple[int, deque[tuple[float, float]]]] = {}  # with the number of threads

    def observe(self, route: str, threads: int, latency_ms: float) -> None:
        """One request of batch 1."""
        self._new.append((route, threads, latency_ms))

    def take(self, now_s: float) -> Mapping[str, RouteLatency] | None:
        """By route, the one with the latest request last; `None` where no route answered lately. now_s: seconds that never step back."""
        for _ in range(len(self._new)):
            route, threads, latency_ms = self._new.popleft()
            before, kept = self._kept.pop(route, (threads, None))
            if kept is None or before != threads:
                kept = deque(maxlen=self._most)
            kept.append((now_s, latency_ms))
            self._kept[route] = threads, kept
        found = {}
        for route, (threads, kept) in list(self._kept.items()):
            while kept and kept[0][0] <= now_s - self._keep_s:
                kept.popleft()
            if not kept:
                del self._kept[route]
                continue
            times = [latency_ms for _, latency_ms in kept]
            found[route] = RouteLatency(percentile(times, 0.5), percentile(times, 0.95), len(times), threads)
        return found or None
