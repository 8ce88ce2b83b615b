"""Trials: what aiming for each size costs on one route, learnt from the requests themselves. Nothing is run only to be timed."""

from collections import deque
from collections.abc import Collection

from restnet_runtime.batch_plan import Measured, cheapest

_KEPT = 5
_ROUNDS = 3
_SETTLING_RUNS = 2
_TRIAL_RUNS, _TRIAL_REQUESTS, _TRIAL_BUSY_MS = 3, 16, 20.0
_REST, _LONGEST_REST = 10, 80


class BatchTrials:
    """Sizes 1, 2, 4, ... `most` take turns, three times at first; then once, whenever ten times as long as a round has passed since.

    While no size is worth it the rest doubles with every round, up to eighty times: such trials are a loss. It is ten times again
    once a round says otherwise.
    What counts is the time that the machine was busy, over the requests answered in it: hand-overs between threads, waiting for
    company and what runs side by side are all in it. The first runs of a turn still meet those of the one before and do not
    count. The cost of a size is the median of its last three turns, because others use the machine as well.

    turn:  changes with every turn
    One thread at a time may `record`; the rest may be read at any time.
    """

    def __init__(self, most: int, single_ms: float | None = None) -> None:
        """single_ms: of a run of one request by itself, as profiled, until it is measured here."""
        self._most = most
        self._sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
        self._run_ms: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {} if single_ms is None else {1: single_ms}
        self._costs: dict[int, deque[float]] = {size: deque(maxlen=_ROUNDS) for size in self._sizes}
        self._cost_ms: dict[int, float] = {}
        self._turns = _ROUNDS * len(self._sizes)  # still to come before the trials rest
        self._round_busy_ms, self._rest = 0.0, _REST / 2
        self.turn = 0
        self._begin_turn()
        self.measured = self._snapshot()
        """What is known now: replaced whole, so that it can be read while others record."""
        self.alone = True
        """Whether single runs are on trial or, while trials rest, no size is worth it: no limit and no company changes that."""

    def _snapshot(self) -> Measured:
        return Measured(dict(self._medians), dict(self._cost_ms), self._sizes[-self._turns % len(self._sizes)] if self._turns else None)

    def record(self, aim: int | None, size: int, busy_ms: float, run_ms: float | None) -> None:
        """A run of `size` requests has ended, and the machine was busy for `busy_ms` since the one before it, or since it was idle.

        aim:     the size that was aimed for; `None` for a run out of turn
        run_ms:  of the run, unless others beside it made it slower
        """
        turn = self.turn
        if run_ms is not None:
            kept = self._run_ms.setdefault(size, deque(maxlen=_KEPT))
            kept.append(run_ms)
            self._medians[size] = _median(kept)
        self._count(aim, size, busy_ms)
        if run_ms is not None or self.turn != turn:
            self.measured = self._snapshot()
            trial = self.measured.trial
            self.alone = trial == 1 or (trial is None and cheapest(self._cost_ms, self._sizes) == 1)

    def _count(self, aim: int | None, size: int, busy_ms: float) -> None:
        self._runs += 1
        if self._runs <= _SETTLING_RUNS or self._settling > 0:
            self._settling -= size
            return
        self._busy_ms += busy_ms
        if not self._turns:
            if self._busy_ms >= self._rest * self._round_busy_ms:
                self._turns, self._round_busy_ms = len(self._sizes), 0.0
                self._begin_turn()
            return
        self._requests += size
        if aim == self.measured.trial:
            self._aimed_ms += busy_ms
            self._aimed += size
        self._counted += 1
        enough = self._counted >= _TRIAL_RUNS and self._requests >= _TRIAL_REQUESTS
        if enough and self._busy_ms >= _TRIAL_BUSY_MS:
            self._end_turn()

    def _end_turn(self) -> None:
        size = self._sizes[-self._turns % len(self._sizes)]
        if self._aimed:
            self._costs[size].append(self._aimed_ms / self._aimed)
            self._cost_ms[size] = _median(self._costs[size])
        else:  # the latency limit forbids it
            self._costs[size].clear()
            self._cost_ms.pop(size, None)
        if self._turns % len(self._sizes) == 0:
            self._round_busy_ms = 0.0
        self._round_busy_ms += self._busy_ms
        self._turns -= 1
        if not self._turns:
            last = {size: costs[-1] for size, costs in self._costs.items() if costs}
            pays = cheapest(self._cost_ms, self._sizes) > 1 or cheapest(last, self._sizes) > 1
            self._rest = _REST if pays else min(_LONGEST_REST, 2 * self._rest)
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._busy_ms = self._aimed_ms = 0.0
        self._runs = self._requests = self._aimed = self._counted = 0
        self._settling = self._most  # as many as may still be under way
        self.turn += 1


def _median(values: Collection[float]) -> float:
    """`statistics.median`, without what that module imports: this one is part of every start."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
