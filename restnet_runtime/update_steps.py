"""What is told of updates: each step on the way of a new bundle, and how it ended."""

from dataclasses import dataclass
from typing import Literal

State = Literal["verifying", "loading", "trial", "accepted", "returned", "refused", "unchanged"]
OUTCOMES: tuple[State, ...] = ("accepted", "returned", "refused", "unchanged")


@dataclass(frozen=True)
class UpdateStep:
    """number: counts the steps of all models; at_s: seconds since the epoch. digest: of the new bundle, once it is known."""

    number: int
    at_s: float
    model: str
    state: State
    digest: str | None
    reason: str
