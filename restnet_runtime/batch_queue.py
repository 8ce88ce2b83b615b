"""The queue of a batcher: who leads a run, who joins it, and who waits for one. States and events; nothing here blocks or runs anything.

Batches are run one at a time, or as many as the cores carry. A request for which the plan sees nothing to gain, a lone one above all,
is run at once. Of the others, who finds a run free leads it; who finds none waits, and whoever ends a run makes room for the next
leader: first come, first served, with all that wait for the same. A leader waits a moment for company that is on its way where
the plan says so, but never while others wait.

In mode auto a request is asked about first (`apart`): for which nothing is to be gained together, that one does not come here at all.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from restnet_runtime.batch_apart import Apart
from restnet_runtime.batch_plan import BatchSettings, Plan, plan
from restnet_runtime.batch_trials import BatchTrials

Input = npt.NDArray[np.float32]
Key = tuple[str, float | None, tuple[int, ...], str]
"""Route, limit in ms, shape and type of the input. Only requests with all of it the same share a run: a malformed one fails by itself."""

SINGLE_EVERY = 16
"""Of so many batches in a row one is of a single request: only that can be compared with the route's profile."""
_FADE = 63 / 64
"""A peak of company counts for so much less with every request."""


class Event(Protocol):
    """What waiting callers are told by. A `threading.Event` will do."""

    def set(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


@dataclass(eq=False, slots=True)
class Request:
    """One caller.

    wake:       called when it leads `group`, or has its outcome
    attending:  as what it was counted among the coming before, and will be again; `None` if it was not
    expires_s:  from then on it is not run
    outcome:    whatever its owner makes of the run; `None` before
    gone:       it has left
    """

    x: Input
    key: Key
    arrived_s: float
    wake: Callable[[], None]
    attending: object = None
    expires_s: float = math.inf
    group: "Group | None" = None
    outcome: Any = None
    gone: bool = False

    @property
    def single(self) -> bool:
        return len(self.x) == 1


@dataclass(eq=False, slots=True)
class Group:
    """Requests that run together; the first leads.

    plan:         what is aimed for
    trials:       what is told of the run; `None` where there is nothing to learn
    gated:        it is one of the batches that may run at once
    beside:       others were running when it started
    out_of_turn:  a single request all the same
    ready:        there while the leader waits for company, which it ends
    run_ms:       of the session; `None` before, and after an error
    """

    requests: list[Request]
    plan: Plan
    trials: BatchTrials | None
    gated: bool
    beside: bool
    out_of_turn: bool = False
    ready: Event | None = None
    run_ms: float | None = None


class BatchQueue:
    """Not thread safe but for `beside`, `coming` and `apart`: its owner holds one lock for all the others.

    runs:        how many batches may run at once now
    single_ms:   profiled milliseconds of a single run of a route, `None` if unknown
    make_event:  of new `Event`s
    room:        how many inputs a run of a route may have now
    """

    def __init__(
        self,
        settings: BatchSettings,
        runs: Callable[[], int],
        single_ms: Callable[[str], float | None],
        make_event: Callable[[], Event],
        room: Callable[[str], int] = lambda _: sys.maxsize,
    ) -> None:
        self._settings, self._at_once, self._single_ms, self._make_event = settings, runs, single_ms, make_event
        self._room = room
        self._closed = False
        self.coming: set[object] = set()
        """Requests that are here without a route yet, or any more."""
        self.beside = Apart()
        """Requests that run without this queue."""
        self._company: dict[Key, int] = {}
        self._running = self._gated = 0
        self._busy_since_s = 0.0
        self._waiting: list[Request] = []
        self._open: dict[Key, Group] = {}  # their leaders wait for company
        self._trials: dict[tuple[str, int], BatchTrials] = {}
        self._peaks: dict[str, float] = {}  # of company, by route; two threads that set one at once may lose one
        self.requests = self.shared = self.runs = self._turns = 0

    @property
    def idle(self) -> bool:
        return not (self._running or self._waiting or self.beside.running)

    def apart(self, key: Key, attending: object = None) -> tuple[bool, BatchTrials | None]:
        """Whether a single request of that key, which is not here yet, had better run by itself; and what is told of it then."""
        company = 1 + self._others(key) - (attending in self.coming)
        if company <= 1:
            return True, None
        trials = self._trials_of(key[0], company)
        if trials.alone:
            return True, trials
        return plan(trials.measured, key[1], min(company, self._room(key[0])), self._settings).size == 1, trials

    def look(self) -> None:
        """Count what ran apart since, and learn from it."""
        ended = self.beside.take()
        self.requests += ended
        self.runs += ended

    def close(self) -> None:
        """Nobody waits for company any more."""
        self._closed = True
        self._hurry()

    def enter(self, request: Request, now_s: float) -> None:
        """Join a group that waits for company, lead a run of one's own, or wait for one."""
        self.coming.discard(request.attending)
        self._company[request.key] = self._company.get(request.key, 0) + 1
        group = self._open.get(request.key)
        if group is not None and request.single:
            group.requests.append(request)
            request.group = group
            if len(group.requests) >= group.plan.size:
                self.start(group)
        elif not self._form(request, now_s):
            self._waiting.append(request)
            self._hurry()  # whoever waits for company keeps this one waiting

    def start(self, group: Group) -> None:
        """Nobody joins any more."""
        if self._open.get(group.requests[0].key) is group:
            del self._open[group.requests[0].key]
        if group.ready is not None:
            group.ready.set()

    def leave(self, request: Request, now_s: float) -> None:
        """However it ended. Who led gives the others their outcomes, and the run to the next."""
        group, request.gone = request.group, True
        if group is None:
            self._waiting.remove(request)  # interrupted before its turn
        elif request is group.requests[0]:
            self._finish(group, now_s)
        elif request.outcome is None and self._open.get(request.key) is group:
            group.requests.remove(request)  # interrupted before the run
        # Only now: to those who were planned for just above, it was company that may come again.
        self._company[request.key] -= 1
        if not self._company[request.key]:
            del self._company[request.key]
        if request.attending is not None:
            self.coming.add(request.attending)

    def _form(self, leader: Request, now_s: float) -> bool:
        """Give `leader` a run, with those who wait for the same; whether one could be had."""
        company = self._others(leader.key) if leader.single else 1
        mates: list[Request] = []
        planned, trials = Plan(), None
        if company > 1:
            trials = self._trials_of(leader.key[0], company)
            mates = [other for other in self._waiting if other is not leader and other.key == leader.key and other.single]
            waited_ms = (now_s - leader.arrived_s) * 1e3
            most = min(company, self._room(leader.key[0]))
            planned = plan(trials.measured, leader.key[1], most, self._settings, gathered=min(most, 1 + len(mates)), waited_ms=waited_ms)
        gated = planned.size > 1
        if gated and self._gated >= self._at_once():
            return False
        group = leader.group = Group([leader], planned, trials, gated, beside=self._running + self.beside.running > 0)
        self._turns += gated
        if gated and self._turns % SINGLE_EVERY == 0:
            group.out_of_turn = True
        elif gated:
            for mate in mates[: planned.size - 1]:
                self._waiting.remove(mate)
                mate.group = group
                group.requests.append(mate)
            others = len(self._waiting) - (leader in self._waiting)
            if planned.wait_ms > 0 and len(group.requests) < planned.size and not others and not self._closed:
                group.ready = self._make_event()
                self._open[leader.key] = group
        if not self._running:
            self._busy_since_s = now_s
        self._running += 1
        self._gated += gated
        leader.wake()
        return True

    def _others(self, key: Key) -> int:
        """Requests in flight that may share a run of that key, or come to."""
        return self._company.get(key, 0) + self.beside.company(key) + len(self.coming)

    def _trials_of(self, route: str, company: int) -> BatchTrials:
        """By power of two of the company, of late at its peak: what pays with eight does not have to with two."""
        peak = self._peaks[route] = max(company, _FADE * self._peaks.get(route, 0.0))
        most = 2 ** (min(round(peak), self._settings.max_batch).bit_length() - 1)
        known = self._trials.get((route, most))
        return known or self._trials.setdefault((route, most), BatchTrials(most, self._single_ms(route)))

    def _hurry(self) -> None:
        for group in list(self._open.values()):
            self.start(group)

    def _finish(self, group: Group, now_s: float) -> None:
        """The leader has ended its run, or was interrupted; then the others wait again, in front."""
        self.start(group)
        self._note(group, now_s)
        self._running -= 1
        self._gated -= group.gated
        for place, other in enumerate(group.requests[1:]):
            if other.outcome is not None:
                other.wake()
            elif not other.gone:
                other.group = None
                self._waiting.insert(place, other)
        while self._waiting and self._form(self._waiting[0], now_s):
            del self._waiting[0]

    def _note(self, group: Group, now_s: float) -> None:
        """Count a run that has ended, and learn from it."""
        if group.requests[0].outcome is None:
            return
        size = len(group.requests)
        self.runs += 1
        self.requests += size
        self.shared += size if size > 1 else 0
        if group.trials is not None and group.run_ms is not None:
            alone = group.gated or (not group.beside and self._running == 1)
            aim = None if group.out_of_turn else group.plan.size
            group.trials.record(aim, size, (now_s - self._busy_since_s) * 1e3, group.run_ms if alone else None)
        self._busy_since_s = now_s
