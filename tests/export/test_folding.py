"""A stitching layer folded into the block behind it computes what both compute, and where that cannot be it is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from restnet_export.folding import fold
from restnet_export.inputs import GivenPreprocessing
from restnet_export.layouts import Layout
from restnet_export.pipeline import export_bundle
from restnet_export.settings import ExportSettings
from restnet_export.stitching import StitchingLayer
from restnet_export.trace import trace
from restnet_runtime.bundle import Bundle

torch.set_num_threads(1)

MAP = Layout("map", 6, 8, 8)
LAST = Layout("map_last", 6, 8, 8)
TOKENS = Layout("tokens", 6, 4, 4, 1)
VECTOR = Layout("vector", 6, 1, 1)


def block_of(module: nn.Module, layout: Layout) -> fx.GraphModule:
    """As `cut_anchor` makes blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
    found = trace(module.eval(), layout.shape)
    return found.segment(None, len(found.nodes) - 1)


def layer_to(target: Layout, channels: int = 4, source: Layout | None = None) -> StitchingLayer:
    layer = StitchingLayer(source or Layout(target.kind, channels, target.height, target.width, target.prefix), target).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


class Downsampling(nn.Module):
    """A shortcut with a convolution of its own: two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 9, 3, 2, 1, bias=False), nn.BatchNorm2d(9)
        self.shortcut = nn.Conv2d(6, 9, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.shortcut(x))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


FOLDABLE: list[tuple[str, Callable[[], nn.Module], Layout]] = [
    ("1x1", lambda: nn.Sequential(nn.Conv2d(6, 9, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU6()), MAP),
    ("no padding", lambda: nn.Sequential(nn.Conv2d(6, 9, 3), nn.ReLU()), MAP),
    ("zero padding", lambda: nn.Sequential(nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3)), MAP),
    ("stride and dilation", lambda: nn.Sequential(nn.Conv2d(6, 9, 5, 2, (4, 2), (2, 1), bias=False), nn.ReLU()), MAP),
    ("same", lambda: nn.Conv2d(6, 9, 3, padding="same"), MAP),
    ("two readers", Downsampling, MAP),
    ("linear, channels last", lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU()), LAST),
    ("linear, tokens", lambda: nn.Sequential(nn.Linear(6, 9, bias=False), nn.LayerNorm(9)), TOKENS),
    ("linear, vector", lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU()), VECTOR),
]


@pytest.mark.parametrize(("make", "target"), [case[1:] for case in FOLDABLE], ids=[case[0] for case in FOLDABLE])
@pytest.mark.parametrize("channels", [4, 11])
def test_it_computes_the_same(make: Callable[[], nn.Module], target: Layout, channels: int) -> None:
    block, layer = block_of(make(), target), layer_to(target, channels)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    folded = fold(layer, block)
    assert folded is not None
    for batch in (1, 3):
        x = torch.randn(batch, *layer.source.shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected, found = block(layer(x)), folded(x)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_weights_that_do_not_change_stay_shared() -> None:
    block = block_of(nn.Sequential(nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3)), MAP)
    folded = fold(layer_to(MAP), block)
    assert folded is not None
    shared = {parameter.data_ptr() for parameter in block.parameters()} & {parameter.data_ptr() for parameter in folded.parameters()}
    assert len(shared) == 2  # of the second convolution
    assert folded.get_parameter("folded0_bias").shape == (1, 9, 8, 8)  # another constant in each corner
    inside = fold(layer_to(MAP), block_of(nn.Conv2d(6, 9, 3), MAP))
    assert inside is not None
    assert inside.get_parameter("folded0_bias").shape == (9,)


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        (Shortcut(), layer_to(MAP)),
        (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 1)), layer_to(MAP)),
        (nn.Conv2d(6, 6, 3, groups=6), layer_to(MAP)),
        (nn.Sequential(nn.Flatten(1), nn.Linear(384, 9)), layer_to(MAP)),
        (nn.Linear(8, 9), layer_to(MAP)),  # over the last dimension of a map, which is its width
        (nn.Conv2d(6, 9, 1), layer_to(MAP, source=Layout("map", 4, 4, 4))),
        (nn.Conv2d(6, 9, 1), layer_to(MAP, source=Layout("tokens", 4, 8, 8))),
        (nn.Linear(6, 9), layer_to(TOKENS, source=Layout("tokens", 4, 4, 4, 0))),
        (nn.Conv2d(6, 9, 1), StitchingLayer(MAP, MAP, kernel=3)),
    ],
    ids=[
        "shortcut",
        "norm first",
        "depthwise",
        "flatten",
        "linear on a map",
        "resampling",
        "another kind",
        "made class token",
        "neighbours",
    ],
)
def test_what_takes_more_than_other_weights_is_left_alone(module: nn.Module, layer: StitchingLayer) -> None:
    assert fold(layer, block_of(module, layer.target)) is None


NETS = """
import torch
from torch import nn


def plain(seed, width, depth):
    torch.manual_seed(seed)
    block = lambda before: nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    stem, head = nn.Conv2d(1, width, 3, padding=1), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    return nn.Sequential(stem, *(block(width) for _ in range(depth)), *head)


def small():
    return plain(0, 4, 2)


def large():
    return plain(1, 8, 3)
"""


def test_a_bundle_of_folded_routes(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    for part in ("fit", "score"):
        np.savez(tmp_path / f"{part}.npz", x=rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8), y=np.arange(24) % 4)

    def made(fold: bool) -> Bundle:
        settings = ExportSettings(
            anchors=tuple(f"python:{tmp_path / 'nets.py'}:{name}" for name in ("small", "large")),
            data=f"npz:{tmp_path / 'fit.npz'}",
            val=f"npz:{tmp_path / 'score.npz'}",
            out=tmp_path / f"fold-{fold}",
            rule="sn-net",
            finetune="none",
            samples=24,
            preprocessing=GivenPreprocessing((0.5,), (0.25,)),
            input_shape=(1, 8, 8),
            fold=fold,
            progress=False,
        )
        return export_bundle(settings, lambda _: None)  # compares every route with torch, which knows no folding

    plain, folded = made(False), made(True)
    assert [route.name for route in folded.routes] == [route.name for route in plain.routes]
    stitched = [route for route in plain.routes if "[" in route.name]
    assert stitched
    for route in stitched:
        other = folded.route(route.name)
        assert len(other.segments) == len(route.segments) - 1
        assert other.accuracy == route.accuracy
        assert other.macs == route.macs - 8 * 8 * 4 * 8 - 9 * 8 * 8 * (8 - 4) * 8
