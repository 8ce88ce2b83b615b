"""What is measured of a route on this device, kept beside the compiled routes so that a later start need not measure again."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from restnet_runtime.errors import CompileError
from restnet_runtime.heap import trim_heap
from restnet_runtime.memory import anonymous_bytes
from restnet_runtime.profile import Timing, time_runs
from restnet_runtime.replacement import write_atomically
from restnet_runtime.routes import Route
from restnet_runtime.sessions import infer

log = logging.getLogger(__name__)

FILE = "profiles.json"
GUESSED_SESSION_BYTES = 4 * 2**20
"""What a session takes beside its weights, before it was measured."""
_WARM_RUNS = 2
_OUTDONE = "outdone_by"


@dataclass(frozen=True)
class Measured:
    """One route, run in one way.

    session_bytes, activation_bytes: as in `residency.Need`
    """

    timing: Timing
    session_bytes: int
    activation_bytes: int


def run_once(route: Route, session: ort.InferenceSession, x: npt.NDArray[np.float32], classes: int) -> None:
    """Run a session on x (1, C, H, W). Raises `CompileError` if it fails, or answers with another shape than (1, classes)."""
    try:
        shape = infer(session, x).shape
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise CompileError(f"the route {route.name!r} does not run: {error}") from error
    if shape != (1, classes):
        raise CompileError(f"the route {route.name!r} answers {shape} for {classes} classes")


def measure(
    route: Route,
    session: ort.InferenceSession,
    again: Callable[[], ort.InferenceSession] | None,
    x: npt.NDArray[np.float32],
    classes: int,
) -> Measured:
    """Time a session, and weigh what it adds to the process: its own memory by opening another one, its activations by running it.

    again: opens another one; `None` for a session with weights of its own, of which one more could be one too many: then
           what it adds is taken to be its weights and a little
    Other runs at the same time make it heavier than it is. Raises `CompileError` as `run_once` does.
    """
    for _ in range(_WARM_RUNS):
        run_once(route, session, x, classes)
    session_bytes, activation_bytes = route.weight_bytes + GUESSED_SESSION_BYTES, 0
    if again is not None:
        trim_heap()
        before = anonymous_bytes()
        twin = again()
        run_once(route, twin, x, classes)
        trim_heap()
        session_bytes = anonymous_bytes() - before
        del twin
        infer(session, x, shrink=True)
        trim_heap()
        shrunk = anonymous_bytes()
        infer(session, x)
        activation_bytes = anonymous_bytes() - shrunk
    timing = Timing.of(time_runs(lambda: infer(session, x), time.perf_counter))
    return Measured(timing, max(0, session_bytes), max(0, activation_bytes))


class MeasuredStore:
    """What was measured under `directory`, by route and how it was run. Of two processes that write at once the last one wins."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._known: dict[str, Any] | None = None

    def get(self, route: str, how: str) -> Measured | None:
        """What was kept, else `None`; a spoilt file holds nothing."""
        try:
            entry = self._read()[_key(route, how)]
            times = float(entry["latency_ms"]), float(entry["p95_ms"])
            sizes = int(entry["session_bytes"]), int(entry["activation_bytes"])
            return Measured(Timing(*times), *sizes) if min(sizes) >= 0 and all(0 < one < math.inf for one in times) else None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def put(self, route: str, how: str, measured: Measured) -> None:
        """Keep it. A full disk costs the next start a measurement, no more."""
        self._known = None  # others may have written since
        entry = {**asdict(measured.timing), "session_bytes": measured.session_bytes, "activation_bytes": measured.activation_bytes}
        self._write(route, {**self._read(), _key(route, how): entry})

    def outdone_by(self, route: str, how: str) -> str | None:
        """The route that was found to outdo this one here when it was measured, `None` without one."""
        entry = self._read().get(_key(route, how))
        by = entry.get(_OUTDONE) if isinstance(entry, dict) else None
        return by if isinstance(by, str) else None

    def mark(self, route: str, how: str, by: str) -> None:
        """Keep that `by` outdoes a route that was measured in this way; until it is measured anew."""
        self._known = None
        entry = self._read().get(_key(route, how))
        if isinstance(entry, dict):
            self._write(route, {**self._read(), _key(route, how): {**entry, _OUTDONE: by}})

    def _write(self, route: str, known: dict[str, Any]) -> None:
        self._known = known
        try:
            write_atomically(self._path, json.dumps(known).encode())
        except OSError as error:
            log.warning("the profile of %s cannot be kept: %s", route, error)

    def _read(self) -> dict[str, Any]:
        if self._known is None:
            try:
                self._known = dict(json.loads(self._path.read_bytes()))
            except (OSError, ValueError, TypeError, RecursionError):
                self._known = {}
        return self._known


def _key(route: str, how: str) -> str:
    return f"{route} on {how}"
