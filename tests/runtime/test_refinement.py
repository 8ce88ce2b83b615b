from dataclasses import replace

import pytest

from restnet_runtime.profile import RouteProfile, Timing
from restnet_runtime.reading import Reading, RouteLatency
from restnet_runtime.refinement import Refiner, is_quiet

QUIET = Reading(others_cpu_cores=0.0, waiting_share=0.0)
BUSY = replace(QUIET, others_cpu_cores=1.5)


class Table:
    """An executor without networks: what was asked of it."""

    def __init__(self, *loaded: str) -> None:
        self.loaded = loaded
        self.asked: list[str] = []
        self.learnt: list[tuple[str, Timing]] = []
        self.known = RouteProfile(10.0, 12.0, 1, threads=2)

    def profile(self, name: str) -> RouteProfile | None:
        return self.known if name in self.loaded else None

    def refine(self, name: str) -> None:
        self.asked.append(name)

    def learn(self, name: str, timing: Timing) -> None:
        self.learnt.append((name, timing))


def steps(refiner: Refiner, count: int) -> None:
    for _ in range(count):
        refiner.step()


def test_each_route_is_timed_once_more_and_again_when_it_is_quiet() -> None:
    table, reading = Table("a", "b"), [BUSY]
    refiner = Refiner(table, lambda: reading[0], 2)
    steps(refiner, 5)
    assert table.asked == ["a", "b"]
    reading[0] = QUIET
    steps(refiner, 5)
    assert table.asked == ["a", "b", "a", "b"]
    refiner.forget("b")
    steps(refiner, 5)
    assert table.asked == ["a", "b", "a", "b", "b"], "once is enough where it is quiet at once"


def test_before_the_first_reading_nothing_is_taken_for_quiet() -> None:
    table = Table("a")
    steps(Refiner(table, lambda: None, 2), 3)
    assert table.asked == ["a"]


@pytest.mark.parametrize(
    ("seen", "learnt"),
    [
        (RouteLatency(8.0, 9.0, 50, 2), True),
        (RouteLatency(8.0, 9.0, 5, 2), False),
        (RouteLatency(8.0, 9.0, 50, 1), False),
        (RouteLatency(9.5, 9.9, 50, 2), False),
        (RouteLatency(30.0, 40.0, 50, 2), False),
    ],
    ids=["quicker", "too few", "other threads", "hardly quicker", "slower: that is slowdown"],
)
def test_requests_prove_a_profile_too_slow(seen: RouteLatency, learnt: bool) -> None:
    table = Table("a")
    refiner = Refiner(table, lambda: replace(BUSY, latencies={"a": seen, "gone": seen}), 2)
    refiner.step()
    assert table.learnt == ([("a", Timing(8.0, 9.0))] if learnt else [])


@pytest.mark.parametrize(
    ("reading", "quiet"),
    [
        (QUIET, True),
        (replace(QUIET, throttled=()), True),
        (BUSY, False),
        (replace(QUIET, waiting_share=0.2), False),
        (replace(QUIET, throttled=("under-voltage",)), False),
        (replace(QUIET, cpu_quota_cores=0.5), False),
        (Reading(), False),
    ],
)
def test_what_is_quiet(reading: Reading, quiet: bool) -> None:
    assert is_quiet(reading, 2) is quiet
