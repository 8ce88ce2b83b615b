"""Slowdown: how much slower than profiled requests are being answered."""

import math
from collections import deque
from statistics import median


class Slowdown:
    """Per tick the median of latency over profiled latency, smoothed over ticks (exponentially weighted moving average).

    The median keeps single slow requests out; the average starts from 1.0, which is what the profile promises.

    weight:       of the newest tick, 0..1
    stale_ticks:  after so many ticks without a request the value is unknown again
    """

    def __init__(self, weight: float = 0.5, stale_ticks: int = 30) -> None:
        self._weight = weight
        self._stale_ticks = stale_ticks
        self._ratios: deque[float] = deque(maxlen=512)
        self._value = 1.0
        self._idle_ticks = stale_ticks

    def observe(self, ratio: float) -> None:
        """One request: measured over profiled latency. Costs one append; safe from any thread. A ratio that is none is left out."""
        if 0 < ratio < math.inf:
            self._ratios.append(ratio)

    def tick(self) -> float | None:
        """Take in what was observed since the last tick, from one thread at a time. `None`: no request yet, or none for long."""
        ratios = [self._ratios.popleft() for _ in range(len(self._ratios))]
        if ratios:
            before = self._value if self._idle_ticks < self._stale_ticks else 1.0
            self._value = before + self._weight * (median(ratios) - before)
            self._idle_ticks = 0
        else:
            self._idle_ticks = min(self._idle_ticks + 1, self._stale_ticks)
        return self._value if self._idle_ticks < self._stale_ticks else None
