"""Threads: how many a request gets, and that sessions follow when it changes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.reading import Reading
from restnet_runtime.threads import BAND_CONCURRENCY, BAND_CORES, ThreadChoice, ThreadGovernor, choose_threads, describe_threads


@pytest.mark.parametrize(
    ("cores", "quota", "others", "concurrency", "threads"),
    [
        (2, None, None, 1.0, 2),
        (2, None, 0.0, 0.0, 2),
        (2, None, 0.4, 1.0, 2),  # others take less than half a core
        (2, None, 1.0, 1.0, 1),
        (2, None, 2.0, 1.0, 2),  # no core is free: a share of each
        (4, None, 1.0, 1.0, 3),
        (4, None, 2.0, 1.0, 2),
        (4, None, 3.0, 1.0, 4),
        (4, None, 0.0, 2.0, 2),
        (4, None, 0.0, 4.0, 1),
        (4, None, 4.0, 2.0, 1),
        (4, 0.5, 0.0, 1.0, 1),
        (4, 1.0, 0.0, 1.0, 1),
        (4, 1.5, 0.0, 1.0, 2),
        (4, 2.0, 0.0, 1.0, 2),
        (1, None, 0.0, 1.0, 1),
        (1, None, 1.0, 1.0, 1),
    ],
)
def test_what_is_left_of_the_cores(cores, quota, others, concurrency, threads) -> None:
    assert choose_threads(cores, Reading(cpu_quota_cores=quota, others_cpu_cores=others), concurrency) == threads


@given(st.integers(1, 64), st.none() | st.floats(0.01, 128), st.none() | st.floats(0, 64), st.floats(0, 1000))
def test_always_at_least_one_and_never_more_than_there_are(cores, quota, others, concurrency) -> None:
    assert 1 <= choose_threads(cores, Reading(cpu_quota_cores=quota, others_cpu_cores=others), concurrency) <= cores


def test_down_after_three_ticks_and_up_after_eight() -> None:
    choice, seen = ThreadChoice(4), []
    for wanted in [2, 2, 4, 2, 1, 2, *[4] * 8]:
        choice = choice.tick(wanted)
        seen.append(choice.threads)
    # One tick that agrees with what is in force starts the row anew; a row goes one way, to where its last tick wants.
    assert seen == [4, 4, 4, 4, 4, 2, *[2] * 7, 4]


@pytest.mark.untraced
@given(st.lists(st.integers(1, 4), min_size=1, max_size=40))
def test_noise_that_never_lasts_changes_nothing(wanted) -> None:
    choice = ThreadChoice(2)
    for one in wanted:
        choice = choice.tick(one).tick(2)
    assert choice.threads == 2


@pytest.mark.parametrize(
    ("waiting", "quota", "threads"),
    [
        (None, None, 1),  # the kernel does not tell: what others take, 1.3 of 2 cores, is all that is known
        (0.0, None, 1),
        (1 / 3, None, 2),  # we wait a third of the time: they would take 2
        (1 / 3, 2.0, 2),
        (1 / 3, 1.5, 1),  # what is waited for may be our own quota
        (1 / 3, 0.5, 1),
    ],
)
def test_others_that_wait_too_would_take_more(waiting, quota, threads) -> None:
    assert choose_threads(2, Reading(cpu_quota_cores=quota, others_cpu_cores=4 / 3, waiting_share=waiting), 1.0) == threads


def test_in_the_dead_band_nothing_changes() -> None:
    def chosen(others: float, in_force: int, concurrency: float = 1.0) -> int:
        return choose_threads(2, Reading(others_cpu_cores=others), concurrency, in_force)

    assert [chosen(others, 2) for others in (0.5, 0.7, 0.8, 1.0)] == [2, 2, 1, 1]
    assert [chosen(others, 1) for others in (0.5, 0.3, 0.2, 0.0)] == [1, 1, 2, 2]
    assert [chosen(0.0, 2, at_once) for at_once in (1.0, 1.5, 1.6, 2.0)] == [2, 2, 1, 1]
    assert [chosen(0.0, 1, at_once) for at_once in (2.0, 1.2, 1.1)] == [1, 1, 2]


def governed(cores: int, threads: int, seconds: list[tuple[float, float | None, float]]) -> list[int]:
    """Threads after each second of (what others take, share waited, requests at once)."""
    now = [0.0, 0.0]  # clock, seconds run
    reading = [Reading()]
    governor = ThreadGovernor(cores, threads, lambda: reading[0], lambda: now[1], lambda: now[0])
    seen = []
    for others, waiting, at_once in seconds:
        now[0], now[1] = now[0] + 1, now[1] + at_once
        reading[0] = Reading(others_cpu_cores=others, waiting_share=waiting)
        seen.append(governor())
    return seen


def changes(seen: list[int]) -> int:
    return sum(one != other for one, other in itertools.pairwise(seen))


@pytest.mark.untraced
@given(st.integers(1, 16), st.floats(0, 20), st.floats(0, 6), st.data())
def test_a_load_that_only_scatters_changes_the_number_once_at_most(cores, others, at_once, data) -> None:
    noise = data.draw(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=60, max_size=60))
    threads = data.draw(st.integers(1, cores))
    # Any two readings are within the dead band of each other.
    seconds = [(max(0.0, others + a * BAND_CORES / 2.1), None, at_once * BAND_CONCURRENCY ** (b / 2.1)) for a, b in noise]
    assert changes([threads, *governed(cores, threads, seconds)]) <= 1


@pytest.mark.untraced
@given(st.integers(1, 8), st.integers(0, 16), st.integers(1, 8))
def test_what_we_take_does_not_drive_the_number_to_and_fro(cores, others, threads) -> None:
    """A closed loop: neighbours and our threads without pause on a fair scheduler, which the number of threads feeds back into."""
    threads = min(cores, threads)
    now, reading = [0.0], [Reading()]
    governor = ThreadGovernor(cores, threads, lambda: reading[0], lambda: now[0], lambda: now[0])
    seen = [threads]
    for _ in range(60):
        each = min(1.0, cores / (others + seen[-1]))
        reading[0] = Reading(others_cpu_cores=others * each, waiting_share=1 - each)
        now[0] += 1
        seen.append(governor())
    assert changes(seen) <= 1
    assert seen[-1] == choose_threads(cores, Reading(others_cpu_cores=float(others)), 1.0)


def test_two_neighbours_on_two_cores_and_requests_without_pause() -> None:
    """The share that we wait scatters, as neighbours meet us on a core or not."""
    seconds = [(1.2, 0.2, 1.0), (1.4, 0.4, 1.0), (1.4, 0.4, 1.0)] * 10
    assert governed(2, 1, seconds)[-1] == governed(2, 2, seconds)[-1] == 2
    assert set(governed(2, 2, seconds)) == {2}


def test_the_governor_counts_requests_that_run_at_once() -> None:
    seen = governed(4, 4, [(0.0, None, 2.0)] * 4 + [(0.0, None, 1.0)] * 12)
    assert seen == [4, 4, *[2] * 11, 4, 4, 4]


def test_a_neighbour_that_begins_and_ends() -> None:
    seen = governed(2, 2, [(0.0, 0.0, 1.0)] * 2 + [(1.0, 0.0, 1.0)] * 10 + [(0.0, 0.0, 1.0)] * 14)
    assert seen == [*[2] * 7, *[1] * 15, *[2] * 4]


def test_one_second_without_figures_is_passed_over() -> None:
    assert governed(2, 2, [(1.0, None, 1.0)] * 2 + [(None, None, 1.0)] + [(1.0, None, 1.0)])[-1] == 1


def test_without_a_reading_nothing_changes() -> None:
    assert ThreadGovernor(2, 2, lambda: None, lambda: 0.0, lambda: 0.0)() == 2


def test_threads_for_people() -> None:
    assert [describe_threads(counts) for counts in ([1], [2, 2], [1, 2, 1])] == ["1 thread", "2 threads", "1 to 2 threads"]
