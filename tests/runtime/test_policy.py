import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from restnet_runtime.budget import Budget
from restnet_runtime.errors import InfeasibleError, UnitError
from restnet_runtime.ladder import Ladder
from restnet_runtime.policy import Candidate, Decision, History, PolicySettings, choose_for_request, decide
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

MB = 1_000_000
SETTINGS = PolicySettings(memory_reserve_bytes=20 * MB)


def candidate(name: str, accuracy: float | None, macs: int, latency_ms: float | None = None, memory_mb: float = 50) -> Candidate:
    """A route without `latency_ms` has no profile."""
    route = Route(name, (name,), ("fp32",), macs, macs, macs, accuracy, True)
    return Candidate(route, None if latency_ms is None else RouteProfile(latency_ms, 2 * latency_ms, int(memory_mb * MB)))


SMALL = candidate("small", 0.80, 10, 10.0, 50)
MIDDLE = candidate("middle", 0.90, 20, 20.0, 80)
LARGE = candidate("large", 0.95, 40, 40.0, 120)
FAMILY = [SMALL, MIDDLE, LARGE]


def reading(slowdown: float | None = None, *, own_mb: int = 60, available_mb: float = 1000) -> Reading:
    return Reading(memory_available_bytes=int(available_mb * MB), own_memory_bytes=own_mb * MB, slowdown=slowdown)


class Loop:
    """Decides once a second, handing the history on, as the controller does."""

    def __init__(self, budget: Budget, candidates: Sequence[Candidate] = FAMILY, settings: PolicySettings = SETTINGS) -> None:
        self.budget, self.candidates, self.settings = budget, candidates, settings
        self.history = History()
        self.now_s = 100.0
        self.decisions: list[Decision] = []

    def step(self, sample: Reading) -> Decision:
        decision = decide(sample, self.budget, self.candidates, self.history, self.now_s, self.settings)
        self.history = decision.history
        self.now_s += 1.0
        self.decisions.append(decision)
        return decision

    def run(self, samples: Iterable[Reading]) -> list[str]:
        """The routes, one per sample."""
        return [self.step(sample).route for sample in samples]


def visits(routes: Sequence[str]) -> list[str]:
    return [route for index, route in enumerate(routes) if index == 0 or routes[index - 1] != route]


# What a decision is made from


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(), "large"),
        (Budget(latency_ms=40.0), "large"),
        (Budget(latency_ms=39.9), "middle"),
        (Budget(macs=19), "small"),
        (Budget(macs=20), "middle"),
        (Budget(memory_bytes=119 * MB), "middle"),
        (Budget(macs=40, latency_ms=30.0, memory_bytes=79 * MB), "small"),
    ],
)
def test_starts_on_the_most_accurate_that_fits(budget: Budget, expected: str) -> None:
    decision = decide(reading(), budget, FAMILY, History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == (expected, True)
    assert decision.reason == f"afresh: {expected} is the most accurate that fits"


def test_predicts_latency_as_profile_times_slowdown() -> None:
    assert decide(reading(1.5), Budget(latency_ms=30.0), FAMILY, History(), 0.0, SETTINGS).route == "middle"
    assert decide(reading(1.51), Budget(latency_ms=30.0), FAMILY, History(), 0.0, SETTINGS).route == "small"
    assert decide(reading(0.5), Budget(latency_ms=20.0), FAMILY, History(), 0.0, SETTINGS).route == "large"


def test_memory_is_limited_by_what_the_device_leaves_and_the_reserve() -> None:
    decision = decide(reading(own_mb=60, available_mb=79), Budget(memory_bytes=500 * MB), FAMILY, History(), 0.0, SETTINGS)
    assert decision.limits == Budget(memory_bytes=(60 + 79 - 20) * MB)
    assert decision.route == "middle"
    assert decide(reading(own_mb=60, available_mb=80), Budget(), FAMILY, History(), 0.0, SETTINGS).route == "large"


@given(
    own=st.integers(1, 300),
    available=st.integers(0, 300),
    others=st.integers(1, 200),
    limit=st.none() | st.integers(1, 400),
    slowdown=st.none() | st.floats(0.5, 3.0),
    current=st.sampled_from([None, "small", "middle", "large"]),
)
def test_what_other_models_may_take_is_as_if_it_were_not_there(
    own: int, available: int, others: int, limit: int | None, slowdown: float | None, current: str | None
) -> None:
    """A process with so much less for it all decides the same."""
    assume(own + available - others - 20 > 0)
    shared = Reading(memory_available_bytes=available * MB, own_memory_bytes=own * MB, others_memory_bytes=others * MB, slowdown=slowdown)
    alone = Reading(memory_available_bytes=(own + available - others) * MB - 1, own_memory_bytes=1, slowdown=slowdown)
    budget = Budget(latency_ms=50.0, memory_bytes=None if limit is None else limit * MB)
    less = Budget(latency_ms=50.0, memory_bytes=None if limit is None else max(1, (limit - others) * MB))
    one = decide(shared, budget, FAMILY, History(current, budget), 0.0, SETTINGS)
    other = decide(alone, less, FAMILY, History(current, less), 0.0, SETTINGS)
    assert (one.route, one.feasible, one.limits) == (other.route, other.feasible, other.limits)


def test_who_takes_memory_is_named() -> None:
    shared = reading().updated(others_memory_bytes=30 * MB)
    decision = decide(shared, Budget(memory_bytes=79 * MB), [MIDDLE], History(), 0.0, SETTINGS)
    assert decision.reason.endswith("memory 80 MB over the limit of 49 MB (what the other models leave)")
    tight = reading(available_mb=69).updated(others_memory_bytes=30 * MB)
    decision = decide(tight, Budget(), [MIDDLE], History(), 0.0, SETTINGS)
    assert decision.reason.endswith("memory 80 MB over the limit of 79 MB (what the device and the other models leave)")


def test_the_budget_limits_memory_where_it_is_lower() -> None:
    assert decide(reading(), Budget(memory_bytes=90 * MB), FAMILY, History(), 0.0, SETTINGS).limits == Budget(memory_bytes=90 * MB)


@pytest.mark.parametrize("sample", [Reading(own_memory_bytes=60 * MB), Reading(memory_available_bytes=1), Reading()])
def test_what_is_missing_limits_nothing(sample: Reading) -> None:
    decision = decide(sample, Budget(latency_ms=40.0), FAMILY, History(), 0.0, SETTINGS)
    assert (decision.route, decision.limits) == ("large", Budget(latency_ms=40.0))


def test_macs_rank_where_no_accuracy_was_measured() -> None:
    unmeasured = [candidate("a", None, 10, 1.0), candidate("c", None, 30, 3.0), candidate("b", None, 20, 2.0)]
    assert decide(reading(), Budget(macs=29), unmeasured, History(), 0.0, SETTINGS).route == "b"
    assert decide(reading(), Budget(), [*unmeasured, SMALL], History(), 0.0, SETTINGS).route == "small"


@pytest.mark.parametrize(
    "cheaper",
    [candidate("x", 0.9, 19, 20.0, 80), candidate("x", 0.9, 20, 19.0, 80), candidate("x", 0.9, 20, 20.0, 79)],
    ids=["macs", "ms", "MB"],
)
def test_of_equally_accurate_routes_the_cheaper_serves(cheaper: Candidate) -> None:
    for order in ([MIDDLE, cheaper], [cheaper, MIDDLE]):
        assert decide(reading(), Budget(), order, History(), 0.0, SETTINGS).route == "x"


def test_without_candidates_there_is_no_answer() -> None:
    with pytest.raises(InfeasibleError, match="none is loaded"):
        decide(reading(), Budget(), [], History(), 0.0)
    with pytest.raises(InfeasibleError, match="none is loaded"):
        choose_for_request(Budget(), Budget(macs=1), [], reading(), None)


# When nothing fits


def test_nothing_fits_serves_the_cheapest_and_says_why() -> None:
    decision = decide(reading(1.2), Budget(latency_ms=8.0), FAMILY, History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("small", False)
    assert decision.reason == "small serves although it does not fit: latency 12 ms over the limit of 8 ms (10 ms x slowdown 1.2)"


def test_every_broken_limit_is_named_with_its_figures() -> None:
    decision = decide(reading(own_mb=30, available_mb=30), Budget(5, 9.0, 45 * MB), [SMALL], History(), 0.0, SETTINGS)
    assert decision.reason == (
        "small serves although it does not fit: memory 50 MB over the limit of 45 MB, "
        "memory 50 MB over the limit of 40 MB (what the device has left), latency 10 ms over the limit of 9 ms, "
        "macs 10 MACs over the limit of 5 MACs"
    )


def test_figures_that_look_alike_are_written_out() -> None:
    decision = decide(reading(), Budget(macs=1_000_000), [candidate("x", 0.9, 1_000_001, 1.0)], History(), 0.0, SETTINGS)
    assert decision.reason.endswith("macs 1000001 over the limit of 1000000")


def test_memory_is_kept_before_latency_and_macs() -> None:
    lean = candidate("lean", 0.7, 100, 100.0, 30)
    decision = decide(reading(), Budget(macs=5, latency_ms=1.0, memory_bytes=40 * MB), [*FAMILY, lean], History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("lean", False)
    assert "memory" not in decision.reason


def test_where_no_route_keeps_memory_the_leanest_serves() -> None:
    lean = candidate("lean", 0.7, 100, 100.0, 30)
    decision = decide(reading(own_mb=20, available_mb=0), Budget(latency_ms=60.0), [*FAMILY, lean], History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("lean", False)
    assert "memory 30 MB over the limit of 1 B (what the device has left)" in decision.reason


# Routes without profile


def test_unknown_latency_does_not_fit_a_latency_limit() -> None:
    unknown = candidate("unknown", 0.99, 5)
    assert decide(reading(), Budget(), [*FAMILY, unknown], History(), 0.0, SETTINGS).route == "unknown"
    assert decide(reading(), Budget(latency_ms=20.0), [*FAMILY, unknown], History(), 0.0, SETTINGS).route == "middle"
    decision = decide(reading(), Budget(latency_ms=5.0), [*FAMILY, unknown], History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("unknown", False), "before routes that are known to be too slow"
    assert decision.reason.endswith("unknown latency (not profiled) under a limit of 5 ms")


def test_unknown_memory_does_not_fit_a_memory_budget() -> None:
    unknown = candidate("unknown", 0.99, 5)
    assert decide(reading(), Budget(memory_bytes=60 * MB), [*FAMILY, unknown], History(), 0.0, SETTINGS).route == "small"
    decision = decide(reading(), Budget(memory_bytes=10 * MB), [*FAMILY, unknown], History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("unknown", False)


def test_unknown_memory_is_what_the_process_has_under_the_sensed_limit() -> None:
    unknown = [candidate("less", 0.8, 5), candidate("more", 0.9, 50)]
    assert decide(reading(available_mb=20), Budget(), unknown, History(), 0.0, SETTINGS).route == "more"
    decision = decide(reading(available_mb=19), Budget(), unknown, History(), 0.0, SETTINGS)
    assert (decision.route, decision.feasible) == ("less", False)


# Over time


def test_goes_down_at_once_and_up_after_clean_ticks() -> None:
    loop = Loop(Budget(latency_ms=50.0))
    slow, fine = reading(2.0), reading(1.0)
    routes = loop.run([fine, slow, *[fine] * 7])
    assert routes == ["large", "middle", "middle", "middle", "middle", "middle", "large", "large", "large"]
    broken = "latency 80 ms over the limit of 50 ms (40 ms x slowdown 2)"
    assert loop.decisions[1].reason == f"large no longer fits: {broken}; middle does, predicted 40 ms"
    assert loop.decisions[2].reason == "middle stays: large fits, waiting (tick 1 of 5)"
    assert loop.decisions[6].reason == "large is better than middle and has fitted for 5 ticks"
    assert loop.decisions[7].reason == "large stays: nothing better fits"


def test_one_unclean_tick_starts_the_count_again() -> None:
    loop = Loop(Budget(latency_ms=50.0))
    slow, fine = reading(2.0), reading(1.0)
    routes = loop.run([fine, slow, *[fine] * 4, slow, *[fine] * 5])
    assert routes == ["large", *["middle"] * 10, "large"]


def test_goes_up_past_the_middle_when_all_is_well_again() -> None:
    loop = Loop(Budget(latency_ms=50.0))
    assert visits(loop.run([reading(1.0), reading(4.0), *[reading(1.0)] * 9])) == ["large", "small", "large"]


def test_the_dwell_holds_a_climb_that_has_its_clean_ticks() -> None:
    loop = Loop(Budget(latency_ms=50.0), settings=PolicySettings(up_after_ticks=1, dwell_s=4.0))
    assert loop.run([reading(1.0), reading(2.0), *[reading(1.0)] * 5]) == ["large", *["middle"] * 4, "large", "large"]
    assert loop.decisions[2].reason == "middle stays: large fits, waiting (the dwell to end)"


def test_the_dwell_never_holds_a_fall() -> None:
    loop = Loop(Budget(latency_ms=50.0), settings=PolicySettings(dwell_s=1000.0))
    assert loop.run([reading(1.0), reading(2.0), reading(4.0)]) == ["large", "middle", "small"]


def test_entering_needs_a_margin_and_staying_does_not() -> None:
    """Limit 50 ms, large takes 40: it stays up to slowdown 1.25 and comes back at 1.136."""
    loop = Loop(Budget(latency_ms=50.0))
    assert visits(loop.run([reading(1.25)] * 10)) == ["large"]
    assert visits(loop.run([reading(1.26), *[reading(1.14)] * 50])) == ["middle"]
    assert loop.decisions[-1].reason == "middle stays: nothing better fits"
    assert visits(loop.run([reading(1.13)] * 58)) == ["middle"], "by so little it takes twelve times the ticks"
    assert visits(loop.run([reading(1.13)] * 3)) == ["middle", "large"]


def test_credit_bears_the_tail_and_no_more() -> None:
    """Limit 50 ms, large takes 40: with a tail of 1.2 it stays up to slowdown 1.04, with full credit up to 1.25."""
    loop = Loop(Budget(latency_ms=50.0))
    assert visits(loop.run([replace(reading(1.0), tail=1.2)] * 2)) == ["large"]
    assert visits(loop.run([replace(reading(1.2), tail=1.2, credit=1.0)] * 20)) == ["large"]
    assert loop.decisions[-1].feasible
    assert visits(loop.run([replace(reading(1.2), tail=1.2, credit=0.1)])) == ["middle"]
    assert visits(loop.run([replace(reading(1.2), tail=1.2, credit=1.0)] * 20)) == ["middle"], "credit is for staying"
    over = Loop(Budget(latency_ms=50.0))
    over.step(replace(reading(1.0), tail=1.2))
    assert visits(over.run([replace(reading(1.26), tail=1.2, credit=1.0)])) == ["middle"]


def test_a_route_that_enters_by_little_is_climbed_to_by_what_requests_took() -> None:
    """Limit 50 ms, large takes 40: all but the slowest of 15 s have to stay within 1.21 times the profile."""
    loop = Loop(Budget(latency_ms=50.0))
    loop.run([reading(2.0)])
    assert visits(loop.run([replace(reading(1.2), tail=1.0, ceilings={4: 1.0, 15: 1.23})] * 50)) == ["middle"]
    assert visits(loop.run([replace(reading(1.2), tail=1.0, ceilings={4: 1.0, 15: 1.2})] * 6)) == ["large"]


def test_a_route_that_was_left_by_a_hair_is_climbed_to_again_only_with_room() -> None:
    """Noise that lets it fall once lets it fall again; 4 % less than what a minute of requests took is another device."""
    loop = Loop(Budget(latency_ms=50.0))
    loop.run([reading(1.2)])
    assert loop.run([replace(reading(1.26), tail=1.0)]) == ["middle"]
    same = replace(reading(1.2), tail=1.0, ceilings={4: 1.0, 15: 1.2, 60: 1.2})
    assert visits(loop.run([same] * 300)) == ["middle"]
    assert visits(loop.run([replace(same, ceilings={4: 1.0, 15: 1.2, 60: 1.17})] * 2)) == ["large"]


def test_a_climb_by_little_has_to_win_something() -> None:
    """Of a ladder that reaches from 80 % to 90 %, a fiftieth."""
    ladder = Ladder([candidate("worst", 0.80, 1), candidate("good", 0.897, 8), candidate("better", 0.8985, 9), candidate("best", 0.90, 10)])
    best, better, good, _ = ladder.rungs
    assert ladder.worth(good, best)
    assert not ladder.worth(better, best)
    unknown = candidate("unknown", None, 5)
    first, second = Ladder([unknown, candidate("other", None, 6)]).rungs
    assert ladder.worth(second, first)


@pytest.mark.parametrize(("variation", "patience"), [(1.0, 0), (0.0, 2 * SETTINGS.up_after_ticks)])
def test_requests_that_meet_by_chance_are_no_reason_to_regret_a_climb(variation: float, patience: int) -> None:
    budget = Budget(latency_ms=42.0)
    history = History("large", budget, {}, 0, 99.5, 99.5)
    crowd = replace(reading(1.0), requests_per_s=23.0, gap_variation=variation)
    decision = decide(crowd, budget, FAMILY, history, 100.0, SETTINGS)
    assert decision.route != "large"
    assert decision.history.patience_ticks == patience


def test_with_credit_a_run_may_hold_up_more_requests_that_come_at_random() -> None:
    """10 a second, quickest 10 ms, limit 49: a run of 40 ms holds up one in a hundred beyond the limit, more than usually is dared."""
    crowd = replace(reading(1.0), requests_per_s=10.0, gap_variation=1.0)
    routes = [
        decide(replace(crowd, credit=credit), Budget(latency_ms=49.0), FAMILY, History(), 0.0, SETTINGS).route for credit in (0.5, 1.0)
    ]
    assert routes == ["middle", "large"]


def test_entering_needs_a_margin_of_sensed_memory_too() -> None:
    """large takes 120 MB: it enters when the device leaves more than 132."""
    loop = Loop(Budget())
    assert loop.run([reading(available_mb=79)]) == ["middle"]
    assert visits(loop.run([reading(available_mb=91)] * 20)) == ["middle"]
    assert visits(loop.run([reading(available_mb=93)] * 20)) == ["middle", "large"]


def test_exact_limits_have_no_margin() -> None:
    loop = Loop(Budget(macs=40, memory_bytes=120 * MB), [SMALL])
    loop.step(reading())
    loop.candidates = FAMILY
    assert visits(loop.run([reading()] * 10)) == ["small", "large"]


@pytest.mark.parametrize(("before", "after", "expected"), [(50.0, 20.0, "middle"), (20.0, 40.0, "large")], ids=["down", "up"])
def test_a_new_budget_acts_at_once_both_ways(before: float, after: float, expected: str) -> None:
    loop = Loop(Budget(latency_ms=before))
    loop.step(reading())
    loop.budget = Budget(latency_ms=after)
    decision = loop.step(reading())
    assert (decision.route, decision.reason) == (expected, f"new budget: {expected} is the most accurate that fits")


def test_a_route_that_is_gone_is_replaced_at_once() -> None:
    loop = Loop(Budget())
    loop.step(reading())
    loop.candidates = [SMALL, MIDDLE]
    decision = loop.step(reading())
    assert (decision.route, decision.reason) == ("middle", "large is gone: middle is the most accurate that fits")


def test_a_climb_that_is_regretted_doubles_the_patience() -> None:
    """The large route itself slows the device down: each stay there is followed by a longer wait."""
    loop = Loop(Budget(latency_ms=50.0))
    sample = reading(1.0)
    for _ in range(1000):
        sample = reading(2.0 if loop.step(sample).route == "large" else 1.0)
    routes = [decision.route for decision in loop.decisions]
    waits = [len(part) for part in "".join("L" if route == "large" else "m" for route in routes).split("L") if part]
    assert waits[:5] == [5, 10, 20, 40, 80]
    assert set(waits[5:-1]) == {160}


def test_patience_is_forgotten_after_a_climb_that_held() -> None:
    loop = Loop(Budget(latency_ms=50.0))
    slow, fine = reading(2.0), reading(1.0)
    loop.run([fine, slow, *[fine] * 5, slow])
    assert loop.history.patience_ticks == 10
    loop.run([fine] * 50)
    assert loop.run([slow, *[fine] * 5]) == [*["middle"] * 5, "large"]
    assert loop.history.patience_ticks == 0


def test_a_second_fall_after_one_climb_does_not_double_again() -> None:
    loop = Loop(Budget(latency_ms=50.0))
    loop.run([reading(1.0), reading(2.0), *[reading(1.0)] * 5, reading(2.0), reading(4.0)])
    assert loop.history.current == "small"
    assert loop.history.patience_ticks == 10


def test_over_the_limit_by_little_and_nothing_better_stays() -> None:
    """Both are just too slow; the fewer macs of the other are no reason to move to and fro."""
    quick = candidate("quick", 0.9, 30, 10.0)
    cheap = candidate("cheap", 0.8, 10, 15.0)
    loop = Loop(Budget(latency_ms=10.0), [quick, cheap])
    assert loop.run([reading(1.0), reading(1.05), reading(0.99), reading(1.09)]) == ["quick"] * 4
    assert [decision.feasible for decision in loop.decisions] == [True, False, True, False]
    assert loop.run([reading(1.2), reading(1.2)]) == ["cheap", "cheap"]


def test_into_half_of_the_reserve_and_nothing_better_stays() -> None:
    """The quick route takes 100 MB; what the device leaves goes from 100 to 91 and 89."""
    quick = candidate("quick", 0.9, 30, 10.0, 100)
    late = candidate("late", 0.8, 10, 30.0, 50)
    loop = Loop(Budget(latency_ms=20.0), [quick, late])
    samples = [reading(own_mb=100, available_mb=mb) for mb in (20, 11, 20, 9, 11)]
    assert loop.run(samples) == ["quick", "quick", "quick", "late", "late"]
    assert [decision.feasible for decision in loop.decisions] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [("up_after_ticks", 0), ("dwell_s", -1.0), ("margin", float("nan")), ("memory_reserve_bytes", -1), ("regret_s", float("inf"))],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(UnitError, match=f"policy setting {field}={value!r} must be at least"):
        PolicySettings(**{field: value})


# One request


def test_a_request_without_narrower_limits_is_served_by_the_current_route() -> None:
    for limits in (Budget(), Budget(latency_ms=60.0), Budget(macs=40)):
        decision = choose_for_request(Budget(latency_ms=50.0), limits, FAMILY, reading(), "middle", SETTINGS)
        assert (decision.route, decision.feasible) == ("middle", True)


def test_a_narrower_request_gets_the_best_that_fits_it() -> None:
    decision = choose_for_request(Budget(latency_ms=50.0), Budget(latency_ms=25.0), FAMILY, reading(), "large", SETTINGS)
    assert (decision.route, decision.feasible, decision.limits) == (
        "middle",
        True,
        Budget(latency_ms=25.0, memory_bytes=1_040 * MB),
    )
    assert decision.history == History()


def test_a_request_that_nothing_fits_is_told_so() -> None:
    decision = choose_for_request(Budget(), Budget(macs=9), FAMILY, reading(), "large", SETTINGS)
    assert (decision.route, decision.feasible) == ("small", False)
    assert "macs 10 MACs over the limit of 9 MACs" in decision.reason


def test_a_request_does_not_wait_for_the_next_decision_to_leave_a_route_that_no_longer_fits() -> None:
    decision = choose_for_request(Budget(latency_ms=50.0), Budget(), FAMILY, reading(2.0), "large", SETTINGS)
    assert (decision.route, decision.feasible) == ("middle", True)


def test_a_request_before_any_route_serves_gets_the_best() -> None:
    assert choose_for_request(Budget(), Budget(), FAMILY, reading(), None, SETTINGS).route == "large"


# Laws


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


budgets = st.builds(
    Budget,
    macs=maybe(st.integers(1, 60)),
    latency_ms=maybe(st.floats(1, 60)),
    memory_bytes=maybe(st.integers(1, 300).map(lambda mb: mb * MB)),
)
readings = st.builds(
    Reading,
    memory_available_bytes=maybe(st.integers(-50, 300).map(lambda mb: mb * MB)),
    own_memory_bytes=maybe(st.integers(1, 300).map(lambda mb: mb * MB)),
    slowdown=maybe(st.floats(0.3, 5)),
)


@st.composite
def families(draw: st.DrawFn) -> list[Candidate]:
    """Some without accuracy, half of them with a route without profile, costs in no particular order."""
    latencies = st.floats(1, 60) if draw(st.booleans()) else maybe(st.floats(1, 60))
    made = [
        candidate(
            f"r{index}",
            draw(maybe(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]))),
            draw(st.integers(1, 60)),
            draw(latencies),
            draw(st.integers(1, 300)),
        )
        for index in range(draw(st.integers(1, 6)))
    ]
    return draw(st.permutations(made))


def fits(item: Candidate, sample: Reading, budget: Budget, settings: PolicySettings = SETTINGS) -> bool:
    """Said again in the plainest way, to check the policy against."""
    profile, slowdown = item.profile, 1.0 if sample.slowdown is None else sample.slowdown
    if budget.macs is not None and item.route.macs > budget.macs:
        return False
    if budget.latency_ms is not None and (profile is None or profile.latency_ms * slowdown > budget.latency_ms):
        return False
    if budget.memory_bytes is not None and (profile is None or profile.memory_bytes > budget.memory_bytes):
        return False
    if sample.own_memory_bytes is not None and sample.memory_available_bytes is not None:
        left = max(1, sample.own_memory_bytes + sample.memory_available_bytes - settings.memory_reserve_bytes)
        return (sample.own_memory_bytes if profile is None else profile.memory_bytes) <= left
    return True


def settings_for(family: Sequence[Candidate]) -> PolicySettings:
    """Where routes differ by less than the reserve, a quarter of that is kept free."""
    sizes = [item.profile.memory_bytes for item in family if item.profile is not None]
    spread = max(sizes) - min(sizes) if sizes else 0
    return replace(SETTINGS, memory_reserve_bytes=spread // 4) if 0 < spread < SETTINGS.memory_reserve_bytes else SETTINGS


def merit(item: Candidate) -> tuple[bool, float]:
    accuracy = item.route.accuracy
    return (accuracy is not None, item.route.macs if accuracy is None else accuracy)


def named(family: Sequence[Candidate], name: str) -> Candidate:
    return next(item for item in family if item.route.name == name)


@pytest.mark.untraced
@given(family=families(), steps=st.lists(st.tuples(readings, budgets | st.none()), min_size=1, max_size=12))
def test_never_over_a_budget_that_some_route_fits(family: list[Candidate], steps: list[tuple[Reading, Budget | None]]) -> None:
    """Whatever happens before: always an answer, feasible whenever one is possible, and never said to fit when it does not."""
    loop = Loop(Budget(), family)
    for sample, budget in steps:
        loop.budget = budget or loop.budget
        decision = loop.step(sample)
        chosen = named(family, decision.route)
        assert decision.feasible == fits(chosen, sample, loop.budget, settings_for(family))
        assert decision.feasible == any(fits(item, sample, loop.budget, settings_for(family)) for item in family)
        assert decision.history.current == decision.route
        assert decision.reason


@pytest.mark.untraced
@given(family=families(), sample=readings, budget=budgets)
def test_a_fresh_start_takes_the_best_and_stays(family: list[Candidate], sample: Reading, budget: Budget) -> None:
    loop = Loop(budget, family)
    routes = loop.run([sample] * 12)
    fitting = [merit(item) for item in family if fits(item, sample, budget, settings_for(family))]
    if fitting:
        assert merit(named(family, routes[0])) == max(fitting)
    assert visits(routes) == routes[:1]


@pytest.mark.untraced
@given(family=families(), first=readings, sample=readings, budget=budgets)
def test_a_constant_reading_settles_at_one_route(family: list[Candidate], first: Reading, sample: Reading, budget: Budget) -> None:
    loop = Loop(budget, family)
    loop.step(first)
    routes = loop.run([sample] * 40)
    assert len(visits(routes)) == len(set(routes)), "no route is left and entered again"
    assert visits(routes[30:]) == routes[-1:]


@pytest.mark.untraced
@given(
    family=families(),
    first=readings,
    sample=readings,
    budget=budgets,
    seed=st.integers(0, 2**32),
)
def test_noise_in_latency_does_not_make_it_flap(
    family: list[Candidate], first: Reading, sample: Reading, budget: Budget, seed: int
) -> None:
    """No route is left and entered again: the extremes are less than the margin apart."""
    loop = Loop(budget, family)
    loop.step(first)
    rng, usual = random.Random(seed), sample.slowdown or 1.0
    noisy = [replace(sample, slowdown=usual * rng.choice([0.96, 1.04, rng.uniform(0.96, 1.04)])) for _ in range(40)]
    routes = visits(loop.run(noisy))
    assert len(routes) == len(set(routes))


@pytest.mark.untraced
@given(latency_ms=st.floats(5, 60), usual=st.floats(0.3, 5), at=st.floats(0.95, 1.05), seed=st.integers(0, 2**32))
def test_noise_around_the_limit_of_a_route_does_not_make_it_flap(latency_ms: float, usual: float, at: float, seed: int) -> None:
    """A better route needs what the limit is, give or take 5 %: it is entered once at most, and left once at most."""
    family = [candidate("small", 0.8, 1, 1.0), candidate("large", 0.9, 10, latency_ms)]
    loop = Loop(Budget(latency_ms=latency_ms * usual * at), family)
    loop.step(reading(3 * usual))
    rng = random.Random(seed)
    routes = visits(loop.run([reading(usual * rng.choice([0.96, 0.98, 1.0, 1.02, 1.04])) for _ in range(300)]))
    assert len(routes) == len(set(routes))


@pytest.mark.untraced
@given(
    family=families(),
    first=readings,
    own_mb=st.integers(1, 300),
    left_mb=st.integers(100, 400),
    slowdown=maybe(st.floats(0.3, 5)),
    budget=budgets,
    seed=st.integers(0, 2**32),
)
def test_noise_in_memory_does_not_make_it_flap(
    family: list[Candidate], first: Reading, own_mb: int, left_mb: int, slowdown: float | None, budget: Budget, seed: int
) -> None:
    """Up to 9 MB to and fro: less than the margin of what is left, and less than half the reserve, which a family of equals has less of."""
    loop = Loop(budget, family)
    loop.step(first)
    rng, usual = random.Random(seed), left_mb - own_mb + 20
    most = min(9.0, 0.45 * settings_for(family).memory_reserve_bytes / MB)
    noisy = [reading(slowdown, own_mb=own_mb, available_mb=usual - rng.choice([0, most, rng.uniform(0, most)])) for _ in range(40)]
    routes = visits(loop.run(noisy))
    assert len(routes) == len(set(routes))


@pytest.mark.untraced
@given(family=families(), sample=readings, tight=budgets, more=budgets)
def test_a_looser_budget_never_gives_a_worse_route(family: list[Candidate], sample: Reading, tight: Budget, more: Budget) -> None:
    """In steady state, started fresh or loosened while serving."""
    loose = Budget(*(None if a is None or b is None else a + b for a, b in zip(_limits(tight), _limits(more), strict=True)))
    served = Loop(tight, family)
    before = served.run([sample] * 12)[-1]
    assume(served.decisions[-1].feasible)
    fresh = Loop(loose, family).run([sample] * 12)[-1]
    served.budget = loose
    after = served.run([sample] * 12)[-1]
    assert merit(named(family, fresh)) >= merit(named(family, before))
    assert merit(named(family, after)) == merit(named(family, fresh))


@given(family=families(), sample=readings, standing=budgets, request=budgets, data=st.data())
def test_a_request_never_loosens(family: list[Candidate], sample: Reading, standing: Budget, request: Budget, data: st.DataObject) -> None:
    current = data.draw(st.sampled_from([item.route.name for item in family]))
    decision = choose_for_request(standing, request, family, sample, current, SETTINGS)
    chosen = named(family, decision.route)
    both = fits(chosen, sample, standing, settings_for(family)) and fits(chosen, sample, request, settings_for(family))
    assert decision.feasible == both
    assert decision.limits.narrowed(standing.narrowed(request)) == decision.limits
    serving = named(family, current)
    if fits(serving, sample, standing, settings_for(family)) and fits(serving, sample, request, settings_for(family)):
        assert decision.route == current, "no better route than the one that the standing budget chose"
    else:
        assert decision.feasible == any(
            fits(item, sample, standing, settings_for(family)) and fits(item, sample, request, settings_for(family)) for item in family
        )


def _limits(budget: Budget) -> tuple[float | None, ...]:
    return (budget.macs, budget.latency_ms, budget.memory_bytes)


# The floor, the pin, the queue


def test_below_the_floor_nothing_is_chosen_and_requests_are_refused() -> None:
    fitting = decide(reading(), Budget(latency_ms=25.0, min_accuracy=0.85), FAMILY, History(), 0.0, SETTINGS)
    assert (fitting.route, fitting.feasible, fitting.refused) == ("middle", True, False)
    tight = decide(reading(), Budget(latency_ms=15.0, min_accuracy=0.85), FAMILY, History(), 0.0, SETTINGS)
    assert (tight.route, tight.feasible, tight.refused) == ("middle", False, True), "small would fit, and is below the floor"
    none = decide(reading(), Budget(min_accuracy=0.99), FAMILY, History(), 0.0, SETTINGS)
    assert none.refused
    assert "accuracy 95.00% below the floor of 99%" in none.reason


def test_a_request_may_bring_a_floor_of_its_own() -> None:
    decision = choose_for_request(Budget(latency_ms=50.0), Budget.parse("90%"), FAMILY, reading(), "small", SETTINGS)
    assert (decision.route, decision.limits.min_accuracy) == ("large", 0.9), "small serves, and is below it"


def test_a_pin_holds_whatever_it_costs() -> None:
    decision = decide(reading(3.0), Budget(latency_ms=50.0), FAMILY, History("small", Budget()), 0.0, SETTINGS, pin="large")
    assert (decision.route, decision.feasible) == ("large", False)
    assert choose_for_request(Budget(), Budget(macs=1), FAMILY, reading(), "small", SETTINGS, pin="large").route == "large"
    instead = decide(reading(), Budget(), [SMALL, MIDDLE], History(), 0.0, SETTINGS, pin="large")
    assert instead.route == "middle", "as long as it is loaded"
    assert instead.reason.endswith("(large is pinned, but not loaded)")
    asked = choose_for_request(Budget(), Budget(macs=1), [SMALL, MIDDLE], reading(), "middle", SETTINGS, pin="large")
    assert (asked.route, asked.feasible) == ("small", False)
    assert "over the limit of 1 MACs (large is pinned, but not loaded)" in asked.reason


def test_a_growing_queue_is_left_before_requests_are_late() -> None:
    """Each run of the large route keeps the limit; 30 a second keep it busier than a second has time for."""
    loop = Loop(Budget(latency_ms=50.0))
    loop.step(reading())
    decision = loop.step(replace(reading(), requests_per_s=30.0))
    assert (decision.route, decision.feasible) == ("middle", True)
    assert "the queue grows: 30 requests/s of 40 ms keep it 120% busy" in decision.reason
    waiting = replace(reading(), requests_per_s=22.0, waiting_ms=140.0)
    assert "of it waiting" in Loop(Budget(latency_ms=50.0), [LARGE]).step(waiting).reason


def test_the_tail_counts_and_is_told() -> None:
    decision = decide(
        replace(reading(1.5), tail=1.1), Budget(latency_ms=32.0), FAMILY, History("middle", Budget(latency_ms=32.0)), 0.0, SETTINGS
    )
    assert decision.route == "small"
    assert "latency 33 ms over the limit of 32 ms (20 ms x slowdown 1.5 x tail 1.1); small does, predicted 16.5 ms" in decision.reason


def test_what_a_request_takes_beside_its_run_counts_and_is_told() -> None:
    limit = Budget(latency_ms=50.0)
    decision = decide(replace(reading(), around_ms=15.0), limit, FAMILY, History("large", limit), 0.0, SETTINGS)
    assert decision.route == "middle"
    assert "latency 55 ms over the limit of 50 ms (40 ms + 15 ms of decoding and the like)" in decision.reason
    most = decide(replace(reading(), around_ms=1e6), limit, FAMILY, History("small", limit), 0.0, SETTINGS)
    assert (most.route, most.feasible) == ("small", True), "half of the limit is left to the run: no route makes up for the rest"


loads = st.builds(
    Reading,
    slowdown=maybe(st.floats(0.3, 5)),
    tail=maybe(st.floats(1, 2)),
    requests_per_s=maybe(st.floats(0.1, 200)),
    gap_variation=maybe(st.floats(0, 4)),
    waiting_ms=maybe(st.floats(0, 200)),
    cpu_quota_cores=maybe(st.floats(0.1, 4)),
    request_threads=maybe(st.integers(1, 4)),
    beside_cpu_ms=maybe(st.floats(0, 50)),
)


@pytest.mark.untraced
@given(family=families(), sample=loads, tight=budgets, more=budgets)
def test_under_load_a_looser_budget_never_gives_a_worse_route(
    family: list[Candidate], sample: Reading, tight: Budget, more: Budget
) -> None:
    loose = Budget(*(None if a is None or b is None else a + b for a, b in zip(_limits(tight), _limits(more), strict=True)))
    before, after = (decide(sample, budget, family, History(), 0.0, SETTINGS) for budget in (tight, loose))
    if before.feasible:
        assert after.feasible
        assert merit(named(family, after.route)) >= merit(named(family, before.route))


@pytest.mark.untraced
@given(family=families(), sample=loads, budget=budgets)
def test_under_load_there_is_always_an_answer_with_a_reason(family: list[Candidate], sample: Reading, budget: Budget) -> None:
    loop = Loop(budget, family)
    decisions = [loop.step(sample) for _ in range(3)]
    assert all(decision.reason for decision in decisions)
    assert len({decision.feasible for decision in decisions}) == 1
    if not decisions[0].feasible:
        assert (
            " over the limit" in decisions[0].reason
            or "queue" in decisions[0].reason
            or "hold up" in decisions[0].reason
            or "CPU quota" in decisions[0].reason
            or ("unknown" in decisions[0].reason)
        )


def test_a_stall_adds_to_a_run_so_a_shorter_route_has_more_room() -> None:
    """Multiplied it would rule out both: 40 ms of standing still are four times the run of the small one."""
    budget = Budget(latency_ms=80.0)
    calm = decide(reading(1.5), budget, FAMILY, History(), 1.0, SETTINGS)
    assert calm.route == "large"
    stalled = decide(replace(reading(1.5), stall_ms=40.0), budget, FAMILY, calm.history, 2.0, SETTINGS)
    assert (stalled.route, stalled.feasible) == ("middle", True)
    assert "40 ms for which runs stand still" in stalled.reason
    hopeless = decide(replace(reading(1.5), stall_ms=500.0), budget, FAMILY, calm.history, 2.0, SETTINGS)
    assert hopeless.route == "middle", "no more than half of the limit is put down to stalls: no route could make up for more"
