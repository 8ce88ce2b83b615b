"""Common sensors: the device is read once for all models of a process, however many watch it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from restnet_runtime.cgroups import CgroupLimits
from restnet_runtime.reading import Reading

_YOUNG = 0.8
"""Of the time from one look to the next: what was read within it is not read again for another model."""

_Value = TypeVar("_Value")


class Readable(Protocol):
    """What is needed of `sensors.Sensors`."""

    def read(self) -> Reading: ...
    def glance(self, last: Reading, /) -> Reading: ...
    def cgroup_limits(self) -> CgroupLimits: ...
    def close(self) -> None: ...


@dataclass
class _Kept(Generic[_Value]):
    """What was read last: when, as which one, and the value."""

    at_s: float = -float("inf")
    number: int = 0
    value: _Value | None = None


class CommonSensors:
    """One device and process, for any number of `SensorView`, each of which may be used by another thread.

    make: the sensors, asked for when the first view is made
    """

    def __init__(self, make: Callable[[], Readable], clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = make, clock
        self._reading = threading.Lock()  # sensors serve one thread at a time
        self._sensors: Readable | None = None
        self._views = 0
        self._read, self._glanced = _Kept[Reading](), _Kept[Reading]()

    def view(self, interval_s: float, beat_s: float) -> "SensorView":
        """For one model. interval_s, beat_s: between two of its readings, and two of its glances."""
        with self._reading:
            if self._sensors is None or self._views == 0:
                self._sensors = self._make()
            self._views += 1
        return SensorView(self, self._sensors, interval_s, beat_s)

    def read(self, seen: int, young_s: float) -> tuple[int, Reading]:
        """(number, reading): the last one where it is younger than that and another than the one that was seen, else a new one."""
        return self._latest(self._read, seen, young_s, lambda sensors: sensors.read())

    def glance(self, seen: int, young_s: float, last: Reading) -> tuple[int, Reading]:
        """The same of what can change from one moment to the next."""
        number, reading = self._latest(self._glanced, seen, young_s, lambda sensors: sensors.glance(last))
        return number, last.updated(
            memory_available_bytes=reading.memory_available_bytes,
            own_memory_bytes=reading.own_memory_bytes,
            cpu_quota_cores=reading.cpu_quota_cores,
        )

    def leave(self) -> None:
        """A view is not used any more; after the last one what the sensors hold is let go of."""
        with self._reading:
            self._views -= 1
            if self._views == 0 and self._sensors is not None:
                self._sensors.close()

    def _latest(self, kept: _Kept[_Value], seen: int, young_s: float, read: Callable[[Readable], _Value]) -> tuple[int, _Value]:
        with self._reading:
            now_s = self._clock()
            if kept.value is None or kept.number == seen or now_s - kept.at_s >= young_s:
                assert self._sensors is not None
                kept.value = read(self._sensors)
                kept.at_s, kept.number = now_s, kept.number + 1
            return kept.number, kept.value


class SensorView:
    """The sensors as one model sees them; for one thread at a time. Alone, each look is a new one."""

    def __init__(self, common: CommonSensors, sensors: Readable, interval_s: float, beat_s: float) -> None:
        self._common, self._sensors = common, sensors
        self._young_s, self._young_glance_s = _YOUNG * interval_s, _YOUNG * beat_s
        self._seen = self._glanced = 0
        self._closed = False

    def read(self) -> Reading:
        """What `Sensors.read` does."""
        self._seen, reading = self._common.read(self._seen, self._young_s)
        return reading

    def glance(self, last: Reading) -> Reading:
        """What `Sensors.glance` does."""
        self._glanced, reading = self._common.glance(self._glanced, self._young_glance_s, last)
        return reading

    def cgroup_limits(self) -> CgroupLimits:
        """What `Sensors.cgroup_limits` does."""
        return self._sensors.cgroup_limits()

    def close(self) -> None:
        """Leave. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._common.leave()
