"""The batcher: requests that meet on one route share a run, and each gets its own row.

There is no thread here and no queue of anything but blocked callers: one of them runs the batch for all.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.batch_queue import BatchQueue, Group, Input, Key, Request
from restnet_runtime.batch_trials import BatchTrials
from restnet_runtime.deadline import expired
from restnet_runtime.errors import RestnetError
from restnet_runtime.executor import Answer
from restnet_runtime.profile import RouteProfile


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
    """What has been run since the start. Nothing is counted with batching off, nor what is too short for mode auto.

    requests:  answered or failed
    shared:    of these, how many shared a run
    runs:      as many as were needed
    """

    requests: int
    shared: int
    runs: int


Run = Callable[[Input, str, float | None, float], Batched]
"""`Batcher.run`."""
TOO_SHORT_MS = 0.2
"""In mode auto, routes whose single run takes less are left alone: with such, the queue alone costs more than batches can bring."""


class Batcher:
    """Runs requests on the routes that were chosen for them. Thread safe; `run` blocks until the request is answered.

    runs:   how many batches may run at once now; quick, asked with a lock held
    clock:  seconds that never step back
    room:   how many inputs a run of a route may have now, at least 1; as quick as `runs`
    """

    def __init__(
        self,
        executor: Runner,
        settings: BatchSettings | None = None,
        runs: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.perf_counter,
        room: Callable[[str], int] = lambda _: sys.maxsize,
    ) -> None:
        self.settings = settings or BatchSettings()
        self._executor, self._clock = executor, clock
        self._lock = threading.Lock()  # guards the next two; nothing is run and nobody waited for while it is held
        self._queue = BatchQueue(self.settings, runs, self._single_ms, threading.Event, room)
        self._closed = False
        self._short: dict[str, bool] = {}
        self._left = threading.Condition(self._lock)

    def run(self, x: Input, route: str, limit_ms: float | None = None, expires_s: float = math.inf) -> Batched:
        """Run x (batch, C, H, W) float32 on `route`, a single input together with others on that route where that pays.

        limit_ms: of the request, from its arrival to the end of its run; `None` for no limit
        expires_s: by the clock; what waits until then for its run is not run, and raises `ExpiredError`
        Raises what `Executor.run` does, each caller of a batch its own, and `RestnetError` after `close`.
        """
        return Batched(self._executor.run(x, route)) if self.settings.mode == "off" else self._run(x, route, limit_ms, expires_s)

    @contextmanager
    def attend(self) -> Iterator[Run]:
        """Yields `run`. For callers that still have to find out what to run: meanwhile they count as company that may come."""
        if self.settings.mode == "off":
            yield self.run
            return
        token = object()
        self._queue.coming.add(token)
        try:
            yield partial(self._run, attending=token)
        finally:
            self._queue.coming.discard(token)

    def counts(self) -> BatchCounts:
        with self._lock:
            self._queue.look()
            return BatchCounts(self._queue.requests, self._queue.shared, self._queue.runs)

    def close(self) -> None:
        """Refuse new requests, and wait until those that are here are answered. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._queue.close()
            self._left.wait_for(lambda: self._queue.idle)

    def _run(self, x: Input, route: str, limit_ms: float | None, expires_s: float = math.inf, attending: object = None) -> Batched:
        key = (route, limit_ms, x.shape[1:], x.dtype.str)
        if self.settings.mode == "auto":
            if self._too_short(route):
                return Batched(self._executor.run(x, route))
            if len(x) == 1:
                apart, trials = self._queue.apart(key, attending)
                if apart:
                    return self._run_apart(x, key, trials, attending)
        return self._run_queued(x, key, expires_s, attending)

    def _run_apart(self, x: Input, key: Key, trials: BatchTrials | None, attending: object) -> Batched:
        """Run x by itself and at once. No lock is waited for here."""
        queue, failed = self._queue, True
        queue.coming.discard(attending)
        run = queue.beside.begin(key, trials, self._clock())
        try:
            if self._closed:  # looked at only now: whoever closes looks for runs after that
                raise _stopped()
            answer = self._executor.run(x, key[0])
            failed = False
        finally:
            queue.beside.end(run, self._clock(), failed)
            if attending is not None:
                queue.coming.add(attending)
            if self._closed:
                with self._lock:
                    self._left.notify_all()
            elif queue.beside.due and self._lock.acquire(blocking=False):
                try:
                    queue.look()
                finally:
                    self._lock.release()
        return Batched(answer)

    def _run_queued(self, x: Input, key: Key, expires_s: float, attending: object) -> Batched:
        woken = threading.Lock()  # taken twice: a tenth of the cost of an event
        woken.acquire()
        request = Request(x, key, self._clock(), woken.release, attending, expires_s)
        with self._lock:
            if self._closed:
                raise _stopped()
            self._queue.enter(request, request.arrived_s)
        try:
            woken.acquire()
            if request.outcome is None:
                self._lead(request)
        finally:
            with self._lock:
                self._queue.leave(request, self._clock())
                if self._closed:
                    self._left.notify_all()
        if isinstance(request.outcome, Batched):
            return request.outcome
        assert isinstance(request.outcome, Exception)
        raise request.outcome

    def _lead(self, leader: Request) -> None:
        """Run the group of `leader`, and give each of it its outcome."""
        group = leader.group
        assert group is not None
        if group.ready is not None and not group.ready.wait(group.plan.wait_ms / 1e3):
            with self._lock:
                self._queue.start(group)
        started_s = self._clock()
        requests = self._unexpired(group, started_s)
        if not requests:
            return
        try:
            x = requests[0].x if len(requests) == 1 else np.concatenate([request.x for request in requests])
            answer = self._executor.run(x, leader.key[0])
        except Exception as error:
            for request in requests:
                request.outcome = error if request is leader else _own(error)
            return
        group.run_ms = answer.latency_ms
        for row, request in enumerate(requests):
            own = answer if len(requests) == 1 else Answer(answer.logits[row : row + 1], answer.route, answer.latency_ms)
            request.outcome = Batched(own, len(requests), (started_s - request.arrived_s) * 1e3)

    def _unexpired(self, group: Group, now_s: float) -> list[Request]:
        """Those of a group that are to be run. The others get their outcome here."""
        if all(now_s < request.expires_s for request in group.requests):
            return group.requests
        group.trials = None  # it tells nothing of a batch of that size
        for request in group.requests:
            if now_s >= request.expires_s:
                request.outcome = expired((now_s - request.arrived_s) * 1e3)
        return [request for request in group.requests if request.outcome is None]

    def _too_short(self, route: str) -> bool:
        if route not in self._short:  # asked once: a route's order of magnitude stays
            single_ms = self._single_ms(route)
            if single_ms is None:
                return False
            self._short[route] = single_ms < TOO_SHORT_MS
        return self._short[route]

    def _single_ms(self, route: str) -> float | None:
        profile = self._executor.profile(route)
        return None if profile is None else profile.latency_ms


def _stopped() -> RestnetError:
    return RestnetError("no more requests are run: the engine has been stopped")


def _own(error: Exception) -> Exception:
    """An error like `error`: one that several threads raise would mix their tracebacks."""
    twin: Exception = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error
    return twin
