import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.reading import Reading
from restnet_runtime.recorder import Recorder, moment_of
from restnet_runtime.sensors import Sensors
from restnet_runtime.traces import read_trace

READING = Reading(memory_available_bytes=900, own_memory_bytes=100, others_cpu_cores=1.0, slowdown=2.0)


def test_a_row_makes_requests_as_slow_as_they_were() -> None:
    moment = moment_of(READING, 3.0, 12.5, 2, 1.0)
    assert (moment.t_s, moment.cpu_share, moment.memory_available_bytes, moment.requests_per_s) == (3.0, 0.5, 1000, 12.5)
    assert moment.stretch == pytest.approx(2.0)
    quota = moment_of(replace(READING, cpu_quota_cores=0.5, slowdown=None), 0.0, 0.0, 2, 4.0)
    assert (quota.cpu_share, quota.stretch) == (0.25, pytest.approx(4.0))


def test_what_is_recorded_can_be_replayed(executor: Executor, tmp_path: Path) -> None:
    controller = Controller(executor, Sensors())
    controller.tick()
    with Recorder(tmp_path / "day.csv", controller, cores=2, interval_s=0.02):
        deadline = time.monotonic() + 20
        while (tmp_path / "day.csv").read_text().count("\n") < 5:
            assert time.monotonic() < deadline
            controller.arrive()
            time.sleep(0.002)
    trace = read_trace(tmp_path / "day.csv")
    ticks = [moment.t_s / 0.02 for moment in trace.moments]
    assert ticks == pytest.approx([round(tick) for tick in ticks], abs=0.01), "an interval may be missed on a busy machine, not shifted"
    assert ticks[0] == 0
    assert len(ticks) >= 4
    assert all(after > before for before, after in pairwise(ticks))
    assert sum(moment.requests_per_s for moment in trace.moments) > 0


def test_a_file_that_cannot_be_written_is_told_at_once(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Recorder(tmp_path / "none" / "day.csv", Controller(executor, Sensors()), 2)
