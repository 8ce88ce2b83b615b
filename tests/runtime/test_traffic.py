"""Traffic: the rate, and how even the gaps are, told from the latest arrivals."""

import random
from itertools import pairwise

import pytest

from restnet_runtime.traffic import Traffic


def arrivals(traffic: Traffic, gaps: list[float]) -> float:
    """Let requests come with these gaps, asked in between as a controller does; the time of the last."""
    now_s = 0.0
    traffic.take(now_s)
    for index, gap in enumerate(gaps):
        now_s += gap
        traffic.arrive(now_s)
        if index % 5 == 0:
            traffic.take(now_s)
    return now_s


def test_even_gaps_have_no_variation_and_their_rate_is_told() -> None:
    traffic = Traffic()
    rate, variation, waiting_ms = traffic.take(arrivals(traffic, [0.125] * 40))
    assert rate == pytest.approx(8.0)
    assert variation == pytest.approx(0.0)
    assert waiting_ms is None


def test_the_variation_is_that_of_the_latest_gaps() -> None:
    rng, traffic = random.Random(1), Traffic()
    gaps = [0.01] * 50 + [rng.expovariate(20.0) for _ in range(200)]
    variation = traffic.take(arrivals(traffic, gaps))[1]
    latest = [3.0 * ((one - other) / (one + other)) ** 2 for one, other in pairwise(gaps[-48:])]
    assert variation == pytest.approx(sum(latest) / len(latest))
    assert 0.7 < variation < 1.3, "at random"


def test_too_few_gaps_tell_nothing() -> None:
    traffic = Traffic()
    assert traffic.take(arrivals(traffic, [0.1] * 8))[1] is None
    traffic = Traffic()
    assert traffic.take(arrivals(traffic, [0.1] * 9))[1] is not None


def test_a_second_of_more_or_fewer_by_chance_is_no_other_rate() -> None:
    rng, traffic = random.Random(2), Traffic()
    now_s = arrivals(traffic, [rng.expovariate(4.0) for _ in range(60)])
    usual = traffic.take(now_s)[0]
    assert usual is not None
    assert 2.0 < usual < 6.0
    assert traffic.take(now_s + 1.5)[0] == pytest.approx(usual, rel=0.3), "a second without any"
    for _ in range(30):
        now_s += 0.03
        traffic.arrive(now_s)
    crowd = traffic.take(now_s)[0]
    assert crowd is not None
    assert crowd > 20.0, "this is no chance"


def test_the_next_in_the_queue_is_the_first_that_came_later() -> None:
    traffic = Traffic()
    for at_s in (1.00, 1.05, 1.08):
        traffic.arrive(at_s)
    assert traffic.behind_ms(1.1, 100.0) == pytest.approx(50.0)
    assert traffic.behind_ms(1.1, 50.0) == pytest.approx(20.0)
    assert traffic.behind_ms(1.1, 20.0) is None, "nobody"
    assert traffic.behind_ms(1.1, 0.0) is None, "who has not waited has nobody behind"
