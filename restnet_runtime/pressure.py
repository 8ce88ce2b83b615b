"""Pressure: the share of time in which some task waited for CPU, memory or I/O, from the kernel's pressure stall information (PSI).

Of the whole device from `/proc/pressure`, and of the own group from `*.pressure` of cgroup v2. Both may be missing: PSI is compiled out
or off by default on many boards (`psi=1` on the kernel's command line turns it on). Format: kernel documentation, accounting/psi.rst.
"""

from collections.abc import Mapping
from pathlib import Path

from restnet_runtime.small_files import integer, read_text

RESOURCES = ("cpu", "memory", "io")


def read_stalled_us(path: str | Path) -> int | None:
    """Microseconds since boot in which at least one task was stalled: `total` of the line `some`."""
    some = (read_text(path) or "").partition("\n")[0]
    return integer(some.rpartition(" total=")[2]) if some.startswith("some ") else None


class Pressure:
    """Shares since the last reading, by resource. The kernel's own means of 10 seconds would see a squeeze too late."""

    def __init__(self, pattern: str = "{}") -> None:
        """pattern: of the names of the files, such as `{}.pressure`."""
        self._pattern = pattern
        self._folder: Path | None = None
        self._before: dict[str, int | None] = {}
        self._at_s = 0.0

    def read(self, folder: Path | None, now_s: float) -> Mapping[str, float | None]:
        """For each of `RESOURCES` a share 0..1; `None` where the kernel does not tell, and at the first reading of a folder.

        folder: with the files; `None` where there is none
        now_s:  seconds that never step back
        """
        totals = {name: None if folder is None else read_stalled_us(f"{folder}/{self._pattern.format(name)}") for name in RESOURCES}
        before, elapsed_s = self._before if folder == self._folder else {}, now_s - self._at_s
        self._folder, self._before, self._at_s = folder, totals, now_s
        return {name: _share(before.get(name), totals[name], elapsed_s) for name in RESOURCES}


def _share(before: int | None, now: int | None, elapsed_s: float) -> float | None:
    if before is None or now is None or elapsed_s <= 0:
        return None
    return min(1.0, max(0.0, (now - before) / 1e6 / elapsed_s))
