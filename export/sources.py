"""Every segment of the routes that are kept, as ONNX, ready to be written."""

from collections.abc import Callable, Mapping, Sequence

import onnx
import torch

from .costs import count_macs, count_params
from .cuts import CutAnchor
from .folding import FoldedSegment
from .graph_costs import activation_bytes
from .onnx_module import OnnxModule
from .routes import StitchedRoute, block_name
from .segments import export_segment, one_registry
from .selection import most_promising
from .stitching import StitchingLayer
from .templates import Templates
from .writer import SegmentSource


def segment_sources(
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    accuracies: Sequence[float],
    limit: int | None,
    folded: Mapping[str, FoldedSegment],
    say: Callable[[str], None],
) -> tuple[list[StitchedRoute], dict[str, SegmentSource]]:
    """The routes that are kept, and every segment that they or the anchors use, exported.

    folded: segments that take the place of a stitching layer and the block behind it, by the names that the routes give them
    """
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    modules: dict[str, torch.nn.Module] = {}
    for name, anchor in anchors.items():
        classes = (_classes(anchor),)
        ends = (anchor.input_shape, *(cut.shape for cut in anchor.cuts), classes)
        for block, module in enumerate(anchor.blocks):
            shapes[block_name(name, block)], modules[block_name(name, block)] = (ends[block], ends[block + 1]), module
    for name, layer in layers.items():
        shapes[name], modules[name] = (layer.source.shape, layer.target.shape), layer
    for name, segment in folded.items():
        shapes[name], modules[name] = (shapes[segment.layer][0], shapes[segment.block][1]), segment.module
    macs = {name: count_macs(module, shapes[name][0]) for name, module in modules.items()}
    kept = most_promising(routes, [sum(macs[name] for name in route.segments()) for route in routes], accuracies, limit)
    used = dict.fromkeys(name for route in kept for name in route.segments())
    where = {
        block_name(name, block): (name, "head" if block == len(anchor.cuts) else anchor.cuts[block].module)
        for name, anchor in anchors.items()
        for block in range(len(anchor.blocks))
    }
    if len(kept) < len(routes):
        say(f"kept {len(kept)} of {len(routes)} routes")
    say(f"exporting {len(used)} segments")
    templates = Templates()
    with one_registry():
        models = {name: _exported(modules[name], shapes[name][0], name, templates) for name in used}
    return kept, {
        name: SegmentSource(
            name=name,
            kind="block" if name in where else "stitch",
            anchor=where[name][0] if name in where else None,
            module=where[name][1] if name in where else "",
            input_shape=shapes[name][0],
            output_shape=shapes[name][1],
            macs=macs[name],
            params=count_params(modules[name]),
            activation_bytes=activation_bytes(model),
            model=model,
        )
        for name, model in models.items()
    }


def _exported(module: torch.nn.Module, input_shape: tuple[int, ...], name: str, templates: Templates) -> onnx.ModelProto:
    if not isinstance(module, OnnxModule):
        return export_segment(module, input_shape, name, templates)
    model = onnx.ModelProto()
    model.CopyFrom(module.model)
    model.graph.name = name
    return model


def _classes(anchor: CutAnchor) -> int:
    with torch.no_grad():
        return int(torch.nn.Sequential(*anchor.blocks)(torch.zeros(1, *anchor.input_shape)).shape[1])
