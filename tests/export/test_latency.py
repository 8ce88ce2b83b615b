"""Latencies of a bundle's routes on this machine."""

import pytest

from restnet_export.latency import measure_latencies
from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle, open_bundle
from restnet_runtime.profile import time_runs


@pytest.fixture
def digits() -> Bundle:
    return open_bundle(SHIPPED_BUNDLE)


class Clock:
    """Goes on by 4 ms a look, and by 2 ms after `slow` looks."""

    def __init__(self, slow: float) -> None:
        self.looks, self.now, self._slow = 0, 0.0, slow

    def __call__(self) -> float:
        self.looks += 1
        self.now += 0.004 if self.looks <= self._slow else 0.002
        return self.now


def test_the_quicker_of_two_times_counts(digits: Bundle) -> None:
    names = [route.name for route in digits.routes][:2]
    one = Clock(float("inf"))
    time_runs(lambda: None, one)
    # The first is timed first and last: only its second timing is quick.
    found = measure_latencies(digits, names, clock=Clock(3 * one.looks))
    assert found == pytest.approx({names[0]: 2.0, names[1]: 4.0})


def test_real_times_grow_with_the_network(digits: Bundle) -> None:
    cheapest, dearest = (choose(digits.routes, key=lambda route: route.macs).name for choose in (min, max))
    found = [measure_latencies(digits, [cheapest, dearest]) for _ in range(5)]
    least = {name: min(one[name] for one in found) for name in (cheapest, dearest)}  # any of them may meet a busy moment
    assert 0 < least[cheapest] < least[dearest] < 1000
