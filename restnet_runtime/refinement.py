"""Refinement: profiles that a busy moment has spoilt are put right, so that one slowdown holds for all routes.

A prediction is a profile times the slowdown that another route shows: a profile that was taken in a busy moment makes all predictions of
that route too slow, and of all others too quick while that route is served. So each route is timed again once nothing else runs; and
as long as that moment has not come, it is run in turns with one route of as many threads, because the quotient of two that run in turns
depends little on how busy the device is. And what requests show to be quicker than its profile, is: that costs nothing.
"""

import math
import time
from collections.abc import Callable
from statistics import median

from restnet_runtime.executor import Executor
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.slowdown import stretch

_QUIET = 1.05
_SHARE = 0.005
"""Of the time, what timing takes beside requests."""
_LATE = 0.5
"""With less of the credit (`Reading.credit`) requests have been late."""
_ENOUGH = 24
"""Turns after which a quotient is known well enough: on a device that is busy all the time a single one is off by a third."""
_LIVE = 8
"""Requests of a route, of which the median is believed where it is the quicker one."""
_FEW = 5
"""Turns before a profile is put right by them: a single one may meet anything."""
_TRUSTED = 9
"""Turns after which it is known well enough which of two routes is the quicker one."""
_EVERY = 3
"""Looks from one comparison to the next: what takes turns takes time from requests."""
_OFF = 1.1
"""A profile that is off by so much is put right; within, the quotient is known no better."""


class Refiner:
    """Times each loaded route a second time soon after its load, and then as the module says, until it was timed in a quiet moment.

    reading:  the last one, `None` before there is any
    cores:    that this process may run on
    busy_s:   seconds that requests have run so far, all together
    clock:    seconds that never step back

    Requests come first: what is timed beside them makes them late. While they run, it takes `_SHARE` of the time at most, round by
    round, and none while they are late or there is a CPU quota.
    """

    def __init__(
        self,
        executor: Executor,
        reading: Callable[[], Reading | None],
        cores: int,
        busy_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor, self._reading, self._cores = executor, reading, cores
        self._busy_s, self._clock = busy_s, clock
        self._seen = clock(), busy_s()
        self._due_s = -math.inf
        self._timed: set[str] = set()
        self._quietly: set[str] = set()
        self._quotients: dict[str, tuple[str, list[float]]] = {}  # by route: of which reference, and what was found
        self._looks = 0

    def forget(self, name: str) -> None:
        """The route has another session now, or has none."""
        self._timed.discard(name)
        self._quietly.discard(name)
        self._quotients = {one: found for one, found in self._quotients.items() if name not in (one, found[0])}

    @property
    def trusted(self) -> set[str]:
        """Loaded routes whose profiles say which of two is quicker: timed in a quiet moment, or compared in turns often enough."""
        found = {name: reference for name, (reference, quotients) in self._quotients.items() if len(quotients) >= _TRUSTED}
        return {*self._quietly, *found, *found.values()} & set(self._executor.loaded)

    def step(self) -> None:
        """What is to be done once an interval: at most one route is timed."""
        reading, began_s, busy_s = self._reading(), self._clock(), self._busy_s()
        before, self._seen = self._seen, (began_s, busy_s)
        self._learn(reading)
        if busy_s <= before[1]:
            self._step(reading)
        elif began_s >= self._due_s and not is_pressed(reading, self._cores):
            self._step(reading, beside=True)
            self._due_s = self._clock() + (self._clock() - began_s) / _SHARE

    def _learn(self, reading: Reading | None) -> None:
        """A route that answers quicker than it was profiled was profiled in a busy moment: what disturbs a run never makes it quicker."""
        for name, live in ((reading.latencies if reading is not None else None) or {}).items():
            profile = self._executor.profile(name)
            if (
                profile is not None
                and live.requests >= _LIVE
                and live.threads == profile.threads
                and live.median_ms * _OFF < profile.latency_ms
            ):
                self._executor.correct(name, live.median_ms)

    def _step(self, reading: Reading | None, beside: bool = False) -> None:
        """beside: requests run."""
        loaded = self._executor.loaded
        quiet = reading is not None and is_quiet(reading, self._cores)
        waiting = [name for name in loaded if name not in (self._quietly if quiet else self._timed)]
        if waiting and (quiet or not beside):
            self._timed.add(waiting[0])
            if quiet:
                self._quietly.add(waiting[0])
            self._executor.refine(waiting[0], quiet=quiet)
        elif not quiet:
            self._compare(loaded, 1 if beside else None)

    def _compare(self, loaded: tuple[str, ...], rounds: int | None) -> None:
        """Let the route that was compared least take turns with its reference, in so many rounds at the most."""
        references = self._references(loaded)
        known = {name: self._found(name, reference) for name, reference in references.items() if name not in self._quietly}
        name = min(known, key=lambda name: len(known[name]), default=None)
        self._looks += 1
        # At once where nothing is known, and then seldom.
        if name is None or len(known[name]) >= _ENOUGH or (known[name] and self._looks % _EVERY):
            return
        reference = references[name]
        taken = self._executor.compare(name, reference) if rounds is None else self._executor.compare(name, reference, rounds)
        found = [*known[name], *taken]
        self._quotients[name] = reference, found
        profile, other = self._executor.profile(name), self._executor.profile(reference)
        if len(found) >= _FEW and profile is not None and other is not None and profile.threads == other.threads:
            latency_ms = median(found) * other.latency_ms
            if abs(math.log(latency_ms / profile.latency_ms)) > math.log(_OFF):
                self._executor.correct(name, latency_ms)

    def _found(self, name: str, reference: str) -> list[float]:
        before, found = self._quotients.get(name, (reference, []))
        return found if before == reference else []

    def _references(self, loaded: tuple[str, ...]) -> dict[str, str]:
        """Whom each route takes turns with: of those with as many threads one that was timed quietly, else the first that was loaded."""
        profiles: dict[str, RouteProfile] = {}
        for name in loaded:
            profile = self._executor.profile(name)
            if profile is not None:
                profiles[name] = profile
        first: dict[int, str] = {}
        for name in sorted(profiles, key=lambda name: name not in self._quietly):
            first.setdefault(profiles[name].threads, name)
        return {name: first[profile.threads] for name, profile in profiles.items() if first[profile.threads] != name}


def is_pressed(reading: Reading | None, cores: int) -> bool:
    """Are requests late, or is there a CPU quota, which timing would use up?"""
    if reading is None:
        return False
    late = reading.credit is not None and reading.credit < _LATE
    return late or (reading.cpu_quota_cores is not None and reading.cpu_quota_cores < cores)


def is_quiet(reading: Reading, cores: int) -> bool:
    """Does nothing slow requests down that would be seen: no others, no quota, no heat, and no waiting for a core?"""
    calm = (reading.waiting_share or 0.0) < _QUIET - 1 and not reading.throttled
    return calm and reading.others_cpu_cores is not None and stretch(cores, cores, reading) < _QUIET
