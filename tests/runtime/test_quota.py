import math

import pytest

from restnet_runtime.budget import Budget
from restnet_runtime.ladder import Candidate
from restnet_runtime.policy import History, choose_for_request, decide
from restnet_runtime.profile import RouteProfile
from restnet_runtime.quota import AT_RANDOM, BUSIEST, EVENLY, PERIOD_MS, longest_run_ms, share_taken
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

SMALL = Candidate(Route("small", ("a",), ("fp32",), 10, 1, 1, 0.70, True), RouteProfile(18.0, 20.0, 1, 2))
LARGE = Candidate(Route("large", ("b",), ("fp32",), 20, 1, 1, 0.80, True), RouteProfile(39.0, 42.0, 1, 2))
HALF = Reading(cpu_quota_cores=0.5, requests_per_s=6.0, slowdown=1.0, tail=1.05, request_threads=2)


def test_all_runs_together_take_a_share_of_the_quota() -> None:
    longest = longest_run_ms(0.5, 1, 10.0, math.inf)
    assert share_taken(0.5, 1, 10.0, longest) == pytest.approx(BUSIEST)
    assert longest_run_ms(0.5, 2, 10.0, math.inf) == pytest.approx(longest / 2), "two threads take twice as much"


@pytest.mark.parametrize(("variation", "most"), [(0.0, EVENLY), (1.0, AT_RANDOM), (3.0, AT_RANDOM), (None, AT_RANDOM)])
def test_what_is_known_to_be_taken_beside_runs_counts_and_then_they_may_take_more(variation: float | None, most: float) -> None:
    longest = longest_run_ms(0.5, 2, 10.0, math.inf, 4.0, variation)
    assert share_taken(0.5, 2, 10.0, longest, 4.0) == pytest.approx(most)
    assert longest > longest_run_ms(0.5, 2, 10.0, math.inf)
    assert longest_run_ms(0.5, 2, 10.0, math.inf, 50.0, variation) == 0.0, "it takes the quota whole"


def test_a_run_ends_within_what_a_period_gives_it_or_waits_for_the_next() -> None:
    # Half a core for two threads: a quarter of the period, then three quarters in which nothing runs.
    assert longest_run_ms(0.5, 2, None, 60.0) == pytest.approx(0.9 * PERIOD_MS / 4)
    assert longest_run_ms(0.5, 2, None, 200.0) == pytest.approx(200.0 - 0.75 * PERIOD_MS)
    assert longest_run_ms(2.0, 2, None, 60.0) == 60.0, "as many cores as threads: it is never stopped"


def test_a_quota_is_answered_before_any_request_was_slow() -> None:
    """The requests so far were as quick as profiled: only the quota says that the large one cannot be."""
    limit = Budget(latency_ms=70.0)
    serving = History("large", limit)
    before = decide(Reading(requests_per_s=6.0, slowdown=1.0, tail=1.05, request_threads=2), limit, [SMALL, LARGE], serving, 0.0)
    after = decide(HALF, limit, [SMALL, LARGE], serving, 0.0)
    assert (before.route, after.route, after.feasible) == ("large", "small", True)
    assert "94% of the CPU quota of 0.5 cores" in after.reason


def test_a_route_stays_where_the_quota_bears_it_with_all_that_is_beside_it() -> None:
    """Runs of the large one take 49 % of it: too much where nothing is known of the rest, and little enough where that is 7 %."""
    limit, serving = Budget(latency_ms=90.0), History("large", Budget(latency_ms=90.0))
    families, unknown = [SMALL, LARGE], HALF.updated(cpu_quota_cores=0.95)
    known = unknown.updated(beside_cpu_ms=11.0)
    assert decide(unknown, limit, families, serving, 0.0).route == "small"
    assert decide(known, limit, families, serving, 0.0).route == "large"
    heavy = decide(known.updated(requests_per_s=8.0, beside_cpu_ms=20.0), limit, families, serving, 0.0)
    assert heavy.route == "small"
    assert "8 requests/s, runs of 39 ms on 2 threads and 20 ms of processor time beside each, would take 83% of" in heavy.reason


def test_a_single_run_that_the_quota_stops_is_told() -> None:
    seldom = Reading(cpu_quota_cores=0.5, requests_per_s=0.5, slowdown=1.0, tail=1.05, request_threads=2)
    decision = decide(seldom, Budget(latency_ms=70.0), [SMALL, LARGE], History("large", Budget(latency_ms=70.0)), 0.0)
    assert decision.route == "small"
    assert "would be stopped by the CPU quota of 0.5 cores" in decision.reason


def test_without_a_latency_limit_a_quota_rules_nothing_out() -> None:
    assert choose_for_request(Budget(), Budget(), [SMALL, LARGE], HALF, "large").route == "large"
    assert decide(HALF, Budget(), [SMALL, LARGE], History(), 0.0).feasible
