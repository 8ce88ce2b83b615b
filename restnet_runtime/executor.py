"""The executor: every route a resident session, the current one a reference that is replaced between two requests."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from restnet_runtime.ahead import OpenAhead
from restnet_runtime.arena import Arena
from restnet_runtime.baseline import Added, Common
from restnet_runtime.bundle import Bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError, InputError, NotLoadedError
from restnet_runtime.ledger import Ledger
from restnet_runtime.levels import Level, SessionOpener
from restnet_runtime.measured import MeasuredStore, measure, run_once
from restnet_runtime.noise import noise
from restnet_runtime.pages import hand_back
from restnet_runtime.profile import RouteProfile, Timing, compare_runs, time_runs
from restnet_runtime.residency import Need
from restnet_runtime.resident import Resident, how
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer


@dataclass(frozen=True)
class Answer:
    """logits: (batch, classes) float32. latency_ms: of the session's run alone."""

    logits: npt.NDArray[np.float32]
    route: Route
    latency_ms: float


class Executor:
    """Runs routes of one bundle. Thread safe; nothing here waits for a load while a request runs."""

    def __init__(self, bundle: Bundle, compiler: Compiler, settings: SessionSettings, common: Common | None = None) -> None:
        """common: what it shares with the executors of other bundles in this process."""
        self.bundle = bundle
        common = common or Common()
        self._settings = settings
        self._opener = SessionOpener(bundle, compiler)
        self._ahead = OpenAhead(self._opener)  # for the thread that holds `turn`
        self._activity = common.activity
        self._ledger = Ledger(bundle, MeasuredStore(compiler.cache.path), common.baseline)
        self._lock = threading.Lock()  # guards the next two
        self._residents: dict[str, Resident] = {}
        self._current: Resident | None = None
        self.turn = common.turn
        """Held for a load or a release. Whoever plans one by what is loaded in the process takes it before."""
        self._arena = Arena()
        self._ledger.hold(self._added)

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
    def levels(self) -> dict[str, Level]:
        """How each loaded route holds its weights: `prepacked`, `mapped` or `plain` (docs/decisions/0008-levels-and-providers.md)."""
        with self._lock:
            return {name: resident.level for name, resident in self._residents.items()}

    @property
    def threads(self) -> dict[str, int]:
        """Threads of one request on each loaded route, as its session has them: `settings` says what they are to be."""
        with self._lock:
            return {name: resident.settings.threads for name, resident in self._residents.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know of how sessions are loaded here: fallbacks, missing and untested providers."""
        return (*self._settings.providers.notes, *self._opener.notes)

    @property
    def settings(self) -> SessionSettings:
        """What sessions are loaded with from now on; `stale` names those that still have others."""
        return self._settings

    @settings.setter
    def settings(self, settings: SessionSettings) -> None:
        self._settings = settings

    @property
    def stale(self) -> tuple[str, ...]:
        """Names of loaded routes whose sessions have other settings than `settings`, the current route first."""
        current = self.current
        with self._lock:
            names = [name for name, resident in self._residents.items() if resident.settings != self._settings.of(resident.route)]
        return tuple(sorted(names, key=lambda name: current is None or name != current.name))

    @property
    def overhead_bytes(self) -> int:
        """PSS of this process without any route, as measured when a route was last loaded or released."""
        return self._ledger.overhead_bytes

    @property
    def busy_s(self) -> float:
        """Seconds that requests have run in this process, all together; what it grows by in a second is how many ran at once on average."""
        return self._activity.busy_s

    def profile(self, name: str) -> RouteProfile | None:
        """The profile of a route that is or was loaded, else `None`. Its memory is that of the process with this route alone."""
        return self._ledger.profile(name)

    def need(self, name: str, beside: Collection[str] | None = None) -> Need:
        """What the route adds when it is loaded; before its first load a cautious guess from the size of its weights.

        beside: of the loaded routes, those whose weights the guess may take to be there already; by default all
        """
        with self._lock:
            residents = [one for other, one in self._residents.items() if beside is None or other in beside]
        routes = [resident.route for resident in residents if resident.compiled]
        mapped = {part for route in routes for part in zip(route.segments, route.precisions, strict=True)}
        return self._ledger.need(name, mapped)

    @property
    def judgeable(self) -> list[tuple[Route, RouteProfile]]:
        """Loaded routes with their profiles, those left out that were measured while requests ran. Empty while threads are followed."""
        if self.stale:
            return []
        routes = [self.bundle.route(name) for name in self.loaded if not self._ledger.provisional(name)]
        profiles = [(route, self.profile(route.name)) for route in routes]
        return [(route, profile) for route, profile in profiles if profile is not None]

    def outdone_before(self) -> dict[str, str]:
        """Routes that earlier starts found outdone here, run as `settings` says, each with the one that is better."""

        found = {route.name: self._ledger.outdone_by(route.name, self._how) for route in self.bundle.routes}
        return {name: by for name, by in found.items() if by is not None}

    def refutes(self, name: str, by: str) -> bool:
        """Whether `by` has been measured, run as `settings` says, to be slower than the route that it is said to outdo."""
        return self._ledger.refutes(name, by, self._how)

    def mark_outdone(self, name: str, by: str) -> None:
        """Keep for later starts that `by` outdoes a loaded route here."""
        resident = self._residents.get(name)
        if resident is not None:
            with self.turn:
                self._ledger.mark(name, resident.how, by)

    def load(self, name: str, on_compile: Callable[[Route], None] | None = None, *, warm: bool = False) -> Resident:
        """Compile (unless cached), load and profile a route, then let it be switched to. The first one becomes current.

        A route that was measured at an earlier start is taken at that and has not run yet, unless it is the first one.

        warm: run it in any case before it can be switched to
        Raises `BundleError` for an unknown route or a bad graph, `CompileError` when ONNX Runtime cannot run it.
        """
        route = self.bundle.route(name)
        with self.turn:
            resident = self._residents.get(name)
            if resident is None:
                resident = self._enter(route, on_compile, warm)
        return resident

    def prepare(self, names: Sequence[str], at_once: int) -> None:
        """Begin to open sessions of routes that are to be loaded next, in this order, so that each `load` finds its own open or nearly so.

        at_once: how many may be opened at the same time, the first of `names`, which is left to `load`, among them

        Only beside a route that is loaded, and only of routes that a warm start finds: measured and compiled at an earlier one. What
        had been begun and is not named any more is let go.
        """
        with self.turn:
            self._ahead.drop(but=names)
            if self._current is None:
                return  # alone, to be ready soonest; and what all sessions share is made with the first
            for index, name in enumerate(names[:at_once]):
                route = self.bundle.route(name)
                settings = self._settings.of(route)
                if not self._opener.is_compiled(route) or not self._ledger.knows(name, how(settings)):
                    return  # what has to be measured is measured alone
                if index > 0:
                    self._ahead.begin(route, settings)

    def reload(self, name: str) -> None:
        """Load a loaded route once more, with the settings of now, and let it take the old one's place between two requests.

        Raises what `load` does; the old session serves on then.
        """
        with self.turn:
            if name in self._residents:
                self._enter(self.bundle.route(name), None, warm=True)

    @property
    def improvable(self) -> tuple[str, ...]:
        """Names of loaded routes that there was no room to compile any better at an earlier start, and that are to be tried again."""
        with self._lock:
            residents = list(self._residents.values())
        return tuple(one.route.name for one in residents if one.compiled is not None and self._opener.improvable(one.compiled))

    def improve(self, name: str, on_compile: Callable[[Route], None] | None = None) -> bool:
        """Compile such a route anew and let the better session take the old one's place. Returns whether there is one.

        Raises what `load` does; the old session serves on then.
        """
        with self.turn:
            if name not in self._residents or not self._opener.improve(self.bundle.route(name), on_compile):
                return False
            self._enter(self.bundle.route(name), None, warm=True)
        return True

    @property
    def cold(self) -> tuple[str, ...]:
        """Names of loaded routes that have not run yet, in the order in which they were loaded."""
        with self._lock:
            return tuple(name for name, resident in self._residents.items() if not resident.ran)

    def warm(self, name: str) -> None:
        """Run a loaded route on noise, which brings its weights into the process. Raises `CompileError` if it does not run."""
        resident = self._residents.get(name)
        if resident is not None:
            self._run_once(resident)

    def refine(self, name: str, *, quiet: bool = False) -> None:
        """Time a loaded route again and keep the quicker timing: the last start may have met a busy moment.

        quiet: nothing else runs now, so this timing is the better one whatever it is
        One that was weighed while requests ran is weighed again.
        """
        resident = self._residents.get(name)
        if resident is not None and self._ledger.provisional(name):
            with self.turn:
                self._weigh_route(resident)
                self._weigh()
        elif resident is not None:
            times = time_runs(lambda: infer(resident.session, noise(self.bundle)), time.perf_counter, max_runs=10, max_s=0.1)
            with self.turn:
                self._ledger.refine(resident, Timing.of(times), instead=quiet)

    def compare(self, name: str, reference: str, rounds: int = 6) -> list[float]:
        """Run two loaded routes in turns on noise, for about 0.3 s or so many rounds: of each round, the first over the second.

        None where one of them is not loaded any more.
        """
        one, other = self._residents.get(name), self._residents.get(reference)
        if one is None or other is None:
            return []
        x = noise(self.bundle)
        return compare_runs(lambda: infer(one.session, x), lambda: infer(other.session, x), time.perf_counter, rounds)

    def correct(self, name: str, latency_ms: float) -> None:
        """Let a loaded route's timing be this median, its 95th percentile in proportion."""
        resident, known = self._residents.get(name), self.profile(name)
        if resident is not None and known is not None:
            with self.turn:
                timing = Timing(latency_ms, known.p95_ms * latency_ms / known.latency_ms)
                self._ledger.refine(resident, timing, instead=True)

    def release(self, name: str) -> None:
        """Forget a loaded route; requests that run on it finish. Raises `CompileError` for the current one."""
        with self.turn:
            with self._lock:
                if self._current is not None and self._current.route.name == name:
                    raise CompileError(f"the route {name!r} is the current one and cannot be released: switch first")
                self._residents.pop(name, None)
            self._weigh()

    def weigh(self) -> None:
        """Measure the process without its routes anew: libraries and answers take memory too, more as time goes on."""
        with self.turn:
            self._weigh()

    def hand_back(self) -> int:
        """Hand the weights that the current route does not read back to the kernel, and what large batches took; bytes of weights.

        Every route stays loaded; one that is switched to reads its weights back from the page cache or the disk.
        """
        with self.turn:
            current = self._current
            with self._lock:
                mapped = [resident.compiled for resident in self._residents.values() if resident.compiled is not None]
            if current is None or current.compiled is None or not mapped:
                return 0
            self._arena.shrink(current, noise(self.bundle))
            idle: dict[Path, set[tuple[int, int]]] = {}  # by file: a route at a lesser level lies in a cache of its own
            for compiled in mapped:
                for file, extents in compiled.located(compiled.touched).items():
                    idle.setdefault(file, set()).update(extents)
            read = current.compiled.located(current.compiled.touched)
            self._ledger.hand_back()
            return sum(hand_back(file, extents.difference(read.get(file, ())), read.get(file, ())) for file, extents in idle.items())

    def settle(self, idle_s: float) -> bool:
        """Give the memory that batches took back to the system, once none has run for `idle_s` seconds. Returns whether it did."""
        current = self._current
        if current is None or not self._arena.take_idle(idle_s):
            return False
        with self.turn:
            self._arena.shrink(current, noise(self.bundle))
        return True

    def switch(self, name: str) -> None:
        """Make a loaded route the current one. Requests under way keep theirs. Raises `CompileError` if it is not loaded."""
        with self._lock:
            self._current = self._resident(name)

    def run(self, x: npt.NDArray[np.float32], route: str | None = None) -> Answer:
        """Run x (batch, C, H, W) float32 on the current route, or on the loaded one that is named.

        Raises `NotLoadedError` if that route is not loaded, or none is, and `InputError` for an x that no route takes.
        """
        resident = self._current if route is None else self._resident(route)
        if resident is None:
            raise NotLoadedError("no route is loaded yet")
        if x.dtype != np.float32 or x.shape[1:] != self.bundle.manifest.input.shape:
            raise InputError(f"an input of {x.dtype} {list(x.shape)}: give float32 [batch, {str([*self.bundle.manifest.input.shape])[1:]}")
        activity, first = self._activity, False
        activity.begun += 1
        started = time.perf_counter()
        try:
            if len(x) > 1:
                needed = len(x) * self._ledger.need(resident.route.name).activation_bytes
                first = self._arena.make_room(resident, x, needed)
                started = time.perf_counter()
            logits = infer(resident.session, x, shrink=first)
        finally:
            ended = time.perf_counter()
            activity.ended += 1
            resident.ran = True
            if len(x) > 1:
                self._arena.leave(ended, shrunk=first)
        activity.busy_s += ended - started
        return Answer(logits, resident.route, (ended - started) * 1e3)

    def close(self) -> None:
        """Release every session."""
        with self.turn:
            self._ahead.drop()
        with self._lock:
            self._current = None
            self._residents.clear()
        self._ledger.drop()

    def rest(self) -> None:
        """Forget every loaded route, the current one too; requests that run finish, and others find none until one is loaded again."""
        with self.turn:
            self._ahead.drop()
            with self._lock:
                self._current = None
                self._residents.clear()
            self._weigh()

    @property
    def needs_version(self) -> int:
        """Another one where `need` or `profile` of some route tells of other measurements than before."""
        return self._ledger.version

    def _how(self, name: str) -> str:
        """How a route is run now."""
        return how(self._settings.of(self.bundle.route(name)))

    def _resident(self, name: str) -> Resident:
        resident = self._residents.get(name)
        if resident is None:
            self.bundle.route(name)
            raise NotLoadedError(f"the route {name!r} is not loaded; loaded are {', '.join(self._residents) or 'none'}")
        return resident

    def _enter(self, route: Route, on_compile: Callable[[Route], None] | None, warm: bool) -> Resident:
        """Make a route resident, in place of an older session of it. Needs `turn`."""
        settings = self._settings.of(route)
        compiled, session = self._ahead.open(route, settings, on_compile)
        resident = Resident(route, session, compiled, settings)
        if not self._ledger.recall(resident) and not (route.name in self._residents and self._ledger.estimate(resident)):
            self._weigh_route(resident)
        elif warm or not self._residents:
            self._run_once(resident)
        with self._lock:
            self._residents[route.name] = resident
            if self._current is None or self._current.route.name == route.name:
                self._current = resident
        if resident.ran:  # of one that has not run there is nothing to weigh yet
            self._weigh()
        return resident

    def _run_once(self, resident: Resident) -> None:
        run_once(resident.route, resident.session, noise(self.bundle), len(self.bundle.manifest.classes))
        resident.ran = True

    def _weigh_route(self, resident: Resident) -> None:
        """Measure a route and keep what was found, on disk too unless requests ran meanwhile: what they took would be in it."""
        self._ahead.drop()
        activity, begun = self._activity, self._activity.begun
        quiet = begun == activity.ended
        again = None if resident.compiled is None else lambda: self._opener.open(resident.route, resident.settings)[1]
        self._arena.count_shrunk()  # measuring does that
        measured = measure(resident.route, resident.session, again, noise(self.bundle), len(self.bundle.manifest.classes))
        resident.ran = True
        self._ledger.enter(resident, measured, quiet=quiet and activity.begun == begun)

    def _weigh(self) -> None:
        """Needs `turn`."""
        self._ahead.drop()
        with self._lock:
            residents = list(self._residents.values())
        self._ledger.weigh(residents, self._arena.large_bytes)

    def _added(self) -> Added:
        """For the baseline."""
        with self._lock:
            residents = list(self._residents.values())
        return self._ledger.added(residents, self._arena.large_bytes)


def preparation_order(bundle: Bundle) -> list[str]:
    """Names of the routes in the order in which they are likely to be needed: the Pareto front, then the others; cheap first.

    The cheapest is ready soonest, so a device answers early and climbs from there.
    """
    ordered = sorted(bundle.routes, key=lambda route: (not route.on_front, route.macs))
    return [route.name for route in ordered]
