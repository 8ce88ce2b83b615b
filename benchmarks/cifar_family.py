"""CIFAR-10 ResNets as anchors: what every stitched route scores by least squares alone, and the best after each front block.

Needs the checkpoints and images under $RESTNET_SHARED (README there). Routes are fitted and scored in torch; no bundle is written.

  python benchmarks/cifar_family.py --rule both-ways
  python benchmarks/cifar_family.py --rule all --images 466      (every pair of cuts, scored on half of the images)
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import REPOSITORY, Floor, Result, arguments, publish

from restnet_export.anchors import AnchorSpec, load_anchor
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.data import Samples, load_images
from restnet_export.devices import chosen_device, move
from restnet_export.fitting import fit_layers
from restnet_export.inputs import GivenPreprocessing, agreed_input
from restnet_export.planning import family_macs, plan_routes
from restnet_export.plans import RoutePlan
from restnet_export.promise import measure_promise
from restnet_export.routes import StitchedRoute, routes_of
from restnet_export.rules import RULES
from restnet_export.scoring import score_routes
from restnet_export.settings import ExportSettings
from restnet_export.similarity import measure_similarity

CHECKPOINTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 44: "resnet44-014dd654.th", 56: "resnet56-4bfd9763.th"}
ADAPTED = {20: "resnet20_jpeg.pt", 56: "resnet56_jpeg.pt"}
"""Tuned on the JPEG images."""
FLOOR = 0.88


def shared() -> Path:
    """Where checkpoints and images are. Ends the program where they are not."""
    found = Path(os.environ.get("RESTNET_SHARED", REPOSITORY.parent / "shared"))
    if not (found / "data" / "checkpoints").is_dir():
        raise SystemExit(f"no checkpoints under {found / 'data'}: set RESTNET_SHARED")
    return found


def cifar_settings(out: Path, depths: Sequence[int] = (20, 56), images: str = "lossless", **changes: Any) -> ExportSettings:
    """What `restnet-export` needs for ResNets of these depths. images: lossless, or jpeg with the anchors that were tuned on it."""
    root = shared()
    files = CHECKPOINTS if images == "lossless" else ADAPTED
    factory = f"python:{root / 'anchors' / 'cifar_resnet.py'}:resnet"
    settings = ExportSettings(
        anchors=tuple(f"{factory}{depth}@{root / 'data' / 'checkpoints' / files[depth]}" for depth in depths),
        data=f"npz:{root / 'data' / 'cifar10' / f'{images}_train.npz'}",
        val=f"npz:{root / 'data' / 'cifar10' / f'{images}_val.npz'}",
        out=out,
        finetune="none",
        preprocessing=GivenPreprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        input_shape=(3, 32, 32),
    )
    return replace(settings, **changes)


@dataclass(frozen=True)
class Family:
    """Cut anchors, small to large, with images to fit and to score on. bf16: score in bfloat16, which takes less than half the time.

    match_spread: as the exporter does by default; without, plain least squares.
    """

    anchors: Mapping[str, CutAnchor]
    fitting: Samples
    scoring: Samples
    bf16: bool = False
    match_spread: bool = True

    @classmethod
    def load(cls, settings: ExportSettings, scored_images: int | None = None, bf16: bool = False) -> "Family":
        loaded = [load_anchor(AnchorSpec.parse(text), settings.input_shape) for text in settings.anchors]
        shape, preprocessing = agreed_input(loaded, settings.preprocessing)
        fitting = load_images(settings.data).shuffled(settings.seed)
        scoring = load_images(settings.val or settings.data)
        device = chosen_device(settings.device)
        anchors = {anchor.name: cut_anchor(anchor) for anchor in loaded}
        move([block for anchor in anchors.values() for block in anchor.blocks], device)
        return cls(
            anchors,
            Samples(fitting.subset(np.arange(settings.samples)), preprocessing, shape, device=device),
            Samples(scoring.subset(np.arange(min(scored_images or len(scoring), len(scoring)))), preprocessing, shape, device=device),
            bf16,
            settings.match_spread,
        )

    def score(self, plan: RoutePlan) -> list["Scored"]:
        """The anchors, then every route of the plan, fitted and scored."""
        routes = routes_of(self.anchors, plan)
        layers = fit_layers(plan.layers, self.anchors, self.fitting, match_spread=self.match_spread)
        with torch.autocast(self.scoring.device.type, torch.bfloat16, enabled=self.bf16):
            accuracies = score_routes(routes, self.anchors, layers, self.scoring.batches())
        macs = family_macs(plan, self.anchors)
        return [Scored(*item) for item in zip(routes, macs, accuracies, strict=True)]


@dataclass(frozen=True)
class Scored:
    route: StitchedRoute
    macs: int
    accuracy: float


def best_after_front(scored: Sequence[Scored]) -> dict[str, dict[int, Scored]]:
    """The best route that crosses once, by front anchor and its last block."""
    best: dict[str, dict[int, Scored]] = {}
    for item in scored:
        if len(item.route.layers) == 1:
            front = item.route.parts[0]
            held = best.setdefault(front.anchor, {})
            if front.last not in held or item.accuracy > held[front.last].accuracy:
                held[front.last] = item
    return best


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--rule", choices=tuple(RULES), default="both-ways")
    parser.add_argument("--select", choices=("cka", "kl", "windows"), default="cka")
    parser.add_argument("--max-routes", type=int)
    parser.add_argument("--depths", type=int, nargs="+", default=(20, 56))
    parser.add_argument("--set", choices=("lossless", "jpeg"), default="lossless")
    parser.add_argument("--samples", type=int, default=400, help="images behind least squares (default: %(default)s)")
    parser.add_argument("--images", type=int, help="to score on (default: all)")
    parser.add_argument("--bf16", action="store_true", help="score in bfloat16")
    parser.add_argument("--match-spread", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = cifar_settings(Path("unused"), args.depths, args.set, rule=args.rule, samples=args.samples, seed=args.seed)
    settings = replace(settings, device=args.device, match_spread=args.match_spread, stages=(0, 1, 2) if args.rule == "sn-net" else None)
    family = Family.load(settings, args.images, args.bf16)
    rule = settings.rule_with_options()
    anchors = list(family.anchors.values())
    promise = measure_promise(args.select, anchors, measure_similarity(anchors, family.fitting, rule.nearest), family.fitting)
    scored = family.score(plan_routes(rule, family.anchors, promise, args.max_routes))
    result = Result(
        f"{len(scored)} routes of rule {args.rule}, least squares on {args.samples} images, scored on {len(family.scoring)}",
        ("best route after", "blocks", "median", "worst", "best"),
    )
    for front, best in best_after_front(scored).items():
        values = [item.accuracy for item in best.values()]
        median = statistics.median(values)
        result.cells.append((front, str(len(values)), f"{median:.1%}", f"{min(values):.1%}", f"{max(values):.1%}"))
        result.floors.append(
            Floor(f"best route after each block of {front}, median", "top-1", f">= {FLOOR}", f"{median:.3f}", median >= FLOOR)
        )
    result.rows = [{"route": item.route.name, "macs": item.macs, "accuracy": item.accuracy} for item in scored]
    result.notes.append(f"{time.process_time():.0f} s of processor time")
    publish(result, args, started)


if __name__ == "__main__":
    main()
