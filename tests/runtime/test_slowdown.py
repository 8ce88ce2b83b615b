import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.slowdown import Slowdown


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
