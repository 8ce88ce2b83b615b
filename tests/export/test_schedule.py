"""The schedule: a step size that rises and falls, losses that give way, and checks that end with the last step."""

from itertools import pairwise

import pytest

from restnet_export.objectives import Objective
from restnet_export.schedule import WARM_UP, Schedule
from restnet_export.settings import TuneSettings


def test_steps_grow_then_shrink_to_nearly_nothing() -> None:
    shares = [Schedule(TuneSettings(steps=100)).share(done) for done in range(100)]
    assert shares[0] == pytest.approx(1 / WARM_UP)
    assert max(shares) == shares[WARM_UP - 1] <= 1
    assert all(before > after > 0 for before, after in pairwise(shares[WARM_UP - 1 :]))
    assert shares[-1] < 1e-3


def test_features_count_in_the_first_share_of_the_steps() -> None:
    objective = Objective(features=1.0, soft=0.1)
    schedule = Schedule(TuneSettings(steps=10, feature_share=0.3, objective=objective))
    assert [schedule.objective(done).features for done in range(10)] == [1.0] * 3 + [0.0] * 7
    assert schedule.objective(9).soft == objective.soft
    assert Schedule(TuneSettings(objective=objective)).objective(99) == objective, "all of them by default"


@pytest.mark.parametrize(
    ("steps", "checks", "judged"), [(20, 2, [10, 20]), (10, 3, [4, 7, 10]), (3, 10, [1, 2, 3]), (1, 1, [1])], ids=lambda value: str(value)
)
def test_weights_are_judged_evenly_and_after_the_last_step(steps: int, checks: int, judged: list[int]) -> None:
    schedule = Schedule(TuneSettings(steps=steps, checks=checks))
    assert [done for done in range(steps + 1) if schedule.judged(done)] == judged
