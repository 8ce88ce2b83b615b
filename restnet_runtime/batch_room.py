"""Room: how many inputs one run may have, so that a batch keeps within the memory limit as single runs do."""

import sys
import time
from collections.abc import Callable
from typing import Protocol

from restnet_runtime.residency import Need, together

_VALID_S = 0.5


class Weighed(Protocol):
    """What it needs of `executor.Executor`."""

    @property
    def loaded(self) -> tuple[str, ...]: ...
    @property
    def overhead_bytes(self) -> int: ...
    def need(self, name: str, /) -> Need: ...


def inputs_that_fit(activation_bytes: int, arena_bytes: int, free_bytes: int, at_once: int) -> int:
    """The most inputs of one run, at least 1: a single one runs in any case.

    activation_bytes:  what a run of one input takes; 0 where it is not known, then nothing is limited
    arena_bytes:       what the arena, which all routes share, holds for single runs
    free_bytes:        what the limit leaves beside everything that is predicted, the arena included; may be negative
    at_once:           batches that may run side by side

    Counted is one batch more than that: a single request beside a batch may take a piece of the block that the batch before had,
    and then the next batch takes another block.
    """
    if activation_bytes <= 0:
        return sys.maxsize
    return max(1, (arena_bytes + free_bytes) // (activation_bytes * (1 + max(1, at_once))))


class BatchRoom:
    """Asked for a route, says how many inputs its runs may have now. Thread safe and quick: looks anew twice a second.

    limit:    bytes that the process may take now, `None` for no limit
    at_once:  batches that may run side by side
    clock:    seconds that never step back
    """

    def __init__(
        self,
        executor: Weighed,
        limit: Callable[[], int | None],
        at_once: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor, self._limit, self._at_once, self._clock = executor, limit, at_once, clock
        self._due_s = -float("inf")
        self._seen: tuple[int, int, dict[str, int]] | None = None
        """Of the last look, replaced as one: free bytes, arena bytes, and the rooms that follow. None: no limit."""

    def __call__(self, route: str) -> int:
        now_s = self._clock()
        if now_s >= self._due_s:
            self._seen = self._look()
            self._due_s = now_s + _VALID_S  # only now: who asks meanwhile looks too, and does not take it that there is no limit
        seen = self._seen
        if seen is None:
            return sys.maxsize
        free_bytes, arena_bytes, rooms = seen
        room = rooms.get(route)
        if room is None:
            room = rooms[route] = inputs_that_fit(self._executor.need(route).activation_bytes, arena_bytes, free_bytes, self._at_once())
        return room

    def _look(self) -> tuple[int, int, dict[str, int]] | None:
        limit = self._limit()
        if limit is None:
            return None
        needs = [self._executor.need(name) for name in self._executor.loaded]
        return (
            limit - self._executor.overhead_bytes - together(needs),
            max((need.activation_bytes for need in needs), default=0),
            {},
        )
