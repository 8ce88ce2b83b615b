"""Stalls: requests that were late by themselves, although neither a slowdown nor a wait explains it.

Others who share the cores make a run stand still for a few of their time slices: that adds to a run and does not multiply it, so the
median of requests shows nothing, and a route that is shorter has as much more room as it is shorter by.
"""

from collections import deque
from statistics import median

_WINDOW_S = 2.0
_LEAST = 20
_LATE, _LATE_SHARE = 4, 0.05
"""So many of the window's requests, and more than this share: then it is no accident."""
GROSS = 1.5
"""So many times what was to be expected must one have taken that stood still: less is noise, of which the tail tells."""
_HOLD_S = 4.0


class Stalls:
    """`observe` is for the request path: one append. The rest is for one thread at a time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, float, bool]] = deque(maxlen=256)
        self._stall_ms: float | None = None
        self._until_s = 0.0

    def observe(self, now_s: float, latency_ms: float, profile_ms: float, late: bool) -> None:
        """One answered request, its run measured and profiled. late: by its run alone, on a route that was to keep a limit."""
        self._seen.append((now_s, latency_ms, profile_ms, late))

    def take(self, now_s: float, slowdown: float | None) -> float | None:
        """Milliseconds to reckon with beside a run, for a while after requests were late so; `None`: none."""
        latest = [one for one in list(self._seen) if one[0] > now_s - _WINDOW_S]
        usual = slowdown or 1.0
        stalls = [ran_ms - usual * profile_ms for _, ran_ms, profile_ms, late in latest if late and ran_ms > GROSS * usual * profile_ms]
        if len(latest) >= _LEAST and len(stalls) >= max(_LATE, _LATE_SHARE * len(latest)):
            known = self._stall_ms if now_s < self._until_s else None
            self._stall_ms, self._until_s = max(median(stalls), known or 0.0), now_s + _HOLD_S
        return self._stall_ms if now_s < self._until_s else None
