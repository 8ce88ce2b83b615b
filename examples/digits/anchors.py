"""Two convolutional networks for 8x8 digits, for `python:examples/digits/anchors.py:cnn_s@CHECKPOINT`.

Both work on a 4x4 grid after their stem, as deep networks work on a small grid after theirs, and differ in how they get there: the large
one looks at all 64 pixels, the small one at their means over 2x2, which is cheap and leaves less to tell digits apart by.

Input (B, 1, 8, 8) float32, ink 0..1; output (B, 10) logits.
"""

import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut: (B, width, 4, 4) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + x)


class DigitNet(nn.Module):
    """A stem that ends on a 4x4 grid of `width` channels, `depth` blocks, the mean over the grid, a linear head."""

    def __init__(self, stem: nn.Sequential, width: int, depth: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def small(width: int, depth: int) -> DigitNet:
    """Sees the image at half its resolution."""
    stem = nn.Sequential(nn.AvgPool2d(2), *_convolution(1, width, stride=1))
    return DigitNet(stem, width, depth)


def large(width: int, depth: int) -> DigitNet:
    """Sees every pixel."""
    stem = nn.Sequential(*_convolution(1, width // 2, stride=1), *_convolution(width // 2, width, stride=2))
    return DigitNet(stem, width, depth)


def _convolution(channels_in: int, channels_out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()


def cnn_s() -> DigitNet:
    """The small anchor: 2 blocks of 16 channels."""
    return small(16, 2)


def cnn_l() -> DigitNet:
    """The large anchor: 6 blocks of 32 channels."""
    return large(32, 6)
