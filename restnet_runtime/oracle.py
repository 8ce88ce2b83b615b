"""The oracle: the best that could be done on a course, knowing all of it: first as few late answers as can be, then the most accuracy.

It takes one route for each moment, a second, or with `moment_s=0` for each request: what no policy can
beat, because that goes by how long each single run will happen to take.

Dynamic programming from the last request to the first. The state is how long a request has to wait; it is rounded up to a grid, so that
what is found can be done: the plan is then run on the course as any policy is.
"""

import math
from itertools import groupby

import numpy as np
import numpy.typing as npt

from restnet_runtime.course import Course

_CELLS = 96
_LONGEST = 2.0  # waits beyond so many latency budgets are taken for that
_IN_TIME = 1000.0

_Floats = npt.NDArray[np.float64]


class Oracle:
    """Plays the plan. numpy holds it: moments x cells, what can still be won from a wait on."""

    beat_s, switched = math.inf, None

    def __init__(self, course: Course, small: int, moment_s: float = 1.0) -> None:
        self.name = "oracle" if moment_s else "oracle of each request"
        self._course = course
        fares = course.fares
        self._run_ms: _Floats = np.array([fare.run_ms for fare in fares], np.float64)
        self._memory: _Floats = np.array([fare.memory_bytes for fare in fares])
        self._gain: _Floats = _IN_TIME + np.array([fare.accuracy for fare in fares]) - fares[small].accuracy
        self._cell_ms = _LONGEST * course.limit_ms / _CELLS
        self._gaps_ms: _Floats = np.diff(np.array([*course.arrivals_s, np.inf])) * 1e3
        requests = range(len(course.arrivals_s))
        if moment_s:
            self._moments = [list(group) for _, group in groupby(requests, lambda index: int(course.arrivals_s[index] / moment_s))]
        else:
            self._moments = [[index] for index in requests]
        self._value: _Floats = np.zeros((len(self._moments) + 1, _CELLS + 1))
        waits_ms: _Floats = np.arange(_CELLS + 1, dtype=np.float64) * self._cell_ms
        for place in range(len(self._moments) - 1, -1, -1):
            self._value[place] = self._worth(place, waits_ms).max(axis=0)
        self._place = self._left = self._route = 0

    def step(self, now_s: float) -> None: ...
    def arrive(self, now_s: float) -> None: ...
    def observe(self, now_s: float, route: int, run_ms: float) -> None: ...
    def free_s(self, now_s: float) -> float:
        return now_s

    def choose(self, _now_s: float, waited_ms: float) -> int:
        if self._left == 0:
            self._route = int(np.argmax(self._worth(self._place, np.array([waited_ms]))[:, 0]))
            self._left = len(self._moments[self._place])
            self._place += 1
        self._left -= 1
        return self._route

    def _worth(self, place: int, waits_ms: _Floats) -> _Floats:
        """(routes, waits): what each route wins in a moment whose first request waited so long, and what can be won after it."""
        course = self._course
        wait: _Floats = np.broadcast_to(waits_ms, (len(self._run_ms), len(waits_ms)))
        won: _Floats = np.zeros(wait.shape)
        for index in self._moments[place]:
            moment = course.moment(course.arrivals_s[index] + float(wait[0, 0]) / 1e3)
            ends_ms = wait + (self._run_ms * moment.stretch * course.noise[index])[:, None]
            met = (ends_ms <= course.limit_ms) & (self._memory <= moment.memory_available_bytes)[:, None]
            won += np.where(met, self._gain[:, None], 0.0)
            wait = np.maximum(0.0, ends_ms - self._gaps_ms[index])
        after = np.clip(np.ceil(wait / self._cell_ms), 0, _CELLS).astype(np.intp)
        worth: _Floats = won + self._value[place + 1][after]
        return worth
