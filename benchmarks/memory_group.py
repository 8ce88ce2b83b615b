"""A memory cgroup of its own, version 1 or 2, and Python in it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restnet_runtime.cgroups import parse_membership, parse_mounts, visible_groups


class NoGroupError(Exception):
    """Here no memory cgroup can be made."""


class Group:
    """A memory cgroup, version 1 or 2."""

    def __init__(self, path: Path, version: int) -> None:
        self.path, self.version = path, version

    def limit(self, count: int) -> None:
        (self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")).write_text(str(count))
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def killed(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        text = (self.path / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def peak_bytes(self) -> int | None:
        try:
            return int((self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")).read_text())
        except OSError:
            return None


@contextmanager
def group(limit_bytes: int) -> Iterator[Group]:
    """A new group below this process's own, or below its nearest parent that allows it; removed afterwards. Raises `NoGroupError`."""
    membership = parse_membership(Path("/proc/self/cgroup").read_text())
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    version = 1 if "memory" in membership else 2
    fitting = [mount for mount in mounts if mount.version == version and (version == 2 or "memory" in mount.controllers)]
    reason = "no memory cgroup is mounted"
    for parent in visible_groups(membership.get("memory", membership.get("", "/")), fitting):
        path = Path(parent) / f"restnet-benchmark-{os.getpid()}"
        try:
            path.mkdir()
            made = Group(path, version)
            made.limit(limit_bytes)
            break
        except OSError as error:  # not ours to write, or without the memory controller
            reason = str(error)
            if path.exists():
                path.rmdir()
    else:
        raise NoGroupError(reason)
    try:
        yield made
    finally:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:  # its last process is still going
                time.sleep(0.1)


def inside(where: Group, code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Python in the group from its first instruction on."""
    shell = f'echo $$ > "{where.path}/cgroup.procs" && exec "$@"'
    return subprocess.Popen(["sh", "-c", shell, "sh", sys.executable, "-c", code, *args], text=True, **options)
