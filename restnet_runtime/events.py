"""Events: what the controller decides, as server-sent events: each switch with its reason, and each new reading."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.decision_log import Status

POLL_S = 0.25
ALIVE_S = 15.0
MOST_LISTENERS = 16


class Events:
    """Streams for listeners, at most `most` at once. They look at the controller; it does not know them, and never waits for one."""

    def __init__(self, controller: Controller, most: int = MOST_LISTENERS, poll_s: float = POLL_S) -> None:
        self._controller, self._most, self._poll_s = controller, most, poll_s
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

    async def stream(self) -> AsyncIterator[str]:
        """`decision` at once, then `switch` and `reading` as they come, until `close` or until the listener is gone."""
        self._listeners += 1
        try:
            status = self._controller.status()
            seen, reading, quiet_s = status.switched, status.reading, 0.0
            yield _event("decision", _decision(status))
            while not self._closed:
                await asyncio.sleep(self._poll_s)
                status = self._controller.status()
                told = False
                fresh = min(status.switched - seen, len(status.switches))
                for switch in status.switches[len(status.switches) - fresh :]:
                    yield _event("switch", asdict(switch))
                    told = True
                seen = status.switched
                if status.reading is not None and _looked(status.reading) != _looked(reading):
                    reading = status.reading
                    yield _event("reading", {**asdict(reading), **_decision(status)})
                    told = True
                quiet_s = 0.0 if told else quiet_s + self._poll_s
                if quiet_s >= ALIVE_S:
                    quiet_s = 0.0
                    yield ": still here\n\n"
        finally:
            self._listeners -= 1


def _looked(reading: Any) -> object:
    """What tells one look at the device from the next: slowdown and traffic change between two."""
    return None if reading is None else (reading.memory_available_bytes, reading.own_memory_bytes, reading.cpu_percent, reading.load_1m)


def _decision(status: Status) -> dict[str, Any]:
    decision = status.decision
    return {
        "budget": str(status.budget),
        "pin": status.pin,
        "route": None if decision is None else decision.route,
        "feasible": None if decision is None else decision.feasible,
        "reason": None if decision is None else decision.reason,
        "limits": None if decision is None else _limits(decision.limits),
    }


def _limits(limits: Budget) -> dict[str, Any]:
    """The limits in force, null where there is none."""
    return {"macs": limits.macs, "latency_ms": limits.latency_ms, "memory_bytes": limits.memory_bytes, "min_accuracy": limits.min_accuracy}


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
