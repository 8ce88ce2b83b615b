"""How many requests to run as one, and how long to wait for company: from what was measured to a plan. No clock, no I/O, no globals.

Words
  size     how many requests share a run.
  company  the requests in flight that could share it, the one that asks included. Whoever has none never waits.
  cost     machine time per request when that size is aimed for: of size 1, requests run side by side as they come.
  room     what the latency limit leaves for waiting and running, less a margin: measured times are medians.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["off", "on", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)

_ROOM = 0.9
_WORTH = 0.9
"""Aiming for a size must bring the cost down to this share of that of size 1: less is noise."""
_PATIENCE = 0.25
"""In mode auto nobody waits for longer than this share of the run that is waited for."""


@dataclass(frozen=True)
class BatchSettings:
    """What may be batched.

    mode:         off: each request runs by itself. on: whoever meets runs together. auto: only where it was measured to pay
    max_wait_ms:  the longest that a leader with a free processor waits for company
    max_batch:    the most requests in one run
    """

    mode: Mode = "off"
    max_wait_ms: float = 2.0
    max_batch: int = 8

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        if not 0 <= self.max_wait_ms < math.inf:
            raise ValueError(f"max_wait_ms={self.max_wait_ms!r} must be at least 0 and finite")
        if self.max_batch < 1:
            raise ValueError(f"max_batch={self.max_batch!r} must be at least 1")


@dataclass(frozen=True)
class Plan:
    """size: requests to aim for; with 1, run at once. wait_ms: how long to wait until there are as many."""

    size: int = 1
    wait_ms: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Of one route with so much company, on this device as it is now.

    run_ms:   of a run, by its size
    cost_ms:  of a request, by the size that was aimed for
    trial:    the size whose cost is being measured; `None` when none is
    """

    run_ms: Mapping[int, float]
    cost_ms: Mapping[int, float]
    trial: int | None = None


def plan(
    measured: Measured, limit_ms: float | None, company: int, settings: BatchSettings, *, gathered: int = 1, waited_ms: float = 0.0
) -> Plan:
    """The size to aim for, and how long to wait for it.

    limit_ms:   of one request, from its arrival to the end of its run; `None` for no limit
    company:    see above
    gathered:   of these, how many are there already
    waited_ms:  how long the oldest of them has waited

    A run of several, with what was waited for it, keeps within the limit. Where even a single one would not any more, the limit is
    lost for the oldest, and runs that keep it by themselves bring the queue down.
    """
    most = min(company, settings.max_batch)
    if settings.mode == "off" or most <= 1:
        return Plan()
    fitting = _fitting(measured.run_ms, limit_ms, waited_ms, most)
    size = measured.trial if measured.trial in fitting else cheapest(measured.cost_ms, fitting)
    if settings.mode == "on":
        size = fitting[-1]
    if size == 1 or gathered >= size:
        return Plan(size)
    run_ms, wait_ms = predicted_ms(measured.run_ms, size), settings.max_wait_ms
    if run_ms is not None and settings.mode == "auto":
        wait_ms = min(wait_ms, _PATIENCE * run_ms)
    if run_ms is not None and limit_ms is not None:
        wait_ms = min(wait_ms, _ROOM * limit_ms - waited_ms - run_ms)
    return Plan(size, max(0.0, wait_ms))


def predicted_ms(run_ms: Mapping[int, float], size: int) -> float | None:
    """Milliseconds of a run of `size` from those of other sizes; `None` when none is known.

    Between two sizes on the line through them, above the largest in proportion to it, below the smallest as the smallest:
    what is not known is rather taken for more.
    """
    if size in run_ms:
        return run_ms[size]
    below, above = max((s for s in run_ms if s < size), default=None), min((s for s in run_ms if s > size), default=None)
    if below is None:
        return None if above is None else run_ms[above]
    if above is None:
        return run_ms[below] * size / below
    return run_ms[below] + (run_ms[above] - run_ms[below]) * (size - below) / (above - below)


def cheapest(cost_ms: Mapping[int, float], sizes: Iterable[int]) -> int:
    """Of `sizes` that with the lowest cost, the smallest of equals; 1 unless another is known to be worth it."""
    known = [size for size in sizes if size in cost_ms]
    best = min(known, key=lambda size: (cost_ms[size], size), default=1)
    return best if 1 in cost_ms and cost_ms[best] <= _WORTH * cost_ms[1] else 1


def _fitting(run_ms: Mapping[int, float], limit_ms: float | None, waited_ms: float, most: int) -> list[int]:
    """Sizes up to `most` that keep the limit, ascending; 1 always, because a request has to run. Nothing known: only that."""
    if limit_ms is None:
        return list(range(1, most + 1))
    times = {size: predicted_ms(run_ms, size) for size in range(1, most + 1)}
    alone = times[1]
    lost = alone is not None and waited_ms + alone > limit_ms
    room = _ROOM * limit_ms - (0.0 if lost else waited_ms)
    return [size for size, time_ms in times.items() if size == 1 or (time_ms is not None and time_ms <= room)]
