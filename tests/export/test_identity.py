"""What a run depends on is told apart: settings, weights, images and who teaches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from restnet_export.anchors import Anchor
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.identity import run_identity
from restnet_export.images import Images
from restnet_export.onnx_module import OnnxModule
from restnet_export.routes import routes_of
from restnet_export.samples import Samples
from restnet_export.settings import ExportSettings
from restnet_runtime.manifest import Preprocessing

SETTINGS = ExportSettings(("a", "b"), "npz:x.npz", Path("out"), teacher="teacher=python:nets.py:teacher@teacher.pt")
Identity = Callable[..., dict[str, str]]


@pytest.fixture
def identity(small_net: nn.Module) -> Identity:
    """Of a run with one anchor, but for the keywords."""
    anchors = {"net": cut_anchor(Anchor("net", "net", small_net, (3, 8, 8), None))}

    def of(
        taught_by: str | Anchor = "net",
        settings: ExportSettings = SETTINGS,
        anchors: dict[str, CutAnchor] = anchors,
        brightness: int = 0,
    ) -> dict[str, str]:
        images = Images("images", np.arange(4), None, lambda index: np.full((8, 8, 3), index + brightness, np.uint8))
        samples = Samples(images, Preprocessing(mode="RGB", mean=(0.5,) * 3, std=(0.5,) * 3), (3, 8, 8))
        return run_identity(settings, anchors, taught_by, routes_of(anchors), samples, 1)

    return of


def linear(value: float) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def graph(value: float) -> nn.Module:
    weight = onnx.numpy_helper.from_array(np.float32([value]), "w")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 10]) for name in "xy"]
    node = onnx.helper.make_node("Mul", ["x", "w"], ["y"])
    return nn.Sequential(OnnxModule(onnx.helper.make_model(onnx.helper.make_graph([node], "scaled", ports[:1], ports[1:], [weight]))))


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


@pytest.mark.parametrize("module", [linear, graph])
def test_a_teacher_of_other_weights_is_another_teacher(identity: Identity, module: Callable[[float], nn.Module]) -> None:
    """What the user typed may be the same: the file behind it is not."""
    one, same, other = (identity(Anchor("teacher", "teacher", module(value), (3, 8, 8), None)) for value in (1.0, 1.0, 2.0))
    assert one == same
    assert differing(one, other) == ["taught by"]
    assert one["taught by"].startswith("teacher ")
    assert differing(one, identity("net")) == ["taught by"]


def test_settings_weights_and_images_count(identity: Identity) -> None:
    torch.manual_seed(1)
    other = {
        "net": cut_anchor(
            Anchor("net", "net", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), (3, 8, 8), None)
        )
    }
    whole = identity()
    assert differing(whole, identity(settings=replace(SETTINGS, out=Path("elsewhere"), workers=3, resume=True))) == []
    assert differing(whole, identity(settings=replace(SETTINGS, precision=("fp32", "int8"), latency=True))) == []
    assert differing(whole, identity(settings=replace(SETTINGS, samples=7))) == ["samples"]
    assert differing(whole, identity(brightness=1)) == ["images"]
    assert differing(whole, identity(anchors=other)) == ["anchor net"]
