"""SIGTERM and Ctrl-C while a command runs: what runs is unwound, whatever it is doing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM came."""


_told: list[int] = []
"""Signals that came while a command ran."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM unwinds what runs, as Ctrl-C does, instead of killing the process in the midst of it."""

    def end(number: int, frame: FrameType | None) -> None:
        _told.append(number)
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        raise TerminatedError

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # not ours to handle
        return
    _told.clear()
    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception as error:
        if _told:  # what is interrupted may make an error of its own of it: a class that is being made does
            raise (KeyboardInterrupt if _told[0] == signal.SIGINT else TerminatedError) from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def unwind_if_told() -> None:
    """Raise what a signal raised before, should it have been lost: Python drops what is raised in a finalizer or a weakref's callback."""
    if _told:
        raise KeyboardInterrupt if _told[0] == signal.SIGINT else TerminatedError
