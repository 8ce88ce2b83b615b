"""What was measured of routes on this device, kept beside the compiled routes so that a later start need not measure again."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restnet_runtime.cache import write_atomically
from restnet_runtime.profile import Timing

log = logging.getLogger(__name__)

FILE = "profiles.json"


@dataclass(frozen=True)
class Measured:
    """One route, run in one way.

    session_bytes, activation_bytes: as in `residency.Need`
    """

    timing: Timing
    session_bytes: int
    activation_bytes: int


class MeasuredStore:
    """What was measured under `directory`, by route and how it was run. Of two processes that write at once the last one wins."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._known: dict[str, Any] | None = None

    def get(self, route: str, how: str) -> Measured | None:
        """What was kept, else `None`; a spoilt file holds nothing."""
        try:
            entry = self._read()[_key(route, how)]
            timing = Timing(float(entry["latency_ms"]), float(entry["p95_ms"]))
            sizes = int(entry["session_bytes"]), int(entry["activation_bytes"])
            return Measured(timing, *sizes) if min(sizes) >= 0 and 0 < timing.latency_ms < float("inf") else None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def put(self, route: str, how: str, measured: Measured) -> None:
        """Keep it. A full disk costs the next start a measurement, no more."""
        self._known = None  # others may have written since
        entry = {**asdict(measured.timing), "session_bytes": measured.session_bytes, "activation_bytes": measured.activation_bytes}
        self._known = {**self._read(), _key(route, how): entry}
        try:
            write_atomically(self._path, json.dumps(self._known).encode())
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
