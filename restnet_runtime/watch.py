"""The watch: what single requests tell sooner, or more of, than the slowdown does: an alarm when they become late, and their tail."""

import math
from collections import deque
from statistics import median

TAIL_SHARE = 0.985
_LEAST = 64
_CALM = 1.12
_WELL_OVER = 1.15


class Watch:
    """Ratios of measured to profiled latency. `observe` is for the request path; the rest is for one thread at a time."""

    def __init__(self, window: int = 512) -> None:
        self._pending: deque[float] = deque(maxlen=1024)
        self._latest: deque[float] = deque([0.0] * 4, maxlen=4)
        self._residuals: deque[float] = deque(maxlen=window)
        self._alarm_ratio = math.inf
        self._tail: float | None = None
        self._fresh = 0

    @property
    def pending(self) -> int:
        """How many were observed since they were last taken in."""
        return len(self._pending)

    def arm(self, ratio: float) -> None:
        """From which ratio on a request is late on the route that serves now; infinite: no alarm."""
        if ratio != self._alarm_ratio:
            self._alarm_ratio = ratio
            self.hush()

    def hush(self) -> None:
        """Wait for further late requests."""
        self._latest.extend([0.0] * 4)

    def observe(self, ratio: float) -> bool:
        """One request. Is it time to decide, before the next tick does? Two late ones in a row, both well late, or three of four."""
        self._pending.append(ratio)
        latest, limit = self._latest, self._alarm_ratio
        latest.append(ratio)
        if ratio <= limit:
            return False
        second, third = latest[-2], latest[-3]
        well = limit * _WELL_OVER
        if ratio > well and second > well:
            return True
        return (second > limit) + (third > limit) + (latest[0] > limit) >= 2

    def alarming(self) -> float:
        """The slowdown that the latest requests show by themselves."""
        return median(list(self._latest)[-3:])

    def take(self, slowdown: float | None) -> float | None:
        """Take in what was observed beside the slowdown of now; the tail, `None` until enough was seen.

        What a change of the slowdown itself makes late is no tail: only ratios of calm times count.
        """
        ratios = [self._pending.popleft() for _ in range(len(self._pending))]
        if slowdown is None:
            return None
        if ratios and 1 / _CALM < median(ratios) / slowdown < _CALM:
            self._residuals.extend(ratio / slowdown for ratio in ratios)
            self._fresh += len(ratios)
        if len(self._residuals) >= _LEAST and (self._tail is None or self._fresh >= 32):
            self._fresh = 0
            ordered = sorted(self._residuals)
            self._tail = max(1.0, ordered[min(len(ordered) - 1, math.ceil(TAIL_SHARE * len(ordered)))])
        return self._tail
