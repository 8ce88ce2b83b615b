"""Routes: their names, and the Pareto front by its definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.fields import check
from restnet_runtime.manifest import RouteName
from restnet_runtime.routes import Part, fronts, in_precision, pareto_front, precision_of, route_name

BLOCKS = {"cnn-s": 6, "cnn-l": 10}
POINTS = st.lists(st.tuples(st.integers(0, 8), st.none() | st.integers(0, 8).map(lambda value: value / 8)), max_size=12)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([Part("cnn-s", 0, 5)], "cnn-s"),
        ([Part("cnn-s", 0, 4)], "cnn-s[0-4]"),
        ([Part("cnn-s", 1, 5)], "cnn-s[1-5]"),
        ([Part("cnn-l", 0, 5)], "cnn-l[0-5]"),
        ([Part("cnn-s", 0, 3), Part("cnn-l", 4, 9)], "cnn-s[0-3]>cnn-l[4-9]"),
        ([Part("cnn-l", 0, 1), Part("cnn-s", 2, 2), Part("cnn-l", 9, 9)], "cnn-l[0-1]>cnn-s[2-2]>cnn-l[9-9]"),
    ],
)
def test_names_say_what_a_route_is_made_of(parts: list[Part], name: str) -> None:
    assert route_name(parts, BLOCKS) == name
    check(RouteName, name)


def on_front(points: list[tuple[int, float | None]], index: int) -> bool:
    """The definition: no other point is at most as dear and at least as accurate; of equal points the first."""
    if all(accuracy is None for _, accuracy in points):
        return True
    cost, accuracy = points[index]
    if accuracy is None:
        return False
    beaten = False
    for other, (its_cost, its_accuracy) in enumerate(points):
        if other == index or its_accuracy is None or its_cost > cost or its_accuracy < accuracy:
            continue
        beaten = beaten or (its_cost, its_accuracy) != (cost, accuracy) or other < index
    return not beaten


@given(POINTS)
def test_front_is_what_the_definition_says(points) -> None:
    assert pareto_front(points) == [on_front(points, index) for index in range(len(points))]


@given(POINTS)
def test_every_measured_point_is_matched_by_one_on_the_front(points) -> None:
    front = [point for point, flag in zip(points, pareto_front(points), strict=True) if flag]
    for cost, accuracy in points:
        assert accuracy is None or any(its_cost <= cost and its_accuracy >= accuracy for its_cost, its_accuracy in front)


def test_a_front() -> None:
    points = [(10, 0.7), (20, 0.7), (20, 0.9), (5, None), (30, 0.8), (10, 0.7), (40, 0.95)]
    assert pareto_front(iter(points)) == [True, False, True, False, False, False, True]
    assert pareto_front([]) == []
    assert pareto_front([(1, None), (2, None)]) == [True, True]
    assert pareto_front([(1, 0.0)]) == [True]


def test_routes_are_named_by_their_precisions() -> None:
    segments = ("a.0", "a.1", "a~b", "b.2")
    assert in_precision("a[0-1]>b[2-2]", segments, ("fp32",) * 4) == "a[0-1]>b[2-2]"
    assert in_precision("a[0-1]>b[2-2]", segments, ("int8",) * 4) == "a[0-1]>b[2-2]@int8"
    assert in_precision("r", segments, ("int8", "int8", "fp32", "int8")) == "r@int8+fp32[a~b]"
    assert in_precision("r", segments, ("fp32", "int8", "fp32", "int8")) == "r@int8+fp32[a.0+a~b]"
    assert in_precision("r", segments, ("fp32", "int8", "fp32", "fp32")) == "r@fp32+int8[a.1]"


def test_a_name_with_many_segments_still_is_one() -> None:
    """And another for other segments."""
    segments = [f"{'anchor' * 10}.{index}" for index in range(14)]
    names = {in_precision("r", segments, ["fp32" if index < count else "int8" for index in range(14)]) for count in (5, 6, 7)}
    names.add(in_precision("r", segments, ["int8" if index < 7 else "fp32" for index in range(14)]))
    assert len(names) == 4
    for name in names:
        check(RouteName, name)
    assert sum("anchoranchor" in name for name in names) == 2  # as long as it fits
    assert precision_of(("int8", "fp32", "int8")) == "fp32+int8"


def test_each_precision_has_a_front_of_its_own() -> None:
    points = [("fp32", 1.0, 0.8), ("int8", 1.0, 0.9), ("fp32", 2.0, 0.85), ("int8", 2.0, 0.85)]
    assert fronts(points) == [True, True, True, False]
