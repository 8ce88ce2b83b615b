"""Beside: the processor time that requests take beside their runs: receiving, decoding and answering, and what the server does anyway.

Under a CPU quota it is taken from what runs may have. It is the time of the process, less that of the runs as they were profiled: where
threads of a run wait for each other, or a run takes longer than profiled, that comes out here too. What else is in the same group, the
process that compiles among it, is not seen.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_LEAST = 8
"""Requests to be looked at together: of fewer it matters too much which end just before, and which just after."""
_LONGEST_S = 4.0
"""Not over longer: what the server does anyway would be counted as that of the few requests there were."""
_KEPT, _SURE = 9, 3
"""Of so many findings a low one is taken, once there are a few: loading and timing routes makes some too high, and nothing too low."""
_VALID_S = 30.0
_UNSEEN = 0.1
"""Requests of several inputs and refused ones arrive and are not told of: where they are a larger share than this, all is forgotten."""


class _Window(NamedTuple):
    """Since when, and what had been counted by then: processor time, and requests that had arrived."""

    since_s: float
    cpu_s: float
    arrived: int


class Beside:
    """Of the requests to one model, in a process that has no other. `observe` is for the request path: one append."""

    def __init__(self, cpu_s: Callable[[], float]) -> None:
        """cpu_s: processor time of this process, of all threads, so far."""
        self._cpu_s = cpu_s
        self._runs_ms: deque[float] = deque(maxlen=4096)
        self._window: _Window | None = None
        self._found: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # when, and milliseconds for each request

    def observe(self, profile_ms: float, threads: int) -> None:
        """One answered request: of its run, what was profiled, and on how many threads."""
        self._runs_ms.append(profile_ms * threads)

    def take(self, now_s: float, arrived: int) -> float | None:
        """Milliseconds for each request, from one thread at a time; `None` where too little is known of late.

        now_s: seconds that never step back; arrived: requests since the start
        """
        window, count = self._window, len(self._runs_ms)
        came = 0 if window is None else arrived - window.arrived
        if window is None or came == 0 or now_s - window.since_s > _LONGEST_S:
            self._begin(now_s, arrived)
        elif count >= _LEAST or came >= 2 * _LEAST:
            runs_ms = sum(self._runs_ms.popleft() for _ in range(count))
            self._window = _Window(now_s, self._cpu_s(), arrived)
            if abs(came - count) > max(2.0, _UNSEEN * came):
                self._found.clear()
            else:
                self._found.append((now_s, max(0.0, (self._window.cpu_s - window.cpu_s) * 1e3 - runs_ms) / count))
        while self._found and self._found[0][0] < now_s - _VALID_S:
            self._found.popleft()
        each_ms = sorted(each for _, each in self._found)
        return each_ms[len(each_ms) // 4] if len(each_ms) >= _SURE else None

    def _begin(self, now_s: float, arrived: int) -> None:
        self._runs_ms.clear()
        self._window = _Window(now_s, self._cpu_s(), arrived)
