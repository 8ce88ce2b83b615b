import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from restnet_export import segments
from restnet_export.anchors import Anchor
from restnet_export.cuts import cut_anchor
from restnet_export.segments import OPSET, export_segment
from restnet_runtime.errors import ExportError, ParityError


def answer(model: onnx.ModelProto, values: torch.Tensor) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], {"x": values.numpy()})[0]


def test_a_chain_of_segments_answers_as_the_anchor_at_any_batch(small_net, capfd, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = cut_anchor(Anchor("net", "test", small_net, (3, 16, 16), None))
    shapes = [cut.input_shape, *(found.shape for found in cut.cuts)]
    with caplog.at_level(logging.DEBUG):
        models = [export_segment(block, shape, f"net.{i}") for i, (block, shape) in enumerate(zip(cut.blocks, shapes, strict=True))]
    for batch in (1, 2, 3, 100):
        images = torch.randn(batch, 3, 16, 16)
        value = images
        for model in models:
            value = torch.from_numpy(answer(model, value))
        with torch.no_grad():
            expected = small_net(images)
        assert (value - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_segment_looks_like(small_net):
    model = export_segment(small_net.stage1, (8, 16, 16), "net.1")
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.name == "net.1"
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert len(model.functions) == 0
    for value, name in ((model.graph.input, "x"), (model.graph.output, "y")):
        assert [part.name for part in value] == [name]
        assert [size.dim_param or size.dim_value for size in value[0].type.tensor_type.shape.dim] == ["batch", 8, 16, 16]
    assert [tuple(tensor.dims) for tensor in model.graph.initializer].count((8, 8, 3, 3)) == 2
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_a_segment_tells_nothing_about_where_it_was_made(small_net):
    model = export_segment(small_net.stage1, (8, 16, 16), "net.1")
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    content = model.SerializeToString()
    for trace in (b".py", b"/", b"Residual", b"torch.nn", b"aten"):
        assert trace not in content


def test_the_same_module_gives_the_same_bytes(small_net):
    first, second = (export_segment(small_net.stage2, (12, 8, 8), "net.2").SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("name", "size", "chosen"),
    [("deit_tiny_patch16_224", 64, (0, 5, 13)), ("swin_tiny_patch4_window7_224", 64, (2,)), ("mobilenetv2_100", 64, (3, 18))],
)
def test_blocks_of_known_networks(name, size, chosen, zoo):
    _, cut = zoo(f"timm:{name}", size)
    shapes = [cut.input_shape, *(found.shape for found in cut.cuts), (1000,)]
    for i in chosen:
        model = export_segment(cut.blocks[i], shapes[i], f"{cut.name}.{i}")
        values = torch.randn(5, *shapes[i])
        with torch.no_grad():
            expected = cut.blocks[i](values).numpy()
        assert expected.shape == (5, *shapes[i + 1])
        assert np.abs(answer(model, values) - expected).max() <= 1e-4 * np.abs(expected).max()


class Looping(nn.Module):
    """Branches in the graph have bodies of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.fc(x), lambda x: self.fc(x) + 1, (x,))


def test_bodies_of_branches_are_stripped_too():
    model = export_segment(Looping().eval(), (4,), "loop")
    assert "If" in [node.op_type for node in model.graph.node] + [node.op_type for function in model.functions for node in function.node]
    assert b".py" not in model.SerializeToString()


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


def test_a_segment_that_answers_otherwise_is_refused():
    with pytest.raises(ParityError, match=r"segment noise: at batch 1 ONNX Runtime differs from torch by .*, allowed is 0.0001"):
        export_segment(Noise(), (4,), "noise")


def test_a_module_that_cannot_be_exported_is_refused():
    with pytest.raises(ExportError, match="segment odd: torch cannot export it to ONNX: "):
        export_segment(Unknown(), (4, 4), "odd")


@pytest.mark.usefixtures("nothing_shared")
class TestOneRegistry:
    """torch's table of operators, made once for many segments."""

    NETS = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), nn.Sequential(nn.Flatten(), nn.LayerNorm(75), nn.Linear(75, 2)))

    def exports(self) -> list[bytes]:
        return [export_segment(net.eval(), (3, 5, 5), "net").SerializeToString(deterministic=True) for net in self.NETS]

    def test_the_same_bytes_and_everything_as_before(self) -> None:
        registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
        before = vars(registry)["from_torchlib"]
        expected = self.exports()
        with segments.one_registry():
            assert registry.from_torchlib() is registry.from_torchlib()
            assert self.exports() == expected
        assert vars(registry)["from_torchlib"] is before

    @pytest.mark.parametrize("missing", range(3), ids=["module", "class", "method"])
    def test_without_the_private_name_exports_go_on(self, monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
        names = list(segments._REGISTRY)
        names[missing] = "torch.absent" if missing == 0 else "absent"
        monkeypatch.setattr(segments, "_REGISTRY", tuple(names))
        with segments.one_registry():
            assert len(self.exports()) == 2
