from dataclasses import replace

import pytest

from restnet_runtime.profile import RouteProfile, compare_runs
from restnet_runtime.reading import Reading, RouteLatency
from restnet_runtime.refinement import Refiner, is_quiet

QUIET = Reading(others_cpu_cores=0.0, waiting_share=0.0)
BUSY = replace(QUIET, others_cpu_cores=1.5)


class Table:
    """An executor without networks: routes take `true_ms` where it is quiet, and `busy` times that when they are compared."""

    def __init__(self, true_ms: dict[str, float], profiles: dict[str, RouteProfile], busy: float = 1.0) -> None:
        self.true_ms, self.profiles, self.busy = true_ms, profiles, busy
        self.asked: list[tuple[str, bool]] = []
        self.compared: list[tuple[str, str]] = []

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self.profiles)

    def profile(self, name: str) -> RouteProfile | None:
        return self.profiles.get(name)

    def refine(self, name: str, *, quiet: bool = False) -> None:
        self.asked.append((name, quiet))
        if quiet:
            self.correct(name, self.true_ms[name])

    def compare(self, name: str, reference: str, rounds: int = 6) -> list[float]:
        self.compared.append((name, reference))
        return [self.true_ms[name] * self.busy / (self.true_ms[reference] * self.busy)] * rounds

    def correct(self, name: str, latency_ms: float) -> None:
        self.profiles[name] = replace(self.profiles[name], latency_ms=latency_ms)


def profiles(threads: int = 2, **latencies_ms: float) -> dict[str, RouteProfile]:
    return {name: RouteProfile(latency_ms, 2 * latency_ms, 1, threads) for name, latency_ms in latencies_ms.items()}


def steps(refiner: Refiner, count: int) -> None:
    for _ in range(count):
        refiner.step()


def test_each_route_is_timed_once_more_and_again_when_it_is_quiet() -> None:
    table, reading = Table({"a": 10, "b": 20}, profiles(a=10, b=20)), [BUSY]
    refiner = Refiner(table, lambda: reading[0], 2)
    steps(refiner, 5)
    assert table.asked == [("a", False), ("b", False)]
    reading[0] = QUIET
    steps(refiner, 5)
    assert table.asked[2:] == [("a", True), ("b", True)]
    refiner.forget("b")
    steps(refiner, 5)
    assert table.asked[4:] == [("b", True)], "once is enough where it is quiet at once"


def test_before_the_first_reading_nothing_is_taken_for_quiet() -> None:
    table = Table({"a": 10}, profiles(a=10))
    steps(Refiner(table, lambda: None, 2), 3)
    assert table.asked == [("a", False)]


def test_on_a_busy_device_profiles_come_to_agree_though_none_is_right() -> None:
    """Each was taken in another moment: one twice too slow, one three times. Then one slowdown holds for all."""
    table = Table({"a": 10, "b": 20, "c": 40}, profiles(a=20, b=20, c=120), busy=3.0)
    refiner = Refiner(table, lambda: BUSY, 2)
    steps(refiner, 100)
    assert {name: profile.latency_ms for name, profile in table.profiles.items()} == {"a": 20, "b": 40, "c": 80}
    assert table.profiles["c"].p95_ms > 80
    assert set(table.compared) == {("b", "a"), ("c", "a")}
    assert len(table.compared) == 8, "four times six turns each, then it is left alone"


def test_then_a_quiet_moment_puts_them_right() -> None:
    table, reading = Table({"a": 10, "b": 20}, profiles(a=30, b=20)), [BUSY]
    refiner = Refiner(table, lambda: reading[0], 2)
    steps(refiner, 10)
    reading[0] = QUIET
    steps(refiner, 2)
    assert {name: profile.latency_ms for name, profile in table.profiles.items()} == {"a": 10, "b": 20}
    reading[0], before = BUSY, len(table.compared)
    steps(refiner, 20)
    assert len(table.compared) == before


def test_what_was_timed_quietly_is_the_reference() -> None:
    table, reading = Table({"a": 10, "b": 20}, profiles(b=20, a=30)), [QUIET]
    refiner = Refiner(table, lambda: reading[0], 2)
    refiner.step()
    reading[0] = BUSY
    table.profiles |= profiles(c=7)
    table.true_ms["c"] = 40
    steps(refiner, 30)
    assert set(table.compared) == {("a", "b"), ("c", "b")}
    assert (table.profiles["a"].latency_ms, table.profiles["c"].latency_ms) == (10, 40)


def test_only_routes_of_as_many_threads_are_compared() -> None:
    table = Table({"a": 10, "b": 20, "c": 30}, profiles(a=10) | profiles(1, b=20, c=90))
    steps(Refiner(table, lambda: BUSY, 2), 30)
    assert set(table.compared) == {("c", "b")}
    assert table.profiles["c"].latency_ms == 30


def test_a_profile_that_is_hardly_off_stays() -> None:
    table = Table({"a": 10, "b": 20}, profiles(a=10, b=21))
    steps(Refiner(table, lambda: BUSY, 2), 30)
    assert table.profiles["b"].latency_ms == 21


@pytest.mark.parametrize(
    ("reading", "quiet"),
    [
        (QUIET, True),
        (replace(QUIET, throttled=()), True),
        (BUSY, False),
        (replace(QUIET, waiting_share=0.2), False),
        (replace(QUIET, throttled=("under-voltage",)), False),
        (replace(QUIET, cpu_quota_cores=0.5), False),
        (Reading(), False),
    ],
)
def test_what_is_quiet(reading: Reading, quiet: bool) -> None:
    assert is_quiet(reading, 2) is quiet


def test_turns_find_the_quotient_whatever_the_load() -> None:
    """The clock runs twice as fast in every second round: both programs are as much slower."""
    now_s, rounds = [0.0], [0]

    def program(takes_s: float):
        def run() -> None:
            now_s[0] += takes_s * (1 + rounds[0] // 2 % 2)
            rounds[0] += 1

        return run

    assert compare_runs(program(0.03), program(0.01), lambda: now_s[0], 4) == pytest.approx([3.0] * 4)


def test_slow_programs_have_at_least_one_turn() -> None:
    now_s = [0.0]

    def run() -> None:
        now_s[0] += 0.2

    assert compare_runs(run, run, lambda: now_s[0], max_s=0.3) == [1.0]


class Traffic:
    """Requests that run for `share` of the time, and a clock that a timing takes `takes_s` of."""

    def __init__(self, table: Table, share: float, takes_s: float) -> None:
        self.now_s, self.busy_s, self.share, self.spent_s = 0.0, 0.0, share, 0.0
        refine, compare = table.refine, table.compare

        def taking(what):
            def timed(*args, **options):
                self.pass_(takes_s)
                self.spent_s += takes_s
                return what(*args, **options)

            return timed

        table.refine, table.compare = taking(refine), taking(compare)

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds * self.share


def test_beside_requests_timing_takes_little_of_the_time() -> None:
    table = Table({"a": 10, "b": 20, "c": 30}, profiles(a=10, b=20, c=30))
    traffic = Traffic(table, share=0.5, takes_s=0.05)
    refiner = Refiner(table, lambda: BUSY, 2, lambda: traffic.busy_s, lambda: traffic.now_s)
    for _ in range(300):
        traffic.pass_(1.0)
        refiner.step()
    assert 3 * 0.05 <= traffic.spent_s <= 0.01 * traffic.now_s
    assert not table.asked, "only single rounds, of which each holds up one request at most"


@pytest.mark.parametrize("pressed", [replace(BUSY, credit=0.2), replace(BUSY, cpu_quota_cores=0.5)])
def test_no_timing_while_requests_are_late_or_there_is_a_quota(pressed: Reading) -> None:
    table = Table({"a": 10, "b": 20}, profiles(a=10, b=20))
    traffic, reading = Traffic(table, share=0.5, takes_s=0.3), [pressed]
    refiner = Refiner(table, lambda: reading[0], 2, lambda: traffic.busy_s, lambda: traffic.now_s)
    for _ in range(60):
        traffic.pass_(1.0)
        refiner.step()
    assert not table.asked
    assert not table.compared
    traffic.share = 0.0
    traffic.pass_(1.0)
    refiner.step()
    assert table.asked, "without requests nobody is disturbed"


def test_a_single_turn_puts_no_profile_right() -> None:
    """Beside requests there is one turn at a time: one that met a busy moment must not be believed."""

    class Disturbed(Table):
        def compare(self, name: str, reference: str, rounds: int = 6) -> list[float]:
            first = not self.compared
            return [0.1] * rounds if super().compare(name, reference, rounds) and first else [2.0] * rounds

    table = Disturbed({"a": 10, "b": 20}, profiles(a=10, b=20))
    traffic, seen = Traffic(table, share=0.5, takes_s=0.01), []
    refiner = Refiner(table, lambda: BUSY, 2, lambda: traffic.busy_s, lambda: traffic.now_s)
    for _ in range(200):
        traffic.pass_(1.0)
        refiner.step()
        seen.append(table.profiles["b"].latency_ms)
    assert len(table.compared) > 5
    assert set(seen) == {20}


@pytest.mark.parametrize(
    ("live", "profiled_ms"),
    [
        (RouteLatency(5.0, 9.0, 20, 2), 5.0),
        (RouteLatency(30.0, 40.0, 20, 2), 12.0),  # slower: that is what the slowdown is for
        (RouteLatency(11.5, 12.0, 20, 2), 12.0),
        (RouteLatency(5.0, 9.0, 3, 2), 12.0),
        (RouteLatency(5.0, 9.0, 20, 1), 12.0),
    ],
)
def test_requests_that_are_quicker_than_the_profile_put_it_right_even_under_a_quota(live: RouteLatency, profiled_ms: float) -> None:
    table = Table({"a": 5}, profiles(a=12.0))
    traffic = Traffic(table, share=0.5, takes_s=0.3)
    reading = replace(BUSY, cpu_quota_cores=0.5, latencies={"a": live, "gone": live})
    refiner = Refiner(table, lambda: reading, 2, lambda: traffic.busy_s, lambda: traffic.now_s)
    traffic.pass_(1.0)
    refiner.step()
    assert table.profiles["a"].latency_ms == profiled_ms
    assert not table.asked
