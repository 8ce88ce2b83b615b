import random

import pytest

from restnet_runtime.traffic import Traffic
from restnet_runtime.watch import Watch


def fed(ratios: list[float], slowdown: float = 1.0) -> Watch:
    """Ten requests a second, taken in at once."""
    watch = Watch()
    for index, ratio in enumerate(ratios):
        watch.observe(ratio, index / 10)
    watch.take(slowdown)
    return watch


def test_the_tail_is_what_most_requests_stay_within() -> None:
    rng = random.Random(1)
    watch = fed([rng.uniform(0.9, 1.1) for _ in range(400)])
    assert watch.take(1.0) == pytest.approx(1.095, abs=0.01)


def test_runs_that_stood_still_are_in_the_tail_and_not_in_the_steady_one() -> None:
    watch = fed(([1.0] * 8 + [1.1, 3.0]) * 20)
    assert watch.take(1.0) == pytest.approx(3.0)
    assert watch.steady_tail == pytest.approx(1.1)


def test_few_requests_and_those_of_a_change_tell_no_tail() -> None:
    assert fed([1.0] * 20).take(1.0) is None
    watch = fed([2.0] * 200)
    assert watch.take(1.0) is None, "twice as slow is no tail"


def test_two_much_longer_runs_in_a_row_are_an_alarm_and_one_is_not() -> None:
    watch = fed([1.0] * 100)
    assert not watch.observe(1.5, 11.0)
    assert watch.caution == 1.5
    assert not watch.observe(1.0, 11.1)
    assert watch.caution == 0.0
    assert not watch.observe(1.5, 11.2)
    assert watch.observe(1.5, 11.3)


def test_after_an_alarm_the_latest_are_believed_until_they_are_known() -> None:
    watch = fed([1.0] * 100)
    watch.observe(1.5, 11.0)
    watch.observe(1.5, 11.1)
    watch.alarm(11.1)
    assert watch.slowdown(1.1, 11.2) == 1.5
    assert watch.slowdown(1.5, 11.3) == 1.5
    assert watch.slowdown(1.3, 30.0) == 1.3


def test_outliers_of_a_long_tail_are_not_taken_for_a_slowdown_as_long() -> None:
    """One run of twenty takes three times as long; what made the alarm is such runs, and a prediction multiplies by the tail again."""
    watch = fed(([1.0] * 19 + [3.0]) * 10)
    tail = watch.take(1.0)
    assert tail == 3.0
    for index in range(3):
        watch.observe(3.9, 20.5 + index / 10)
    assert watch.caution * tail < 1.1 * 3.9, "what is predicted for the next request is what the last one took"
    watch.alarm(20.8)
    assert (watch.slowdown(1.0, 20.9) or 0) * tail < 1.1 * 3.9


def test_a_trend_is_led_on_and_a_relief_is_noticed() -> None:
    rising = fed([1.0 * 1.02**index for index in range(30)])
    assert (rising.slowdown(1.5, 2.9) or 0) > 1.02**29
    quick = fed([2.0] * 20 + [1.0] * 6)
    assert quick.slowdown(1.7, 2.6) == 1.0
    assert fed([2.0] * 20 + [1.0] * 4).slowdown(1.7, 2.4) == 1.7


def test_without_requests_nothing_is_known() -> None:
    assert Watch().slowdown(None, 5.0) is None
    assert Watch().take(None) is None


def test_the_rate_and_how_even_it_is() -> None:
    traffic = Traffic()
    assert traffic.take(0.0) == (None, None, None)
    for index in range(100):
        traffic.arrive(index * 0.02)
    rate, variation, waiting = traffic.take(2.0)
    assert rate == pytest.approx(50.0, rel=0.03)
    assert variation == pytest.approx(0.0, abs=1e-9)
    assert waiting is None
    rng, now_s = random.Random(0), 2.0
    for _ in range(200):
        now_s += rng.expovariate(50.0)
        traffic.arrive(now_s)
    assert traffic.take(now_s)[1] == pytest.approx(1.0, abs=0.5)
    assert traffic.arrived == 300


def test_waits_are_told_once() -> None:
    traffic = Traffic()
    for waited in (5.0, 1.0, 9.0):
        traffic.wait(waited)
    assert traffic.take(1.0)[2] == 5.0
    assert traffic.take(2.0)[2] is None
