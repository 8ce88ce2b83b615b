"""Ctrl-C, SIGTERM and what they leave: tuning that is stopped is kept, anything else that is broken off leaves no trace."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: raised where the program is, as Ctrl-C is, so that whatever cleans up after the one does after the other."""


class Stop:
    """Was tuning asked to end early?"""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within, the first Ctrl-C asks to stop, and says so on standard error; the second interrupts as it does elsewhere.

    Outside the main thread, which alone has signals, nobody asks.
    """
    stop = Stop()

    def ask(_: int, __: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nstopping: the best so far is scored and written; Ctrl-C again writes nothing\n")  # print may be busy

    with _handled(signal.SIGINT, ask):
        yield stop


@contextmanager
def terminating() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`."""

    def terminate(_: int, __: FrameType | None) -> None:
        raise Terminated

    with _handled(signal.SIGTERM, terminate):
        yield


@contextmanager
def _handled(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
