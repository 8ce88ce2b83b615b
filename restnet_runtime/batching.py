"""The batcher: requests that meet on one route share a run, and each gets its own row.

At most `settings.runs` batches are run at once. A request for which the plan sees nothing to gain, a lone one above all, is run at once.
Of the others, who finds a run free leads it; who finds none waits, and whoever ends a run picks the next leader, first come first
served, with all that wait for the same. A leader waits a moment for company that is on its way where the plan says so. There is
no thread here and no queue of anything but blocked callers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from restnet_runtime.batch_plan import BatchSettings, Mode, Plan, plan
from restnet_runtime.batch_trials import BatchTrials
from restnet_runtime.errors import RestnetError
from restnet_runtime.executor import Answer
from restnet_runtime.profile import RouteProfile

Input = npt.NDArray[np.float32]

_SINGLE_EVERY = 16
"""Of so many batches in a row one is of a single request: only that can be compared with the route's profile."""


class Runner(Protocol):
    """What the batcher needs of `executor.Executor`."""

    def run(self, x: Input, route: str | None = None, /) -> Answer: ...
    def profile(self, name: str, /) -> RouteProfile | None: ...


@dataclass(frozen=True)
class Batched:
    """One caller's answer. Its `latency_ms` is of the session's run, with all that shared it.

    size:       how many requests shared the run
    queued_ms:  from the arrival to the start of the run
    """

    answer: Answer
    size: int = 1
    queued_ms: float = 0.0


@dataclass(frozen=True)
class BatchCounts:
    """What has been run since the start; nothing is counted with batching off.

    requests:  answered or failed
    shared:    of these, how many shared a run
    runs:      as many as were needed
    """

    mode: Mode
    requests: int
    shared: int
    runs: int


Run = Callable[[Input, str, float | None], Batched]
"""`Batcher.run`."""
_Key = tuple[str, float | None, tuple[int, ...], str]
"""Route, limit, shape and type of the input. Only requests with all of it the same share a run: a malformed one fails by itself."""


@dataclass(eq=False, slots=True)
class _Request:
    """One blocked caller. `woken` is released when it leads `group`, or has its outcome."""

    x: Input
    key: _Key
    arrived_s: float
    attending: bool
    woken: threading.Lock
    group: "_Group | None" = None
    outcome: Batched | Exception | None = None

    @property
    def single(self) -> bool:
        return len(self.x) == 1


@dataclass(eq=False, slots=True)
class _Group:
    """Requests that run together; the first leads.

    plan:    what was aimed for, in and out of turn
    trials:  what is told of the run
    gated:   it has one of `settings.runs`
    beside:  others were running when it started
    ready:   there while the leader waits for company, which it ends
    run_ms:  of the session
    """

    requests: list[_Request]
    plan: Plan
    trials: BatchTrials | None
    gated: bool
    beside: bool
    out_of_turn: bool = False
    ready: threading.Event | None = None
    run_ms: float | None = None


class Batcher:
    """Runs requests on the routes that were chosen for them. Thread safe; `run` blocks until the request is answered."""

    def __init__(self, executor: Runner, settings: BatchSettings | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds that never step back."""
        self.settings = settings or BatchSettings()
        self._executor, self._clock = executor, clock
        self._lock = threading.Lock()  # guards all below; nothing is run and nobody waited for while it is held
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._coming = 0  # attending, without a route yet or any more
        self._company: dict[_Key, int] = {}
        self._running = self._gated = 0
        self._busy_since_s = 0.0
        self._waiting: list[_Request] = []
        self._open: dict[_Key, _Group] = {}  # their leaders wait for company
        self._trials: dict[tuple[str, int], BatchTrials] = {}
        self._requests = self._shared = self._runs = self._turns = 0

    def run(self, x: Input, route: str, limit_ms: float | None = None) -> Batched:
        """Run x (batch, C, H, W) float32 on `route`, a single input together with others on that route where that pays.

        limit_ms: of the request, from its arrival to the end of its run; `None` for no limit
        Raises what `Executor.run` does, each caller of a batch its own, and `RestnetError` after `close`.
        """
        return Batched(self._executor.run(x, route)) if self.settings.mode == "off" else self._run(x, route, limit_ms)

    @contextmanager
    def attend(self) -> Iterator[Run]:
        """Yields `run`. For callers that still have to find out what to run: meanwhile they count as company that may come."""
        if self.settings.mode == "off":
            yield self.run
            return
        with self._lock:
            self._coming += 1
        try:
            yield partial(self._run, attending=True)
        finally:
            with self._lock:
                self._coming -= 1

    def counts(self) -> BatchCounts:
        with self._lock:
            return BatchCounts(self.settings.mode, self._requests, self._shared, self._runs)

    def close(self) -> None:
        """Refuse new requests, and wait until those that are here are answered. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._hurry()
            self._idle.wait_for(lambda: not (self._running or self._waiting))

    def _run(self, x: Input, route: str, limit_ms: float | None, attending: bool = False) -> Batched:
        woken = threading.Lock()
        woken.acquire()
        request = _Request(x, (route, limit_ms, x.shape[1:], x.dtype.str), self._clock(), attending, woken)
        with self._lock:
            if self._closed:
                raise RestnetError("no more requests are run: the engine has been stopped")
            self._coming -= attending
            self._company[request.key] = self._company.get(request.key, 0) + 1
            self._enter(request)
        try:
            woken.acquire()
            if request.outcome is None:
                self._lead(request)
        finally:
            with self._lock:
                self._leave(request)
        if isinstance(request.outcome, Batched):
            return request.outcome
        assert request.outcome is not None
        raise request.outcome

    def _enter(self, request: _Request) -> None:
        """Join a group that waits for company, lead a run of one's own, or wait for one. Needs the lock."""
        group = self._open.get(request.key)
        if group is not None and request.single:
            group.requests.append(request)
            request.group = group
            if len(group.requests) >= group.plan.size:
                self._start(group)
        elif not self._form(request):
            self._waiting.append(request)
            self._hurry()  # whoever waits for company keeps this one waiting

    def _form(self, leader: _Request) -> bool:
        """Give `leader` a run, with those who wait for the same; whether one could be had. Needs the lock."""
        now_s, mates, trials, planned = self._clock(), [], None, Plan()
        company = self._company[leader.key] + self._coming if leader.single else 1
        if leader.single:
            trials = self._trials_of(leader.key[0], min(company, self.settings.max_batch))
        if company > 1 and trials is not None:
            mates = [other for other in self._waiting if other is not leader and other.key == leader.key and other.single]
            waited_ms = (now_s - leader.arrived_s) * 1e3
            measured, limit_ms = trials.measured, leader.key[1]
            planned = plan(measured, limit_ms, company, self.settings, gathered=1 + len(mates), waited_ms=waited_ms)
        gated = planned.size > 1
        if gated and self._gated >= self.settings.runs:
            return False
        group = leader.group = _Group([leader], planned, trials, gated, beside=self._running > 0)
        self._turns += gated
        if gated and self._turns % _SINGLE_EVERY == 0:
            group.out_of_turn = True
        elif gated:
            for mate in mates[: planned.size - 1]:
                self._waiting.remove(mate)
                mate.group = group
                group.requests.append(mate)
            # Never while others wait: they could have this run.
            others = len(self._waiting) - (leader in self._waiting)
            if planned.wait_ms > 0 and len(group.requests) < planned.size and not others and not self._closed:
                group.ready = threading.Event()
                self._open[leader.key] = group
        if not self._running:
            self._busy_since_s = now_s
        self._running += 1
        self._gated += gated
        leader.woken.release()
        return True

    def _trials_of(self, route: str, most: int) -> BatchTrials:
        """By power of two of the company: what pays with eight does not have to with two."""
        most = 2 ** (most.bit_length() - 1)
        trials = self._trials.get((route, most))
        if trials is None:
            profile = self._executor.profile(route)
            trials = self._trials[route, most] = BatchTrials(most, None if profile is None else profile.latency_ms)
        return trials

    def _start(self, group: _Group) -> None:
        """Nobody joins any more. Needs the lock."""
        if self._open.get(group.requests[0].key) is group:
            del self._open[group.requests[0].key]
        if group.ready is not None:
            group.ready.set()

    def _hurry(self) -> None:
        for group in list(self._open.values()):
            self._start(group)

    def _lead(self, leader: _Request) -> None:
        """Run the group of `leader`, and give each of it its outcome."""
        group = leader.group
        assert group is not None
        if group.ready is not None and not group.ready.wait(group.plan.wait_ms / 1e3):
            with self._lock:
                self._start(group)
        requests, started_s = group.requests, self._clock()
        try:
            x = leader.x if len(requests) == 1 else np.concatenate([request.x for request in requests])
            answer = self._executor.run(x, leader.key[0])
        except Exception as error:
            for request in requests:
                request.outcome = error if request is leader else _own(error)
            return
        group.run_ms = answer.latency_ms
        for row, request in enumerate(requests):
            own = answer if len(requests) == 1 else Answer(answer.logits[row : row + 1], answer.route, answer.latency_ms)
            request.outcome = Batched(own, len(requests), (started_s - request.arrived_s) * 1e3)

    def _leave(self, request: _Request) -> None:
        """However it ended. Who led gives the others their outcomes, and the run to the next. Needs the lock."""
        group = request.group
        if group is None:
            self._waiting.remove(request)  # interrupted before its turn
        elif request is group.requests[0]:
            self._finish(group)
        elif request.outcome is None and self._open.get(request.key) is group:
            group.requests.remove(request)  # interrupted before the run
        # Only now: to those who were planned for just above, it was company that may come again.
        self._company[request.key] -= 1
        if not self._company[request.key]:
            del self._company[request.key]
        self._coming += request.attending
        self._idle.notify_all()

    def _finish(self, group: _Group) -> None:
        """The leader of `group` has ended its run, or was interrupted; then the others wait again, in front. Needs the lock."""
        self._start(group)
        self._note(group)
        self._running -= 1
        self._gated -= group.gated
        for place, other in enumerate(group.requests[1:]):
            if other.outcome is not None:
                other.woken.release()
            else:
                other.group = None
                self._waiting.insert(place, other)
        while self._waiting and self._form(self._waiting[0]):
            del self._waiting[0]

    def _note(self, group: _Group) -> None:
        """Count a run that has ended, and learn from it. Needs the lock."""
        if group.requests[0].outcome is None:
            return
        size, now_s = len(group.requests), self._clock()
        self._runs += 1
        self._requests += size
        self._shared += size if size > 1 else 0
        if group.trials is not None and group.run_ms is not None:
            alone = not group.beside and self._running == 1
            aim = None if group.out_of_turn else group.plan.size
            group.trials.record(aim, size, (now_s - self._busy_since_s) * 1e3, group.run_ms if alone or group.gated else None)
        self._busy_since_s = now_s


def _own(error: Exception) -> Exception:
    """An error like `error`: one that several threads raise would mix their tracebacks."""
    twin: Exception = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error
    return twin
