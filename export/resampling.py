"""From the grid of one layout to that of another, before or after the affine map of a stitching layer."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from .layouts import Layout

Resampling = Literal["average", "bilinear", "nearest"]
"""average: means over the cells that one cell covers, where both sides shrink by a whole factor. nearest: one cell of the other grid."""


def same_grid(source: Layout, target: Layout) -> bool:
    """Nothing is to be resampled."""
    return (source.height, source.width) == (target.height, target.width)


def resamplings(source: Layout, target: Layout) -> tuple[Resampling, ...]:
    """What may carry one grid to the other, the most usual first. A vector is a grid of one position; all of it takes the same value."""
    if same_grid(source, target) or source.height * source.width == 1:
        return ("nearest",)
    if source.height % target.height == 0 and source.width % target.width == 0:
        return ("average", "nearest") if target.height * target.width > 1 else ("average",)
    return ("bilinear", "nearest")


def resampled(x: Tensor, target: Layout, how: Resampling) -> Tensor:
    """(B, C, source grid) -> (B, C, target grid)."""
    height, width = target.height, target.width
    if x.shape[2:] == (height, width):
        return x
    if how == "average":
        return functional.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width))
    if how == "nearest":
        return functional.interpolate(x, (height, width), mode="nearest")
    return functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
