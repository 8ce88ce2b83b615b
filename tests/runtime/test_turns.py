"""Two programs timed in turns, on a clock that the test moves."""

import itertools

import numpy as np
import pytest

from restnet_runtime.turns import BLOCK, Turns, median_and_p95, median_interval, quickest_ratio, take_turns


class Bench:
    """A clock, and programs that take as long as they are told; what happened is in `seen`."""

    def __init__(self) -> None:
        self.now_s, self.seen = 0.0, list[str]()

    def program(self, name: str, takes_ms) -> object:
        def run() -> None:
            self.seen.append(name)
            self.now_s += takes_ms() / 1e3

        return run

    def sleep(self, seconds: float) -> None:
        self.seen.append("rest")
        self.now_s += seconds

    def time(self, ours_ms, theirs_ms, runs: int, max_s: float | None = None) -> Turns:
        ours, theirs = self.program("ours", ours_ms), self.program("theirs", theirs_ms)
        return take_turns(ours, theirs, runs, max_s=max_s, clock=lambda: self.now_s, sleep=self.sleep)


def test_each_turn_begins_with_a_rest_and_who_begins_changes() -> None:
    bench = Bench()
    bench.time(lambda: 10, lambda: 10, 3 * BLOCK)
    turns = [key for key, _ in itertools.groupby(bench.seen)]
    assert turns == ["rest", "ours", "rest", "theirs", "rest", "theirs", "rest", "ours", "rest", "ours", "rest", "theirs"]
    assert bench.seen.count("ours") == bench.seen.count("theirs") == 3 * (1 + BLOCK)


@pytest.mark.parametrize(("runs", "rounds"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2), (30, 6)])
def test_runs_are_rounded_up_to_whole_rounds(runs: int, rounds: int) -> None:
    turns = Bench().time(lambda: 4, lambda: 8, runs)
    assert [len(one) for one in (*turns.ours_ms, *turns.theirs_ms)] == [BLOCK] * 2 * rounds
    assert turns.ratio == pytest.approx(0.5)
    assert median_and_p95(turns.theirs_ms) == pytest.approx((8, 8))


def test_slow_first_runs_do_not_count_and_a_quick_program_gets_more_of_them() -> None:
    bench = Bench()
    first = iter([50.0])
    turns = bench.time(lambda: next(first, 0.1), lambda: 5, BLOCK)
    assert median_and_p95(turns.ours_ms) == pytest.approx((0.1, 0.1))
    bench = Bench()
    bench.time(lambda: 0.1, lambda: 5, BLOCK)
    assert bench.seen.count("theirs") == 1 + BLOCK
    assert 20 + BLOCK <= bench.seen.count("ours") <= 21 + BLOCK


@pytest.mark.parametrize(("max_s", "rounds"), [(0.0, 6), (1.0, 6), (1.7, 10), (60.0, 20)])
def test_no_round_begins_after_the_time_but_for_the_first_six(max_s: float, rounds: int) -> None:
    """A round takes 2 x (30 ms of rest + 6 runs of 10 ms)."""
    turns = Bench().time(lambda: 10, lambda: 10, 20 * BLOCK, max_s)
    assert len(turns.ours_ms) == len(turns.theirs_ms) == rounds


def test_in_a_hurry_two_runs_a_turn_of_slow_programs_count() -> None:
    bench = Bench()
    turns = bench.time(lambda: 400, lambda: 90, 10 * BLOCK, max_s=0.0)
    assert np.array(turns.ours_ms) == pytest.approx(np.full((6, 2), 400.0))
    assert np.array(turns.theirs_ms) == pytest.approx(np.full((6, BLOCK), 90.0))
    assert bench.seen.count("ours") == 6 * (1 + 2)
    assert len(Bench().time(lambda: 400, lambda: 90, BLOCK).ours_ms[0]) == BLOCK, "with time enough nothing is spared"


def test_the_quickest_run_of_a_round_is_what_disturbance_leaves() -> None:
    ours, theirs = ((9.0, 4.0, 7.0), (4.0, 30.0, 5.0), (8.0, 8.0, 8.0)), ((2.0, 3.0, 2.0),) * 3
    assert quickest_ratio(ours, theirs) == 2.0
    assert Turns(ours, theirs).quickest_ratio == 2.0


def test_the_ratio_stands_when_the_machine_is_slow_for_a_while() -> None:
    bench = Bench()

    def busy() -> float:
        return 3.0 if bench.now_s > 0.6 else 1.0

    turns = bench.time(lambda: 8 * busy(), lambda: 10 * busy(), 10 * BLOCK)
    assert turns.ours_ms[0][0] < turns.ours_ms[-1][0]
    assert turns.ratio == pytest.approx(0.8)
    low, high = turns.ratio_interval
    assert low <= 0.8 <= high


def test_one_turn_that_is_disturbed_moves_nothing() -> None:
    steady, disturbed = ((1.0,) * BLOCK,) * 9, ((9.0,) * BLOCK, *((1.0,) * BLOCK,) * 8)
    turns = Turns(disturbed, steady)
    assert turns.round_ratios == [9.0] + [1.0] * 8
    assert (turns.ratio, turns.ratio_interval) == (1.0, (1.0, 1.0))


@pytest.mark.parametrize(("count", "low", "high"), [(1, 1, 1), (2, 1, 2), (5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (100, 40, 61)])
def test_interval_of_the_median_is_the_one_of_the_tables(count: int, low: int, high: int) -> None:
    """Ranks of the 95 % interval, as tables of the sign test give them."""
    assert median_interval(list(range(count, 0, -1))) == (low, high)
