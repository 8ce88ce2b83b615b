"""A bundle is as large as its distinct weights, and hardly larger."""

from pathlib import Path

import numpy as np
import pytest

from restnet_export.inputs import GivenPreprocessing
from restnet_export.pipeline import export_bundle
from restnet_export.settings import ExportSettings
from restnet_runtime.manifest import Precision

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(width)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(3)))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def small():
    return Net(256)


def large():
    return Net(448)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [(("fp32",), 1.01), (("fp32", "int8"), 1.3)], ids=["fp32", "int8"])
def test_each_weight_is_there_once_and_little_beside(tmp_path: Path, precision: tuple[Precision, ...], most: float) -> None:
    """Routes share the blocks that they run through: manifest, graphs, report and padding take a hundredth of the weights.

    Weights in int8 are a quarter of the others.
    """
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8), y=np.arange(40) % 4)
    bundle = export_bundle(
        ExportSettings(
            anchors=tuple(f"python:{tmp_path / 'nets.py'}:{name}" for name in ("small", "large")),
            data=f"npz:{tmp_path / 'data.npz'}",
            out=tmp_path / "out",
            finetune="none",
            samples=32,
            preprocessing=GivenPreprocessing((0.5,), (0.25,)),
            input_shape=(1, 4, 4),
            progress=False,
            precision=precision,
        ),
        lambda _: None,
    )
    stitched = [segment for segment in bundle.manifest.segments if segment.kind == "stitch"]
    distinct = 4 * sum(segment.params for segment in bundle.manifest.segments)
    assert len(stitched) >= 2
    assert sum(route.weight_bytes for route in bundle.manifest.routes if "@" not in route.name) > 2 * distinct
    assert distinct <= sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()) <= most * distinct
