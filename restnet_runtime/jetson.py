"""A Jetson's GPU: its load, and power and heat as its service tells them where `/sys` does not.

Read from `/sys/class/devfreq`, where the driver shows the load in thousandths. Where the socket of jetson-stats is there
(`/run/jtop.sock`) and the package can be imported (`pip install jetson-stats`), its service fills in what the files do not tell, for one
in a container that has the socket but not the files. Without the socket the package is not imported. Formats: NVIDIA Jetson Linux
developer guide, GPU load; jetson-stats, `jtop.jtop`.
"""

import importlib
import logging
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restnet_runtime.small_files import Turns, read_integer, read_text

log = logging.getLogger(__name__)

_NAMES = frozenset({"gp10b", "gv11b", "ga10b", "gpu"})
"""What the device tree calls the GPU: Jetson TX2, Xavier, Orin; `gpu` from JetPack 6 on."""


@dataclass(frozen=True)
class Jetson:
    """gpu_load_share: 0..1; watts: of the whole board; celsius: of its hottest sensor, and zone, its name. `None`: not told."""

    gpu_load_share: float | None = None
    watts: float | None = None
    celsius: float | None = None
    zone: str | None = None


class JetsonMeter:
    """Looks for the GPU once a minute, and for the socket until the service has been reached or has failed."""

    def __init__(self, root: Path = Path("/"), look_every: int = 60) -> None:
        self._folder = root / "sys" / "class" / "devfreq"
        self._socket = root / "run" / "jtop.sock"
        self._due = Turns(look_every)
        self._load: Path | None = None
        self._service: Any = None
        self._failed = False

    def read(self) -> Jetson:
        """What the service tells, the load from the file where there is one. All `None` on anything else than a Jetson."""
        if self._due():
            self._load = _load_file(self._folder)
            self._connect()
        told = self._told()
        load = None if self._load is None else read_integer(self._load)
        return Jetson(told.gpu_load_share if load is None else min(1.0, max(0.0, load / 1000)), told.watts, told.celsius, told.zone)

    def close(self) -> None:
        """Leave the service."""
        service, self._service = self._service, None
        if service is not None:
            service.close()

    def _connect(self) -> None:
        if self._service is not None or self._failed or not _is_socket(self._socket):
            return
        try:
            service = importlib.import_module("jtop").jtop()
            service.start()
            self._service = service
        except Exception as error:  # the package is not ours: it raises what it likes
            self._failed = True
            log.warning("%s is there, but its service cannot be read: %s", self._socket, error)

    def _told(self) -> Jetson:
        if self._service is None:
            return Jetson()
        try:
            loads = [_number(gpu["status"]["load"]) for gpu in self._service.gpu.values() if "load" in gpu.get("status", {})]
            total = _number(self._service.power.get("tot", {}).get("power"))
            heats = {name: _number(one["temp"]) for name, one in self._service.temperature.items() if one.get("online", True)}
        except Exception as error:
            self._failed = True
            log.warning("the service of jetson-stats tells nothing more: %s", error)
            self.close()
            return Jetson()
        known = {name: celsius for name, celsius in heats.items() if celsius is not None}
        zone = max(known, key=lambda name: known[name], default=None)
        return Jetson(
            max((load / 100 for load in loads if load is not None), default=None),
            None if total is None else total / 1000,
            None if zone is None else known[zone],
            zone,
        )


def _load_file(folder: Path) -> Path | None:
    try:
        devices = sorted(folder.iterdir())
    except OSError:
        return None
    for device in devices:
        name = (read_text(device / "device" / "of_node" / "name") or "").rstrip("\0")
        if name in _NAMES and read_text(device / "device" / "load") is not None:
            return device / "device" / "load"
    return None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
