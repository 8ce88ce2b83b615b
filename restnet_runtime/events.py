"""Events: what the controller decides, as it happens: each switch with its reason, and each new reading. Also as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.decision_log import Status, Switch
from restnet_runtime.reading import Reading
from restnet_runtime.update_steps import UpdateStep

POLL_S = 0.25
ALIVE_S = 15.0
MOST_LISTENERS = 16


@dataclass(frozen=True)
class Event:
    """Something that happened, and what stands since then.

    kind:      `decision` comes first and tells how it stands, then each `switch`, and a `reading` for each look at the device
    budget:    the standing one, in words
    pin:       the pinned route, if one is
    route, feasible, reason:  the decision that stands; `None` before the first
    switch, reading:  what the kind says
    limits:    those in force, where they are known
    """

    kind: Literal["decision", "switch", "reading"]
    budget: str
    pin: str | None
    route: str | None
    feasible: bool | None
    reason: str | None
    switch: Switch | None = None
    reading: Reading | None = None
    limits: Budget | None = None


class Follower:
    """Tells one listener what is new. It looks at the controller, which does not know it and never waits for it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._status = controller.status()

    def first(self) -> Event:
        """How it stands."""
        return _event("decision", self._status)

    def fresh(self) -> list[Event]:
        """What has happened since this was asked last, oldest first."""
        before, status = self._status, self._controller.status()
        self._status = status
        fresh = min(status.switched - before.switched, len(status.switches))
        events = [_event("switch", status, switch=switch) for switch in status.switches[len(status.switches) - fresh :]]
        if status.reading is not None and status.looks != before.looks:
            events.append(_event("reading", status, reading=status.reading))
        return events


class Events:
    """Streams for listeners, at most `most` at once. They look at a controller; it does not know them, and never waits for one."""

    def __init__(self, most: int = MOST_LISTENERS, poll_s: float = POLL_S) -> None:
        self._most, self._poll_s = most, poll_s
        self._listeners = 0
        self._closed = False

    @property
    def full(self) -> bool:
        """Are there as many listeners as may be?"""
        return self._listeners >= self._most

    @property
    def listeners(self) -> int:
        """How many there are."""
        return self._listeners

    def close(self) -> None:
        """End every stream soon; from any thread, also from a signal handler."""
        self._closed = True

    async def stream(self, find: Callable[[], Controller], steps: Callable[[], Sequence[UpdateStep]] = tuple) -> AsyncIterator[str]:
        """`decision` at once, then `switch`, `reading` and `update` as they come, until `close` or until the listener is gone.

        find:  the controller to tell of, asked each time: another one begins with its own `decision`
        steps: the latest of updates, the oldest first
        """
        self._listeners += 1
        try:
            controller, quiet_s, told = find(), 0.0, max((step.number for step in steps()), default=0)
            follower = Follower(controller)
            yield _sent(follower.first())
            while not self._closed:
                await asyncio.sleep(self._poll_s)
                now = find()
                if now is not controller:
                    controller, follower = now, Follower(now)
                    yield _sent(follower.first())
                for step in steps():
                    if step.number > told:
                        told = step.number
                        yield f"event: update\ndata: {json.dumps(asdict(step))}\n\n"
                fresh = follower.fresh()
                for event in fresh:
                    yield _sent(event)
                quiet_s = 0.0 if fresh else quiet_s + self._poll_s
                if quiet_s >= ALIVE_S:
                    quiet_s = 0.0
                    yield ": still here\n\n"
        finally:
            self._listeners -= 1


def _event(
    kind: Literal["decision", "switch", "reading"], status: Status, *, switch: Switch | None = None, reading: Reading | None = None
) -> Event:
    decision = status.decision
    route, feasible, reason = (None, None, None) if decision is None else (decision.route, decision.feasible, decision.reason)
    limits = None if decision is None else decision.limits
    return Event(kind, str(status.budget), status.pin, route, feasible, reason, switch, reading, limits)


def _limits(limits: Budget) -> dict[str, Any]:
    """The limits in force, null where there is none."""
    return {"macs": limits.macs, "latency_ms": limits.latency_ms, "memory_bytes": limits.memory_bytes, "min_accuracy": limits.min_accuracy}


def _sent(event: Event) -> str:
    """As a server-sent event."""
    standing = {name: getattr(event, name) for name in ("budget", "pin", "route", "feasible", "reason")}
    standing["limits"] = None if event.limits is None else _limits(event.limits)
    data: dict[str, Any] = standing
    if event.switch is not None:
        data = asdict(event.switch)
    elif event.reading is not None:
        data = {**asdict(event.reading), **standing}
    return f"event: {event.kind}\ndata: {json.dumps(data)}\n\n"
