"""Traffic: how often requests come, how evenly, and how long they wait."""

from collections import deque

WINDOW_S = 1.0
_GAPS = 48
_LEAST = 8


class Traffic:
    """Arrivals of the last `WINDOW_S` seconds. Notes are one append each, safe from any thread; `take` is for one thread at a time."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=8192)
        self._new: deque[float] = deque(maxlen=_GAPS + 1)
        self._last: tuple[float | None, float | None] = None, None  # the latest arrival, and the gap before it
        self._gaps = 0
        self._parts: deque[float] = deque(maxlen=_GAPS - 1)
        self._waits_ms: deque[float] = deque(maxlen=256)
        self.arrived = 0
        """Since the start; two threads that count at once may lose one."""
        self.waited_ms = 0.0
        """What the latest waited."""
        self._since_s: float | None = None

    def arrive(self, now_s: float) -> None:
        """A request is here."""
        self.arrived += 1
        self._arrivals.append(now_s)
        self._new.append(now_s)

    def wait(self, waited_ms: float) -> None:
        """A request begins to run, after so long."""
        self.waited_ms = waited_ms
        if waited_ms > 0:
            self._waits_ms.append(waited_ms)

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
        count = len(arrivals)
        rate = count / window_s if count < (arrivals.maxlen or 0) else (count - 1) / max(1e-9, arrivals[-1] - arrivals[0])
        return rate, self._variation(), waiting_ms

    def _variation(self) -> float | None:
        """Local variation of the gaps (Shinomoto): 0 for even ones, 1 where they come at random; a rate that changes does not count."""
        parts, (before_s, before) = self._parts, self._last
        for _ in range(len(self._new)):
            at_s = self._new.popleft()
            if before_s is not None:
                gap = at_s - before_s
                self._gaps += 1
                if before is not None and before + gap > 0:
                    parts.append(((before - gap) / (before + gap)) ** 2)
                before = gap
            before_s = at_s
        self._last = before_s, before
        return min(4.0, 3.0 * sum(parts) / len(parts)) if parts and self._gaps >= _LEAST else None
