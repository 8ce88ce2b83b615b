"""Contention: how much of the cores that this process may run on is taken by others, read from `/proc`.

Formats: kernel documentation, filesystems/proc.rst (`/proc/stat` and `/proc/PID/stat`).
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuTimes:
    """Clock ticks since boot, all cores together.

    busy:   at normal priority, on the cores that were asked for; what runs niced yields to others and is not in here
    total:  all that passed on those cores
    own:    of one process, on whichever core
    """

    busy: int
    total: int
    own: int


def read_cpu_times(root: Path, pid: int, cores: Collection[int]) -> CpuTimes | None:
    """`None` where the files are missing or not what they should be."""
    try:
        lines = [line.split() for line in (root / "proc" / "stat").read_text().splitlines()]
        # user nice system idle iowait irq softirq steal; guests are within user and nice
        counters = [[int(word) for word in words[1:9]] for words in lines if words and words[0] in {f"cpu{core}" for core in cores}]
        # The command in parentheses may hold anything; utime and stime are the 12th and 13th field behind it.
        after = (root / "proc" / str(pid) / "stat").read_text().rpartition(")")[2].split()
        busy = sum(user + system + irq + softirq + steal for user, _, system, _, _, irq, softirq, steal in counters)
        return CpuTimes(busy, sum(map(sum, counters)), int(after[11]) + int(after[12])) if counters else None
    except (OSError, ValueError, IndexError):
        return None


def others_cores(before: CpuTimes | None, now: CpuTimes | None, cores: int) -> float | None:
    """Cores' worth of time that others took between two readings, 0..cores; `None` if there are no two, or no time passed."""
    if before is None or now is None or now.total <= before.total:
        return None
    others = (now.busy - before.busy) - (now.own - before.own)
    # The counters of a process and of the cores are not read in one instant.
    return min(float(cores), max(0.0, others / (now.total - before.total) * cores))


def affinity(pid: int) -> set[int]:
    """Cores that a process may run on; of this one where it is gone."""
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return os.sched_getaffinity(0)
