"""Activations at the cuts of an anchor."""

import pytest
import torch
from torch import nn

from restnet_export.activations import cut_activations
from restnet_export.cuts import Cut, CutAnchor
from restnet_export.layouts import Layout
from restnet_runtime.errors import ExportError

torch.set_num_threads(1)


@pytest.fixture
def anchor() -> CutAnchor:
    torch.manual_seed(0)
    blocks = (
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1)),
        nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    cuts = (Cut("bn", "0.1", (4, 8, 8)), Cut("conv", "1.1", (6, 4, 4)))
    layouts = (Layout("map", 4, 8, 8, 0), Layout("map", 6, 4, 4, 0))
    return CutAnchor("cnn", "python:test", (1, 8, 8), cuts, layouts, tuple(block.eval() for block in blocks), (1,))


def test_one_tensor_per_cut_without_gradients(anchor: CutAnchor) -> None:
    images = torch.randn(5, 1, 8, 8)
    outputs = cut_activations(anchor, images)
    assert [tuple(output.shape) for output in outputs] == [(5, *cut.shape) for cut in anchor.cuts]
    assert not any(output.requires_grad for output in outputs)
    stem, block, _ = anchor.blocks
    assert torch.equal(outputs[0], stem(images))
    assert torch.equal(outputs[1], block(stem(images)))


def test_images_of_another_shape_are_refused(anchor: CutAnchor) -> None:
    with pytest.raises(ExportError, match=r"cnn takes images of shape \(batch, 1, 8, 8\), not \(2, 3, 8, 8\)"):
        cut_activations(anchor, torch.zeros(2, 3, 8, 8))
