"""Which cuts end a block, when the user names none: found from the shape of the module tree, with no table of families.

The uncuttable stretches of a residual network tell its blocks: the smallest module around such a stretch that ends at a cut. Modules of
the same class, or at the same place in the tree (`layer2.1` is at `layer*.*`), are blocks too even where they have no shortcut. Networks
without such stretches fall back to repeated modules, those whose modules tell nothing to the stretches themselves, then to single layers,
then to all cuts.
"""

import re
from collections.abc import Callable

from .liveness import LiveGraph, Part, Span


def block_ends(trace: LiveGraph, usable: Callable[[int], bool]) -> dict[int, str]:
    """Positions of the cuts that end the stem and each block, ascending, each with the block's module name ("" where it is not one module).

    What follows the last is the head. `usable` says which cuts may be chosen. Empty if there is none with weights on both sides.
    """
    cuts = {position for position in trace.cuts if usable(position)}
    ending = [span for span in trace.spans if span.last in cuts]
    uncuttable = _around_uncuttable(trace)
    numbered = [span for span in uncuttable if _numbered(span)]
    for blocks in (
        _alike(numbered, ending, trace),
        _deepest(ending, trace),
        _outermost(uncuttable),
        _stretches(trace),
        _layers(trace),
    ):
        ends = _complete(trace, blocks, cuts)
        if ends:
            names = {span.last: span.module for span in blocks if span in trace.spans}
            return {end: names.get(end, "") for end in ends}
    return dict.fromkeys(_trimmed(trace, sorted(cuts)), "")


def modules_ending(trace: LiveGraph, position: int) -> list[str]:
    """Names of the modules whose call ends at this operation, outermost first."""
    return [span.module for span in trace.spans if span.last == position]


def _around_uncuttable(trace: LiveGraph) -> list[Span]:
    """For each stretch between two neighbouring cuts that cannot be cut inside: the smallest call around it that ends at a cut."""
    cuts = set(trace.cuts)
    found: dict[Span, None] = {}
    begin = 0
    for end in (*trace.cuts, len(trace.nodes) - 1):
        if end > begin:
            around = [span for span in trace.spans if span.first <= begin and end <= span.last and span.last in cuts]
            if around:
                found[min(around, key=lambda span: (span.last - span.first, -span.module.count(".")))] = None
        begin = end + 1
    return list(found)


def _numbered(span: Span) -> bool:
    return re.search(r"\d", span.module.rpartition(".")[2]) is not None


def _place(span: Span) -> str:
    return re.sub(r"\d+", "*", span.module)


def _places_above(span: Span) -> list[str]:
    parts = _place(span).split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _alike(seeds: list[Span], ending: list[Span], trace: LiveGraph) -> list[Span]:
    known = [trace.parts[span.module] for span in seeds]
    kinds = {part.kind for part in known if part.kind is not None and not part.container}
    places = {_place(span) for span in seeds}
    alike = []
    for span in ending:
        part = trace.parts[span.module]
        if _numbered(span) and not part.container and (part.kind in kinds or (_place(span) in places and _is_unit(part))):
            alike.append(span)
    blocks = _outermost(alike)
    # A lone module between containers of blocks (Swin's patch merging in torchvision) opens the next stage: the block after it takes it.
    above = {place for span in blocks for place in _places_above(span)}
    return [span for span in blocks if _place(span) not in above]


def _deepest(ending: list[Span], trace: LiveGraph) -> list[Span]:
    """The innermost numbered modules that have children and hold a weight matrix or kernel."""
    candidates = [span for span in ending if _numbered(span) and _is_unit(trace.parts[span.module])]
    return [span for span in candidates if not any(_inside(other, span) for other in candidates)]


def _is_unit(part: Part) -> bool:
    return part.children and part.matrix


def _stretches(trace: LiveGraph) -> list[Span]:
    """Where no module tells the blocks: the uncuttable stretches with weights themselves, each up to the next operation with weights.

    Only what keeps the tensor's shape follows a stretch into its block (the ReLU after a sum; not the pooling before the head). A single
    stretch says too little.
    """
    found: list[Span] = []
    begin: int | None = None
    for index, end in enumerate(trace.cuts):
        start = -1 if begin is None else begin
        if end > start + 1 and trace.has_weights(begin, end):
            last = end
            for after in trace.cuts[index + 1 :]:
                if trace.shape(after) != trace.shape(end) or trace.has_weights(last, after):
                    break
                last = after
            found.append(Span("", start + 1, last))
        begin = end
    return found if len(found) > 1 else []


def _layers(trace: LiveGraph) -> list[Span]:
    """From each module that itself holds a weight matrix or kernel up to the next one."""
    own = [span for span in trace.spans if trace.parts[span.module].own_matrix]
    following = [span.first for span in own[1:]]
    return [Span(span.module, span.first, before - 1) for span, before in zip(own, following, strict=False)]


def _inside(inner: Span, outer: Span) -> bool:
    return inner is not outer and outer.first <= inner.first and inner.last <= outer.last and inner.module.startswith(outer.module + ".")


def _outermost(spans: list[Span]) -> list[Span]:
    return [span for span in spans if not any(_inside(span, other) for other in spans)]


def _complete(trace: LiveGraph, blocks: list[Span], cuts: set[int]) -> list[int]:
    """The ends of the blocks, with the end of the stem in front if the stem has weights."""
    ends = sorted({span.last for span in blocks} & cuts)
    if not ends:
        return []
    first = min(span.first for span in blocks if span.last == ends[0])
    stem = max((position for position in cuts if position < first), default=None)
    if stem is not None and trace.has_weights(None, stem):
        ends.insert(0, stem)
    return _trimmed(trace, ends)


def _trimmed(trace: LiveGraph, ends: list[int]) -> list[int]:
    """Without ends that leave the stem or the head nothing to learn: a stitch there would map images or class scores."""
    while ends and not trace.has_weights(ends[-1], len(trace.nodes) - 1):
        ends = ends[:-1]
    while ends and not trace.has_weights(None, ends[0]):
        ends = ends[1:]
    return ends
