"""Published architectures with random weights: cut, exported, counted. What is slow here runs at their own input size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.costs import count_macs
from restnet_export.cuts import cut_anchor
from restnet_export.graph_costs import graph_macs
from restnet_export.inputs import GivenPreprocessing
from restnet_export.onnx_module import OnnxModule
from restnet_export.pipeline import export_bundle
from restnet_export.plans import AnchorShape
from restnet_export.rules import SnNet
from restnet_export.segments import TOLERANCE, export_segment, one_registry
from restnet_export.settings import ExportSettings
from restnet_export.templates import Templates

torch.set_num_threads(2)

FAMILIES = {
    "deit_tiny_patch16_224": (12,),
    "deit_small_patch16_224": (12,),
    "deit_base_patch16_224": (12,),
    "vit_tiny_patch16_224": (12,),
    "vit_small_patch16_224": (12,),
    "swin_tiny_patch4_window7_224": (2, 2, 6, 2),
    "swin_small_patch4_window7_224": (2, 2, 18, 2),
    "swin_base_patch4_window7_224": (2, 2, 18, 2),
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "mobilenetv2_100": (1, 2, 3, 4, 3, 3, 1),
    "efficientnet_b0": (1, 2, 2, 3, 3, 4, 1),
    "levit_128s": (2, 3, 4),
    "levit_192": (4, 4, 4),
    "levit_256": (4, 4, 4),
    "convnext_atto": (2, 2, 6, 2),
    "densenet121": (1, 1, 1, 1),
    "regnetx_002": (1, 1, 4, 7),
    "mobilevit_xxs": (1, 3, 2, 2, 2),
    "mixer_s32_224": (8,),
    "poolformer_s12": (2, 2, 6, 2),
    "edgenext_xx_small": (2, 2, 6, 2),
}
"""Blocks per stage of every family that was tried. A stage is blocks in a row whose outputs have one shape."""


def random_anchor(name: str, size: int | None = None) -> Anchor:
    """With no weight left at zero: an initial head of zeros would answer zeros whatever the blocks compute."""
    anchor = load_anchor(AnchorSpec.parse(f"timm:{name}@random"), (3, size, size) if size else None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in anchor.module.parameters():
            if not weight.any():
                weight.normal_(0, 0.02, generator=generator)
    return anchor


def differs_by(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def chained(blocks: list[nn.Module] | tuple[nn.Module, ...], images: Tensor) -> Tensor:
    with torch.no_grad():
        for block in blocks:
            images = block(images)
    return images


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("name", "size"), [("regnetx_002", 64), ("mobilevit_xxs", 64), ("poolformer_s12", 64), ("mixer_s32_224", 224), ("efficientnet_b0", 64)]
)
def test_more_families_are_cut_into_their_blocks(name: str, size: int) -> None:
    anchor = random_anchor(name, size)
    cut = cut_anchor(anchor)
    assert cut.stages == FAMILIES[name]
    images = torch.randn(3, *anchor.input_shape, generator=torch.Generator().manual_seed(1))
    assert differs_by(chained(cut.blocks, images), chained([anchor.module], images)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_segment_of_every_family(name: str) -> None:
    """Each segment against torch when it is exported, at batch 1 and 3; all in a row against the network; costs counted twice."""
    anchor = random_anchor(name)
    cut = cut_anchor(anchor)
    assert cut.stages == FAMILIES[name]
    shapes = [cut.input_shape, *(found.shape for found in cut.cuts)]
    templates = Templates()
    with one_registry():
        models = [
            export_segment(block, shape, f"{name}.{i}", templates) for i, (block, shape) in enumerate(zip(cut.blocks, shapes, strict=True))
        ]
    macs = [count_macs(block, shape) for block, shape in zip(cut.blocks, shapes, strict=True)]
    assert sum(macs) == count_macs(anchor.module, cut.input_shape)
    assert [graph_macs(model) for model in models] == macs
    differences = []
    for batch in (1, 3):
        images = torch.randn(batch, *cut.input_shape, generator=torch.Generator().manual_seed(batch))
        differences.append(differs_by(chained([OnnxModule(model) for model in models], images), chained([anchor.module], images)))
    # For docs/architectures.md, with -s.
    print(f"{name}: {sum(macs) / 1e9:.4g} GMACs, {len(models)} segments, difference {max(differences):.1e}")  # noqa: T201
    assert max(differences) <= TOLERANCE


@pytest.fixture(scope="module")
def shape_of() -> Callable[[str], AnchorShape]:
    """What a rule sees of a real network, by its name; each is cut once, and forgotten but for that."""
    known: dict[str, AnchorShape] = {}

    def shape(name: str) -> AnchorShape:
        if name not in known:
            known[name] = AnchorShape(name, cut_anchor(random_anchor(name)).stages)
        return known[name]

    return shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "stages", "routes"),
    [
        (("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"), None, 71),
        (("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"), (0, 1, 2), 41),
        (("resnet18", "resnet50"), (1, 2), 10),
        (("resnet18", "swin_tiny_patch4_window7_224"), (1, 2), 8),
        (("levit_192", "levit_256"), (0, 1), 8),
    ],
    ids=["deit", "swin", "resnet", "resnet-swin", "levit"],
)
def test_routes_of_the_papers_families(
    names: tuple[str, ...], stages: tuple[int, ...] | None, routes: int, shape_of: Callable[[str], AnchorShape]
) -> None:
    """Counted from the networks as they are cut (SN-Net's published families)."""
    plans = SnNet(stages=stages).plan([shape_of(name) for name in names], {}).layers
    assert len(names) + sum(len(plan.pairs) for plan in plans) == routes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "size", "stages", "routes"),
    [
        (("deit_tiny_patch16_224", "deit_small_patch16_224"), 64, None, 36),
        (("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"), 64, (0, 1, 2), 21),
        (("resnet18", "resnet50"), 64, (1, 2), 10),
        (("resnet18", "swin_tiny_patch4_window7_224"), 64, (1, 2), 8),
        (("levit_192", "levit_256"), 224, (0, 1), 8),
        (("mobilenetv2_100", "efficientnet_b0"), 64, None, None),
        (("regnetx_002", "convnext_atto"), 64, None, None),
    ],
    ids=["deit", "swin", "resnet", "resnet-swin", "levit", "mobilenet-efficientnet", "regnet-convnext"],
)
def test_every_route_of_small_families(
    names: tuple[str, ...], size: int, stages: tuple[int, ...] | None, routes: int | None, tmp_path: Path
) -> None:
    """Exporting compares every route in ONNX Runtime with torch before anything takes its place; here a bundle must come out."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=rng.integers(0, 256, (24, size, size, 3), dtype=np.uint8), y=np.arange(24) % 4)
    settings = ExportSettings(
        anchors=tuple(f"timm:{name}@random" for name in names),
        data=f"npz:{tmp_path / 'images.npz'}",
        out=tmp_path / "family",
        rule="sn-net" if routes else "restnet",
        finetune="none",
        samples=16,
        stages=stages,
        input_shape=(3, size, size),
        preprocessing=GivenPreprocessing((0.5,) * 3, (0.5,) * 3, "squash", "bilinear", 1.0),
        progress=False,
    )
    bundle = export_bundle(settings, lambda _: None)
    assert len(bundle.routes) == routes if routes else len(bundle.routes) > 3
    assert all(route.activation_bytes for route in bundle.manifest.routes)


PUBLISHED = {
    "deit_tiny_patch16_224": 1.26,
    "deit_small_patch16_224": 4.61,
    "resnet18": 1.82,
    "resnet50": 4.11,
    "swin_tiny_patch4_window7_224": 4.51,
}
"""GMACs at 224 x 224 as SN-Net reports them, by fvcore."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs(name: str) -> None:
    """Within one per cent, and to the digit with what fvcore counts besides: two per number for batch normalisation, five for layers."""
    anchor = random_anchor(name)
    counted = count_macs(anchor.module, anchor.input_shape)
    assert counted / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)
    extra = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal extra
        extra += (5 if isinstance(module, nn.LayerNorm) else 2) * output.numel()

    for module in anchor.module.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.register_forward_hook(count)
    chained([anchor.module], torch.zeros(1, *anchor.input_shape))
    assert round((counted + extra) / 1e9, 2) == PUBLISHED[name]
