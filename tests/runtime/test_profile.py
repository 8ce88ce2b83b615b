"""Profiles: percentiles by their definition, and how many runs are timed on which clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.profile import Timing, percentile, time_runs


class Clock:
    """Every call of `work` takes `cost_s`; reading the clock takes nothing."""

    def __init__(self, cost_s: float) -> None:
        self.now_s, self.cost_s, self.calls = 0.0, cost_s, 0

    def work(self) -> None:
        self.now_s += self.cost_s
        self.calls += 1

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("cost_s", "calls"), [(0.0, 50), (0.001, 50), (0.0125, 24), (0.3, 5), (10.0, 5)], ids=["free", "quick", "middling", "slow", "very slow"]
)
def test_as_many_runs_as_fit(cost_s: float, calls: int) -> None:
    clock = Clock(cost_s)
    times = time_runs(clock.work, clock)
    assert clock.calls == calls == len(times)
    assert times == pytest.approx([cost_s * 1e3] * calls)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50), st.floats(0, 1))
def test_percentile_is_the_smallest_that_enough_values_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    enough = math.ceil(share * len(values))
    assert found in values
    assert sum(value <= found for value in values) >= enough
    assert all(sum(other <= value for other in values) < enough for value in values if value < found)


def test_known_percentiles() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0, 0.5, 0.95, 1)] == [1.0, 2.0, 3.0, 3.0]


def test_of_two_timings_the_quicker_counts() -> None:
    busy, quiet = Timing.of([9.0, 8.0, 30.0]), Timing.of([2.0, 3.0, 4.0])
    assert (busy, quiet) == (Timing(9.0, 30.0), Timing(3.0, 4.0))
    assert busy.better(quiet) == quiet.better(busy) == quiet
