"""Deadlines: when an answer is of no use any more, so that what a client has given up is not run."""

import math
import time
from collections.abc import Iterable

from restnet_runtime.errors import ExpiredError, UnitError
from restnet_runtime.units import format_ms, parse_quantity

DEADLINE_HEADER = "X-Restnet-Deadline"
MOST_MS = 3_600_000.0


class Deadline:
    """Of one request: the earliest of those that are set, counted from when it came. Belongs to whoever has the request."""

    def __init__(self, arrived_s: float | None = None) -> None:
        """arrived_s: by `time.perf_counter`; by default now."""
        self.arrived_s = time.perf_counter() if arrived_s is None else arrived_s
        self.expires_s = math.inf
        """By `time.perf_counter`; infinite for none."""

    def narrow(self, limit_ms: float) -> None:
        """It expires so long after it came, if not earlier."""
        self.expires_s = min(self.expires_s, self.arrived_s + limit_ms / 1e3)

    def check(self, now_s: float | None = None) -> None:
        """Raise `ExpiredError` where it has passed."""
        now_s = time.perf_counter() if now_s is None else now_s
        if now_s >= self.expires_s:
            raise expired((now_s - self.arrived_s) * 1e3)


def expired(waited_ms: float) -> ExpiredError:
    return ExpiredError(f"the deadline has passed: it waited {format_ms(max(waited_ms, 1e-3))}, and was not run")


def parse_deadlines(texts: Iterable[str]) -> float | None:
    """The least of header values as `200ms`, in ms; `None` where there is none. Raises `UnitError`."""
    least = None
    for text in texts:
        problem = UnitError(f"{DEADLINE_HEADER} is {text[:60]!r}: give a time up to an hour, as 200ms")
        try:
            kind, limit_ms = parse_quantity(text)
        except UnitError as error:  # which names units of all kinds
            raise problem from error
        if kind != "latency_ms" or limit_ms > MOST_MS:
            raise problem
        least = limit_ms if least is None else min(least, limit_ms)
    return least
