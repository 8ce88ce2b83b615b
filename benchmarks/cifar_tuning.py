"""CIFAR-10 ResNets as anchors: what each way of fine-tuning makes of every route, and whether anything ends below its start.

Runs the exporter once without tuning and once per mode, and compares the bundles route by route. Needs the checkpoints and images under
$RESTNET_SHARED (README there).

  python benchmarks/cifar_tuning.py --modes stitch full --json build/benchmarks/cifar/down.json
  python benchmarks/cifar_tuning.py --modes stitch --rule sn-net --stages 0 1 2
  python benchmarks/cifar_tuning.py --modes stitch --set jpeg
  python benchmarks/cifar_tuning.py --modes stitch --few 500      (so many images, their labels not used)
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from cifar_family import cifar_settings
from common import ROOT, Floor, Result, arguments, publish

from restnet_export.devices import CPU, chosen_device, device_name
from restnet_export.objectives import Objective
from restnet_export.options import loss_weight
from restnet_export.phases import Phases
from restnet_export.pipeline import export_bundle
from restnet_export.rules import RULES
from restnet_export.settings import ExportSettings, TuneSettings
from restnet_export.teachers import ENSEMBLE
from restnet_runtime.bundle import Bundle
from restnet_runtime.routes import pareto_front
from restnet_runtime.threads import usable_cores

TO_LINE, POINTS_OF_FEW, ANCHOR_LOSS, ON_FRONT = 1.5, 2.0, 0.5, 5
"""Floors: points under the straight line between the anchors, points that few images bring, points an anchor may lose, routes between."""
MINUTES = {"stitch": 15, "lora": 60, "full": 60}


@dataclass(frozen=True)
class Point:
    """A route before and after tuning. line: what the straight line between the anchors gives for its cost; accuracies are 0..1."""

    name: str
    macs: int
    start: float
    accuracy: float
    line: float
    front: tuple[str, int] | None

    @property
    def below_line(self) -> float:
        """Points (negative: above)."""
        return 100 * (self.line - self.accuracy)


@dataclass(frozen=True)
class Tuning:
    """What a mode made of the family. wall_s, cpu_s: of the whole export, its bundle included; gpu: the model of the one used.

    phases: where the time went
    """

    mode: str
    points: list[Point]
    wall_s: float
    cpu_s: float
    gpu: str | None = None
    phases: str = ""

    @property
    def minutes(self) -> float:
        """By the clock where there is a GPU, else of one processor, since the clock counts what others do on the machine."""
        return (self.wall_s if self.gpu else self.cpu_s) / 60


def settings_for(args: argparse.Namespace, out: Path) -> ExportSettings:
    given = {name: getattr(args, name) for name in ("rule", "ends", "stitch_kernel", "samples", "max_routes", "seed")}
    settings = cifar_settings(out, args.depths, args.set, **given, candidates=1)  # none is left out by what tuning made of it
    shift = args.shift if args.shift is not None else 2 if args.few else 0
    tuning = TuneSettings(
        steps=args.steps,
        batch_size=args.batch,
        stitch_steps=args.stitch_steps,
        flip=True,
        shift=shift,
        blend=args.blend,
        labelled=not args.few,
        objective=Objective(**dict(loss_weight(text) for text in args.loss)),
        amp="bf16" if args.bf16 else "auto",
    )
    few = {"data": f"npz:{few_images(Path(settings.data.removeprefix('npz:')), args.few, args.seed)}"} if args.few else {}
    teacher = args.teacher
    if teacher and teacher != ENSEMBLE:
        teacher = cifar_settings(out, [int(teacher)], args.set).anchors[0]
    return replace(settings, tuning=tuning, teacher=teacher, device=args.device, workers=usable_cores(), **few)


def few_images(data: Path, count: int, seed: int) -> Path:
    """A file with `count` of the images, whose labels tell nothing."""
    path = ROOT / "cifar" / f"{data.stem}-{count}-{seed}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        chosen = np.random.default_rng(seed).permutation(len(arrays["x"]))[:count]
        np.savez(path, x=arrays["x"][chosen], y=np.arange(count) % 10)
    return path


def exported(settings: ExportSettings) -> tuple[Bundle, float, float, str]:
    """The bundle, the seconds of wall and of processor that it took, and those of each phase in words."""
    wall, cpu, phases = time.monotonic(), time.process_time(), Phases()
    bundle = export_bundle(settings, lambda line: print(line, flush=True), phases=phases)
    return bundle, time.monotonic() - wall, time.process_time() - cpu, str(phases)


def compared(before: Bundle, after: Bundle) -> list[Point]:
    """Every route of `after` beside `before`; the line is drawn between the anchors as they were."""
    starts = {route.name: route.accuracy or 0.0 for route in before.routes}
    names = [anchor.name for anchor in before.manifest.anchors]
    anchors = sorted((before.route(name).macs, starts[name]) for name in names)
    costs, accuracies = zip(*anchors, strict=True)
    return [
        Point(
            route.name,
            route.macs,
            starts[route.name],
            route.accuracy or 0.0,
            float(np.interp(route.macs, costs, accuracies)),
            _front_of(after, route.segments, names),
        )
        for route in after.routes
    ]


def _front_of(bundle: Bundle, segments: Sequence[str], names: Sequence[str]) -> tuple[str, int] | None:
    """Front anchor and its last block, of a route that crosses once."""
    kinds = {segment.name: segment for segment in bundle.manifest.segments}
    crossings = [index for index, name in enumerate(segments) if kinds[name].kind == "stitch"]
    if len(crossings) != 1:
        return None
    anchor, _, block = segments[crossings[0] - 1].rpartition(".")
    return (anchor, int(block)) if anchor in names else None


def best_per_front(points: Sequence[Point]) -> dict[str, list[Point]]:
    """By front anchor, after each of its blocks the route nearest to the line or highest above."""
    best: dict[tuple[str, int], Point] = {}
    for point in points:
        if point.front and (point.front not in best or point.below_line < best[point.front].below_line):
            best[point.front] = point
    grouped: dict[str, list[Point]] = {}
    for (anchor, _), point in sorted(best.items()):
        grouped.setdefault(anchor, []).append(point)
    return grouped


def floors(tuning: Tuning, images: int, untuned: Mapping[str, Mapping[str, float]]) -> list[Floor]:
    """untuned: for a family tuned on few images, what every route scores untuned, by how its layers were fitted."""
    mode, points = tuning.mode, tuning.points
    found = []
    error = [100 * (max(p.start * (1 - p.start), 1 / images) / images) ** 0.5 for p in points]
    falls = [(100 * (p.start - p.accuracy), e, p.name) for p, e in zip(points, error, strict=True)]
    worst = max(falls, key=lambda fall: fall[0] - fall[1])
    found.append(
        Floor(
            f"{mode}: no route and no anchor below its start by more than one standard error",
            "its start",
            "none",
            f"worst {worst[2]}: {-worst[0]:+.1f} points, standard error {worst[1]:.1f}",
            worst[0] <= worst[1],
        )
    )
    anchors = [p for p in points if ">" not in p.name]
    if untuned:
        worse = [fall for fall, _, _ in falls if fall > 0]
        told = f"{len(worse)} of {len(falls)}, worst {-max(worse):+.1f} points" if worse else "none"
        found.append(Floor(f"{mode}: routes worse than untuned, on the images scored", "no tuning", "none", told, not worse))
        gains = [100 * (p.accuracy - p.start) for p in points if p not in anchors]
        gain = statistics.median(gains)
        found.append(Floor(f"{mode}: gain, median", "no tuning", f">= {POINTS_OF_FEW}", f"{gain:.1f} points", gain >= POINTS_OF_FEW))
        for how, scores in untuned.items():
            gain = statistics.median(100 * (p.accuracy - scores[p.name]) for p in points if p not in anchors)
            what = f"{mode}: gain, median, over untuned layers of another kind"
            found.append(Floor(what, how, f">= {POINTS_OF_FEW}", f"{gain:.1f} points", gain >= POINTS_OF_FEW))
        return found
    if mode in ("full", "lora"):
        front = pareto_front((p.macs, p.accuracy) for p in points)
        low, high = min(p.macs for p in anchors), max(p.macs for p in anchors)
        between = sum(on and ">" in p.name and low < p.macs < high for p, on in zip(points, front, strict=True))
        lost = max(100 * (p.start - p.accuracy) for p in anchors)
        found.append(
            Floor(f"{mode}: stitched routes on the front, strictly between", "anchors", f">= {ON_FRONT}", str(between), between >= ON_FRONT)
        )
        found.append(Floor(f"{mode}: anchors lose at most", "their start", f"<= {ANCHOR_LOSS} points", f"{lost:.1f}", lost <= ANCHOR_LOSS))
    if mode != "full":
        for anchor, best in best_per_front(points).items():
            median = statistics.median(p.below_line for p in best)
            what = f"{mode}: best route after each of {len(best)} blocks of {anchor}, median below the straight line"
            found.append(Floor(what, "the line", f"<= {TO_LINE} points", f"{median:.2f}", median <= TO_LINE))
    minutes, limit = tuning.minutes, MINUTES[mode]
    where, how = (
        (f"one {tuning.gpu}", "wall")
        if tuning.gpu
        else ("two cores", f"of one processor; {tuning.wall_s / 60:.1f} by the clock, beside other work")
    )
    found.append(Floor(f"{mode}: time on {where}", "minutes", f"<= {limit}", f"{minutes:.1f} ({how})", minutes <= limit))
    return found


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--modes", nargs="+", choices=("stitch", "lora", "full"), default=("stitch",))
    parser.add_argument("--depths", type=int, nargs="+", default=(20, 56))
    parser.add_argument("--set", choices=("lossless", "jpeg"), default="lossless")
    parser.add_argument("--rule", choices=sorted(RULES), default="restnet", help="restnet: large to small, sn-net: small to large")
    parser.add_argument("--stages", type=int, nargs="+", help="of sn-net")
    parser.add_argument("--ends", type=int, help="of restnet: so many late parts for each early part")
    parser.add_argument("--max-routes", type=int, help="keep the most promising")
    parser.add_argument("--shift", type=int, help="move images by up to so many pixels (default: 0; with --few 2)")
    parser.add_argument(
        "--teacher", metavar="DEPTH", help="a network of another depth, or all anchors as an 'ensemble' (default: one of the anchors)"
    )
    parser.add_argument("--loss", nargs="+", default=(), metavar="NAME=WEIGHT", help="as restnet-export takes it")
    parser.add_argument("--blend", action="store_true", help="tune on blends of two images")
    parser.add_argument("--stitch-kernel", type=int, default=1, help="side of what stitching layers see (default: %(default)s)")
    parser.add_argument("--few", type=int, metavar="N", help="tune on so many images, without their labels")
    parser.add_argument("--samples", type=int, default=400, help="images behind least squares (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=TuneSettings.steps)
    parser.add_argument("--batch", type=int, default=TuneSettings.batch_size, help="images a step (default: %(default)s)")
    parser.add_argument("--stitch-steps", type=int, default=TuneSettings.stitch_steps, help="full: of stitch before")
    parser.add_argument("--bf16", action="store_true", help="on the processor too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    narrowed = [f"{name}{value}" for name in ("few", "ends", "max_routes") if (value := getattr(args, name))]
    narrowed += [f"kernel{args.stitch_kernel}"] if args.stitch_kernel > 1 else []
    family = ROOT / "cifar" / "-".join(map(str, (*args.depths, args.set, args.rule, *narrowed)))
    base = settings_for(args, family / "none")
    if args.few:
        base = replace(base, samples=min(args.samples, args.few))
    base = replace(base, stages=None if args.stages is None else tuple(args.stages))
    device = chosen_device(args.device)
    gpu = None if device == CPU else device_name(device)
    before, *_ = exported(replace(base, teacher=None))
    untuned = {}
    if args.few:
        kinds = {"plain least squares, 1x1, as in SN-Net": False}
        if args.stitch_kernel > 1:
            kinds["least squares, 1x1, spread matched"] = True
        for how, match_spread in kinds.items():
            fitted, *_ = exported(replace(base, teacher=None, match_spread=match_spread, stitch_kernel=1))
            untuned[how] = {route.name: route.accuracy or 0.0 for route in fitted.routes}
    tunings = []
    for mode in args.modes:
        after, wall, cpu, phases = exported(replace(base, out=family / mode, finetune=mode))
        tunings.append(Tuning(mode, compared(before, after), wall, cpu, gpu, phases))
    images = before.manifest.provenance.scored_on
    result = Result(
        f"{len(before.routes)} routes of ResNets {' '.join(map(str, args.depths))}, "
        f"{args.set}, rule {args.rule}{f', {args.ends} ends' if args.ends else ''}"
        f"{f', layers see {args.stitch_kernel}x{args.stitch_kernel}' if args.stitch_kernel > 1 else ''}"
        f"{f', tuned on {args.few} images without labels' if args.few else ''}, scored on {images} images",
        ("route", "MMACs", "line", "start", *(tuning.mode for tuning in tunings)),
    )
    for row in zip(*(tuning.points for tuning in tunings), strict=True):
        shares = (row[0].line, row[0].start, *(point.accuracy for point in row))
        result.cells.append((row[0].name, f"{row[0].macs / 1e6:.1f}", *(f"{100 * share:.1f}" for share in shares)))
    for tuning in tunings:
        result.rows += [{"mode": tuning.mode, **asdict(point)} for point in tuning.points]
        result.floors += floors(tuning, images, untuned)
        with_gpu = f" and one {gpu}" if gpu else ""
        result.notes.append(
            f"{tuning.mode}: {tuning.wall_s / 60:.1f} minutes, {tuning.cpu_s / 60:.1f} of one processor{with_gpu}; it {tuning.phases}"
        )
    publish(result, args, started)


if __name__ == "__main__":
    main()
