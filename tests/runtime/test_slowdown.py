import math
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.reading import Reading
from restnet_runtime.slowdown import Slowdown, slowdown_by_threads, stretch


def feed(slowdown: Slowdown, *ratios: float) -> float | None:
    for ratio in ratios:
        slowdown.observe(ratio)
    return slowdown.tick()


def test_is_unknown_before_the_first_request() -> None:
    assert Slowdown().tick() is None


def test_moves_from_the_profile_towards_what_is_measured() -> None:
    slowdown = Slowdown(weight=0.5)
    assert [feed(slowdown, 3.0) for _ in range(3)] == [2.0, 2.5, 2.75]


def test_single_slow_requests_do_not_count() -> None:
    assert feed(Slowdown(), 1.0, 1.0, 80.0, 1.0, 1.0) == 1.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_ratio_is_left_out(ratio: float) -> None:
    assert feed(Slowdown(), ratio) is None


def test_holds_through_a_pause_then_is_unknown_and_starts_again_from_the_profile() -> None:
    slowdown = Slowdown(weight=0.5, stale_ticks=3)
    assert feed(slowdown, 5.0) == 3.0
    assert [slowdown.tick() for _ in range(4)] == [3.0, 3.0, None, None]
    assert feed(slowdown, 2.0) == 1.5


@given(ticks=st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), min_size=1, max_size=20))
def test_stays_between_the_profile_and_the_extremes(ticks: list[list[float]]) -> None:
    slowdown = Slowdown()
    seen = [1.0] + [ratio for ratios in ticks for ratio in ratios]
    for ratios in ticks:
        value = feed(slowdown, *ratios)
        assert value is not None
        assert min(seen) * (1 - 1e-12) <= value <= max(seen) * (1 + 1e-12)


def test_takes_requests_from_many_threads_while_ticking() -> None:
    slowdown = Slowdown()
    threads = [threading.Thread(target=lambda: [slowdown.observe(2.0) for _ in range(5000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        slowdown.tick()
    for thread in threads:
        thread.join()
    slowdown.observe(2.0)
    value = slowdown.tick()
    assert value is not None
    assert 1.5 <= value <= 2.0


def test_a_change_of_threads_converts_what_was_seen_before() -> None:
    """Two threads suffer twice as much: the value follows at once, without a tick that mixes both."""
    slowdown = Slowdown(relation=lambda threads: {1: 1.5, 2: 3.0}[threads])
    for _ in range(40):
        slowdown.observe(3.0, 2)
        value = slowdown.tick()
    assert value == pytest.approx(3.0)
    assert slowdown.threads == 2
    slowdown.observe(1.5, 1)
    assert slowdown.tick() == pytest.approx(1.5)
    assert slowdown.threads == 1
    slowdown.observe(1.5, 1)
    slowdown.observe(3.0, 2)
    assert slowdown.tick() == pytest.approx(3.0), "both kinds in one tick, in terms of the latest"


def test_what_the_profile_promises_is_not_converted() -> None:
    slowdown = Slowdown(relation=lambda threads: {1: 1.0, 2: 9.0}[threads])
    slowdown.observe(1.0, 2)
    assert slowdown.tick() == 1.0


QUIET = Reading(others_cpu_cores=0.0, waiting_share=0.0)


def test_alone_nothing_is_stretched() -> None:
    assert [stretch(threads, 2, QUIET) for threads in (1, 2)] == [1.0, 1.0]
    assert stretch(4, 4, Reading()) == 1.0


def test_one_thread_beside_one_neighbour_on_two_cores_is_not_slowed_and_two_are() -> None:
    reading = Reading(others_cpu_cores=1.0, waiting_share=0.0)
    assert stretch(1, 2, reading) == 1.0
    assert stretch(2, 2, reading) == 1.75, "between 1.5 and 2"
    assert stretch(2, 2, replace(reading, others_cpu_cores=2.0)) == 2.0


def test_a_quota_slows_down_by_what_it_takes_from_the_threads() -> None:
    reading = replace(QUIET, cpu_quota_cores=0.5)
    assert (stretch(1, 2, reading), stretch(2, 2, reading)) == (2.0, 4.0)
    assert stretch(1, 2, replace(QUIET, cpu_quota_cores=1.5)) == 1.0


def test_what_was_seen_stands_and_the_others_follow() -> None:
    reading = Reading(others_cpu_cores=1.0, waiting_share=0.0)
    stretched = {threads: stretch(threads, 2, reading) for threads in (1, 2)}
    assert slowdown_by_threads(1.0, 1, stretched) == {1: 1.0, 2: 1.75}
    assert slowdown_by_threads(3.5, 2, stretched) == {1: 2.0, 2: 3.5}
    assert slowdown_by_threads(3.0, 2, {2: 1.0}) == {2: 3.0}
    assert slowdown_by_threads(None, 1, stretched) is None


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 16), st.one_of(st.none(), st.floats(0.1, 8)))
def test_more_others_and_less_quota_never_make_quicker(threads: int, cores: int, others: float, quota: float | None) -> None:
    reading = Reading(others_cpu_cores=others, waiting_share=0.0, cpu_quota_cores=quota)
    value = stretch(threads, cores, reading)
    assert value >= 1.0
    assert stretch(threads, cores, replace(reading, others_cpu_cores=others + 0.5)) >= value
    if quota is not None:
        assert stretch(threads, cores, replace(reading, cpu_quota_cores=quota / 2)) >= value
