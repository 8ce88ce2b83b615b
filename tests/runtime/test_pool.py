"""The pool: how memory is divided as budgets, requests and what is loaded change, on a clock that the test turns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from restnet_runtime.common_sensors import CommonSensors
from restnet_runtime.pool import Pool
from restnet_runtime.reading import Reading
from restnet_runtime.sharing import Offer, Option
from restnet_runtime.turn import Turn

MB = 10**6


@dataclass
class Wishes:
    """A tenant that says what the test wants: a small route of 10 MB and a large one of 50."""

    name: str
    process_limit_bytes: int | None = None
    budget_bytes: int | None = None
    loaded_bytes: int = 0
    rate: float = 0.0
    options: tuple[Option, ...] = field(default=(Option("small", 10 * MB, 0.8), Option("large", 50 * MB, 0.9)))

    def rate_per_s(self, _now_s: float) -> float:
        return self.rate

    def offer(self, weight: float, held: str | None) -> Offer:
        return Offer(self.options, weight, max(option.need_bytes for option in self.options), held)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Shared:
    """Two models in one pool; the process takes 100 MB without routes, whatever is loaded."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pool = Pool(self.clock)
        self.pool.common.baseline.overhead_bytes = 100 * MB
        self.tenants = Wishes("a"), Wishes("b")
        self.a, self.b = self.pool.place(), self.pool.place()
        self.a.take(self.tenants[0])  # type: ignore[arg-type]
        self.b.take(self.tenants[1])  # type: ignore[arg-type]

    def limit(self, megabytes: int | None) -> None:
        """What the device leaves, which every tenant reads."""
        for tenant in self.tenants:
            tenant.process_limit_bytes = None if megabytes is None else megabytes * MB

    def held(self) -> list[str | None]:
        plan = self.pool.plan()
        assert plan is not None
        return [None if share.option is None else share.option.route for share in plan.shares]

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.now_s += 0.25
            self.pool.plan()


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_a_model_alone_has_everything() -> None:
    pool = Pool()
    place = pool.place()
    assert (place.others_bytes, place.reserved_bytes, place.limit_bytes, place.resting, place.model) == (None,) * 5
    place.take(Wishes("a", process_limit_bytes=MB))  # type: ignore[arg-type]
    assert (place.others_bytes, place.reserved_bytes, place.limit_bytes, place.resting, place.model) == (None,) * 5
    assert (place.whole(77), place.to_load(110), place.admits(10**15)) == (77, pytest.approx(100), True)


def test_without_a_limit_nothing_is_divided(shared: Shared) -> None:
    assert (shared.a.others_bytes, shared.a.limit_bytes, shared.a.whole(None), shared.a.to_load(None)) == (0, None, None, None)
    assert shared.a.admits(10**15)


def test_the_lowest_limit_of_all_models_is_that_of_the_process(shared: Shared) -> None:
    shared.limit(1000)
    shared.tenants[1].process_limit_bytes = 180 * MB
    shared.tenants[1].budget_bytes = 180 * MB
    assert shared.a.budget_bytes == shared.b.budget_bytes == 180 * MB
    assert shared.a.whole(0) == 180 * MB
    assert shared.held() == ["large", "small"]
    shared.tenants[1].process_limit_bytes = 1000 * MB
    shared.a.renew()
    assert shared.held() == ["large", "large"]


def test_limits_of_the_models_add_up_to_that_of_the_process(shared: Shared) -> None:
    for megabytes in range(220, 112, -1):
        shared.limit(megabytes)
        shared.clock.now_s += 0.25
        a, b = shared.a.reserved_bytes, shared.b.reserved_bytes
        assert a is not None
        assert b is not None
        assert 100 * MB + a + b <= megabytes * MB, megabytes
        assert (shared.a.others_bytes, shared.b.others_bytes) == (b, a)
        assert (shared.a.limit_bytes, shared.b.limit_bytes) == (megabytes * MB - b, megabytes * MB - a)


def test_a_lower_limit_counts_at_once_and_a_higher_one_soon(shared: Shared) -> None:
    shared.limit(250)
    assert shared.held() == ["large", "large"]
    shared.limit(190)
    assert shared.held() == ["large", "small"], "no waiting, though no time has passed"
    shared.limit(250)
    assert shared.held() == ["large", "small"]
    shared.clock.now_s += 0.25
    assert shared.held() == ["large", "large"]


def test_what_the_process_takes_without_routes_counts_at_once(shared: Shared) -> None:
    shared.limit(250)
    assert shared.held() == ["large", "large"]
    shared.pool.common.baseline.overhead_bytes = 150 * MB
    assert shared.held() == ["large", "small"]


def test_memory_follows_the_requests_but_not_at_once(shared: Shared) -> None:
    shared.limit(190)
    assert shared.held() == ["large", "small"]
    shared.tenants[1].rate = 100.0
    shared.pass_s(8)
    assert shared.held() == ["large", "small"], "nothing is taken for what may be over in a moment"
    shared.pass_s(4)
    assert shared.held() == ["small", "large"]
    shared.tenants[0].rate = 99.0
    shared.pass_s(30)
    assert shared.held() == ["small", "large"], "nor for a difference that is none"


def test_a_model_without_room_rests_and_says_why(shared: Shared) -> None:
    shared.limit(125)
    assert shared.held() == ["small", None], "a tenth has to stay free for what comes"
    shared.limit(115)
    assert shared.held() == ["small", None]
    assert (shared.a.resting, shared.b.reserved_bytes, shared.b.limit_bytes) == (None, 0, (115 - 15) * MB)
    assert shared.b.resting is not None
    assert "small, its cheapest route, takes 10 MB" in shared.b.resting
    shared.limit(121)
    shared.clock.now_s += 1
    assert shared.held() == ["small", None], "to come back it needs a little more than to stay"
    shared.limit(140)
    shared.clock.now_s += 1
    assert shared.held() == ["small", "small"]
    shared.limit(123)
    assert shared.held() == ["small", "small"]


def test_a_load_waits_until_the_others_have_released(shared: Shared) -> None:
    shared.limit(190)
    assert shared.held() == ["large", "small"]
    shared.tenants[1].loaded_bytes = 50 * MB
    assert not shared.a.admits(50 * MB)
    assert shared.a.admits(40 * MB)
    shared.tenants[1].loaded_bytes = 10 * MB
    assert shared.a.admits(50 * MB)
    shared.limit(90)
    assert not shared.a.admits(10 * MB), "the other one has to release first"
    shared.tenants[1].loaded_bytes = 0
    assert shared.a.admits(10 * MB), "the first serves in any case"
    assert not shared.b.admits(10 * MB)


def test_who_comes_takes_nothing_that_others_need_to_stay(shared: Shared) -> None:
    """Held is held, though a new model would have to leave a tenth free for the same."""
    shared.limit(250)
    assert shared.held() == ["large", "large"]
    shared.limit(216)
    assert shared.held() == ["large", "large"]
    third = shared.pool.place()
    third.take(Wishes("c", process_limit_bytes=216 * MB))  # type: ignore[arg-type]
    assert shared.held() == ["large", "large", "small"]
    shared.limit(205)
    assert shared.held() == ["large", "small", "small"], "its cheapest comes before a better route of another"
    shared.limit(170)
    third.leave()
    assert shared.held() == ["large", "small"]


def test_who_follows_another_is_first_and_takes_nothing_from_the_third(shared: Shared) -> None:
    """A bundle that takes the place of the first while both are loaded: what the second holds it keeps, and who is first never rests."""
    shared.limit(216)
    shared.tenants[1].rate = 1.0
    shared.pass_s(1)
    assert shared.held() == ["small", "large"]
    new = shared.pool.place()
    new.take(Wishes("a", process_limit_bytes=216 * MB))  # type: ignore[arg-type]
    new.follow(shared.a)
    assert [tenant.name for tenant in shared.pool.tenants] == ["a", "b", "a"]
    assert shared.held() == ["small", "large", "small"]
    shared.limit(112)
    assert shared.held() == ["small", None, None]
    shared.a.leave()
    shared.limit(216)
    shared.pass_s(1)
    assert (new.resting, shared.held()) == (None, ["small", "large"])


def test_who_leaves_leaves_everything_to_the_other(shared: Shared) -> None:
    shared.limit(190)
    assert shared.b.others_bytes == 50 * MB + 38 * 10**5 // 2
    shared.a.leave()
    shared.a.leave()
    assert (shared.b.others_bytes, shared.b.limit_bytes) == (None, None)


class Counted:
    """Sensors that count how often the device is looked at."""

    def __init__(self) -> None:
        self.reads = self.glances = self.closed = 0

    def read(self) -> Reading:
        self.reads += 1
        return Reading(load_1m=float(self.reads), memory_available_bytes=1000)

    def glance(self, last: Reading) -> Reading:
        self.glances += 1
        return last.updated(memory_available_bytes=self.glances)

    def cgroup_limits(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def sensors(counted: Counted) -> tuple[CommonSensors, Clock]:
    clock = Clock()
    return CommonSensors(lambda: counted, clock), clock  # type: ignore[arg-type, return-value]


def test_the_device_is_read_once_for_all_models(sensors: tuple[CommonSensors, Clock], counted: Counted) -> None:
    common, clock = sensors
    views = [common.view(1.0, 0.25) for _ in range(3)]
    for second in range(10):
        for place, view in enumerate(views):
            clock.now_s = second + place * 0.3
            assert view.read().load_1m == second + 1
    assert counted.reads == 10
    last = [Reading(load_1m=float(place)) for place in range(3)]
    for beat in range(40):
        for place, view in enumerate(views):
            clock.now_s = 20 + beat * 0.25 + place * 0.05
            seen = view.glance(last[place])
            assert (seen.memory_available_bytes, seen.load_1m) == (beat + 1, float(place)), "the rest is the model's own"
    assert counted.glances == 40


def test_alone_every_look_is_a_new_one(sensors: tuple[CommonSensors, Clock], counted: Counted) -> None:
    common, _ = sensors
    view = common.view(1.0, 0.25)
    assert [view.read().load_1m for _ in range(3)] == [1.0, 2.0, 3.0]
    assert counted.reads == 3


def test_sensors_are_closed_with_the_last_view(sensors: tuple[CommonSensors, Clock], counted: Counted) -> None:
    common, _ = sensors
    first, second = common.view(1.0, 0.25), common.view(1.0, 0.25)
    first.close()
    first.close()
    assert counted.closed == 0
    second.close()
    assert counted.closed == 1
    assert second.read().load_1m == 1.0, "who asks late still gets an answer"


def test_an_old_reading_is_not_handed_on(sensors: tuple[CommonSensors, Clock]) -> None:
    common, clock = sensors
    first, second = common.view(1.0, 0.25), common.view(1.0, 0.25)
    first.read()
    clock.now_s = 0.9
    assert second.read().load_1m == 2.0


def in_thread(work: Callable[[], object]) -> "object":
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result(30)


def test_a_turn_is_taken_again_by_its_holder_and_by_nobody_else() -> None:
    turn = Turn()
    with turn, turn:
        assert in_thread(lambda: turn.acquire(lambda: True)) is False
    assert in_thread(lambda: turn.acquire(lambda: True)) is True


def test_those_who_wait_for_a_turn_get_it_as_they_came() -> None:
    import threading
    import time

    turn, order = Turn(), []
    turn.acquire()

    def load(name: str) -> None:
        for _ in range(3):
            with turn:
                order.append(name)
                time.sleep(0.01)

    threads = []
    for name in ("a", "b", "c"):
        threads.append(threading.Thread(target=load, args=(name,)))
        threads[-1].start()
        while len(turn._waiting) < len(threads):
            time.sleep(0.001)
    turn.release()
    for thread in threads:
        thread.join(30)
    assert order[:3] == ["a", "b", "c"]
    assert sorted(order) == sorted("abc" * 3)
    assert order[3:6].count("a") == 1, "who has had a turn waits behind the others"
