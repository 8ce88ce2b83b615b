"""Contention: what others take of the cores, from small trees of files and from this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.contention import CpuTimes, TaskTimes, demand_cores, others_cores, read_cpu_times, read_task_times, waiting_share
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


def write_tasks(root: Path, **schedstat: str) -> None:
    for thread, content in schedstat.items():
        path = root / "proc" / "42" / "task" / thread.removeprefix("t") / "schedstat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_threads_and_how_long_they_waited(tree: Path) -> None:
    write_tasks(tree, t42="100 20 3\n", t43="7 0 1\n", t44="", t45="5 x 1\n", t46="9\n")
    (tree / "proc" / "42" / "task" / "47").mkdir()
    assert read_task_times(tree, 42) == {42: TaskTimes(100, 20), 43: TaskTimes(7, 0)}
    assert read_task_times(tree, 41) == {}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({1: (100, 100)}, {1: (130, 110)}, 0.25),
        ({1: (100, 100), 2: (0, 0)}, {1: (110, 100), 2: (10, 20)}, 0.5),
        ({1: (100, 100)}, {1: (100, 100), 2: (30, 10)}, 0.25),  # one that began meanwhile
        ({1: (100, 100), 2: (50, 0)}, {1: (110, 110)}, 0.5),  # one that ended meanwhile
        ({1: (100, 100)}, {1: (30, 10)}, 0.25),  # another thread of the same number
        ({1: (100, 100)}, {1: (100, 100)}, None),  # nothing could have run
        ({1: (0, 0)}, {1: (0, 0)}, None),  # a kernel that counts nothing
        ({}, {}, None),
    ],
)
def test_share_of_the_time_that_threads_wait(before, now, expected) -> None:
    assert waiting_share(*({one: TaskTimes(*times) for one, times in read.items()} for read in (before, now))) == expected


@given(st.integers(1, 16), st.integers(0, 9), st.integers(1, 9))
def test_what_others_want_does_not_depend_on_what_we_take(cores: int, others: int, ours: int) -> None:
    """Threads that never pause, on a scheduler that is fair."""
    each = min(1.0, cores / (others + ours))
    assert demand_cores(others * each, 1 - each, 1.0) == pytest.approx(others)


def test_waiting_counts_for_the_time_that_requests_ran() -> None:
    assert demand_cores(1.0, 0.5, 0.0) == 1.0
    assert demand_cores(1.0, 0.5, 0.5) == 1.5
    assert demand_cores(1.0, None, 1.0) == 1.0
    assert demand_cores(0.0, 0.9, 1.0) == 0.0  # our own threads are in each other's way
    assert demand_cores(1.0, 1.0, 1.0) == pytest.approx(20.0)


def test_threads_that_share_one_core_wait() -> None:
    """Two busy processes bound to one core: real waiting, as the kernel counts it."""
    core = min(os.sched_getaffinity(0))
    bind = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)"
    count = "import time; end = time.time() + 30\nwhile time.time() < end: sum(range(10000))"
    processes = [subprocess.Popen([sys.executable, "-c", f"{bind}\n{count}"], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        pid = processes[0].pid
        before = read_task_times(Path("/"), pid)
        if not before or before[pid] == TaskTimes(0, 0):
            pytest.skip("this kernel does not count waiting")
        deadline = time.monotonic() + 25
        while (now := read_task_times(Path("/"), pid))[pid].ran - before[pid].ran < 200_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    share = waiting_share(before, now)
    assert share is not None
    assert share > 0.3, "half of the time, more where others run on this core too"


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


def test_a_reading_has_the_waiting_of_its_process(tree: Path) -> None:
    write_tasks(tree, t42="100 100 1\n")
    sensors = Sensors(tree, 42)
    write_tasks(tree, t42="130 110 2\n")
    assert sensors.read().waiting_share == 0.25
    assert sensors.read().waiting_share is None
