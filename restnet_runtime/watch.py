"""The watch: what single requests tell sooner, or more of, than the slowdown does: an alarm when they take longer than is known, their trend,
and their tail."""

import math
from collections import deque
from statistics import median

TAIL_SHARE = 0.985
_LEAST = 64
_CALM = 1.12
_UNKNOWN_TAIL = 1.12
_HOLD_S = 4.0
_TREND = 12
_TREND_LEAST = 6
_TREND_SURE = 2.5  # standard errors
_TREND_S = 8.0


class Watch:
    """Ratios of measured to profiled latency. `observe` is for the request path; the rest is for one thread at a time."""

    def __init__(self, window: int = 512) -> None:
        self._pending: deque[float] = deque(maxlen=1024)
        self._latest: deque[tuple[float, float]] = deque(maxlen=_TREND)
        self._flags: deque[int] = deque([0] * 4, maxlen=4)  # 1 longer than known, 2 much longer
        self._residuals: deque[float] = deque(maxlen=window)
        self._long = self._very_long = math.inf
        self._tail: float | None = None
        self._fresh = 0
        self._alarm_s = -math.inf

    @property
    def pending(self) -> int:
        """How many were observed since they were last taken in."""
        return len(self._pending)

    def observe(self, ratio: float, now_s: float) -> bool:
        """One request. Is it time to decide, before the next tick does? Two much longer ones in a row, or three longer ones of four."""
        self._pending.append(ratio)
        self._latest.append((now_s, ratio))
        flags = self._flags
        flags.append(0 if ratio <= self._long else 1 if ratio <= self._very_long else 2)
        return flags[-1] > 0 and (flags[-1] + flags[-2] == 4 or sum(1 for flag in flags if flag) >= 3)

    def alarm(self, now_s: float) -> None:
        """Things have changed: for a while the latest requests are believed, not those before."""
        self._alarm_s = now_s
        self._flags.extend([0] * 4)
        for _ in range(len(self._latest) - 3):
            self._latest.popleft()

    def slowdown(self, smoothed: float | None, now_s: float) -> float | None:
        """The slowdown to decide on: the smoothed one, or what the latest requests show where that is more.

        After an alarm that is their median, on a trend what it leads to by now.
        """
        latest = list(self._latest)
        shown = smoothed or 0.0
        if latest and now_s - self._alarm_s < _HOLD_S:
            newest = median(ratio for _, ratio in latest[-5:])
            if shown >= newest * 0.97:
                self._alarm_s = -math.inf
            shown = max(shown, newest)
        if (trend := _trend(latest, now_s)) is not None:
            shown = max(shown, trend)
        return shown or None

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
        usual = slowdown * (self._tail or _UNKNOWN_TAIL)
        self._long, self._very_long = usual * 1.02, usual * 1.06
        return self._tail


def _trend(latest: list[tuple[float, float]], now_s: float) -> float | None:
    """Where ratios that surely grow are by now; `None` where they do not."""
    points = [(at_s - now_s, math.log(ratio)) for at_s, ratio in latest if at_s > now_s - _TREND_S]
    count = len(points)
    if count < _TREND_LEAST:
        return None
    mean_t, mean_y = sum(t for t, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    if spread <= 0:
        return None
    slope = sum((t - mean_t) * (y - mean_y) for t, y in points) / spread
    error = math.sqrt(sum((y - mean_y - slope * (t - mean_t)) ** 2 for t, y in points) / (count - 2) / spread)
    if slope <= 0 or slope < _TREND_SURE * error:
        return None
    return math.exp(min(mean_y - slope * mean_t, math.log(latest[-1][1]) + 0.3))
