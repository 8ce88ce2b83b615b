"""How many requests to run as one, and how long to wait for company: from measured times to a plan. No clock, no I/O, no globals.

Words
  size     how many requests share a run.
  company  the requests in flight that could share it, the one that asks included. Whoever has none never waits.
  room     what the latency limit leaves for waiting and running, less a margin: measured times are medians.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["off", "on", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)

_ROOM = 0.9
_WORTH = 1.05
"""A size is taken only where it answers this many times as many requests a second as single runs do: less is noise."""


@dataclass(frozen=True)
class BatchSettings:
    """What may be batched.

    mode:         off: each request runs by itself. on: whoever meets runs together. auto: only where measured times say that it pays
    max_wait_ms:  the longest that a free processor waits for company
    max_batch:    the most requests in one run
    runs:         how many runs at once; further requests wait, and so become company
    """

    mode: Mode = "off"
    max_wait_ms: float = 2.0
    max_batch: int = 8
    runs: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        if not 0 <= self.max_wait_ms < math.inf:
            raise ValueError(f"max_wait_ms={self.max_wait_ms!r} must be at least 0 and finite")
        for name in ("max_batch", "runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")


@dataclass(frozen=True)
class Plan:
    """size: requests to aim for, at least 1. wait_ms: how long to wait until there are as many."""

    size: int
    wait_ms: float = 0.0


def predicted_ms(measured: Mapping[int, float], size: int) -> float | None:
    """Milliseconds of a run of `size` from those of other sizes; `None` when nothing is measured.

    Between two sizes on the line through them, above the largest in proportion to it, below the smallest as the smallest:
    never less than what a run is known to take.
    """
    if size in measured:
        return measured[size]
    below, above = max((s for s in measured if s < size), default=None), min((s for s in measured if s > size), default=None)
    if below is None:
        return None if above is None else measured[above]
    if above is None:
        return measured[below] * size / below
    return measured[below] + (measured[above] - measured[below]) * (size - below) / (above - below)


def plan(
    measured: Mapping[int, float],
    limit_ms: float | None,
    company: int,
    settings: BatchSettings,
    *,
    gathered: int = 1,
    waited_ms: float = 0.0,
    wish: int | None = None,
) -> Plan:
    """The size to aim for, and how long to wait for it.

    measured:   milliseconds of a run by size, of this route on this device as it is now
    limit_ms:   of one request, from its arrival to the end of its run; `None` for no limit
    company:    see above
    gathered:   of these, how many are there already
    waited_ms:  how long the oldest of them has waited
    wish:       a size to try, so that its time is known; taken where the limit allows it

    A run of several together with what was waited for it keeps within the limit. Where even a single one would not any more,
    the limit is lost for the oldest, and runs that are within it by themselves bring the queue down.
    """
    most = max(1, min(company, settings.max_batch))
    if settings.mode == "off" or most == 1:
        return Plan(1)
    fitting = _fitting(measured, limit_ms, waited_ms, most)
    if fitting == [1]:
        return Plan(1)
    if wish in fitting:
        size = wish
    elif settings.mode == "on":
        size = fitting[-1]
    else:
        size = _quickest(measured, fitting)
    if size == 1 or gathered >= size:
        return Plan(size)
    run_ms, wait_ms = predicted_ms(measured, size), settings.max_wait_ms
    if settings.mode == "auto":
        wait_ms = min(wait_ms, _saved_ms(measured, gathered, size))
    if limit_ms is not None and run_ms is not None:
        wait_ms = min(wait_ms, _ROOM * limit_ms - waited_ms - run_ms)
    return Plan(size, max(0.0, wait_ms))


def _fitting(measured: Mapping[int, float], limit_ms: float | None, waited_ms: float, most: int) -> list[int]:
    """Sizes up to `most` that keep the limit; 1 always, because a request has to run. With a limit and nothing measured, only that."""
    if limit_ms is None:
        return list(range(1, most + 1))
    times = {size: predicted_ms(measured, size) for size in range(1, most + 1)}
    alone = times[1]
    lost = alone is not None and waited_ms + alone > limit_ms
    room = _ROOM * limit_ms - (0.0 if lost else waited_ms)
    return [size for size, run_ms in times.items() if size == 1 or (run_ms is not None and run_ms <= room)]


def _quickest(measured: Mapping[int, float], sizes: list[int]) -> int:
    """The size that answers most requests a second, the smallest of equals; 1 unless another is worth it."""
    rates = {size: size / run_ms for size in sizes if (run_ms := predicted_ms(measured, size))}
    best = max(rates, key=lambda size: rates[size], default=1)
    return best if best != 1 and rates[best] >= _WORTH * rates[1] else 1


def _saved_ms(measured: Mapping[int, float], gathered: int, size: int) -> float:
    """What one run of `size` takes less than one of those who are there and one of those who come."""
    times = [predicted_ms(measured, count) for count in (gathered, size - gathered, size)]
    now, later, together = (math.inf if run_ms is None else run_ms for run_ms in times)
    return max(0.0, now + later - together) if together < math.inf else math.inf
