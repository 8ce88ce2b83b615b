"""Traffic: how often requests come, how evenly, and how long they wait."""

import math
from bisect import bisect_right
from collections import deque

WINDOW_S = 1.0
_LONG_S = 10.0
_SAME_S = 2e-5
"""Two clocks tell of one arrival within this."""
_SURE = 2.0
"""Standard errors: a second in which by so much more or fewer requests came than in each of the last ten is another rate."""
_GAPS = 48
_LEAST = 8
_AROUND = 64
_STEP = 0.15


class Traffic:
    """Arrivals of the last `WINDOW_S` seconds. Notes are one append each, safe from any thread; `take` is for one thread at a time."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=8192)
        self._older: deque[float] = deque(maxlen=8192)
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
        self._around_ms: deque[float] = deque(maxlen=_AROUND)
        self._known_around_ms: float | None = None

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

    def behind_ms(self, now_s: float, waited_ms: float) -> float | None:
        """How long the next in the queue has waited when one begins that has waited so long; `None`: there is none. From any thread."""
        if waited_ms <= 0:
            return None
        arrivals = tuple(self._arrivals)
        place = bisect_right(arrivals, now_s - waited_ms / 1e3 + _SAME_S)
        return (now_s - arrivals[place]) * 1e3 if place < len(arrivals) else None

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
            self._older.append(arrivals.popleft())
        while self._older and self._older[0] <= now_s - _LONG_S:
            self._older.popleft()
        waits = sorted(self._waits_ms.popleft() for _ in range(len(self._waits_ms)))
        waiting_ms = waits[len(waits) // 2] if waits else None
        window_s = min(WINDOW_S, now_s - self._since_s)
        if len(arrivals) + len(self._older) < 2 or window_s < WINDOW_S / 2:
            return None, None, waiting_ms
        count = len(arrivals)
        rate = count / window_s if count < (arrivals.maxlen or 0) else (count - 1) / max(1e-9, arrivals[-1] - arrivals[0])
        variation = self._variation()
        return self._settled(now_s, rate, variation), variation, waiting_ms

    def _settled(self, now_s: float, rate: float, variation: float | None) -> float:
        """The rate of ten seconds as long as that of the last one is another only by chance, as it is where requests come at random."""
        long_s = min(_LONG_S, now_s - (self._since_s or 0.0))
        usual = (len(self._older) + len(self._arrivals)) / long_s
        return usual if len(self._arrivals) < 2 or abs(rate - usual) <= _SURE * math.sqrt((variation or 0.0) * usual / WINDOW_S) else rate

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
