"""What is learnt from runs: which size is tried when, and what it cost. Time is what the tests say it was."""

from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.batch_plan import BatchSettings, plan
from restnet_runtime.batch_trials import BatchTrials

AUTO = BatchSettings("auto")


def serve(trials: BatchTrials, busy_ms, runs: int, company: int = 8) -> list[int]:
    """Plan and run `runs` times; busy_ms: of a run by its size. The sizes that were aimed for."""
    aims = []
    for _ in range(runs):
        size = plan(trials.measured, None, company, AUTO, gathered=company).size
        trials.record(size, size, busy_ms(size), busy_ms(size))
        aims.append(size)
    return aims


def test_each_size_is_tried_and_the_best_one_stays() -> None:
    trials = BatchTrials(8)
    aims = serve(trials, lambda size: 4.0 + size, 300)
    turns = [aim for aim, before in zip(aims, [0, *aims], strict=False) if aim != before]
    assert turns[:12] == [1, 2, 4, 8] * 3
    assert aims.count(8) > aims.count(1) + aims.count(2) + aims.count(4)
    assert trials.measured.cost_ms == {1: 5.0, 2: 3.0, 4: 2.0, 8: 1.5}
    assert trials.measured.run_ms == {1: 5.0, 2: 6.0, 4: 8.0, 8: 12.0}


def test_a_neighbour_that_disturbs_one_turn_decides_nothing() -> None:
    trials = BatchTrials(2)
    busy_ms = iter([50.0] * 18 + [5.0] * 1000)
    aims = []
    for _ in range(200):
        size = plan(trials.measured, None, 2, AUTO, gathered=2).size
        trials.record(size, size, next(busy_ms) * size, None)
        aims.append(size)
    assert trials.measured.cost_ms == {1: 5.0, 2: 5.0}
    assert aims[-1] == 1


@given(st.integers(1, 16), st.lists(st.floats(0.5, 30.0), min_size=16, max_size=16), st.none() | st.floats(1.0, 100.0), st.integers(2, 20))
def test_alone_is_what_every_plan_would_say(most, busy_ms, limit_ms, company) -> None:
    trials = BatchTrials(most)
    for _ in range(150):
        size = plan(trials.measured, limit_ms, company, AUTO, gathered=company).size
        if trials.alone:
            assert size == 1
        elif limit_ms is None and company >= most <= AUTO.max_batch:
            assert size > 1
        trials.record(size, size, busy_ms[size - 1], busy_ms[size - 1])


def test_where_nothing_is_gained_requests_run_by_themselves() -> None:
    trials = BatchTrials(8)
    aims = serve(trials, lambda size: 5.0 * size, 300)
    assert set(aims) == {1, 2, 4, 8}
    assert aims[-1] == 1


def test_trials_take_a_small_part_of_the_time_and_notice_when_things_change() -> None:
    trials = BatchTrials(8)
    aims = serve(trials, lambda size: 5.0 * size, 3000)
    assert aims.count(1) > 0.85 * len(aims)
    serve(trials, lambda size: 4.0 + size, 3000)
    assert serve(trials, lambda size: 4.0 + size, 3000).count(8) > 0.8 * 3000


def test_short_runs_are_tried_for_long_enough_to_see_through_noise() -> None:
    trials = BatchTrials(2)
    serve(trials, lambda size: 0.01 * size, 1000)
    assert trials.measured.trial == 1


def test_a_size_that_the_limit_forbids_is_passed_over() -> None:
    trials = BatchTrials(2)
    for _ in range(200):
        trials.record(1, 1, 5.0, 5.0)  # whatever was wished for
    assert trials.measured.trial is None
    assert trials.measured.cost_ms == {1: 5.0}


def test_the_first_runs_of_a_trial_do_not_count() -> None:
    trials = BatchTrials(2)
    for busy_ms in [500.0, 500.0, *[2.0] * 16]:  # what was still running side by side
        trials.record(1, 1, busy_ms, None)
    assert trials.measured.trial == 2
    assert trials.measured.cost_ms == {1: 2.0}


def test_runs_out_of_turn_count_for_their_time_alone() -> None:
    trials = BatchTrials(2)
    for _ in range(100):
        trials.record(None, 1, 5.0, 5.0)
    assert trials.measured.cost_ms == {}
    assert trials.measured.run_ms == {1: 5.0}


def test_the_profile_stands_in_until_a_run_is_measured() -> None:
    trials = BatchTrials(2, single_ms=3.0)
    assert trials.measured.run_ms == {1: 3.0}
    trials.record(1, 1, 5.0, None)  # slowed down by others: says nothing
    assert trials.measured.run_ms == {1: 3.0}
    trials.record(1, 1, 5.0, 4.0)
    assert trials.measured.run_ms == {1: 4.0}


def test_one_slow_run_does_not_move_the_time_of_a_size() -> None:
    trials = BatchTrials(2)
    for run_ms in (4.0, 4.0, 90.0, 4.0, 4.0):
        trials.record(1, 1, run_ms, run_ms)
    assert trials.measured.run_ms == {1: 4.0}
