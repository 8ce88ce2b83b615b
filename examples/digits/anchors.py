"""Networks for 8x8 digits, for `python:examples/digits/anchors.py:cnn_s@CHECKPOINT`: one family of two, and one of two kinds.

`cnn_s` and `cnn_l` work on a 4x4 grid after their stem, as deep networks work on a small grid after theirs, and differ in how they get
there: the large one looks at all 64 pixels, the small one at their means over 2x2, which is cheap and leaves less to tell digits apart by.

`cnn_t` and `vit` have nothing in common: the one has maps of 8 channels on a 4x4 grid, then of 16 on 2x2, the other 17 tokens of width 32,
of which one is the class token. A stitching layer between them changes layout, grid and channels at once.

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


def _convolution(channels_in: int, channels_out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()


def cnn_s() -> DigitNet:
    """The small anchor: 2 blocks of 16 channels."""
    return small(16, 2)


def cnn_l() -> DigitNet:
    """The large anchor: 6 blocks of 32 channels."""
    return large(32, 6)


class TinyNet(nn.Module):
    """Sees the image at half its resolution: blocks on a 4x4 grid, then, with twice the channels, on 2x2."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(2), *_convolution(1, width, stride=1))
        self.fine = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.down = nn.Sequential(*_convolution(width, 2 * width, stride=2))
        self.coarse = nn.Sequential(*(Block(2 * width) for _ in range(depth)))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.coarse(self.down(self.fine(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention and a perceptron, each behind a layer norm and with a shortcut: (B, tokens, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(seen)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 2x2 as tokens behind a class token, `depth` blocks, a linear head on the class token."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def cnn_t() -> TinyNet:
    """The cheap end beside the transformer: a block of 8 channels on 4x4, one of 16 on 2x2."""
    return TinyNet(8, 1)


def vit() -> VisionTransformer:
    """A small transformer: 4 blocks of width 32."""
    return VisionTransformer(32, 4, 4)
