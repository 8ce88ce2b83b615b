"""CPU frequency: how fast the cores run, and how fast they are allowed to, of the fastest that they can.

Format: kernel documentation, admin-guide/pm/cpufreq.rst: kHz in the files of `policyN`, one for the cores that change together. A low
current frequency says little where the cores are idle; a lowered maximum is a limit that somebody set, the thermal governor for one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import Turns, numbered, read_integer, read_text


@dataclass(frozen=True)
class Frequency:
    """Means over the cores asked for. mhz: now; share: now, of the highest; cap_share: allowed now, of the highest. 0..1, or a little
    more where a core runs faster than it says it can."""

    mhz: float | None = None
    share: float | None = None
    cap_share: float | None = None


class Tachometer:
    """Reads the policies under `root`/sys/devices/system/cpu/cpufreq. Which there are is looked up once a minute."""

    def __init__(self, root: Path = Path("/"), look_every: int = 60) -> None:
        self._folder = root / "sys" / "devices" / "system" / "cpu" / "cpufreq"
        self._due = Turns(look_every)
        self._policies: list[tuple[Path, frozenset[int], int]] = []

    def read(self, cores: Collection[int]) -> Frequency:
        """Of these cores, by number. All `None` where the kernel does not set the frequency, as in most virtual machines."""
        if self._due():
            self._policies = [
                (path, _cores(path), highest)
                for path in numbered(self._folder, "policy")
                if (highest := read_integer(path / "cpuinfo_max_freq")) is not None and highest > 0
            ]
        now: list[tuple[int, int, int]] = []  # cores, kHz, highest kHz
        cap: list[tuple[int, int, int]] = []
        for path, members, highest in self._policies:
            count = len(members.intersection(cores))
            for name, found in (("scaling_cur_freq", now), ("scaling_max_freq", cap)):
                value = read_integer(path / name) if count else None
                if value is not None and value > 0:
                    found.append((count, value, highest))
        mhz = _mean([(count, value / 1000) for count, value, _ in now])
        return Frequency(
            mhz, _mean([(count, value / most) for count, value, most in now]), _mean([(n, value / most) for n, value, most in cap])
        )


def _cores(policy: Path) -> frozenset[int]:
    return frozenset(int(word) for word in (read_text(policy / "affected_cpus") or "").split() if word.isdigit())


def _mean(weighted: list[tuple[int, float]]) -> float | None:
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else None
