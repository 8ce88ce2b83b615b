"""Heat: the hottest thermal zone, and how far it is to where the device begins to slow down.

Format: kernel documentation, driver-api/thermal/sysfs-api.rst and ABI/testing/sysfs-class-thermal: millidegrees in `temp` and
`trip_point_N_temp`. At a trip of the type `passive` the kernel begins to slow the processor down, at `hot` it warns the firmware; `active`
starts a fan and `critical` shuts down, so these two do not count.
"""

from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import Turns, numbered, read_integer, read_text

_SLOWING = ("passive", "hot")
_PLAUSIBLE_C = (-60.0, 250.0)
"""A sensor that is off reads 0 K, or the largest number that it has."""


@dataclass(frozen=True)
class Zone:
    """A thermal zone. kind: its type, as `cpu-thermal`; trip_c: its lowest trip at which it slows down, `None` where it has none."""

    path: Path
    kind: str
    trip_c: float | None


@dataclass(frozen=True)
class Heat:
    """celsius: of the hottest zone; zone: its type; headroom_c: the least distance of a zone to its first passive or hot trip, below zero
    beyond it; beyond: the type of that zone where it is at its trip or beyond."""

    celsius: float | None = None
    zone: str | None = None
    headroom_c: float | None = None
    beyond: str | None = None


class Thermometer:
    """Reads the zones under `root`/sys/class/thermal. Which there are, and their trips, are looked up once a minute."""

    def __init__(self, root: Path = Path("/"), look_every: int = 60) -> None:
        self._folder = root / "sys" / "class" / "thermal"
        self._due = Turns(look_every)
        self._zones: list[Zone] = []

    def read(self) -> Heat:
        """All `None` without a zone that tells."""
        if self._due():
            self._zones = [_zone(path) for path in numbered(self._folder, "thermal_zone")]
        read = [(zone, celsius) for zone in self._zones if (celsius := _celsius(zone.path / "temp")) is not None]
        if not read:
            return Heat()
        hottest, celsius = max(read, key=lambda pair: pair[1])
        headroom_c, kind = min(((zone.trip_c - now, zone.kind) for zone, now in read if zone.trip_c is not None), default=(None, None))
        beyond = kind if headroom_c is not None and headroom_c <= 0 else None
        return Heat(celsius, hottest.kind, headroom_c, beyond)


def _zone(path: Path) -> Zone:
    trips = []
    for index in range(64):
        kind = read_text(path / f"trip_point_{index}_type")
        if kind is None:
            break
        # A trip of 0 or less is switched off.
        trip_c = _celsius(path / f"trip_point_{index}_temp")
        if kind in _SLOWING and trip_c is not None and trip_c > 0:
            trips.append(trip_c)
    return Zone(path, read_text(path / "type") or path.name, min(trips, default=None))


def _celsius(path: Path) -> float | None:
    number = read_integer(path)
    celsius = None if number is None else number / 1000
    return celsius if celsius is not None and _PLAUSIBLE_C[0] < celsius < _PLAUSIBLE_C[1] else None
