"""Predictions: from logits to the most probable classes, and the answer to a Python program."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from restnet_runtime.errors import InputError
from restnet_runtime.inference import Verdict


@dataclass(frozen=True)
class Scored:
    """One class with its probability, 0..1."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer to one image.

    name, index, probability:  of the most probable class
    top:          the most probable classes, best first
    logits:       (classes,) float32
    route, macs:  which route answered, and its multiply-accumulates
    latency_ms:   of the network's run, with all that shared it
    budget_met:   the route was chosen within the budget, and the time per input was within its latency limit
    budget, reason:  the limits in force, and why they were not met; `None` where they were
    """

    name: str
    index: int
    probability: float
    top: tuple[Scored, ...]
    route: str
    macs: int
    latency_ms: float
    budget_met: bool
    budget: str | None
    reason: str | None
    logits: npt.NDArray[np.float32] = field(repr=False, compare=False)

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32], scores: Sequence[Scored], verdict: Verdict) -> "Prediction":
        """logits: (classes,); scores: of the classes to list, best first."""
        best = scores[0]
        return cls(best.name, best.index, best.probability, tuple(scores), **vars(verdict), logits=logits)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities over the last axis, in float64. Raises `InputError` when a logit is not finite."""
    if not np.isfinite(logits).all():
        raise InputError("the network does not give finite numbers for this input: are its values on the scale that preprocessing makes?")
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def best_classes(logits: npt.NDArray[np.float32], classes: Sequence[str], top_k: int) -> list[list[Scored]]:
    """For each row of `logits`, shape (B, classes), the `top_k` most probable classes, best first; of equals the first.

    Lists all classes when there are fewer than `top_k`. Raises `InputError` when a logit is not finite.
    """
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    return [[Scored(classes[i], int(i), float(row[i])) for i in best] for row, best in zip(probabilities, order, strict=True)]
