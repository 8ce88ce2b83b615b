"""Threads: how many one request runs on, and how long they wait actively. The one place that decides it.

Measured in docs/decisions/0004-threads.md. In short: as many threads as there are cores that nobody else would use, shared among
the requests that run at once; all cores where hardly one is free; no more than the CPU quota, rounded up; none is bound to a core.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from restnet_runtime.cgroups import read_limits
from restnet_runtime.contention import demand_cores
from restnet_runtime.reading import Reading

log = logging.getLogger(__name__)

SPIN_US = 100
"""How long an idle thread of a running request waits actively for work before it sleeps."""
SMALL_MACS = 4_000_000
"""A route that costs less runs on one thread: handing work to a second one takes longer than it saves (10 of 40 microseconds)."""
BAND_CORES = 0.25
BAND_CONCURRENCY = 1.15
"""The dead band: so many cores of others' more or less, and so many times the requests at once, do not change the number of threads."""
_NEWEST = 1 / 3
"""Weight of the newest reading in the mean of them: where two neighbours meet on one core changes from second to second."""
_SHARED = 1.25
"""From so many requests at once on, they are taken to share the cores."""


def usable_cores(root: Path = Path("/"), pid: int | str = "self") -> int:
    """Cores that this process may use, at least 1: those of its CPU affinity, or its CPU quota rounded up where that is less.

    root, pid: whose quota, as for `cgroups.read_limits`
    """
    cores = affinity_cores()
    quota = read_limits(root, pid).quota_cores
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def affinity_cores() -> int:
    """Cores that this process may run on, at least 1."""
    return max(1, len(os.sched_getaffinity(0)))


def choose_threads(cores: int, reading: Reading, concurrency: float, in_force: int | None = None) -> int:
    """Threads for one request, 1..cores.

    cores:        of the process's CPU affinity
    reading:      its quota caps the cores, rounded up: half a core is one thread, because two that exhaust a quota are both stopped
    concurrency:  mean number of this process's requests that run at once; they share what there is
    in_force:     the number now, if there is one: it stays where a reading that differs by the width of the dead band asks for it

    A core that another process would keep busy is left to it: a request waits for its slowest thread, and one that shares a core is
    half as fast. Where fewer than half of the cores are left, a thread on each core gets more of them than one on each free core would.
    """
    quota = cores if reading.cpu_quota_cores is None else min(cores, max(1, math.ceil(reading.cpu_quota_cores)))
    # Under a quota threads also wait because it is used up, which tells nothing about others.
    waiting = reading.waiting_share if reading.cpu_quota_cores is None or reading.cpu_quota_cores >= cores else None
    others = demand_cores(reading.others_cpu_cores or 0.0, waiting, min(1.0, concurrency))
    # A dead band narrower than one step of the rule: its ends and its middle meet all that the rule says within it.
    wanted = [
        min(quota, _shared_out(cores, others + step, concurrency * factor))
        for step in (0.0, -BAND_CORES, BAND_CORES)
        for factor in (1.0, 1 / BAND_CONCURRENCY, BAND_CONCURRENCY)
    ]
    return in_force if in_force is not None and min(wanted) <= in_force <= max(wanted) else wanted[0]


def _shared_out(cores: int, others: float, concurrency: float) -> int:
    # Half a core that others use costs less than a core that stands still.
    free = max(0, math.floor(cores - others + 0.5))
    alone = cores if 2 * free < cores else free
    return max(1, min(cores, alone if concurrency < _SHARED else math.floor(free / concurrency + 0.5)))


def describe_threads(counts: Iterable[int]) -> str:
    """How many threads requests run on, for people: `1 thread`, `2 threads`, or `1 to 2 threads` where routes differ."""
    least, most = min(numbers := list(counts)), max(numbers)
    return f"{most} thread{'s' if most > 1 else ''}" if least == most else f"{least} to {most} threads"


@dataclass(frozen=True)
class ThreadChoice:
    """The number of threads in force, changed only once more, or fewer, have been wanted for some ticks in a row: to what the last wants.

    wanted, ticks:  what the last tick wanted instead, and how many in a row wanted to go that way
    """

    threads: int
    wanted: int = 0
    ticks: int = 0
    down_after_ticks: int = 3
    up_after_ticks: int = 8

    def tick(self, wanted: int) -> "ThreadChoice":
        """The choice after one more tick. Going up waits longer: a neighbour that stopped may only pause."""
        if wanted == self.threads:
            return replace(self, wanted=0, ticks=0)
        ticks = self.ticks + 1 if (wanted < self.threads) == (self.wanted < self.threads) and self.wanted else 1
        if ticks >= (self.down_after_ticks if wanted < self.threads else self.up_after_ticks):
            return replace(self, threads=wanted, wanted=0, ticks=0)
        return replace(self, wanted=wanted, ticks=ticks)


class ThreadGovernor:
    """Asked once a tick, says how many threads a request should have.

    cores:    that this process may run on
    threads:  to begin with
    reading:  the last one of the device, `None` before there is any
    busy_s:   seconds that requests have run so far, all together
    clock:    seconds that never step back
    """

    def __init__(
        self,
        cores: int,
        threads: int,
        reading: Callable[[], Reading | None],
        busy_s: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._cores, self._reading, self._busy_s, self._clock = cores, reading, busy_s, clock
        self._choice = ThreadChoice(threads)
        self._last = clock(), busy_s()
        self._recent: tuple[Reading, float] | None = None  # mean reading, requests at once

    def __call__(self) -> int:
        reading, now = self._reading(), (self._clock(), self._busy_s())
        elapsed_s, busy_s = now[0] - self._last[0], now[1] - self._last[1]
        if reading is None or elapsed_s <= 0:
            return self._choice.threads
        self._last = now
        recent, concurrency = self._recent = _mean(self._recent, reading, busy_s / elapsed_s)
        before = self._choice
        self._choice = before.tick(choose_threads(self._cores, recent, concurrency, before.threads))
        if self._choice.threads != before.threads:
            log.info(
                "%d threads a request instead of %d: others use %.1f of %d cores, our threads wait for a core %.0f %% of the time, "
                "%.1f requests run at once",
                self._choice.threads,
                before.threads,
                recent.others_cpu_cores or 0.0,
                self._cores,
                100 * (recent.waiting_share or 0.0),
                concurrency,
            )
        return self._choice.threads


def _mean(before: tuple[Reading, float] | None, reading: Reading, concurrency: float) -> tuple[Reading, float]:
    """Reading and requests at once, each figure that changes from second to second a running mean; what is missing leaves it as it was."""
    if before is None:
        return reading, concurrency
    last, last_concurrency = before
    mean = replace(
        reading,
        others_cpu_cores=_towards(last.others_cpu_cores, reading.others_cpu_cores),
        waiting_share=_towards(last.waiting_share, reading.waiting_share),
    )
    return mean, _towards(last_concurrency, concurrency)


@overload
def _towards(before: float, now: float) -> float: ...
@overload
def _towards(before: float | None, now: float | None) -> float | None: ...
def _towards(before: float | None, now: float | None) -> float | None:
    if before is None or now is None:
        return before if now is None else now
    return before + _NEWEST * (now - before)
