"""Turns: two programs timed against each other so that what disturbs the machine disturbs both.

In each round both programs have a turn, and who begins changes from round to round. A turn is a rest, runs that do not
count, and five that do. The rest is there for fairness: ONNX Runtime's threads by default go on spinning for a while after
a run, which would slow down whoever comes next. The runs that do not count wake the program's own threads and fill the
caches; for a network of microseconds one such run is not enough, so they go on for 2 milliseconds.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from restnet_runtime.profile import percentile

BLOCK = 5
"""Runs of a turn that count."""
REST_S = 0.03
"""Before a turn."""
_WARM_S = 0.002
_SLOW_MS = 100
_SLOW_BLOCK = 2
LEAST_ROUNDS = 6
"""Fewer say nothing of the median with 95 % confidence."""


@dataclass(frozen=True)
class Turns:
    """Milliseconds by round and run. Both have as many rounds."""

    ours_ms: tuple[tuple[float, ...], ...]
    theirs_ms: tuple[tuple[float, ...], ...]

    @property
    def round_ratios(self) -> list[float]:
        """Of each round: our median over theirs."""
        return [statistics.median(ours) / statistics.median(theirs) for ours, theirs in zip(self.ours_ms, self.theirs_ms, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios of the rounds: steadier than the ratio of two medians, because a busy moment that lasts
        for a round slows both programs there, and one that hits a single turn spoils one round only."""
        return statistics.median(self.round_ratios)

    @property
    def quickest_ratio(self) -> float:
        """The median over rounds of our quickest run over theirs: scatters least, because what disturbs a run only adds to it."""
        return quickest_ratio(self.ours_ms, self.theirs_ms)

    @property
    def ratio_interval(self) -> tuple[float, float]:
        """Where `ratio` lies with 95 % confidence, if the disturbance of one round says nothing about the next."""
        return median_interval(self.round_ratios)


def take_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    runs: int,
    *,
    max_s: float | None = None,
    least_rounds: int = LEAST_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Turns:
    """Time both programs `runs` times each, rounded up to whole rounds of `BLOCK`.

    max_s: no round begins after so many seconds, but for the first `least_rounds`; and a program that takes more than 100 ms has
           two runs a turn that count
    """
    times: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    began = clock()
    for index in range(max(1, math.ceil(runs / BLOCK))):
        if max_s is not None and index >= least_rounds and clock() - began > max_s:
            break
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            sleep(REST_S)
            times[which].append(_turn((ours, theirs)[which], clock, hurry=max_s is not None))
    return Turns(tuple(times[0]), tuple(times[1]))


def quickest_ratio(ours_ms: Sequence[Sequence[float]], theirs_ms: Sequence[Sequence[float]]) -> float:
    """The median over rounds of our quickest run of the round over theirs."""
    return statistics.median(min(ours) / min(theirs) for ours, theirs in zip(ours_ms, theirs_ms, strict=True))


def _turn(program: Callable[[], object], clock: Callable[[], float], hurry: bool) -> tuple[float, ...]:
    warm, first_ms = clock() + _WARM_S, _timed_ms(program, clock)
    counted = _SLOW_BLOCK if hurry and first_ms > _SLOW_MS else BLOCK
    while clock() < warm:
        program()
    return tuple(_timed_ms(program, clock) for _ in range(counted))


def _timed_ms(program: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    program()
    return (clock() - started) * 1e3


def median_and_p95(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Median and 95th percentile of the runs of all rounds."""
    runs = [run for one in rounds for run in one]
    return percentile(runs, 0.5), percentile(runs, 0.95)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median, from order statistics (the sign test's); nothing is assumed of the distribution.

    Fewer than six values cannot give that much confidence: then the least and the greatest.
    """
    ordered = sorted(values)
    count, below, outside = len(ordered), 0.0, 0
    while outside < count // 2:
        below += math.comb(count, outside) / 2**count
        if below > 0.025:
            break
        outside += 1
    return ordered[max(0, outside - 1)], ordered[min(count - 1, count - outside)]
