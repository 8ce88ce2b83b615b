"""What keeps tuning safe: scores on images that are not tuned on, and the rule by which new weights are taken or dropped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """What a route got on the held-out images, image by image.

    losses:  float32 (N,), the objective's loss of the logits
    hits:    bool (N,): the label was named; without labels, the class that the teacher names
    """

    losses: Tensor
    hits: Tensor

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """0..1; without labels the agreement with the teacher."""
        return float(self.hits.double().mean())

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "hits": self.hits}


def holds(before: Score, after: Score) -> bool:
    """Whether accuracy has not fallen by more than one standard error; a loss that is not finite never holds."""
    return math.isfinite(after.loss) and after.accuracy >= before.accuracy - standard_error(before, after)


def standard_error(before: Score, after: Score) -> float:
    """Of the difference of two accuracies on the same images.

    From the images on which they differ, and never below that of one accuracy near 0 or 1 by Laplace's rule: where nothing has
    changed sides yet, a single image would count as certain.
    """
    count = len(before.hits)
    changes = after.hits.double() - before.hits.double()
    paired = math.sqrt(max(float(changes.square().mean() - changes.mean().square()), 0.0) / count)
    share = (float(before.hits.sum()) + 1) / (count + 2)
    return max(paired, math.sqrt(share * (1 - share) / count))


def accepted(start: Mapping[int, Score], best: Mapping[int, Score], now: Mapping[int, Score]) -> bool:
    """New weights are taken when every route holds against its start and their mean loss is the lowest so far."""
    return not fallen(start, now) and mean_loss(now) < mean_loss(best)


def fallen(start: Mapping[int, Score], now: Mapping[int, Score]) -> list[int]:
    """The routes that do not hold."""
    return [route for route, score in now.items() if not holds(start[route], score)]


def mean_loss(scores: Mapping[int, Score]) -> float:
    return sum(score.loss for score in scores.values()) / len(scores)


def scores_state(scores: Mapping[int, Score]) -> dict[int, dict[str, Tensor]]:
    return {route: score.state_dict() for route, score in scores.items()}


def scores_from(state: Mapping[int, Mapping[str, Any]]) -> dict[int, Score]:
    return {route: Score(item["losses"], item["hits"]) for route, item in state.items()}


class ScoreSum:
    """A score that grows batch by batch."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []

    def add(self, losses: Tensor, hits: Tensor) -> None:
        self._losses.append(losses.float().cpu())
        self._hits.append(hits.cpu())

    def score(self) -> Score:
        return Score(torch.cat(self._losses), torch.cat(self._hits))
