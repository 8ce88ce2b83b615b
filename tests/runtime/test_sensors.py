import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from restnet_runtime.reading import Reading
from restnet_runtime.sensors import Sensors

TREES = Path(__file__).parents[1] / "data" / "cgroups"


def test_reads_this_machine_and_this_process() -> None:
    sensors = Sensors()
    sum(range(10**6))
    reading = sensors.read()
    held = bytearray(b"x" * 40_000_000)
    grown = sensors.read()
    assert reading.memory_available_bytes is not None
    assert 0 < reading.memory_available_bytes <= psutil.virtual_memory().total
    assert reading.own_memory_bytes is not None
    assert grown.own_memory_bytes is not None
    assert grown.own_memory_bytes - reading.own_memory_bytes > len(held) - 5_000_000
    assert reading.load_1m is not None
    assert reading.load_1m >= 0
    assert reading.slowdown is None


def test_own_memory_is_proportional_and_not_resident() -> None:
    """What two processes share is counted half in each."""
    program = (
        "import mmap, os, sys\n"
        "held = mmap.mmap(-1, 64_000_000); held.write(b'x' * 64_000_000)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sum(held[i] for i in range(0, 64_000_000, 4096)); print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        own = Sensors(pid=process.pid).read().own_memory_bytes
        resident = psutil.Process(process.pid).memory_info().rss
        assert own is not None
        assert own < resident - 20_000_000
    finally:
        process.communicate(timeout=20)


def test_reads_memory_and_limits_of_a_recorded_process() -> None:
    reading = Sensors(TREES / "v1-recorded", pid=4242).read()
    assert reading.own_memory_bytes == 46420 * 1024
    assert reading.memory_available_bytes == 227127296
    assert reading.cpu_quota_cores == 0.5


def test_the_host_bounds_a_loose_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    assert Sensors(TREES / "v1-recorded", pid=4242).read().memory_available_bytes == 1_000_000


def test_a_group_over_its_limit_has_less_than_nothing_left() -> None:
    assert Sensors(TREES / "v2-over-high", pid=4242).read().memory_available_bytes == -26_096_000


def test_without_cgroups_the_host_alone_counts(tmp_path: Path) -> None:
    reading = Sensors(tmp_path).read()
    assert reading.memory_available_bytes is not None
    assert reading.cpu_quota_cores is None
    assert reading.own_memory_bytes is not None, "psutil answers where there is no smaps_rollup"


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    reading = Sensors(pid=process.pid).read()
    assert reading.own_memory_bytes is None
    assert reading.cpu_quota_cores is None
    assert reading.memory_available_bytes is not None


@pytest.mark.parametrize("error", [OSError("no such file"), psutil.AccessDenied(1), AttributeError("getloadavg"), NotImplementedError()])
def test_what_psutil_cannot_read_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    for name in ("virtual_memory", "cpu_times", "getloadavg", "Process"):
        monkeypatch.setattr(psutil, name, fail)
    assert Sensors(tmp_path).read() == Reading()


def cpu(user: float, idle: float, iowait: float = 0.0, guest: float = 0.0) -> Any:
    times = psutil.cpu_times()
    zeros = dict.fromkeys(times._fields, 0.0)
    known = {"user": user, "idle": idle, "iowait": iowait, "guest": guest}
    return times._replace(**{**zeros, **{name: value for name, value in known.items() if name in zeros}})


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        (cpu(10, 100), cpu(11, 103), 25.0),
        (cpu(10, 100), cpu(10, 104), 0.0),
        (cpu(10, 100), cpu(12, 100), 100.0),
        (cpu(10, 100), cpu(10, 100), None),
        (cpu(10, 100), cpu(9.9, 101), 0.0),
        (cpu(10, 100), cpu(12, 99.9), 100.0),
    ],
    ids=["some", "idle", "all", "no time passed", "busy stepped back", "idle stepped back"],
)
def test_cpu_percent_is_the_busy_share_since_the_last_sample(monkeypatch: pytest.MonkeyPatch, before, after, percent) -> None:
    samples = iter([before, after])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(samples))
    assert Sensors().read().cpu_percent == (None if percent is None else pytest.approx(percent))


@pytest.mark.skipif(sys.platform != "linux", reason="these fields are Linux's")
def test_waiting_for_disks_is_idle_and_guests_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([cpu(10, 100), cpu(12, 101, iowait=1, guest=2)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(samples))
    assert Sensors().read().cpu_percent == pytest.approx(50.0)


def test_each_sensors_object_has_its_own_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([cpu(0, 0), cpu(10, 0), cpu(10, 10), cpu(10, 20)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(samples))
    one, other = Sensors(), Sensors()
    assert one.read().cpu_percent == 50.0
    assert other.read().cpu_percent == 0.0
