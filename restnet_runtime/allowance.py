"""The allowance: what may be late without harm, and how long requests took over the last seconds: by it noise is told from weather.

A share of requests may be late. What of it has not been used is credit: with it a route that has become close to its limit is borne a
little longer, so that a passing breath of noise moves nothing.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

SHARE = 0.014
"""Of the requests, those that may be late."""
WINDOWS_S = (4, 15, 60)
"""Of the ceilings."""
_CEILING_SHARE = 0.985
_SAVED = 120.0  # requests' worth of allowance that are kept, times the rate per second
_LEAST = 16
_MOST = 4096
_START_S = 2.0  # in which nothing is known of the device yet, and nobody is to blame


class Allowance:
    """Of the requests that some route could have served in time. `observe` costs one append; the rest is for one thread at a time."""

    def __init__(self) -> None:
        self._new: deque[tuple[float, float, bool]] = deque(maxlen=4096)
        self._times: deque[float] = deque(maxlen=_MOST)
        self._windows = {window_s: _Window() for window_s in WINDOWS_S}
        self._saved: float | None = None
        self._changed_s = -math.inf
        self._ceilings: Mapping[int, float] | None = None
        self._due_s = -math.inf
        self._begun_s: float | None = None

    def observe(self, now_s: float, ratio: float, late: bool) -> None:
        """One request. ratio: measured over profiled latency."""
        self._new.append((now_s, ratio, late))

    def change(self, now_s: float) -> None:
        """The weather is another from here on: ceilings begin anew."""
        self._changed_s = now_s

    def take(self, now_s: float, rate_per_s: float | None) -> tuple[float | None, Mapping[int, float] | None]:
        """(credit, -0.6..1; ceilings: by seconds, what all but the slowest requests stayed within). `None`: not enough was seen."""
        most = max(4.0, SHARE * _SAVED * (rate_per_s or 0.0))
        if self._begun_s is None and self._new:
            self._begun_s = self._new[0][0]
        for _ in range(len(self._new)):
            at_s, ratio, late = self._new.popleft()
            late = late and at_s > (self._begun_s or 0.0) + _START_S
            self._saved = max(
                -0.3 * most,
                min(most, (most if self._saved is None or at_s <= (self._begun_s or 0.0) + _START_S else self._saved) + SHARE - late),
            )
            self._times.append(at_s)
            for window in self._windows.values():
                window.add(at_s, ratio)
        if now_s >= self._due_s:
            self._due_s = now_s + 1.0
            self._ceilings = self._seen(now_s)
        return None if self._saved is None else min(1.0, 2.0 * self._saved / most), self._ceilings

    def _seen(self, now_s: float) -> Mapping[int, float] | None:
        times, found = self._times, {}
        while times and times[0] < now_s - WINDOWS_S[-1] - 1.0:
            times.popleft()
        for window_s, window in self._windows.items():
            ratios = window.since(now_s - window_s)
            if times and now_s - max(times[0], self._changed_s) >= window_s and len(ratios) >= _LEAST:
                found[window_s] = ratios[min(len(ratios) - 1, int(_CEILING_SHARE * len(ratios)))]
        return found or None


class _Window:
    """What requests took lately, kept in order: a new one costs two steps of a search, where to sort all of a minute costs a thousand."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []

    def add(self, at_s: float, ratio: float) -> None:
        if len(self._kept) == _MOST:
            self._drop()
        self._kept.append((at_s, ratio))
        insort(self._ordered, ratio)

    def since(self, at_s: float) -> list[float]:
        """In ascending order, those from a time on; not to be changed. Times never step back."""
        while self._kept and self._kept[0][0] < at_s:
            self._drop()
        return self._ordered

    def _drop(self) -> None:
        del self._ordered[bisect_left(self._ordered, self._kept.popleft()[1])]
