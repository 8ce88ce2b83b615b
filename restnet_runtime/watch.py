"""The watch: what single requests tell sooner, or more of, than the slowdown does.

An alarm when they take longer than is known, their trend, their relief, and their tail.
"""

import math
from bisect import bisect_right
from collections import deque
from statistics import median

from restnet_runtime.stalls import GROSS

TAIL_SHARE = 0.97
_LEAST = 64
_CALM = 1.12
_TAIL_STEP = 0.012
UNKNOWN_TAIL = 1.08
_HOLD_S = 4.0
_TREND = 12
_TREND_LEAST = 8
_TREND_SURE = 4.0  # standard errors
_TREND_S = 8.0
_AHEAD_S = 0.5
_RELIEF = 5
_BELIEVED = 1.02
_STARTING = 24
_RELIEF_RATIO = 0.93


class Watch:
    """Ratios of measured to profiled latency. `observe` is for the request path; the rest is for one thread at a time."""

    def __init__(self, window: int = 512) -> None:
        self._pending: deque[float] = deque(maxlen=1024)
        self._latest: deque[tuple[float, float]] = deque(maxlen=_TREND)
        self._flags: deque[int] = deque([0] * 4, maxlen=4)  # 1 longer than known, 2 much longer
        self._residuals: deque[float] = deque(maxlen=window)
        self._long = self._very_long = self._far_longer = math.inf
        self._tail: float | None = None
        self.steady_tail: float | None = None
        """The tail without the requests that took so much longer that their runs stood still; of those `stalls.py` tells."""
        self._fresh = 0
        self._alarm_s = -math.inf

        self.patient = False
        """Few were late: more of them are asked for before an alarm."""
        self._starting = _STARTING
        self.caution = 0.0
        """The slowdown that the latest request showed, where it was far more than is known: the next one goes by it."""

    @property
    def _excess(self) -> float:
        """What requests that were noticed because they took long have of the tail already: predictions multiply by it once more."""
        return max(1.0, (self._tail or UNKNOWN_TAIL) / UNKNOWN_TAIL)

    @property
    def pending(self) -> int:
        """How many were observed since they were last taken in."""
        return len(self._pending)

    def observe(self, ratio: float, now_s: float) -> bool:
        """One request. Is it time to decide, before the next tick does? Two much longer ones in a row, or three longer ones of four."""
        self._pending.append(ratio)
        self._starting -= 1
        self._latest.append((now_s, ratio))
        self.caution = ratio / self._excess if ratio > self._far_longer else 0.0
        flags = self._flags
        flags.append(0 if ratio <= self._long else 1 if ratio <= self._very_long else 2)
        if self.patient:
            return flags[-1] > 0 and flags[-2] > 0 and flags[-3] > 0 and sum(flags) >= 5
        return flags[-1] > 0 and (flags[-1] + flags[-2] == 4 or sum(1 for flag in flags if flag) >= 3)

    def alarm(self, now_s: float) -> None:
        """Things have changed: for a while the latest requests are believed, not those before."""
        self._alarm_s, self.caution = now_s, 0.0
        self._flags.extend([0] * 4)
        for _ in range(len(self._latest) - 3):
            self._latest.popleft()

    def slowdown(self, smoothed: float | None, now_s: float) -> float | None:
        """The slowdown to decide on: the smoothed one, or what the latest requests show where that is surely another.

        After an alarm that is their median, less the tail that made them be noticed; on a trend what it leads to soon, and where all are
        much quicker their median again.
        """
        latest = list(self._latest)
        shown = smoothed or 0.0
        if self._starting > 0 and len(latest) >= 2:  # nothing is known from before that the average could begin with
            shown = max(shown, median(ratio for _, ratio in latest))
        if latest and now_s - self._alarm_s < _HOLD_S:
            newest = median(ratio for _, ratio in latest[-5:]) / self._excess
            if shown >= newest * 0.97:
                self._alarm_s = -math.inf
            shown = max(shown, newest)
        if self.patient and len(latest) >= _RELIEF:  # neither a single spike in a second of few requests is believed, nor a trend
            return _relief(latest, min(shown, _BELIEVED * median(ratio for _, ratio in latest[-_RELIEF:]))) or None
        if (trend := _trend(latest, now_s)) is not None:
            return max(shown, trend)
        return _relief(latest, shown) or None

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
            tail, steady = _tail_of(ordered), _tail_of(ordered[: bisect_right(ordered, GROSS)])
            if self._tail is None or abs(tail - self._tail) > _TAIL_STEP:
                self._tail = tail
            if self.steady_tail is None or abs(steady - self.steady_tail) > _TAIL_STEP:
                self.steady_tail = steady
        usual = slowdown * (self._tail or 1.04 * UNKNOWN_TAIL)
        self._long, self._very_long, self._far_longer = usual * 1.02, usual * 1.06, usual * 1.2
        return self._tail


def _tail_of(ordered: list[float]) -> float:
    """What `TAIL_SHARE` of these ratios over the slowdown stay within, ascending; at least 1."""
    return max(1.0, ordered[min(len(ordered) - 1, math.ceil(TAIL_SHARE * len(ordered)))]) if ordered else 1.0


def _relief(latest: list[tuple[float, float]], shown: float) -> float:
    """What the latest show by themselves where they are all much quicker than what is known, else that."""
    quick: list[float] = []
    for _, ratio in reversed(latest):
        if ratio > shown * _RELIEF_RATIO:
            break
        quick.append(ratio)
    return median(quick) if len(quick) >= _RELIEF else shown


def _trend(latest: list[tuple[float, float]], now_s: float) -> float | None:
    """Where ratios that surely grow are soon; `None` where they do not."""
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
    return math.exp(min(mean_y + slope * (_AHEAD_S - mean_t), math.log(max(ratio for _, ratio in latest[-4:])) + 0.12))
