"""The Python API for asyncio: what `runtime.py` does, in threads beside the event loop.

async with AsyncRuntime("bundle", budget="30ms") as rt:
    answer = await rt.predict(image)
    async for event in rt.events(): ...
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE
from restnet_runtime.errors import ClosedError
from restnet_runtime.events import POLL_S, Event
from restnet_runtime.predictions import Prediction
from restnet_runtime.runtime import Runtime
from restnet_runtime.threads import usable_cores

if TYPE_CHECKING:
    from restnet_runtime.inputs import Images, OneImage
    from restnet_runtime.schemas import RouteAnswer, StatusAnswer

T = TypeVar("T")


class AsyncRuntime:
    """A `Runtime` whose calls are awaited. It is opened by `async with`, or by `await open()` and then `await close()`."""

    def __init__(
        self,
        bundle: str | Path = SHIPPED_BUNDLE,
        budget: str | Budget | None = None,
        *,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        """workers: calls that are decoded and run at once, by default the usable cores. options: those of `Runtime`."""
        self._make: Callable[[], Runtime] = partial(Runtime, bundle, budget, **options)
        self._workers = workers
        self._opened: Runtime | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._changing = asyncio.Lock()  # held while it is opened or closed: who opens it too waits for that

    async def open(self) -> "AsyncRuntime":
        """Open the bundle and wait until its first route is loaded. One that is open stays as it is.

        Raises what `Runtime` does, and `ClosedError` for one that was closed.
        """
        async with self._changing:
            if self._opened is None:
                opening = _Opening(self._make)
                try:
                    self._opened = await asyncio.get_running_loop().run_in_executor(None, opening.run)
                except asyncio.CancelledError:
                    opening.abandon()
                    raise
                self._pool = ThreadPoolExecutor(self._workers or usable_cores(), thread_name_prefix="restnet-predict")
            elif self.closed:
                raise ClosedError("this runtime is closed: make another one")
        return self

    @overload
    async def predict(self, image: "OneImage", *, budget: str | Budget | None = None, top_k: int | None = None) -> Prediction: ...
    @overload
    async def predict(self, image: "Images", *, budget: str | Budget | None = None, top_k: int | None = None) -> list[Prediction]: ...

    async def predict(
        self, image: "OneImage | Images", *, budget: str | Budget | None = None, top_k: int | None = None
    ) -> Prediction | list[Prediction]:
        """As `Runtime.predict`; what a call waits for a worker counts towards its latency limit."""
        work: Callable[[], Prediction | list[Prediction]] = partial(
            self._runtime.predict,
            image,
            budget=budget,
            top_k=top_k,
            arrived_s=time.perf_counter(),
        )
        return await self._beside(work)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._runtime.classes

    @property
    def budget(self) -> Budget:
        """As that of `Runtime`; setting it decides at once."""
        return self._runtime.budget

    @budget.setter
    def budget(self, budget: str | Budget | None) -> None:
        self._runtime.budget = budget

    @property
    def pin(self) -> str | None:
        """As that of `Runtime`."""
        return self._runtime.pin

    @pin.setter
    def pin(self, route: str | None) -> None:
        self._runtime.pin = route

    @property
    def routes(self) -> "list[RouteAnswer]":
        """As those of `Runtime`."""
        return self._runtime.routes

    async def status(self) -> "StatusAnswer":
        """As that of `Runtime`."""
        return await self._beside(self._runtime.status)

    async def wait_loaded(self, timeout_s: float | None = None) -> bool:
        """As that of `Runtime`."""
        return await asyncio.get_running_loop().run_in_executor(None, self._runtime.wait_loaded, timeout_s)

    async def events(self) -> AsyncIterator[Event]:
        """As those of `Runtime`, until `close` or until nobody listens any more."""
        follower = self._runtime.follower()
        yield follower.first()
        while not self.closed:
            await asyncio.sleep(POLL_S)
            for event in follower.fresh():
                yield event

    async def close(self) -> None:
        """Let the calls that run finish, refuse those that wait, and release threads, processes and files."""
        async with self._changing:
            opened, pool = self._opened, self._pool
            if opened is None or pool is None:
                return

            def close() -> None:
                opened.close()
                pool.shutdown()  # what waits is refused, one after the other

            await asyncio.get_running_loop().run_in_executor(None, close)

    @property
    def closed(self) -> bool:
        """Is it not open, or not any more?"""
        return self._opened is None or self._opened.closed

    @property
    def _runtime(self) -> Runtime:
        if self._opened is None:
            raise ClosedError("this runtime is not open yet: use async with, or await open()")
        return self._opened

    async def _beside(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the workers."""
        if self.closed or self._pool is None:
            raise ClosedError("this runtime is not open, or not any more")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def __aenter__(self) -> "AsyncRuntime":
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class _Opening:
    """Opens a runtime in a thread that cannot be stopped: where nobody waits for it any more, it is closed again."""

    def __init__(self, make: Callable[[], Runtime]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Runtime | None = None
        self._abandoned = False

    def run(self) -> Runtime:
        made = self._make()
        with self._lock:
            self._made = made
            abandoned = self._abandoned
        if abandoned:
            made.close()
        return made

    def abandon(self) -> None:
        with self._lock:
            self._abandoned, made = True, self._made
        if made is not None:
            made.close()
