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
_LONGEST_S = 5.0
"""Not over longer: what the server does anyway would be counted as that of the few requests there were."""
_KEPT, _FEWEST = 9, 3
"""Of so many findings a low one is taken, once there are a few: loading and timing routes makes some too high, few are too low."""
_VALID_S = 30.0
_UNTOLD = 0.1
"""The share of requests that may arrive without being told of, as those of several inputs, refused ones and those that a growing queue
holds: where there are more of them than that, all that is known is forgotten, and the careful share of `quota.py` stands."""


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
        self._runs: deque[tuple[str, float]] = deque(maxlen=4096)
        self._window: _Window | None = None
        # By route: when, and milliseconds for each request. What a run takes beyond its profile is in it, and more so of long ones.
        self._found: dict[str, deque[tuple[float, float]]] = {}

    def observe(self, route: str, profile_ms: float, threads: int) -> None:
        """One answered request: of its run, what was profiled, and on how many threads."""
        self._runs.append((route, profile_ms * threads))

    def take(self, now_s: float, arrived: int) -> float | None:
        """Milliseconds for each request, from one thread at a time; `None` where too little is known of late.

        now_s: seconds that never step back; arrived: requests since the start

        Of several routes that served lately it is that of the one with most: or what was learnt on a small one would let a large one in,
        which then learns that there is no room for it.
        """
        window, answered = self._window, len(self._runs)
        came = 0 if window is None else arrived - window.arrived
        if window is None or came == 0 or now_s - window.since_s > _LONGEST_S:
            self._runs.clear()
            self._window = _Window(now_s, self._cpu_s(), arrived)
        elif answered >= _LEAST or came >= 2 * _LEAST:
            runs = [self._runs.popleft() for _ in range(answered)]
            self._window = _Window(now_s, self._cpu_s(), arrived)
            if abs(came - answered) > max(2.0, _UNTOLD * came):
                self._found.clear()
            else:
                each_ms = ((self._window.cpu_s - window.cpu_s) * 1e3 - sum(run_ms for _, run_ms in runs)) / answered
                self._found.setdefault(runs[-1][0], deque(maxlen=_KEPT)).append((now_s, max(0.0, each_ms)))
        known = [self._known(found, now_s) for found in self._found.values()]
        return max((each_ms for each_ms in known if each_ms is not None), default=None)

    def _known(self, found: deque[tuple[float, float]], now_s: float) -> float | None:
        while found and found[0][0] < now_s - _VALID_S:
            found.popleft()
        ordered = sorted(each_ms for _, each_ms in found)
        return ordered[len(ordered) // 4] if len(ordered) >= _FEWEST else None
