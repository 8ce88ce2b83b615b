"""Timings of routes, kept beside the compiled routes so that they are measured once per device."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from restnet_runtime.cache import write_atomically
from restnet_runtime.profile import Timing

log = logging.getLogger(__name__)

FILE = "profiles.json"


class Timings:
    """Timings under `directory`, by route and number of threads. Of two processes that write at once the last one wins."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def get(self, route: str, threads: int) -> Timing | None:
        """What was kept, else `None`; a spoilt file holds nothing."""
        try:
            entry = json.loads(self._path.read_bytes())[_key(route, threads)]
            return Timing(float(entry["latency_ms"]), float(entry["p95_ms"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def put(self, route: str, threads: int, timing: Timing) -> None:
        """Keep a timing. A full disk costs the next start a measurement, no more."""
        try:
            known = dict(json.loads(self._path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            known = {}
        try:
            write_atomically(self._path, json.dumps({**known, _key(route, threads): asdict(timing)}).encode())
        except OSError as error:
            log.warning("the profile of %s cannot be kept: %s", route, error)


def _key(route: str, threads: int) -> str:
    return f"{route} on {threads} threads"
