"""Networks for 8x8 digits, for `python:examples/digits/anchors.py:cnn_s@CHECKPOINT`.

Two of one family: `cnn_s` and `cnn_l` work on a 4x4 grid after their stem, as deep networks work on a small grid after theirs, and differ
in how they get there: the large one looks at all 64 pixels, the small one at their means over 2x2, which is cheap and leaves less to tell
digits apart by.

Two of different families: `cnn_t`, whose first stage has the grid of the image and whose second has 4x4, and `vit`, a transformer on a
4x4 grid with a class token. A stitching layer between them changes the grid, the number of channels and the kind of the tensor.

Input (B, 1, 8, 8) float32, ink 0..1; output (B, 10) logits.
"""

import torch
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


class TwoStages(nn.Module):
    """A stem, blocks of `width` channels on the 8x8 grid, a convolution to 4x4, blocks of twice the channels, mean, linear head."""

    def __init__(self, width: int, depths: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, width, stride=1))
        self.stage1 = nn.Sequential(*(Block(width) for _ in range(depths[0])))
        self.down = nn.Sequential(*_convolution(width, 2 * width, stride=2))
        self.stage2 = nn.Sequential(*(Block(2 * width) for _ in range(depths[1])))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.down(self.stage1(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block with layer norm first: (B, tokens, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class DigitVit(nn.Module):
    """Two convolutions to a 4x4 grid, a class token, `depth` blocks, a linear head on the class token.

    A transformer on bare patches learns less from 1,000 images (Xiao et al., Early convolutions help transformers see better, 2021).
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(*_convolution(1, width // 2, stride=1), nn.Conv2d(width // 2, width, 3, 2, 1))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def _convolution(channels_in: int, channels_out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()


def cnn_s() -> DigitNet:
    """The small anchor: 2 blocks of 16 channels."""
    return small(16, 2)


def cnn_l() -> DigitNet:
    """The large anchor: 6 blocks of 32 channels."""
    return large(32, 6)


def cnn_t() -> TwoStages:
    """The small anchor of two families: 1 block of 4 channels on 8x8, 1 of 8 on 4x4."""
    return TwoStages(4, (1, 1))


def vit() -> DigitVit:
    """The large anchor of two families: 5 blocks of 32 channels."""
    return DigitVit(32, 5, 4)
