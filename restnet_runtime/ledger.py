"""The ledger: what each route of a bundle takes on this device, measured or guessed; without any, the baseline says."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from restnet_runtime.baseline import Added, Baseline
from restnet_runtime.bundle import Bundle
from restnet_runtime.front import LATENCY_NOISE
from restnet_runtime.measured import GUESSED_SESSION_BYTES, Measured, MeasuredStore
from restnet_runtime.profile import RouteProfile, Timing
from restnet_runtime.residency import Need, together
from restnet_runtime.resident import Resident

_BY_THREADS = 0.9
"""So much of a power of the number of threads: two of them take 0.54 of the time that one takes."""
_NOTHING = frozenset[tuple[int, int]]()


class Ledger:
    """Kept for released routes too. One thread at a time may enter something, any may read."""

    def __init__(self, bundle: Bundle, store: MeasuredStore, baseline: Baseline | None = None) -> None:
        """store: what earlier starts have measured; what is entered goes there too. baseline: that of all models of the process."""
        self._bundle, self._store = bundle, store
        self._baseline = baseline or Baseline()
        self._needs: dict[str, Need] = {}
        self._timings: dict[str, tuple[int, Timing]] = {}  # with the number of threads
        self._provisional: set[str] = set()
        self._profiles: dict[str, tuple[tuple[int, Timing], Need, int, RouteProfile]] = {}  # each behind what it was made of
        self.version = 0
        """Of needs and timings: another one where one of them has changed."""

    @property
    def overhead_bytes(self) -> int:
        """PSS of this process without any route, as `weigh` found it last."""
        return self._baseline.overhead_bytes

    def profile(self, name: str) -> RouteProfile | None:
        """The profile of a route that something was entered for, else `None`. Its memory is that of the process with this route alone."""
        timed, need = self._timings.get(name), self._needs.get(name)
        if timed is None or need is None:
            return None
        made = self._profiles.get(name)
        if made is not None and made[0] is timed and made[1] is need and made[2] == self.overhead_bytes:
            return made[3]
        (threads, timing), overhead_bytes = timed, self.overhead_bytes
        found = RouteProfile(timing.latency_ms, timing.p95_ms, overhead_bytes + together([need]), threads)
        self._profiles[name] = timed, need, overhead_bytes, found
        return found

    def need(self, name: str, mapped: Collection[tuple[str, str]] = ()) -> Need:
        """What a route adds when it is loaded; before its first load a cautious guess from the size of its weights.

        mapped: segments, each with a precision, whose weights are there already, for the guess
        """
        known = self._needs.get(name)
        if known is not None:
            return known
        route = self._bundle.route(name)
        # Extents that no compiled route has: where its tensors lie is known only once it is compiled.
        guessed = {
            (-1 - hash((segment, precision)) % 2**40, self._bundle.segments[segment].graphs[precision].weight_bytes)
            for segment, precision in zip(route.segments, route.precisions, strict=True)
            if (segment, precision) not in mapped
        }
        return Need(frozenset(guessed), GUESSED_SESSION_BYTES)

    def knows(self, name: str, how: str) -> bool:
        """Has an earlier start measured the route, run in this way?"""
        return self._store.get(name, how) is not None

    def outdone_by(self, name: str, how: Callable[[str], str]) -> str | None:
        """The route that outdid this one at an earlier start and is still not slower; `None` without one. how: each is run now."""
        by, known = self._store.outdone_by(name, how(name)), {route.name for route in self._bundle.routes}
        mine = self._store.get(name, how(name))
        theirs = self._store.get(by, how(by)) if by in known else None
        return by if mine and theirs and theirs.timing.latency_ms <= mine.timing.latency_ms else None

    def refutes(self, name: str, by: str, how: Callable[[str], str]) -> bool:
        """Was `by` measured to be slower than the route that it is said to outdo, by more than noise? how: each is run now."""
        mine, theirs = self._store.get(name, how(name)), self._store.get(by, how(by))
        return mine is not None and theirs is not None and theirs.timing.latency_ms > mine.timing.latency_ms * (1 + LATENCY_NOISE)

    def mark(self, name: str, how: str, by: str) -> None:
        """Keep for later starts that `by` outdoes a route that is run in this way."""
        self._store.mark(name, how, by)

    def recall(self, resident: Resident) -> bool:
        """Enter what an earlier start has measured of a route that is run in this way. Returns whether one has."""
        known = self._store.get(resident.route.name, resident.how)
        if known is not None:
            self._enter(resident, known)
        return known is not None

    def estimate(self, resident: Resident) -> bool:
        """Enter what another number of threads should make of a route that is known with one. Returns whether it is.

        All routes are estimated alike, so that what the estimate is off by is taken for slowdown, and they are still told apart.
        """
        name = resident.route.name
        if name not in self._timings or name not in self._needs:
            return False
        threads, timing = self._timings[name]
        factor = (threads / resident.settings.threads) ** _BY_THREADS
        need = self._needs[name]
        estimated = Timing(timing.latency_ms * factor, timing.p95_ms * factor)
        self._enter(resident, Measured(estimated, need.session_bytes, need.activation_bytes))
        self._provisional.add(name)
        return True

    def enter(self, resident: Resident, measured: Measured, *, quiet: bool) -> None:
        """Enter what was measured now. quiet: no requests ran meanwhile; what they took would be in it, and it is not kept on disk then."""
        self._enter(resident, measured)
        if quiet:
            self._provisional.discard(resident.route.name)
            self._store.put(resident.route.name, resident.how, measured)
        else:
            self._provisional.add(resident.route.name)

    def provisional(self, name: str) -> bool:
        """Whether a route was measured while requests ran."""
        return name in self._provisional

    def refine(self, resident: Resident, timing: Timing, *, instead: bool = False) -> None:
        """Keep the quicker of this timing and the one that stands; this one whatever it is with `instead`."""
        name = resident.route.name
        threads, known = self._timings[name]
        if threads == resident.settings.threads:
            timing, need = timing if instead else known.better(timing), self._needs[name]
            self.version += timing != known
            self._timings[name] = threads, timing
            self._store.put(name, resident.how, Measured(timing, need.session_bytes, need.activation_bytes))

    def hand_back(self) -> None:
        """Weights leave the process now, and come back page by page: what is mapped is not weighed any more."""
        self._baseline.hand_back()

    def weigh(self, residents: Sequence[Resident], arena_bytes: int = 0) -> None:
        """Measure the process without its routes: what it has now less what these, all that are loaded, add.

        arena_bytes: what the arena holds for runs of several inputs, where that is more than single runs take
        """
        self._baseline.weigh(self, self.added(residents, arena_bytes))

    def added(self, residents: Sequence[Resident], arena_bytes: int = 0) -> Added:
        """What these, all that are loaded, add to the process now."""
        # What has not run has no weights in the process yet.
        every = [(self._needs[one.route.name], one.ran) for one in residents]
        needs = [need if ran else replace(need, touched=_NOTHING, activation_bytes=0) for need, ran in every]
        own = [replace(need, touched=_NOTHING) for need in needs]
        return Added(together(needs) - together(own), together([Need(_NOTHING, 0, arena_bytes), *own]))

    def hold(self, added: Callable[[], Added]) -> None:
        """Let the baseline ask what the routes add when another model is weighed."""
        self._baseline.hold(self, added)

    def drop(self) -> None:
        """No route is loaded any more."""
        self._baseline.drop(self)

    def _enter(self, resident: Resident, measured: Measured) -> None:
        self.version += 1
        touched = _NOTHING if resident.compiled is None else resident.compiled.touched
        self._needs[resident.route.name] = Need(touched, measured.session_bytes, measured.activation_bytes)
        self._timings[resident.route.name] = resident.settings.threads, measured.timing
