"""The arena: what ONNX Runtime keeps of the memory that runs of several inputs took, and how it is given back.

All sessions of a process share one (`sessions.share_arena`). It grows by the block and gives none back by itself: what the largest run took
stays taken until a run is told to shrink it.
"""

import threading
import time

import numpy as np
import numpy.typing as npt

from restnet_runtime.heap import trim_heap
from restnet_runtime.resident import Resident
from restnet_runtime.sessions import infer

Floats = npt.NDArray[np.float32]


class Arena:
    """The accounts of one executor: what its sessions have taken of it. Thread safe."""

    def __init__(self) -> None:
        self._large_bytes = 0
        self._under_way: dict[int, int] = {}  # by thread: what its run of several inputs needs
        self._last_s: float | None = None  # when the last such run ended; `None` once what it took has been given back

    @property
    def large_bytes(self) -> int:
        """What is held for the largest run of several inputs, beside what a run of one takes."""
        return self._large_bytes

    def make_room(self, resident: Resident, x: Floats, needed_bytes: int) -> bool:
        """Before a run of several inputs x (B, C, H, W): drop what it has no use for, so that the largest run is held, not the sum of all.

        A larger run finds no use for the blocks of a smaller one. Nor has the second run of a size for those of the first: only from then
        on ONNX Runtime takes one block for all tensors. Returns whether this is the first of its size, which is to shrink the arena.
        """
        self._under_way[threading.get_ident()] = needed_bytes
        if needed_bytes > self._large_bytes:
            self._large_bytes = needed_bytes
            infer(resident.session, x[:1], shrink=True)
        first = len(x) not in resident.sizes
        resident.sizes.add(len(x))
        return first

    def leave(self, ended_s: float, *, shrunk: bool) -> None:
        """After such a run, whatever became of it. ended_s: by `time.perf_counter`"""
        self._under_way.pop(threading.get_ident(), None)
        self._last_s = ended_s
        if shrunk:
            self.count_shrunk()

    def count_shrunk(self) -> None:
        """A run has shrunk it: it holds what runs that are under way need."""
        self._large_bytes = max(tuple(self._under_way.values()), default=0)

    def shrink(self, resident: Resident, x: Floats) -> None:
        """One run of an input x (1, C, H, W), after which it keeps nothing; the next one takes what it needs again."""
        infer(resident.session, x, shrink=True)
        self.count_shrunk()
        trim_heap()

    def take_idle(self, idle_s: float) -> bool:
        """Is it `idle_s` seconds since the last run of several inputs ended? Says so once, for whoever shrinks it then."""
        if self._last_s is None or time.perf_counter() - self._last_s < idle_s:
            return False
        self._last_s = None
        return True
