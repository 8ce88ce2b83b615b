"""The executor: every route a resident session, the current one a reference that is replaced between two requests."""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import CompiledRoute, write_atomically
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError, InputError
from restnet_runtime.memory import footprint
from restnet_runtime.profile import Measurement, RouteProfile, percentile, time_runs
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, load_session

log = logging.getLogger(__name__)

_PROFILES_FILE = "profiles.json"
_WARM_RUNS = 2


@dataclass(frozen=True)
class Answer:
    """logits: (batch, classes) float32. latency_ms: of the session's run alone."""

    logits: npt.NDArray[np.float32]
    route: Route
    latency_ms: float


@dataclass(frozen=True)
class Resident:
    """A route that can be switched to now."""

    route: Route
    session: ort.InferenceSession
    compiled: CompiledRoute
    profile: RouteProfile


class Executor:
    """Runs routes of one bundle. Thread safe; nothing here waits for a load while a request runs."""

    def __init__(self, bundle: Bundle, compiler: Compiler, settings: SessionSettings) -> None:
        self.bundle = bundle
        self._compiler, self._settings = compiler, settings
        self._base_bytes = footprint().pss_bytes
        self._lock = threading.Lock()  # guards the next two
        self._residents: dict[str, Resident] = {}
        self._current: Resident | None = None
        self._loading = threading.Lock()  # one load at a time, so that what it adds to the process can be measured

    @property
    def current(self) -> Route | None:
        """The route that requests run on unless they name another; `None` before the first is loaded."""
        resident = self._current
        return resident.route if resident else None

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the routes that can be switched to now, in the order in which they were loaded."""
        with self._lock:
            return tuple(self._residents)

    def profile(self, name: str) -> RouteProfile | None:
        """The profile of a loaded route, else `None`."""
        resident = self._residents.get(name)
        return resident.profile if resident else None

    def load(self, name: str, on_compile: Callable[[Route], None] | None = None) -> Resident:
        """Compile (unless cached), load, warm and profile a route, then let it be switched to. The first one becomes current.

        Raises `BundleError` for an unknown route or a bad graph, `CompileError` when ONNX Runtime cannot run it.
        """
        route = self.bundle.route(name)
        with self._loading:
            if name in self._residents:
                return self._residents[name]
            compiled = self._compiler.compile(route, on_compile)
            before = footprint().anonymous_bytes
            session = load_session(compiled, self._settings)
            x = self._example()
            self._warm(route, session, x)
            measured = self._remembered(name)
            if measured is None:
                anonymous = max(0, footprint().anonymous_bytes - before)
                times = time_runs(lambda: infer(session, x), time.perf_counter)
                measured = Measurement(percentile(times, 0.5), percentile(times, 0.95), anonymous)
                self._remember(name, measured)
            resident = Resident(route, session, compiled, measured.profile(self._base_bytes, compiled.touched_bytes))
            with self._lock:
                self._residents[name] = resident
                self._current = self._current or resident
        return resident

    def release(self, name: str) -> None:
        """Forget a loaded route; requests that run on it finish. Raises `CompileError` for the current one."""
        with self._lock:
            if self._current is not None and self._current.route.name == name:
                raise CompileError(f"the route {name!r} is the current one and cannot be released: switch first")
            self._residents.pop(name, None)

    def switch(self, name: str) -> None:
        """Make a loaded route the current one. Requests under way keep theirs. Raises `CompileError` if it is not loaded."""
        with self._lock:
            self._current = self._resident(name)

    def run(self, x: npt.NDArray[np.float32], route: str | None = None) -> Answer:
        """Run x (batch, C, H, W) float32 on the current route, or on the loaded one that is named.

        Raises `CompileError` if that route is not loaded, or none is, and `InputError` for an x that no route takes.
        """
        resident = self._current if route is None else self._resident(route)
        if resident is None:
            raise CompileError("no route is loaded yet")
        if x.dtype != np.float32 or x.shape[1:] != self.bundle.manifest.input.shape:
            raise InputError(f"an input of {x.dtype} {list(x.shape)}: give float32 [batch, {str([*self.bundle.manifest.input.shape])[1:]}")
        started = time.perf_counter()
        logits = infer(resident.session, x)
        return Answer(logits, resident.route, (time.perf_counter() - started) * 1e3)

    def close(self) -> None:
        """Release every session."""
        with self._lock:
            self._current = None
            self._residents.clear()

    def _resident(self, name: str) -> Resident:
        resident = self._residents.get(name)
        if resident is None:
            self.bundle.route(name)
            raise CompileError(f"the route {name!r} is not loaded; loaded are {', '.join(self._residents) or 'none'}")
        return resident

    def _example(self) -> npt.NDArray[np.float32]:
        """One input of noise: timing does not depend on what an image shows."""
        return np.random.default_rng(0).standard_normal((1, *self.bundle.manifest.input.shape)).astype(np.float32)

    def _warm(self, route: Route, session: ort.InferenceSession, x: npt.NDArray[np.float32]) -> None:
        try:
            shapes = {infer(session, x).shape for _ in range(_WARM_RUNS)}
        except Exception as error:  # ONNX Runtime's own errors share no base
            raise CompileError(f"the route {route.name!r} does not run: {error}") from error
        if shapes != {(1, len(self.bundle.manifest.classes))}:
            raise CompileError(f"the route {route.name!r} answers {shapes.pop()} for {len(self.bundle.manifest.classes)} classes")

    def _remembered(self, name: str) -> Measurement | None:
        try:
            entry = json.loads((self._compiler.cache.path / _PROFILES_FILE).read_bytes())[self._profile_key(name)]
            return Measurement(float(entry["latency_ms"]), float(entry["p95_ms"]), int(entry["anonymous_bytes"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def _remember(self, name: str, measured: Measurement) -> None:
        """Keep a measurement beside the compiled routes; of two processes that write at once the last one wins."""
        path = self._compiler.cache.path / _PROFILES_FILE
        try:
            known = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            known = {}
        try:
            write_atomically(path, json.dumps({**known, self._profile_key(name): asdict(measured)}).encode())
        except OSError as error:  # a full disk costs the next start a measurement, no more
            log.warning("the profile of %s cannot be kept: %s", name, error)

    def _profile_key(self, name: str) -> str:
        return f"{name} on {self._settings.threads} threads"


def preparation_order(bundle: Bundle) -> list[str]:
    """Names of the routes in the order in which they are likely to be needed: the Pareto front, then the others; cheap first.

    The cheapest is ready soonest, so a device answers early and climbs from there.
    """
    ordered = sorted(bundle.routes, key=lambda route: (not route.on_front, route.macs))
    return [route.name for route in ordered]
