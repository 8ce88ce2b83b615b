"""Control groups of a benchmark's own, with CPU and memory limits, and Python in them. Versions 1 and 2. Removed afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from restnet_runtime.cgroups import Mount, parse_membership, parse_mounts, visible_groups

PERIOD_US = 100_000
_BEFORE_OTHERS_V1, _BEFORE_OTHERS_V2 = 262_144, 10_000  # the most there is: 1024 and 100 are what everybody else has
_NO_LIMIT_V1 = -1
SHORT_SLICE = """
import ctypes, platform, struct
if platform.machine() in ("x86_64", "aarch64"):
    ctypes.CDLL(None).syscall(314 if platform.machine() == "x86_64" else 274, 0, struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 100000, 0, 0), 0)
"""
"""Before a program: slices of 0.1 ms for all of its threads (sched_setattr(2), SCHED_OTHER). Older kernels take no notice."""


class NoGroupError(Exception):
    """Here no such control group can be made."""


class Box:
    """One group: of version 2, or of version 1 in the hierarchies of its controllers, `cpu` and `memory` or one of them."""

    def __init__(self, folders: dict[str, Path], version: int) -> None:
        self.folders, self.version = folders, version

    def weight(self, share: int) -> None:
        """Of the CPU time, among its siblings; 1 is what a group has by itself."""
        name, one = ("cpu.shares", 1024) if self.version == 1 else ("cpu.weight", 100)
        (self.folders["cpu"] / name).write_text(str(share * one))

    def quota(self, cores: float | None) -> None:
        """CPU time per wall time; `None`: no quota."""
        count = None if cores is None else int(cores * PERIOD_US)
        if self.version == 1:
            (self.folders["cpu"] / "cpu.cfs_quota_us").write_text(str(-1 if count is None else count))
        else:
            (self.folders["cpu"] / "cpu.max").write_text(f"{'max' if count is None else count} {PERIOD_US}")

    def limit(self, count: int | None) -> bool:
        """Memory, in bytes; `None`: no limit. Returns whether the kernel took it: version 1 refuses what it cannot reclaim."""
        folder = self.folders["memory"]
        try:
            if self.version == 1:
                (folder / "memory.limit_in_bytes").write_text(str(_NO_LIMIT_V1 if count is None else count))
            else:
                (folder / "memory.max").write_text("max" if count is None else str(count))
                with suppress(OSError):
                    (folder / "memory.swap.max").write_text("0")
        except OSError:
            return False
        return True

    def used_bytes(self) -> int:
        return int((self.folders["memory"] / ("memory.usage_in_bytes" if self.version == 1 else "memory.current")).read_text())

    def limit_bytes(self) -> int | None:
        text = (self.folders["memory"] / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")).read_text().strip()
        return None if text == "max" or int(text) > 2**60 else int(text)

    def anonymous_bytes(self) -> int:
        """What cannot be dropped and read again."""
        lines = (self.folders["memory"] / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["total_rss" if self.version == 1 else "anon"])

    def peak_bytes(self) -> int | None:
        """The most that was used; `None` where the kernel does not tell."""
        try:
            return int((self.folders["memory"] / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")).read_text())
        except OSError:
            return None

    def killed(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        text = (self.folders["memory"] / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def throttled_s(self) -> float:
        """For how long its threads were stopped, all of them together, because the quota was used up."""
        found = dict(line.split() for line in (self.folders["cpu"] / "cpu.stat").read_text().splitlines())
        return int(found["throttled_time"]) / 1e9 if "throttled_time" in found else int(found.get("throttled_usec", 0)) / 1e6

    def take(self, pid: int) -> None:
        """Move a process here."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def python(self, code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Python here from its first instruction on."""
        moves = " && ".join(f'echo $$ > "{folder}/cgroup.procs"' for folder in sorted(set(self.folders.values())))
        return subprocess.Popen(["sh", "-c", f'{moves} && exec "$@"', "sh", sys.executable, "-c", code, *args], text=True, **options)


@contextmanager
def boxes(*names: str, controllers: tuple[str, ...] = ("cpu", "memory")) -> Iterator[dict[str, Box]]:
    """New groups of these names below this process's own, or below its nearest parent that allows it. Raises `NoGroupError`.

    Where CPU is among the controllers, all lie below one that goes before whatever else runs here, so that others disturb little.
    """
    membership = parse_membership(Path("/proc/self/cgroup").read_text())
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    version = 1 if set(controllers) <= membership.keys() else 2
    made: list[Path] = []
    try:
        try:
            tops = {controller: _top(controller, version, membership, mounts, made) for controller in controllers}
            if version == 2:
                _hand_down(tops[controllers[0]], controllers)
            if "cpu" in tops:
                name, most = ("cpu.shares", _BEFORE_OTHERS_V1) if version == 1 else ("cpu.weight", _BEFORE_OTHERS_V2)
                (tops["cpu"] / name).write_text(str(most))
            found = {name: Box({controller: _make(top / name, made) for controller, top in tops.items()}, version) for name in names}
        except OSError as error:
            raise NoGroupError(str(error)) from error
        yield found
    finally:
        for home in {_parents(controller, version, membership, mounts)[0] for controller in controllers} if made else ():
            with suppress(OSError):  # whoever moved itself, goes back
                (home / "cgroup.procs").write_text(str(os.getpid()))
        for path in reversed(made):
            _remove(path)


def _parents(controller: str, version: int, membership: dict[str, str], mounts: list[Mount]) -> list[Path]:
    fitting = [mount for mount in mounts if mount.version == version and (version == 2 or controller in mount.controllers)]
    return [Path(group) for group in visible_groups(membership.get(controller if version == 1 else "", "/"), fitting)]


def _top(controller: str, version: int, membership: dict[str, str], mounts: list[Mount], made: list[Path]) -> Path:
    reason = f"no {controller} hierarchy is mounted"
    for parent in _parents(controller, version, membership, mounts):
        path = parent / f"restnet-benchmark-{os.getpid()}"
        try:
            return _make(path, made)
        except OSError as error:
            reason = str(error)
    raise NoGroupError(reason)


def _make(path: Path, made: list[Path]) -> Path:
    if path not in made:
        path.mkdir()
        made.append(path)
    return path


def _hand_down(top: Path, controllers: tuple[str, ...]) -> None:
    """Version 2: let the groups below have limits of their own."""
    for path in (top.parent, top):
        (path / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in controllers))


def _remove(path: Path) -> None:
    for _ in range(100):
        try:
            path.rmdir()
            return
        except OSError:  # its last process is still going
            time.sleep(0.1)
