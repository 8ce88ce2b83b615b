"""Two small convolutional networks for 8x8 digits, for `python:examples/digits/anchors.py:cnn_s@CHECKPOINT`.

Input (B, 1, 8, 8) float32, ink 0..1; output (B, 10) logits.
"""

import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Identity() if channels_in == channels_out and stride == 1 else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A stem, two stages of blocks (8x8, then 4x4 with twice the channels), a linear head."""

    def __init__(self, width: int, depths: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width] * depths[0] + [2 * width] * depths[1]
        strides = [1] * depths[0] + [2] + [1] * (depths[1] - 1)
        self.blocks = nn.Sequential(
            *(Block(before, after, stride) for before, after, stride in zip([width, *widths], widths, strides, strict=False))
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def cnn_s() -> DigitNet:
    """The small anchor: 1 + 3 blocks of 10 and 20 channels."""
    return DigitNet(10, (1, 3))


def cnn_l() -> DigitNet:
    """The large anchor: 2 + 6 blocks of 18 and 36 channels."""
    return DigitNet(18, (2, 6))
