"""The engine: one bundle on this device, wired. The Python API, and what the commands and the server are built on.

    with Engine.open("bundle", Budget.parse("200MFLOPs")) as engine:
        engine.wait_ready()                                 # the first route; the others follow
        answer = engine.run(x)
        engine.controller.budget = Budget.parse("100MFLOPs")

x is float32 (batch, C, H, W).
"""

import atexit
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from restnet_runtime.batch_plan import BatchSettings, Mode
from restnet_runtime.batch_room import BatchRoom
from restnet_runtime.batching import Batched, Batcher
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE, open_bundle
from restnet_runtime.common_sensors import SensorView
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import BEATS, Controller
from restnet_runtime.errors import CompileError, InfeasibleError
from restnet_runtime.executor import Answer, Executor, preparation_order
from restnet_runtime.loader import Loader
from restnet_runtime.places import default_cache_root
from restnet_runtime.policy import Decision
from restnet_runtime.pool import Place, Pool
from restnet_runtime.providers import choose_providers
from restnet_runtime.reading import Reading
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.tenant import Tenant
from restnet_runtime.threads import ThreadGovernor, affinity_cores, choose_threads
from restnet_runtime.versions import Hold

if TYPE_CHECKING:
    from restnet_runtime.signatures import Keyring

log = logging.getLogger(__name__)

_TIGHT_BYTES = 192 * 2**20


@dataclass(frozen=True)
class Engine:
    """Executor, controller, loader, batcher, sensors and place of one bundle. Use it as a context manager, or call `start` and `stop`."""

    executor: Executor
    controller: Controller
    loader: Loader
    compiler: Compiler
    batcher: Batcher
    sensors: SensorView
    place: Place
    hold: Hold

    @classmethod
    def open(
        cls,
        path: str | Path = SHIPPED_BUNDLE,
        budget: Budget | None = None,
        *,
        cache_root: Path | None = None,
        threads: int | None = None,
        providers: Sequence[str] = ("cpu",),
        interval_s: float = 1.0,
        cache_bytes: int | None = None,
        batching: BatchSettings | Mode = "off",
        keep_all: bool = False,
        pin: str | None = None,
        pool: Pool | None = None,
        name: str | None = None,
        keys: "Keyring | None" = None,
    ) -> "Engine":
        """Open a bundle; nothing is compiled or loaded before `start`. Routes are compiled in a process of their own.

        cache_root:  where compiled routes are kept, by default `default_cache_root()`
        threads:     of one request, fixed; by default as many as the cores, the quota and other processes leave, as that changes
        providers:   execution providers by short name, most wanted first, as `providers.NAMES` has them
        interval_s:  between two looks at the device
        cache_bytes: what everything under `cache_root` may take, by default 2 GB or half of what the disk has for it
        keep_all:    keep routes loaded that another one outdoes here (`front.outdone`)
        batching:    whether requests that meet on a route share a run, or only the mode of it: off, on, auto
        pin:         a route that all requests are to run on, whatever it costs
        pool:        shared with the engines of other bundles in this process; by default one of its own
        name:        what it is called in a pool, by default as its bundle is
        keys:        public keys of which one must have signed the bundle; none are required by default
        Raises `BundleError`; for damage in weights.bin not here, but when a route is compiled from it. Raises `CompileError` for an
        unknown provider.
        """
        bundle = open_bundle(path, weights_later=True, keys=keys)
        if pin is not None:
            bundle.route(pin)  # raises where there is none of that name
        compiler = Compiler.for_bundle(bundle, cache_root or default_cache_root(), cap_bytes=cache_bytes, apart=True)
        pool, cores = pool or Pool(), affinity_cores()
        place, sensors = pool.place(), pool.sensors.view(interval_s, interval_s / BEATS)
        first = threads or choose_threads(cores, Reading(cpu_quota_cores=sensors.cgroup_limits().quota_cores), 1.0)
        chosen = choose_providers(providers, ort.get_available_providers(), compiler.cache.path, first)
        for note in chosen.notes:
            log.warning("%s", note)
        executor = Executor(bundle, compiler, SessionSettings(first, providers=chosen), pool.common)

        def at_once() -> int:
            return max(1, cores // executor.settings.threads)

        controller = Controller(executor, sensors, budget, interval_s, pin=pin, servers=at_once, share=place)
        loader = Loader(
            executor,
            preparation_order(bundle),
            on_loaded=lambda _: controller.reconsider(),
            memory_limit=lambda: controller.memory_limit_bytes,
            interval_s=interval_s,
            wanted=lambda: controller.wanted,
            available=lambda: None if controller.reading is None else controller.reading.memory_available_bytes,
            reading=lambda: controller.reading,
            on_outdone=None if keep_all else controller.reconsider,
            pinned=lambda: controller.pin,
            room=place,
            threads=None
            if threads or not chosen.cpu_only
            else ThreadGovernor(cores, first, lambda: controller.reading, lambda: executor.busy_s, time.monotonic),
        )
        settings = batching if isinstance(batching, BatchSettings) else BatchSettings(batching)
        batcher = Batcher(executor, settings, at_once, room=BatchRoom(executor, lambda: controller.memory_limit_bytes, at_once))
        place.take(Tenant(name or bundle.manifest.name, executor, controller, loader))
        return cls(executor, controller, loader, compiler, batcher, sensors, place, Hold(bundle.path))

    def start(self) -> None:
        """Make routes ready in the background, the cheapest of the Pareto front first, and watch the device.

        A program that ends without `stop` is stopped here: Python ends threads where they are, within ONNX Runtime the process aborts.
        """
        atexit.register(self.stop)
        self.loader.start()
        self.controller.start()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the first route is loaded. Raises `CompileError` if none is after `timeout_s` seconds, or all have failed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.executor.current is None:
            progress = self.loader.progress()
            over = progress.done or (deadline is not None and time.monotonic() > deadline)
            if over and self.executor.current is None:  # asked again: it may have been loaded before the progress was read
                raise CompileError(f"no route is loaded: {progress.failed or 'not yet'}")
            time.sleep(0.005)

    def short_of_memory(self) -> bool:
        """Is there too little left to compile beside everything else that a server needs?"""
        reading = self.controller.reading
        available = None if reading is None else reading.memory_available_bytes
        return available is not None and available < _TIGHT_BYTES

    def halt(self) -> None:
        """Begin nothing more, and break off what is being compiled: `stop`, which is still to come, will not wait for long."""
        self.loader.halt()
        self.compiler.abort()

    def stop(self) -> None:
        """End both threads and the process that compiles, answer the requests that wait for a batch, and release every session."""
        atexit.unregister(self.stop)
        self.halt()
        self.batcher.close()
        self.controller.stop()
        self.sensors.close()
        self.loader.stop()
        self.compiler.close()
        self.executor.close()
        self.place.leave()
        self.compiler.release()
        self.hold.close()

    def run(self, x: npt.NDArray[np.float32], budget: Budget | None = None) -> Answer:
        """Run x (batch, C, H, W) float32 on the route that fits; `budget` narrows the standing one for this request only.

        Raises `InfeasibleError` while no route is loaded, and where none as accurate as the budget's floor fits.
        """
        self.controller.arrive()

        def answered(decision: Decision) -> Batched:
            if decision.refused:
                raise InfeasibleError(f"no route fits the budget ({decision.limits}): {decision.reason}")
            return self.batcher.run(x, decision.route, decision.limits.latency_ms)

        batched = self.controller.run_decided(budget or Budget(), answered)[1]
        answer = batched.answer
        if len(x) == batched.size == 1:  # what profiles are of
            self.controller.observe(answer.route.name, answer.latency_ms)
        return answer

    def __enter__(self) -> "Engine":
        try:
            self.start()
        except BaseException:  # a signal, say
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
