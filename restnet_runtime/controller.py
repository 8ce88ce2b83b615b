"""The controller: at every tick, one reading, one decision, at most one switch. A thread of its own, off the request path."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from restnet_runtime.budget import Budget
from restnet_runtime.errors import UnitError
from restnet_runtime.policy import DEFAULTS, Candidate, Decision, History, PolicySettings, choose_for_request, decide
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

logger = logging.getLogger(__name__)


class Switchable(Protocol):
    """What the controller needs of an executor."""

    @property
    def current(self) -> Route:
        """The route that serves."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the routes that can be switched to now."""

    def switch(self, route: str, /) -> None:
        """Make a loaded route the current one."""


class ReadingSource(Protocol):
    """What the controller needs of sensors."""

    def read(self) -> Reading:
        """One sample."""


class Slowdown:
    """How much slower than profiled requests are now: per tick the median of latency over profile, smoothed over ticks (EWMA).

    The median keeps single slow requests out; the smoothing starts from 1.0, which is what the profile promises.
    """

    def __init__(self, weight: float = 0.5, stale_ticks: int = 30) -> None:
        self._weight = weight
        self._stale_ticks = stale_ticks
        self._ratios: deque[float] = deque(maxlen=512)
        self._value = 1.0
        self._idle_ticks = stale_ticks

    def observe(self, ratio: float) -> None:
        """One request. Costs an append; safe from any thread."""
        if 0 < ratio < math.inf:
            self._ratios.append(ratio)

    def tick(self) -> float | None:
        """Take in what was observed since the last tick. `None` before the first request and after `stale_ticks` without one."""
        ratios = [self._ratios.popleft() for _ in range(len(self._ratios))]
        if ratios:
            start = self._value if self._idle_ticks < self._stale_ticks else 1.0
            self._value = start + self._weight * (median(ratios) - start)
            self._idle_ticks = 0
        else:
            self._idle_ticks = min(self._idle_ticks + 1, self._stale_ticks)
        return self._value if self._idle_ticks < self._stale_ticks else None


@dataclass(frozen=True)
class Switch:
    """One entry of the log. at_s: seconds since the epoch."""

    at_s: float
    before: str
    after: str
    feasible: bool
    reason: str


@dataclass(frozen=True)
class Status:
    """A snapshot.

    decision:  the last one; `None` before the first tick
    reading:   what it was made from
    wanted:    the route that the policy would choose were all of them loaded
    problem:   why the last tick could not read or switch; `None` when all is well
    switches:  the latest switches, oldest first
    """

    budget: Budget
    decision: Decision | None
    reading: Reading | None
    wanted: str | None
    problem: str | None
    switches: tuple[Switch, ...]
    running: bool


class Controller:
    """Keeps `executor` on the best of its loaded routes that fits `budget`.

    candidates:   every route that may serve, with its profile
    interval_s:   seconds between ticks of the thread
    log_length:   how many switches the log keeps
    clock, wall:  monotonic seconds for the policy, seconds since the epoch for the log

    Only loaded routes are switched to. All methods may be called from any thread.
    """

    def __init__(
        self,
        executor: Switchable,
        sensors: ReadingSource,
        candidates: Sequence[Candidate],
        budget: Budget | None = None,
        *,
        interval_s: float = 1.0,
        settings: PolicySettings = DEFAULTS,
        log_length: int = 256,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise UnitError(f"interval {interval_s!r} s must be above zero and finite")
        self._executor = executor
        self._sensors = sensors
        self._candidates = tuple(candidates)
        self._latencies_ms: Mapping[str, float] = {
            candidate.route.name: candidate.profile.latency_ms for candidate in self._candidates if candidate.profile is not None
        }
        self._settings = settings
        self._interval_s = interval_s
        self._clock = clock
        self._wall = wall
        self._slowdown = Slowdown()
        # One tick at a time; never taken on the request path.
        self._ticking = threading.Lock()
        # Guards what follows; held for a decision, never for reading sensors.
        self._lock = threading.Lock()
        self._budget = Budget() if budget is None else budget
        self._history = History()
        self._reading: Reading | None = None
        self._decision: Decision | None = None
        self._wanted: str | None = None
        self._problem: str | None = None
        self._log: deque[Switch] = deque(maxlen=log_length)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def budget(self) -> Budget:
        """The standing budget. Setting another one decides at once, up or down, on the latest reading."""
        with self._lock:
            return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        with self._lock:
            if budget != self._budget:
                self._budget = budget
                self._decide(self._reading or Reading())

    def observe(self, route: str, latency_ms: float) -> None:
        """Report one answered request of batch 1. Made for the request path: no lock, well under a microsecond or two."""
        profiled = self._latencies_ms.get(route)
        if profiled:
            self._slowdown.observe(latency_ms / profiled)

    def tick(self) -> Decision:
        """Read, decide, switch. A reading that fails is logged and keeps the last decision; so does a switch that fails."""
        with self._ticking:
            slowdown = self._slowdown.tick()
            try:
                reading = replace(self._sensors.read(), slowdown=slowdown)
            except Exception as error:
                with self._lock:
                    self._complain("reading the sensors failed", error)
                    # Blind, it neither climbs nor falls; but the very first decision must come from somewhere.
                    return self._decision or self._decide(Reading(slowdown=slowdown))
            with self._lock:
                self._problem = None if self._problem is None or not self._problem.startswith("reading") else None
                return self._decide(reading)

    def decide_request(self, limits: Budget) -> Decision:
        """The route for one request with limits of its own. See `choose_for_request`."""
        current = self._executor.current.name
        with self._lock:
            standing, reading = self._budget, self._reading or Reading()
        return choose_for_request(standing, limits, self._loaded(), reading, current, self._settings)

    def status(self) -> Status:
        """A snapshot for people and for `/status`."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            return Status(self._budget, self._decision, self._reading, self._wanted, self._problem, tuple(self._log), running)
