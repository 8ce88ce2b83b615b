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
from restnet_runtime.profile import RouteProfile, Timing, time_runs
from restnet_runtime.residency import Need, together
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, load_session, trim_heap

log = logging.getLogger(__name__)

_PROFILES_FILE = "profiles.json"
_WARM_RUNS = 2
_GUESSED_ANONYMOUS_BYTES = 4 * 2**20


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


class Executor:
    """Runs routes of one bundle. Thread safe; nothing here waits for a load while a request runs."""

    def __init__(self, bundle: Bundle, compiler: Compiler, settings: SessionSettings) -> None:
        self.bundle = bundle
        self._compiler, self._settings = compiler, settings
        self._lock = threading.Lock()  # guards the next two
        self._residents: dict[str, Resident] = {}
        self._current: Resident | None = None
        self._loading = threading.Lock()  # one load or release at a time, so that what it changes can be measured
        # Kept for released routes too. Replaced or added to by the thread that holds `_loading`, read by any.
        self._needs: dict[str, Need] = {}
        self._timings: dict[str, Timing] = {}
        self._overhead_bytes = footprint().pss_bytes

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

    @property
    def overhead_bytes(self) -> int:
        """PSS of this process without any route, as measured when a route was last loaded or released."""
        return self._overhead_bytes

    def profile(self, name: str) -> RouteProfile | None:
        """The profile of a route that is or was loaded, else `None`. Its memory is that of the process with this route alone."""
        timing, need = self._timings.get(name), self._needs.get(name)
        if timing is None or need is None:
            return None
        return RouteProfile(timing.latency_ms, timing.p95_ms, self._overhead_bytes + together([need]))

    def need(self, name: str) -> Need:
        """What the route adds when it is loaded; before its first load a cautious guess from the size of its weights."""
        known = self._needs.get(name)
        if known is not None:
            return known
        route = self.bundle.route(name)
        # An extent that no other route has: what is shared is known only once it is compiled.
        return Need(frozenset({(-1 - hash(name) % 2**40, route.weight_bytes)}), _GUESSED_ANONYMOUS_BYTES)

    def load(self, name: str, on_compile: Callable[[Route], None] | None = None) -> Resident:
        """Compile (unless cached), load, warm and profile a route, then let it be switched to. The first one becomes current.

        Raises `BundleError` for an unknown route or a bad graph, `CompileError` when ONNX Runtime cannot run it.
        """
        route = self.bundle.route(name)
        with self._loading:
            if name in self._residents:
                return self._residents[name]
            compiled, session, anonymous = self._session(route, on_compile)
            if name not in self._timings:
                self._timings[name] = self._remembered(name) or self._timed(name, session)
            self._needs[name] = Need(compiled.touched, anonymous)
            resident = Resident(route, session, compiled)
            with self._lock:
                self._residents[name] = resident
                self._current = self._current or resident
            self._weigh()
        return resident

    def refine(self, name: str) -> None:
        """Time a loaded route again and keep the quicker timing: the last start may have met a busy moment."""
        resident = self._residents.get(name)
        if resident is not None:
            times = time_runs(lambda: infer(resident.session, self._example()), time.perf_counter, max_runs=10, max_s=0.1)
            self._timings[name] = self._timings[name].better(Timing.of(times))
            self._remember(name, self._timings[name])

    def release(self, name: str) -> None:
        """Forget a loaded route; requests that run on it finish. Raises `CompileError` for the current one."""
        with self._loading:
            with self._lock:
                if self._current is not None and self._current.route.name == name:
                    raise CompileError(f"the route {name!r} is the current one and cannot be released: switch first")
                self._residents.pop(name, None)
            self._weigh()

    def weigh(self) -> None:
        """Measure the process without its routes anew: libraries and answers take memory too, more as time goes on."""
        with self._loading:
            self._weigh()

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

    def _session(self, route: Route, on_compile: Callable[[Route], None] | None) -> tuple[CompiledRoute, ort.InferenceSession, int]:
        """The compiled route, a warm session on it, and the anonymous memory that this added."""
        for attempt in (1, 2):
            compiled = self._compiler.compile(route, on_compile)
            try:
                if not self._needs:
                    # The very first session also brings what all share (arena, code), which is no route's own.
                    self._warm(route, load_session(compiled, self._settings), self._example())
                before = footprint().anonymous_bytes
                session = load_session(compiled, self._settings)
            except CompileError:
                if attempt == 2 or compiled.graph.exists():
                    raise
                continue  # another process found the cache damaged and dropped it just now
            self._warm(route, session, self._example())
            return compiled, session, max(0, footprint().anonymous_bytes - before)
        raise AssertionError("the second attempt returns or raises")

    def _timed(self, name: str, session: ort.InferenceSession) -> Timing:
        timing = Timing.of(time_runs(lambda: infer(session, self._example()), time.perf_counter))
        self._remember(name, timing)
        return timing

    def _weigh(self) -> None:
        """Measure the process without its routes: what it has now less what they add. Needs `_loading`."""
        trim_heap()
        with self._lock:
            loaded = list(self._residents)
        self._overhead_bytes = max(0, footprint().pss_bytes - together(self._needs[name] for name in loaded))

    def _remembered(self, name: str) -> Timing | None:
        try:
            entry = json.loads((self._compiler.cache.path / _PROFILES_FILE).read_bytes())[self._profile_key(name)]
            return Timing(float(entry["latency_ms"]), float(entry["p95_ms"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def _remember(self, name: str, timing: Timing) -> None:
        """Keep a timing beside the compiled routes; of two processes that write at once the last one wins."""
        path = self._compiler.cache.path / _PROFILES_FILE
        try:
            known = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            known = {}
        try:
            write_atomically(path, json.dumps({**known, self._profile_key(name): asdict(timing)}).encode())
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
