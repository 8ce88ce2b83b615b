"""Score every route of a bundle on this machine and compare with what the bundle says: does the device answer as the exporter did?

    python scripts/score_check.py BUNDLE IMAGES.npz [--within 0.01] [--most 500] [--routes ROUTE ...]

IMAGES.npz holds x (uint8, N x H x W x C or N x H x W) and y (class by index). Routes run as they are served: compiled, on one thread.
Needs nothing but the device install. Prints JSON, the answer to every image in it, so that two machines can be compared
(`benchmarks/int8_elsewhere.py`); exits 1 if a route scores otherwise than the bundle says by more than `--within`.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.sessions import SessionSettings, infer, load_session


def main() -> int:
    parser = argparse.ArgumentParser(description="Score every route of a bundle here.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--within", type=float, default=0.01)
    parser.add_argument("--most", type=int, default=2000, help="images to use (default: %(default)s)")
    parser.add_argument("--routes", nargs="+", metavar="ROUTE", help="these alone")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    preprocessor = Preprocessor(bundle.manifest.preprocessing, bundle.manifest.input.shape)
    with np.load(args.images) as arrays:
        pixels, labels = arrays["x"][: args.most], arrays["y"][: args.most]
    x = np.concatenate([preprocessor.from_pixels(image) for image in pixels])
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as cache:
        compiler = Compiler.for_bundle(bundle, Path(cache))
        for route in bundle.routes if args.routes is None else [bundle.route(name) for name in args.routes]:
            session = load_session(compiler.compile(route), SessionSettings())
            answers = np.concatenate([infer(session, x[start : start + 32]) for start in range(0, len(x), 32)]).argmax(1)
            accuracy = float((answers == labels).mean())
            off = route.accuracy is not None and abs(accuracy - route.accuracy) > args.within
            wrong += off
            row = {"route": route.name, "precision": route.precision, "here": round(accuracy, 4), "bundle": route.accuracy, "off": off}
            print(f"{route.name}: {accuracy:.4f}", file=sys.stderr, flush=True)  # where it is emulated each takes minutes
            rows.append({**row, "right": int((answers == labels).sum()), "answers": " ".join(map(str, answers))})
    found = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "images": len(x), "wrong": wrong, "routes": rows}
    print(json.dumps(found, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
