import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from restnet_runtime.budget import Budget
from restnet_runtime.course import Course, make_course
from restnet_runtime.errors import TraceError
from restnet_runtime.ladder import Candidate
from restnet_runtime.oracle import Oracle
from restnet_runtime.profile import RouteProfile
from restnet_runtime.replay import Run, feasible, replay, score
from restnet_runtime.replay_plot import plot
from restnet_runtime.replays import Replays, find_traces, play, play_all, render, replay_budget
from restnet_runtime.rivals import OURS, Always, Cast, TwoAnchors
from restnet_runtime.routes import Route
from restnet_runtime.traces import Moment, Trace, write_trace
from restnet_runtime.weather import WEATHER, Climate, make_trace

MB = 10**6


def family(*routes: tuple[str, float, float, float]) -> list[Candidate]:
    """Each: name, accuracy, ms, MB. Costs go by the time."""
    return [
        Candidate(Route(name, (name,), ("fp32",), int(1e3 * ms), 1, 1, accuracy, True), RouteProfile(ms, 1.05 * ms, int(mb * MB)))
        for name, accuracy, ms, mb in routes
    ]


DIGITS = family(
    ("s", 0.940, 12.5, 57),
    ("a", 0.982, 17.8, 62),
    ("b", 0.990, 24.2, 69),
    ("c", 0.991, 31.0, 77),
    ("d", 0.990, 36.0, 85),
    ("l", 0.994, 47.0, 130),
)
WIDE = family(*((f"w{index:02}", 0.70 + 0.12 * (index / 70) ** 0.5, 10.0 * 12 ** (index / 70), 60 + 5 * index) for index in range(71)))


def course_of(moments: list[Moment], end_s: float, candidates: list[Candidate], limit_ms: float, **options: float) -> Course:
    return make_course(Trace("test", tuple(moments), end_s), candidates, limit_ms, spread=0.0, **options)


def quiet(course: Course) -> Course:
    """Without the rare long runs."""
    return replace(course, noise=(1.0,) * len(course.noise))


def test_requests_queue_behind_each_other() -> None:
    """20 requests a second of 100 ms each: the n-th waits 50 ms more than the one before."""
    course = quiet(course_of([Moment(0.0, 1.0, 1e9, 1.0, 20.0)], 0.5, family(("only", 0.9, 100.0, 50)), 1000.0))
    run = replay(course, Always("always", 0))
    assert run.response_ms == pytest.approx([100 + 50 * index for index in range(10)])


def test_a_run_takes_profile_times_slowdown_over_share_and_the_budget_holds_memory_too() -> None:
    moments = [Moment(0.0, 1.0, 1e9, 1.0, 1.0), Moment(1.0, 0.5, 1e9, 1.5, 1.0), Moment(2.0, 1.0, 49e6, 1.0, 1.0)]
    course = quiet(course_of(moments, 3.0, family(("only", 0.9, 10.0, 50)), 25.0))
    run = replay(course, Always("always", 0))
    assert run.response_ms == pytest.approx([10.0, 30.0, 10.0])
    assert run.met == (True, False, False)
    assert feasible(course) == (True, False, False)


def test_arrivals_follow_the_rate_across_rows() -> None:
    moments = [Moment(0.0, 1.0, 1e9, 1.0, 2.0), Moment(1.25, 1.0, 1e9, 1.0, 0.0), Moment(2.0, 1.0, 1e9, 1.0, 4.0)]
    course = course_of(moments, 3.0, DIGITS, 60.0)
    assert course.arrivals_s == pytest.approx([0.25, 0.75, 2.0, 2.25, 2.5, 2.75])
    random = course_of([Moment(0.0, 1.0, 1e9, 1.0, 100.0)], 100.0, DIGITS, 60.0, at_random=True)
    assert len(random.arrivals_s) == pytest.approx(10_000, rel=0.05)


def test_the_oracle_wins_what_the_best_of_all_ways_wins() -> None:
    """Six requests that hold each other up, every way tried."""
    moments = [Moment(0.0, 1.0, 1e9, 1.0, 25.0), Moment(0.12, 0.8, 1e9, 1.0, 40.0)]
    candidates = family(("s", 0.8, 12.0, 50), ("m", 0.9, 30.0, 60), ("l", 0.95, 55.0, 70))
    course = course_of(moments, 0.19, candidates, 62.0)
    assert 5 <= len(course.arrivals_s) <= 7

    class Planned(Always):
        def __init__(self, plan: tuple[int, ...]) -> None:
            super().__init__("planned", 0)
            self._plan = iter(plan)

        def choose(self, _now_s: float, _waited_ms: float) -> int:
            return next(self._plan)

    def worth(run: Run) -> tuple[int, float]:
        return sum(run.met), sum(course.fares[route].accuracy for route, met in zip(run.routes, run.met, strict=True) if met)

    best = max(worth(replay(course, Planned(plan))) for plan in itertools.product(range(3), repeat=len(course.arrivals_s)))
    found = worth(replay(course, Oracle(course, 0, 0.0)))
    assert found[0] == best[0]
    assert found[1] == pytest.approx(best[1], abs=0.16), "waits are rounded up by at most a cell"
    assert found[1] > worth(replay(course, Always("small", 0)))[1]


def test_late_answers_win_nothing() -> None:
    moments = [Moment(0.0, 1.0, 1e9, 1.0, 1.0), Moment(5.0, 0.5, 1e9, 1.0, 1.0)]
    candidates = family(("s", 0.8, 10.0, 50), ("l", 0.9, 40.0, 60))
    course = quiet(course_of(moments, 10.0, candidates, 50.0))
    can, oracle = feasible(course), replay(course, Oracle(course, 0))
    large = score(course, replay(course, Always("always large", 1)), can, 0, oracle)
    assert (large.over_budget_share, large.accuracy_mean, large.accuracy_won_share) == (0.5, pytest.approx(0.9), pytest.approx(1.0))
    small = score(course, replay(course, Always("always small", 0)), can, 0, oracle)
    assert (small.over_budget_share, small.accuracy_won_share, small.regret) == (0.0, 0.0, pytest.approx(0.05))


def test_a_reload_makes_requests_wait() -> None:
    moments = [Moment(0.0, 1.0, 1e9, 1.0, 10.0), Moment(5.0, 0.5, 1e9, 1.0, 10.0)]
    candidates = family(("s", 0.8, 10.0, 50), ("l", 0.9, 40.0, 60))
    course = quiet(course_of(moments, 10.0, candidates, 50.0))
    run = replay(course, TwoAnchors(course, candidates, 0, 1, load_s=0.5))
    assert run.routes[-1] == 0
    assert max(run.response_ms) > 400


@pytest.mark.untraced
@pytest.mark.parametrize("name", WEATHER)
def test_keeps_the_budget_and_wins_most_of_what_can_be_won(name: str) -> None:
    """The floors, on a family of six routes: at most 2 % over a feasible budget, 90 % of the accuracy, and more than any that keeps it."""
    budget, candidates = replay_budget(Budget(), DIGITS)
    assert budget.latency_ms is not None
    cast = Cast.of(candidates, budget, load_s=0.1)
    trace = make_trace(name, Climate.of(candidates, budget.latency_ms))
    scores = {one.name: one for one in play(trace, candidates, budget, cast, spread=0.03).scores}
    ours = scores[OURS]
    assert ours.over_budget_share <= 0.02
    assert ours.accuracy_won_share is not None
    assert ours.accuracy_won_share >= (0.9 if name != "thermal" else 0.85)
    if name == "steady":
        assert ours.switches_per_minute <= 0.5, "the start, and at most one in ten minutes"


@pytest.mark.untraced
def test_many_routes_keep_the_budget() -> None:
    budget, candidates = replay_budget(Budget(), WIDE)
    assert budget.latency_ms is not None
    trace = make_trace("steps", Climate.of(candidates, budget.latency_ms))
    ours = play(trace, candidates, budget, Cast.of(candidates, budget, 0.1), spread=0.03).scores[0]
    assert (ours.name, ours.over_budget_share <= 0.02) == (OURS, True)
    assert (ours.accuracy_won_share or 0.0) >= 0.9


@pytest.mark.untraced
def test_a_replay_is_the_same_each_time() -> None:
    budget, candidates = replay_budget(Budget(), DIGITS)
    whole = make_trace("bursts", Climate.of(candidates, budget.latency_ms or 0.0))
    trace = Trace("bursts", tuple(moment for moment in whole.moments if moment.t_s < 120.0), 120.0)
    cast = Cast.of(candidates, budget, 0.1)
    first, second = (play(trace, candidates, budget, cast, spread=0.05, at_random=True).scores for _ in range(2))
    assert first == second


def test_the_budget_of_a_replay_has_a_latency_and_only_routes_that_keep_the_rest() -> None:
    budget, candidates = replay_budget(Budget(macs=25_000), DIGITS)
    assert [one.route.name for one in candidates] == ["s", "a", "b"]
    assert (budget.macs, budget.latency_ms) == (25_000, pytest.approx(1.35 * 24.2))
    assert replay_budget(Budget(latency_ms=30.0, min_accuracy=0.985), DIGITS)[0].latency_ms == 30.0
    with pytest.raises(TraceError, match="no route keeps the budget"):
        replay_budget(Budget(macs=1), DIGITS)


@pytest.fixture(scope="module")
def replays(tmp_path_factory: pytest.TempPathFactory) -> Replays:
    file = tmp_path_factory.mktemp("traces") / "mine.csv"
    write_trace(file, [Moment(float(t), 1.0 if t < 10 else 0.4, 1e9, 1.0, 10.0) for t in range(20)])
    budget, candidates = replay_budget(Budget(latency_ms=60.0), DIGITS)
    traces = find_traces([str(file)], candidates, 60.0)
    return play_all("digits", traces, candidates, budget, Cast.of(candidates, budget, 0.1), {"processor": "x"}, spread=0.02)


def test_the_document_names_every_policy(replays: Replays) -> None:
    document = json.loads(json.dumps(replays.document()))
    assert [trace["name"] for trace in document["traces"]] == ["mine"]
    policies = document["traces"][0]["policies"]
    assert [one["name"] for one in policies] == [
        *("restnet", "always small", "always large", "two anchors, reload", "no hysteresis", "slack", "oracle")
    ]
    for one in policies:
        assert {"over_budget_share", "accuracy_mean", "accuracy_won_share", "switches_per_minute"} <= set(one)
    table = render(replays)
    assert all(one["name"] in table for one in policies)


def test_a_picture_is_drawn(replays: Replays, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(replays, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_all_is_every_weather() -> None:
    assert [trace.name for trace in find_traces(["all"], DIGITS, 60.0)] == list(WEATHER)
    with pytest.raises(TraceError, match="there is no trace 'sunny'"):
        find_traces(["sunny"], DIGITS, 60.0)
