"""What the exporter's tests share."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer
from torch import nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.segments import one_registry
from restnet_export.templates import Templates

try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
except ImportError:  # private to torch
    ONNXRegistry = None

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


def _unmeasured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Called without the tracer of coverage, which before Python 3.12 follows all code of others at half the speed.

    What of the exporter is called from in there is called from elsewhere too. A debugger stays as it is.
    """

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        if not type(tracer).__module__.startswith("coverage"):
            return function(*args, **options)
        sys.settrace(None)
        try:
            return function(*args, **options)
        finally:
            sys.settrace(tracer)
            _resumed()

    return called


def _resumed() -> None:
    """The tracer goes on where it sees a call: this one, before anything returns."""


@pytest.fixture(scope="session", autouse=True)
def _others_are_not_measured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch.export, "export"), (torch.onnx, "export"), (optimizer, "optimize"), (Figure, "savefig")):
            patch.setattr(owner, name, _unmeasured(getattr(owner, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _torch_s_table() -> Iterator[object]:
    """All tests share torch's table of operators, and exports share translations, as the segments of one export do."""
    made, templates = vars(ONNXRegistry).get("from_torchlib") if ONNXRegistry else None, Templates()
    with one_registry(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("restnet_export.sources.Templates", lambda: templates)
        yield made


@pytest.fixture
def nothing_shared(_torch_s_table: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each export makes torch's table of operators and its translations anew, as the first one of a process does."""
    monkeypatch.setattr("restnet_export.sources.Templates", Templates)
    if _torch_s_table is not None:
        monkeypatch.setattr(ONNXRegistry, "from_torchlib", _torch_s_table)


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


class Graphs:
    """Segments as graphs, made without torch: input `x`, output `y`, weights inside."""

    def segment(
        self, name: str, nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, np.ndarray], taken: Sequence[int], made: Sequence[int]
    ) -> onnx.ModelProto:
        """taken, made: shapes without the batch."""
        graph = helper.make_graph(
            list(nodes),
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *taken])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *made])],
            [numpy_helper.from_array(np.asarray(value, np.float32), key) for key, value in tensors.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def conv(self, name: str, weight: np.ndarray, bias: np.ndarray, size: int, *, relu: bool = True) -> onnx.ModelProto:
        """(cin, size, size) to (cout, size, size)."""
        cout, cin, kernel, _ = weight.shape
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["z" if relu else "y"], "conv", pads=[kernel // 2] * 4)]
        if relu:
            nodes.append(helper.make_node("Relu", ["z"], ["y"], "relu"))
        return self.segment(name, nodes, {"w": weight, "b": bias}, (cin, size, size), (cout, size, size))

    def head(self, name: str, weight: np.ndarray, bias: np.ndarray, size: int) -> onnx.ModelProto:
        """(cin, size, size) to logits: the mean over positions, and a product."""
        classes, cin = weight.shape
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], "gemm", transB=1),
        ]
        return self.segment(name, nodes, {"w": weight, "b": bias}, (cin, size, size), (classes,))

    def product(self, name: str, weight: np.ndarray, bias: np.ndarray, *, relu: bool = False) -> onnx.ModelProto:
        """(cin,) to (cout,): a product alone."""
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z" if relu else "y"], "gemm", transB=1)]
        if relu:
            nodes.append(helper.make_node("Relu", ["z"], ["y"], "relu"))
        return self.segment(name, nodes, {"w": weight, "b": bias}, (weight.shape[1],), (weight.shape[0],))

    def run(self, model: onnx.ModelProto, x: np.ndarray, *, optimised: bool = True) -> np.ndarray:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]

    def optimised(self, model: onnx.ModelProto, path: Path) -> list[str]:
        """The operators that ONNX Runtime makes of it, without those of one processor's own layout. path: for its file"""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="session")
def graphs() -> Graphs:
    return Graphs()


@pytest.fixture
def shared() -> Path:
    """Real checkpoints and images, where there are any."""
    found = Path(os.environ.get("RESTNET_SHARED", Path(__file__).parents[3] / "shared"))
    if not (found / "data" / "checkpoints").is_dir():
        pytest.skip(f"no real checkpoints under {found}; set RESTNET_SHARED")
    return found
