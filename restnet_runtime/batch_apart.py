"""Requests that run apart: by themselves, beside the queue and without its lock, because together nothing is to be gained.

Four threads that meet at a lock twice a request took a seventh of the throughput of a network of half a millisecond, though none of
their requests was batched. So what is done for such a request are single operations on containers, each atomic by itself; what was
learnt from it is looked at later, for several at once.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from restnet_runtime.batch_trials import BatchTrials

LOOK_EVERY = 8


@dataclass(eq=False, slots=True)
class Run:
    """One request that runs apart.

    key:     what it could have shared a run with
    trials:  what is told of it, with the turn in which it began; `None` without company
    """

    key: Hashable
    trials: BatchTrials | None
    turn: int
    began_s: float
    ended_s: float = 0.0


class Apart:
    """`begin`, `end`, `company` and `running` from any thread; `take` from one at a time."""

    def __init__(self) -> None:
        self._running: dict[int, Run] = {}
        self._ended: deque[Run] = deque()
        self._last_s = 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def due(self) -> bool:
        """Whether enough have ended to look at them."""
        return len(self._ended) >= LOOK_EVERY

    def company(self, key: Hashable) -> int:
        """How many are running that could have shared a run."""
        return sum(run.key == key for run in list(self._running.values()))

    def begin(self, key: Hashable, trials: BatchTrials | None, now_s: float) -> Run:
        run = Run(key, trials, 0 if trials is None else trials.turn, now_s)
        self._running[id(run)] = run
        return run

    def end(self, run: Run, now_s: float, failed: bool = False) -> None:
        """failed: nothing is to be learnt from it."""
        run.ended_s = now_s
        if failed:
            run.trials = None
        self._ended.append(run)
        del self._running[id(run)]

    def take(self) -> int:
        """Let the trials know of all that have ended since the last call; how many those were."""
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        ended.sort(key=lambda run: run.ended_s)
        # A moment counts as busy once, however many ran in it: each run has the time since the end before it, less what was idle.
        first_s = min((run.began_s for run in list(self._running.values())), default=float("inf"))
        idle_until_s: list[float] = []
        for run in reversed(ended):
            first_s = min(first_s, run.began_s)
            idle_until_s.append(first_s)
        for run, begun_s in zip(ended, reversed(idle_until_s), strict=True):
            busy_ms = max(0.0, run.ended_s - max(self._last_s, begun_s)) * 1e3
            self._last_s = max(self._last_s, run.ended_s)
            if run.trials is not None and run.trials.turn == run.turn:
                run.trials.record(1, 1, busy_ms, None)
        return len(ended)
