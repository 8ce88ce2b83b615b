"""Where the time of an export goes."""

import time
from collections.abc import Callable


class Phases:
    """A stopwatch with one hand: each phase ends where the next begins.

    clock: seconds, from anywhere
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: tuple[str, float] | None = None
        self.seconds: dict[str, float] = {}
        """By phase, in the order of first use; of the one that runs, up to `begin` or `end`."""

    def begin(self, name: str) -> None:
        """End the phase that runs, if any, and begin another. A phase that comes again goes on counting."""
        self.end()
        self._current = (name, self._clock())
        self.seconds.setdefault(name, 0.0)

    def end(self) -> None:
        """End the phase that runs, if any."""
        if self._current is not None:
            name, started = self._current
            self.seconds[name] += self._clock() - started
            self._current = None

    def __str__(self) -> str:
        """`took 74.2 s: load 3.1, cut 8.0, ...`"""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"took {sum(self.seconds.values()):.1f} s: {parts}"
