"""Power: the battery, what feeds the device, and how much it takes.

Formats: kernel documentation, ABI/testing/sysfs-class-power (microwatts, per cent) and hwmon/ina3221.rst (mV and mA of the power monitor
that Jetson boards have; NVIDIA names the rail of the whole board VDD_IN, on older ones POM_5V_IN).
"""

from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import Turns, numbered, read_integer, read_text

_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class Power:
    """battery_percent: of the least charged battery; on_battery: is one being used up; watts: what the whole device takes, where it
    has a monitor or runs on a battery that tells. `None`: no battery, no monitor, or it does not tell."""

    battery_percent: float | None = None
    on_battery: bool | None = None
    watts: float | None = None


class PowerMeter:
    """Reads `root`/sys/class/power_supply and `root`/sys/class/hwmon. Which there are is looked up once a minute."""

    def __init__(self, root: Path = Path("/"), look_every: int = 60) -> None:
        self._supplies = root / "sys" / "class" / "power_supply"
        self._monitors = root / "sys" / "class" / "hwmon"
        self._due = Turns(look_every)
        self._batteries: list[Path] = []
        self._rail: tuple[Path, Path] | None = None

    def read(self) -> Power:
        """A power monitor is asked over a slow bus: call this less often than once a second."""
        if self._due():
            self._batteries = _batteries(self._supplies)
            self._rail = _whole_board(self._monitors)
        percents = [percent for path in self._batteries if (percent := read_integer(path / "capacity")) is not None]
        states = [state for path in self._batteries if (state := read_text(path / "status")) is not None]
        on_battery = "Discharging" in states if states else None
        watts = None if self._rail is None else _rail_watts(self._rail)
        if watts is None and on_battery:
            drawn = [_battery_watts(path) for path in self._batteries if read_text(path / "status") == "Discharging"]
            watts = sum(one for one in drawn if one is not None) if drawn and None not in drawn else None
        return Power(float(min(percents)) if percents else None, on_battery, watts)


def _batteries(folder: Path) -> list[Path]:
    """Those of the device, not of a mouse beside it."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in found if read_text(path / "type") == "Battery" and read_text(path / "scope") != "Device"]


def _battery_watts(battery: Path) -> float | None:
    power_uw = read_integer(battery / "power_now")
    if power_uw is not None:
        return abs(power_uw) / 1e6
    current_ua, voltage_uv = read_integer(battery / "current_now"), read_integer(battery / "voltage_now")
    return None if current_ua is None or voltage_uv is None else abs(current_ua) * voltage_uv / 1e12


def _whole_board(folder: Path) -> tuple[Path, Path] | None:
    """The files of millivolts and milliamperes of the rail that feeds everything. Single rails are not summed: some feed others."""
    for monitor in numbered(folder, "hwmon"):
        if not (read_text(monitor / "name") or "").startswith("ina3221"):
            continue
        for channel in (1, 2, 3):
            if read_text(monitor / f"in{channel}_label") in _WHOLE_BOARD:
                return monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
    return None


def _rail_watts(rail: tuple[Path, Path]) -> float | None:
    millivolts, milliamperes = (read_integer(path) for path in rail)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
