"""The limits that control groups (cgroup v1 and v2) put on one process, read from files.

A process is in one group per hierarchy and is bound by the limits of that group and of every parent up to the mount. In a
container the group's own path is often not visible below the mount; then what is visible there is used, up to the mount point.
Formats: kernel documentation, admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst,
filesystems/proc.rst (mountinfo).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from restnet_runtime.small_files import Turns, integer, read_keyed, read_text

_V1_UNLIMITED_32BIT = (2**31 - 1) * 4096
"""What memory.limit_in_bytes of an unlimited group reads on a 32-bit kernel."""
_V1_UNLIMITED = 2**62
"""64-bit kernels read LONG_MAX rounded down to a page, whatever the page size: nothing above this is a limit."""

_V1_FILE = ("total_inactive_file", "total_active_file", "total_mapped_file")
_V2_FILE = ("inactive_file", "active_file", "file_mapped")
"""In memory.stat: page cache, and what of it is mapped."""


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest of what could be read; `None` where nothing limits or nothing could be read.

    headroom_bytes:  limit - (usage - inactive page cache that nobody has mapped), least over all groups; below zero while a group is over
                     its limit. Mapped pages are in use: of a group that reads its weights again and again because they do not fit, they are
                     all inactive, and count as memory of the process already
    limit_bytes:     the limit of the group with the least headroom
    quota_cores:     CPU time per wall time, in cores (0.5 = half a core), least over all groups
    """

    headroom_bytes: int | None = None
    limit_bytes: int | None = None
    quota_cores: float | None = None


@dataclass(frozen=True)
class Mount:
    """One cgroup mount. root: the group that shows at `point`; controllers: v1 only, empty for v2."""

    version: int
    root: str
    point: str
    controllers: frozenset[str]


@dataclass(frozen=True)
class Groups:
    """The directories of the groups that limit a process, by hierarchy, its own first, then the parents. They need not exist."""

    memory_v1: tuple[Path, ...] = ()
    cpu_v1: tuple[Path, ...] = ()
    v2: tuple[Path, ...] = ()

    @property
    def cpu(self) -> tuple[Path, ...]:
        """Those that may have a CPU quota."""
        return (*self.cpu_v1, *self.v2)


class GroupFinder:
    """Finds the groups of one process again and again: afresh when it was moved, and else once a minute."""

    def __init__(self, root: Path, pid: int | str, look_every: int = 60) -> None:
        """root: where the file system is taken to begin. pid: a number or `self`."""
        self._root, self._process = root, f"{root}/proc/{pid}"
        self._due = Turns(look_every)
        self._membership: str | None = None
        self._groups = Groups()

    def find(self) -> Groups:
        """None where the process is gone or the kernel has no cgroups."""
        due, membership = self._due(), read_text(f"{self._process}/cgroup") or ""
        if due or membership != self._membership:
            self._membership = membership
            self._groups = find_groups(self._root, membership, read_text(f"{self._process}/mountinfo") or "")
        return self._groups


def find_groups(root: Path, membership: str, mountinfo: str) -> Groups:
    """From the texts of `/proc/PID/cgroup` and `/proc/PID/mountinfo`."""
    paths, mounts = parse_membership(membership), parse_mounts(mountinfo)
    hierarchies = (("memory", 1), ("cpu", 1), ("", 2))
    return Groups(*(tuple(_groups(root, paths, mounts, controller, version)) for controller, version in hierarchies))


def read_limits(root: Path, pid: int | str) -> CgroupLimits:
    """Limits on process `pid` (a number or `self`), with the file system taken to begin at `root`. Never raises for what the files hold."""
    return limits_of(GroupFinder(root, pid).find())


def limits_of(groups: Groups) -> CgroupLimits:
    """The tightest limits of these groups."""
    memory: list[tuple[int, int]] = []
    quotas: list[float] = []
    for group in groups.memory_v1:
        memory += _memory(_v1_limit(group), group, "memory.usage_in_bytes", _V1_FILE)
    for group in groups.cpu_v1:
        quotas += _quota(_number(f"{group}/cpu.cfs_quota_us"), _number(f"{group}/cpu.cfs_period_us"))
    for group in groups.v2:
        memory += _memory(_v2_limit(group), group, "memory.current", _V2_FILE)
        quota, _, period = (read_text(f"{group}/cpu.max") or "").partition(" ")
        quotas += _quota(_integer(quota), _integer(period))
    headroom, limit = min(memory, default=(None, None))
    return CgroupLimits(headroom, limit, min(quotas, default=None))


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/PID/cgroup`: from controller to the group's path; the v2 hierarchy has the controller `""`."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            found.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return found


def parse_mounts(text: str) -> list[Mount]:
    """The cgroup mounts of `/proc/PID/mountinfo`, in its order."""
    mounts: list[Mount] = []
    for line in text.split("\n"):
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 6 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if right[0] == "cgroup2" else 1
        controllers = frozenset(right[2].split(",")) if version == 1 else frozenset[str]()
        mounts.append(Mount(version, _unescaped(left[3]), _unescaped(left[4]), controllers))
    return mounts


def visible_groups(path: str, mounts: Iterable[Mount]) -> list[PurePosixPath]:
    """Directories of the group `path` and its parents, own group first, up to the mount point. They need not exist.

    Where no mount shows the path, the mount point alone: it is the group of a container, or a parent of it. A path that leaves
    its namespace (`/../other`) has no known directory, hence none is returned.
    """
    group = PurePosixPath(path)
    if ".." in group.parts:
        return []
    best: tuple[int, list[PurePosixPath]] = (-1, [])
    for mount in mounts:
        point, shown = PurePosixPath(mount.point), PurePosixPath(mount.root)
        below = group.relative_to(shown).parts if group.is_relative_to(shown) else ()
        depth = len(shown.parts) if group.is_relative_to(shown) else 0
        # A later mount hides an earlier one at the same place.
        if depth >= best[0]:
            best = depth, [point.joinpath(*below[:count]) for count in range(len(below), -1, -1)]
    return best[1]


def _groups(root: Path, membership: dict[str, str], mounts: list[Mount], controller: str, version: int) -> Iterator[Path]:
    path = membership.get(controller)
    if path is None:
        return
    fitting = [mount for mount in mounts if mount.version == version and (version == 2 or controller in mount.controllers)]
    for index, group in enumerate(visible_groups(path, fitting)):
        directory = root / group.relative_to("/")
        # On old kernels a v1 parent without hierarchy neither counts nor limits its children.
        if index and version == 1 and controller == "memory" and _number(f"{directory}/memory.use_hierarchy") == 0:
            return
        yield directory


def _v1_limit(group: Path) -> int | None:
    limit = _number(f"{group}/memory.limit_in_bytes")
    return None if limit is None or limit >= _V1_UNLIMITED or limit == _V1_UNLIMITED_32BIT else limit


def _v2_limit(group: Path) -> int | None:
    # Above memory.high the kernel throttles the group, which ruins latency long before memory.max kills it.
    limits = [limit for limit in (_number(f"{group}/memory.max"), _number(f"{group}/memory.high")) if limit is not None]
    return min(limits, default=None)


def _memory(limit: int | None, group: Path, usage_file: str, keys: tuple[str, str, str]) -> list[tuple[int, int]]:
    """`[(headroom, limit)]`, or nothing when the group is unlimited, or its usage or its inactive page cache cannot be read."""
    if limit is None:
        return []
    usage, found = _number(f"{group}/{usage_file}"), read_keyed(f"{group}/memory.stat", *keys)
    inactive, active, mapped = (found.get(key) for key in keys)
    if usage is None or inactive is None:
        return []
    if active is not None and mapped is not None:
        inactive = min(inactive, max(0, inactive + active - mapped))
    return [(limit - (usage - inactive), limit)]


def _quota(quota_us: int | None, period_us: int | None) -> list[float]:
    """v1 writes -1 and v2 `max` for no quota: neither is a number here."""
    return [quota_us / period_us] if quota_us and period_us else []


def _number(path: str) -> int | None:
    return _integer(read_text(path))


def _integer(text: str | None) -> int | None:
    """These figures are never below zero; v1 writes -1 for no limit."""
    number = integer(text)
    return number if number is not None and number >= 0 else None


def _unescaped(text: str) -> str:
    """Undo mountinfo's octal escapes (`\\040` for a space)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
