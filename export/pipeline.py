"""From anchors to a bundle: load, cut, compare, stitch, fit, tune, score, write."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from restnet_runtime import __version__
from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import ExportError, ParityError, SpecError
from restnet_runtime.manifest import Anchor as AnchorEntry
from restnet_runtime.manifest import Name, Provenance
from restnet_runtime.routes import Part, route_name
from restnet_runtime.sessions import SessionSettings, infer, plain_session

from .activations import cut_activations
from .anchors import Anchor, AnchorSpec, load_anchor
from .cuts import CutAnchor, cut_anchor
from .data import Images, Samples, load_split
from .finetune import Tuned, finetune_stitch
from .inputs import GivenPreprocessing, agreed_input
from .report import render_report
from .rules import AnchorShape, LayerPlan, restnet, sn_net, split_shared
from .scoring import StitchedRoute, block_name, count_macs, count_params, most_promising, score_routes
from .segments import export_segment, one_registry
from .similarity import MIN_BATCH, MinibatchCKA
from .stitching import StitchFit, StitchingLayer
from .writer import BundleSource, RouteSource, SegmentSource, check_target, write_bundle

Similarity = Mapping[tuple[str, str], NDArray[np.float64]]
ROUTE_TOLERANCE = 1e-3
"""Largest difference between a whole route in ONNX Runtime and in torch, relative to the largest logit."""

TEACHER_IMAGES = 512
"""So many images tell which anchor teaches."""


@dataclass(frozen=True)
class ExportSettings:
    """What `restnet-export` was asked for.

    anchors:        specs, small to large
    data, val:      data specs: fit and tune on the first, score on the second (default: a held-out part of the first)
    samples:        images behind similarity and least squares, at least 4
    preprocessing:  in place of what the anchors bring
    input_shape:    (channels, height, width), for anchors that do not know theirs or can be built for another
    classes:        class names in the anchors' order; default: those of the data, or the numbers
    stages, kernel, stride: of the rule sn-net
    epochs, lr:     of fine-tuning
    """

    anchors: tuple[str, ...]
    data: str
    out: Path
    val: str | None = None
    rule: Literal["restnet", "sn-net"] = "restnet"
    finetune: Literal["none", "stitch"] = "stitch"
    samples: int = 100
    max_routes: int | None = None
    seed: int = 0
    preprocessing: GivenPreprocessing = field(default_factory=GivenPreprocessing)
    input_shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    stages: tuple[int, ...] | None = None
    kernel: int = 2
    stride: int = 1
    epochs: int = 5
    lr: float = 3e-4
    progress: bool = True


def export_bundle(settings: ExportSettings, say: Callable[[str], None]) -> Bundle:
    """Make the bundle that `settings` describe and write it to `settings.out`. Raises errors of the tree `RestnetError`.

    say: told what is going on, a line at a time.
    """
    _check_out(settings.out)
    torch.manual_seed(settings.seed)
    fitting, scoring = load_split(settings.data, settings.val, settings.seed)
    if settings.classes is not None:
        fitting, scoring = fitting.labelled(settings.classes), scoring.labelled(settings.classes)
    _check_samples(settings.samples, fitting)
    loaded = [load_anchor(AnchorSpec.parse(text), settings.input_shape) for text in settings.anchors]
    _check_names(loaded)
    input_shape, preprocessing = agreed_input(loaded, settings.preprocessing)
    classes = _class_names(loaded, input_shape, fitting, scoring, settings.classes)
    anchors = {anchor.name: cut_anchor(anchor) for anchor in loaded}
    for name, cut in anchors.items():
        say(f"anchor {name}: {len(cut.blocks)} blocks in stages of {', '.join(map(str, cut.stages))}")
    _check_order(anchors)

    samples = Samples(_first(fitting.shuffled(settings.seed), settings.samples), preprocessing, input_shape)
    similarity = measure_similarity(list(anchors.values()), samples)
    plans = _plan(settings, anchors, similarity)
    say(f"rule {settings.rule}: {sum(len(plan.pairs) for plan in plans)} stitched routes through {len(plans)} stitching layers")
    layers = fit_layers(plans, anchors, samples)
    say(f"least squares on {len(samples.images)} images")
    routes = _routes(anchors, plans)
    if settings.finetune == "stitch":
        few = Samples(_first(fitting.shuffled(settings.seed), TEACHER_IMAGES), preprocessing, input_shape)
        teacher = strongest(anchors, few)
        tuned = _tune(settings, routes, anchors, layers, teacher, Samples(fitting, preprocessing, input_shape))
        improved = f"{sum(item.kept for item in tuned)} of {len(tuned)} layers improved on held-out loss"
        say(f"fine-tuning on {len(fitting)} images, taught by {teacher}: {improved}")
    accuracies = score_routes(routes, anchors, layers, Samples(scoring, preprocessing, input_shape).batches())
    say(f"scored {len(routes)} routes on {len(scoring)} images")

    segments = _segments(routes, anchors, layers, accuracies, settings.max_routes, say)
    kept, sources = segments
    accuracy = dict(zip((route.name for route in routes), accuracies, strict=True))
    report = render_report(
        [(route.name, _macs(route, sources), accuracy[route.name], route.layer is None) for route in kept],
        similarity,
        {name: [_cut_label(block, cut.module) for block, cut in enumerate(anchor.cuts)] for name, anchor in anchors.items()},
    )
    probe = next(samples.batches(3))[0]
    return write_bundle(
        BundleSource(
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
                versions={package: version(package) for package in ("torch", "onnx", "onnxruntime", "numpy")},
            ),
            reports=report,
        ),
        settings.out,
        check=lambda bundle: check_routes(bundle, kept, anchors, layers, probe),
    )


def measure_similarity(anchors: Sequence[CutAnchor], samples: Samples) -> dict[tuple[str, str], NDArray[np.float64]]:
    """CKA [cut of the larger, cut of the smaller] for each (larger, smaller) pair of neighbours. Anchors are given small to large."""
    measures = {(large.name, small.name): MinibatchCKA() for small, large in pairwise(anchors)}
    for images, _ in samples.batches():
        known = {anchor.name: cut_activations(anchor, images) for anchor in anchors}
        for (large, small), measure in measures.items():
            measure.update(known[large], known[small])
    return {pair: measure.result() for pair, measure in measures.items()}


def fit_layers(plans: Sequence[LayerPlan], anchors: Mapping[str, CutAnchor], samples: Samples) -> dict[str, StitchingLayer]:
    """Every planned stitching layer, fitted by least squares; pairs that share a layer are solved jointly, in one pass over the images."""
    layers = {
        plan.name: StitchingLayer(anchors[plan.front].layouts[plan.pairs[0][0]], anchors[plan.end].layouts[plan.pairs[0][1] - 1])
        for plan in plans
    }
    fits = {name: StitchFit(layer) for name, layer in layers.items()}
    for images, _ in samples.batches():
        known = {name: cut_activations(anchor, images) for name, anchor in anchors.items()}
        for plan in plans:
            for front_block, end_block in plan.pairs:
                fits[plan.name].add(known[plan.front][front_block], known[plan.end][end_block - 1])
    for fit in fits.values():
        fit.finish()
    return layers


def strongest(anchors: Mapping[str, CutAnchor], samples: Samples) -> str:
    """The anchor that is right most often on `samples`; of equals the larger. Anchors are given small to large."""
    alone = _routes(anchors, [])
    scores = score_routes(alone, anchors, {}, samples.batches())
    return max(zip(scores, range(len(alone)), anchors, strict=True))[2]


def check_routes(
    bundle: Bundle,
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    images: torch.Tensor,
) -> None:
    """Run every route of the bundle through ONNX Runtime beside torch on `images` (B, C, H, W). Raises `ParityError`."""
    for route in routes:
        with torch.no_grad():
            expected = route.module(anchors, layers)(images).numpy()
        found = infer(plain_session(bundle, bundle.route(route.name), SessionSettings()), images.numpy())
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
        if not difference <= ROUTE_TOLERANCE:
            raise ParityError(
                f"route {route.name!r} differs from torch by {difference:.1e} of its largest logit, allowed: {ROUTE_TOLERANCE}"
            )


def _check_out(out: Path) -> None:
    """Better to learn now than after an hour of tuning that there can be no bundle. Raises `ExportError` and changes nothing."""
    name = out.resolve().name  # a bundle is called as its directory
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ExportError(
            f"a bundle cannot be called {name!r}: a name has letters, digits and . _ ~ + -, starts with a letter or digit, at most 100"
        ) from error
    check_target(out)
    try:
        tempfile.TemporaryDirectory(dir=next(parent for parent in out.resolve().parents if parent.exists())).cleanup()
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error}") from error


def _check_samples(samples: int, fitting: Images) -> None:
    if samples < MIN_BATCH:
        raise SpecError(f"--samples {samples} must be at least {MIN_BATCH}: similarity cannot be measured on fewer images")
    if len(fitting) < MIN_BATCH:
        raise SpecError(f"data {fitting.name!r} has {len(fitting)} images to fit on; similarity needs at least {MIN_BATCH}")


def _first(images: Images, count: int) -> Images:
    return images.subset(np.arange(min(count, len(images))))


def _check_names(loaded: Sequence[Anchor]) -> None:
    names = [anchor.name for anchor in loaded]
    if len(set(names)) != len(names) or len(names) < 2:
        raise SpecError(f"anchors {names}: at least two are needed, with different names (NAME=SPEC renames one)")


def _class_names(
    loaded: Sequence[Anchor], input_shape: tuple[int, int, int], fitting: Images, scoring: Images, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    counts = {}
    for anchor in loaded:
        with torch.no_grad():
            logits = anchor.module(torch.zeros(1, *input_shape))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise SpecError(f"anchor {anchor.name!r} does not answer (batch, classes) but {getattr(logits, 'shape', type(logits))}")
        counts[anchor.name] = int(logits.shape[1])
    if len(set(counts.values())) != 1:
        raise SpecError(f"anchors tell different numbers of classes apart: {counts}")
    count = next(iter(counts.values()))
    if fitting.classes and scoring.classes and fitting.classes != scoring.classes:
        raise SpecError(
            f"labels mean different classes in {fitting.name!r} ({_some(fitting.classes)}) and {scoring.name!r} ({_some(scoring.classes)})"
        )
    names = given or fitting.classes or scoring.classes or tuple(str(index) for index in range(count))
    if len(names) != count:
        raise SpecError(f"{len(names)} class names for {count} classes")
    highest = max(int(fitting.labels.max()), int(scoring.labels.max()))
    if highest >= count:
        raise SpecError(f"the data has the label {highest}, the anchors tell {count} classes apart (0..{count - 1})")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *["..."] * (len(names) > 5)])


def _check_order(anchors: Mapping[str, CutAnchor]) -> None:
    macs = {
        name: sum(
            count_macs(block, shape)
            for block, shape in zip(anchor.blocks, (anchor.input_shape, *(cut.shape for cut in anchor.cuts)), strict=True)
        )
        for name, anchor in anchors.items()
    }
    ordered = sorted(macs, key=lambda name: macs[name])
    if ordered != list(macs):
        raise ExportError(f"anchors are given small to large, by MACs that is: {' '.join(ordered)}")


def _plan(settings: ExportSettings, anchors: Mapping[str, CutAnchor], similarity: Similarity) -> list[LayerPlan]:
    shapes = [AnchorShape(anchor.name, anchor.stages) for anchor in anchors.values()]
    plans = sn_net(shapes, settings.kernel, settings.stride, settings.stages) if settings.rule == "sn-net" else restnet(shapes, similarity)
    return split_shared(plans, {name: anchor.layouts for name, anchor in anchors.items()})


def _routes(anchors: Mapping[str, CutAnchor], plans: Sequence[LayerPlan]) -> list[StitchedRoute]:
    """The anchors, then every pair of every plan."""
    blocks = {name: len(anchor.blocks) for name, anchor in anchors.items()}
    parts: list[tuple[tuple[Part, ...], str | None]] = [((Part(name, 0, count - 1),), None) for name, count in blocks.items()]
    for plan in plans:
        parts += [((Part(plan.front, 0, j), Part(plan.end, k, blocks[plan.end] - 1)), plan.name) for j, k in plan.pairs]
    return [StitchedRoute(route_name(part, blocks), part, layer) for part, layer in parts]


def _tune(
    settings: ExportSettings,
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    teacher: str,
    samples: Samples,
) -> list[Tuned]:
    modules = [route.module(anchors, layers) for route in routes if route.layer is not None]
    whole = torch.nn.Sequential(*anchors[teacher].blocks)
    return finetune_stitch(modules, whole, samples, epochs=settings.epochs, lr=settings.lr, seed=settings.seed, progress=settings.progress)


def _segments(
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    accuracies: Sequence[float],
    limit: int | None,
    say: Callable[[str], None],
) -> tuple[list[StitchedRoute], dict[str, SegmentSource]]:
    """The routes that are kept, and every segment that they or the anchors use, exported."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    modules: dict[str, torch.nn.Module] = {}
    for name, anchor in anchors.items():
        classes = (_classes(anchor),)
        ends = (anchor.input_shape, *(cut.shape for cut in anchor.cuts), classes)
        for block, module in enumerate(anchor.blocks):
            shapes[block_name(name, block)], modules[block_name(name, block)] = (ends[block], ends[block + 1]), module
    for name, layer in layers.items():
        shapes[name], modules[name] = (layer.source.shape, layer.target.shape), layer
    macs = {name: count_macs(module, shapes[name][0]) for name, module in modules.items()}
    kept = most_promising(routes, [sum(macs[name] for name in route.segments()) for route in routes], accuracies, limit)
    used = dict.fromkeys(name for route in kept for name in route.segments())
    where = {
        block_name(name, block): (name, "head" if block == len(anchor.cuts) else anchor.cuts[block].module)
        for name, anchor in anchors.items()
        for block in range(len(anchor.blocks))
    }
    say(f"exporting {len(used)} segments")
    with one_registry():
        models = {name: export_segment(modules[name], shapes[name][0], name) for name in used}
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
            model=model,
        )
        for name, model in models.items()
    }


def _classes(anchor: CutAnchor) -> int:
    with torch.no_grad():
        return int(torch.nn.Sequential(*anchor.blocks)(torch.zeros(1, *anchor.input_shape)).shape[1])


def _macs(route: StitchedRoute, sources: Mapping[str, SegmentSource]) -> int:
    return sum(sources[name].macs for name in route.segments())


def _cut_label(block: int, module: str) -> str:
    return f"{block} {module}"
