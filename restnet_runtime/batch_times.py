"""The times of one route's runs by size, learnt from the requests themselves: nothing is run only to be timed."""

from collections import deque
from statistics import median

_KEPT = 5
_FIRST_TRIES = 4
_TRY_EVERY = 16


class BatchTimes:
    """What runs of each size have lately taken, and which size should be tried next. One thread at a time.

    At first all sizes within reach take turns, so that they are compared in like conditions. Later one run in 16 is such a try, every
    other of them a single request: the device changes, and single runs are what the controller compares with profiles.
    """

    def __init__(self) -> None:
        self.measured: dict[int, float] = {}
        """Median milliseconds of the latest runs, by size."""
        self._kept: dict[int, deque[float]] = {}
        self._tries: dict[int, int] = {}
        self._plans = 0

    def record(self, size: int, run_ms: float) -> None:
        """One run of `size` requests took `run_ms`."""
        kept = self._kept.setdefault(size, deque(maxlen=_KEPT))
        kept.append(run_ms)
        self.measured[size] = median(kept)

    def wish(self, most: int) -> int | None:
        """A size of 1, 2, 4, ... `most` to try with the run that is being planned; `None`: the best one. With `most` 1 always that."""
        if most < 2:
            return None
        sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
        tried = min(sizes, key=lambda size: self._tries.get(size, 0))
        self._plans += 1
        if self._tries.get(tried, 0) >= _FIRST_TRIES:
            if self._plans % _TRY_EVERY:
                return None
            if self._plans % (2 * _TRY_EVERY):
                tried = 1
        self._tries[tried] = self._tries.get(tried, 0) + 1
        return tried
