"""Stitching layers: the affine map from a cut of one anchor to a cut of another."""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from restnet_runtime.errors import ExportError

from .layouts import Layout
from .resampling import Resampling, resampled, resamplings, same_grid

MOST_COLUMNS = 1152
"""Of a layer that sees neighbours: what least squares and tuning hold and compute grows by their square."""
_ROWS_AT_ONCE = 16384


@dataclass(frozen=True)
class Fit:
    """How least squares came to a layer's weights.

    method: `joint` solve of all pairs that share the layer, or `mean` of their solutions
    ridge:  strength relative to the mean variance of the source's channels
    error:  squared error at the target's cut on images that were not fitted on, relative to the target's variance
    """

    method: str
    ridge: float
    error: float


class StitchingLayer(nn.Module):
    """Carries (B, *source.shape) to (B, *target.shape): resample in space, drop or create prefix tokens, affine map.

    weight, bias: (target channels, source channels) and (target channels): the affine map of every position and of the prefix tokens that
    both sides have (SN-Net maps the class token like the others).
    kernel: side of the square of positions that the map sees around each, odd; zeros lie beyond the border. Above 1 weight has
    source channels * kernel**2 columns, of each channel row by row; only between grids of that size without prefix tokens, and for
    at most `MOST_COLUMNS`; elsewhere it is 1. Where the grid grows, neighbours are those in the source's grid.
    prefix_weight, prefix_bias: (missing, target channels, source channels) and (missing, target channels), only where the target has prefix
    tokens that the source lacks: each is an affine map of its own from the mean over the source's grid.

    resampling: how grids of different size are carried over; by default the first of `resamplings`. A vector is a grid of one position.
    Starts as the identity as far as the channels allow. fit: how it was fitted, if it was. Raises `ExportError` for an even kernel.
    """

    prefix_weight: Tensor | None
    prefix_bias: Tensor | None

    def __init__(self, source: Layout, target: Layout, resampling: Resampling | None = None, kernel: int = 1) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.fit: Fit | None = None
        self.resampling = resampling or resamplings(source, target)[0]
        if kernel < 1 or kernel % 2 == 0:
            raise ExportError(f"a stitching layer of kernel {kernel}: an odd number, 1 or more, is what has a middle")
        sides = (source.height, source.width, target.height, target.width)
        fits = min(sides) >= kernel and not source.prefix and not target.prefix and source.channels * kernel**2 <= MOST_COLUMNS
        self.kernel = kernel if fits else 1
        identity = torch.zeros(target.channels, source.channels, self.kernel**2)
        identity[:, :, self.kernel**2 // 2] = torch.eye(target.channels, source.channels)
        self.weight = nn.Parameter(identity.flatten(1))
        self.bias = nn.Parameter(torch.zeros(target.channels))
        self.shared_prefix = min(source.prefix, target.prefix)
        missing = target.prefix - self.shared_prefix
        self.register_parameter("prefix_weight", None)
        self.register_parameter("prefix_bias", None)
        if missing:
            self.prefix_weight = nn.Parameter(self.weight.detach().expand(missing, -1, -1).clone())
            self.prefix_bias = nn.Parameter(torch.zeros(missing, target.channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *source.shape) -> (B, *target.shape)."""
        source, target = self.source, self.target
        if source.kind == target.kind == "tokens" and source.prefix == target.prefix and self._same_grid and self.kernel == 1:
            return functional.linear(x, self.weight, self.bias)
        if source.kind == "map" and target.kind == "map":
            return self._mapped(x)
        prefix, grid = _parted(x, source)
        if self.kernel > 1:
            rows = self._mapped(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            rows = functional.linear(grid, self.weight, self.bias) if self._grows else grid
            if not self._same_grid:
                rows = self._resampled(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if not self._grows:
                rows = functional.linear(rows, self.weight, self.bias)
        if target.kind == "map":
            return rows.permute(0, 3, 1, 2)
        if target.kind == "map_last":
            return rows
        if target.kind == "vector":
            return rows.flatten(1)
        parts = []
        if self.shared_prefix:
            parts.append(functional.linear(prefix[:, : self.shared_prefix], self.weight, self.bias))
        if self.prefix_weight is not None and self.prefix_bias is not None:
            mean = self.prefix_features(x)
            parts += [functional.linear(mean, w, b).unsqueeze(1) for w, b in zip(self.prefix_weight, self.prefix_bias, strict=True)]
        return torch.cat([*parts, rows.flatten(1, 2)], 1) if parts else rows.flatten(1, 2)

    @property
    def most_images(self) -> int:
        """So many at once `features` should be asked for: with neighbours the rows of a batch are many times the batch."""
        return sys.maxsize if self.kernel == 1 else max(1, _ROWS_AT_ONCE // (self.target.height * self.target.width))

    def features(self, x: Tensor) -> Tensor:
        """The rows that the shared affine map sees, as if resampling always came first: (B * positions of the target, columns of weight).

        Shared prefix tokens first, then the grid, image by image; the rows of `target_rows` in the same order.
        """
        prefix, grid = _parted(x, self.source)
        if self.kernel > 1:
            as_map = grid.permute(0, 3, 1, 2)
            as_map = self._resampled(self._around(as_map)) if self._grows else self._around(self._resampled(as_map))
            return as_map.flatten(2).mT.flatten(0, 1)
        if not self._same_grid:
            grid = self._resampled(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.cat([prefix[:, : self.shared_prefix], grid.flatten(1, 2)], 1).flatten(0, 1)

    def target_rows(self, y: Tensor) -> Tensor:
        """What the shared affine map should answer for `features`: (B * positions of the target, target channels)."""
        prefix, grid = _parted(y, self.target)
        return torch.cat([prefix[:, : self.shared_prefix], grid.flatten(1, 2)], 1).flatten(0, 1)

    def prefix_features(self, x: Tensor) -> Tensor:
        """What the maps of created prefix tokens see: the mean over the source's grid, (B, source channels)."""
        return _parted(x, self.source)[1].mean((1, 2))

    def prefix_targets(self, y: Tensor) -> Tensor:
        """What they should answer: the prefix tokens of the target that the source lacks, (B, missing, target channels)."""
        return _parted(y, self.target)[0][:, self.shared_prefix :]

    @property
    def _same_grid(self) -> bool:
        return same_grid(self.source, self.target)

    @property
    def _grows(self) -> bool:
        """Then the affine map comes before the resampling: its weights sum to one, so both orders are the same, and fewer products do."""
        return self.source.height * self.source.width < self.target.height * self.target.width

    def _mapped(self, x: Tensor) -> Tensor:
        """(B, source channels, source grid) -> (B, target channels, target grid)."""
        weight = self.weight.view(self.target.channels, self.source.channels, self.kernel, self.kernel)
        if self._grows:
            return self._resampled(functional.conv2d(x, weight, self.bias, padding=self.kernel // 2))
        return functional.conv2d(self._resampled(x), weight, self.bias, padding=self.kernel // 2)

    def _around(self, x: Tensor) -> Tensor:
        """(B, C, any grid) -> (B, C * kernel**2, the same): what the kernel sees at each position, in the order of the weight's columns."""
        return functional.unfold(x, self.kernel, padding=self.kernel // 2).reshape(len(x), -1, *x.shape[2:])

    def _resampled(self, x: Tensor) -> Tensor:
        """(B, C, source grid) -> (B, C, target grid)."""
        return resampled(x, self.target, self.resampling)


def _parted(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Prefix tokens (B, prefix, C) and grid (B, H, W, C) of an activation (B, *layout.shape)."""
    if layout.kind == "tokens":
        grid = x[:, layout.prefix :].reshape(-1, layout.height, layout.width, layout.channels)
    elif layout.kind == "map":
        grid = x.permute(0, 2, 3, 1)
    elif layout.kind == "map_last":
        grid = x
    else:
        grid = x[:, None, None, :]
    return grid.flatten(1, 2)[:, :0] if layout.prefix == 0 else x[:, : layout.prefix], grid
