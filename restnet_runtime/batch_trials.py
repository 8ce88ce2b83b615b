"""Trials: what aiming for each size costs on one route, learnt from the requests themselves. Nothing is run only to be timed."""

from collections import deque
from statistics import median

from restnet_runtime.batch_plan import Measured

_KEPT = 5
_SETTLING_RUNS = 2
_TRIAL_REQUESTS = 24
_TRIAL_BUSY_MS = 20.0
_REST = 20


class BatchTrials:
    """Sizes 1, 2, 4, ... `most` are tried one after the other, then the trials rest for 20 times as long as they took.

    What counts is the time that the machine was busy, over the requests answered in it: hand-overs between threads, waiting for
    company and what runs side by side are all in it. The first runs of a trial still meet those of the one before and do not
    count. Not thread safe.
    """

    def __init__(self, most: int, single_ms: float | None = None) -> None:
        """single_ms: of a run of one request by itself, as profiled, until it is measured here."""
        self._sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
        self._run_ms: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {} if single_ms is None else {1: single_ms}
        self._cost_ms: dict[int, float] = {}
        self._turn = 0  # index into sizes; past the end the trials rest
        self._whole_busy_ms = 0.0
        self._restart()

    @property
    def measured(self) -> Measured:
        """Live: the mappings change with the next `record`."""
        return Measured(self._medians, self._cost_ms, self._sizes[self._turn] if self._turn < len(self._sizes) else None)

    def record(self, aim: int | None, size: int, busy_ms: float, run_ms: float | None) -> None:
        """A run of `size` requests has ended, and the machine was busy for `busy_ms` since the one before it, or since it was idle.

        aim:     the size that was aimed for; `None` for a run out of turn
        run_ms:  of the run, unless others beside it made it slower
        """
        if run_ms is not None:
            kept = self._run_ms.setdefault(size, deque(maxlen=_KEPT))
            kept.append(run_ms)
            self._medians[size] = median(kept)
        self._runs += 1
        if self._runs <= _SETTLING_RUNS:
            return
        self._busy_ms += busy_ms
        self._requests += size
        if self._turn >= len(self._sizes):
            if self._busy_ms >= _REST * self._whole_busy_ms:
                self._turn, self._whole_busy_ms = 0, 0.0
                self._restart()
            return
        if aim == self._sizes[self._turn]:
            self._aimed_ms += busy_ms
            self._aimed += size
        if self._requests >= _TRIAL_REQUESTS and self._busy_ms >= _TRIAL_BUSY_MS:
            self._conclude()

    def _conclude(self) -> None:
        size = self._sizes[self._turn]
        self._cost_ms.pop(size, None)
        if self._aimed:  # the latency limit may have forbidden it
            self._cost_ms[size] = self._aimed_ms / self._aimed
        self._turn += 1
        self._whole_busy_ms += self._busy_ms
        self._restart()

    def _restart(self) -> None:
        self._busy_ms = self._aimed_ms = 0.0
        self._runs = self._requests = self._aimed = 0
