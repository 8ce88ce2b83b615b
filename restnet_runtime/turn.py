"""The turn: who may load or release a route now. One at a time in a process, so that what it changes can be measured."""

import threading
from collections import deque
from collections.abc import Callable

_LOOK_S = 0.05


class Turn:
    """A lock that lets those who wait in as they came, so that models which load one route after the other take turns.

    Its holder may take it again. A context manager.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._waiting: deque[object] = deque()
        self._holder: int | None = None
        self._depth = 0

    def acquire(self, given_up: Callable[[], bool] | None = None) -> bool:
        """Wait for it. given_up: looked at meanwhile; returns False, without it, once that is true."""
        own = threading.get_ident()
        with self._changed:
            if self._holder == own:
                self._depth += 1
                return True
            ticket = object()
            self._waiting.append(ticket)
            try:
                while self._holder is not None or self._waiting[0] is not ticket:
                    if given_up is not None and given_up():
                        return False
                    self._changed.wait(None if given_up is None else _LOOK_S)
                self._holder, self._depth = own, 1
                return True
            finally:
                self._waiting.remove(ticket)
                if self._holder != own:
                    self._changed.notify_all()  # who came next is first now

    def release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._changed.notify_all()

    def __enter__(self) -> "Turn":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
