"""Sensors: take one reading of the device and of one process. What cannot be read is `None`; reading never raises for it.

Which file each figure comes from, and where there is one: docs/sensors.md.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from restnet_runtime.cgroups import CgroupLimits, GroupFinder, limits_of
from restnet_runtime.contention import affinity, others_cores, read_cpu_times, read_task_times, waiting_share
from restnet_runtime.firmware import Firmware, FirmwareBits
from restnet_runtime.frequency import Frequency, Tachometer
from restnet_runtime.jetson import JetsonMeter
from restnet_runtime.memory import Gauge
from restnet_runtime.power import PowerMeter
from restnet_runtime.pressure import Pressure
from restnet_runtime.reading import Reading
from restnet_runtime.small_files import Turns
from restnet_runtime.thermal import Heat, Thermometer
from restnet_runtime.throttling import QuotaMeter, QuotaUse

_Value = TypeVar("_Value")

_SLOW_EVERY = 5
"""Readings from one look at temperature and power to the next: they change slowly, and some are asked for over a slow bus."""
_WALK_EVERY = 60
"""Readings from one walk over the process's pages to the next, which takes tens of milliseconds; in between what moves is counted along."""
_CAPPED = 0.95
_USED_UP = 0.1
"""A frequency below so much of the highest is a limit, a quota used up in so many of its periods slows requests down."""


class Sensors:
    """Reads the host through psutil and everything else from files below `root`.

    root:   where `/proc`, `/sys` and the cgroup mounts are looked up; psutil's samples are of the running machine whatever it is
    pid:    the process whose memory and cgroups are read; default: this one
    clock:  seconds that never step back

    Not for use by several threads at once: many figures are of the time since the previous `read`.
    """

    def __init__(self, root: Path = Path("/"), pid: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._pid = os.getpid() if pid is None else pid
        self._clock = clock
        self._groups = GroupFinder(root, self._pid)
        self._gauge = Gauge(root / "proc", self._pid, _WALK_EVERY, apart=True)
        self._quota = QuotaMeter()
        self._pressure_folder = root / "proc" / "pressure"
        self._pressure, self._group_pressure = Pressure(), Pressure("{}.pressure")
        self._heat = _Seldom(Thermometer(root).read)
        self._power = _Seldom(PowerMeter(root).read)
        self._jetson_meter = JetsonMeter(root)
        self._jetson = _Seldom(self._jetson_meter.read)
        self._tachometer = Tachometer(root)
        self._firmware = FirmwareBits(root)
        self._cpu = _or_none(_cpu_seconds)
        self._cpu_times = read_cpu_times(self._root, self._pid, affinity(self._pid))
        self._task_times = read_task_times(self._root, self._pid)

    def read(self) -> Reading:
        """One sample; about a millisecond. What only requests show is left `None`: whoever sees them fills it in."""
        now_s, cores = self._clock(), affinity(self._pid)
        groups = self._groups.find()
        limits = limits_of(groups)
        left = [value for value in (_or_none(_host_available_bytes), limits.headroom_bytes) if value is not None]
        quota = self._quota.read(groups.cpu, now_s)
        pressure = self._pressure.read(self._pressure_folder, now_s)
        group_pressure = self._group_pressure.read(groups.v2[0] if groups.v2 else None, now_s)
        heat, power, jetson = self._heat(), self._power(), self._jetson()
        frequency, firmware = self._tachometer.read(cores), self._firmware.read()
        if heat.celsius is None:  # in a container that has the service's socket and not the files
            heat = Heat(jetson.celsius, jetson.zone)
        return Reading(
            memory_available_bytes=min(left, default=None),
            own_memory_bytes=_or_none(self._gauge.pss_bytes),
            cpu_percent=self._cpu_percent(),
            others_cpu_cores=self._others_cpu_cores(cores),
            waiting_share=self._waiting_share(),
            load_1m=_or_none(_load_1m),
            cpu_quota_cores=limits.quota_cores,
            quota_throttled_share=quota.throttled_share,
            quota_stopped_cores=quota.stopped_cores,
            pressure_cpu_share=pressure["cpu"],
            pressure_memory_share=pressure["memory"],
            pressure_io_share=pressure["io"],
            group_pressure_cpu_share=group_pressure["cpu"],
            group_pressure_memory_share=group_pressure["memory"],
            group_pressure_io_share=group_pressure["io"],
            temperature_c=heat.celsius,
            temperature_zone=heat.zone,
            temperature_headroom_c=heat.headroom_c,
            cpu_frequency_mhz=frequency.mhz,
            cpu_frequency_share=frequency.share,
            cpu_frequency_cap_share=frequency.cap_share,
            battery_percent=power.battery_percent,
            on_battery=power.on_battery,
            power_w=jetson.watts if power.watts is None else power.watts,
            gpu_load_share=jetson.gpu_load_share,
            throttled=name_throttling(firmware, heat, frequency, quota),
            throttled_since_boot=firmware.since_boot,
        )

    def glance(self, last: Reading) -> Reading:
        """The last reading with what others can take away from one moment to the next: memory and the CPU quota. A tenth of its time."""
        limits = limits_of(self._groups.find())
        left = [value for value in (_or_none(_host_available_bytes), limits.headroom_bytes) if value is not None]
        own_bytes = self._gauge.moved_bytes()
        return replace(
            last,
            memory_available_bytes=min(left, default=None),
            own_memory_bytes=last.own_memory_bytes if own_bytes is None else own_bytes,
            cpu_quota_cores=limits.quota_cores,
        )

    def cgroup_limits(self) -> CgroupLimits:
        """What the process's cgroups allow, also for reports: a device with the memory cgroup off shows no limit here."""
        return limits_of(self._groups.find())

    def close(self) -> None:
        """Let go of a Jetson's service and of what was begun and has not ended. What is read afterwards does without them."""
        self._gauge.close()
        self._jetson_meter.close()
        self._firmware.close()

    def _cpu_percent(self) -> float | None:
        before, self._cpu = self._cpu, _or_none(_cpu_seconds)
        if before is None or self._cpu is None:
            return None
        busy, total = self._cpu[0] - before[0], self._cpu[1] - before[1]
        # Counters of single cores may step back a little.
        return min(100.0, max(0.0, 100.0 * busy / total)) if total > 0 else None

    def _others_cpu_cores(self, cores: set[int]) -> float | None:
        before = self._cpu_times
        self._cpu_times = read_cpu_times(self._root, self._pid, cores)
        return others_cores(before, self._cpu_times, len(cores))

    def _waiting_share(self) -> float | None:
        before, self._task_times = self._task_times, read_task_times(self._root, self._pid)
        return waiting_share(before, self._task_times)


def name_throttling(firmware: Firmware, heat: Heat, frequency: Frequency, quota: QuotaUse) -> tuple[str, ...] | None:
    """In words, what slows the device or this process down now; `None` where none of the four would tell."""
    if firmware.now is None and heat.headroom_c is None and frequency.cap_share is None and quota.throttled_share is None:
        return None
    found = list(firmware.now or ())
    if heat.beyond is not None:
        found.append(f"{heat.beyond} is so hot that the kernel slows the processor down")
    if frequency.cap_share is not None and frequency.cap_share < _CAPPED:
        found.append(f"CPU frequency held to {frequency.cap_share:.0%} of the highest".replace("%", " %"))
    if quota.throttled_share is not None and quota.throttled_share > _USED_UP:
        found.append(f"CPU quota used up in {quota.throttled_share:.0%} of its periods".replace("%", " %"))
    return tuple(found)


class _Seldom(Generic[_Value]):
    """What was read last, read anew every few times."""

    def __init__(self, read: Callable[[], _Value], every: int = _SLOW_EVERY) -> None:
        self._read, self._due = read, Turns(every)

    def __call__(self) -> _Value:
        if self._due():
            self._last = self._read()
        return self._last


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
