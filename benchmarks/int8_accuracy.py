"""Int8 routes of CIFAR-10 ResNets: what they lose against fp32, what the bundle grows by, and what the joint front is worth.

Without --bundles a family is exported without tuning for each set of images; $RESTNET_SHARED has the checkpoints and
images. The latencies are of compiled routes on one thread, all in turns.

  python benchmarks/int8_accuracy.py
  python benchmarks/int8_accuracy.py --bundles build/benchmarks/cifar/tuned-int8 --picture docs/int8.png      (requantise.py makes it)
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_family import cifar_settings
from common import CACHE, ROOT, Floor, Result, arguments, noise, publish, quantile, timed_ms
from int8_cause import cause_of, scored_images

from restnet_export.figures import RouteResult, png, precisions_figure
from restnet_export.pipeline import export_bundle
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import BundleError
from restnet_runtime.graphs import external_extent, load_segment
from restnet_runtime.manifest import PAGE_BYTES
from restnet_runtime.routes import Route, pareto_front
from restnet_runtime.sessions import SessionSettings, infer, load_session

ANCHOR_LOSS, MEDIAN_LOSS, GROWTH, POINTS = 0.5, 1.0, 1.3, 5


@dataclass(frozen=True)
class Pair:
    """A route in fp32 and in int8 or mixed. loss: points."""

    name: str
    fp32: float
    int8: float
    anchor: bool

    @property
    def loss(self) -> float:
        return 100 * (self.fp32 - self.int8)


def exported(images: str) -> Path:
    """The family of ResNet-20 and 56 without tuning, made now if it is not there."""
    out = ROOT / "cifar" / f"{images}-int8"
    try:
        open_bundle(out)
    except BundleError:
        export_bundle(replace(cifar_settings(out, images=images, samples=400), precision=("fp32", "int8")), print)
    return out


def pairs_of(bundle: Bundle) -> list[Pair]:
    anchors = {anchor.name for anchor in bundle.manifest.anchors}
    plain = {route.segments: route for route in bundle.routes if route.precision == "fp32"}
    return [
        Pair(route.name, plain[route.segments].accuracy or 0.0, route.accuracy or 0.0, plain[route.segments].name in anchors)
        for route in bundle.routes
        if route.precision != "fp32"
    ]


def growth(bundle: Bundle) -> float:
    """Bytes of the bundle over those that it would have with its fp32 graphs alone: graphs and weights, pages counted whole."""
    sizes = {}
    for precisions in (("fp32",), ("fp32", "int8")):
        extents, graphs = set(), 0
        for segment in bundle.segments.values():
            for precision in precisions:
                if precision in segment.graphs:
                    graphs += bundle.manifest.files[segment.graphs[precision].file].bytes
                    model = load_segment(bundle, segment, precision)
                    extents |= {external_extent(tensor) for tensor in model.graph.initializer}
        sizes[precisions] = graphs + sum(-(-length // PAGE_BYTES) * PAGE_BYTES for _, length in extents)
    small, large = sizes.values()
    return large / small


def latencies(bundle: Bundle, rounds: int) -> dict[str, float]:
    """Median milliseconds by route."""
    compiler = Compiler.for_bundle(bundle, CACHE)
    sessions = {route.name: load_session(compiler.compile(route), SessionSettings(threads=1)) for route in bundle.routes}
    x = noise(bundle)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(rounds + 1):
        for name, session in sessions.items():
            took = timed_ms(lambda session=session: infer(session, x))  # type: ignore[misc]
            if index:
                times[name].append(took)
    return {name: quantile(taken, 0.5) for name, taken in times.items()}


def above_anchors(routes: Sequence[Route], took: Mapping[str, float], anchors: Sequence[Route]) -> list[str]:
    """Of the routes on the front over latency, those more accurate than every anchor that takes no longer than they do."""
    ordered = sorted(routes, key=lambda route: took[route.name])
    front = pareto_front((took[route.name], route.accuracy) for route in ordered)
    alone = [(took[anchor.name], anchor.accuracy or 0.0) for anchor in anchors]
    single = {anchor.segments for anchor in anchors}
    return [
        route.name
        for route, on in zip(ordered, front, strict=True)
        if on
        and route.segments not in single
        and took[route.name] >= min(ms for ms, _ in alone)
        and (route.accuracy or 0.0) > max((accuracy for ms, accuracy in alone if ms <= took[route.name]), default=1.0)
    ]


def measure(path: Path, args: argparse.Namespace, result: Result) -> None:
    bundle = open_bundle(path)
    name, images = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name, bundle.manifest.provenance.scored_on
    anchors = {anchor.name for anchor in bundle.manifest.anchors}
    pairs, took = pairs_of(bundle), latencies(bundle, args.rounds)
    worst = max((pair for pair in pairs if pair.anchor), key=lambda pair: pair.loss)
    what = f"{name}: int8 anchors lose at most"
    result.floors.append(Floor(what, "fp32", f"<= {ANCHOR_LOSS} points", f"{worst.loss:.1f}", worst.loss <= ANCHOR_LOSS))
    stitched = [pair for pair in pairs if not pair.anchor]
    median, worst = statistics.median(pair.loss for pair in stitched), max(stitched, key=lambda pair: pair.loss)
    what = f"{name}: int8 routes lose in the median of {len(stitched)} ({images} images)"
    cause = cause_of(bundle, bundle.route(worst.name), *scored_images(bundle))
    figure = f"{median:.1f}, worst {worst.loss:.1f} ({worst.name}: {cause})"
    result.floors.append(Floor(what, "fp32 twins", f"<= {MEDIAN_LOSS} points", figure, median <= MEDIAN_LOSS))
    grown = growth(bundle)
    what = f"{name}: bundle in both precisions"
    result.floors.append(Floor(what, "its fp32 part", f"<= {GROWTH}x", f"{grown:.2f}x", grown <= GROWTH))
    routes = sorted(bundle.routes, key=lambda route: took[route.name])
    front = pareto_front((took[route.name], route.accuracy) for route in routes)
    above = above_anchors(routes, took, [bundle.route(f"{anchor}@int8") for anchor in anchors])
    what = f"{name}: cost points at which the joint front is strictly above"
    result.floors.append(Floor(what, "the int8 anchors alone", f">= {POINTS}", str(len(above)), len(above) >= POINTS))
    if len(above) < POINTS:
        plain = [route for route in routes if route.precision == "fp32"]
        of_plain = len(above_anchors(plain, took, [bundle.route(anchor) for anchor in anchors]))
        result.notes.append(
            f"{name}: why the joint front is above at {len(above)} points only: it is not for int8, which takes {median:.1f} points of a "
            f"stitched route; in fp32 alone {of_plain} of the {len(stitched)} are above the anchors"
        )
    survivors = [route.name for route, on in zip(routes, front, strict=True) if on and route.precision == "fp32"]
    result.notes.append(f"{name}: fp32 routes that survive on the joint front: {', '.join(survivors) or 'none'}")
    for route, on in zip(routes, front, strict=True):
        accuracy = route.accuracy or 0.0
        result.cells.append((f"{name} {route.name}", f"{took[route.name]:.2f} ms", f"{100 * accuracy:.1f} %", "yes" if on else ""))
        row = {"bundle": name, "route": route.name, "precision": route.precision, "ms": took[route.name], "accuracy": accuracy, "front": on}
        result.rows.append(row)
    if args.picture:
        shown = [
            RouteResult(
                route.name,
                route.macs,
                route.params,
                route.accuracy or 0.0,
                route.name.partition("@")[0] in anchors,
                latency_ms=took[route.name],
                precision=route.precision,
            )
            for route in routes
        ]
        args.picture.write_bytes(png(precisions_figure(shown)))


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--bundles", nargs="+", type=Path, help="in fp32 and int8, instead of the two that are made")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the joint front of the last bundle")
    args = parser.parse_args()
    result = Result("CIFAR-10 ResNets in fp32 and int8, one thread, batch 1", ("route", "latency", "accuracy", "on the joint front"))
    for path in args.bundles or [exported("jpeg"), exported("lossless")]:
        measure(path.resolve(), args, result)
    publish(result, args, started)


if __name__ == "__main__":
    main()
