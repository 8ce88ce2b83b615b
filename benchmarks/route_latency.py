"""Claim: a compiled route is as fast as a plain ONNX Runtime session of the same joined graph.

    python benchmarks/route_latency.py [--family resnet18-50 deit-ti-s] [--threads 1 2] [--json FILE]

Both run interleaved in one process with the same number of threads, outputs compared first. The plain session has
ONNX Runtime's defaults. Prints the ratio of the medians: compiled over plain; below 1 the compiled route is faster.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from families import FAMILIES, ROOT, family

from restnet_runtime.compile import Compiler
from restnet_runtime.machine import describe_machine
from restnet_runtime.profile import percentile
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
from restnet_runtime.tables import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=sorted(FAMILIES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.family:
        bundle = family(name)
        compiler = Compiler.for_bundle(bundle, ROOT / "cache")
        anchors = [anchor.name for anchor in bundle.manifest.anchors]
        stitched = [route.name for route in bundle.routes if route.name not in anchors]
        for route_name in [*anchors, stitched[len(stitched) // 2]]:
            route = bundle.route(route_name)
            for threads in args.threads:
                settings = SessionSettings(threads)
                compiled, plain = load_session(compiler.compile(route), settings), plain_session(bundle, route, settings)
                for batch in args.batch:
                    x = np.random.default_rng(0).standard_normal((batch, *bundle.manifest.input.shape)).astype(np.float32)
                    difference = float(np.abs(infer(compiled, x) - infer(plain, x)).max() / np.abs(infer(plain, x)).max())
                    if difference > 1e-5:
                        raise SystemExit(f"{route_name}: outputs differ by {difference:.1e} of the largest logit")
                    ours, theirs = interleaved(compiled, plain, x, args.runs)
                    rows.append(
                        {
                            "route": route_name,
                            "threads": threads,
                            "batch": batch,
                            "latency_ms": percentile(ours, 0.5),
                            "plain_latency_ms": percentile(theirs, 0.5),
                            "ratio": percentile(ours, 0.5) / percentile(theirs, 0.5),
                            "difference": difference,
                        }
                    )
    cells = (
        (
            row["route"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['latency_ms']:.2f} ms",
            f"{row['plain_latency_ms']:.2f} ms",
            f"{row['ratio']:.3f}",
        )
        for row in rows
    )
    print(table(("route", "threads", "batch", "compiled", "plain", "ratio"), cells))
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


def interleaved(first, second, x: np.ndarray, runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each run of two sessions that take turns, in blocks of five so that each runs with its own caches warm."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(1, runs // 5)):
        for session, kept in zip((first, second), times, strict=True):
            infer(session, x)
            for _ in range(5):
                started = time.perf_counter()
                infer(session, x)
                kept.append((time.perf_counter() - started) * 1e3)
    return times


if __name__ == "__main__":
    main()
