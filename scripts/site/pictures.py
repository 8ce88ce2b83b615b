"""Pictures of the explanation pages, from the digits bundle, its compiled cache, and the policy's own decisions.

python scripts/site/pictures.py                  # writes docs/explanation/{stitching,compiled-routes,policy}.svg
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

import policy_picture
from svg import Svg

from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.manifest import Segment
from restnet_runtime.units import format_bytes, format_macs

OUT = Path(__file__).parents[2] / "docs" / "explanation"
SMALL, LARGE, STITCH, INK, FAINT = "#0f766e", "#6d28d9", "#c2410c", "#1f2937", "#e5e7eb"


def stitching(bundle: Bundle) -> Svg:
    """Both anchors as rows of blocks, and the first stitched route of the front through them."""
    manifest = bundle.manifest
    small, large = manifest.anchors
    route = next(one for one in bundle.routes if one.on_front and one.name not in (small.name, large.name))
    segments = {segment.name: segment for segment in manifest.segments}
    picture = Svg(860, 330)
    step, left = 84, 150
    rows = {large.name: (46, large.segments, LARGE), small.name: (216, small.segments, SMALL)}
    place: dict[str, tuple[float, float]] = {}
    for name, (top, names, colour) in rows.items():
        cost = next(one.macs for one in bundle.routes if one.name == name)
        picture.text(16, top + 24, name, INK, 17, weight=600)
        picture.text(16, top + 44, format_macs(cost), INK, 13)
        spread = step if name == large.name else step * (len(large.segments) - 1) / (len(small.segments) - 1)
        for number, segment in enumerate(names):
            x = left + number * spread
            place[segment] = (x, top)
            used = segment in route.segments
            if number:
                before = names[number - 1]
                both = used and before in route.segments
                picture.line(place[before][0] + 60, top + 28, x, top + 28, colour if both else FAINT, 3)
            picture.box(x, top, 60, 56, colour if used else "#ffffff", colour, 1.0 if used else 0.45)
            picture.text(x + 30, top + 25, _title(number, len(names)), "#ffffff" if used else INK, 13, anchor="middle")
            picture.text(x + 30, top + 43, _shape(segments[segment]), "#ffffff" if used else INK, 10.5, anchor="middle")
    for number, name in enumerate(route.segments):
        if segments[name].kind == "stitch":
            (x0, y0), (x1, y1) = place[route.segments[number - 1]], place[route.segments[number + 1]]
            middle, y = (x0 + x1 + 60) / 2, (y0 + y1 + 56) / 2
            picture.line(x0 + 30, y0 + 56, middle, y, STITCH, 3)
            picture.line(middle, y, x1 + 30, y1, STITCH, 3)
            picture.box(middle - 74, y - 25, 148, 50, STITCH, STITCH)
            picture.text(middle, y - 4, "stitching layer", "#ffffff", 13, anchor="middle")
            picture.text(middle, y + 14, f"{_shape(segments[name], 'input')} → {_shape(segments[name])}", "#ffffff", 11, anchor="middle")
    accuracy = "" if route.accuracy is None else f", {route.accuracy:.1%} right"
    picture.text(16, 310, f"the route {route.name}: {format_macs(route.macs)}{accuracy}", INK, 15)
    return picture


def _title(number: int, count: int) -> str:
    return "stem" if number == 0 else "head" if number == count - 1 else f"block {number}"


def _shape(segment: Segment, of: str = "output") -> str:
    return "×".join(str(size) for size in (segment.input_shape if of == "input" else segment.output_shape))  # noqa: RUF001  # as shapes are written


def compiled(bundle: Bundle) -> Svg:
    """What each compiled route reads of the one weights file: a row for each, a column for each piece of the file, to scale."""
    with tempfile.TemporaryDirectory() as cache:
        compiler = Compiler.for_bundle(bundle, Path(cache))
        try:
            reads = {route.name: {(address, length) for address, length in compiler.compile(route).touched} for route in bundle.routes}
        finally:
            compiler.release()
    return shared(reads, [(route.name, route.macs) for route in bundle.routes])


def shared(reads: dict[str, set[tuple[int, int]]], order: Iterable[tuple[str, int]]) -> Svg:
    """A row for each route: the pieces of the file that it reads."""
    names = [name for name, _ in sorted(order, key=lambda one: one[1])]
    pieces = sorted({piece for pieces in reads.values() for piece in pieces}, key=lambda piece: (-_readers(reads, piece), piece))
    total = sum(length for _, length in pieces)
    alone = sum(length for pieces in reads.values() for _, length in pieces)
    left, width, row = 200.0, 560.0, 34.0
    picture = Svg(860, int(112 + row * len(names)))
    picture.text(left, 28, "what each route reads of the one weights file, by the bytes of its tensors", INK, 14)
    for number, name in enumerate(names):
        y, x = 44 + number * row, left
        picture.text(left - 10, y + 17, name, INK, 13, anchor="end")
        for piece in pieces:
            wide = width * piece[1] / total
            readers = _readers(reads, piece)
            colour = FAINT if piece not in reads[name] else LARGE if readers > len(names) / 2 else SMALL if readers > 1 else STITCH
            picture.box(x, y, max(wide - 0.6, 0.4), row - 10, colour, None)
            x += wide
        picture.text(left + width + 10, y + 17, format_bytes(sum(length for _, length in reads[name])), INK, 12)
    words = f"{len(names)} networks by themselves: {format_bytes(alone)}; together, each tensor once: {format_bytes(total)}"
    picture.text(left, 66 + row * len(names), words, INK, 14)
    x = left
    for colour, meaning in ((LARGE, "read by more than half of the routes"), (SMALL, "by two or more"), (STITCH, "by this one alone")):
        picture.box(x, 82 + row * len(names), 12, 12, colour, None)
        picture.text(x + 18, 93 + row * len(names), meaning, INK, 12)
        x += 240 if colour == LARGE else 120
    return picture


def _readers(reads: dict[str, set[tuple[int, int]]], piece: tuple[int, int]) -> int:
    return sum(piece in pieces for pieces in reads.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the explanation pages.")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="(default: docs/explanation)")
    args = parser.parse_args()
    bundle = open_bundle(SHIPPED_BUNDLE)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in (("stitching", stitching(bundle)), ("compiled-routes", compiled(bundle))):
        (args.out / f"{name}.svg").write_text(picture.document())
    policy_picture.draw(args.out / "policy.svg")


if __name__ == "__main__":
    main()
