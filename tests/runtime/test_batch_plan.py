"""What is planned, from figures alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.batch_plan import BatchSettings, Measured, Plan, cheapest, plan, predicted_ms

WEIGHT_BOUND = {1: 5.0, 2: 6.0, 4: 9.0, 8: 15.0}
"""Milliseconds by size of a network that mostly waits for its weights: together is cheap."""
COSTS = {1: 5.0, 2: 3.0, 4: 2.3, 8: 1.9}
ON, AUTO = BatchSettings("on"), BatchSettings("auto")
LEARNT = Measured(WEIGHT_BOUND, COSTS)

times = st.floats(0.001, 1e4)
runs = st.dictionaries(st.integers(1, 64), times, max_size=6)
limits = st.none() | st.floats(0.001, 1e5)
batching = st.builds(BatchSettings, st.sampled_from(["on", "auto"]), st.floats(0, 50), st.integers(1, 64))
measurements = st.builds(Measured, runs, runs, st.none() | st.integers(1, 64))


@given(measurements, limits, st.integers(1, 100), batching, st.integers(1, 100), st.floats(0, 1e5))
def test_no_batch_breaks_the_limit(measured, limit_ms, company, settings, gathered, waited_ms) -> None:
    planned = plan(measured, limit_ms, company, settings, gathered=min(gathered, company), waited_ms=waited_ms)
    assert 1 <= planned.size <= max(1, min(company, settings.max_batch))
    assert 0 <= planned.wait_ms <= settings.max_wait_ms
    if planned.size > 1 and limit_ms is not None:
        run_ms = predicted_ms(measured.run_ms, planned.size)
        assert run_ms is not None
        assert planned.wait_ms + run_ms <= limit_ms
        alone = predicted_ms(measured.run_ms, 1)
        assert alone is not None
        if planned.wait_ms or waited_ms + alone <= limit_ms:
            assert waited_ms + planned.wait_ms + run_ms <= limit_ms * (1 + 1e-9)


@given(measurements, limits, batching, st.floats(0, 1e5))
def test_who_has_no_company_neither_waits_nor_aims_for_more(measured, limit_ms, settings, waited_ms) -> None:
    assert plan(measured, limit_ms, 1, settings, waited_ms=waited_ms) == Plan(1, 0.0)


@given(measurements, limits, st.integers(1, 100), st.integers(1, 100))
def test_off_is_off(measured, limit_ms, company, gathered) -> None:
    assert plan(measured, limit_ms, company, BatchSettings("off"), gathered=gathered) == Plan(1, 0.0)


@given(measurements, st.integers(2, 100), batching, st.integers(1, 100))
def test_nobody_waits_for_those_who_are_there(measured, company, settings, gathered) -> None:
    planned = plan(measured, None, company, settings, gathered=gathered)
    assert planned.wait_ms == 0 or gathered < planned.size


@given(measurements, st.floats(0.001, 1e5), st.integers(1, 100), st.floats(0, 1e5))
def test_a_tighter_limit_never_makes_a_larger_batch(measured, limit_ms, company, waited_ms) -> None:
    # Up to the point where the limit is lost, from where on only throughput counts.
    alone = predicted_ms(measured.run_ms, 1) or math.inf
    loose = plan(measured, 2 * limit_ms, company, ON, waited_ms=waited_ms)
    if waited_ms + alone <= limit_ms:
        assert plan(measured, limit_ms, company, ON, waited_ms=waited_ms).size <= loose.size


@pytest.mark.parametrize(
    ("settings", "limit_ms", "company", "size"),
    [
        (AUTO, None, 8, 8),
        (AUTO, None, 3, 2),  # 3 was never aimed for
        (AUTO, None, 20, 8),
        (AUTO, 20.0, 8, 8),
        (AUTO, 16.0, 8, 4),  # 15 ms are within the limit, but not within nine tenths of it
        (AUTO, 6.0, 8, 1),
        (ON, None, 3, 3),
        (ON, 13.0, 8, 5),  # 9 + 6 / 4 ms
        (ON, 1.0, 8, 1),  # even one breaks it
        (BatchSettings("on", max_batch=4), None, 8, 4),
    ],
)
def test_the_size_follows_company_cost_and_limit(settings, limit_ms, company, size) -> None:
    assert plan(LEARNT, limit_ms, company, settings).size == size


def test_auto_does_not_batch_where_it_does_not_pay() -> None:
    compute_bound = Measured({1: 5.0, 2: 10.0, 4: 20.0}, {1: 5.0, 2: 4.9, 4: 4.8})
    assert plan(compute_bound, None, 4, AUTO) == Plan(1)
    assert plan(compute_bound, None, 4, ON).size == 4


def test_auto_does_not_batch_before_it_knows_what_single_runs_cost() -> None:
    assert plan(Measured({}, {}), None, 4, AUTO) == Plan(1)
    assert plan(Measured({}, {4: 0.1}), None, 4, AUTO) == Plan(1)


def test_a_trial_goes_first_where_the_limit_allows_it() -> None:
    trial = Measured(WEIGHT_BOUND, COSTS, trial=2)
    assert plan(trial, None, 8, AUTO).size == 2
    assert plan(trial, 6.0, 8, AUTO).size == 1
    assert plan(Measured(WEIGHT_BOUND, COSTS, trial=1), None, 8, AUTO) == Plan(1)


def test_with_a_limit_and_nothing_measured_nothing_is_risked() -> None:
    assert plan(Measured({}, {}), 100.0, 8, ON) == Plan(1)
    assert plan(Measured({}, {}), None, 8, ON) == Plan(8, 2.0)


def test_sizes_grow_with_what_is_known() -> None:
    assert plan(Measured({1: 5.0}, {}), 20.0, 8, ON).size == 3  # as if 3 took 15 ms
    assert plan(Measured({1: 5.0, 3: 7.0}, {}), 20.0, 8, ON).size == 7


@pytest.mark.parametrize(
    ("limit_ms", "waited_ms", "wait_ms"),
    [(None, 0.0, 2.0), (20.0, 0.0, 2.0), (18.0, 0.0, 1.2), (20.0, 1.5, 1.5), (20.0, 3.0, 0.0)],
)
def test_the_wait_is_what_the_limit_leaves(limit_ms, waited_ms, wait_ms) -> None:
    planned = plan(LEARNT, limit_ms, 8, AUTO, gathered=7, waited_ms=waited_ms)
    assert planned.size == 8
    assert planned.wait_ms == pytest.approx(wait_ms)


def test_auto_waits_for_a_short_run_only_shortly() -> None:
    short = Measured({1: 0.1, 8: 0.4}, {1: 0.1, 8: 0.06})
    assert plan(short, None, 8, AUTO) == Plan(8, 0.1)
    assert plan(short, None, 8, ON) == Plan(8, 2.0)


def test_once_the_limit_is_lost_the_queue_is_brought_down_by_runs_within_it() -> None:
    assert plan(LEARNT, 10.0, 8, AUTO, gathered=8, waited_ms=3.0).size == 2
    assert plan(LEARNT, 10.0, 8, AUTO, gathered=8, waited_ms=6.0).size == 4


@given(runs.filter(bool), st.integers(1, 128))
def test_predictions_lie_between_what_was_measured_or_grow_in_proportion(run_ms, size) -> None:
    predicted, largest = predicted_ms(run_ms, size), max(run_ms)
    assert predicted is not None
    if size in run_ms:
        assert predicted == run_ms[size]
    elif size > largest:
        assert predicted == pytest.approx(run_ms[largest] * size / largest)
    else:
        assert min(run_ms.values()) * (1 - 1e-9) <= predicted <= max(run_ms.values()) * (1 + 1e-9)


def test_nothing_is_predicted_from_nothing() -> None:
    assert predicted_ms({}, 3) is None


@given(runs, st.lists(st.integers(1, 64), min_size=1))
def test_the_cheapest_size_is_allowed_and_worth_it(cost_ms, sizes) -> None:
    chosen = cheapest(cost_ms, [1, *sizes])
    assert chosen in [1, *sizes]
    if chosen != 1:
        assert cost_ms[chosen] <= 0.9 * cost_ms[1]


@pytest.mark.parametrize(
    "wrong", [{"mode": "maybe"}, {"max_wait_ms": -1.0}, {"max_wait_ms": math.nan}, {"max_wait_ms": math.inf}, {"max_batch": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* must be"):
        BatchSettings(**wrong)
