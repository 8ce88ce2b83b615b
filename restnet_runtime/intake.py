"""Intake: how requests come in: how many at once, how their bodies are received, and where what they ask for is run."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fastapi import HTTPException, Request

from restnet_runtime.deadline import DEADLINE_HEADER, Deadline, parse_deadlines
from restnet_runtime.errors import InfeasibleError
from restnet_runtime.models import Entry
from restnet_runtime.observing import Unready
from restnet_runtime.receiving import Receiver
from restnet_runtime.schemas import QueueAnswer
from restnet_runtime.settings import ServeSettings

TRY_AGAIN = {"Retry-After": "1"}
_FRESH_S = 0.1
"""A body that is longer in coming is a slow client's, who is to keep no other out."""
_REFUSED_PER_S, _LATEST_REFUSAL_S = 50.0, 0.25

T = TypeVar("T")


class Intake:
    """Takes in the requests of one server, on whatever path they come. Not thread safe: it belongs to the event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="predict")
        self._receiver = Receiver(settings)
        self._in_flight = 0  # of all models, which share the workers
        self._next_refusal_s = 0.0
        self._receiving: dict[object, float] = {}  # since when, by time.monotonic

    def refuse_unready(self, model: Entry) -> None:
        """Raise HTTP 503 while no route of a model is loaded."""
        trial = model.trial
        failed = None if trial is None or model.ready else trial.note_failure(InfeasibleError(model.unready_reason))
        if not model.ready and failed is None:
            raise Unready(503, model.unready_reason, TRY_AGAIN)

    async def refuse_overload(self) -> None:
        """Raise HTTP 503 while as many requests wait or run as may, those included whose bodies are just coming.

        Otherwise as many bodies as there are connections would be received for the few that can run, which takes the time of these.
        A flood is refused at `_REFUSED_PER_S` and not at once: to refuse costs about as much as to answer, and who waits for a refusal
        asks less often meanwhile.
        """
        now_s = time.monotonic()
        coming = sum(since_s > now_s - _FRESH_S for since_s in self._receiving.values())
        busy = self._in_flight + coming
        if busy < self._settings.max_in_flight:
            return
        self._next_refusal_s = min(max(now_s, self._next_refusal_s + 1 / _REFUSED_PER_S), now_s + _LATEST_REFUSAL_S)
        if self._next_refusal_s > now_s:
            await asyncio.sleep(self._next_refusal_s - now_s)
        raise HTTPException(503, f"{busy} requests are in flight, which is the limit: try again", TRY_AGAIN)

    async def receive(self, request: Request, *, encodings: tuple[str, ...] = ()) -> bytes:
        """The whole body, in one of the `encodings` if it is in any. Raises what `Receiver.read` does."""
        token = object()
        self._receiving[token] = time.monotonic()
        try:
            return await self._receiver.read(request, encodings)
        finally:
            del self._receiving[token]

    def deadline(self, request: Request) -> Deadline:
        """Of a request whose headers are here: what it wishes in X-Restnet-Deadline, and what the server allows. Raises `UnitError`."""
        deadline = Deadline()
        for limit_ms in (parse_deadlines(request.headers.getlist(DEADLINE_HEADER)), self._settings.deadline_ms):
            if limit_ms is not None:
                deadline.narrow(limit_ms)
        return deadline

    async def run(self, model: Entry, work: Callable[[Entry, float], T], deadline: Deadline) -> T:
        """Run `work(entry, arrived_s)`, a request to `model`, in a worker thread; arrived_s by `time.perf_counter`.

        entry: `model`, or what serves in its place by then

        Raises HTTP 503 where too many do already, and `ExpiredError` where the deadline has passed.
        """
        deadline.check()
        model.backend.controller.arrive()
        arrived_s = time.perf_counter()
        await self.refuse_overload()  # others may have come while the body did
        entry = model.enter()
        self._in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(entry.run, work, arrived_s))
        finally:
            self._in_flight -= 1
            entry.leave()

    async def aside(self, work: Callable[[], T]) -> T:
        """Run `work` in a worker thread, behind what waits there, and count it as no request."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def queue(self) -> QueueAnswer:
        """How full it is."""
        return QueueAnswer(
            in_flight=self._in_flight,
            max_in_flight=self._settings.max_in_flight,
            workers=self._settings.workers,
            receiving_bytes=self._receiver.held_bytes,
        )

    def close(self) -> None:
        """Wait for what runs, and end the workers."""
        self._pool.shutdown()
