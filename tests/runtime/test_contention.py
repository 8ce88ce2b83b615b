"""Contention: what others take of the cores, from small trees of files and from this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restnet_runtime.contention import CpuTimes, others_cores, read_cpu_times
from restnet_runtime.sensors import Sensors

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 7 20 500 30 1 2 3 50 0
cpu1 10 0 2 800 0 0 0 0 0 0
cpu10 5 5 5 5 5 5 5 5 0 0
intr 1 2 3
"""
PROCESS = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 60 11 9 9 20 0 8 0 100 1 1\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "42").mkdir(parents=True)
    (tmp_path / "proc" / "stat").write_text(STAT)
    (tmp_path / "proc" / "42" / "stat").write_text(PROCESS)
    return tmp_path


def test_only_the_cores_asked_for_count_and_niced_time_does_not(tree: Path) -> None:
    assert read_cpu_times(tree, 42, {0}) == CpuTimes(busy=126, total=663, own=71)
    assert read_cpu_times(tree, 42, {0, 1}) == CpuTimes(busy=138, total=663 + 812, own=71)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("stat", ""),
        ("stat", "cpu0 1 2 three 4 5 6 7 8"),
        ("stat", "cpu0 1 2"),
        ("42/stat", "42 (x) S 1"),
        ("42/stat", "42 (x"),
        ("stat", None),
    ],
)
def test_what_cannot_be_read_is_missing(tree: Path, file: str, content: str | None) -> None:
    path = tree / "proc" / file
    path.unlink() if content is None else path.write_text(content)
    assert read_cpu_times(tree, 42, {0}) is None


def test_cores_that_are_not_there(tree: Path) -> None:
    assert read_cpu_times(tree, 42, {7}) is None


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (CpuTimes(100, 400, 0), 0.5),  # 100 of 400 ticks of two cores
        (CpuTimes(100, 400, 100), 0.0),
        (CpuTimes(50, 400, 60), 0.0),
        (CpuTimes(900, 400, 0), 2.0),
        (CpuTimes(0, 0, 0), None),
        (None, None),
    ],
)
def test_share_of_others(now: CpuTimes | None, expected: float | None) -> None:
    assert others_cores(CpuTimes(0, 0, 0), now, 2) == expected
    assert others_cores(None, now, 2) is None


def test_a_neighbour_is_seen() -> None:
    """A real process counts beside us; whoever else runs here too can only add to that."""
    count = "import time; end = time.time() + 30\nwhile time.time() < end: sum(range(10000))"
    cores = os.sched_getaffinity(0)
    before = read_cpu_times(Path("/"), os.getpid(), cores)
    with subprocess.Popen([sys.executable, "-c", count]) as process:
        try:
            deadline = time.monotonic() + 20
            while (taken := read_cpu_times(Path("/"), process.pid, cores)) is None or taken.own < 30:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            now = read_cpu_times(Path("/"), os.getpid(), cores)
        finally:
            process.kill()
    assert before is not None
    assert now is not None
    assert (now.busy - before.busy) - (now.own - before.own) >= 20


def test_a_reading_has_it() -> None:
    sensors = Sensors()
    deadline = time.monotonic() + 20
    while (seen := sensors.read().others_cpu_cores) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert 0 <= seen <= len(os.sched_getaffinity(0))
