"""From anchors to a bundle: load, cut, compare, stitch, fit, tune, score, write."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from restnet_runtime import __version__
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.manifest import Anchor as AnchorEntry
from restnet_runtime.manifest import Provenance
from restnet_runtime.routes import precision_of

from .anchors import AnchorSpec, load_anchor
from .checks import (
    check_activations,
    check_classes,
    check_labels,
    check_names,
    check_order,
    check_out,
    check_samples,
    check_tuning,
    class_names,
)
from .cuts import CutAnchor, cut_anchor
from .data import load_split
from .figures import Curve, RouteResult
from .finetune import finetune
from .fitting import fit_layers
from .folding import FoldedSegment, fold_routes
from .identity import run_identity
from .images import Images
from .inputs import agreed_input
from .latency import measure_latencies
from .parity import check_chains, check_routes
from .phases import Phases
from .planning import family_macs, plan_routes
from .precisions import HELD_MOST, Family, Quantised, quantise_family
from .promise import measure_promise
from .ranks import Ranks
from .report import Report, render_report
from .routes import StitchedRoute, block_name, joined_cuts, routes_of
from .runs import Run
from .samples import Samples
from .scoring import score_routes
from .scratch import clear_leftovers, scratch_of
from .screening import readable
from .settings import ExportSettings
from .similarity import measure_similarity
from .sources import segment_sources
from .teachers import given_teacher, strongest
from .tuner import Tuned
from .writer import BundleSource, RouteSource, SegmentSource, write_bundle

TEACHER_IMAGES = 512
"""So many images tell which anchor teaches."""


def export_bundle(settings: ExportSettings, say: Callable[[str], None], ranks: Ranks | None = None, phases: Phases | None = None) -> Bundle:
    """Make the bundle that `settings` describe and write it to `settings.out`. Raises errors of the tree `RestnetError`.

    say:    told what is going on, a line at a time.
    ranks:  processes that tune together, all of them called alike; the first one writes, the others return what it wrote.
    phases: counts where the time goes; at the end `say` is told.
    """
    ranks, phases = ranks or Ranks(), phases or Phases()
    if ranks.first:
        for line in clear_leftovers(settings.out.resolve()):
            say(line)
        check_out(settings.out)
    with Run(settings.out, 60 * settings.checkpoint_minutes, settings.resume, ranks.first) as run:
        bundle = _exported(settings, say, run, ranks, phases)
        run.finish()
    phases.end()
    say(str(phases))
    return bundle


def _exported(settings: ExportSettings, say: Callable[[str], None], run: Run, ranks: Ranks, phases: Phases) -> Bundle:
    phases.begin("load")
    rule = settings.rule_with_options()
    torch.manual_seed(settings.seed)
    fitting, scoring = load_split(settings.data, settings.val, settings.seed)
    check_labels(settings, fitting)
    if settings.classes is not None:
        fitting, scoring = fitting.labelled(settings.classes), scoring.labelled(settings.classes)
    check_samples(settings.samples, fitting)
    check_classes(fitting)
    check_classes(scoring)
    loaded = [load_anchor(AnchorSpec.parse(text), settings.input_shape) for text in settings.anchors]
    check_names(loaded)
    check_tuning(loaded, settings.finetune)
    input_shape, preprocessing = agreed_input(loaded, settings.preprocessing)
    classes = class_names(loaded, input_shape, fitting, scoring, settings.classes)
    teacher = None if settings.teacher is None else given_teacher(settings.teacher, loaded, preprocessing)
    phases.begin("cut")
    anchors = {anchor.name: cut_anchor(anchor) for anchor in loaded}
    for name, cut in anchors.items():
        say(f"anchor {name}: {len(cut.blocks)} blocks in stages of {', '.join(map(str, cut.stages))}")
    check_order(anchors)

    def sampled(images: Images) -> Samples:
        return Samples(images, preprocessing, input_shape, settings.workers)

    def screened(images: Images, count: int | None = None) -> Images:
        return readable(sampled(images), settings.max_bad, say, settings.workers, count)

    fitting = screened(fitting.shuffled(settings.seed), settings.samples if settings.finetune == "none" else None)
    scoring = screened(scoring)
    check_samples(settings.samples, fitting)
    samples = sampled(fitting.first(settings.samples))
    check_activations(anchors, samples)
    phases.begin("similarity")
    similarity = measure_similarity(list(anchors.values()), samples, rule.nearest)
    promise = measure_promise(settings.select, list(anchors.values()), similarity, samples)
    plan = plan_routes(rule, anchors, promise, settings.max_routes)
    say(f"rule {settings.rule}: {len(plan.routes)} stitched routes through {len(plan.layers)} stitching layers")
    phases.begin("fit")
    layers = fit_layers(plan.layers, anchors, samples, match_spread=settings.match_spread)
    say(f"least squares on {len(samples.images)} images")
    routes = routes_of(anchors, plan)
    names = [route.name for route in routes]
    untuned: dict[str, float] = {}
    tuned: list[Tuned] = []
    if settings.finetune != "none":
        if ranks.first:
            phases.begin("score")
            untuned = dict(zip(names, score_routes(routes, anchors, layers, sampled(scoring).batches()), strict=True))
        phases.begin("tune")
        taught_by = teacher or strongest(anchors, sampled(fitting.first(TEACHER_IMAGES)))
        say(f"fine-tuning on {len(fitting)} images, taught by {taught_by if isinstance(taught_by, str) else taught_by.name}")
        labelled = settings.tuning.labelled and fitting.has_labels
        identity = run_identity(settings, anchors, taught_by, routes, sampled(fitting), ranks.size)
        ranks.check_same(identity)
        run.begin(identity)
        tuned = finetune(
            anchors,
            layers,
            routes,
            family_macs(plan, anchors),
            taught_by if isinstance(taught_by, str) else taught_by.module,
            sampled(fitting),
            replace(settings.tuning, mode=settings.finetune, seed=settings.seed, labelled=labelled),
            say,
            settings.progress,
            run,
            ranks,
            len(samples),
        )
    if not ranks.first:
        ranks.wait()
        return open_bundle(settings.out)
    phases.begin("score")
    accuracies = score_routes(routes, anchors, layers, sampled(scoring).batches())
    say(f"scored {len(routes)} routes on {len(scoring)} images")

    phases.begin("segments")
    folded: dict[str, FoldedSegment] = {}
    if settings.fold:
        routes, folded = fold_routes(routes, anchors, layers)
        say(f"folded {len(folded)} stitching layers into the blocks behind them")
    kept, sources = segment_sources(routes, anchors, layers, accuracies, settings.max_routes, folded, say)
    accuracy = dict(zip(names, accuracies, strict=True))
    in_int8 = None
    if "int8" in settings.precision:
        phases.begin("quantise")
        in_int8 = _quantised(kept, sources, anchors, accuracy, samples, sampled(scoring), say)
        sources = {
            name: replace(source, others={"int8": in_int8.models[name]}) if name in in_int8.models else source
            for name, source in sources.items()
        }
    others = [] if in_int8 is None else in_int8.routes
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
        routes=(
            *(RouteSource(route.name, route.segments(), accuracy[route.name]) for route in kept),
            *(RouteSource(route.name, route.segments, route.accuracy, route.precisions) for route in others),
        ),
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
    latencies = _latencies(source, settings.out, say) if settings.latency or others else {}
    phases.begin("report")
    report = Report(
        [
            RouteResult(
                route.name,
                sum(sources[name].macs for name in route.segments()),
                sum(sources[name].params for name in route.segments()),
                accuracy[route.name],
                not route.layers,
                untuned.get(route.name),
                latency_ms=latencies.get(route.name),
            )
            for route in kept
        ]
        + [
            RouteResult(
                route.name,
                sum(sources[name].macs for name in route.segments),
                sum(sources[name].params for name in route.segments),
                route.accuracy,
                route.twin in anchors,
                latency_ms=latencies.get(route.name),
                precision=precision_of(route.precisions),
                twin=accuracy[route.twin],
            )
            for route in others
        ],
        similarity if settings.select == "cka" else promise,
        {name: [f"{block} {cut.module}" for block, cut in enumerate(anchor.cuts)] for name, anchor in anchors.items()},
        joined_cuts(kept),
        {"version": __version__, **settings.told(), "versions": versions},
        len(scoring),
        [Curve(item.route, *map(tuple, zip(*item.curve, strict=True))) for item in tuned if item.curve],
        measure=settings.select,
        trials=[] if in_int8 is None else in_int8.trials,
        sensitivity={} if in_int8 is None else in_int8.sensitivity,
    )
    phases.begin("write")
    probe = next(samples.batches(3))[0]

    def check(bundle: Bundle) -> None:
        check_routes(bundle, kept, anchors, layers, probe)
        check_chains(bundle, [route.name for route in others], probe)

    bundle = write_bundle(replace(source, reports=render_report(report)), settings.out, check)
    ranks.wait()
    return bundle


def _quantised(
    kept: Sequence[StitchedRoute],
    sources: Mapping[str, SegmentSource],
    anchors: Mapping[str, CutAnchor],
    accuracy: Mapping[str, float],
    samples: Samples,
    scoring: Samples,
    say: Callable[[str], None],
) -> Quantised:
    """Calibrated on the images that stitching layers were fitted on, but for a fifth by which is chosen."""
    family = Family(
        anchors={name: [block_name(name, block) for block in range(len(anchor.blocks))] for name, anchor in anchors.items()},
        routes={route.name: route.segments() for route in kept},
        accuracies=accuracy,
        models={name: source.model for name, source in sources.items()},
        macs={name: source.macs for name, source in sources.items()},
        input_shape=next(iter(anchors.values())).input_shape,
    )
    count = min(HELD_MOST, max(1, len(samples) // 5))
    first = len(samples) - count

    def drawn(indices: range) -> Iterator[NDArray[np.float32]]:
        parts = (indices[start : start + HELD_MOST] for start in range(0, len(indices), HELD_MOST))
        return (images.numpy() for images, _ in samples.drawn(parts))

    return quantise_family(
        family,
        lambda: drawn(range(first)),
        np.concatenate(list(drawn(range(first, len(samples))))),
        lambda: ((images.numpy(), labels.numpy()) for images, labels in scoring.batches()),
        say,
    )


def _latencies(source: BundleSource, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Of each route, on a bundle without a report that lies beside the one to come for so long."""
    with scratch_of(out.resolve()) as scratch:
        found = measure_latencies(write_bundle(source, scratch / source.name), [route.name for route in source.routes])
    say(f"measured {len(found)} routes: {min(found.values()):.3g} to {max(found.values()):.3g} ms")
    return found
