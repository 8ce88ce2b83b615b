import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pytest

from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.decision_log import Switch
from restnet_runtime.errors import CompileError, InfeasibleError, UnitError
from restnet_runtime.events import Follower
from restnet_runtime.executor import Executor
from restnet_runtime.policy import PolicySettings
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading, RouteLatency
from restnet_runtime.routes import Route
from restnet_runtime.watch import UNKNOWN_TAIL

MB = 1_000_000
ROUTES = [
    Route("small", ("a",), ("fp32",), 10, 1, 1, 0.80, True),
    Route("middle", ("b",), ("fp32",), 20, 1, 1, 0.90, True),
    Route("large", ("c",), ("fp32",), 40, 1, 1, 0.95, True),
]
PROFILES = {
    "small": RouteProfile(10.0, 12.0, 50 * MB),
    "middle": RouteProfile(20.0, 24.0, 80 * MB),
    "large": RouteProfile(40.0, 48.0, 120 * MB),
}
FINE = Reading(memory_available_bytes=1000 * MB, own_memory_bytes=60 * MB, load_1m=0.5)


@dataclass
class Neighbours:
    """A share of memory as the test wants it; counts how often it was to be divided anew."""

    others_bytes: int | None = None
    budget_bytes: int | None = None
    limit_bytes: int | None = None
    model: str | None = "mine"
    renewed: int = 0

    def renew(self) -> None:
        self.renewed += 1


class Table:
    """An executor without networks: which routes are loaded, which is current, and what was switched to."""

    def __init__(self, *loaded: str) -> None:
        self.bundle = SimpleNamespace(routes=ROUTES)
        self.loaded = loaded
        self.name = loaded[0] if loaded else None
        self.switched: list[str] = []
        self.refused: set[str] = set()

    @property
    def current(self) -> Route | None:
        return next((route for route in ROUTES if route.name == self.name), None)

    def profile(self, name: str) -> RouteProfile | None:
        return PROFILES[name] if name in self.loaded else None

    def switch(self, name: str) -> None:
        if name not in self.loaded or name in self.refused:
            raise CompileError(f"the route {name!r} is not loaded")
        self.name = name
        self.switched.append(name)


@dataclass
class Device:
    """Sensors that say what they are told; an exception is raised."""

    sample: Reading | Exception = FINE
    reads: int = 0

    def read(self) -> Reading:
        self.reads += 1
        if isinstance(self.sample, Exception):
            raise self.sample
        return self.sample


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Rig:
    executor: Table = field(default_factory=lambda: Table("small", "middle", "large"))
    device: Device = field(default_factory=Device)
    clock: Clock = field(default_factory=Clock)

    def controller(self, budget: Budget | None = None, **options: object) -> Controller:
        given = {"wall": lambda: self.clock.now_s + 1e9, "cpu_s": None, **options}
        return Controller(self.executor, self.device, budget, clock=self.clock, **given)

    def run(self, controller: Controller, ticks: int, latency_ms: Callable[[str], float] | None = None) -> list[str]:
        """Ticks a second apart, with one request in each second; the routes that served."""
        routes = []
        for _ in range(ticks):
            name = self.executor.name
            assert name is not None
            if latency_ms is not None:
                controller.observe(name, latency_ms(name))
            controller.tick()
            routes.append(self.executor.name)
            self.clock.now_s += 1.0
        return routes


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_first_tick_goes_to_the_best_loaded_route(rig: Rig) -> None:
    controller = rig.controller()
    assert controller.decision is None
    decision = controller.tick()
    assert decision is not None
    assert decision == controller.decision
    assert (decision.route, rig.executor.name) == ("large", "large")


class Glanced(Device):
    """Its memory is another at every glance."""

    def glance(self, last: Reading) -> Reading:
        return replace(last, memory_available_bytes=(last.memory_available_bytes or 0) + 1)


def test_a_follower_is_told_of_looks_and_not_of_what_is_glanced_at_between_them(rig: Rig) -> None:
    rig.device = Glanced()
    controller = rig.controller()
    controller.tick()
    follower = Follower(controller)
    before = controller.reading
    controller.react()
    assert controller.reading != before
    assert follower.fresh() == []
    controller.tick()
    assert [event.kind for event in follower.fresh()] == ["reading"]


def test_a_new_budget_switches_before_the_setter_returns(rig: Rig) -> None:
    controller = rig.controller()
    controller.tick()
    controller.budget = Budget(macs=25)
    assert (rig.executor.name, controller.budget) == ("middle", Budget(macs=25))
    controller.budget = Budget()
    assert rig.executor.name == "large"
    assert rig.device.reads == 1, "a new budget is decided on the last reading"


def test_a_budget_set_before_the_first_tick_acts_too(rig: Rig) -> None:
    controller = rig.controller()
    controller.budget = Budget(macs=25)
    assert rig.executor.name == "middle"
    assert controller.status().reading is None


def test_setting_the_same_budget_changes_nothing(rig: Rig) -> None:
    """Else a client that repeats itself would make the clean ticks pass faster."""
    controller = rig.controller(Budget(latency_ms=50.0))
    rig.run(controller, 1)
    rig.run(controller, 6, lambda _: 200.0)
    assert rig.executor.name == "small"
    before = controller.decision
    for _ in range(20):
        controller.budget = Budget(latency_ms=50.0)
    assert controller.decision is before


def test_goes_down_when_requests_become_slow_and_up_again_later(rig: Rig) -> None:
    controller = rig.controller(Budget(latency_ms=50.0))
    assert rig.run(controller, 3, lambda name: PROFILES[name].latency_ms) == ["large"] * 3
    slow = rig.run(controller, 8, lambda name: PROFILES[name].latency_ms * 2)
    assert slow[:2] == ["middle", "middle"], "smoothed, but the first slow second is over the limit already"
    assert set(slow) == {"middle"}
    fine = rig.run(controller, 12, lambda name: PROFILES[name].latency_ms)
    assert fine[:5] == ["middle"] * 5
    assert fine[-1] == "large"
    assert [(switch.before, switch.after) for switch in controller.status().switches] == [
        ("small", "large"),
        ("large", "middle"),
        ("middle", "large"),
    ]


def test_a_request_that_has_waited_leaves_room_for_the_next_in_the_queue(rig: Rig) -> None:
    """Limit 60 ms, 15 ms waited: the large route (40 ms) fits, but who came 5 ms later needs 10 ms on the small one after it."""
    controller = rig.controller(Budget(latency_ms=60.0))
    controller.tick()
    controller.arrive()
    rig.clock.now_s += 0.005
    assert controller.decide_request(Budget(), 5.0).route == "large"
    rig.clock.now_s += 0.001
    controller.arrive()
    rig.clock.now_s += 0.014
    assert controller.decide_request(Budget(), 20.0).route == "middle", "14 + 40 + 10 ms are too much"
    assert controller.decide_request(Budget(), 14.0).route == "large", "of nobody behind it"


def test_a_request_that_has_waited_longer_than_it_may_is_told_so(rig: Rig) -> None:
    controller = rig.controller(Budget(latency_ms=60.0))
    controller.tick()
    decision = controller.decide_request(Budget(), 80.0)
    assert (decision.route, decision.feasible) == ("small", False)
    assert decision.reason == "small serves although it is late: waited 80 ms already, and the limit is 60 ms"


def test_requests_of_unknown_routes_or_without_latency_do_not_count(rig: Rig) -> None:
    controller = rig.controller()
    controller.observe("nobody", 5.0)
    controller.observe("small", float("nan"))
    controller.tick()
    reading = controller.status().reading
    assert reading == FINE
    controller.observe("small", 30.0)
    controller.tick()
    latencies = {"small": RouteLatency(30.0, 30.0, 1, 1)}
    assert controller.status().reading == replace(
        FINE, slowdown=2.0, tail=UNKNOWN_TAIL, credit=1.0, latencies=latencies, slowdown_by_threads=ANY, request_threads=1
    )


def test_readings_have_the_queue_once_somebody_counts_it(rig: Rig) -> None:
    controller = rig.controller()
    controller.tick()
    assert controller.reading is not None
    assert controller.reading.queue_depth is None
    controller.watch_queue(lambda: 7)
    controller.tick()
    assert controller.reading.queue_depth == 7


def test_slowdown_is_told_for_every_number_of_threads_that_a_request_could_have(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    controller = rig.controller()
    rig.device.sample = replace(FINE, others_cpu_cores=1.0, waiting_share=0.0)
    controller.observe("small", 10.0)
    controller.tick()
    assert controller.reading is not None
    assert controller.reading.slowdown_by_threads == {1: 1.0, 2: 1.75}


def test_only_loaded_routes_are_switched_to_and_the_wanted_one_is_named(rig: Rig) -> None:
    rig.executor.loaded = ("small", "middle")
    controller = rig.controller()
    controller.tick()
    assert rig.executor.name == "middle"
    assert controller.status().wanted == "large"


def test_a_route_that_becomes_loaded_serves_at_once_when_told(rig: Rig) -> None:
    rig.executor.loaded = ("small",)
    controller = rig.controller()
    rig.run(controller, 2)
    rig.executor.loaded = ("small", "large")
    controller.reconsider()
    assert rig.executor.name == "large"
    assert controller.status().switches[-1].reason == "afresh: large is the most accurate that fits"


def test_before_anything_is_loaded_there_is_no_decision(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.executor = Table()
    controller = rig.controller()
    assert controller.tick() is None
    assert controller.tick() is None
    assert controller.decision is None
    assert controller.status().problem == "no route is loaded yet"
    assert caplog.records == [], "a start is no fault"
    with pytest.raises(InfeasibleError, match="none is loaded"):
        controller.decide_request(Budget())
    rig.executor.loaded = ("middle",)
    controller.tick()
    assert rig.executor.name == "middle"
    status = controller.status()
    assert status.problem is None
    assert (status.switches[0].before, status.switches[0].after) == ("", "middle")
    rig.executor.loaded = ()
    assert controller.tick() is None
    assert controller.tick() is None
    assert controller.status().problem == "no route is loaded"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["no route is loaded"]


def test_every_switch_is_logged_once_with_its_reason(rig: Rig) -> None:
    controller = rig.controller()
    rig.run(controller, 3)
    rig.clock.now_s = 2000.0
    controller.budget = Budget(macs=5)
    rig.run(controller, 3)
    assert controller.status().switches == (
        Switch(1e9 + 1000.0, "small", "large", True, "afresh: large is the most accurate that fits"),
        Switch(1e9 + 2000.0, "large", "small", False, "small serves although it does not fit: macs 10 MACs over the limit of 5 MACs"),
    )


def test_the_log_is_bounded_and_keeps_the_latest(rig: Rig) -> None:
    controller = rig.controller(log_length=4)
    for macs in [15, 25] * 10:
        controller.budget = Budget(macs=macs)
    assert [switch.after for switch in controller.status().switches] == ["small", "middle"] * 2


def test_a_failing_sensor_is_logged_once_and_the_route_stays(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    controller = rig.controller(Budget(latency_ms=50.0))
    rig.run(controller, 1)
    rig.run(controller, 1, lambda _: 200.0)
    assert rig.executor.name == "small"
    rig.device.sample = OSError("bus error")
    assert set(rig.run(controller, 20, lambda _: 10.0)) == {"small"}, "blind, it does not climb"
    assert controller.status().problem == "reading the sensors failed: OSError('bus error')"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].exc_info is not None
    rig.device.sample = FINE
    rig.run(controller, 10, lambda name: PROFILES[name].latency_ms)
    assert rig.executor.name == "large"
    assert controller.status().problem is None


def test_sensors_that_never_worked_leave_the_budget_to_decide(rig: Rig) -> None:
    rig.device.sample = ValueError("garbled")
    controller = rig.controller(Budget(macs=25))
    decision = controller.tick()
    assert decision is not None
    assert (decision.route, decision.feasible) == ("middle", True)
    assert controller.status().problem == "reading the sensors failed: ValueError('garbled')"
    assert controller.status().reading is None


def test_a_route_that_cannot_be_switched_to_is_left_out(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.executor.refused = {"large"}
    controller = rig.controller()
    rig.run(controller, 3)
    assert rig.executor.name == "middle"
    decision = controller.decision
    assert decision is not None
    assert decision.route == "middle", "the decision is what serves"
    controller.budget = Budget(latency_ms=45.0)
    assert controller.status().problem == "switching to large failed: CompileError(\"the route 'large' is not loaded\")"
    assert [switch.after for switch in controller.status().switches] == ["middle"]
    rig.executor.refused = set()
    controller.budget = Budget()
    assert rig.executor.name == "large"
    assert controller.status().problem is None
    assert all("switching to large failed" in record.message for record in caplog.records if record.levelno == logging.WARNING)


def test_where_no_route_can_be_switched_to_the_problem_is_kept(rig: Rig) -> None:
    rig.executor.name = None
    rig.executor.refused = {"small", "middle", "large"}
    controller = rig.controller()
    assert controller.tick() is None
    assert "switching to small failed" in str(controller.status().problem)


def test_a_switch_made_by_somebody_else_is_noticed(rig: Rig) -> None:
    controller = rig.controller(Budget(macs=25))
    controller.tick()
    rig.executor.switch("large")
    controller.tick()
    assert rig.executor.name == "middle"


def test_a_request_narrows_for_itself_alone(rig: Rig) -> None:
    controller = rig.controller(Budget(latency_ms=50.0))
    controller.tick()
    decision = controller.decide_request(Budget(latency_ms=15.0))
    assert (decision.route, decision.feasible) == ("small", True)
    assert rig.executor.name == "large"
    assert controller.budget == Budget(latency_ms=50.0)
    assert [switch.after for switch in controller.status().switches] == ["large"]


@pytest.mark.parametrize("limits", [Budget(), Budget(latency_ms=50.0), Budget(latency_ms=99.0)])
def test_a_request_that_narrows_nothing_gets_the_standing_decision(rig: Rig, limits: Budget) -> None:
    controller = rig.controller(Budget(latency_ms=50.0))
    assert controller.tick() is controller.decide_request(limits)


def test_a_request_before_the_first_tick_is_answered(rig: Rig) -> None:
    decision = rig.controller(Budget(macs=25)).decide_request(Budget())
    assert (decision.route, decision.feasible) == ("small", True)


def test_a_request_is_served_by_loaded_routes_only(rig: Rig) -> None:
    rig.executor.loaded = ("small", "large")
    controller = rig.controller()
    controller.tick()
    assert controller.decide_request(Budget(macs=25)).route == "small"


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interval_out_of_range_is_refused(rig: Rig, interval_s: float) -> None:
    with pytest.raises(UnitError, match="must be above zero and finite"):
        rig.controller(interval_s=interval_s)


# The thread


def wait_for(condition: Callable[[], bool]) -> None:
    """Fails after ten seconds; normally it takes milliseconds."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    pytest.fail("what was waited for never came")


@pytest.fixture
def started(rig: Rig) -> Iterator[Controller]:
    controller = Controller(rig.executor, rig.device, Budget(macs=25), interval_s=0.001, settings=PolicySettings(dwell_s=0.0))
    controller.start()
    yield controller
    controller.stop()


def test_a_decision_stands_when_start_returns(rig: Rig) -> None:
    controller = rig.controller(interval_s=1000.0)
    controller.start()
    try:
        assert (rig.executor.name, controller.status().running) == ("large", True)
    finally:
        controller.stop()


def test_the_thread_ticks_until_stopped_and_can_start_again(rig: Rig, started: Controller) -> None:
    wait_for(lambda: rig.device.reads > 5)
    started.stop()
    reads = rig.device.reads
    assert not started.status().running
    assert not any(thread.name == "restnet-controller" for thread in threading.enumerate())
    started.stop()
    assert rig.device.reads == reads
    started.start()
    wait_for(lambda: rig.device.reads > reads + 5)


def test_starting_twice_starts_one_thread(started: Controller) -> None:
    started.start()
    assert sum(thread.name == "restnet-controller" for thread in threading.enumerate()) == 1


def test_stop_does_not_wait_for_the_interval(rig: Rig) -> None:
    controller = rig.controller(interval_s=3600.0)
    controller.start()
    stopper = threading.Thread(target=controller.stop, daemon=True)
    stopper.start()
    stopper.join(timeout=20)
    assert not stopper.is_alive()


def test_the_thread_survives_whatever_a_tick_raises(rig: Rig, started: Controller) -> None:
    bundle = rig.executor.bundle
    rig.executor.bundle = None
    wait_for(lambda: "the tick failed" in (started.status().problem or ""))
    reads = rig.device.reads
    wait_for(lambda: rig.device.reads > reads + 3)
    rig.executor.bundle = bundle
    wait_for(lambda: started.status().problem is None)
    assert started.status().running


def test_budgets_set_from_many_threads_while_it_ticks_and_requests_are_decided(rig: Rig, started: Controller) -> None:
    """The last word wins, every request gets a route within what stood at some time, and the log is what happened."""
    wrong: list[str] = []

    def set_budgets() -> None:
        for macs in [15, 25, 45] * 30:
            started.budget = Budget(macs=macs)

    def ask() -> None:
        for _ in range(300):
            decision = started.decide_request(Budget(macs=25))
            started.observe(decision.route, PROFILES[decision.route].latency_ms)
            if decision.route == "large" or not decision.feasible:
                wrong.append(decision.reason)

    threads = [threading.Thread(target=target) for target in (set_budgets, set_budgets, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started.budget = Budget(macs=15)
    started.budget = Budget(macs=25)
    assert wrong == []
    assert rig.executor.name == "middle"
    log = started.status().switches
    assert [switch.after for switch in log] == rig.executor.switched[-len(log) :]
    assert all(one.after == other.before for one, other in pairwise(log))


def test_moves_a_real_executor(executor: Executor) -> None:
    """From networks to answers: the route that the budget allows is the one that runs."""
    controller = Controller(executor, Device(Reading()))  # how much memory the test process takes must not matter
    controller.tick()
    x = np.zeros((1, 1, 8, 8), np.float32)
    assert executor.run(x).route.name == "large"
    controller.budget = Budget(macs=executor.bundle.route("small").macs)
    answer = executor.run(x)
    assert answer.route.name == "small"
    for _ in range(3):
        controller.observe("small", answer.latency_ms)
    controller.tick()
    reading = controller.status().reading
    assert reading is not None
    assert reading.slowdown is not None


class Squeezable(Device):
    """A device whose quota and memory can be looked at by themselves."""

    def glance(self, last: Reading) -> Reading:
        assert isinstance(self.sample, Reading)
        return replace(last, cpu_quota_cores=self.sample.cpu_quota_cores, memory_available_bytes=self.sample.memory_available_bytes)


@pytest.mark.parametrize("squeezed", [replace(FINE, cpu_quota_cores=0.5), replace(FINE, memory_available_bytes=20 * MB)])
def test_a_squeeze_is_seen_between_two_looks_at_the_device(squeezed: Reading) -> None:
    """Of memory, or of the CPU: 10 requests a second of 40 ms are more than half a core has."""
    rig = Rig(device=Squeezable())
    controller = rig.controller(Budget(latency_ms=60.0))
    for _ in range(8):
        for _ in range(5):
            controller.arrive()
            controller.observe(rig.executor.name or "", PROFILES[rig.executor.name or ""].latency_ms)
            rig.clock.now_s += 0.1
        controller.step()
    assert rig.executor.name == "large"
    rig.device.sample, reads = squeezed, rig.device.reads
    controller.step()
    if rig.device.reads != reads:  # this one was a look
        rig.executor.name = "large"
        controller.step()
    assert rig.device.reads <= reads + 1
    assert rig.executor.name != "large"


def test_what_is_added_as_a_stall_is_not_multiplied_too() -> None:
    """Every tenth run stands still for 80 ms: for so long any route's may, and none takes three times as long."""
    rig, large_ms = Rig(), PROFILES["large"].latency_ms
    controller = rig.controller(Budget(latency_ms=100.0))
    for number in range(200):
        controller.observe("large", 3 * large_ms if number % 10 == 9 else large_ms)
        rig.clock.now_s += 0.05
        if number % 5 == 4:
            controller.step()
    reading = controller.reading
    assert reading is not None
    assert reading.stall_ms == pytest.approx(2 * large_ms, rel=0.05)
    assert reading.tail == pytest.approx(1.0)
    assert controller.decision is not None
    assert controller.decision.feasible, "a smaller one with the stall is inside"


def test_processor_time_beside_runs_is_learnt_and_counts_under_a_quota() -> None:
    """Ten requests a second of 40 ms on half a core, of which they may take 80 %: with 5 ms beside each they take 90 %, without 80 %."""
    taken = {}
    for beside_ms in (0.0, 5.0):
        rig, cpu_s = Rig(device=Squeezable()), [0.0]
        controller = rig.controller(Budget(latency_ms=60.0), cpu_s=lambda cpu_s=cpu_s: cpu_s[0])
        for second in range(6):
            for _ in range(10):
                controller.arrive()
                controller.observe("large", PROFILES["large"].latency_ms)
                rig.clock.now_s += 0.1
                cpu_s[0] += (PROFILES["large"].latency_ms * PROFILES["large"].threads + beside_ms) / 1e3
            assert controller.reading is None or (controller.reading.beside_cpu_ms is None) == (second < 4)
            controller.tick()
        assert controller.reading is not None
        assert controller.reading.beside_cpu_ms == pytest.approx(beside_ms)
        rig.device.sample = replace(FINE, cpu_quota_cores=0.5)
        controller.react()
        assert controller.reading.beside_cpu_ms == pytest.approx(beside_ms), "what is learnt at a look stays until the next"
        taken[beside_ms] = rig.executor.name
    assert taken[0.0] == "large"
    assert taken[5.0] != "large"


def test_a_glance_that_fails_changes_nothing() -> None:
    rig = Rig(device=Squeezable())
    controller = rig.controller()
    controller.tick()
    rig.device.sample = OSError("gone")
    controller.react()
    assert controller.reading is not None
    assert controller.reading.memory_available_bytes == FINE.memory_available_bytes
    assert rig.executor.name == "large"


def test_what_requests_take_beside_their_run_is_in_the_reading(rig: Rig) -> None:
    controller = rig.controller(Budget(latency_ms=60.0))
    for _ in range(4):
        for _ in range(5):
            controller.observe(rig.executor.name or "", PROFILES[rig.executor.name or ""].latency_ms, 30.0)
            rig.clock.now_s += 0.05
        controller.tick()
    assert controller.reading is not None
    assert controller.reading.around_ms == 30.0
    assert rig.executor.name == "middle", "40 and 30 are more than 60"


def test_a_change_of_the_requests_that_run_at_once_is_followed(rig: Rig) -> None:
    """On one core after another 30 requests a second of 40 ms queue up; on two at once they do not."""
    at_once = [2]
    controller = rig.controller(Budget(latency_ms=100.0), servers=lambda: at_once[0])

    def second() -> None:
        for _ in range(30):
            controller.arrive()
            controller.observe(rig.executor.name or "", PROFILES[rig.executor.name or ""].latency_ms)
            rig.clock.now_s += 1 / 30
        controller.tick()

    for _ in range(3):
        second()
    assert rig.executor.name == "large"
    at_once[0] = 1
    second()
    assert rig.executor.name == "middle"


def test_a_quota_that_is_lifted_is_climbed_after_without_the_patience_learnt_under_it() -> None:
    """Up and down again in a squeeze, each soon after the other: patience grows long, until the squeeze is over."""

    def controlled(quota: float | None) -> int:
        """Ticks until the large route serves once the device is quick again; quota: while it was squeezed."""
        rig = Rig()
        rig.device.sample = replace(FINE, cpu_quota_cores=quota)
        controller = rig.controller(Budget(latency_ms=60.0))
        for _ in range(12):
            rig.run(controller, 6, lambda name: PROFILES[name].latency_ms)
            rig.run(controller, 1, lambda name: 3 * PROFILES[name].latency_ms)
        rig.run(controller, 3, lambda name: 4 * PROFILES[name].latency_ms)
        assert rig.executor.name == "small"
        rig.device.sample = FINE
        return rig.run(controller, 200, lambda name: PROFILES[name].latency_ms).index("large")

    assert controlled(2.0) < controlled(None)


def test_a_share_of_memory_is_what_the_others_leave() -> None:
    table, share = Table("small", "middle", "large"), Neighbours()
    controller = Controller(table, Device(), share=share)
    assert controller.tick() is not None
    assert (table.name, controller.reading.others_memory_bytes, controller.memory_limit_bytes) == ("large", None, 1060 * MB - 32 * 2**20)
    share.others_bytes, share.limit_bytes = 990 * MB, 77
    controller.tick()
    assert (table.name, controller.reading.others_memory_bytes) == ("small", 990 * MB)
    assert controller.memory_limit_bytes == 77, "as the pool has it"
    assert controller.process_limit_bytes == 1060 * MB - 32 * 2**20, "all models together"
    share.others_bytes = None
    controller.budget = Budget(latency_ms=100.0)
    assert (table.name, controller.reading.others_memory_bytes, share.renewed) == ("large", None, 1)


def test_a_memory_limit_of_another_model_counts_but_is_not_ones_own() -> None:
    table, share = Table("small", "middle", "large"), Neighbours(others_bytes=10 * MB)
    controller = Controller(table, Device(), Budget(latency_ms=100.0), share=share)
    controller.tick()
    share.budget_bytes = 100 * MB
    controller.tick()
    assert (table.name, str(controller.budget), str(controller.status().budget)) == ("middle", "100 ms", "100 ms")
    assert controller.decision.limits == Budget(latency_ms=100.0, memory_bytes=90 * MB)
    assert controller.decide_request(Budget(memory_bytes=70 * MB)).route == "small", "of a request too, less what the others may take"
    assert controller.process_limit_bytes == 1060 * MB - 32 * 2**20
    controller.budget = Budget(memory_bytes=200 * MB)
    assert table.name == "middle", "the lowest counts"
    share.budget_bytes = None
    controller.reconsider()
    assert table.name == "large"
    controller.pin = "small"
    assert (table.name, share.renewed) == ("small", 2)
