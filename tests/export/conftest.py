"""What the exporter's tests share."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.cuts import CutAnchor, cut_anchor

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # workers share out the cores


def _import_torchvision() -> torch.library.Library | None:
    """torchvision built for another torch fails to import for want of two operators that no classifier calls: declare them, try again."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    except ImportError:
        return None
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return library


# The declarations live as long as this object.
_TORCHVISION = _import_torchvision()


class Residual(nn.Module):
    """A block with a shortcut, as anybody would write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class SmallNet(nn.Module):
    """Stem, two stages of two residual blocks, head: (B, channels, H, W) to (B, classes)."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.stage1 = nn.Sequential(Residual(8), Residual(8))
        self.down = nn.Conv2d(8, 12, 2, stride=2)
        self.stage2 = nn.Sequential(Residual(12), Residual(12))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.fc(self.dropout(x.mean((2, 3))))


@pytest.fixture
def small_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallNet().eval()


@pytest.fixture(scope="session")
def zoo() -> Callable[[str, int], tuple[Anchor, CutAnchor]]:
    """Anchors with random weights at a given input size, cut once for all tests; nobody changes them."""

    @cache
    def cut_once(spec: str, size: int) -> tuple[Anchor, CutAnchor]:
        anchor = load_anchor(AnchorSpec.parse(f"{spec}@random"), (3, size, size))
        return anchor, cut_anchor(anchor)

    return cut_once


@pytest.fixture
def shared() -> Path:
    """Real checkpoints and images, where there are any."""
    found = Path(os.environ.get("RESTNET_SHARED", Path(__file__).parents[3] / "shared"))
    if not (found / "data" / "checkpoints").is_dir():
        pytest.skip(f"no real checkpoints under {found}; set RESTNET_SHARED")
    return found
