"""How much memory this process uses. PSS is the truth: weights that several sessions map are counted once there, not in RSS."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.ending import started
from restnet_runtime.small_files import read_text

log = logging.getLogger(__name__)


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
        import psutil  # not above: it takes long to import and is not needed on Linux

        process = psutil.Process(None if pid == "self" else int(pid))
        try:
            unique = int(process.memory_full_info().uss)
        except (psutil.Error, AttributeError):
            unique = int(process.memory_info().rss)
        return Footprint(unique, unique)


@dataclass(frozen=True)
class Resident:
    """Pages that the process has mapped, in bytes, as the kernel counts them along: no walk over them. Shared ones count in full."""

    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int


def resident(proc: Path = Path("/proc"), pid: int | str = "self") -> Resident | None:
    """`None` where the kernel does not tell."""
    try:
        lines = (read_text(f"{proc}/{pid}/status") or "").split("\n")
        fields = {name: rest for name, _, rest in (line.partition(":") for line in lines if line.startswith("Rss"))}
        return Resident(*(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem")))
    except (KeyError, ValueError, IndexError):
        return None


def anonymous_bytes() -> int:
    """Of this process. Cheap, unlike `footprint`, which walks every page that every session maps."""
    counted = resident()
    return footprint().anonymous_bytes if counted is None else counted.anonymous_bytes


class Gauge:
    """PSS of a process, asked again and again: walked over once in a while, and in between moved by what was counted along.

    walk_every:    how many askings may pass without a walk
    file_moves:    a walk is due as well once mapped files have moved by so many bytes
    apart:         walks but the first are in a thread of their own, and show at a later asking: one takes tens of milliseconds
    """

    def __init__(
        self, proc: Path = Path("/proc"), pid: int | str = "self", walk_every: int = 10, file_moves: int = 4 * 2**20, *, apart: bool = False
    ) -> None:
        self._proc, self._pid, self._walk_every, self._file_moves, self._apart = proc, pid, walk_every, file_moves, apart
        self._walked: tuple[int, Resident] | None = None
        self._walking: threading.Thread | None = None
        self._asked = 0

    def exceeds(self, limit_bytes: int) -> bool:
        """Is PSS above the limit? Not walked over where all resident pages together, shared ones in full, are not."""
        counted = resident(self._proc, self._pid)
        if counted is not None and counted.anonymous_bytes + counted.file_bytes + counted.shared_bytes <= limit_bytes:
            return False
        return self.pss_bytes() > limit_bytes

    def moved_bytes(self) -> int | None:
        """PSS by what has been counted along since the last walk; `None` where that is not known."""
        counted, known = resident(self._proc, self._pid), self._walked
        return None if counted is None or known is None else max(0, known[0] + counted.anonymous_bytes - known[1].anonymous_bytes)

    def pss_bytes(self) -> int:
        """Raises what `footprint` raises."""
        counted = resident(self._proc, self._pid)
        self._asked += 1
        if counted is None:
            return footprint(self._proc, self._pid).pss_bytes
        known = self._walked
        if known is None or (self._due(counted, known[1]) and not self._apart):
            self._asked = 0
            return self._walk(counted)
        if self._due(counted, known[1]) and (self._walking is None or not self._walking.is_alive()):
            self._asked = 0
            walking = threading.Thread(target=self._try_walk, args=(counted,), name="restnet-weigh", daemon=True)
            self._walking = walking if started(walking) else None
        return max(0, known[0] + counted.anonymous_bytes - known[1].anonymous_bytes)

    def close(self) -> None:
        """Wait for a walk that has not ended."""
        if self._walking is not None:
            self._walking.join()

    def _due(self, counted: Resident, before: Resident) -> bool:
        return self._asked >= self._walk_every or abs(counted.file_bytes - before.file_bytes) > self._file_moves

    def _walk(self, counted: Resident) -> int:
        pss_bytes = footprint(self._proc, self._pid).pss_bytes
        self._walked = pss_bytes, counted
        return pss_bytes

    def _try_walk(self, counted: Resident) -> None:
        """What was known before stays where it fails."""
        try:
            self._walk(counted)
        except Exception as error:  # psutil's, where there is no smaps_rollup, and the process may be gone
            log.debug("process %s was not weighed: %r", self._pid, error)
