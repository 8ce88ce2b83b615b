"""Segments that differ in their weights alone share one translation, and come out as if each had been translated by itself."""

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from restnet_export.anchors import Anchor
from restnet_export.cuts import cut_anchor
from restnet_export.layouts import Layout
from restnet_export.segments import export_segment
from restnet_export.stitching import StitchingLayer
from restnet_export.templates import Templates

torch.set_num_threads(1)


class Counting(Templates):
    """Counts the translations."""

    count = 0

    def translated(self, module, input_shape, translate) -> onnx.ModelProto:
        def counted(traced: ExportedProgram) -> onnx.ModelProto:
            self.count += 1
            return translate(traced)

        return super().translated(module, input_shape, counted)


def exported(modules: list[nn.Module], shape: tuple[int, ...], templates: Templates | None) -> list[bytes]:
    return [export_segment(module, shape, "net.1", templates).SerializeToString(deterministic=True) for module in modules]


def test_blocks_of_one_stage_share_a_translation(small_net: nn.Module) -> None:
    """With normalisation folded into the convolution: that is done for each block, after its weights are in their place."""
    for weight in small_net.parameters():
        nn.init.normal_(weight, 0, 0.5)
    small_net.stage1[1].norm.running_var.fill_(2.0)
    cut = cut_anchor(Anchor("net", "", small_net, (3, 16, 16), None))
    blocks = list(cut.blocks[1:3])
    templates = Counting()
    shared = exported(blocks, (8, 16, 16), templates)
    assert templates.count == 1
    assert shared == exported(blocks, (8, 16, 16), None)
    assert shared[0] != shared[1]


def test_equal_weights_are_not_taken_for_one(small_net: nn.Module) -> None:
    """Where the first block has two equal tensors and the next one has not, nothing is mixed up: export_segment compares with torch."""
    for name, weight in small_net.stage1[0].named_parameters():
        nn.init.constant_(weight, 0.1 if "bias" in name else 0.3)
    templates = Counting()
    exported(list(small_net.stage1), (8, 16, 16), templates)
    assert templates.count == 1


def test_stitching_layers_of_equal_layouts_share_one_too() -> None:
    tokens, wide = Layout("tokens", 4, 2, 2, 1), Layout("tokens", 6, 2, 2, 1)
    layers: list[nn.Module] = [
        StitchingLayer(tokens, wide),
        StitchingLayer(tokens, wide),
        StitchingLayer(tokens, Layout("tokens", 5, 2, 2, 1)),
    ]
    for layer in layers:
        for weight in layer.parameters():
            nn.init.normal_(weight)
    templates = Counting()
    shared = exported(layers, (5, 4), templates)
    assert templates.count == 2
    assert shared == exported(layers, (5, 4), None)


class Scaled(nn.Module):
    """The scale is a number of its own, not a weight: what a translation may depend on."""

    def __init__(self, factor: float, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.factor = factor
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.factor + self.shift


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (Scaled(2.0, torch.tensor(1.0)), 1),
        (Scaled(3.0, torch.tensor(1.0)), 2),
        (Scaled(2.0, torch.tensor(4.0)), 2),
        (Scaled(2.0, torch.tensor(1)), 2),
    ],
    ids=["weights alone", "a number in the code", "a single number", "another type"],
)
def test_what_is_more_than_other_weights_is_translated_anew(other: nn.Module, count: int) -> None:
    modules = [Scaled(2.0, torch.tensor(1.0)), other]
    templates = Counting()
    assert exported(modules, (4,), templates) == exported(modules, (4,), None)
    assert templates.count == count
