"""BatchNorm behind a stitching layer: the anchor's statistics, or the route's own?

CIFAR-10 ResNets, one route for each front block (rule restnet). Every route is scored with the statistics that its end anchor was trained
with (what the exporter does), and with those of its own activations, taken from the images of least squares: first as fitted, then after
fine-tuning of the stitching layers, which keeps statistics too. Needs the checkpoints and images under $RESTNET_SHARED (README there).

    python benchmarks/batchnorm.py [--steps 100] [--json FILE]
"""

import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cifar_family import Family, cifar_settings
from common import Result, arguments, publish
from torch import Tensor, fx, nn

from restnet_export.data import load_images
from restnet_export.finetune import finetune
from restnet_export.fitting import fit_layers
from restnet_export.planning import family_macs, plan_routes
from restnet_export.promise import measure_promise
from restnet_export.routes import StitchedRoute, routes_of
from restnet_export.settings import TuneSettings
from restnet_export.similarity import measure_similarity

NORMS = (torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)
BATCH = 233


@dataclass
class Recalibrated:
    """Runs blocks with statistics of their own: the first run, `known` being empty, takes them."""

    known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(block, fx.GraphModule)
        result: Tensor = _Interpreter(block, self).run(x)
        return result


class _Interpreter(fx.Interpreter):
    def __init__(self, block: fx.GraphModule, own: Recalibrated) -> None:
        super().__init__(block)
        self._own = own

    def run_node(self, node: fx.Node) -> Any:
        if node.target not in NORMS:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        x = args[0]
        key = id(node)
        if key not in self._own.known:
            self._own.known[key] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        assert callable(node.target)
        return node.target(*args[:3], *self._own.known[key], *args[5:], **kwargs)


def rights(family: Family, layers: Any, routes: list[StitchedRoute], recalibrate: bool) -> list[float]:
    """Top-1 of each route. recalibrate: with statistics of its own behind its stitching layer."""
    fitting = next(family.fitting.batches(len(family.fitting)))[0]
    found = []
    for route in routes:
        (front, end), own = route.parts, Recalibrated()
        blocks, rest = family.anchors[front.anchor].blocks[: front.last + 1], family.anchors[end.anchor].blocks[end.first :]

        def answer(x: Tensor) -> Tensor:
            for block in blocks:  # noqa: B023
                x = block(x)
            x = layers[route.layers[0]](x)  # noqa: B023
            for block in rest:  # noqa: B023
                x = own.run(block, x) if recalibrate else block(x)  # noqa: B023
            return x

        right = 0
        with torch.no_grad():
            if recalibrate:
                answer(fitting)
            for images, labels in family.scoring.batches(BATCH):
                right += int((answer(images).argmax(1) == labels).sum())
        found.append(right / len(family.scoring))
    return found


def main() -> None:
    began = time.monotonic()
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of fine-tuning")
    parser.add_argument("--samples", type=int, default=400, help="images behind least squares and statistics (default: %(default)s)")
    args = parser.parse_args()
    settings = cifar_settings(Path("unused"), rule="restnet", samples=args.samples)
    family = Family.load(settings)
    rule, anchors = settings.rule_with_options(), list(family.anchors.values())
    promise = measure_promise("cka", anchors, measure_similarity(anchors, family.fitting, rule.nearest), family.fitting)
    plan = plan_routes(rule, family.anchors, promise)
    layers = fit_layers(plan.layers, family.anchors, family.fitting)
    everything = routes_of(family.anchors, plan)
    routes = [route for route in everything if route.layers]
    columns = [rights(family, layers, routes, own) for own in (False, True)]
    data = Family.load(replace(settings, samples=len(load_images(settings.data)))).fitting
    tuning = replace(TuneSettings(steps=args.steps, flip=True, amp="bf16"), mode="stitch")
    finetune(family.anchors, layers, everything, family_macs(plan, family.anchors), "resnet56", data, tuning, print)
    columns += [rights(family, layers, routes, own) for own in (False, True)]
    names = ("fitted", "fitted, own statistics", "tuned", "tuned, own statistics")
    result = Result(f"BatchNorm on {len(routes)} routes, scored on {len(family.scoring)} images", ("route", *names))
    for route, *values in zip(routes, *columns, strict=True):
        result.cells.append((route.name, *(f"{value:.1%}" for value in values)))
        result.rows.append({"route": route.name, **dict(zip(names, values, strict=True))})
    result.cells.append(("median", *(f"{statistics.median(column):.1%}" for column in columns)))
    for kind, kept, own in (("fitted", *columns[:2]), ("tuned", *columns[2:])):
        gains = [100 * (after - before) for before, after in zip(kept, own, strict=True)]
        result.notes.append(f"{kind}: own statistics gain {statistics.median(gains):.1f} points in the median, {min(gains):.1f} at worst")
    publish(result, args, began)


if __name__ == "__main__":
    main()
