"""Heartbeat: signs of life for the service manager, from the event loop of the server, and only while its workers run the network."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from restnet_runtime.errors import NotLoadedError
from restnet_runtime.executor import Executor
from restnet_runtime.loader import Progress
from restnet_runtime.noise import noise
from restnet_runtime.notifier import Notifier

log = logging.getLogger(__name__)

Aside = Callable[[Callable[[], object]], Awaitable[object]]
"""Runs something in one of the threads that run requests."""

_TICK_S = 1.0
_BEATS, _TICKS = 4, 8
"""In the time after which the manager takes the server for dead: how often the workers are asked, and how often for an answer is looked."""


class Backend(Protocol):
    """One bundle that is served."""

    @property
    def executor(self) -> Executor: ...
    def progress(self) -> Progress | None:
        """Of its loader, where there is one."""
        ...


Backends = Callable[[], Sequence[Backend]]
"""What is served now: at least one, and others when bundles come and go."""


class Pulse:
    """Do the workers still run the network? Asked by running noise on the current route, in its turn among the requests.

    A server with more requests than it can answer is alive as long as it answers some. One without a route, because memory is too short
    for any, says so to whoever asks: starting it again would not help. Belongs to an event loop.
    """

    def __init__(self, backends: Backends, aside: Aside) -> None:
        self._backends, self._aside = backends, aside
        self._asked: asyncio.Future[object] | None = None
        self._busy: dict[Executor, float] = {}

    def ask(self) -> None:
        """Begin to feel, and return at once. What was asked before and still waits is not asked again."""
        executors = [backend.executor for backend in self._backends()]
        self._busy = {executor: executor.busy_s for executor in executors}
        if self.over():
            executor = next((one for one in executors if one.current is not None), executors[0])
            self._asked = asyncio.ensure_future(self._aside(partial(executor.run, noise(executor.bundle))))
            self._asked.add_done_callback(_log_failure)

    def felt(self) -> bool:
        """Whether a run has ended since `ask`."""
        asked = self._asked
        if asked is None:
            return False
        without_route = asked.done() and not asked.cancelled() and isinstance(asked.exception(), NotLoadedError)
        return without_route or any(executor.busy_s != busy_s for executor, busy_s in self._busy.items())

    def over(self) -> bool:
        """Whether what was asked has come to an end, be it that it failed: then it can be asked again."""
        return self._asked is None or self._asked.done()

    def stop(self) -> None:
        if self._asked is not None:
            self._asked.cancel()


def _log_failure(asked: "asyncio.Future[object]") -> None:
    error = None if asked.cancelled() else asked.exception()
    if error is not None and not isinstance(error, NotLoadedError):
        log.error("the current route does not run: %s", error)


def describe_serving(backends: Iterable[Backend]) -> str:
    """One line: `cnn-l serves digits, 7 of 7 routes loaded`, and what is being compiled or loaded."""
    return "; ".join(map(_describe, backends))


def _describe(backend: Backend) -> str:
    executor, progress = backend.executor, backend.progress()
    current, loaded, known = executor.current, len(executor.loaded), len(executor.bundle.routes)
    name, loading = executor.bundle.manifest.name, progress.loading if progress else None
    text = f"no route of {name} is loaded yet" if current is None else f"{current.name} serves {name}, {loaded} of {known} routes loaded"
    return text if loading is None else f"{text}, {loading} is being loaded"


class Notifying:
    """An application that tells the service manager how it does, from its event loop, for as long as this turns."""

    def __init__(self, app: ASGIApp, notifier: Notifier, pulse: Pulse, ready: Callable[[], bool], describe: Callable[[], str]) -> None:
        """ready: can a request be answered? describe: what `systemctl status` shows."""
        self._app, self._notifier, self._pulse, self._ready, self._describe = app, notifier, pulse, ready, describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        telling: list[asyncio.Task[None]] = []

        async def started(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                telling.append(asyncio.create_task(self._tell()))

        try:
            await self._app(scope, receive, started)
        finally:
            for task in telling:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            self._pulse.stop()

    async def _tell(self) -> None:
        watchdog_s = self._notifier.watchdog_s or math.inf
        tick_s = min(_TICK_S, watchdog_s / _TICKS)
        ready, asking, told, due_s = False, False, "", 0.0
        while True:
            now_ready, felt, text = ready or self._ready(), asking and self._pulse.felt(), self._describe()
            fields = ["READY=1"] if now_ready and not ready else []
            fields += [f"STATUS={text}"] if text != told else []
            fields += ["WATCHDOG=1"] if felt else []
            if fields and self._notifier.send(*fields):  # else once more at the next tick
                ready, told, asking = now_ready, text, asking and not felt
            # A run that failed says nothing of the next one; of one that hangs no other is asked.
            if ready and (not asking or self._pulse.over()) and watchdog_s < math.inf and time.monotonic() >= due_s:
                asking, due_s = True, time.monotonic() + watchdog_s / _BEATS
                self._pulse.ask()
            await asyncio.sleep(tick_s)


def keep_telling(app: ASGIApp, notifier: Notifier, backends: Backends, aside: Aside) -> Notifying:
    """`app`, which tells `notifier` from its start to its end how what it serves does. aside: into the threads of its requests."""

    def ready() -> bool:
        return any(backend.executor.current is not None for backend in backends())

    return Notifying(app, notifier, Pulse(backends, aside), ready, lambda: describe_serving(backends()))
