"""The oracle: the best that any policy could do on a course, knowing all of it: first as few late answers as can be, then the most accuracy.

Dynamic programming from the last request to the first. The state is how long a request has to wait; it is rounded up to a grid, so that
what is found can be done: the plan is then run on the course as any policy is.
"""

import numpy as np

from restnet_runtime.course import Course

_CELLS = 96
_LONGEST = 2.0  # waits beyond so many latency budgets are taken for that


class Oracle:
    """Plays the plan. numpy holds it: requests x cells, what can still be won from a wait on."""

    name, beat_s = "oracle", float("inf")

    def __init__(self, course: Course, small: int) -> None:
        self._course, self._index = course, 0
        fares = course.fares
        self._run_ms = np.array([fare.run_ms for fare in fares])
        self._memory = np.array([fare.memory_bytes for fare in fares])
        self._gain = 1000.0 + np.array([fare.accuracy for fare in fares]) - fares[small].accuracy  # in time before accurate
        self._fastest = int(np.argmin(self._run_ms))
        self._cell_ms = _LONGEST * course.limit_ms / _CELLS
        self._gaps_ms = np.diff(np.array([*course.arrivals_s, np.inf])) * 1e3
        self._value = self._plan()

    def step(self, now_s: float) -> None: ...
    def arrive(self, now_s: float) -> None: ...
    def observe(self, now_s: float, route: int, run_ms: float) -> None: ...
    def free_s(self, now_s: float) -> float:
        return now_s

    def choose(self, now_s: float, waited_ms: float) -> int:
        index, self._index = self._index, self._index + 1
        return int(np.argmax(self._worth(index, np.array([waited_ms]))[:, 0]))

    def _worth(self, index: int, waits_ms: np.ndarray) -> np.ndarray:
        """(routes, waits): what each route wins for a request that waited, and what can be won after it."""
        course = self._course
        moment = course.moment(course.arrivals_s[index] + float(waits_ms[0]) / 1e3)
        ends_ms = waits_ms[None, :] + (self._run_ms * moment.stretch * course.noise[index])[:, None]
        met = (ends_ms <= course.limit_ms) & (self._memory <= moment.memory_available_bytes)[:, None]
        after = np.clip(np.ceil((ends_ms - self._gaps_ms[index]) / self._cell_ms), 0, _CELLS).astype(np.intp)
        return np.where(met, self._gain[:, None], 0.0) + self._value[index + 1][after]

    def _plan(self) -> np.ndarray:
        requests = len(self._course.arrivals_s)
        self._value = np.zeros((requests + 1, _CELLS + 1))
        waits_ms = np.arange(_CELLS + 1) * self._cell_ms
        for index in range(requests - 1, -1, -1):
            self._value[index] = self._worth(index, waits_ms).max(axis=0)
        return self._value
