"""The stitched network in PyTorch eager, as the papers' code runs it: anchors as modules, stitching layers, and a stitch id.

Weights are those of the bundle: anchors of `families.py` come from a fixed seed, stitching layers are read from their graphs.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from families import FAMILIES, complete_torchvision
from onnx import numpy_helper
from torch import Tensor, nn

from restnet_runtime.bundle import Bundle
from restnet_runtime.graphs import external_extent, load_segment


class StitchedNetwork(nn.Module):
    """Every route of a bundle of `families.py` over one set of weights. `forward(x, stitch_id)`: x (batch, 3, H, W) -> logits."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        complete_torchvision()
        import timm

        self.parts = nn.ModuleList()
        places: dict[str, int] = {}
        for anchor, timm_name in zip(bundle.manifest.anchors, FAMILIES[bundle.path.name][0], strict=True):
            torch.manual_seed(0)
            for segment, block in zip(anchor.segments, blocks(timm.create_model(timm_name, pretrained=False).eval()), strict=True):
                places[segment] = len(self.parts)
                self.parts.append(block)
        for segment in bundle.segments.values():
            if segment.kind == "stitch":
                places[segment.name] = len(self.parts)
                self.parts.append(stitching_layer(bundle, segment.name))
        self.routes = [[places[segment] for segment in route.segments] for route in bundle.routes]

    def forward(self, x: Tensor, stitch_id: int) -> Tensor:
        for part in self.routes[stitch_id]:
            x = self.parts[part](x)
        return x


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """A timm ResNet or vision transformer as stem, blocks and head."""
    if hasattr(model, "layer1"):
        yield nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            yield from layer
        yield nn.Sequential(model.global_pool, model.fc)
    else:
        yield Stem(model)
        yield from model.blocks
        yield Head(model)


class Stem(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = model.patch_embed, model.cls_token, model.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed


class Head(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x)[:, 0])


def _array(bundle: Bundle, tensor: onnx.TensorProto) -> np.ndarray:
    """Read here and not by `onnx`, which takes no data from a file of several links, as weights.bin is once routes are compiled."""
    offset, length = external_extent(tensor)
    if not length:
        return numpy_helper.to_array(tensor).copy()
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.fromfile(bundle.weights, kind, length // kind.itemsize, offset=offset).reshape(tuple(tensor.dims))


def stitching_layer(bundle: Bundle, name: str) -> nn.Module:
    """A 1x1 convolution between maps, a linear layer between tokens."""
    segment = bundle.segments[name]
    model = load_segment(bundle, segment, "fp32")
    tensors = {tensor.name: torch.from_numpy(_array(bundle, tensor)) for tensor in model.graph.initializer}
    width_in, width_out = (segment.input_shape[0 if len(segment.input_shape) == 3 else -1], len(tensors["bias"]))
    weight = next(tensor for tensor in tensors.values() if tensor.numel() == width_in * width_out and tensor.ndim == 2)
    weight = weight.T if weight.shape == (width_in, width_out) and "weight" not in tensors else weight
    layer = nn.Conv2d(width_in, width_out, 1) if len(segment.input_shape) == 3 else nn.Linear(width_in, width_out)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(tensors["bias"])
    return layer
