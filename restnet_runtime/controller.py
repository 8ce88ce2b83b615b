"""The controller: at every tick one reading, one decision, at most one switch. A thread of its own, off the request path.

The device is read once in `interval_s`. Between two readings it decides `BEATS` times on the last one with what requests have told since,
and at once when they say that they have become late; memory and the CPU quota, which others can take away at any moment, are looked at each
time. A request that has waited already is moved to a route that makes up for it.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, TypeVar

from restnet_runtime.budget import NO_LIMITS, Budget
from restnet_runtime.decision_log import Status, Switch
from restnet_runtime.errors import NotLoadedError, UnitError
from restnet_runtime.ladder import Candidate, Ladder
from restnet_runtime.observed import Observed
from restnet_runtime.policy import DEFAULTS, Decision, History, PolicySettings, choose_for_request, decide, in_force
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route
from restnet_runtime.switchable import Glancing, MemoryShare, ReadingSource, Switchable
from restnet_runtime.threads import affinity_cores
from restnet_runtime.units import format_ms

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 3
_NONE_LOADED = "no route is loaded"
BEATS = 4
"""Decisions in the time between two readings."""
_SURELY = 1.04
"""What is chosen for one request that has waited just fits the time that it has left: by so much less it is late less often than others."""


class _Standing(NamedTuple):
    """What stands now: a decision, and the budget (with the memory limit of the process) and reading that it was made from."""

    budget: Budget
    reading: Reading | None
    decision: Decision | None


class Controller:
    """Keeps an executor on the best of its loaded routes that fits the budget.

    interval_s:   seconds between two looks at the device
    pin:          the route that an operator wants whatever it costs, if one
    share:        of the memory of this process, where it has other models
    servers:      requests that run at once without slowing each other down, as that changes; by default what the settings say
    log_length:   how many switches are kept
    clock, wall:  seconds that never step back, for the policy; seconds since the epoch, for the log
    cpu_s:        processor time that this process has taken so far; `None` where that says nothing, as with a clock of its own

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
        cpu_s: Callable[[], float] | None = time.process_time,
        pin: str | None = None,
        servers: Callable[[], int] | None = None,
        share: MemoryShare | None = None,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise UnitError(f"controller interval {interval_s!r} s must be above zero and finite")
        self._executor = executor
        self._sensors = sensors
        self._settings, self._servers, self._share = settings, servers, share
        self._interval_s = interval_s
        self._clock = clock
        self._wall = wall
        self._observed = Observed(affinity_cores(), cpu_s)
        self._traffic = self._observed.traffic
        self._blind = True  # the last reading failed, or there was none
        self._beat = self._looks = 0
        # Read without a lock on the request path: one reference, only ever replaced, so that its parts belong together.
        self._asked = Budget() if budget is None else budget  # as it was put; what stands has the memory limit of the process
        self._standing = _Standing(self._asked, None, None)
        # Sensors and the slowdown serve one thread at a time. Taken before the next lock, never after it.
        self._sensing = threading.Lock()
        # Guards all below and the order of switches; not held while sensors are read.
        self._deciding = threading.Lock()
        self._history = History()
        self._pin = pin
        self._ladders: tuple[tuple[str, ...], Ladder, Ladder] | None = None  # what is loaded, its routes, and all of the bundle
        self._made: tuple[list[tuple[Route, RouteProfile | None]], tuple[tuple[str, ...], Ladder, Ladder]] | None = None
        self._wanted: str | None = None
        self._switched = 0
        self._problem: str | None = None
        self._log: deque[Switch] = deque(maxlen=log_length)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def beat_s(self) -> float:
        """Seconds between two calls of `step`."""
        return self._interval_s / BEATS

    @property
    def budget(self) -> Budget:
        """The standing budget. Setting another one decides at once, up or down, on the last reading."""
        return self._asked

    @budget.setter
    def budget(self, budget: Budget) -> None:
        with self._deciding:
            if budget != self._asked:
                self._asked = budget
                self._renew()
                self._decide(self._standing.reading)

    @property
    def pin(self) -> str | None:
        """The route that an operator wants whatever it costs; setting it, or `None`, acts at once. It is not checked to be a route."""
        return self._pin

    @pin.setter
    def pin(self, route: str | None) -> None:
        with self._deciding:
            if route != self._pin:
                self._pin = route
                self._history, self._ladders = replace(self._history, budget=None), None
                self._renew()
                self._decide(self._standing.reading)

    def knows(self, route: str | None) -> bool:
        """Has the bundle a route of that name? `None`, for none, can always be pinned."""
        return route is None or any(route == one.name for one in self._executor.bundle.routes)

    @property
    def decision(self) -> Decision | None:
        """The last decision; `None` until a tick finds a loaded route."""
        return self._standing.decision

    @property
    def reading(self) -> Reading | None:
        """The last one; `None` before it."""
        return self._standing.reading

    @property
    def arrived(self) -> int:
        """Requests since the start."""
        return self._traffic.arrived

    @property
    def wanted(self) -> str | None:
        """The route that would be chosen afresh were every route loaded; `None` before the first decision."""
        return self._wanted

    @property
    def memory_limit_bytes(self) -> int | None:
        """What this process may take now with the routes of this model alone; `None` where no limit is known."""
        return self.process_limit_bytes if self._share is None or self._share.others_bytes is None else self._share.limit_bytes

    @property
    def process_limit_bytes(self) -> int | None:
        """What this process may take now: the lower of the budget's limit and what the device leaves; `None` when neither is known."""
        reading = self._standing.reading or Reading()
        if reading.others_memory_bytes is not None:
            reading = reading.updated(others_memory_bytes=None)
        return in_force(self._asked, reading, self._settings_now()).memory_bytes

    def arrive(self) -> None:
        """Report a request when it comes. For the request path: one append."""
        self._traffic.arrive(self._clock())

    def observe(self, route: str, latency_ms: float, around_ms: float = 0.0) -> bool:
        """Report one answered request of batch 1. For the request path: no lock, a few appends. Routes without profile are left out.

        latency_ms: of its run; around_ms: what it took beside that and its wait, as decoding
        Returns whether the thread was woken, because requests have become late: then `react` is what it does.
        """
        profile = self._executor.profile(route)
        if profile is None:
            return False
        limit_ms, decision = self._standing.budget.latency_ms, self._standing.decision
        feasible = decision is None or decision.feasible
        longer = self._observed.observe(route, latency_ms, around_ms, profile, limit_ms, feasible, self._clock())
        if longer:
            self._wake.set()
        return longer

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """From now on readings have the queue's depth. depth: requests that wait or run; quick, and safe from any thread."""
        self._observed.served.queue_depth = depth

    def step(self) -> None:
        """What the thread does every `beat_s`: look at the device or, between two looks, decide on the last one."""
        looks, self._beat = self._beat % BEATS == 0, self._beat + 1
        if looks:
            self.tick()
        else:
            self._beat_once()

    def tick(self) -> Decision | None:
        """Read, decide, switch; the decision, or `None` while no route is loaded.

        A failing sensor is logged and the last decision stays: blind, it neither climbs nor falls. A route that fails to switch
        is logged and left out of this tick.
        """
        with self._sensing:
            self._observed.look()
            try:
                reading = self._observed.complete(self._sensors.read(), self._clock(), look=True)
                self._blind, self._looks = False, self._looks + 1
            except Exception as error:
                self._blind = True
                with self._deciding:
                    before, decision = self._problem, self._standing.decision
                    decision = decision or self._decide(None)
                    self._complain(f"reading the sensors failed: {error!r}", before, error)
                    return decision
            with self._deciding:
                self._ladders = None  # profiles may be others
                return self._decide(reading)

    def react(self) -> None:
        """Requests take longer than is known: decide on what the latest of them show, without waiting for it to be smoothed."""
        with self._sensing:
            self._observed.alarm(self._clock())
            self._again()

    def _beat_once(self) -> None:
        with self._sensing:
            self._observed.glance()
            self._again()

    def _again(self) -> None:
        """Decide on the last reading, memory and quota looked at again. Needs `_sensing`."""
        reading = self._standing.reading
        if self._blind or reading is None:
            return
        if isinstance(self._sensors, Glancing):
            with suppress(Exception):  # the next look at the device tells
                reading = self._sensors.glance(reading)
        reading = self._observed.complete(reading, self._clock(), look=False)
        with self._deciding:
            self._decide(reading)

    def reconsider(self) -> None:
        """The loaded routes have changed: decide at once and afresh, up or down, as after a new budget."""
        with self._deciding:
            self._history, self._ladders = replace(self._history, budget=None), None
            self._decide(self._standing.reading)

    def decide_request(self, budget: Budget, waited_ms: float = 0.0) -> Decision:
        """The loaded route for one request with limits of its own; see `choose_for_request`. Takes no lock of the controller.

        waited_ms: of its latency limit, what it has waited already

        Where both narrow nothing, the last decision. Raises `InfeasibleError` while no route is loaded.
        """
        standing, reading, decision = self._standing
        self._traffic.wait(waited_ms)
        behind_ms = self._traffic.behind_ms(self._clock(), waited_ms)
        both = standing if budget is NO_LIMITS or budget == NO_LIMITS else standing.narrowed(budget)
        loaded, caution = self._executor.loaded, self._observed.watch.caution
        stands = decision is not None and not caution and (both is standing or both == standing) and decision.route in loaded
        limit_ms = both.latency_ms
        left_ms = None if limit_ms is None else self._left_ms(limit_ms, waited_ms, behind_ms)
        if decision is not None and stands and _in_time(decision, left_ms, waited_ms):
            return decision
        if left_ms is not None:
            both = Budget(both.macs, left_ms, both.memory_bytes, both.min_accuracy)
        # What it waits for is known here: the wait to expect is left out.
        reading = (reading or Reading()).updated(requests_per_s=None, credit=None)
        if caution:
            reading = reading.updated(slowdown=max(caution, reading.slowdown or 0.0))
        ladder = self._loaded_ladder(loaded)
        chosen = choose_for_request(standing, both, ladder, reading, self._current(), self._settings_now(), self._pin)
        if limit_ms is None or waited_ms == 0:
            return chosen
        limits, reason = chosen.limits, chosen.reason
        if waited_ms >= limit_ms and not chosen.feasible:
            reason = (
                f"{chosen.route} serves although it is late: waited {format_ms(waited_ms)} already, and the limit is {format_ms(limit_ms)}"
            )
        return replace(chosen, limits=Budget(limits.macs, limit_ms, limits.memory_bytes, limits.min_accuracy), reason=reason)

    def _left_ms(self, limit_ms: float, waited_ms: float, behind_ms: float | None) -> float:
        """What a request may take that has waited: so much that the next in the queue can still be answered, on the quickest route."""
        left_ms = max(1e-9, (limit_ms - waited_ms) / (_SURELY if waited_ms > 0 else 1.0))
        _, reading, _ = self._standing
        known = self._ladders
        if behind_ms is None or known is None or reading is None:
            return left_ms
        quickest_ms = known[1].quickest_ms * (reading.slowdown or 1.0) * (reading.tail or 1.0) + (reading.stall_ms or 0.0)
        shared_ms = limit_ms - behind_ms - quickest_ms
        return min(left_ms, shared_ms) if shared_ms >= quickest_ms else left_ms

    def run_decided(self, budget: Budget, run: Callable[[Decision], T], waited_ms: float = 0.0) -> tuple[Decision, T]:
        """Decide for one request and run it: whatever is switched from then on, it keeps its route.

        Where that one is released before the run begins, which a request that waits for a batch can meet, it is decided once more.
        Raises what `decide_request` and `run` do.
        """
        for _ in range(_TRIES):
            decision = self.decide_request(budget, waited_ms)
            try:
                return decision, run(decision)
            except NotLoadedError:
                logger.info("%s was released before a request could run on it", decision.route)
        decision = self.decide_request(budget, waited_ms)
        return decision, run(decision)

    def status(self) -> Status:
        """What to show to people."""
        with self._deciding:
            _, reading, decision = self._standing
            return Status(
                budget=self._asked,
                decision=decision,
                reading=reading,
                looks=self._looks,
                wanted=self._wanted,
                pin=self._pin,
                problem=self._problem,
                switches=tuple(self._log),
                switched=self._switched,
                running=self._thread is not None,
            )

    def start(self) -> None:
        """Tick once here, so that a decision stands when this returns, then `step` every `beat_s` in a thread. Started twice it is one."""
        self._beat = 0
        self.step()
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
            self._wake.set()
        if thread is not None:
            thread.join()

    def _run(self, stopping: threading.Event) -> None:
        due_s = time.monotonic() + self.beat_s
        while not stopping.is_set():
            woken = self._wake.wait(max(0.0, due_s - time.monotonic()))
            if stopping.is_set():
                return
            try:
                if woken:
                    self._wake.clear()
                    self.react()
                else:
                    due_s = time.monotonic() + self.beat_s
                    self.step()
            except Exception as error:
                with self._deciding:
                    self._complain(f"the tick failed: {error!r}", self._problem, error)

    @property
    def _model(self) -> str | None:
        return None if self._share is None else self._share.model

    def _renew(self) -> None:
        if self._share is not None:
            self._share.renew()

    def _shared(self, reading: Reading | None) -> tuple[Budget, Reading | None]:
        """The budget that is in force, and a reading with what is reserved for others; as they are while there is one model."""
        others_bytes = None if self._share is None else self._share.others_bytes
        if self._share is None or others_bytes is None:
            alone = reading is None or reading.others_memory_bytes is None
            return self._asked, reading if reading is None or alone else reading.updated(others_memory_bytes=None)
        memory_bytes = self._share.budget_bytes
        budget = self._asked if memory_bytes == self._asked.memory_bytes else self._asked.narrowed(Budget(memory_bytes=memory_bytes))
        # The processor time of this process is that of all models.
        return budget, reading if reading is None else reading.updated(others_memory_bytes=others_bytes, beside_cpu_ms=None)

    def _settings_now(self) -> PolicySettings:
        if self._servers is not None and (servers := max(1, self._servers())) != self._settings.servers:
            self._settings = replace(self._settings, servers=servers)
        return self._settings

    def _current(self) -> str | None:
        route = self._executor.current
        return None if route is None else route.name

    def _loaded_ladder(self, loaded: tuple[str, ...]) -> Ladder:
        """Of the loaded routes; the one that was made last, as long as they are the same."""
        known = self._ladders
        return known[1] if known is not None and known[0] == loaded else self._made_ladders(loaded)[1]

    def _made_ladders(self, loaded: tuple[str, ...]) -> tuple[tuple[str, ...], Ladder, Ladder]:
        """What is loaded, its routes, and all routes of the bundle; made anew only where a profile is another than before."""
        profile = self._executor.profile
        every = [(route, profile(route.name)) for route in self._executor.bundle.routes]
        if self._made is not None and self._made[0] == every and self._made[1][0] == loaded:
            return self._made[1]
        candidates, names = [Candidate(*one) for one in every], set(loaded)
        whole = Ladder(candidates)
        ladders = loaded, whole if len(names) == len(every) else Ladder(one for one in candidates if one.route.name in names), whole
        self._made = every, ladders
        return ladders

    def _decide(self, reading: Reading | None) -> Decision | None:
        """Decide, switch, and let the budget, this reading and the decision stand. Needs `_deciding`."""
        budget, reading = self._shared(reading)
        problem, self._problem = self._problem, None
        if _given_back(self._standing.reading, reading):  # what was learnt to be patient about was learnt in other weather
            self._history = replace(self._history, patience_ticks=0, near_ticks=0)
        served = self._standing.decision is not None or problem == _NONE_LOADED
        known, now_s, loaded = reading or Reading(), self._clock(), self._executor.loaded
        stood = self._standing.budget
        fresh = self._ladders is None or self._ladders[0] != loaded or (budget is not stood and budget != stood)
        if self._ladders is None or self._ladders[0] != loaded:
            self._ladders = self._made_ladders(loaded)
        _, usable, every = self._ladders
        if fresh or self._wanted is None:
            self._wanted = choose_for_request(budget, NO_LIMITS, every, known, None, self._settings_now(), self._pin).route
        history, current = self._history, self._current()
        if history.current != current:
            history = replace(history, current=current)
        while usable:
            decision = decide(known, budget, usable, history, now_s, self._settings_now(), self._pin)
            if decision.route == history.current or self._switch(history.current or "", decision, problem):
                self._standing, self._history = _Standing(budget, reading, decision), decision.history
                return decision
            usable = usable.without(decision.route)
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
        self._switched += 1
        self._log.append(Switch(self._wall(), before, decision.route, decision.feasible, decision.reason))
        facts = {"event": "switch", "before": before, "after": decision.route, "feasible": decision.feasible, "reason": decision.reason}
        logger.info("%s -> %s: %s", before, decision.route, decision.reason, extra={"facts": facts, "model": self._model})
        return True

    def _complain(self, problem: str, before: str | None, error: Exception | None) -> None:
        """Needs `_deciding`. The same problem tick after tick is logged once."""
        self._problem = problem
        if problem != before:
            logger.warning("%s", problem, exc_info=error, extra={"model": self._model})


def _in_time(decision: Decision, left_ms: float | None, waited_ms: float) -> bool:
    """Is what was decided still within the limit for a request that has waited? What does not fit anyway is not made up for here."""
    return waited_ms <= 0 or left_ms is None or decision.predicted_ms is None or decision.predicted_ms <= left_ms


def _given_back(before: Reading | None, now: Reading | None) -> bool:
    """Has a CPU quota been raised or lifted?"""
    if before is None or now is None or before.cpu_quota_cores is None:
        return False
    return now.cpu_quota_cores is None or now.cpu_quota_cores > before.cpu_quota_cores
