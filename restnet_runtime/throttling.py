"""Throttling by a CPU quota: how often, and for how long, the process's cgroups were stopped because their quota was used up.

Formats: `cpu.stat` of cgroup v1 (scheduler/sched-bwc.rst: nanoseconds in `throttled_time`) and v2 (admin-guide/cgroup-v2.rst:
microseconds in `throttled_usec`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import read_keyed


@dataclass(frozen=True)
class QuotaCounters:
    """Of one group since it was made. periods: those of the quota that passed while it wanted to run; throttled: of them, those in which
    the quota was used up. stopped_s: time for which it was stopped, summed over cores."""

    periods: int
    throttled: int
    stopped_s: float


@dataclass(frozen=True)
class QuotaUse:
    """Between two readings, of the group that was stopped most. `None`: no quota has been in force, or it is unknown.

    throttled_share:  of the periods, the share in which the quota was used up, 0..1
    stopped_cores:    cores' worth of time for which threads that could have run were stopped
    """

    throttled_share: float | None = None
    stopped_cores: float | None = None


def read_counters(group: Path) -> QuotaCounters | None:
    """`None` where the group has no such counters, or never had a quota."""
    found = read_keyed(f"{group}/cpu.stat", "nr_periods", "nr_throttled", "throttled_usec", "throttled_time")
    periods, throttled = found.get("nr_periods"), found.get("nr_throttled")
    if "throttled_usec" in found:
        stopped_s = found["throttled_usec"] / 1e6
    elif "throttled_time" in found:
        stopped_s = found["throttled_time"] / 1e9
    else:
        return None
    return QuotaCounters(periods, throttled, stopped_s) if periods and throttled is not None else None


class QuotaMeter:
    """Compares the counters of the groups that a process is in with those of the last reading."""

    def __init__(self) -> None:
        self._before: dict[Path, QuotaCounters] = {}
        self._at_s: float | None = None

    def read(self, groups: Iterable[Path], now_s: float) -> QuotaUse:
        """groups: the own one and its parents. now_s: seconds that never step back."""
        now = {group: counters for group in groups if (counters := read_counters(group)) is not None}
        before, at_s = self._before, self._at_s
        self._before, self._at_s = now, now_s
        if not now or at_s is None or now_s <= at_s:
            return QuotaUse()
        # A quota that was set meanwhile has counted from zero.
        changes = [_change(before.get(group, QuotaCounters(0, 0, 0.0)), counters) for group, counters in now.items()]
        shares = [throttled / periods if periods > 0 else 0.0 for periods, throttled, _ in changes]
        return QuotaUse(min(1.0, max(shares)), max(stopped_s for *_, stopped_s in changes) / (now_s - at_s))


def _change(before: QuotaCounters, now: QuotaCounters) -> tuple[int, int, float]:
    if now.periods < before.periods:  # another group of the same name
        before = QuotaCounters(0, 0, 0.0)
    return now.periods - before.periods, max(0, now.throttled - before.throttled), max(0.0, now.stopped_s - before.stopped_s)
