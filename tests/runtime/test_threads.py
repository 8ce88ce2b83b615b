"""Threads: how many a request gets, and that sessions follow when it changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.reading import Reading
from restnet_runtime.threads import ThreadChoice, ThreadGovernor, choose_threads


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
    # One tick that agrees with what is in force starts the row anew; the least change that a whole row agrees to is made.
    assert seen == [4, 4, 4, 4, 4, 2, *[2] * 7, 4]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40))
def test_noise_that_never_lasts_changes_nothing(wanted) -> None:
    choice = ThreadChoice(2)
    for one in wanted:
        choice = choice.tick(one).tick(2)
    assert choice.threads == 2


def test_the_governor_counts_requests_that_run_at_once() -> None:
    now = [0.0, 0.0]  # clock, seconds run
    governor = ThreadGovernor(4, 4, lambda: Reading(others_cpu_cores=0.0), lambda: now[1], lambda: now[0])
    seen = []
    for step_s, busy_s in [(1.0, 2.0)] * 4 + [(1.0, 1.0)] * 9:
        now[0] += step_s
        now[1] += busy_s
        seen.append(governor())
    assert seen == [4, 4, 2, 2, *[2] * 7, 4, 4]


def test_without_a_reading_nothing_changes() -> None:
    assert ThreadGovernor(2, 2, lambda: None, lambda: 0.0, lambda: 0.0)() == 2
