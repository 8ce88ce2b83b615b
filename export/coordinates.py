"""The space in which a stitching layer is tuned: its input whitened, its output in units of the target's spread.

There one step size fits all layers: a step of 0.05 moves an output by about a twentieth of the standard deviation of what it stands for,
whatever the scale of the activations and however their channels correlate. The whitening is the inverse root of the covariance that least
squares solves with, so a gradient step is one of preconditioned (natural-gradient-like) descent.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from restnet_runtime.errors import ExportError

from .routes import StitchedRoute
from .stitching import StitchingLayer
from .walks import Seen

DAMPING = 1e-2
"""Added to the variances of the input, relative to their mean, so that directions in which hardly anything varies stay calm."""


class Spread:
    """Mean and covariance of a layer's input rows and standard deviation of its target rows, streamed in float64."""

    def __init__(self, layer: StitchingLayer) -> None:
        self._layer = layer
        self._rows = self._images = 0

    def add(self, source: Tensor, target: Tensor) -> None:
        """One batch of activations of the same images: (B, *source.shape) and (B, *target.shape)."""
        most = min(self._layer.most_images, len(source))
        for x, y in zip(torch.split(source.detach(), most), torch.split(target.detach(), most), strict=True):
            self._add(self._layer.features(x).double(), self._layer.target_rows(y).double())

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Rows (N, in) and (N, out)."""
        if not self._rows:
            self._sum_x, self._xx = torch.zeros_like(x[0]), x.new_zeros(x.shape[1], x.shape[1])
            self._sum_y, self._yy = torch.zeros_like(y[0]), torch.zeros_like(y[0])
        self._sum_x += x.sum(0)
        self._xx += x.T @ x
        self._sum_y += y.sum(0)
        self._yy += y.square().sum(0)
        self._rows += len(x)

    @property
    def mean(self) -> Tensor:
        """(in,)"""
        return self._sum_x / self._rows

    @property
    def covariance(self) -> Tensor:
        """(in, in)"""
        return self._xx / self._rows - torch.outer(self.mean, self.mean)

    @property
    def target_deviation(self) -> Tensor:
        """(out,)"""
        return (self._yy / self._rows - (self._sum_y / self._rows).square()).clamp_min(0).sqrt()


def spreads_of(
    routes: Sequence[StitchedRoute], layers: Mapping[str, StitchingLayer], batches: Iterable[Mapping[str, Seen]]
) -> dict[str, Spread]:
    """How the input and the target of every layer vary, over what the anchors compute of each batch.

    Raises `ExportError` naming a layer where that is not finite.
    """
    spreads = {name: Spread(layer) for name, layer in layers.items()}
    for seen in batches:
        for route in routes:
            for before, name, after in zip(route.parts, route.layers, route.parts[1:], strict=False):
                spreads[name].add(seen[before.anchor].cuts[before.last], seen[after.anchor].cuts[after.first - 1])
    for name in dict.fromkeys(name for route in routes for name in route.layers):
        spread = spreads[name]
        if not (torch.isfinite(spread.covariance).all() and torch.isfinite(spread.target_deviation).all()):
            raise ExportError(f"{name}: what it stitches is NaN or infinite for some of the images to tune on")
    return spreads


class LayerCoordinates:
    """A stitching layer as W0 + S V P and b0 + S v - (S V P) m, with V and v (`parameters`) free and 0 at first.

    P is the inverse root of the input's damped covariance, m the input's mean, S the target's standard deviation. With `rank`, V is the
    product of two factors of that inner size: a low-rank update of the fitted layer (after SN-Netv2).

    The layer itself stays an ordinary module: `pull` turns its gradients into gradients of the coordinates, `push` writes the
    coordinates into it. Prefix tokens that the layer creates have coordinates of their own over the same P and m.
    """

    def __init__(self, layer: StitchingLayer, spread: Spread, rank: int | None = None, seed: int = 0) -> None:
        self.layer = layer
        like = layer.weight
        self._mean = spread.mean.to(like)
        self._whiten = _inverse_root(spread.covariance).to(like)
        deviation = spread.target_deviation
        self._scale = deviation.clamp_min(float(deviation.mean()) * DAMPING).clamp_min(torch.finfo(torch.float32).tiny).to(like)
        pairs: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias)]
        if layer.prefix_weight is not None and layer.prefix_bias is not None:
            pairs.append((layer.prefix_weight, layer.prefix_bias))
        self._affine = pairs
        self._start = [(weight.detach().clone(), bias.detach().clone()) for weight, bias in pairs]
        self._rank = None if rank is None or rank >= min(layer.weight.shape) else rank
        generator = torch.Generator().manual_seed(seed)
        self.inner: list[nn.Parameter] = []
        self._free: list[tuple[nn.Parameter, ...]] = []
        for weight, bias in pairs:
            offset = nn.Parameter(torch.zeros_like(bias))
            if self._rank is None:
                self._free.append((offset, nn.Parameter(torch.zeros_like(weight))))
            else:
                right = torch.randn(*weight.shape[:-2], self._rank, weight.shape[-1], generator=generator)
                right = right / right.norm(dim=-1, keepdim=True)
                left = torch.zeros(*weight.shape[:-1], self._rank)
                self._free.append((offset, nn.Parameter(left.to(like)), nn.Parameter(right.to(like))))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser steps on."""
        return [parameter for free in self._free for parameter in free]

    def step_sizes(self, lr: float) -> list[float]:
        """One per parameter: entries of a matrix move together, so each moves less the more of them there are in a row."""
        return [lr if i == 0 else lr / parameter.shape[-1] ** 0.5 for free in self._free for i, parameter in enumerate(free)]

    def pull(self) -> None:
        """Gradients of the layer become those of the coordinates, and the layer's are dropped. Without any there, nothing is set."""
        for (weight, bias), free in zip(self._affine, self._free, strict=True):
            if weight.grad is None or bias.grad is None:
                for parameter in free:
                    parameter.grad = None
                continue
            of_weight = weight.grad - bias.grad.unsqueeze(-1) * self._mean  # the bias makes up for the mean
            inner = self._scale.unsqueeze(-1) * of_weight @ self._whiten
            free[0].grad = self._scale * bias.grad
            if self._rank is None:
                free[1].grad = inner
            else:
                free[1].grad, free[2].grad = inner @ free[2].detach().mT, free[1].detach().mT @ inner
            weight.grad = bias.grad = None

    def push(self) -> None:
        """Write the coordinates into the layer."""
        with torch.no_grad():
            for (weight, bias), (weight0, bias0), free in zip(self._affine, self._start, self._free, strict=True):
                inner = free[1] if self._rank is None else free[1] @ free[2]
                change = self._scale.unsqueeze(-1) * (inner @ self._whiten)
                weight.copy_(weight0 + change)
                bias.copy_(bias0 + self._scale * free[0] - change @ self._mean)


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0) + DAMPING * values.mean().clamp_min(1e-12)
    root: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return root
