"""The batcher: requests that meet on one route share a run, and each gets its own row.

At most `settings.runs` runs are under way at once. Who finds one free leads it; who finds none waits, and whoever ends a run picks
the next leader, first come first served, with all that wait for the same. There is no thread of its own and no queue of anything but
blocked callers. A leader that is told so by the plan waits a moment for company that is on its way; without any in flight it never does.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from restnet_runtime.batch_plan import BatchSettings, Mode, Plan, plan
from restnet_runtime.batch_times import BatchTimes
from restnet_runtime.errors import RestnetError
from restnet_runtime.executor import Answer

Input = npt.NDArray[np.float32]


class Runner(Protocol):
    """What the batcher needs of `executor.Executor`."""

    def run(self, x: Input, route: str | None = None, /) -> Answer: ...


@dataclass(frozen=True)
class Batched:
    """One caller's answer. Its `latency_ms` is of the session's run, with all that shared it.

    size:       how many requests shared the run
    queued_ms:  from the arrival to the start of the run
    """

    answer: Answer
    size: int = 1
    queued_ms: float = 0.0

    @property
    def took_ms(self) -> float:
        """From the arrival of the request to the end of its run."""
        return self.queued_ms + self.answer.latency_ms


@dataclass(frozen=True)
class BatchCounts:
    """What has been run since the start; nothing is counted with batching off.

    requests:  answered or failed
    shared:    of these, how many shared a run
    runs:      as many as were needed
    times_ms:  median of the latest runs, by route and size
    """

    mode: Mode
    requests: int
    shared: int
    runs: int
    times_ms: dict[str, dict[int, float]]


class _Key(NamedTuple):
    """Requests share a run only where all of this is the same: a malformed input fails by itself, a hurried one is not held up."""

    route: str
    limit_ms: float | None
    shape: tuple[int, ...]
    dtype: np.dtype[np.float32]


@dataclass(eq=False)
class _Request:
    """One blocked caller. `woken` is released when it leads `group`, or has its outcome."""

    x: Input
    key: _Key
    arrived_s: float
    attending: bool
    woken: threading.Lock
    group: "_Group | None" = None
    outcome: Batched | Exception | None = None


@dataclass(eq=False)
class _Group:
    """Requests that run together; the first leads. `ready` is there while the leader waits for company: it ends that."""

    requests: list[_Request]
    size: int = 1
    wait_ms: float = 0.0
    ready: threading.Event | None = None
    run_ms: float | None = None


Run = Callable[[Input, str, float | None], Batched]
"""`Batcher.run`."""


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
        self._company: Counter[_Key] = Counter()
        self._running = 0
        self._waiting: list[_Request] = []
        self._open: dict[_Key, _Group] = {}  # their leaders wait for company
        self._times: dict[str, BatchTimes] = {}
        self._requests = self._shared = self._runs = 0

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
            times = {route: times.measured for route, times in sorted(self._times.items())}
            return BatchCounts(self.settings.mode, self._requests, self._shared, self._runs, times)

    def close(self) -> None:
        """Refuse new requests, and wait until those that are here are answered. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._hurry()
            self._idle.wait_for(lambda: not (self._running or self._waiting))

    def _run(self, x: Input, route: str, limit_ms: float | None, attending: bool = False) -> Batched:
        woken = threading.Lock()
        woken.acquire()
        request = _Request(x, _Key(route, limit_ms, x.shape[1:], x.dtype), self._clock(), attending, woken)
        with self._lock:
            if self._closed:
                raise RestnetError("no more requests are run: the engine has been stopped")
            self._coming -= attending
            self._company[request.key] += 1
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
        if group is not None and len(request.x) == 1:
            group.requests.append(request)
            request.group = group
            if len(group.requests) >= group.size:
                self._start(group)
        elif self._running < self.settings.runs:
            self._form(request)
        else:
            self._waiting.append(request)
            self._hurry()  # whoever waits for company keeps this one waiting

    def _form(self, leader: _Request) -> None:
        """Give `leader` a run, with those who wait for the same. Needs the lock, and a run that is free."""
        self._running += 1
        group = leader.group = _Group([leader])
        company = self._company[leader.key] + self._coming
        if len(leader.x) == 1 and company > 1:
            mates = [other for other in self._waiting if other.key == leader.key and len(other.x) == 1]
            planned = self._plan(leader, 1 + len(mates), company)
            for mate in mates[: planned.size - 1]:
                self._waiting.remove(mate)
                mate.group = group
                group.requests.append(mate)
            # Never while others wait: they could have this run.
            if planned.wait_ms > 0 and len(group.requests) < planned.size and not self._waiting and not self._closed:
                group.size, group.wait_ms, group.ready = planned.size, planned.wait_ms, threading.Event()
                self._open[leader.key] = group
        leader.woken.release()

    def _plan(self, leader: _Request, gathered: int, company: int) -> Plan:
        times = self._times.setdefault(leader.key.route, BatchTimes())
        return plan(
            times.measured,
            leader.key.limit_ms,
            company,
            self.settings,
            gathered=gathered,
            waited_ms=(self._clock() - leader.arrived_s) * 1e3,
            wish=times.wish(min(company, self.settings.max_batch)),
        )

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
        if group.ready is not None and not group.ready.wait(group.wait_ms / 1e3):
            with self._lock:
                self._start(group)
        requests, started_s = group.requests, self._clock()
        try:
            x = leader.x if len(requests) == 1 else np.concatenate([request.x for request in requests])
            answer = self._executor.run(x, leader.key.route)
        except Exception as error:
            for request in requests:
                request.outcome = error if request is leader else _own(error)
            return
        group.run_ms = answer.latency_ms
        for row, request in enumerate(requests):
            logits = answer.logits if len(requests) == 1 else answer.logits[row : row + 1]
            queued_ms = (started_s - request.arrived_s) * 1e3
            request.outcome = Batched(Answer(logits, answer.route, answer.latency_ms), len(requests), queued_ms)

    def _leave(self, request: _Request) -> None:
        """However it ended. Who led gives the others their outcomes, and the run to the next. Needs the lock."""
        group = request.group
        if group is None:
            self._waiting.remove(request)  # interrupted before its turn, as the next one and the two further down
        elif request.outcome is None and request is not group.requests[0]:
            if self._open.get(request.key) is group:
                group.requests.remove(request)
        elif request is group.requests[0]:
            self._start(group)
            self._note(group)
            for other in group.requests[1:]:
                if other.outcome is not None:
                    other.woken.release()
                else:
                    other.group = None
                    self._waiting.append(other)
            self._running -= 1
            while self._waiting and self._running < self.settings.runs:
                self._form(self._waiting.pop(0))
        # Only now: to those who were planned for just above, it was company that may come again.
        self._company[request.key] -= 1
        if not self._company[request.key]:
            del self._company[request.key]
        self._coming += request.attending
        self._idle.notify_all()

    def _note(self, group: _Group) -> None:
        """Count a run that has ended, and learn from it. Needs the lock."""
        leader, size = group.requests[0], len(group.requests)
        if leader.outcome is None:
            return
        self._runs += 1
        self._requests += size
        self._shared += size if size > 1 else 0
        if group.run_ms is not None and len(leader.x) == 1:
            self._times.setdefault(leader.key.route, BatchTimes()).record(size, group.run_ms)


def _own(error: Exception) -> Exception:
    """An error like `error`: one that several threads raise would mix their tracebacks."""
    twin: Exception = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error
    return twin
