"""Ridge least squares y = W x + b from streamed moments, in float64, with the strength of the ridge chosen on held-out rows.

Everything that a fit and its error on other rows depend on are means and centred sums of products, so that one pass over the images
suffices and memory does not depend on their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from restnet_runtime.errors import ExportError

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths of the ridge that are tried, relative to the mean variance of the source's channels; ascending."""
WEAK_RIDGES = RIDGES[:3]
"""Where rows abound: strong ridges cost the route accuracy that the error at the cut does not show."""
MANY_ROWS = 10
"""So many rows for each channel abound."""
MOST_STRETCH = 3.0
"""An output that is predicted worse than this would mostly be noise."""
_TINY = 1e-300
_CHUNK_ROWS = 16384  # bounds the float64 copies of a batch


@dataclass(frozen=True)
class Moments:
    """Means and centred sums of products of rows x (N, in) and y (N, out), float64. A tensor is never changed, so it may be shared.

    mean_x (in,), mean_y (out,); xx (in, in), xy (in, out); yy (out,): of y only the sums of squares per channel.
    rows counts rows, as a fraction where they are weighted.
    """

    rows: float
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x_rows: Tensor, y_rows: Tensor) -> "Moments":
        """The moments of rows (N, in) and (N, out), N > 0. Raises `ExportError` where they do not match or are not finite."""
        if x_rows.ndim != 2 or y_rows.ndim != 2 or len(x_rows) != len(y_rows) or not len(x_rows):
            raise ExportError(f"least squares: rows of shape {tuple(x_rows.shape)} and {tuple(y_rows.shape)} do not match")
        chunks = zip(torch.split(x_rows.detach(), _CHUNK_ROWS), torch.split(y_rows.detach(), _CHUNK_ROWS), strict=True)
        return merged([cls._of_chunk(x.double(), y.double()) for x, y in chunks])

    @classmethod
    def _of_chunk(cls, x: Tensor, y: Tensor) -> "Moments":
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        found = cls(len(x), mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum(0))
        if not (torch.isfinite(found.xx).all() and torch.isfinite(found.yy).all()):
            raise ExportError("least squares: an activation is not finite")
        return found

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together (Chan, Golub and LeVeque, 1979: no cancellation of large means)."""
        if self.xy.shape != other.xy.shape:
            raise ExportError(f"least squares: {tuple(other.xy.shape)} channels in and out after {tuple(self.xy.shape)}")
        rows = self.rows + other.rows
        share, factor = other.rows / rows, self.rows * other.rows / rows
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return Moments(
            rows,
            self.mean_x + share * dx,
            self.mean_y + share * dy,
            self.xx + other.xx + factor * torch.outer(dx, dx),
            self.xy + other.xy + factor * torch.outer(dx, dy),
            self.yy + other.yy + factor * dy * dy,
        )

    def targets(self, columns: slice) -> "Moments":
        """The moments of x and some channels of y."""
        return Moments(self.rows, self.mean_x, self.mean_y[columns], self.xx, self.xy[:, columns], self.yy[columns])

    def weighted(self, weight: float) -> "Moments":
        """As if every row counted `weight` times."""
        return Moments(weight * self.rows, self.mean_x, self.mean_y, weight * self.xx, weight * self.xy, weight * self.yy)

    @property
    def spread(self) -> float:
        """Sum of squares of y around its mean."""
        return float(self.yy.sum())

    def residual(self, weight: Tensor, bias: Tensor) -> float:
        """Sum of |W x + b - y|^2 over these rows; weight (out, in), bias (out,)."""
        offset = weight @ self.mean_x + bias - self.mean_y
        around = float(((weight @ self.xx - 2 * self.xy.T) * weight).sum()) + self.spread
        return max(around, 0.0) + self.rows * float(offset @ offset)


Solution = tuple[Tensor, Tensor]
"""weight (out, in) and bias (out,), float64."""


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows together; of one part at least."""
    return reduce(Moments.__add__, parts)


def solve(moments: Moments, ridge: float) -> Solution:
    """The minimiser of sum |W x + b - y|^2 + ridge * rows * v * |W|^2, v the mean variance of the in channels; b is not penalised.

    With ridge 0 and dependent channels, the solution of least norm. Raises `ExportError` when the ridge is below zero.
    """
    if not ridge >= 0:
        raise ExportError(f"least squares: ridge {ridge} must be at least 0")
    xx = moments.xx
    penalised = xx + ridge * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    if ridge == 0 or int(failed):
        weight = torch.linalg.pinv(penalised, hermitian=True, rtol=1e-12) @ moments.xy
    else:
        weight = torch.cholesky_solve(moments.xy, factor)
    weight = weight.T.contiguous()
    return weight, moments.mean_y - weight @ moments.mean_x


def joint(pairs: Sequence[Moments], ridge: float) -> Solution:
    """One solve for several pairs that share a map; each counts as its rows do."""
    return solve(merged(pairs), ridge)


def mean_of_solutions(pairs: Sequence[Moments], ridge: float) -> Solution:
    """The mean of the pairs' own solutions: what SN-Net's implementation starts shared layers from."""
    weights, biases = zip(*(solve(pair, ridge) for pair in pairs), strict=True)
    return torch.stack(weights).mean(0), torch.stack(biases).mean(0)


def spread_matched(solution: Solution, moments: Moments) -> Solution:
    """The solution with every output stretched to the spread that its target has, up to `MOST_STRETCH` times; means stay where they are.

    Least squares answers with the mean of all targets that its input allows, which varies less than they do. The blocks behind were made
    for activations of the full spread (after REPAIR, Jordan et al., ICLR 2023, which does so to merged networks).
    """
    weight, _ = solution
    predicted = ((weight @ moments.xx) * weight).sum(1).clamp_min(_TINY)
    weight = weight * (moments.yy / predicted).sqrt().clamp(1.0, MOST_STRETCH)[:, None]
    return weight, moments.mean_y - weight @ moments.mean_x


Method = Callable[[Sequence[Moments], float], Solution]


def held_out_error(pairs: Sequence[Sequence[Moments]], method: Method, ridge: float) -> float:
    """The squared error on rows that were not fitted on, relative to the spread of y: 0 is perfect, 1 what a constant reaches.

    pairs: for each pair that shares the map its folds, at least two; each fold is predicted from the others. The mean over the pairs.
    """
    errors = [0.0] * len(pairs)
    for held in range(len(pairs[0])):
        weight, bias = method([merged([*folds[:held], *folds[held + 1 :]]) for folds in pairs], ridge)
        for index, folds in enumerate(pairs):
            errors[index] += folds[held].residual(weight, bias)
    spreads = [sum(fold.spread for fold in folds) for folds in pairs]
    return sum(error / max(spread, _TINY) for error, spread in zip(errors, spreads, strict=True)) / len(pairs)


def best_ridge(pairs: Sequence[Sequence[Moments]], method: Method = joint) -> tuple[float, float]:
    """(ridge, its held-out error): from the middle downhill, so that three or four strengths are tried, not all.

    Of `RIDGES`, or of `WEAK_RIDGES` where each pair has `MANY_ROWS` rows for each channel of x.
    """
    plenty = all(sum(fold.rows for fold in folds) >= MANY_ROWS * len(folds[0].xx) for folds in pairs)
    strengths = WEAK_RIDGES if plenty else RIDGES
    errors: dict[int, float] = {}

    def error(index: int) -> float:
        if index not in errors:
            errors[index] = held_out_error(pairs, method, strengths[index])
        return errors[index]

    best = len(strengths) // 2
    for step in (1, -1):
        while 0 <= best + step < len(strengths) and error(best + step) < error(best):
            best += step
    return strengths[best], error(best)
