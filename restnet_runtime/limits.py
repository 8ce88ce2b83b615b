"""Limits in force: a budget and a reading turned into what a route's constants (macs, profiled latency and memory) may be at most."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, TypeVar, overload

from restnet_runtime.budget import Budget
from restnet_runtime.ladder import Bounds, Rung
from restnet_runtime.load import BUSIEST, Load
from restnet_runtime.quota import longest_run_ms, most_taken, share_taken
from restnet_runtime.reading import Reading
from restnet_runtime.units import format_bytes, format_macs, format_ms

CAUTION = {4: 0.04, 15: 0.03, 60: 0.01}
"""What is added to a ceiling, by the seconds over which it was seen: the fewer, the less sure."""
_AT_RANDOM = 0.5
"""A variation of gaps above this is no metronome's."""
_MOST_AROUND = 0.5
"""Of a latency limit, what decoding, stalls and the like may take of it: beyond, no route could make up for it."""


_Kind = Literal["memory", "latency", "macs", "accuracy"]
_Value = TypeVar("_Value")


class _Once(Generic[_Value]):
    """An attribute that is worked out when it is asked for first. `functools.cached_property` takes a lock for it up to Python 3.11."""

    def __init__(self, work: Callable[[Any], _Value]) -> None:
        self._work, self._name = work, work.__name__

    @overload
    def __get__(self, owner: None, kind: object) -> "_Once[_Value]": ...
    @overload
    def __get__(self, owner: object, kind: object) -> _Value: ...
    def __get__(self, owner: object, kind: object) -> "_Value | _Once[_Value]":
        if owner is None:
            return self
        value = owner.__dict__[self._name] = self._work(owner)
        return value


class Limits:
    """What is in force under a budget and a reading.

    bounds: for serving
    """

    def __init__(
        self,
        reading: Reading,
        budget: Budget,
        margin: float,
        reserve_bytes: int,
        servers: int = 1,
        quickest_ms: float = 0.0,
        room: float = 0.1,
    ) -> None:
        own, available, others = reading.own_memory_bytes, reading.memory_available_bytes, reading.others_memory_bytes or 0
        self.sensed_bytes = None if own is None or available is None else max(1, own + available - reserve_bytes - others)
        if others:  # memory is of the process: what its other models may take is not this one's
            own = None if own is None else max(1, own - others)
            if budget.memory_bytes is not None:
                budget = Budget(budget.macs, budget.latency_ms, max(1, budget.memory_bytes - others), budget.min_accuracy)
        self.budget, self.own_bytes, self._others = budget, own, others
        self.slowdown = 1.0 if reading.slowdown is None else reading.slowdown
        self.tail = 1.0 if reading.tail is None else reading.tail
        self.throttled = reading.throttled or ()
        self.load = None
        if reading.requests_per_s:
            quickest_ms *= self.slowdown * self.tail
            variation, waiting_ms = reading.gap_variation or 0.0, reading.waiting_ms or 0.0
            self.load = Load(reading.requests_per_s, variation, waiting_ms, quickest_ms, servers, reading.credit)
        macs = math.inf if budget.macs is None else budget.macs
        self._exact = math.inf if budget.memory_bytes is None else budget.memory_bytes
        self._sensed = math.inf if self.sensed_bytes is None else self.sensed_bytes
        unprofiled = math.inf if budget.memory_bytes is not None or own is None else own
        limit_ms = math.inf if budget.latency_ms is None else budget.latency_ms
        self.around_ms = min(reading.around_ms or 0.0, _MOST_AROUND * limit_ms) if limit_ms < math.inf else 0.0
        self.stall_ms = min(reading.stall_ms or 0.0, _MOST_AROUND * limit_ms - self.around_ms) if limit_ms < math.inf else 0.0
        self._limit_ms = limit_ms - self.around_ms - self.stall_ms
        self._margin, self._room, self._reserve_bytes = margin, room, reserve_bytes
        self.quota = reading.cpu_quota_cores
        self.threads = reading.request_threads or 1
        # Of a profile: by the quota, not by the slowdown, which tells nothing of others once a quota is used up.
        self._quota_ms = math.inf
        self._beside_cpu_ms, self._variation = reading.beside_cpu_ms, reading.gap_variation
        if self.quota is not None and limit_ms < math.inf:
            rate_per_s = reading.requests_per_s
            self._quota_ms = longest_run_ms(self.quota, self.threads, rate_per_s, self._limit_ms, self._beside_cpu_ms, self._variation)
        self._credit, self._ceilings = reading.credit, reading.ceilings
        self._longest: dict[float, float] = {}  # by tail, the longest run
        self.bounds = Bounds(macs, self._profiled(self._limit_ms), min(self._exact, self._sensed), unprofiled)

    @_Once
    def enter(self) -> Bounds:
        """For entering: a margin on what moves by itself."""
        return self._entering(1 + self._margin)

    @_Once
    def clear(self) -> Bounds:
        """For entering with room to spare."""
        return self._entering(1 + self._margin + self._room)

    def _entering(self, margin: float) -> Bounds:
        memory = min(self._exact, self._sensed / (1 + self._margin))
        return Bounds(self.bounds.macs, self._profiled(self._limit_ms, margin), memory, self.bounds.unprofiled)

    @_Once
    def tolerate(self) -> Bounds:
        """For staying where nothing fits."""
        most_ms = self._profiled(self._limit_ms * (1 + self._margin))
        return self.bounds._replace(latency_ms=most_ms, memory_bytes=min(self._exact, self._sensed + self._reserve_bytes / 2))

    @_Once
    def stay(self) -> Bounds:
        """For the route that serves: with credit, less of the tail."""
        credit, limit_ms = self._credit or 0.0, self._limit_ms
        if credit <= 0.0 or self.tail <= 1.0 or limit_ms == math.inf:
            return self.bounds
        return self.bounds._replace(latency_ms=self._profiled(limit_ms, tail=1.0 + (self.tail - 1.0) * (1.0 - credit)))

    @_Once
    def windows_s(self) -> list[int]:
        """Over how many seconds it was seen what requests take, ascending; empty where that is unknown or there is no limit."""
        return sorted(self._ceilings) if self._ceilings and self.budget.latency_ms is not None else []

    def near(self, window_s: int) -> float:
        """The longest profiled latency of a route that would have kept the limit over the last seconds, as many as one of `windows_s`."""
        ceiling = (self._ceilings or {})[window_s]
        limit_ms = self._limit_ms + self.stall_ms  # what runs stood still for is in the ceiling
        most_ms = self._profiled(limit_ms, 1.0 + CAUTION.get(window_s, 0.0), ceiling / self.slowdown)
        return min(self.bounds.latency_ms, most_ms)

    def crowded(self, rung: Rung) -> bool:
        """Is a route too slow only for requests that have met by chance? Its run alone keeps the limits, and they come at random."""
        run_ms = rung.latency_ms
        alone = self.load is not None and self.load.variation > _AT_RANDOM and run_ms * self.slowdown * self.tail <= self._limit_ms
        return alone and run_ms <= self._quota_ms and rung.memory_bytes <= self.bounds.memory_bytes

    def _profiled(self, limit_ms: float, margin: float = 1.0, tail: float | None = None) -> float:
        """The longest profiled latency that keeps a limit, were runs `margin` times as long; tail: by default that of the reading."""
        tail = self.tail if tail is None else tail
        if limit_ms == math.inf:
            return math.inf
        factor = self.slowdown * margin
        by_quota = self._quota_ms / margin
        if self.load is None:
            return min(by_quota, _largest(limit_ms, factor * tail))
        if limit_ms != self._limit_ms:
            return min(by_quota, self.load.longest_run_ms(limit_ms, tail) / factor)
        longest = self._longest.get(tail)
        if longest is None:
            longest = self._longest[tail] = self.load.longest_run_ms(limit_ms, tail)
        return min(by_quota, longest / factor)

    def in_force(self) -> Budget:
        """The budget, its memory lowered to what the device leaves."""
        budget, sensed = self.budget, self.sensed_bytes
        if sensed is None or (budget.memory_bytes is not None and budget.memory_bytes <= sensed):
            return budget
        return Budget(budget.macs, budget.latency_ms, sensed, budget.min_accuracy)

    def predicted_ms(self, rung: Rung) -> float | None:
        """What all but the slowest requests would run for on a route; `None` without a profile."""
        return rung.latency_ms * self.slowdown * self.tail if rung.profiled else None

    def broken(self, rung: Rung) -> list[tuple[_Kind, str]]:
        """The limits that a route does not keep, hard ones first, each in words with its figures."""
        return list(self._broken(rung))

    def _broken(self, rung: Rung) -> Iterator[tuple[_Kind, str]]:
        budget, floor = self.budget, self.budget.min_accuracy
        if floor is not None and (rung.accuracy is None or rung.accuracy < floor):
            known = "unknown" if rung.accuracy is None else f"{rung.accuracy:.2%}"
            yield "accuracy", f"accuracy {known} below the floor of {100 * floor:.4g}%"
        if budget.memory_bytes is not None:
            note = " (what the other models leave)" if self._others else ""
            yield from self._over("memory", rung.memory_bytes if rung.profiled else None, budget.memory_bytes, note)
        if self.sensed_bytes is not None and self.sensed_bytes != budget.memory_bytes:
            need = rung.memory_bytes if rung.profiled else self.own_bytes
            yield from self._over(
                "memory",
                need,
                self.sensed_bytes,
                " (what the device and the other models leave)" if self._others else " (what the device has left)",
            )
        if budget.latency_ms is not None:
            yield from self._latency(rung, budget.latency_ms)
        if budget.macs is not None:
            yield from self._over("macs", rung.macs, budget.macs)

    def _latency(self, rung: Rung, limit_ms: float) -> Iterator[tuple[_Kind, str]]:
        if rung.latency_ms <= self.bounds.latency_ms:
            return
        if not rung.profiled:
            yield from self._over("latency", None, limit_ms)
            return
        run_ms = rung.latency_ms * self.slowdown
        taken = run_ms * self.tail + self.around_ms + self.stall_ms
        factors = [format_ms(rung.latency_ms)]
        if self.slowdown != 1.0:
            factors.append(f"slowdown {self.slowdown:.3g}")
        if self.tail != 1.0:
            factors.append(f"tail {self.tail:.3g}")
        beside = f" + {format_ms(self.around_ms)} of decoding and the like" if self.around_ms else ""
        if self.stall_ms:
            beside += f" + {format_ms(self.stall_ms)} for which runs stand still"
        note = f" ({' x '.join(factors)}{beside})" if len(factors) > 1 or beside else ""
        if self.quota is not None and rung.latency_ms > self._quota_ms and taken <= limit_ms:
            yield "latency", self._by_quota(rung.latency_ms, self.quota)
            return
        if self.throttled and self.slowdown > 1.0:
            note += f"; the device is throttled: {', '.join(self.throttled)}"
        if taken > limit_ms or self.load is None:
            yield from self._over("latency", taken, limit_ms, note)
            return
        busy, wait = self.load.busy(run_ms), self.load.wait_ms(run_ms)
        if busy > BUSIEST:
            yield "latency", f"the queue grows: {self.load.rate_per_s:.3g} requests/s of {format_ms(run_ms)} keep it {busy:.0%} busy"
        elif taken + wait > limit_ms:
            yield from self._over("latency", taken + wait, limit_ms, f" ({format_ms(wait)} of it waiting)")
        else:
            yield "latency", f"runs of {format_ms(run_ms)} hold up others that come at random beyond the limit of {format_ms(limit_ms)}"

    def _by_quota(self, run_ms: float, quota: float) -> str:
        runs = f"runs of {format_ms(run_ms)} on {self.threads} thread{'s' if self.threads > 1 else ''}"
        cpu_ms, rate_per_s = self._beside_cpu_ms, 0.0 if self.load is None else self.load.rate_per_s
        share, most = share_taken(quota, self.threads, rate_per_s, run_ms, cpu_ms), most_taken(cpu_ms, self._variation)
        if share > most:
            beside = f" and {format_ms(cpu_ms)} of processor time beside each" if cpu_ms else ""
            taken = f"{share:.0%} of the CPU quota of {quota:g} cores, of which it may be {most:.0%}"
            return f"{rate_per_s:.3g} requests/s, {runs}{beside}, would take {taken}"
        return f"{runs} would be stopped by the CPU quota of {quota:g} cores, and not end within the limit of {format_ms(self._limit_ms)}"

    def _over(self, kind: _Kind, need: float | None, limit: float, note: str = "") -> Iterator[tuple[_Kind, str]]:
        write = {"memory": format_bytes, "latency": format_ms, "macs": format_macs}[kind]
        if need is None:
            yield kind, f"unknown {kind} (not profiled) under a limit of {write(limit)}"
        elif need > limit:
            shown, allowed = write(need), write(limit)
            if shown == allowed:
                shown, allowed = f"{need:.9g}", f"{limit:.9g}"
            yield kind, f"{kind} {shown} over the limit of {allowed}{note}"


def _largest(limit: float, factor: float) -> float:
    """The largest number that times `factor` is at most `limit`: a quotient alone may be one rounding off."""
    number = limit / factor
    while number * factor > limit:
        number = math.nextafter(number, 0.0)
    while (above := math.nextafter(number, math.inf)) * factor <= limit:
        number = above
    return number
