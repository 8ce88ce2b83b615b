"""From anchors to a bundle: load, cut, compare, stitch, fit, tune, score, write."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from restnet_runtime import __version__
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.heap import return_large_blocks
from restnet_runtime.manifest import Anchor as AnchorEntry
from restnet_runtime.manifest import Provenance
from restnet_runtime.signing import signer

from .amp import emulated
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
from .cuts import cut_anchor
from .data import load_split
from .devices import CPU, chosen_device, device_name, move
from .figures import Curve
from .finetune import finetune
from .fitting import fit_layers
from .folding import FoldedSegment, fold_routes
from .identity import run_identity
from .images import Images
from .inputs import agreed_input
from .latency import measure_latencies
from .other_precisions import quantise_routes, route_results, written
from .parity import check_chains, check_routes
from .phases import Phases
from .planning import family_macs, plan_routes
from .promise import measure_promise
from .ranks import Ranks
from .report import Report, render_report
from .routes import block_name, joined_cuts, routes_of
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
from .writer import BundleSource, write_bundle

TEACHER_IMAGES = 512
"""So many images tell which anchor teaches."""


def export_bundle(settings: ExportSettings, say: Callable[[str], None], ranks: Ranks | None = None, phases: Phases | None = None) -> Bundle:
    """Make the bundle that `settings` describe and write it to `settings.out`. Raises errors of the tree `RestnetError`.

    say:    told what is going on, a line at a time.
    ranks:  processes that tune together, all of them called alike; the first one writes, the others return what it wrote.
    phases: counts where the time goes; at the end `say` is told.
    """
    ranks, phases = ranks or Ranks(), phases or Phases()
    return_large_blocks()
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
    sign = None if settings.sign is None else signer(settings.sign)
    torch.manual_seed(settings.seed)
    device = chosen_device(settings.device)
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
    if device != CPU:
        say(f"computing on {device_name(device)}")
        taught = () if teacher is None or isinstance(teacher, str) else (teacher.module,)
        move([*(block for anchor in anchors.values() for block in anchor.blocks), *taught], device)

    def sampled(images: Images) -> Samples:
        return Samples(images, preprocessing, input_shape, settings.workers, device)

    def screened(images: Images, count: int | None = None) -> Images:
        return readable(sampled(images), settings.max_bad, say, settings.workers, count)

    fitting = screened(fitting.shuffled(settings.seed), settings.samples if settings.finetune == "none" else None)
    scoring = screened(scoring)
    check_samples(settings.samples, fitting)
    check_classes(fitting)  # once more: a class may have had no image that can be read
    check_classes(scoring)
    samples = sampled(fitting.first(settings.samples))
    check_activations(anchors, samples)
    phases.begin("similarity")
    similarity = measure_similarity(list(anchors.values()), samples, rule.nearest)
    promise = measure_promise(settings.select, list(anchors.values()), similarity, samples)
    plan = plan_routes(rule, anchors, promise, settings.max_routes, settings.candidates, settings.stitch_kernel)
    say(f"rule {settings.rule}: {len(plan.routes)} stitched routes through {len(plan.layers)} stitching layers")
    phases.begin("fit")
    layers = fit_layers(plan.layers, anchors, samples, match_spread=settings.match_spread, kernel=settings.stitch_kernel)
    wide = sum(layer.kernel > 1 for layer in layers.values())
    seeing = f", {wide} of {len(layers)} layers see {settings.stitch_kernel}x{settings.stitch_kernel}" if settings.stitch_kernel > 1 else ""
    say(f"least squares on {len(samples.images)} images{seeing}")
    routes = routes_of(anchors, plan)
    names = [route.name for route in routes]
    untuned: dict[str, float] = {}
    tuned: list[Tuned] = []
    if settings.finetune != "none":
        if ranks.first:
            phases.begin("score")
            untuned = dict(zip(names, score_routes(routes, anchors, layers, sampled(scoring).batches()), strict=True))
        phases.begin("tune")
        labelled = settings.tuning.labelled and fitting.has_labels
        taught_by = teacher or (strongest(anchors, sampled(fitting.first(TEACHER_IMAGES))) if labelled else list(anchors)[-1])
        say(f"fine-tuning on {len(fitting)} images, taught by {taught_by if isinstance(taught_by, str) else taught_by.name}")
        if emulated(settings.tuning.amp, device):
            say("--bf16: this processor has no instructions for bfloat16; float32 is likely faster")
        identity = run_identity(settings, anchors, taught_by, routes, sampled(fitting), ranks.size)
        ranks.check_same(identity)
        run.begin(identity)
        tuned = finetune(
            anchors,
            layers,
            routes,
            family_macs(plan, anchors, settings.stitch_kernel),
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
    move([*(block for anchor in anchors.values() for block in anchor.blocks), *layers.values()], CPU)

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
        in_int8 = quantise_routes(kept, sources, anchors, folded, accuracy, samples, sampled(scoring), say)
    family = written(kept, sources, accuracy, in_int8)
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
        segments=tuple(family.sources.values()),
        routes=family.routes,
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
    latencies: dict[str, float] = {}
    if settings.latency or in_int8 is not None:
        phases.begin("latency")
        latencies = _latencies(source, settings.out, say)
    phases.begin("report")
    report = Report(
        route_results(kept, family, accuracy, untuned, latencies),
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
    probe = next(samples.batches(3))[0].to(CPU)

    def check(bundle: Bundle) -> None:
        check_routes(bundle, kept, anchors, layers, probe)
        check_chains(bundle, family.twins, probe)

    bundle = write_bundle(replace(source, reports=render_report(report)), settings.out, check, sign)
    ranks.wait()
    return bundle


def _latencies(source: BundleSource, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Of each route, on a bundle without a report that lies beside the one to come for so long."""
    with scratch_of(out.resolve()) as scratch:
        found = measure_latencies(write_bundle(source, scratch / source.name), [route.name for route in source.routes])
    say(f"measured {len(found)} routes: {min(found.values()):.3g} to {max(found.values()):.3g} ms")
    return found
