"""Contention: how much of the cores that this process may run on is taken by others, and how much they would take, read from `/proc`.

Formats: kernel documentation, filesystems/proc.rst (`/proc/stat` and `/proc/PID/stat`), scheduler/sched-stats.rst
(`/proc/PID/task/TID/schedstat`).
"""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import list_names, read_text

_MOST_WAITING = 0.95
"""Who waits longer has hardly run: what others take is known no better than this."""


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
        wanted = {f"cpu{core}" for core in cores}
        lines = (line.split() for line in (read_text(f"{root}/proc/stat") or "").split("\n") if line.startswith("cpu"))
        # user nice system idle iowait irq softirq steal; guests are within user and nice
        counters = [[int(word) for word in words[1:9]] for words in lines if words[0] in wanted]
        # The command in parentheses may hold anything; utime and stime are the 12th and 13th field behind it.
        after = (read_text(f"{root}/proc/{pid}/stat") or "").rpartition(")")[2].split()
        busy = sum(user + system + irq + softirq + steal for user, _, system, _, _, irq, softirq, steal in counters)
        return CpuTimes(busy, sum(map(sum, counters)), int(after[11]) + int(after[12])) if counters else None
    except (ValueError, IndexError):
        return None


def others_cores(before: CpuTimes | None, now: CpuTimes | None, cores: int) -> float | None:
    """Cores' worth of time that others took between two readings, 0..cores; `None` if there are no two, or no time passed."""
    if before is None or now is None or now.total <= before.total:
        return None
    others = (now.busy - before.busy) - (now.own - before.own)
    # The counters of a process and of the cores are not read in one instant.
    return min(float(cores), max(0.0, others / (now.total - before.total) * cores))


@dataclass(frozen=True)
class TaskTimes:
    """Nanoseconds of one thread since it began: on a core, and waiting for one while it could have run."""

    ran: int
    waited: int


def read_task_times(root: Path, pid: int) -> dict[int, TaskTimes]:
    """Of the threads of a process, by number; those that cannot be read are left out, all of them where the kernel does not tell."""
    found, tasks = {}, f"{root}/proc/{pid}/task"
    for name in list_names(tasks):
        words = (read_text(f"{tasks}/{name}/schedstat") or "").split()  # a thread may end at any time
        with suppress(ValueError, IndexError):
            found[int(name)] = TaskTimes(int(words[0]), int(words[1]))
    return found


def waiting_share(before: Mapping[int, TaskTimes], now: Mapping[int, TaskTimes]) -> float | None:
    """Of the time in which threads could have run, the share that they waited for a core, 0..1; `None` if none could, or it is unknown.

    Threads that began between the two readings count from their beginning, those that ended do not count.
    """
    ran = waited = 0
    for thread, times in now.items():
        since = before.get(thread, TaskTimes(0, 0))
        if times.ran < since.ran or times.waited < since.waited:  # another thread by now
            since = TaskTimes(0, 0)
        ran, waited = ran + times.ran - since.ran, waited + times.waited - since.waited
    return waited / (ran + waited) if ran + waited > 0 else None


def demand_cores(others: float, waiting: float | None, active: float) -> float:
    """Cores' worth of time that others would take if this process took none.

    others:   cores' worth that they took
    waiting:  share of the time in which our threads could have run that they waited for a core; `None` is taken for none
    active:   share of the time in which a request of ours ran, 0..1

    A fair scheduler lets everybody wait alike: who got the share 1 - w of the time that he could use would use 1 / (1 - w) of what
    he got. With k busy neighbours and t threads of ours on n cores others take nk / (k + t), w is 1 - n / (k + t), and this is k.
    """
    stretch = 1 / (1 - min(waiting or 0.0, _MOST_WAITING))
    return others * (1 - active + active * stretch)


def affinity(pid: int) -> set[int]:
    """Cores that a process may run on; of this one where it is gone."""
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return os.sched_getaffinity(0)
