"""Anchors from ONNX files: graphs as exporters of all ages write them, cut by the rule that cuts networks in torch."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.costs import count_macs, count_params
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.layouts import Layout
from restnet_export.onnx_module import OnnxModule
from restnet_runtime.errors import CutError, ExportError, SpecError

torch.set_num_threads(1)


def loaded(path: Path, shape: tuple[int, int, int] | None = None) -> Anchor:
    return load_anchor(AnchorSpec.parse(f"onnx:{path}"), shape)


def chain_equals(cut: CutAnchor, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    """Back to back, the blocks are the anchor, at batch 1 and 3; each hands over what its cut says."""
    for batch in (1, 3):
        images = torch.randn(batch, *cut.input_shape, generator=torch.Generator().manual_seed(batch))
        value = images
        for block, found in zip(cut.blocks, (*cut.cuts, None), strict=True):
            assert isinstance(block, OnnxModule)
            onnx.checker.check_model(block.model, full_check=True)
            value = block(value)
            assert found is None or value.shape == (batch, *found.shape)
        wanted = np.concatenate([expected(images[i : i + 1].numpy()) for i in range(batch)])
        assert np.abs(value.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max()


def answers(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def of_torch(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


class Graph:
    """Builds an ONNX graph node by node; values are numbered and nodes have no names, as old exporters leave them."""

    def __init__(self, batch: str | int, opset: int = 13, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.batch = opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(value, f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def weight(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.3).astype(np.float32))

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [str(len(self.nodes))], **attributes))
        return self.nodes[-1].output[0]

    def conv(self, x: str, before: int, after: int) -> str:
        """With a bias that batch normalisation was folded into."""
        return self.add("Conv", x, self.weight(after, before, 3, 3), self.weight(after), pads=[1, 1, 1, 1])

    def model(self, output: str, shape: tuple[int, ...] = (3, 8, 8)) -> onnx.ModelProto:
        ends = [("data", [self.batch, *shape]), (output, [self.batch, 5])]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends]
        graph = helper.make_graph(self.nodes, "old", values[:1], values[1:], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)


def old_resnet(batch: str | int = "N", opset: int = 13) -> Graph:
    """Two residual blocks; the flattening holds a batch of one, as in models that were exported with one image."""
    graph = Graph(batch, opset)
    x = graph.add("Relu", graph.conv("data", 3, 4))
    for _ in range(2):
        y = graph.conv(graph.add("Relu", graph.conv(x, 4, 4)), 4, 4)
        x = graph.add("Relu", graph.add("Add", y, x))
    x = graph.add("GlobalAveragePool", x)
    x = graph.add("Reshape", x, graph.constant(np.array([1, -1])))
    graph.add("Gemm", x, graph.weight(5, 4), graph.weight(5), transB=1)
    return graph


@pytest.mark.parametrize("batch", ["N", 1], ids=["dynamic in name", "fixed"])
@pytest.mark.parametrize("opset", [9, 13, 20])
def test_an_old_graph_without_names(batch: str | int, opset: int, tmp_path: Path) -> None:
    graph = old_resnet(batch, opset)
    path = tmp_path / "old.onnx"
    onnx.save(graph.model(graph.nodes[-1].output[0]), path)
    cut = cut_anchor(loaded(path))
    assert cut.name == "old"
    assert cut.input_shape == (3, 8, 8)
    # After the stem, and after the ReLU of each block: none before the pooling of the head.
    assert list(cut.layouts) == [Layout("map", 4, 8, 8)] * 3
    assert cut.stages == (2,)
    chain_equals(cut, answers(path))
    assert sum(count_macs(block, ()) for block in cut.blocks) == 64 * 27 * 4 + 4 * 64 * 36 * 4 + 20
    assert sum(count_params(block) for block in cut.blocks) == 4 * 27 + 4 + 4 * (4 * 36 + 4) + 25


def test_a_graph_without_shortcuts_is_cut_before_each_layer_with_weights(tmp_path: Path) -> None:
    graph = Graph("N")
    x = graph.add("MaxPool", graph.add("Relu", graph.conv("data", 3, 4)), kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Relu", graph.conv(x, 4, 6))
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.add("Gemm", x, graph.weight(6, 5))
    onnx.save(graph.model(graph.nodes[-1].output[0]), tmp_path / "plain.onnx")
    cut = cut_anchor(loaded(tmp_path / "plain.onnx"))
    assert list(cut.layouts) == [Layout("map", 4, 4, 4), Layout("vector", 6, 1, 1)]
    chain_equals(cut, answers(tmp_path / "plain.onnx"))


def exported(module: nn.Module, path: Path, kind: str, shape: tuple[int, int, int] = (3, 16, 16)) -> Path:
    """kind: dynamo, or legacy with a dynamic batch, or legacy with a batch of one."""
    images = torch.zeros(1 if kind == "fixed" else 2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "dynamo":
            shapes = ({0: torch.export.Dim("images", max=64)},)
            torch.onnx.export(module, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"input": {0: "images"}} if kind == "legacy" else None
            torch.onnx.export(module, (images,), path, dynamo=False, opset_version=17, input_names=["input"], dynamic_axes=axes)
    return path


class Vit(nn.Module):
    """A class token that is joined to every image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.place = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.blocks(x)[:, 0])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, places, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(count, places, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * (width // 2) ** -0.5).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(count, places, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


@pytest.mark.parametrize("kind", ["dynamo", "legacy", "fixed"])
@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_exported_by_torch_it_is_cut_as_in_torch(network: str, kind: str, small_net: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = small_net if network == "cnn" else Vit().eval()
    in_torch = cut_anchor(Anchor("net", "", module, (3, 16, 16), None))
    cut = cut_anchor(loaded(exported(module, tmp_path / "net.onnx", kind)))
    assert [found.shape for found in cut.cuts] == [found.shape for found in in_torch.cuts]
    assert [found.module for found in cut.cuts[1:]] == [found.module for found in in_torch.cuts[1:]]
    assert (cut.stages, cut.layouts) == (in_torch.stages, in_torch.layouts)
    shapes = [cut.input_shape, *(found.shape for found in cut.cuts)]
    theirs = [count_macs(block, shape) for block, shape in zip(in_torch.blocks, shapes, strict=True)]
    assert [count_macs(block, shape) for block, shape in zip(cut.blocks, shapes, strict=True)] == theirs
    chain_equals(cut, of_torch(module))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["legacy", "fixed"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("deit_tiny_patch16_224", 64),
        ("swin_tiny_patch4_window7_224", 64),
        ("levit_128s", 224),
        ("convnext_atto", 64),
        ("mobilenetv2_100", 64),
        ("mobilevit_xxs", 64),
    ],
)
def test_published_networks_are_cut_as_in_torch(
    name: str, size: int, kind: str, zoo: Callable[[str, int], tuple[Anchor, CutAnchor]], tmp_path: Path
) -> None:
    anchor, in_torch = zoo(f"timm:{name}", size)
    cut = cut_anchor(loaded(exported(anchor.module, tmp_path / "net.onnx", kind, (3, size, size))))
    assert (cut.stages, cut.layouts) == (in_torch.stages, in_torch.layouts)
    shapes = [cut.input_shape, *(found.shape for found in cut.cuts)]
    theirs = [count_macs(block, shape) for block, shape in zip(in_torch.blocks, shapes, strict=True)]
    assert [count_macs(block, shape) for block, shape in zip(cut.blocks, shapes, strict=True)] == theirs
    chain_equals(cut, of_torch(anchor.module))


def test_it_stops_gradients_with_a_clear_error(tmp_path: Path) -> None:
    graph = old_resnet()
    onnx.save(graph.model(graph.nodes[-1].output[0]), tmp_path / "old.onnx")
    cut = cut_anchor(loaded(tmp_path / "old.onnx"))
    with pytest.raises(ExportError, match="gives no gradients"):
        cut.blocks[0](torch.zeros(1, 3, 8, 8, requires_grad=True))


def test_ends_named_by_the_user_and_what_is_no_cut(tmp_path: Path) -> None:
    graph = old_resnet()
    onnx.save(graph.model(graph.nodes[-1].output[0]), tmp_path / "old.onnx")
    anchor = loaded(tmp_path / "old.onnx")
    cut = cut_anchor(anchor, ["1", "11"])
    assert [found.node for found in cut.cuts] == ["1", "11"]
    chain_equals(cut, answers(tmp_path / "old.onnx"))
    with pytest.raises(CutError, match=r"cannot be cut after '3': 2 tensors are live there \(1, 3\)"):
        cut_anchor(anchor, ["3"])


def broken(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        graph = old_resnet()
        model = graph.model(graph.nodes[-1].output[0])
        change(model)
        path.write_bytes(model.SerializeToString())

    return write


def half_precision(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["data"], to=TensorProto.FLOAT))
    model.graph.input[0].name = "half"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def mixed_images(model: onnx.ModelProto) -> None:
    """Every image has the mean of all images taken off."""
    model.graph.node.insert(0, helper.make_node("Sub", ["raw", "mean"], ["data"]))
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0]))
    model.graph.input[0].name = "raw"


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: path.unlink(missing_ok=True), "there is no such file"),
        (lambda path: path.write_bytes(b"no graph"), "cannot be read"),
        (
            broken(lambda model: model.graph.input.add().CopyFrom(helper.make_tensor_value_info("more", 1, [1]))),
            r"inputs \['data', 'more'\]",
        ),
        (broken(half_precision), "takes float16 of 4 dimensions: an anchor takes float32"),
        (broken(lambda model: model.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value")), "leaves the size .* open"),
        (
            broken(lambda model: model.opset_import.add(domain="my.ops", version=1) and setattr(model.graph.node[1], "domain", "my.ops")),
            "domain",
        ),
        (broken(mixed_images), "images of one batch change each other's scores; export it with a dynamic batch"),
    ],
    ids=["absent", "garbage", "two inputs", "float16", "open size", "foreign operator", "mixed images"],
)
def test_files_that_are_refused(write: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write(path)
    with pytest.raises(SpecError, match=told) as refused:
        loaded(path)
    assert str(path) in str(refused.value)


def test_no_checkpoint_and_no_other_size() -> None:
    with pytest.raises(SpecError, match="takes no checkpoint"):
        AnchorSpec.parse("onnx:a.onnx@b.pt")
    assert AnchorSpec.parse("big=onnx:nets/a net.onnx").name == "big"
    assert AnchorSpec.parse("onnx:nets/a net.onnx").name == "a-net"


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    graph = old_resnet()
    onnx.save(graph.model(graph.nodes[-1].output[0]), tmp_path / "old.onnx")
    with pytest.raises(SpecError, match=r"takes images of shape \(3, 8, 8\), not \(3, 16, 16\)"):
        loaded(tmp_path / "old.onnx", (3, 16, 16))
