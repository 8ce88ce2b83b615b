"""The controller: at every tick one reading, one decision, at most one switch. A thread of its own, off the request path."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

from restnet_runtime.budget import Budget
from restnet_runtime.errors import NotLoadedError, UnitError
from restnet_runtime.policy import DEFAULTS, Candidate, Decision, History, PolicySettings, choose_for_request, decide, in_force
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route
from restnet_runtime.served import Served
from restnet_runtime.threads import affinity_cores

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 3
_NONE_LOADED = "no route is loaded"


class RouteSource(Protocol):
    """What the controller needs of a bundle."""

    @property
    def routes(self) -> Sequence[Route]: ...


class Switchable(Protocol):
    """What the controller needs of `executor.Executor`. All of it is quick and safe from any thread."""

    @property
    def bundle(self) -> RouteSource: ...
    @property
    def current(self) -> Route | None: ...
    @property
    def loaded(self) -> tuple[str, ...]: ...
    def profile(self, name: str, /) -> RouteProfile | None: ...
    def switch(self, name: str, /) -> None: ...


class ReadingSource(Protocol):
    """What the controller needs of `sensors.Sensors`."""

    def read(self) -> Reading: ...


@dataclass(frozen=True)
class Switch:
    """One entry of the log.

    at_s:           seconds since the epoch
    before, after:  names of routes; `before` is empty when none served
    feasible:       whether `after` fitted
    """

    at_s: float
    before: str
    after: str
    feasible: bool
    reason: str


@dataclass(frozen=True)
class Status:
    """A snapshot.

    decision:  the last one; `None` until a tick finds a loaded route
    reading:   the last one; `None` before it
    wanted:    the route that would be chosen afresh were every route loaded
    problem:   what went wrong in the last tick; `None` when nothing did
    switches:  the latest, oldest first
    running:   whether the thread is
    """

    budget: Budget
    decision: Decision | None
    reading: Reading | None
    wanted: str | None
    problem: str | None
    switches: tuple[Switch, ...]
    running: bool


class _Standing(NamedTuple):
    """What stands now: a decision, and the budget and reading that it was made from."""

    budget: Budget
    reading: Reading | None
    decision: Decision | None


class Controller:
    """Keeps an executor on the best of its loaded routes that fits the budget.

    interval_s:   seconds between ticks of the thread
    log_length:   how many switches are kept
    clock, wall:  seconds that never step back, for the policy; seconds since the epoch, for the log

    Every method may be called from any thread. Whoever answers requests reports them by `observe`.
    """

    def __init__(
        self,
        executor: Switchable,
        sensors: ReadingSource,
        budget: Budget | None = None,
        interval_s: float = 1.0,
        *,
        settings: PolicySettings = DEFAULTS,
        log_length: int = 256,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise UnitError(f"controller interval {interval_s!r} s must be above zero and finite")
        self._executor = executor
        self._sensors = sensors
        self._settings = settings
        self._interval_s = interval_s
        self._clock = clock
        self._wall = wall
        self._served = Served(affinity_cores())
        self._slowdown = self._served.slowdown
        # Read without a lock on the request path: one reference, only ever replaced, so that its parts belong together.
        self._standing = _Standing(Budget() if budget is None else budget, None, None)
        # Sensors and the slowdown serve one thread at a time. Taken before the next lock, never after it.
        self._sensing = threading.Lock()
        # Guards all below and the order of switches; not held while sensors are read.
        self._deciding = threading.Lock()
        self._history = History()
        self._wanted: str | None = None
        self._problem: str | None = None
        self._log: deque[Switch] = deque(maxlen=log_length)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def budget(self) -> Budget:
        """The standing budget. Setting another one decides at once, up or down, on the last reading."""
        return self._standing.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        with self._deciding:
            if budget != self._standing.budget:
                self._decide(budget, self._standing.reading)

    @property
    def decision(self) -> Decision | None:
        """The last decision; `None` until a tick finds a loaded route."""
        return self._standing.decision

    @property
    def reading(self) -> Reading | None:
        """The last one; `None` before it."""
        return self._standing.reading

    @property
    def wanted(self) -> str | None:
        """The route that would be chosen afresh were every route loaded; `None` before the first decision."""
        return self._wanted

    @property
    def memory_limit_bytes(self) -> int | None:
        """What this process may take now: the lower of the budget's limit and what the device leaves; `None` when neither is known."""
        budget, reading = self._standing[:2]
        return in_force(budget, reading or Reading(), self._settings).memory_bytes

    def observe(self, route: str, latency_ms: float) -> None:
        """Report one answered request of batch 1. For the request path: no lock, two appends. Routes without profile are left out."""
        profile = self._executor.profile(route)
        if profile is not None and profile.latency_ms > 0:
            self._slowdown.observe(latency_ms / profile.latency_ms, profile.threads)
            self._served.observe(route, latency_ms, profile)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """From now on readings have the queue's depth. depth: requests that wait or run; quick, and safe from any thread."""
        self._served.queue_depth = depth

    def tick(self) -> Decision | None:
        """Read, decide, switch; the decision, or `None` while no route is loaded.

        A failing sensor is logged and the last decision stays: blind, it neither climbs nor falls. A route that fails to switch
        is logged and left out of this tick.
        """
        with self._sensing:
            slowdown = self._slowdown.tick()
            try:
                reading = self._served.complete(replace(self._sensors.read(), slowdown=slowdown), self._clock())
            except Exception as error:
                with self._deciding:
                    before, (budget, _, decision) = self._problem, self._standing
                    decision = decision or self._decide(budget, None)
                    self._complain(f"reading the sensors failed: {error!r}", before, error)
                    return decision
            with self._deciding:
                return self._decide(self._standing.budget, reading)

    def reconsider(self) -> None:
        """The loaded routes have changed: decide at once and afresh, up or down, as after a new budget."""
        with self._deciding:
            self._history = replace(self._history, budget=None)
            self._decide(self._standing.budget, self._standing.reading)

    def decide_request(self, budget: Budget) -> Decision:
        """The loaded route for one request with limits of its own; see `choose_for_request`. Takes no lock of the controller.

        Where they narrow nothing, the last decision. Raises `InfeasibleError` while no route is loaded.
        """
        standing, reading, decision = self._standing
        if decision is not None and standing.narrowed(budget) == standing and decision.route in self._executor.loaded:
            return decision
        return choose_for_request(standing, budget, self._candidates(), reading or Reading(), self._current(), self._settings)

    def run_decided(self, budget: Budget, run: Callable[[Decision], T]) -> tuple[Decision, T]:
        """Decide for one request and run it: whatever is switched from then on, it keeps its route.

        Where that one is released before the run begins, which a request that waits for a batch can meet, it is decided once more.
        Raises what `decide_request` and `run` do.
        """
        for _ in range(_TRIES):
            decision = self.decide_request(budget)
            try:
                return decision, run(decision)
            except NotLoadedError:
                logger.info("%s was released before a request could run on it", decision.route)
        decision = self.decide_request(budget)
        return decision, run(decision)

    def status(self) -> Status:
        """What to show to people."""
        with self._deciding:
            budget, reading, decision = self._standing
            return Status(
                budget=budget,
                decision=decision,
                reading=reading,
                wanted=self._wanted,
                problem=self._problem,
                switches=tuple(self._log),
                running=self._thread is not None,
            )

    def start(self) -> None:
        """Tick once here, so that a decision stands when this returns, then every `interval_s` in a thread. Starting twice starts one."""
        self.tick()
        with self._deciding:
            if self._thread is None:
                self._stopping = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="restnet-controller", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for its tick to finish. Without one, nothing happens. It can be started again."""
        with self._deciding:
            thread, self._thread = self._thread, None
            self._stopping.set()
        if thread is not None:
            thread.join()

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._interval_s):
            try:
                self.tick()
            except Exception as error:
                with self._deciding:
                    self._complain(f"the tick failed: {error!r}", self._problem, error)

    def _current(self) -> str | None:
        route = self._executor.current
        return None if route is None else route.name

    def _candidates(self) -> list[Candidate]:
        loaded = set(self._executor.loaded)
        return [Candidate(route, self._executor.profile(route.name)) for route in self._executor.bundle.routes if route.name in loaded]

    def _decide(self, budget: Budget, reading: Reading | None) -> Decision | None:
        """Decide, switch, and let this budget, reading and decision stand. Needs `_deciding`."""
        problem, self._problem = self._problem, None
        served = self._standing.decision is not None or problem == _NONE_LOADED
        known, now_s = reading or Reading(), self._clock()
        every = [Candidate(route, self._executor.profile(route.name)) for route in self._executor.bundle.routes]
        self._wanted = choose_for_request(budget, Budget(), every, known, None, self._settings).route
        usable = self._candidates()
        history = replace(self._history, current=self._current())
        while usable:
            decision = decide(known, budget, usable, history, now_s, self._settings)
            if decision.route == history.current or self._switch(history.current or "", decision, problem):
                self._standing, self._history = _Standing(budget, reading, decision), decision.history
                return decision
            usable = [candidate for candidate in usable if candidate.route.name != decision.route]
        self._standing = _Standing(budget, reading, None)
        if self._problem is None and served:
            self._complain(_NONE_LOADED, problem, None)
        elif self._problem is None:
            self._problem = f"{_NONE_LOADED} yet"  # a start: the loader says what it does
        return None

    def _switch(self, before: str, decision: Decision, problem: str | None) -> bool:
        try:
            self._executor.switch(decision.route)
        except Exception as error:
            self._complain(f"switching to {decision.route} failed: {error!r}", problem, error)
            return False
        self._log.append(Switch(self._wall(), before, decision.route, decision.feasible, decision.reason))
        logger.info("%s -> %s: %s", before, decision.route, decision.reason)
        return True

    def _complain(self, problem: str, before: str | None, error: Exception | None) -> None:
        """Needs `_deciding`. The same problem tick after tick is logged once."""
        self._problem = problem
        if problem != before:
            logger.warning("%s", problem, exc_info=error)
