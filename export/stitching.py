"""Stitching layers: the affine map from a cut of one anchor to a cut of another, and its least-squares fit.

Initialisation by least squares follows Pan et al., Stitchable Neural Networks, CVPR 2023; here from normal equations, so
that memory does not depend on the number of images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from restnet_runtime.errors import ExportError

from .layouts import Layout

RIDGE = 1e-3
"""Default strength of the ridge, relative to the mean variance of the source's channels."""
_CHUNK_ROWS = 16384  # bounds the float64 copies of a batch


class StitchingLayer(nn.Module):
    """Carries (B, *source.shape) to (B, *target.shape): resample in space, drop or create prefix tokens, affine map.

    weight, bias: (target channels, source channels) and (target channels): the affine map of every position and of the prefix tokens that
    both sides have (SN-Net maps the class token like the others).
    prefix_weight, prefix_bias: (missing, target channels, source channels) and (missing, target channels), only where the target has prefix
    tokens that the source lacks: each is an affine map of its own from the mean over the source's grid.

    Grids of different size: average pooling where both sides shrink by a whole factor, else bilinear. A vector is a grid of one position.
    Starts as the identity as far as the channels allow.
    """

    prefix_weight: Tensor | None
    prefix_bias: Tensor | None

    def __init__(self, source: Layout, target: Layout) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.weight = nn.Parameter(torch.eye(target.channels, source.channels))
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
        if source.kind == target.kind == "tokens" and source.prefix == target.prefix and self._same_grid:
            return functional.linear(x, self.weight, self.bias)
        if source.kind == "map" and target.kind == "map":
            kernel = self.weight[:, :, None, None]
            if self._grows:  # both steps commute, as the weights of the resampling sum to one: take the smaller grid for the products
                return self._resampled(functional.conv2d(x, kernel, self.bias))
            return functional.conv2d(self._resampled(x), kernel, self.bias)
        prefix, grid = _parted(x, source)
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
            mean = grid.mean((1, 2))
            parts += [functional.linear(mean, w, b).unsqueeze(1) for w, b in zip(self.prefix_weight, self.prefix_bias, strict=True)]
        return torch.cat([*parts, rows.flatten(1, 2)], 1) if parts else rows.flatten(1, 2)

    def features(self, x: Tensor) -> Tensor:
        """The rows that the shared affine map sees, as if resampling always came first: (B * positions of the target, source channels).

        Shared prefix tokens first, then the grid, image by image; the rows of `target_rows` in the same order.
        """
        prefix, grid = _parted(x, self.source)
        if not self._same_grid:
            grid = self._resampled(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.cat([prefix[:, : self.shared_prefix], grid.flatten(1, 2)], 1).flatten(0, 1)

    def target_rows(self, y: Tensor) -> Tensor:
        """What the shared affine map should answer for `features`: (B * positions of the target, target channels)."""
        prefix, grid = _parted(y, self.target)
        return torch.cat([prefix[:, : self.shared_prefix], grid.flatten(1, 2)], 1).flatten(0, 1)

    @property
    def _same_grid(self) -> bool:
        return (self.source.height, self.source.width) == (self.target.height, self.target.width)

    @property
    def _grows(self) -> bool:
        return self.source.height * self.source.width < self.target.height * self.target.width

    def _resampled(self, x: Tensor) -> Tensor:
        """(B, C, source grid) -> (B, C, target grid)."""
        source, target = self.source, self.target
        if self._same_grid:
            return x
        if source.height % target.height == 0 and source.width % target.width == 0:
            return functional.avg_pool2d(x, (source.height // target.height, source.width // target.width))
        return functional.interpolate(x, (target.height, target.width), mode="bilinear", align_corners=False)


class NormalEquations:
    """Ridge least squares y = W x + b from sums over rows, in float64; the bias is not penalised.

    Holds (in, in) and (in, out) sums: memory does not grow with the number of rows.
    """

    def __init__(self) -> None:
        self.rows = 0

    def add(self, x_rows: Tensor, y_rows: Tensor) -> None:
        """Add rows (N, in) and (N, out), in chunks.

        Raises `ExportError` where they do not match each other or earlier ones, or are not finite.
        """
        if x_rows.ndim != 2 or y_rows.ndim != 2 or len(x_rows) != len(y_rows):
            raise ExportError(f"least squares: rows of shape {tuple(x_rows.shape)} and {tuple(y_rows.shape)} do not match")
        for x, y in zip(torch.split(x_rows.detach(), _CHUNK_ROWS), torch.split(y_rows.detach(), _CHUNK_ROWS), strict=True):
            self._add(x.double(), y.double())

    def _add(self, x: Tensor, y: Tensor) -> None:
        if not self.rows:
            # Sums are taken around the first rows' means: subtracting large means afterwards would cost digits.
            self._x0, self._y0 = x.mean(0), y.mean(0)
            self._sum_x, self._sum_y = torch.zeros_like(self._x0), torch.zeros_like(self._y0)
            self._xx, self._xy = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], y.shape[1])
        if x.shape[1:] != self._x0.shape or y.shape[1:] != self._y0.shape:
            raise ExportError(
                f"least squares: rows of {x.shape[1]} and {y.shape[1]} channels after rows of {len(self._x0)} and {len(self._y0)}"
            )
        x, y = x - self._x0, y - self._y0
        xx, xy = x.T @ x, x.T @ y
        if not (torch.isfinite(xx).all() and torch.isfinite(xy).all()):
            raise ExportError("least squares: an activation is not finite")
        self._xx += xx
        self._xy += xy
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        self.rows += len(x)

    def solve(self, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
        """The minimiser of sum |W x + b - y|^2 + ridge * rows * v * |W|^2, v the mean variance of the in channels.

        Returns weight (out, in) and bias (out,), float64. With ridge 0 and dependent channels, the solution of least norm.
        Raises `ExportError` when no row was added or the ridge is below zero.
        """
        if not self.rows or not ridge >= 0:
            raise ExportError(f"least squares: {self.rows} rows and ridge {ridge}: needs a row, and a ridge of at least 0")
        mean_x, mean_y = self._sum_x / self.rows, self._sum_y / self.rows
        xx = self._xx - self.rows * torch.outer(mean_x, mean_x)
        xy = self._xy - self.rows * torch.outer(mean_x, mean_y)
        penalised = xx + ridge * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if ridge == 0 or int(failed):
            weight = torch.linalg.pinv(penalised, hermitian=True, rtol=1e-12) @ xy
        else:
            weight = torch.cholesky_solve(xy, factor)
        weight = weight.T.contiguous()
        return weight, self._y0 + mean_y - weight @ (self._x0 + mean_x)


class StitchFit:
    """Least squares for one stitching layer. Several pairs that share the layer add to the same sums: one joint solve."""

    def __init__(self, layer: StitchingLayer) -> None:
        self._layer = layer
        self._shared = NormalEquations()
        self._prefix = [NormalEquations() for _ in range(layer.target.prefix - layer.shared_prefix)]

    def add(self, source: Tensor, target: Tensor) -> None:
        """One batch of activations of the same images: (B, *source.shape) and (B, *target.shape)."""
        layer = self._layer
        for tensor, layout, side in ((source, layer.source, "source"), (target, layer.target, "target")):
            if tuple(tensor.shape[1:]) != tuple(layout.shape):
                raise ExportError(
                    f"stitching: {side} activation {tuple(tensor.shape)} where (batch, {', '.join(map(str, layout.shape))}) belongs"
                )
        source, target = source.detach(), target.detach()
        self._shared.add(layer.features(source), layer.target_rows(target))
        if self._prefix:
            mean = _parted(source, layer.source)[1].mean((1, 2))
            for offset, equations in enumerate(self._prefix):
                equations.add(mean, target[:, layer.shared_prefix + offset])

    def finish(self, ridge: float = RIDGE) -> None:
        """Write the solution into the layer. Raises `ExportError` when nothing was added."""
        layer = self._layer
        with torch.no_grad():
            weight, bias = self._shared.solve(ridge)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            if layer.prefix_weight is not None and layer.prefix_bias is not None:
                for index, equations in enumerate(self._prefix):
                    weight, bias = equations.solve(max(ridge, RIDGE))  # one row per image: never without a ridge
                    layer.prefix_weight[index].copy_(weight)
                    layer.prefix_bias[index].copy_(bias)


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
