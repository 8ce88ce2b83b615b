"""What changes from step to step of tuning: the step size, the losses, and when weights are judged."""

import math
from dataclasses import dataclass, replace

from .objectives import Objective
from .settings import TuneSettings

WARM_UP = 5
"""Steps until the step size is reached."""


@dataclass(frozen=True)
class Schedule:
    """Steps are counted by those that are done, from 0 before the first."""

    settings: TuneSettings

    def share(self, done: int) -> float:
        """Of the step size (0..1), for the next step: warm-up, and a half cosine down to 0."""
        return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / self.settings.steps))

    def objective(self, done: int) -> Objective:
        """Of the next step: the distance of features counts in the first of them only."""
        settings = self.settings
        return settings.objective if done < settings.feature_share * settings.steps else replace(settings.objective, features=0.0)

    def judged(self, done: int) -> bool:
        """Are weights judged now? Evenly spread, and after the last step."""
        steps, checks = self.settings.steps, self.settings.checks
        return done in {math.ceil(steps * (index + 1) / checks) for index in range(checks)}
