"""How much memory this process uses. PSS is the truth: weights that several sessions map are counted once there, not in RSS."""

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Footprint:
    """pss_bytes: proportional set size. anonymous_bytes: of that, what is backed by no file."""

    pss_bytes: int
    anonymous_bytes: int


def footprint(proc: Path = Path("/proc"), pid: int | str = "self") -> Footprint:
    """The footprint of a process; its unique or resident size where the kernel has no `smaps_rollup`."""
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines[1:])}
        return Footprint(fields["Pss"], fields["Anonymous"])
    except (OSError, KeyError, ValueError, IndexError):
        process = psutil.Process(None if pid == "self" else int(pid))
        try:
            unique = int(process.memory_full_info().uss)
        except (psutil.Error, AttributeError):
            unique = int(process.memory_info().rss)
        return Footprint(unique, unique)
