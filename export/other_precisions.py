"""Between the pipeline and `precisions`: what a family of torch routes is there, and what comes back as sources and report rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from restnet_runtime.routes import largest_activations, precision_of

from .cuts import CutAnchor
from .figures import RouteResult
from .folding import FoldedSegment
from .graph_costs import weight_bytes
from .precisions import HELD_MOST, Family, Quantised, quantise_family
from .routes import StitchedRoute, block_name
from .samples import Samples
from .writer import RouteSource, SegmentSource


@dataclass(frozen=True)
class Written:
    """What routes are made of once they are in all precisions.

    sources:  segments by name
    routes:   to be written, those in fp32 first
    twins:    of every route that is not in fp32, the name of the one that is
    """

    sources: Mapping[str, SegmentSource]
    routes: tuple[RouteSource, ...]
    twins: Mapping[str, str]


def quantise_routes(
    kept: Sequence[StitchedRoute],
    sources: Mapping[str, SegmentSource],
    anchors: Mapping[str, CutAnchor],
    folded: Mapping[str, FoldedSegment],
    accuracy: Mapping[str, float],
    samples: Samples,
    scoring: Samples,
    say: Callable[[str], None],
) -> Quantised:
    """Every route of `kept` in int8, calibrated on `samples` but for a fifth by which is chosen. Raises `ExportError`.

    accuracy: of each in fp32 on `scoring`, 0..1
    """
    family = Family(
        anchors={name: [block_name(name, block) for block in range(len(anchor.blocks))] for name, anchor in anchors.items()},
        routes={route.name: route.segments() for route in kept},
        accuracies=accuracy,
        models={name: source.model for name, source in sources.items()},
        macs={name: source.macs for name, source in sources.items()},
        input_shape=next(iter(anchors.values())).input_shape,
        alike={name: segment.block for name, segment in folded.items()},
    )
    count = min(HELD_MOST, max(1, len(samples) // 5))
    first = len(samples) - count

    def drawn(indices: range) -> Iterator[NDArray[np.float32]]:
        parts = (indices[start : start + HELD_MOST] for start in range(0, len(indices), HELD_MOST))
        return (images.cpu().numpy() for images, _ in samples.drawn(parts))

    return quantise_family(
        family,
        lambda: drawn(range(first)),
        np.concatenate(list(drawn(range(first, len(samples))))),
        lambda: ((images.cpu().numpy(), labels.cpu().numpy()) for images, labels in scoring.batches()),
        say,
    )


def written(
    kept: Sequence[StitchedRoute], sources: Mapping[str, SegmentSource], accuracy: Mapping[str, float], quantised: Quantised | None
) -> Written:
    """Routes in fp32, and those of `quantised`, if any, beside them."""
    plain = tuple(RouteSource(route.name, route.segments(), accuracy[route.name]) for route in kept)
    if quantised is None:
        return Written(sources, plain, {})
    return Written(
        {
            name: replace(source, others={"int8": quantised.models[name]}) if name in quantised.models else source
            for name, source in sources.items()
        },
        (*plain, *(RouteSource(route.name, route.segments, route.accuracy, route.precisions) for route in quantised.routes)),
        {route.name: route.twin for route in quantised.routes},
    )


def route_results(
    kept: Sequence[StitchedRoute],
    family: Written,
    accuracy: Mapping[str, float],
    untuned: Mapping[str, float],
    latencies: Mapping[str, float],
) -> list[RouteResult]:
    """Rows of the report, in the order in which routes are written. untuned, latencies: by route, as far as measured."""
    anchors = {route.name for route in kept if not route.layers}
    found = []
    for route in family.routes:
        twin = family.twins.get(route.name)
        found.append(
            RouteResult(
                route.name,
                sum(family.sources[name].macs for name in route.segments),
                sum(family.sources[name].params for name in route.segments),
                accuracy[route.name] if route.accuracy is None else route.accuracy,
                (twin or route.name) in anchors,
                untuned.get(route.name),
                latency_ms=latencies.get(route.name),
                precision=precision_of(kind for _, kind in route.parts()),
                twin=None if twin is None else accuracy[twin],
                weight_bytes=sum(weight_bytes(family.sources[name].graphs()[kind]) for name, kind in route.parts()),
                activation_bytes=largest_activations(family.sources[name].activation_bytes for name in route.segments) or 0,
            )
        )
    return found
