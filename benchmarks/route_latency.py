"""Claim: a route is as fast as a plain ONNX Runtime session of the same joined graph, while all routes are loaded.

    python benchmarks/route_latency.py [--family resnet18-50 deit-ti-s] [--threads 1 2] [--batch 1 8] [--json FILE]

Ours is `Executor.run` with every route of the family loaded; the plain session has ONNX Runtime's defaults, level ALL, and as
many threads. Both in one process, which is a new one for each family and number of threads; outputs are compared first. They
take turns (`restnet_runtime/turns.py`): a rest, runs that do not count, five that do (above 100 ms: two, both count). The ratio
is the median over rounds of our median of the round over theirs; beside it the same of the quickest run of each round, which
scatters least on a busy machine.
"""

import statistics
import time
from pathlib import Path
from typing import Any

from common import (
    Floor,
    Result,
    arguments,
    check_same,
    chosen_routes,
    compile_all,
    in_child,
    load_all,
    noise,
    publish,
)
from families import FAMILIES, QUICK, family

FLOOR = 1.02
STITCHED = 2
MOST_RUNS = 300


def measure(path: Path, threads: int, batches: list[int], seconds: float) -> list[dict[str, Any]]:
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.sessions import SessionSettings, plain_session
    from restnet_runtime.turns import median_and_p95, take_turns

    bundle = open_bundle(path)
    executor = load_all(bundle, threads)
    rows = []
    for name in chosen_routes(bundle, STITCHED):
        plain = plain_session(bundle, bundle.route(name), SessionSettings(threads))
        for batch in batches:
            x = noise(bundle, batch)
            difference = check_same(name, executor.run(x, name).logits, plain.run(["y"], {"x": x})[0])
            turns = take_turns(lambda: executor.run(x, name), lambda: plain.run(["y"], {"x": x}), MOST_RUNS, max_s=seconds)  # noqa: B023
            rows.append(
                {
                    "family": path.name,
                    "route": name,
                    "threads": threads,
                    "batch": batch,
                    "latency_ms": median_and_p95(turns.ours_ms)[0],
                    "plain_latency_ms": median_and_p95(turns.theirs_ms)[0],
                    "ratio": turns.ratio,
                    "quickest_ratio": turns.quickest_ratio,
                    "rounds": len(turns.ours_ms),
                    "loaded": len(executor.loaded),
                    "difference": difference,
                }
            )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=3, help="for each route, batch and number of threads (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    rows = []
    for name in args.family:
        bundle = family(name)
        in_child(compile_all, bundle.path)
        for threads in args.threads:
            rows += in_child(measure, bundle.path, threads, args.batch, args.seconds)
    result = Result(
        "Steady latency of a route, all routes of its family loaded, against a plain session",
        ("route", "routes loaded", "threads", "batch", "ours", "plain", "ratio", "of the quickest"),
        rows=rows,
    )
    for row in rows:
        figures = (
            row["threads"],
            row["batch"],
            f"{row['latency_ms']:.2f} ms",
            f"{row['plain_latency_ms']:.2f} ms",
            f"{row['ratio']:.3f}",
            f"{row['quickest_ratio']:.3f}",
        )
        result.cells.append(tuple(map(str, (row["route"], row["loaded"], *figures))))
    for threads in args.threads:
        ratios = sorted(row["ratio"] for row in rows if row["threads"] == threads)
        above = sum(ratio > FLOOR for ratio in ratios)
        quickest = sorted(row["quickest_ratio"] for row in rows if row["threads"] == threads)
        result.floors.append(
            Floor(
                f"latency of a route, steady, {threads} thread{'s' * (threads > 1)}",
                "plain session",
                f"<= {FLOOR}x, each",
                f"median {statistics.median(ratios):.3f}, worst {ratios[-1]:.3f}; {above} of {len(ratios)} above (quickest runs: "
                f"{statistics.median(quickest):.3f}, {quickest[-1]:.3f})",
                not above,
            )
        )
    publish(result, args, started)


if __name__ == "__main__":
    main()
