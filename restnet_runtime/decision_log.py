"""The decision log: the latest switches, and what the controller knows, as snapshots."""

from dataclasses import dataclass

from restnet_runtime.budget import Budget
from restnet_runtime.policy import Decision
from restnet_runtime.reading import Reading


@dataclass(frozen=True)
class Switch:
    """One entry of the log.

    at_s:           seconds since the epoch
    before, after:  names of routes; `before` is empty when none served
    feasible:       whether `after` fitted
    reason:         why, in words
    """

    at_s: float
    before: str
    after: str
    feasible: bool
    reason: str


@dataclass(frozen=True)
class Status:
    """A snapshot.

    decision:  the last one; `None` until a tick finds a loaded route
    reading:   the last one; `None` before it
    looks:     how many times the device was looked at; between two, memory and quota alone are
    wanted:    the route that would be chosen afresh were every route loaded
    pin:       the route that an operator wants whatever it costs, if one
    problem:   what went wrong at the last tick, if anything
    switches:  the latest, oldest first
    switched:  how many there were since the start
    running:   whether the thread is
    """

    budget: Budget
    decision: Decision | None
    reading: Reading | None
    looks: int
    wanted: str | None
    pin: str | None
    problem: str | None
    switches: tuple[Switch, ...]
    switched: int
    running: bool
