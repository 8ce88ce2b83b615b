"""Requests that run beside the queue: what is counted and learnt of them. Time is what the tests say it was."""

import pytest

from restnet_runtime.batch_apart import LOOK_EVERY, Apart
from restnet_runtime.batch_trials import BatchTrials


class Told(BatchTrials):
    """Trials that also remember what they were told."""

    def __init__(self) -> None:
        super().__init__(4)
        self.busy_ms: list[float] = []

    def record(self, aim, size, busy_ms, run_ms) -> None:
        assert (aim, size, run_ms) == (1, 1, None)  # others beside it may have made it slower
        self.busy_ms.append(busy_ms)
        super().record(aim, size, busy_ms, run_ms)


def ran(spans: list[tuple[float, float]], running_since_s: float | None = None) -> list[float]:
    """Busy milliseconds of runs from .. to (seconds), in the order in which they ended."""
    apart, told = Apart(), Told()
    if running_since_s is not None:
        apart.begin("key", told, running_since_s)
    for run, (_, ended_s) in [(apart.begin("key", told, began_s), (began_s, ended_s)) for began_s, ended_s in spans]:
        apart.end(run, ended_s)
    assert apart.take() == len(spans)
    return told.busy_ms


@pytest.mark.parametrize(
    ("spans", "busy_ms"),
    [
        ([(1.0, 1.5), (1.5, 2.0)], [500, 500]),
        ([(1.0, 1.5), (5.0, 5.25)], [500, 250]),  # idle between
        ([(1.0, 2.0), (1.0, 2.0)], [1000, 0]),  # at once: the machine was busy for a second, for two answers
        ([(1.0, 3.0), (1.5, 2.0)], [1000, 1000]),  # told by their ends
        ([(1.0, 4.0), (1.0, 2.0), (3.0, 3.5)], [1000, 1500, 500]),  # one all the time: never idle
    ],
)
def test_a_moment_is_busy_once(spans, busy_ms) -> None:
    assert ran(spans) == pytest.approx(busy_ms)
    assert sum(busy_ms) == pytest.approx(
        1e3 * len({at / 1e4 for span in spans for at in range(int(span[0] * 1e4), int(span[1] * 1e4))}) / 1e4
    )


def test_what_is_still_running_keeps_the_machine_busy() -> None:
    assert ran([(1.0, 1.5), (5.0, 5.25)], running_since_s=1.0) == pytest.approx([500, 3750])


def test_busy_time_goes_on_from_one_look_to_the_next() -> None:
    apart, told = Apart(), Told()
    long, short = apart.begin("key", told, 1.0), apart.begin("key", told, 1.0)
    apart.end(short, 1.25)
    assert apart.take() == 1
    apart.end(long, 2.0)
    assert apart.take() == 1
    assert told.busy_ms == pytest.approx([250, 750])
    assert apart.take() == 0


def test_only_those_of_the_same_key_are_company() -> None:
    apart = Apart()
    runs = [apart.begin(key, None, 0.0) for key in ("a", "b", "a")]
    assert [apart.company(key) for key in "abc"] == [2, 1, 0]
    assert apart.running == 3
    for run in runs:
        apart.end(run, 1.0)
    assert apart.company("a") == apart.running == 0


def test_one_that_failed_or_began_in_another_turn_counts_and_teaches_nothing() -> None:
    apart, told = Apart(), Told()
    apart.end(apart.begin("key", told, 1.0), 1.5, failed=True)
    before = apart.begin("key", told, 1.5)
    told.turn += 1
    apart.end(before, 2.0)
    apart.end(apart.begin("key", None, 2.0), 2.5)  # alone: nothing to compare
    apart.end(apart.begin("key", told, 2.5), 3.0)
    assert apart.take() == 4
    assert told.busy_ms == pytest.approx([500])


def test_a_look_is_due_once_several_have_ended() -> None:
    apart = Apart()
    for count in range(LOOK_EVERY):
        assert not apart.due
        apart.end(apart.begin("key", None, count), count + 1)
    assert apart.due
    apart.take()
    assert not apart.due
