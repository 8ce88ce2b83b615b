"""Does another machine answer as this one does? Two outputs of `scripts/score_check.py` on one bundle and one set of images, side by side.

  python scripts/score_check.py BUNDLE IMAGES.npz --routes ... > here.json      (and the same on the other machine: there.json)
  python benchmarks/int8_elsewhere.py here.json there.json

Each writes every answer, so what is compared is not the score alone: a route may be right as often and about other images.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from common import Floor, Result, arguments, publish

APART = 2.0
"""Standard errors by which a score may differ: as many as answers that differ would make by chance."""


def compared(here: dict[str, Any], there: dict[str, Any]) -> list[dict[str, Any]]:
    """By route: right on either machine, and of how many images the answers differ. Raises `ValueError` if they are not of one run."""
    others = {row["route"]: row for row in there["routes"]}
    if here["images"] != there["images"] or list(others) != [row["route"] for row in here["routes"]]:
        raise ValueError("the two are not of the same routes and images")
    rows = []
    for row in here["routes"]:
        other = others[row["route"]]
        answers = [one["answers"].split() for one in (row, other)]
        differing = sum(a != b for a, b in zip(*answers, strict=True))
        rows.append(
            {"route": row["route"], "precision": row["precision"], "here": row["right"], "there": other["right"], "differing": differing}
        )
    return rows


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("here", type=Path, help="of this machine")
    parser.add_argument("there", type=Path, help="of the other one")
    parser.add_argument("--as", dest="name", default="", help="what to call the other machine (default: what it calls itself)")
    parser.add_argument("--of", default="", metavar="NAME", help="what to call the bundle")
    args = parser.parse_args()
    here, there = (json.loads(path.read_text()) for path in (args.here, args.there))
    rows, images = compared(here, there), here["images"]
    names = [f"{one['machine']}, ONNX Runtime {one['onnxruntime']}" for one in (here, there)]
    names[1] = f"{args.name}, ONNX Runtime {there['onnxruntime']}" if args.name else names[1]
    result = Result(
        f"The same answers elsewhere: {args.of + ', ' if args.of else ''}{images} images",
        ("route", f"right: {names[0]}", names[1], "answers that differ"),
    )
    for row in rows:
        result.rows.append(row)
        result.cells.append((row["route"], str(row["here"]), str(row["there"]), str(row["differing"])))
    worst = max(rows, key=lambda row: abs(row["here"] - row["there"]))
    off = abs(worst["here"] - worst["there"])
    what, figure = f"score of a route on {names[1]}, the one farthest off", f"{off} of {images} images ({worst['route']})"
    met = all(abs(row["here"] - row["there"]) <= APART * math.sqrt(row["differing"]) for row in rows)
    result.floors.append(Floor(what, names[0], "as answers that differ make by chance", figure, met))
    result.notes.append("for correctness; emulated times mean nothing")
    publish(result, args, started)


if __name__ == "__main__":
    main()
