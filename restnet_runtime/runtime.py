"""The Python API: a bundle that answers, in this process and without HTTP.

    with Runtime("bundle", budget="30ms") as rt:
        answer = rt.predict("seven.png")
        print(answer.name, answer.probability, answer.route)
        rt.budget = "200MFLOPs"

It has the controller, the executor, the loader and the inference of `restnet-serve`; see `async_runtime.py` for asyncio.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from restnet_runtime.batch_plan import BatchSettings, Mode
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE
from restnet_runtime.engine import Engine
from restnet_runtime.errors import ClosedError, InputError
from restnet_runtime.events import POLL_S, Event, Follower
from restnet_runtime.inference import Inference
from restnet_runtime.inputs import read_image, read_images
from restnet_runtime.pool import Pool
from restnet_runtime.predictions import Prediction, best_classes
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.settings import MAX_PIXELS

if TYPE_CHECKING:
    from restnet_runtime.inputs import Images, OneImage
    from restnet_runtime.schemas import RouteAnswer, StatusAnswer

_CLOSED = "this runtime is closed: open another one"


@dataclass(frozen=True)
class _Prepared:
    inputs: npt.NDArray[np.float32]
    budget: Budget


class Runtime:
    """One bundle, loaded and watched over until `close`. Thread safe: any thread may ask, several at once."""

    def __init__(
        self,
        bundle: str | Path = SHIPPED_BUNDLE,
        budget: str | Budget | None = None,
        *,
        top_k: int = 5,
        strict: bool = False,
        pin: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] = ("cpu",),
        batching: BatchSettings | Mode = "off",
        keep_all: bool = False,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        interval_s: float = 1.0,
        max_pixels: int = MAX_PIXELS,
        ready_s: float = 120.0,
        pool: Pool | None = None,
    ) -> None:
        """Open a bundle and wait until its first route is loaded; the others follow in the background.

        budget:   limits as `30ms,200MFLOPs,150MB,90%`; `None` for none
        top_k:    how many classes an answer lists
        strict:   raise `InfeasibleError` when no route fits the budget, rather than overrun it
        cache:    the directory of compiled routes, by default that of the user
        max_pixels: the largest image that is decoded
        ready_s:  how long the first route may take
        pool:     the same for several in one process, which then share its memory; a memory limit is of them all, the lowest counts
        The others are those of `Engine.open`.

        Raises `BundleError`, `UnitError` for a budget that cannot be read, and `CompileError` when no route can be loaded.
        """
        if top_k < 1:
            raise InputError(f"top_k is {top_k}: give a whole number above 0")
        self._top_k = top_k
        self._engine = Engine.open(
            bundle,
            _as_budget(budget),
            cache_root=None if cache is None else Path(cache),
            threads=threads,
            providers=providers,
            interval_s=interval_s,
            cache_bytes=cache_bytes,
            batching=batching,
            keep_all=keep_all,
            pin=pin,
            pool=pool,
        )
        executor, self._controller = self._engine.executor, self._engine.controller
        manifest = executor.bundle.manifest
        self._preprocessor = Preprocessor(manifest.preprocessing, manifest.input.shape, max_pixels=max_pixels)
        self._inference = Inference(executor, self._controller, self._engine.batcher, strict=strict)
        self._running = 0  # requests, guarded by the next one
        self._left = threading.Condition()
        self._closing = threading.Event()
        self._closed = threading.Lock()  # held while it is closed, so that whoever closes it too waits for that
        self._stopped = False
        self._controller.watch_queue(lambda: self._running)
        try:
            self._engine.start()
            self._engine.wait_ready(ready_s)
        except BaseException:
            self.close()
            raise

    @overload
    def predict(self, image: "OneImage", *, budget: str | Budget | None = None, top_k: int | None = None) -> Prediction: ...
    @overload
    def predict(self, image: "Images", *, budget: str | Budget | None = None, top_k: int | None = None) -> list[Prediction]: ...

    def predict(
        self,
        image: "OneImage | Images",
        *,
        budget: str | Budget | None = None,
        top_k: int | None = None,
        arrived_s: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Classify an image, or several in one run: a list is answered by a list.

        image:   a path, the bytes of a file, an image of Pillow, uint8 (H, W, C), or float32 (C, H, W) prepared as the network takes it
        budget:  narrows the standing one for this call only
        arrived_s: since when the caller has waited, by `time.perf_counter`; counts towards the latency limit

        Raises `ImageError` and `InputError` for what cannot be used, `OSError` for a file that cannot be read, `UnitError`,
        `InfeasibleError` when no route fits and that was ruled out, and `ClosedError` after `close`.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}: give a whole number above 0")
        limits = _as_budget(budget)

        def prepare() -> _Prepared:
            inputs = read_images(self._preprocessor, image) if isinstance(image, (list, tuple)) else read_image(self._preprocessor, image)
            return _Prepared(inputs, limits)

        with self._open():
            self._controller.arrive()
            _, logits, verdict = self._inference.run(prepare, None, arrived_s)
        best = best_classes(logits, self.classes, top_k or self._top_k)
        answers = [Prediction.of(row, scores, verdict) for row, scores in zip(logits, best, strict=True)]
        return answers if isinstance(image, (list, tuple)) else answers[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self._engine.executor.bundle.manifest.classes

    @property
    def budget(self) -> Budget:
        """The standing budget. Set a text, a `Budget`, or `None` for no limit: it is decided at once, up or down."""
        return self._controller.budget

    @budget.setter
    def budget(self, budget: str | Budget | None) -> None:
        limits = _as_budget(budget)
        with self._open():
            self._controller.budget = limits

    @property
    def pin(self) -> str | None:
        """The route that every call is to run on, whatever it costs; set a name of `routes`, or `None`."""
        return self._controller.pin

    @pin.setter
    def pin(self, route: str | None) -> None:
        known = [one.name for one in self._engine.executor.bundle.routes]
        if route is not None and route not in known:
            raise InputError(f"there is no route {route[:60]!r} in this bundle: it has {', '.join(known)[:400]}")
        with self._open():
            self._controller.pin = route

    @property
    def routes(self) -> "list[RouteAnswer]":
        """Every route, the cheapest first: its cost and accuracy, whether it is loaded or current, and its profile on this device."""
        from restnet_runtime.status import describe_routes  # not above: it takes longer to import than everything else

        with self._open():
            return describe_routes(self._engine.executor, self._engine.loader.progress()).routes

    def status(self) -> "StatusAnswer":
        """What is served, under which budget, how the device is doing, and the latest switches."""
        from restnet_runtime.schemas import QueueAnswer
        from restnet_runtime.status import describe_server

        with self._open():
            queue = QueueAnswer(in_flight=self._running - 1, max_in_flight=None, workers=None, receiving_bytes=0)
            engine = self._engine
            return describe_server(engine.executor, engine.controller, queue, engine.batcher, engine.loader.progress())

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Wait for what happens: how it stands at first, then each switch with its reason, and each reading of the device.

        timeout_s: ends after so many seconds; by default with `close`
        """
        return self._follow(self.follower(), None if timeout_s is None else time.monotonic() + timeout_s)

    def follower(self) -> Follower:
        """For those who look themselves: what `events` asks every quarter of a second."""
        with self._open():
            return Follower(self._controller)

    def _follow(self, follower: Follower, deadline_s: float | None) -> Iterator[Event]:
        yield follower.first()
        while True:
            left_s = POLL_S if deadline_s is None else min(POLL_S, deadline_s - time.monotonic())
            if left_s <= 0 or self._closing.wait(left_s):
                return
            yield from follower.fresh()

    def wait_loaded(self, timeout_s: float | None = None) -> bool:
        """Wait until every route that fits is loaded; whether that is so after `timeout_s` seconds."""
        if self.closed:
            raise ClosedError(_CLOSED)
        self._engine.loader.join(timeout_s)
        return self._engine.loader.progress().done

    def close(self) -> None:
        """Let the calls that run finish, refuse others, and release threads, processes and files. Closing twice is harmless."""
        with self._left:
            self._closing.set()
            self._left.wait_for(lambda: self._running == 0)
        with self._closed:
            if not self._stopped:
                self._stopped = True
                self._engine.stop()

    @property
    def closed(self) -> bool:
        """Was it closed, or is it about to be?"""
        return self._closing.is_set()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """For what needs the engine: it is not stopped meanwhile. Raises `ClosedError`."""
        with self._left:
            if self._closing.is_set():
                raise ClosedError(_CLOSED)
            self._running += 1
        try:
            yield
        finally:
            with self._left:
                self._running -= 1
                if self._closing.is_set():
                    self._left.notify_all()

    def __enter__(self) -> "Runtime":
        if self.closed:
            raise ClosedError(_CLOSED)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        bundle, state = self._engine.executor.bundle, "closed" if self.closed else f"budget {self.budget}"
        return f"<Runtime {bundle.manifest.name}: {len(bundle.routes)} routes, {state}>"


def _as_budget(budget: str | Budget | None) -> Budget:
    if budget is None:
        return Budget()
    return Budget.parse(budget) if isinstance(budget, str) else budget
