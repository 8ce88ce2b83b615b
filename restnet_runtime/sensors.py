"""Sensors: take one reading of the device and of one process. What cannot be read is `None`; reading never raises for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from restnet_runtime.cgroups import CgroupLimits, read_limits
from restnet_runtime.contention import affinity, others_cores, read_cpu_times, read_task_times, waiting_share
from restnet_runtime.memory import Gauge
from restnet_runtime.reading import Reading

_Value = TypeVar("_Value")


class Sensors:
    """Reads the host through psutil and the process's own memory and cgroups from `/proc` and the cgroup mounts.

    root:  where `/proc` and the cgroup mounts are looked up; psutil's samples are of the running machine whatever it is
    pid:   the process whose memory and cgroups are read; default: this one

    Not for use by several threads at once: `cpu_percent` is the use since the previous `read`.
    """

    def __init__(self, root: Path = Path("/"), pid: int | None = None) -> None:
        self._root = root
        self._pid = os.getpid() if pid is None else pid
        self._gauge = Gauge(root / "proc", self._pid)
        self._cpu = _or_none(_cpu_seconds)
        self._cpu_times = read_cpu_times(self._root, self._pid, affinity(self._pid))
        self._task_times = read_task_times(self._root, self._pid)

    def read(self) -> Reading:
        """One sample; about a millisecond. `slowdown` is left `None`: whoever sees the requests fills it in."""
        limits = self.cgroup_limits()
        host = _or_none(_host_available_bytes)
        left = [value for value in (host, limits.headroom_bytes) if value is not None]
        return Reading(
            memory_available_bytes=min(left, default=None),
            own_memory_bytes=_or_none(self._gauge.pss_bytes),
            cpu_percent=self._cpu_percent(),
            others_cpu_cores=self._others_cpu_cores(),
            waiting_share=self._waiting_share(),
            load_1m=_or_none(_load_1m),
            cpu_quota_cores=limits.quota_cores,
        )

    def cgroup_limits(self) -> CgroupLimits:
        """What the process's cgroups allow, also for reports: a device with the memory cgroup off shows no limit here."""
        return read_limits(self._root, self._pid)

    def _cpu_percent(self) -> float | None:
        before, self._cpu = self._cpu, _or_none(_cpu_seconds)
        if before is None or self._cpu is None:
            return None
        busy, total = self._cpu[0] - before[0], self._cpu[1] - before[1]
        # Counters of single cores may step back a little.
        return min(100.0, max(0.0, 100.0 * busy / total)) if total > 0 else None

    def _others_cpu_cores(self) -> float | None:
        before, cores = self._cpu_times, affinity(self._pid)
        self._cpu_times = read_cpu_times(self._root, self._pid, cores)
        return others_cores(before, self._cpu_times, len(cores))

    def _waiting_share(self) -> float | None:
        before, self._task_times = self._task_times, read_task_times(self._root, self._pid)
        return waiting_share(before, self._task_times)


def _or_none(read: Callable[[], _Value]) -> _Value | None:
    """psutil raises its own errors, and OSError, AttributeError or other kinds where a platform or a sandbox lacks a file or a field."""
    try:
        return read()
    except (psutil.Error, OSError, ValueError, AttributeError, LookupError, NotImplementedError):
        return None


def _host_available_bytes() -> int:
    return int(psutil.virtual_memory().available)


def _load_1m() -> float:
    return float(psutil.getloadavg()[0])


def _cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all cores since boot. Linux counts guests within user and nice already."""
    times = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total
