"""How the tensor at a cut is laid out: a map, a channels-last map, tokens or a vector."""

from dataclasses import dataclass
from typing import Literal

from restnet_runtime.errors import CutError

Kind = Literal["map", "map_last", "tokens", "vector"]

MAX_PREFIX = 16
"""Class, distillation and register tokens in front of the grid: no published model has more."""


@dataclass(frozen=True)
class Layout:
    """What the dimensions of a tensor at a cut mean. Sizes are in elements and leave out the batch.

    `prefix` counts tokens in front of the grid that stand for no place (class, distillation, register tokens); 0 unless `kind` is tokens.
    A vector has height and width 1.
    """

    kind: Kind
    channels: int
    height: int
    width: int
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the batch: map (C, H, W), map_last (H, W, C), tokens (prefix + H*W, C), vector (C,)."""
        if self.kind == "map":
            return (self.channels, self.height, self.width)
        if self.kind == "map_last":
            return (self.height, self.width, self.channels)
        if self.kind == "tokens":
            return (self.prefix + self.height * self.width, self.channels)
        return (self.channels,)


def layouts_of(shape: tuple[int, ...], input_shape: tuple[int, int, int]) -> list[Layout]:
    """Every layout the shape allows, best first: the nearer the grid's aspect to the image's and the fewer prefix tokens, the better.

    `shape` is without the batch, `input_shape` is the image's (C, H, W). Two equally good ones (8, 8, 8) are listed map first.
    """
    if len(shape) == 1:
        return [Layout("vector", shape[0], 1, 1)]
    if len(shape) == 2:
        return _tokens(shape[0], shape[1], input_shape)
    if len(shape) != 3:
        return []
    candidates = [Layout("map", shape[0], shape[1], shape[2]), Layout("map_last", shape[2], shape[0], shape[1])]
    fitting = [layout for layout in candidates if _distortion(layout.height, layout.width, input_shape) < 1]
    return sorted(fitting, key=lambda layout: _distortion(layout.height, layout.width, input_shape))


def layout_of(shape: tuple[int, ...], input_shape: tuple[int, int, int], like: Kind | None = None) -> Layout:
    """The layout of a cut's tensor; `like` decides between a map and a channels-last map where the shape allows both.

    Raises CutError if no layout fits.
    """
    fitting = layouts_of(shape, input_shape)
    if not fitting:
        raise CutError(
            f"a tensor of shape (batch, {', '.join(map(str, shape))}) is no map, tokens or vector of an image of "
            f"{input_shape[1]}x{input_shape[2]}: allowed are (C, H, W) and (H, W, C) of the image's aspect, "
            f"(prefix + H*W, C) with at most {MAX_PREFIX} prefix tokens, and (C,)"
        )
    return next((layout for layout in fitting if layout.kind == like), fitting[0])


def _tokens(count: int, channels: int, input_shape: tuple[int, int, int]) -> list[Layout]:
    found = []
    for prefix in range(min(MAX_PREFIX, count - 1) + 1):
        places = count - prefix
        grids = [(h, places // h) for h in range(1, places + 1) if places % h == 0]
        fitting = [(h, w) for h, w in grids if _distortion(h, w, input_shape) < 1]
        found += [Layout("tokens", channels, h, w, prefix) for h, w in fitting]
    return sorted(found, key=lambda layout: (_distortion(layout.height, layout.width, input_shape), layout.prefix))


def _distortion(height: int, width: int, input_shape: tuple[int, int, int]) -> float:
    """How far a grid is from the image's aspect, in cells of its own: strides round by less than one cell, so 1 and more does not fit."""
    _, image_height, image_width = input_shape
    return abs(height * image_width - width * image_height) / max(image_height, image_width)
