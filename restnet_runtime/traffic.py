"""Traffic: how often requests come, how evenly, and how long they wait."""

from collections import deque
from itertools import pairwise

WINDOW_S = 1.0
_GAPS = 48
_LEAST = 8
_AROUND = 64
_STEP = 0.15


class Traffic:
    """Arrivals of the last `WINDOW_S` seconds. Notes are one append each, safe from any thread; `take` is for one thread at a time."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=8192)
        self._recent: deque[float] = deque(maxlen=_GAPS + 1)
        self._waits_ms: deque[float] = deque(maxlen=256)
        self.arrived = 0
        """Since the start; two threads that count at once may lose one."""
        self.waited_ms = 0.0
        """What the latest waited."""
        self._since_s: float | None = None
        self._around_ms: deque[float] = deque(maxlen=_AROUND)
        self._known_around_ms: float | None = None

    def arrive(self, now_s: float) -> None:
        """A request is here."""
        self.arrived += 1
        self._arrivals.append(now_s)
        self._recent.append(now_s)

    def wait(self, waited_ms: float) -> None:
        """A request begins to run, after so long."""
        self.waited_ms = waited_ms
        if waited_ms > 0:
            self._waits_ms.append(waited_ms)

    def surround(self, around_ms: float) -> None:
        """A request was answered: what it took beside its wait and the run of its network, as decoding."""
        self._around_ms.append(around_ms)

    def around_ms(self) -> float | None:
        """The median of the latest requests; it moves only where they are surely others. For one thread at a time."""
        latest = sorted(self._around_ms)
        if len(latest) >= _LEAST:
            middle, known = latest[len(latest) // 2], self._known_around_ms
            if known is None or abs(middle - known) > _STEP * known:
                self._known_around_ms = middle
        return self._known_around_ms

    def take(self, now_s: float) -> tuple[float | None, float | None, float | None]:
        """(requests per second, local variation of the gaps, median wait in ms of those that began since the last call).

        `None` where too few came to tell; a first window is not judged before it is half over.
        """
        if self._since_s is None:
            self._since_s = now_s
        arrivals = self._arrivals
        while arrivals and arrivals[0] <= now_s - WINDOW_S:
            arrivals.popleft()
        waits = sorted(self._waits_ms.popleft() for _ in range(len(self._waits_ms)))
        waiting_ms = waits[len(waits) // 2] if waits else None
        window_s = min(WINDOW_S, now_s - self._since_s)
        if len(arrivals) < 2 or window_s < WINDOW_S / 2:
            return None, None, waiting_ms
        times = list(arrivals)
        rate = len(times) / window_s if len(times) < (arrivals.maxlen or 0) else (len(times) - 1) / max(1e-9, times[-1] - times[0])
        return rate, _variation(list(self._recent)), waiting_ms


def _variation(times: list[float]) -> float | None:
    """Local variation of the gaps (Shinomoto): 0 for even ones, 1 where they come at random; a rate that changes does not count."""
    gaps = [after - before for before, after in pairwise(times)]
    if len(gaps) < _LEAST:
        return None
    parts = [((one - other) / (one + other)) ** 2 for one, other in pairwise(gaps) if one + other > 0]
    return min(4.0, 3.0 * sum(parts) / len(parts)) if parts else None
