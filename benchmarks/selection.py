"""Which stitches to make, told before any is: by CKA, by KL between probes, by equal depth, by SN-Net's windows, or by chance.

Two CIFAR-10 ResNets (`cifar_family.py` says where they come from), nothing tuned. Each way chooses as many routes of all pairs of cuts, in
both directions; SN-Net's windows choose among their own. They are fitted by least squares and scored on held-out images.

  python benchmarks/selection.py --images 466 --bf16 --page docs/selection.md
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cifar_family import Family, Scored, best_after_front, cifar_settings
from common import Result, arguments, command, publish

from restnet_export.planning import block_macs, route_macs, route_promises
from restnet_export.plans import AnchorShape, Crossings, RoutePlan, split_shared
from restnet_export.promise import measure_promise
from restnet_export.rules import Promise, make_rule
from restnet_export.selection import spread
from restnet_export.similarity import measure_similarity
from restnet_runtime.routes import pareto_front

WAYS = ("cka", "kl", "windows", "sn-net", "random")
COLOURS = {"cka": "tab:blue", "kl": "tab:green", "windows": "tab:purple", "sn-net": "tab:orange", "random": "0.6"}
Way = tuple[str, int]
"""What chose, and how many stitched routes."""
NEAR = 0.04
"""A route that loses no more against the straight line between the anchors is counted as near it."""


class Choice:
    """The stitched routes of a plan that the exporter would make."""

    def __init__(self, family: Family, plan: RoutePlan) -> None:
        self.plan = plan
        self._shapes = {name: AnchorShape(name, anchor.stages) for name, anchor in family.anchors.items()}
        self._anchors = [sum(block_macs(anchor)) for anchor in family.anchors.values()]
        self._macs = route_macs(plan, family.anchors)

    def best(self, promise: Promise, count: int) -> list[Crossings]:
        kept = spread(self._macs, route_promises(self.plan, self._shapes, promise), self._anchors, min(count, len(self._macs)))
        return [self.plan.routes[index] for index in kept]


def score_ways(family: Family, counts: Sequence[int], seed: int) -> dict[Way, list[Scored]]:
    """By way and number of stitched routes: the anchors, then those routes."""
    anchors = list(family.anchors.values())
    shapes = [AnchorShape(anchor.name, anchor.stages) for anchor in anchors]
    similarity = measure_similarity(anchors, family.fitting)
    promises: dict[str, Any] = {way: measure_promise(way, anchors, similarity, family.fitting) for way in ("cka", "kl", "windows")}
    rng = np.random.default_rng(seed)
    promises["random"] = {pair: -rng.random(values.shape) for pair, values in promises["windows"].items()}
    pairs = make_rule("all").plan(shapes, {})
    windows = make_rule("sn-net", stages=tuple(range(len(shapes[0].stages)))).plan(shapes, {})
    of_pairs, of_windows = Choice(family, pairs), Choice(family, windows)
    routes = {(way, count): of_pairs.best(promise, count) for way, promise in promises.items() for count in counts}
    found = _scored(family, pairs, routes)
    return found | _scored(family, windows, {("sn-net", count): of_windows.best(promises["windows"], count) for count in counts})


def _scored(family: Family, plan: RoutePlan, chosen: dict[Way, list[Crossings]]) -> dict[Way, list[Scored]]:
    """The anchors and the routes of each choice, where every route is fitted and scored once."""
    union = list(dict.fromkeys(route for routes in chosen.values() for route in routes))
    layouts = {name: anchor.layouts for name, anchor in family.anchors.items()}
    scored = family.score(split_shared(plan.only(union), layouts))
    anchors = len(family.anchors)
    known = dict(zip(union, scored[anchors:], strict=True))
    return {way: [*scored[:anchors], *(known[route] for route in routes)] for way, routes in chosen.items()}


def judged(scored: Sequence[Scored], anchors: int) -> dict[str, float]:
    """Shares of 1: mean accuracy of the stitched routes, median over front blocks of the best after each, mean loss against the straight
    line between the anchors, mean over budgets between the anchors of the best accuracy; and how many routes lie near the line."""
    small, large = scored[0], scored[anchors - 1]
    stitched = scored[anchors:]

    def line(macs: int) -> float:
        return small.accuracy + (large.accuracy - small.accuracy) * (macs - small.macs) / (large.macs - small.macs)

    losses = [line(item.macs) - item.accuracy for item in stitched]
    budgets = np.linspace(small.macs, large.macs, 1001)
    return {
        "mean": statistics.mean(item.accuracy for item in stitched),
        "after_front": statistics.median(item.accuracy for best in best_after_front(stitched).values() for item in best.values()),
        "loss": statistics.mean(max(0.0, loss) for loss in losses),
        "near": sum(loss <= NEAR for loss in losses),
        "area": statistics.mean(max(item.accuracy for item in scored if item.macs <= budget) for budget in budgets),
        "on_front": sum(pareto_front((item.macs, item.accuracy) for item in scored)) - 1,
    }


def draw(rows: Sequence[dict[str, Any]], example: dict[str, list[Scored]], anchors: int, picture: Path) -> None:
    """Left: mean accuracy over the number of routes, a dot for each seed. Right: the routes of the first seed over their cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        counts = sorted({row["routes"] for row in mine})
        means = [statistics.mean(100 * row["mean"] for row in mine if row["routes"] == count) for count in counts]
        left.plot(counts, means, color=COLOURS[way], marker="o", label=way)
        left.scatter([row["routes"] for row in mine], [100 * row["mean"] for row in mine], color=COLOURS[way], s=9, alpha=0.5)
        points = example[way][anchors:]
        right.scatter([item.macs / 1e6 for item in points], [100 * item.accuracy for item in points], color=COLOURS[way], s=22, label=way)
    whole = example[WAYS[0]][:anchors]
    right.plot([item.macs / 1e6 for item in whole], [100 * item.accuracy for item in whole], "k*--", linewidth=1, label="anchors")
    left.set_xlabel("routes, the anchors among them")
    left.set_ylabel("mean top-1 of the stitched routes, %")
    left.set_xticks(sorted({row["routes"] for row in rows}))
    right.set_xlabel("cost, MMACs per image")
    right.set_ylabel("top-1 on held-out images, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=8, loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Software": None})


def page(result: Result, command: str, images: int, match_spread: bool) -> str:
    """docs/selection.md."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    fitted = "least squares, with the spread of their targets as the exporter does by default" if match_spread else "plain least squares"
    rows = "\n".join(map(line, [result.header, ["---"] * len(result.header), *result.cells]))
    return f"""# Which stitches to make

![accuracy of the routes that each way chooses](selection.png)

`{command}` chooses stitched routes between ResNet-20 and ResNet-56 (CIFAR-10)
before any is made, fits them by {fitted}, tunes nothing, and
scores them on {images} held-out images. Every way chooses the same number; the anchors are among the `routes`. Figures are the
mean over draws of the fitting images, with half their range behind ±.

- `cka`, `kl`, `windows`: `--rule all --select ...`, from every pair of cuts in both directions. `windows` is
  equal depth.
- `sn-net`: `--rule sn-net`, small to large alone, in the paper's own windows of all stages; it has 24 pairs here.
- `random`: from every pair, by chance, but spread over the costs between the anchors like the others.

{rows}

mean top-1: of the stitched routes. Best after each front block: of the routes that keep the same first blocks the best,
then the median over these. Loss to the line: how far routes lie below the straight line between the anchors, 0 above it.
Front: the mean over all budgets between the anchors of the best accuracy that fits, the anchors among it; it hardly
moves, because untuned routes rarely beat the small anchor.

What follows from it: [decision 11](decisions/0011-which-stitches.md).
"""


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--routes", type=int, nargs="+", default=(8, 12, 24), help="the anchors among them (default: 8 12 24)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the fitting images (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=400, help="images to fit and to compare on (default: %(default)s)")
    parser.add_argument("--images", type=int, help="to score on (default: all)")
    parser.add_argument("--bf16", action="store_true", help="score in bfloat16")
    parser.add_argument("--match-spread", action=argparse.BooleanOptionalAction, default=True, help="as the exporter does (default: do)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--page", type=Path, metavar="MD", help="write the table here, and the picture beside it as .png")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    example: dict[str, list[Scored]] = {}
    anchors = 2
    for seed in range(args.seeds):
        settings = cifar_settings(Path("unused"), samples=args.samples, seed=seed, match_spread=args.match_spread, device=args.device)
        family = Family.load(settings, args.images, args.bf16)
        for (way, count), scored in score_ways(family, [routes - anchors for routes in args.routes], seed).items():
            rows.append({"way": way, "routes": count + anchors, "seed": seed, **judged(scored, anchors)})
            if seed == 0 and count + anchors == max(args.routes):
                example[way] = scored
        print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    result = Result(
        f"stitched routes between two anchors chosen before any was made, {args.seeds} draws of {args.samples} images, nothing tuned",
        ("way", "routes", "mean top-1", "best after each front block, median", "loss to the line", f"within {NEAR:.0%} of it", "front"),
        rows=rows,
    )
    for routes in args.routes:
        for way in WAYS:
            mine = [row for row in rows if (row["way"], row["routes"]) == (way, routes)]
            cells = [f"{_spread(mine, name)} %" for name in ("mean", "after_front", "loss")]
            near = statistics.mean(row["near"] for row in mine)
            result.cells.append((way, str(routes), *cells, f"{near:.1f} of {routes - anchors}", f"{_spread(mine, 'area')} %"))
    publish(result, args, started)
    if args.page:
        draw(rows, example, anchors, args.page.with_suffix(".png"))
        args.page.write_text(page(result, command(), len(family.scoring), args.match_spread))


def _spread(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Mean and half the range over the seeds, in per cent."""
    values = [100 * row[name] for row in rows]
    return f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


if __name__ == "__main__":
    main()
