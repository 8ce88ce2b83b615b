"""An anchor cut into blocks: every place where one tensor alone crosses, and the blocks between the chosen ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import nn

from restnet_runtime.errors import CutError, ParityError

from .anchors import Anchor
from .ends import block_ends, modules_ending
from .layouts import Kind, Layout, layout_of, layouts_of
from .liveness import LiveGraph
from .onnx_module import OnnxModule
from .onnx_trace import trace_onnx
from .trace import trace

TOLERANCE = 1e-4
"""Largest difference allowed between the chain of blocks and the anchor, relative to the anchor's largest output."""


@dataclass(frozen=True)
class Cut:
    """A place where one tensor alone crosses.

    `node` names the operation before it, `shape` is without the batch. `modules` are the qualified names of all torch modules whose call
    ends here, outermost first, and `module` is the one to show: the first; of a block, the block. Where none ends it is the module around
    it and the operation, `blocks.0:add_1`.
    """

    node: str
    module: str
    shape: tuple[int, ...]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class CutAnchor:
    """An anchor as a chain of n + 1 modules: stem, blocks, head. Each takes and returns one float32 tensor, batch first and dynamic.

    `cuts[i]` and `layouts[i]` describe the output of `blocks[i]`, i < n. The modules share their parameters with the anchor and autograd
    flows to them. `stages` counts the blocks of each stage, consecutive blocks with outputs of one shape; stem and head are in no stage, so
    it sums to n - 1.
    """

    name: str
    source: str
    input_shape: tuple[int, int, int]
    cuts: tuple[Cut, ...]
    layouts: tuple[Layout, ...]
    blocks: tuple[nn.Module, ...]
    stages: tuple[int, ...]


def find_cuts(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[LiveGraph, list[Cut]]:
    """Trace a module in eval mode, or read the graph of an `OnnxModule`, and list its cuts in order; `input_shape` is without the batch.

    Raises CutError if torch.export cannot trace it.
    """
    found = trace_onnx(module) if isinstance(module, OnnxModule) else trace(module, input_shape)
    return found, [_cut(found, position) for position in found.cuts]


def cut_anchor(anchor: Anchor, ends: Sequence[str] | None = None) -> CutAnchor:
    """Cut an anchor after the modules named in `ends` (`Cut.module`, any of `Cut.modules` or `Cut.node`), by default at its block ends.

    Raises CutError if it cannot be traced, has no cut, cannot be cut after a module in `ends`, or computes what is not finite, and
    ParityError if the blocks in a row do not compute what the anchor computes.
    """
    found, cuts = find_cuts(anchor.module, anchor.input_shape)
    if not cuts:
        raise CutError(f"{anchor.name}: cannot be cut: {_obstacle(found)}")
    if ends is None:
        chosen = block_ends(found, lambda position: bool(layouts_of(found.shape(position), anchor.input_shape)))
        if not chosen:
            raise CutError(f"{anchor.name}: has no cut with weights before and after it; its cuts are {_names(cuts)}")
    else:
        chosen = _positions(anchor, found, cuts, ends)
    borders = [None, *chosen]
    blocks = [found.segment(start, end) for start, end in zip(borders, [*chosen, len(found.nodes) - 1], strict=True)]
    _check(anchor, blocks)
    by_position = dict(zip(found.cuts, cuts, strict=True))
    named = (replace(by_position[position], module=name or by_position[position].module) for position, name in chosen.items())
    shapes = [found.shape(position) for position in chosen]
    return CutAnchor(
        name=anchor.name,
        source=anchor.source,
        input_shape=anchor.input_shape,
        cuts=tuple(named),
        layouts=_layouts(anchor, found, chosen),
        blocks=tuple(blocks),
        stages=tuple(len(list(group)) for _, group in groupby(shapes[1:])),
    )


def _cut(found: LiveGraph, position: int) -> Cut:
    node = found.nodes[position]
    ending = modules_ending(found, position)
    return Cut(node.name, ending[0] if ending else _lies_in(found, position), found.shape(position), tuple(ending))


def _lies_in(found: LiveGraph, position: int) -> str:
    around = [span for span in found.spans if span.first <= position <= span.last]
    node = found.nodes[position].name
    return f"{min(around, key=lambda span: span.last - span.first).module}:{node}" if around else node


def _positions(anchor: Anchor, found: LiveGraph, cuts: list[Cut], ends: Sequence[str]) -> dict[int, str]:
    if not ends:
        raise CutError(f"{anchor.name}: ends is empty; its cuts are {_names(cuts)}")
    chosen: dict[int, str] = {}
    for end in ends:
        matching = [position for position, cut in zip(found.cuts, cuts, strict=True) if end in (cut.node, cut.module, *cut.modules)]
        if not matching:
            last = [span.last for span in found.spans if span.module == end]
            why = _why_not(found, last[-1]) if last else "it has no module of that name that runs on the image"
            raise CutError(f"{anchor.name}: cannot be cut after {end!r}: {why}; its cuts are {_names(cuts)}")
        chosen.update(dict.fromkeys(matching, end))
    return dict(sorted(chosen.items()))


def _why_not(found: LiveGraph, position: int) -> str:
    if position == len(found.nodes) - 1:
        return "nothing follows it"
    live = [node.name for node in found.live[position]]
    if len(live) > 1:
        return f"{len(live)} tensors are live there ({', '.join(live)})"
    return "its output is not one float tensor with the batch as first and only dynamic dimension"


def _obstacle(found: LiveGraph) -> str:
    """The longest-lived tensor beside another one, by the modules that make it and still need it."""
    crowded = [i for i, live in enumerate(found.live) if len(live) > 1]
    if not crowded:
        return f"after {_module_of(found, 0)} {_why_not(found, 0)}"
    others = [node for i in crowded for node in found.live[i] if node is not found.nodes[i]]
    kept = max(dict.fromkeys(others), key=others.count)
    last = max(i for i in crowded if kept in found.live[i]) + 1
    made = "its input" if kept is found.entry else f"the output of {_module_of(found, found.nodes.index(kept))}"
    live = ", ".join(node.name for node in found.live[crowded[0]])
    return f"{made} stays live up to {_module_of(found, last)}, so more than one tensor is live all along (first: {live})"


def _module_of(found: LiveGraph, position: int) -> str:
    ending = modules_ending(found, position)
    return repr(ending[0] if ending else _lies_in(found, position))


def _names(cuts: list[Cut]) -> str:
    shown = [cut.module for cut in cuts]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _layouts(anchor: Anchor, found: LiveGraph, chosen: Iterable[int]) -> tuple[Layout, ...]:
    """Where a shape fits a map both ways round (96, 96, 96), the nearest cut that leaves no choice decides."""
    fitting = [layouts_of(found.shape(position), anchor.input_shape) for position in chosen]
    certain = [(i, layouts[0].kind) for i, layouts in enumerate(fitting) if len(layouts) == 1 and layouts[0].kind in ("map", "map_last")]
    result = []
    for i, position in enumerate(chosen):
        like: Kind | None = min(certain, key=lambda item: abs(item[0] - i))[1] if certain else None
        try:
            result.append(layout_of(found.shape(position), anchor.input_shape, like))
        except CutError as error:
            raise CutError(f"{anchor.name}: cannot be cut after {_module_of(found, position)}: {error}") from error
    return tuple(result)


def _check(anchor: Anchor, blocks: Sequence[nn.Module]) -> None:
    images = torch.randn(3, *anchor.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for batch in (1, 3):
            expected = anchor.module(images[:batch])
            if not bool(torch.isfinite(expected).all()):
                raise CutError(f"{anchor.name}: its scores for images of noise are not finite; are its weights damaged?")
            value = images[:batch]
            for block in blocks:
                value = block(value)
            difference = float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            if not difference <= TOLERANCE:
                raise ParityError(
                    f"{anchor.name}: its blocks in a row differ from it by {difference:.1e} at batch {batch}; allowed is {TOLERANCE}"
                )
