"""From anchors to a bundle: load, cut, compare, stitch, fit, tune, score, write."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from restnet_runtime import __version__
from restnet_runtime.bundle import Bundle
from restnet_runtime.manifest import Anchor as AnchorEntry
from restnet_runtime.manifest import Provenance

from .anchors import AnchorSpec, load_anchor
from .checks import check_names, check_order, check_out, check_samples, check_tuning, class_names
from .cuts import CutAnchor, cut_anchor
from .data import Images, Samples, load_split
from .figures import RouteResult
from .finetune import Tuned, finetune_stitch
from .fitting import fit_layers
from .folding import FoldedSegment, fold_routes
from .inputs import agreed_input
from .latency import measure_latencies
from .parity import check_routes
from .phases import Phases
from .planning import plan_routes
from .promise import measure_promise
from .report import Report, render_report
from .routes import StitchedRoute, block_name, joined_cuts, routes_of
from .scoring import score_routes
from .settings import ExportSettings
from .similarity import measure_similarity
from .sources import segment_sources
from .stitching import StitchingLayer
from .writer import BundleSource, RouteSource, write_bundle

TEACHER_IMAGES = 512
"""So many images tell which anchor teaches."""


def export_bundle(settings: ExportSettings, say: Callable[[str], None], phases: Phases | None = None) -> Bundle:
    """Make the bundle that `settings` describe and write it to `settings.out`. Raises errors of the tree `RestnetError`.

    say: told what is going on, a line at a time.
    phases: counts where the time goes; at the end `say` is told.
    """
    phases = phases or Phases()
    bundle = _export(settings, say, phases)
    phases.end()
    say(str(phases))
    return bundle


def _export(settings: ExportSettings, say: Callable[[str], None], phases: Phases) -> Bundle:
    phases.begin("load")
    check_out(settings.out)
    rule = settings.rule_with_options()
    torch.manual_seed(settings.seed)
    fitting, scoring = load_split(settings.data, settings.val, settings.seed)
    if settings.classes is not None:
        fitting, scoring = fitting.labelled(settings.classes), scoring.labelled(settings.classes)
    check_samples(settings.samples, fitting)
    loaded = [load_anchor(AnchorSpec.parse(text), settings.input_shape) for text in settings.anchors]
    check_names(loaded)
    check_tuning(loaded, settings.finetune)
    input_shape, preprocessing = agreed_input(loaded, settings.preprocessing)
    classes = class_names(loaded, input_shape, fitting, scoring, settings.classes)
    phases.begin("cut")
    anchors = {anchor.name: cut_anchor(anchor) for anchor in loaded}
    for name, cut in anchors.items():
        say(f"anchor {name}: {len(cut.blocks)} blocks in stages of {', '.join(map(str, cut.stages))}")
    check_order(anchors)

    phases.begin("similarity")
    samples = Samples(_first(fitting.shuffled(settings.seed), settings.samples), preprocessing, input_shape)
    similarity = measure_similarity(list(anchors.values()), samples, rule.nearest)
    promise = measure_promise(settings.select, list(anchors.values()), similarity, samples)
    plan = plan_routes(rule, anchors, promise, settings.max_routes)
    say(f"rule {settings.rule}: {len(plan.routes)} stitched routes through {len(plan.layers)} stitching layers")
    phases.begin("fit")
    layers = fit_layers(plan.layers, anchors, samples)
    say(f"least squares on {len(samples.images)} images")
    routes = routes_of(anchors, plan)
    if settings.finetune == "stitch":
        phases.begin("tune")
        few = Samples(_first(fitting.shuffled(settings.seed), TEACHER_IMAGES), preprocessing, input_shape)
        teacher = strongest(anchors, few)
        tuned = _tune(settings, routes, anchors, layers, teacher, Samples(fitting, preprocessing, input_shape))
        improved = f"{sum(item.kept for item in tuned)} of {len(tuned)} layers improved on held-out loss"
        say(f"fine-tuning on {len(fitting)} images, taught by {teacher}: {improved}")
    phases.begin("score")
    accuracies = score_routes(routes, anchors, layers, Samples(scoring, preprocessing, input_shape).batches())
    say(f"scored {len(routes)} routes on {len(scoring)} images")

    phases.begin("segments")
    folded: dict[str, FoldedSegment] = {}
    if settings.fold:
        routes, folded = fold_routes(routes, anchors, layers)
        say(f"folded {len(folded)} stitching layers into the blocks behind them")
    kept, sources = segment_sources(routes, anchors, layers, accuracies, settings.max_routes, folded, say)
    accuracy = dict(zip((route.name for route in routes), accuracies, strict=True))
    versions = {package: version(package) for package in ("torch", "onnx", "onnxruntime", "numpy")}
    source = BundleSource(
        name=settings.out.resolve().name,
        classes=classes,
        input_shape=input_shape,
        preprocessing=preprocessing,
        anchors=tuple(
            AnchorEntry(
                name=anchor.name,
                source=anchor.source[:400],  # what the manifest takes; paths may be longer
                segments=tuple(block_name(anchor.name, block) for block in range(len(anchor.blocks))),
            )
            for anchor in anchors.values()
        ),
        segments=tuple(sources.values()),
        routes=tuple(RouteSource(route.name, route.segments(), accuracy[route.name]) for route in kept),
        provenance=Provenance(
            tool=f"restnet-export {__version__}",
            rule=settings.rule,
            finetune=settings.finetune,
            seed=settings.seed,
            fitted_on=len(samples.images),
            scored_on=len(scoring),
            versions=versions,
        ),
    )
    latencies = _latencies(source, settings.out, say) if settings.latency else {}
    phases.begin("report")
    report = Report(
        [
            RouteResult(
                route.name,
                sum(sources[name].macs for name in route.segments()),
                sum(sources[name].params for name in route.segments()),
                accuracy[route.name],
                not route.layers,
                latency_ms=latencies.get(route.name),
            )
            for route in kept
        ],
        similarity if settings.select == "cka" else promise,
        {name: [f"{block} {cut.module}" for block, cut in enumerate(anchor.cuts)] for name, anchor in anchors.items()},
        joined_cuts(kept),
        {"command": "restnet-export", "version": __version__, **settings.told(), "versions": versions},
        len(scoring),
        measure=settings.select,
    )
    phases.begin("write")
    probe = next(samples.batches(3))[0]
    return write_bundle(
        replace(source, reports=render_report(report)),
        settings.out,
        check=lambda bundle: check_routes(bundle, kept, anchors, layers, probe),
    )


def strongest(anchors: Mapping[str, CutAnchor], samples: Samples) -> str:
    """The anchor that is right most often on `samples`; of equals the larger. Anchors are given small to large."""
    alone = routes_of(anchors)
    scores = score_routes(alone, anchors, {}, samples.batches())
    return max(zip(scores, range(len(alone)), anchors, strict=True))[2]


def _first(images: Images, count: int) -> Images:
    return images.subset(np.arange(min(count, len(images))))


def _tune(
    settings: ExportSettings,
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    teacher: str,
    samples: Samples,
) -> list[Tuned]:
    modules = [route.module(anchors, layers) for route in routes if route.layers]
    whole = torch.nn.Sequential(*anchors[teacher].blocks)
    return finetune_stitch(modules, whole, samples, epochs=settings.epochs, lr=settings.lr, seed=settings.seed, progress=settings.progress)


def _latencies(source: BundleSource, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Of each route, on a bundle without a report that lies beside the one to come for so long."""
    with tempfile.TemporaryDirectory(prefix=f".{source.name}.", dir=out.resolve().parent) as scratch:
        found = measure_latencies(write_bundle(source, Path(scratch) / source.name), [route.name for route in source.routes])
    say(f"measured {len(found)} routes: {min(found.values()):.2f} to {max(found.values()):.2f} ms")
    return found
