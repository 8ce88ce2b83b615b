"""The recorder: what the controller reads, once a second as a row of a trace that `restnet-bench --trace` replays."""

import logging
import math
import threading
import time
from pathlib import Path
from types import TracebackType

from restnet_runtime.controller import Controller
from restnet_runtime.reading import Reading
from restnet_runtime.traces import COLUMNS, Moment, write_row

log = logging.getLogger(__name__)


def moment_of(reading: Reading, t_s: float, requests_per_s: float, cores: int, slowdown: float) -> Moment:
    """A reading as a row. slowdown: what is known of it, also from before this reading.

    The processor's share is what the quota and others leave of `cores`; what requests are slower beside that is the row's slowdown.
    """
    quota, others = reading.cpu_quota_cores, reading.others_cpu_cores
    share = min(1.0, (cores - (others or 0.0)) / cores, (cores if quota is None else quota) / cores)
    share = max(0.01, share)
    own, available = reading.own_memory_bytes, reading.memory_available_bytes
    memory = math.inf if own is None or available is None else float(max(0, own + available))
    return Moment(t_s, share, memory, max(1e-3, (reading.slowdown or slowdown) * share), requests_per_s)


class Recorder:
    """Writes in a thread of its own, a line in `interval_s`, each flushed. A context manager. A full disk ends the recording."""

    def __init__(self, file: Path, controller: Controller, cores: int, interval_s: float = 1.0) -> None:
        """Raises `OSError` where the file cannot be written."""
        self._out = file.open("w", encoding="utf-8")
        self._out.write(",".join(COLUMNS) + "\n")
        self._out.flush()
        self._controller, self._cores, self._interval_s = controller, cores, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restnet-recorder", daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join()
        self._out.close()

    def _run(self) -> None:
        started, before_s, count, slowdown = time.monotonic(), 0.0, self._controller.arrived, 1.0
        due_s = 0.0
        while not self._stopping.wait(max(0.0, due_s - (time.monotonic() - started))):
            now_s, arrived = time.monotonic() - started, self._controller.arrived
            rate = (arrived - count) / (now_s - before_s) if now_s > before_s and due_s > 0 else 0.0
            reading = self._controller.reading or Reading()
            slowdown = reading.slowdown or slowdown
            try:
                self._out.write(write_row(moment_of(reading, due_s, rate, self._cores, slowdown)) + "\n")
                self._out.flush()
            except OSError as error:
                log.warning("recording has ended: %s", error)
                return
            before_s, count = now_s, arrived
            due_s += self._interval_s * max(1, math.ceil((now_s - due_s) / self._interval_s))
