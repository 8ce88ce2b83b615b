"""Sensors on recorded and on built trees of files; tests/data/sensors/README.md says which is which."""

import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from restnet_runtime.firmware import BITS, Firmware, FirmwareBits, parse_bits
from restnet_runtime.frequency import Frequency, Tachometer
from restnet_runtime.jetson import Jetson, JetsonMeter
from restnet_runtime.power import Power, PowerMeter
from restnet_runtime.pressure import Pressure
from restnet_runtime.sensors import Sensors, name_throttling
from restnet_runtime.thermal import Heat, Thermometer
from restnet_runtime.throttling import QuotaCounters, QuotaMeter, QuotaUse, read_counters

TREES = Path(__file__).parents[1] / "data" / "sensors"
SERVICE = Path("sys/fs/cgroup/restnet.slice/restnet-serve.service")
CORES = {0, 1, 2, 3}


class Sampled:
    """One tree that a test overwrites with the next sample, and the clock of the samples."""

    def __init__(self, root: Path, tree: str) -> None:
        self.root, self._tree, self.now_s = root, tree, 1000.0
        self.show("first")

    def show(self, sample: str, later_s: float = 0.0) -> None:
        shutil.copytree(TREES / self._tree / sample, self.root, dirs_exist_ok=True)
        self.now_s += later_s

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def copied(tmp_path: Path, request: pytest.FixtureRequest) -> Sampled:
    return Sampled(tmp_path / "root", request.param)


@pytest.mark.parametrize("copied", ["v2-recorded"], indirect=True)
def test_a_squeezed_process_on_cgroup_v2_as_recorded(copied: Sampled) -> None:
    sensors = Sensors(copied.root, 4242, copied.clock)
    first = sensors.read()
    assert first.cpu_quota_cores == 0.5
    assert first.memory_available_bytes is not None
    assert first.memory_available_bytes <= 201_326_592, "memory.high is below memory.max"
    assert first.quota_throttled_share is None, "one sample says nothing of a share"
    assert first.pressure_cpu_share is None
    copied.show("second", 45.0979)
    second = sensors.read()
    assert second.quota_throttled_share == pytest.approx((392 - 97) / (402 - 101))
    assert second.quota_stopped_cores == pytest.approx((22.133862 - 6.008655) / 45.0979)
    assert second.group_pressure_cpu_share == pytest.approx((21.967635 - 4.575656) / 45.0979)
    assert second.pressure_cpu_share == pytest.approx((17.769398 - 6.197437) / 45.0979)
    assert second.group_pressure_memory_share == second.pressure_memory_share == second.pressure_io_share == 0.0
    assert second.throttled == ("CPU quota used up in 98 % of its periods",)
    assert second.temperature_c is second.cpu_frequency_mhz is second.battery_percent is None, "that machine has none of them"


@pytest.mark.parametrize("copied", ["v1-recorded"], indirect=True)
def test_a_quota_on_cgroup_v1_as_recorded(copied: Sampled) -> None:
    sensors = Sensors(copied.root, 4242, copied.clock)
    sensors.read()
    copied.show("second", 3.038390)
    reading = sensors.read()
    assert reading.cpu_quota_cores == 0.5
    assert reading.quota_throttled_share == pytest.approx((3 - 1) / (60 - 30))
    assert reading.quota_stopped_cores == pytest.approx((14_821_743 - 13_966_060) / 1e9 / 3.038390)
    assert reading.throttled == (), "hardly ever"
    assert reading.pressure_cpu_share == pytest.approx((466_909_794 - 463_894_956) / 1e6 / 3.038390)
    assert reading.group_pressure_cpu_share is None, "cgroup v1 has none"


def test_a_hot_raspberry_pi_4() -> None:
    reading = Sensors(TREES / "raspberry-pi-4").read()
    assert (reading.temperature_c, reading.temperature_zone) == (81.8, "cpu-thermal")
    assert reading.temperature_headroom_c is None, "a critical trip is where it is switched off, not where it slows down"
    assert reading.throttled == ("soft temperature limit",)
    assert reading.throttled_since_boot == ("frequency capped by the firmware", "throttled by the firmware", "soft temperature limit")
    assert reading.cpu_frequency_cap_share == 1.0
    assert reading.pressure_cpu_share is None


def test_a_raspberry_pi_5_with_too_weak_a_supply_is_asked_by_the_command() -> None:
    sensors = Sensors(TREES / "raspberry-pi-5")
    try:
        assert sensors.read().throttled == (), "the frequency is not held down, and the command has not answered yet"
        deadline = time.monotonic() + 20
        while (reading := sensors.read()).throttled_since_boot is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        sensors.close()
    assert reading.throttled == reading.throttled_since_boot == ("under-voltage", "throttled by the firmware")
    assert reading.temperature_headroom_c is None, "at an active trip the fan turns faster, no more"


def test_a_hot_jetson() -> None:
    reading = Sensors(TREES / "jetson-orin-nano").read()
    assert (reading.temperature_c, reading.temperature_zone) == (99.5, "gpu-thermal")
    assert reading.temperature_headroom_c == -0.5
    assert reading.gpu_load_share == 0.437
    assert reading.power_w == pytest.approx(4.992 * 1.504)
    assert reading.throttled is not None
    assert reading.throttled[0] == "gpu-thermal is so hot that the kernel slows the processor down"


def test_a_battery_in_use_beside_that_of_a_mouse() -> None:
    reading = Sensors(TREES / "laptop").read()
    assert (reading.battery_percent, reading.on_battery) == (63.0, True)
    assert reading.power_w == pytest.approx(1.2 * 11.5)


@pytest.mark.parametrize("tree", ["raspberry-pi-4", "jetson-orin-nano", "laptop", "v1-recorded/first", "v2-recorded/first"])
def test_no_spoilt_file_is_taken_for_a_figure(tmp_path: Path, tree: str) -> None:
    """Every file of a tree holds rubbish: then no sensor that reads these files tells anything."""
    root = tmp_path / "root"
    shutil.copytree(TREES / tree, root)
    for path in root.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff rubbish -\n")
    sensors = Sensors(root, 4242)
    sensors.read()
    reading = sensors.read()
    known = {name for name, value in vars(reading).items() if value is not None}
    assert known <= {"memory_available_bytes", "own_memory_bytes", "cpu_percent", "load_1m"}, "these are psutil's"


def test_zones_that_are_off_do_not_count(tmp_path: Path) -> None:
    shutil.copytree(TREES / "jetson-orin-nano", tmp_path, dirs_exist_ok=True)
    zones = tmp_path / "sys" / "class" / "thermal"
    for zone in ("thermal_zone0", "thermal_zone1", "thermal_zone8"):
        shutil.rmtree(zones / zone)
    assert Thermometer(tmp_path).read() == Heat(), "-256 C is no temperature"


def test_the_hottest_zone_need_not_be_the_one_nearest_to_its_trip(tmp_path: Path) -> None:
    for number, (kind, temp, trip) in enumerate([("gpu", 90_000, 105_000), ("board", 68_000, 70_000)]):
        zone = tmp_path / "sys" / "class" / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        for name, text in (("type", kind), ("temp", temp), ("trip_point_0_type", "passive"), ("trip_point_0_temp", trip)):
            (zone / name).write_text(f"{text}\n")
    assert Thermometer(tmp_path).read() == Heat(90.0, "gpu", 2.0, None)


def test_frequency_is_weighed_by_the_cores_that_the_process_may_use() -> None:
    tachometer = Tachometer(TREES / "jetson-orin-nano")
    assert tachometer.read({4}) == Frequency(1510.4, 1.0, 1.0)
    both = tachometer.read({0, 4})
    assert both.mhz == pytest.approx((1190.4 + 1510.4) / 2)
    assert both.cap_share == pytest.approx((1190.4 / 1510.4 + 1) / 2)
    assert tachometer.read({17}) == Frequency()


@pytest.mark.parametrize(
    ("text", "bits"),
    [("throttled=0x50005", 0x50005), ("50005", 0x50005), ("0x0", 0), ("0\n", 0), ("", None), (None, None), ("error=1", None)],
)
def test_bits_of_the_file_and_of_the_command(text: str | None, bits: int | None) -> None:
    assert parse_bits(text) == bits


def test_every_bit_has_its_name(tmp_path: Path) -> None:
    file = tmp_path / "sys" / "devices" / "platform" / "soc@107c000000" / "soc@107c000000:firmware" / "get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    firmware = FirmwareBits(tmp_path)
    assert firmware.read().now == firmware.read().since_boot == ()
    for index, name in enumerate(BITS):
        file.write_text(f"{1 << index:x}\n")
        assert firmware.read().now == (name,)
        file.write_text(f"{1 << index + 16:x}\n")
        assert firmware.read().since_boot == (name,)


def test_a_command_that_fails_tells_nothing_and_is_not_asked_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(TREES / "raspberry-pi-5", tmp_path, dirs_exist_ok=True)
    command = tmp_path / "usr" / "bin" / "vcgencmd"
    command.write_text("#!/bin/sh\necho error=1; exit 1\n")
    firmware = FirmwareBits(tmp_path, command_every=1)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert firmware.read().now is None
        time.sleep(0.05)
    firmware.close()
    (tmp_path / "proc" / "device-tree" / "model").write_text("Some other board\0")
    command.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked; echo throttled=0x0\n")
    assert FirmwareBits(tmp_path).read().now is None
    time.sleep(0.2)
    assert not (tmp_path / "asked").exists()


def test_a_quota_is_read_from_the_group_that_is_stopped_most(tmp_path: Path) -> None:
    def write(group: str, periods: int, throttled: int, stopped_us: int) -> Path:
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / "cpu.stat").write_text(
            f"usage_usec 1\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {stopped_us}\n"
        )
        return tmp_path / group

    groups = [write("own", 10, 1, 0), write("parent", 20, 2, 0), tmp_path]
    meter = QuotaMeter()
    assert meter.read(groups, 0.0) == QuotaUse()
    write("own", 20, 2, 500_000)
    write("parent", 30, 10, 1_500_000)
    assert meter.read(groups, 2.0) == QuotaUse(0.8, 0.75)
    assert meter.read(groups, 3.0) == QuotaUse(0.0, 0.0), "nothing wanted to run"
    write("own", 5, 5, 250_000)
    assert meter.read(groups, 4.0) == QuotaUse(1.0, 0.25), "made anew"


def test_a_group_without_a_quota_has_no_share(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")
    assert read_counters(tmp_path) is None
    (tmp_path / "cpu.stat").write_text("nr_periods 4\nnr_throttled 2\nthrottled_time 3000000000\n")
    assert read_counters(tmp_path) == QuotaCounters(4, 2, 3.0)


def test_pressure_of_another_folder_begins_anew(tmp_path: Path) -> None:
    for name, total in (("one", 1_000_000), ("two", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu").write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n")
    pressure = Pressure()
    assert pressure.read(tmp_path / "one", 0.0)["cpu"] is None
    assert pressure.read(tmp_path / "one", 1.0)["cpu"] == 0.0
    assert pressure.read(tmp_path / "two", 2.0)["cpu"] is None
    assert pressure.read(None, 3.0) == {"cpu": None, "memory": None, "io": None}


def test_what_slows_down_is_named_and_what_is_not_known_is_missing() -> None:
    nothing = (Heat(), Frequency(), QuotaUse())
    assert name_throttling(Firmware(), *nothing) is None
    assert name_throttling(Firmware((), ()), *nothing) == ()
    assert name_throttling(Firmware(), Heat(50.0, "cpu", 30.0), Frequency(), QuotaUse()) == ()
    assert name_throttling(Firmware(("under-voltage",), ()), Heat(), Frequency(600, 0.4, 0.5), QuotaUse(0.4, 0.1)) == (
        "under-voltage",
        "CPU frequency held to 50 % of the highest",
        "CPU quota used up in 40 % of its periods",
    )


class Service:
    """What the package jetson-stats offers, as documented; it is not installed here."""

    def __init__(self) -> None:
        self.started, self.closed = False, False
        self.power = {"rail": {}, "tot": {"volt": 5000, "curr": 1500, "power": 7500}}
        self.temperature = {
            "cpu": {"temp": 51.0, "online": True},
            "gpu": {"temp": 54.5, "online": True},
            "cv0": {"temp": -256, "online": False},
        }

    @property
    def gpu(self) -> dict[str, object]:
        return {"ga10b": {"type": "integrated", "status": {"railgate": False, "load": 61.5}}}

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root with the socket of the service, listening."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("run/jtop.sock")
        yield tmp_path


def test_the_service_tells_what_files_do_not(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=lambda: service))
    meter = JetsonMeter(listening)
    assert meter.read() == Jetson(0.615, 7.5, 54.5, "gpu")
    assert service.started
    shutil.copytree(TREES / "jetson-orin-nano" / "sys", listening / "sys")
    sensors = Sensors(listening)
    reading = sensors.read()
    assert (reading.gpu_load_share, reading.temperature_c) == (0.437, 99.5), "files go first: they are of now"
    meter.close()
    sensors.close()
    assert service.closed
    assert meter.read() == Jetson()


def test_a_service_that_fails_is_not_asked_again(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Service):
        @property
        def gpu(self) -> dict[str, object]:
            raise RuntimeError("connection lost")

    service = Broken()
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=lambda: service))
    meter = JetsonMeter(listening, look_every=1)
    assert meter.read() == meter.read() == Jetson()
    assert service.closed


def test_the_package_is_imported_only_where_its_socket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=lambda: pytest.fail("asked without a socket")))
    assert JetsonMeter(tmp_path).read() == Jetson()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "jtop.sock").write_text("no socket")
    assert JetsonMeter(tmp_path).read() == Jetson()


def test_a_device_without_the_package_does_without(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)  # as if it were not installed
    assert JetsonMeter(listening).read() == Jetson()


def test_a_battery_at_the_mains_is_not_in_use(tmp_path: Path) -> None:
    shutil.copytree(TREES / "laptop", tmp_path, dirs_exist_ok=True)
    (tmp_path / "sys" / "class" / "power_supply" / "BAT0" / "status").write_text("Charging\n")
    assert PowerMeter(tmp_path).read() == Power(63.0, False, None)
