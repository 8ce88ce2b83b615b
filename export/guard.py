"""What keeps tuning safe: scores on images that are not tuned on, and the rule by which new weights are taken or dropped."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .groups import Group


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

    From the images on which they differ, and never below that of one accuracy (by Laplace's rule) or one image: where nothing has
    changed sides yet, a single image would count as certain.
    """
    count = len(before.hits)
    changes = after.hits.double() - before.hits.double()
    paired = math.sqrt(max(float(changes.square().mean() - changes.mean().square()), 0.0) / count)
    share = (float(before.hits.sum()) + 1) / (count + 2)
    return max(paired, math.sqrt(share * (1 - share) / count), 1 / count)


def fallen(start: Mapping[int, Score], now: Mapping[int, Score]) -> list[int]:
    """The routes that do not hold."""
    return [route for route, score in now.items() if not holds(start[route], score)]


def mean_loss(scores: Mapping[int, Score], routes: Sequence[int]) -> float:
    return sum(scores[route].loss for route in routes) / len(routes)


class ScoreSum:
    """A score that grows batch by batch."""

    def __init__(self) -> None:
        self._losses = [torch.zeros(0)]
        self._hits = [torch.zeros(0, dtype=torch.bool)]

    def add(self, losses: Tensor, hits: Tensor) -> None:
        self._losses.append(losses.float().cpu())
        self._hits.append(hits.cpu())

    def score(self) -> Score:
        return Score(torch.cat(self._losses), torch.cat(self._hits))


class Guard:
    """What routes got at the start and at best, and which weights are taken.

    start, best:  by index of the route
    """

    def __init__(self, measure: Callable[[Sequence[int]], dict[int, Score]]) -> None:
        """measure: held-out scores of routes with the weights that are in place."""
        self._measure = measure
        self.start: dict[int, Score] = {}
        self.best: dict[int, Score] = {}

    def begin(self, routes: Sequence[int], earlier: Mapping[int, Score]) -> None:
        """earlier: what routes began with before weights were taken that are in place now: they may not fall below that."""
        self.best = self._measure(routes)
        self.start = {**self.best, **earlier}

    def judge(self, groups: Sequence[Group], blend: bool) -> list[int]:
        """Keep the present values of groups that lower the mean loss of their routes and let none of them fall; dismiss the others.

        Where some groups of a route are kept and others are not, the route is measured as it will be. blend: values that are not kept are
        tried once more, half-way to the best. Returns the routes that have fallen with the values that were in place.
        """
        now = self._measure(sorted({route for group in groups for route in group.routes}))
        found = fallen(self.start, now)
        kept = self._take(groups, now)
        for group in groups:
            if group in kept:
                continue
            if blend:
                tuned = group.values()
                group.blend()
                if self._take([group], self._measure(group.routes)):
                    continue
                group.load(tuned)
            group.dismiss()
        return found

    def _take(self, groups: Sequence[Group], now: dict[int, Score]) -> list[Group]:
        taken = [group for group in groups if mean_loss(self.best, group.routes) > mean_loss(now, group.routes)]
        while taken:
            composed = self._composed(groups, taken, now)
            bad = set(fallen(self.start, composed))
            if not bad:
                self.best.update(composed)
                break
            taken = [group for group in taken if not bad.intersection(group.routes)]
        for group in taken:
            group.keep()
        return taken

    def _composed(self, groups: Sequence[Group], taken: Sequence[Group], now: dict[int, Score]) -> dict[int, Score]:
        """Scores of the routes of `taken` when the other groups have their best values."""
        left = [group for group in groups if group not in taken]
        mixed = sorted({r for group in taken for r in group.routes} & {r for group in left for r in group.routes})
        scores = {route: now[route] for group in taken for route in group.routes}
        if mixed:
            tuned = [group.values() for group in left]
            for group in left:
                group.restore()
            scores.update(self._measure(mixed))
            for group, values in zip(left, tuned, strict=True):
                group.load(values)
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {r: score.state_dict() for r, score in scores.items()} for name, scores in (("start", self.start), ("best", self.best))
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start, self.best = (
            {route: Score(item["losses"], item["hits"]) for route, item in state[name].items()} for name in ("start", "best")
        )
