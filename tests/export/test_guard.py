"""What counts as a fall."""

import math

import pytest
import torch

from restnet_export.guard import Score, holds, standard_error


def score(hits: int, count: int = 100, loss: float = 1.0) -> Score:
    return Score(torch.full((count,), loss), torch.arange(count) < hits)


def test_one_standard_error_is_allowed() -> None:
    """80 of 100: the error of one accuracy is 4 points; of the difference, where 4 images change sides one way, less."""
    before = score(80)
    assert standard_error(before, score(76)) == pytest.approx(math.sqrt(81 / 102 * 21 / 102 / 100))
    assert holds(before, score(80))
    assert holds(before, score(97))
    assert holds(before, score(76))
    assert not holds(before, score(75))


def test_many_changes_make_the_difference_less_certain() -> None:
    before = score(50)
    turned = Score(before.losses, ~before.hits)
    assert standard_error(before, turned) == pytest.approx(0.1)


def test_a_perfect_score_may_lose_an_image_but_not_many() -> None:
    assert holds(score(500, 500), score(499, 500))
    assert not holds(score(500, 500), score(497, 500))


def test_what_is_not_finite_never_holds() -> None:
    assert not holds(score(0), score(100, loss=math.nan))
    assert not holds(score(0), score(100, loss=math.inf))


def test_scores_are_means() -> None:
    found = Score(torch.tensor([1.0, 3.0]), torch.tensor([True, False]))
    assert (found.loss, found.accuracy) == (2.0, 0.5)
