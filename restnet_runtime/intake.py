"""Intake: how requests come in: how many at once, how their bodies are received, and where what they ask for is run."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fastapi import HTTPException, Request

from restnet_runtime.controller import Controller
from restnet_runtime.deadline import DEADLINE_HEADER, Deadline, parse_deadlines
from restnet_runtime.executor import Executor
from restnet_runtime.observing import Unready
from restnet_runtime.receiving import Receiver
from restnet_runtime.schemas import QueueAnswer
from restnet_runtime.settings import ServeSettings

TRY_AGAIN = {"Retry-After": "1"}

T = TypeVar("T")


class Intake:
    """Takes in the requests of one server, on whatever path they come. Not thread safe: it belongs to the event loop."""

    def __init__(self, executor: Executor, controller: Controller, settings: ServeSettings) -> None:
        self._executor, self._controller, self._settings = executor, controller, settings
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="predict")
        self._receiver = Receiver(settings)
        self._in_flight = 0
        controller.watch_queue(lambda: self._in_flight)

    def refuse_unready(self) -> None:
        """Raise HTTP 503 while no route is loaded."""
        if not self._executor.loaded:
            raise Unready(503, "no route is loaded yet", TRY_AGAIN)

    def refuse_overload(self) -> None:
        """Raise HTTP 503 while as many requests wait or run as may."""
        if self._in_flight >= self._settings.max_in_flight:
            raise HTTPException(503, f"{self._in_flight} requests are in flight, which is the limit: try again", TRY_AGAIN)

    async def receive(self, request: Request, *, encodings: tuple[str, ...] = ()) -> bytes:
        """The whole body, in one of the `encodings` if it is in any. Raises what `Receiver.read` does."""
        return await self._receiver.read(request, encodings)

    def deadline(self, request: Request) -> Deadline:
        """Of a request whose headers are here: what it wishes in X-Restnet-Deadline, and what the server allows. Raises `UnitError`."""
        deadline = Deadline()
        for limit_ms in (parse_deadlines(request.headers.getlist(DEADLINE_HEADER)), self._settings.deadline_ms):
            if limit_ms is not None:
                deadline.narrow(limit_ms)
        return deadline

    async def run(self, work: Callable[[float], T], deadline: Deadline) -> T:
        """Run `work(arrived_s)` in a worker thread; arrived_s by `time.perf_counter`.

        Raises HTTP 503 where too many do already, and `ExpiredError` where the deadline has passed.
        """
        deadline.check()
        self._controller.arrive()
        arrived_s = time.perf_counter()
        self.refuse_overload()  # others may have come while the body did
        self._in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, arrived_s))
        finally:
            self._in_flight -= 1

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
