"""Threads: how many one request runs on, and how long they wait actively. The one place that decides it.

Measured in docs/decisions/0004-threads.md. In short: as many threads as there are cores that nobody else uses, shared among the
requests that run at once; all cores where hardly one is free; no more than the CPU quota, rounded up; none is bound to a core.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from restnet_runtime.cgroups import read_limits
from restnet_runtime.reading import Reading

log = logging.getLogger(__name__)

SPIN_US = 100
"""How long an idle thread of a running request waits actively for work before it sleeps."""
SMALL_MACS = 4_000_000
"""A route that costs less runs on one thread: handing work to a second one takes longer than it saves (10 of 40 microseconds)."""
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


def choose_threads(cores: int, reading: Reading, concurrency: float) -> int:
    """Threads for one request, 1..cores.

    cores:        of the process's CPU affinity
    reading:      its quota caps the cores, rounded up: half a core is one thread, because two that exhaust a quota are both stopped
    concurrency:  mean number of this process's requests that run at once; they share what there is

    A core that another process keeps busy is left to it: a request waits for its slowest thread, and one that shares a core is half as
    fast. Where fewer than half of the cores are left, a thread on each core gets more of them than one on each free core would.
    """
    quota = cores if reading.cpu_quota_cores is None else min(cores, max(1, math.ceil(reading.cpu_quota_cores)))
    # Half a core that others use costs less than a core that stands still.
    free = math.floor(cores - (reading.others_cpu_cores or 0.0) + 0.5)
    alone = cores if 2 * free < cores else free
    return max(1, min(quota, alone if concurrency < _SHARED else math.floor(max(0, free) / concurrency + 0.5)))


@dataclass(frozen=True)
class ThreadChoice:
    """The number of threads in force, changed only once another has been wanted for some ticks in a row.

    wanted, ticks:  what the last ticks wanted instead, and how many
    """

    threads: int
    wanted: int = 0
    ticks: int = 0
    down_after_ticks: int = 3
    up_after_ticks: int = 8

    def tick(self, wanted: int) -> "ThreadChoice":
        """The choice after one more tick. Going up waits longer, because a session has to be loaded for every change."""
        if wanted == self.threads:
            return replace(self, wanted=0, ticks=0)
        ticks = self.ticks + 1 if (wanted < self.threads) == (self.wanted < self.threads) and self.wanted else 1
        # The least change that every tick of the row agrees to.
        agreed = wanted if ticks == 1 else max(wanted, self.wanted) if wanted < self.threads else min(wanted, self.wanted)
        if ticks >= (self.down_after_ticks if wanted < self.threads else self.up_after_ticks):
            return replace(self, threads=agreed, wanted=0, ticks=0)
        return replace(self, wanted=agreed, ticks=ticks)


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

    def __call__(self) -> int:
        reading, now = self._reading(), (self._clock(), self._busy_s())
        elapsed_s, busy_s = now[0] - self._last[0], now[1] - self._last[1]
        if reading is None or elapsed_s <= 0:
            return self._choice.threads
        self._last = now
        before = self._choice
        self._choice = before.tick(choose_threads(self._cores, reading, busy_s / elapsed_s))
        if self._choice.threads != before.threads:
            log.info(
                "%d threads a request instead of %d: others use %.1f of %d cores, %.1f requests run at once",
                self._choice.threads,
                before.threads,
                reading.others_cpu_cores or 0.0,
                self._cores,
                busy_s / elapsed_s,
            )
        return self._choice.threads
