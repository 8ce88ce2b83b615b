"""The front of a device: what is outdone is never missed, whatever the budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.budget import Budget
from restnet_runtime.front import LATENCY_NOISE, MEMORY_NOISE_BYTES, outdone
from restnet_runtime.policy import Candidate, History, decide
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

MB = 2**20
Point = tuple[Route, RouteProfile]


def point(name: str, accuracy: float | None = 0.7, latency_ms: float = 10.0, memory_mb: float = 100.0, macs: int = 1000) -> Point:
    route = Route(name, ("a",), ("int8" if name.endswith("8") else "fp32",), macs, 1, 1, accuracy, True)
    return route, RouteProfile(latency_ms, latency_ms * 1.2, int(memory_mb * MB))


def names(*points: Point) -> dict[str, str]:
    return {name: one.by for name, one in outdone(points).items()}


def test_the_slower_twin_is_outdone_and_the_reason_has_the_figures() -> None:
    large, large8 = point("large", latency_ms=30), point("large8", latency_ms=10, memory_mb=40)
    assert names(large, large8) == {"large": "large8"}
    reason = outdone([large, large8])["large"].reason
    assert reason == "outdone by large8 here: 10 ms against 30 ms, 41.9 MB against 105 MB"


def test_without_dot_products_int8_goes_unless_it_is_smaller() -> None:
    large = point("large", latency_ms=10)
    assert names(large, point("large8", 0.69, latency_ms=12)) == {"large8": "large"}
    assert names(large, point("large8", 0.69, latency_ms=12, memory_mb=40)) == {}, "a memory budget may need it"
    assert names(large, point("large8", 0.69, latency_ms=12, memory_mb=99.9)) == {"large8": "large"}, "none could tell 0.1 MB"


@pytest.mark.parametrize(
    "better", [{"accuracy": 0.71}, {"latency_ms": 9.0}, {"memory_mb": 90.0}, {"macs": 900}], ids=lambda change: next(iter(change))
)
@pytest.mark.parametrize(
    "worse", [{"accuracy": 0.69}, {"latency_ms": 10.01}, {"memory_mb": 101}, {"macs": 1001}], ids=lambda change: next(iter(change))
)
def test_better_in_one_and_worse_in_none(better: dict, worse: dict) -> None:
    assert names(point("a"), point("b", **better)) == {"a": "b"}
    assert "a" not in names(point("a"), point("b", **{**better, **worse}))


def test_what_two_measurements_differ_by_decides_nothing() -> None:
    assert names(point("a"), point("b")) == {}
    assert names(point("a"), point("b", latency_ms=10 / (1 + LATENCY_NOISE) + 0.01)) == {}
    assert names(point("a"), point("b", memory_mb=100 - 0.9 * MEMORY_NOISE_BYTES / MB)) == {}


def test_without_accuracy_nothing_is_outdone() -> None:
    assert names(point("a", None), point("b", 0.9, latency_ms=1)) == {}
    assert names(point("a", None), point("b", None, latency_ms=1)) == {}
    assert names(point("a", 0.1), point("b", None, latency_ms=1)) == {}


def test_a_chain_names_one_that_nothing_outdoes() -> None:
    assert names(point("a", latency_ms=30), point("b", latency_ms=20), point("c", latency_ms=10)) == {"a": "c", "b": "c"}


POINTS = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.8]), st.integers(1, 40), st.integers(20, 60), st.integers(1, 4)), min_size=1, max_size=12
)
LIMITS = st.tuples(*(st.none() | st.integers(1, top) for top in (5, 45, 70)))


@given(POINTS, LIMITS)
def test_no_budget_is_served_any_worse(drawn: list[tuple[float, int, int, int]], limits: tuple[int | None, ...]) -> None:
    points = [point(f"r{index}", *map(float, one[:3]), macs=one[3]) for index, one in enumerate(drawn)]
    macs, latency_ms, memory_mb = limits
    budget = Budget(macs, None if latency_ms is None else float(latency_ms), None if memory_mb is None else memory_mb * MB)
    gone = outdone(points)

    def chosen(among: list[Point]) -> tuple[bool, float]:
        candidates = [Candidate(*one) for one in among]
        decision = decide(Reading(), budget, candidates, History(), 0.0)
        accuracy = next(route.accuracy for route, _ in among if route.name == decision.route)
        return decision.feasible, accuracy or 0.0

    left = [one for one in points if one[0].name not in gone]
    assert left
    assert {one.by for one in gone.values()} <= {route.name for route, _ in left}
    feasible, accuracy = chosen(points)
    feasible_left, accuracy_left = chosen(left)
    assert feasible_left == feasible
    assert not feasible or accuracy_left == accuracy
