"""By which of its blocks an int8 route loses: each alone in int8, and each alone in fp32, on the images that its bundle was scored on.

A route loses some images and gains others; of what is left between the two the standard error is the root of their number. What a block
costs alone is told by the error of the logits, which a few hundred images know well, beside the points, which they do not.

  python benchmarks/int8_cause.py build/benchmarks/cifar/tuned-int8              (the route that loses most; --route NAME for another)
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cifar_family import shared
from common import Result, arguments, publish

from restnet_export.ort_scoring import relative_error
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.manifest import Precision
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, plain_session

SETS = ("lossless", "jpeg")
MOST = 1000
"""Images that blocks are compared on."""
_BATCH = 100


@dataclass(frozen=True)
class Block:
    """error: of the logits against fp32, relative to their variance. points: of accuracy that are lost. Alone in int8, or alone in fp32.

    The latter where it was asked for. Both are of the first `MOST` images.
    """

    name: str
    error: float
    points: float
    rest_error: float | None
    rest_points: float | None


@dataclass(frozen=True)
class Cause:
    """lost, gained: images that fp32 has right and the route not, and the other way round. error: of the route. blocks: the worst first."""

    route: str
    images: int
    lost: int
    gained: int
    error: float
    blocks: tuple[Block, ...]

    @property
    def points(self) -> float:
        return 100 * (self.lost - self.gained) / self.images

    @property
    def standard_error(self) -> float:
        """Of `points`, in points."""
        return 100 * math.sqrt(self.lost + self.gained) / self.images

    def __str__(self) -> str:
        first = self.blocks[0]
        alone = f"alone in int8 it makes {100 * first.error:.2g} % error of the logits of {100 * self.error:.2g} % in all"
        by = f"by {first.name}" if first.error > self.error / 3 else f"by no single block, most by {first.name}"
        return f"{self.lost} images lost, {self.gained} gained, {self.points:.1f} ± {self.standard_error:.1f} points; {by}: {alone}"


def scored_images(bundle: Bundle) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Inputs and labels of the set that has as many images as the bundle was scored on. Ends the program where there is none."""
    for name in SETS:
        with np.load(shared() / "data" / "cifar10" / f"{name}_val.npz") as arrays:
            if len(arrays["y"]) == bundle.manifest.provenance.scored_on:
                preprocessor = Preprocessor(bundle.manifest.preprocessing, bundle.manifest.input.shape)
                return np.concatenate([preprocessor.from_pixels(image) for image in arrays["x"]]), arrays["y"]
    raise SystemExit(f"no set of images has {bundle.manifest.provenance.scored_on} of them")


def cause_of(bundle: Bundle, route: Route, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, rest: bool = False) -> Cause:
    """Why `route`, which is not in fp32, answers otherwise than its twin. x: (N, C, H, W), labels: (N,). rest: each in fp32 as well."""

    def answers(precisions: Sequence[Precision], most: int | None = MOST) -> npt.NDArray[np.float32]:
        session = plain_session(bundle, replace(route, precisions=tuple(precisions)), SessionSettings())
        given = x[:most]
        return np.concatenate([infer(session, given[start : start + _BATCH]) for start in range(0, len(given), _BATCH)])

    plain: tuple[Precision, ...] = ("fp32",) * len(route.segments)
    expected, found = answers(plain, None), answers(route.precisions, None)
    right, kept = expected.argmax(1) == labels, found.argmax(1) == labels

    def compared(precisions: Sequence[Precision]) -> tuple[float, float]:
        """Error, and points lost."""
        logits = answers(precisions)
        points = right[:MOST].mean() - (logits.argmax(1) == labels[:MOST]).mean()
        return relative_error(expected[:MOST], logits), 100 * float(points)

    blocks = []
    for index, (name, precision) in enumerate(zip(route.segments, route.precisions, strict=True)):
        if precision != "fp32":
            alone = compared([*plain[:index], precision, *plain[index + 1 :]])
            without = compared([*route.precisions[:index], "fp32", *route.precisions[index + 1 :]]) if rest else (None, None)
            blocks.append(Block(name, *alone, *without))
    blocks.sort(key=lambda block: -block.error)
    counts = int((right & ~kept).sum()), int((kept & ~right).sum())
    return Cause(route.name, len(x), *counts, relative_error(expected[:MOST], found[:MOST]), tuple(blocks))


def worst(bundle: Bundle) -> Route:
    """Of the stitched routes that are not in fp32 the one that loses most against its twin, by what the bundle says."""
    anchors = {anchor.segments for anchor in bundle.manifest.anchors}
    plain = {route.segments: route.accuracy or 0.0 for route in bundle.routes if route.precision == "fp32"}
    others = [route for route in bundle.routes if route.precision != "fp32" and route.segments not in anchors]
    return max(others, key=lambda route: plain[route.segments] - (route.accuracy or 0.0))


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("bundle", type=Path, help="of CIFAR-10 networks, in fp32 and int8")
    parser.add_argument("--route", help="one that is not in fp32 (default: the stitched one that loses most)")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    found = cause_of(bundle, bundle.route(args.route) if args.route else worst(bundle), *scored_images(bundle), rest=True)
    head = ("block", "alone in int8: error", "points lost", "alone in fp32: error", "points lost then")
    result = Result(f"By which block {found.route} loses", head)
    result.notes.append(f"{found.route}: {found}")
    for block in found.blocks:
        figures = f"{100 * block.error:.2g} %", f"{block.points:.2f}", f"{100 * (block.rest_error or 0):.2g} %", f"{block.rest_points:.2f}"
        result.cells.append((block.name, *figures))
        result.rows.append({"route": found.route, **block.__dict__})
    publish(result, args, started)


if __name__ == "__main__":
    main()
