"""The loader: a thread that makes routes ready and lets go of what no longer fits, off the request path."""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from restnet_runtime.compile import need_bytes
from restnet_runtime.errors import RoomError, StoppedError
from restnet_runtime.executor import Executor
from restnet_runtime.logs import log_for
from restnet_runtime.memory import Gauge
from restnet_runtime.precision import lacking
from restnet_runtime.pruning import Pruner
from restnet_runtime.reading import Reading
from restnet_runtime.refinement import Refiner
from restnet_runtime.residency import LOAD_MARGIN as LOAD_MARGIN
from restnet_runtime.residency import Room, by_value, keep, lean, stays_lean, together
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.threads import affinity_cores, usable_cores
from restnet_runtime.units import format_bytes

log = logging.getLogger(__name__)

_SETTLE_S = 1.0
"""After a batch the memory that it took is kept for the next one for so long."""

_GLANCES = 4
"""In an interval: so often memory is looked at."""
_FALLEN = 0.98
"""Of the last limit: what is less has fallen, and is not waited with."""
_FALLING_S = 5.0
"""For so long after the limit has fallen it may go on falling, and nothing could be loaded to fall to: the way down stays."""
_FORGIVE_LOOKS = 60
_MOST_AT_ONCE = 4
"""Sessions that are opened at the same time."""


@dataclass(frozen=True)
class Progress:
    """total: routes to make ready. loading: the one being made ready. left_out: for want of memory. failed: what went wrong, by route.

    compiled, failed_compiles: routes compiled since the start, and compiles of which no route came that could be loaded
    outdone: routes that are not kept loaded because another one is better here in every respect, and why
    verdicts: of all routes whose profiles could be believed so far, loaded or not, why another one is better, `None` where none is
    """

    total: int
    loaded: int
    loading: str | None
    compiled: int
    left_out: tuple[str, ...]
    failed: dict[str, str]
    failed_compiles: int = 0
    outdone: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str | None] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.loaded + len(self.left_out) + len(self.failed.keys() | self.outdone.keys()) >= self.total  # one may be both


class Loader:
    """Keeps as many of `names` loaded in `executor` as the memory limit allows, loading them in that order.

    on_loaded:     told the name of a route after its load
    memory_limit:  bytes that the process may take now, `None` for no limit; asked before every step
    wanted:        name of the route that would be chosen were every route loaded
    threads:       how many threads a request should have from now on; asked once an interval. Loaded routes follow one by one
    available:     bytes that the device leaves, `None` where that is unknown; asked before a route is compiled anew
    reading:       the last one of the device, `None` before there is any: profiles are measured again where it is quiet
    on_outdone:    let go of routes that another one outdoes here (`front.outdone`), at later starts too; told after it was found, so
                   that none of them stays the current one. `None` keeps all
    pinned:        name of the route that an operator wants whatever it costs: it is not let go of
    room:          what other models of the process leave, by which `memory_limit` is of this one alone; by default there is no other

    A route that fails is reported and left out; the others go on.
    """

    def __init__(
        self,
        executor: Executor,
        names: Sequence[str],
        on_loaded: Callable[[str], None] | None = None,
        memory_limit: Callable[[], int | None] | None = None,
        interval_s: float = 1.0,
        *,
        wanted: Callable[[], str | None] | None = None,
        threads: Callable[[], int] | None = None,
        available: Callable[[], int | None] = lambda: None,
        reading: Callable[[], Reading | None] = lambda: None,
        on_outdone: Callable[[], object] | None = None,
        pinned: Callable[[], str | None] = lambda: None,
        room: Room | None = None,
    ) -> None:
        self._executor, self._names, self._on_loaded = executor, tuple(names), on_loaded
        self._memory_limit, self._interval_s = memory_limit, interval_s
        self._wanted, self._threads, self._available = wanted, threads, available
        self._pruner, self._pinned = Pruner(executor, on_outdone), pinned
        self._room = room or Room()
        self._loading: str | None = None
        self._compiled = self._failed_compiles = 0
        known = {route.name for route in executor.bundle.routes}
        self._failed = {name: f"the bundle has no route {name!r}" for name in names if name not in known}
        for route in executor.bundle.routes:
            reason = lacking(route, executor.settings.providers)
            if reason is not None and route.name in self._names:
                self._failed[route.name] = reason
        self._left_out: tuple[str, ...] = ()
        self._refiner = Refiner(executor, reading, affinity_cores(), lambda: executor.busy_s)
        self._pressed_for: Route | None = None
        self._gauge = Gauge()
        self._lean: str | None = None
        self._limit: int | None = None  # as it was at the last step
        self._fell_s = -math.inf
        self._looks = 0
        self._roomless: set[str] = set()
        self._stuck: dict[str, SessionSettings] = {}
        self._stop = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="restnet-loader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def halt(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def stop(self) -> None:
        """End after the route that is being loaded now."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until every route that fits is loaded, and every other one has failed or been left out."""
        self._settled.wait(timeout_s)

    def progress(self) -> Progress:
        loaded = len(set(self._names) & set(self._executor.loaded))
        failed = dict(self._failed)
        there = self._executor.loaded
        without, reasons = self._pruner.aside(there), self._pruner.reasons()
        aside = {name: reasons[name] for name in without if name in self._names and name in reasons}
        compiles = self._compiled, self._left_out, failed, self._failed_compiles
        return Progress(len(self._names), loaded, self._loading, *compiles, aside, self._pruner.verdicts())

    def run(self) -> None:
        """Load and release until nothing is left to do, then run once what has not run yet, in this thread."""
        self._pruner.recall()
        while not self._stop.is_set() and self.step():
            pass
        self._settled.set()
        log.info(
            "%d of %d routes ready, %d compiled now, %d left out for want of memory, %d outdone by others here",
            len(self._executor.loaded),
            len(self._names),
            self._compiled,
            len(self._left_out),
            len(self._pruner.reasons()),
        )
        self._warm_up()
        self._executor.weigh()

    @property
    def loaded_bytes(self) -> int:
        """What the loaded routes are predicted to add to the process; one that is kept without its weights counts without them."""
        return self._bytes_of(self._executor.loaded)

    @property
    def without(self) -> frozenset[str]:
        """Names of the routes that are not loaded whatever room there is: they failed, or another one is better here."""
        there = self._executor.loaded
        return frozenset(self._pruner.aside((*there, self._pinned()))) | self._failed.keys() - set(there)

    def step(self) -> bool:
        """Release what does not fit, else load the next that does. Returns whether there was anything to do.

        It waits until no other model of the process loads or releases anything, so that what it plans by stays as it is meanwhile.
        """
        if not self._executor.turn.acquire(self._stop.is_set):
            return False
        try:
            return self._step()
        finally:
            self._executor.turn.release()

    def _step(self) -> bool:
        limit = self._memory_limit() if self._memory_limit is not None else None
        if self._settled.is_set() and self._fallen(limit):
            self._fell_s = time.monotonic()
        self._limit, current = limit, self._executor.current
        if self._room.resting is not None:
            return self._rest()
        whole = self._room.whole(limit)
        if whole is not None and self._gauge.exceeds(whole):
            self._executor.weigh()  # more than was predicted: the plan below must know
            if current != self._pressed_for:  # at once; what is released below takes longer
                self._pressed_for = current
                log.info("above the memory limit: %s of idle weights handed back", format_bytes(self._executor.hand_back()))
        else:
            self._pressed_for = None
        wanted = self._wanted() if self._wanted is not None and current is not None else None  # the cheapest is ready soonest
        loaded = self._executor.loaded
        room = self._room.to_load(limit)
        aside = self._pruner.aside((current.name if current else None, self._pinned()))
        while True:
            order = self._order(current, wanted, aside)
            able = [name for name in order if name not in self._failed or name in loaded]
            fitting = self._fitting(able, room)
            needed = self._pruner.needed(aside, fitting)
            if not needed:
                break
            aside -= needed
        staying = self._fitting([name for name in order if name in loaded], limit)
        missing = sorted((name for name in self._names if name in fitting and name not in loaded), key=lambda name: name != wanted)
        coming, staying = self._next(missing, order, staying, room)
        if coming is not None and not self._room.admits(self._bytes_of(staying)):  # others have not released yet what they are to
            staying = [name for name in staying if name != coming]
            coming = None
        down = self._way_down(order, loaded, staying, limit)
        if down is not None and coming is None:
            staying = [*staying, down]
            if down != self._lean:
                log.info("%s stays as the way down, its weights handed back", down)
                self._executor.hand_back()
        self._lean = down
        later = [] if coming is None else fitting
        self._left_out = tuple(name for name in able if name not in later and name not in staying and name not in self._failed)
        gone = [name for name in loaded if name in self._names and name not in staying]
        released = [self._release(name) for name in gone]  # first, so that there is room for what comes
        if coming is not None and all(released):
            # One at a time where memory is short, or once it is settled: what a load takes for a moment would be taken twice.
            one = self._left_out or self._settled.is_set() or not self._room.admits(self._bytes_of(fitting))
            at_once = 1 if one else min(usable_cores(), _MOST_AT_ONCE)
            self._executor.prepare([coming, *(name for name in missing if name != coming)], at_once)
            self._load(coming)
        return bool(gone) or coming is not None

    def _rest(self) -> bool:
        """There is no room for any route: let go of all. Returns whether there was one."""
        if not self._executor.loaded:
            return False
        log.warning("no route stays loaded: %s", self._room.resting)
        self._lean, self._left_out = None, self._names
        self._executor.rest()
        return True

    def _bytes_of(self, names: Sequence[str]) -> int:
        needs = {name: self._executor.need(name, names) for name in names}
        return together(lean(need) if name == self._lean else need for name, need in needs.items())

    def _order(self, current: Route | None, wanted: str | None, aside: Collection[str]) -> list[str]:
        """The most valuable first, without those set aside: where the cheapest is one of them, the next is the way down."""
        routes = [route for route in self._executor.bundle.routes if route.name not in aside]
        return [name for name in by_value(routes, current.name if current else None, wanted) if name in self._names]

    def _next(
        self, missing: Sequence[str], order: Sequence[str], loaded: Sequence[str], limit: float | None
    ) -> tuple[str | None, list[str]]:
        """The first of `missing` for which nothing more valuable has to go, `None` without one; and what of `loaded` stays, it included."""
        for name in missing:
            among = [one for one in order if one == name or one in loaded]
            place = among.index(name) + 1
            while (staying := self._fitting(among, limit))[:place] == among[:place]:
                if staying == among:
                    return name, staying
                among = staying  # once more: what goes may have weights that `name` was taken to share
        return None, list(loaded)

    def _way_down(self, order: Sequence[str], loaded: Sequence[str], staying: Sequence[str], limit: int | None) -> str | None:
        """The cheapest route, where it is loaded and stays only without its weights in memory (`residency.stays_lean`)."""
        down = min(order, key=lambda name: self._executor.bundle.route(name).macs, default=None)
        if limit is None or down is None or down not in loaded or down in staying:
            return None
        needs = {name: self._executor.need(name, order) for name in (*staying, down)}
        lean = stays_lean(down, staying, needs, self._executor.overhead_bytes, limit)
        return down if lean or time.monotonic() < self._fell_s + _FALLING_S else None

    def _fallen(self, limit: int | None) -> bool:
        """Since the last step?"""
        return limit is not None and (self._limit is None or limit < _FALLEN * self._limit)

    def _loop(self) -> None:
        log_for(lambda: self._room.model)
        self._guarded(self.run)
        self._settled.set()
        turn = 0
        while not self._stop.wait(self._interval_s / _GLANCES):
            turn += 1
            if turn % _GLANCES == 0:
                self._guarded(self._look)
            else:
                self._guarded(self._glance)

    def _glance(self) -> None:
        """Memory can be taken away at any moment, and the kernel takes the pages of what serves along with those of what is idle."""
        limit = self._memory_limit() if self._memory_limit is not None else None
        rests = self._room.resting is not None and bool(self._executor.loaded)
        if rests or (limit is not None and self._fallen(limit) and self._exceeds(limit)):
            self.step()

    def _exceeds(self, limit: int) -> bool:
        """Is more there than may be? Beside other models also what is predicted counts: another one may be about to take what is free."""
        whole = self._room.whole(limit)
        over = whole is not None and whole > limit and self._executor.overhead_bytes + self.loaded_bytes > limit
        return over or (whole is not None and self._gauge.exceeds(whole))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Whatever goes wrong, memory is to be watched further."""
        try:
            work()
        except Exception:
            log.exception("a step of the loader failed")

    def _look(self) -> None:
        """What is to be done once an interval, the most urgent first; one load at the most, so that the memory limit is kept."""
        self._forgive()
        if self.step():
            return
        self._warm_up()
        if self._follow_threads() or self._executor.settle(_SETTLE_S) or self._improve():
            return
        if self._executor.turn.acquire(lambda: True):  # else another model loads or times its routes, which would be measured along
            try:
                self._refiner.step()
            finally:
                self._executor.turn.release()
        self._pruner.judge(self._refiner.trusted & set(self._names))

    def _forgive(self) -> None:
        """Let routes be tried again for which there was no room: there may be by now."""
        self._looks += 1
        if self._looks % _FORGIVE_LOOKS == 0:
            for name in self._roomless:
                self._failed.pop(name, None)
            self._roomless.clear()

    def _warm_up(self) -> None:
        """Run what has not run yet, so that a switch finds its weights in the process."""
        for name in self._executor.cold:
            if self._stop.is_set():
                return
            try:
                self._executor.warm(name)
            except Exception as error:
                self._failed[name] = str(error) or repr(error)
                log.error("route %s does not run any more: %s", name, error)
                self._release(name)

    def _follow_threads(self) -> bool:
        """Load one again that has another number of threads than it should. Returns whether there was one."""
        if self._threads is not None:
            self._executor.settings = replace(self._executor.settings, threads=self._threads())
        stale = [name for name in self._executor.stale if self._stuck.get(name) != self._executor.settings]
        if not stale:
            return False
        try:
            self._executor.reload(stale[0])
        except Exception as error:  # the session that is there serves on
            self._stuck[stale[0]] = self._executor.settings
            log.error("route %s cannot be loaded anew: %s", stale[0], error)
            return False
        self._refiner.forget(stale[0])
        return True

    def _improve(self) -> bool:
        """Compile one anew that there was no room for at an earlier start, if there is now. Returns whether one was tried."""
        available = self._available()
        routes = [self._executor.bundle.route(name) for name in self._executor.improvable]
        able = [route for route in routes if available is None or available >= need_bytes(route)]
        if not able:
            return False
        name = able[0].name
        try:
            if self._counted(lambda begin: self._executor.improve(name, begin)):
                self._refiner.forget(name)
                log.info("route %s compiled anew, now that there is room", name)
        except StoppedError as error:
            log.info("%s", error)
        except Exception as error:  # the session that is there serves on
            log.warning("route %s stays as it is: %s", name, error)
        return True

    def _fitting(self, order: Sequence[str], limit: float | None) -> list[str]:
        needs = {name: self._executor.need(name, order) for name in order}
        return keep(order, needs, self._executor.overhead_bytes, limit)

    def _load(self, name: str) -> None:
        self._loading = name
        if self._executor.current is None:
            log.info("loading %s, the first of %d routes", name, len(self._names))
        try:
            self._counted(lambda begin: self._executor.load(name, begin, warm=self._settled.is_set()).compiled is not None)
            if self._on_loaded is not None:
                self._on_loaded(name)
        except Exception as error:  # whatever it is, the other routes can still be made ready
            if isinstance(error, StoppedError) and self._stop.is_set():
                log.info("%s", error)
                return
            self._failed[name] = str(error) or repr(error)
            if isinstance(error, RoomError):
                self._roomless.add(name)
            log.error("route %s cannot be loaded: %s", name, error)
        finally:
            self._loading = None

    def _release(self, name: str) -> bool:
        """Returns whether it is gone."""
        try:
            self._executor.release(name)
        except Exception as error:  # it became the current route a moment ago
            log.info("route %s stays: %s", name, error)
            return False
        log.info("route %s released: %s", name, self._pruner.reasons().get(name, "for want of memory"))
        return True

    def _counted(self, make: Callable[[Callable[[Route], None]], bool]) -> bool:
        """What `make` returns: whether a compiled route came of it. If so the last compile that it begins is a good one, else it failed."""
        begun: list[Route] = []
        made = False

        def begin(route: Route) -> None:
            begun.append(route)
            log.info("compiling %s", route.name)

        try:
            made = make(begin)
        finally:
            good = 1 if made and begun else 0
            self._compiled += good
            self._failed_compiles += len(begun) - good
        return made
