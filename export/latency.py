"""How long routes take on the machine of the export, in ONNX Runtime: for the report, not for the device."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from restnet_runtime.bundle import Bundle
from restnet_runtime.profile import Timing, time_runs
from restnet_runtime.sessions import SessionSettings, infer, plain_session


def measure_latencies(
    bundle: Bundle, names: Sequence[str], settings: SessionSettings | None = None, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median milliseconds of one image by route, each route as a plain session of its own, one loaded at a time.

    What disturbs the machine makes a route slower, never quicker: all are measured twice, and the quicker counts.
    """
    chosen = settings or SessionSettings()
    image = np.zeros((1, *bundle.manifest.input.shape), np.float32)
    found: dict[str, Timing] = {}
    for name in (*names, *reversed(names)):
        session = plain_session(bundle, bundle.route(name), chosen)
        infer(session, image)  # the first run takes its memory
        timing = Timing.of(time_runs(lambda session=session: infer(session, image), clock))  # type: ignore[misc]
        found[name] = timing.better(found[name]) if name in found else timing
    return {name: found[name].latency_ms for name in names}
