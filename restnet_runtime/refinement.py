"""Refinement: profiles that a busy moment has spoilt are measured again, and requests correct those that they prove too slow."""

from collections.abc import Callable

from restnet_runtime.executor import Executor
from restnet_runtime.profile import Timing
from restnet_runtime.reading import Reading
from restnet_runtime.slowdown import stretch

_ENOUGH = 20
_TOO_SLOW = 0.9
"""So many requests of which the median is below so much of the profile prove it too slow."""
_QUIET = 1.05


class Refiner:
    """Times each loaded route a second time soon after its load, and a third time in the first quiet moment after that.

    What disturbs a measurement makes it slower, never quicker: the quickest one stands (`Ledger.refine`). For the same reason requests may
    lower a profile, and never raise it: what they take beyond it is slowdown, which other routes suffer too.

    reading:  the last one, `None` before there is any
    cores:    that this process may run on
    """

    def __init__(self, executor: Executor, reading: Callable[[], Reading | None], cores: int) -> None:
        self._executor, self._reading, self._cores = executor, reading, cores
        self._timed: set[str] = set()
        self._quietly: set[str] = set()

    def forget(self, name: str) -> None:
        """The route has another session now, or has none."""
        self._timed.discard(name)
        self._quietly.discard(name)

    def step(self) -> None:
        """What is to be done once an interval: at most one route is timed."""
        reading = self._reading()
        self._learn(reading)
        quiet = reading is not None and is_quiet(reading, self._cores)
        waiting = [name for name in self._executor.loaded if name not in (self._quietly if quiet else self._timed)]
        if waiting:
            self._timed.add(waiting[0])
            if quiet:
                self._quietly.add(waiting[0])
            self._executor.refine(waiting[0])

    def _learn(self, reading: Reading | None) -> None:
        """Take over what requests have shown to be quicker than its profile."""
        for name, seen in ((reading.latencies or {}) if reading is not None else {}).items():
            profile = self._executor.profile(name)
            if profile is None or seen.requests < _ENOUGH or seen.threads != profile.threads:
                continue
            if seen.median_ms < _TOO_SLOW * profile.latency_ms:
                self._executor.learn(name, Timing(seen.median_ms, seen.p95_ms))


def is_quiet(reading: Reading, cores: int) -> bool:
    """Does nothing slow requests down that would be seen: no others, no quota used up, no heat, and no waiting for a core?"""
    calm = (reading.waiting_share or 0.0) < _QUIET - 1 and not reading.throttled
    return calm and reading.others_cpu_cores is not None and stretch(cores, cores, reading) < _QUIET
