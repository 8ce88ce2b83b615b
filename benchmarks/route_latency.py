"""Claim: a route is as fast as a plain ONNX Runtime session of the same joined graph, while all routes are loaded.

    python benchmarks/route_latency.py [--family resnet18-50 deit-ti-s] [--threads 1 2] [--batch 1 8] [--json FILE]

Ours is `Executor.run` with every route of the family loaded; the plain session has ONNX Runtime's defaults, level ALL, and as
many threads. Both in one process; outputs are compared first. They take turns (`restnet_runtime/turns.py`): a rest, runs that do
not count, five that do (above 100 ms: two). The ratio of a process is the median over rounds of our median of the round over theirs.

Where the pages of weights and activations lie is drawn anew in each process and moves a large batch by up to 8 %, ours and theirs
alike (docs/decisions/0009-floors-missed.md). So each family and number of threads is measured in several processes; a row has the
median of their ratios, the least and the greatest, and beside it the median for the quickest run of each round, which scatters
least on a busy machine. The floor is missed where the median of a row lies above it.
"""

import statistics
import time
from functools import partial
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

TITLE = "Steady latency of a route, all routes of its family loaded, against a plain session"
FLOOR = 1.02
STITCHED = 2
LEAST_ROUNDS = 3
"""Of a process."""
MOST_RUNS = 300
MEDIANS = ("latency_ms", "plain_latency_ms", "ratio", "quickest_ratio")


def of_a_process(path: Path, threads: int, batches: list[int], seconds: float, control: bool) -> list[dict[str, Any]]:
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.sessions import SessionSettings, plain_session
    from restnet_runtime.turns import median_and_p95, take_turns

    bundle = open_bundle(path)
    executor = load_all(bundle, threads)
    rows = []
    for name in chosen_routes(bundle, STITCHED):
        plain = plain_session(bundle, bundle.route(name), SessionSettings(threads))
        again = plain_session(bundle, bundle.route(name), SessionSettings(threads)) if control else None
        for batch in batches:
            x = noise(bundle, batch)
            difference = check_same(name, executor.run(x, name).logits, plain.run(["y"], {"x": x})[0])
            theirs = partial(plain.run, ["y"], {"x": x})
            ours = partial(again.run, ["y"], {"x": x}) if again else partial(executor.run, x, name)
            turns = take_turns(ours, theirs, MOST_RUNS, max_s=seconds, least_rounds=LEAST_ROUNDS)
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


def over_processes(processes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Row by row the medians over processes. processes: the rows of each, in one order."""
    rows = []
    for same in zip(*processes, strict=True):
        medians = {key: statistics.median(row[key] for row in same) for key in MEDIANS}
        spread = {"ratios": [row["ratio"] for row in same], "rounds": sum(row["rounds"] for row in same)}
        rows.append({**same[0], **medians, **spread, "difference": max(row["difference"] for row in same)})
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=3, help="for each route, batch and number of threads (%(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="among which the seconds are shared (%(default)s)")
    parser.add_argument("--control", action="store_true", help="a second plain session in place of ours: how far two equal programs differ")
    args = parser.parse_args()
    started = time.monotonic()
    rows = []
    for name in args.family:
        bundle = family(name)
        in_child(compile_all, bundle.path)
        for threads in args.threads:
            job = (bundle.path, threads, args.batch, args.seconds / args.processes, args.control)
            rows += over_processes([in_child(of_a_process, *job) for _ in range(args.processes)])
    result = Result(
        "Two plain sessions of each route" if args.control else TITLE,
        ("route", "routes loaded", "threads", "batch", "ours", "plain", "ratio", "least and greatest", "of the quickest"),
        rows=rows,
    )
    for row in rows:
        figures = (
            row["threads"],
            row["batch"],
            f"{row['latency_ms']:.2f} ms",
            f"{row['plain_latency_ms']:.2f} ms",
            f"{row['ratio']:.3f}",
            f"{min(row['ratios']):.3f} {max(row['ratios']):.3f}",
            f"{row['quickest_ratio']:.3f}",
        )
        result.cells.append(tuple(map(str, (row["route"], row["loaded"], *figures))))
    for threads in args.threads:
        if args.control:
            continue
        mine = [row for row in rows if row["threads"] == threads]
        ratios = sorted(row["ratio"] for row in mine)
        above = sum(ratio > FLOOR for ratio in ratios)
        missed = sum(min(row["ratios"]) > FLOOR for row in mine)
        quickest = sorted(row["quickest_ratio"] for row in mine)
        result.floors.append(
            Floor(
                f"latency of a route, steady, {threads} thread{'s' * (threads > 1)}",
                "plain session",
                f"<= {FLOOR}x, each",
                f"median {statistics.median(ratios):.3f}, worst {ratios[-1]:.3f}; {above} of {len(ratios)} above, {missed} in every "
                f"process (quickest runs: {statistics.median(quickest):.3f}, {quickest[-1]:.3f})",
                not above,
            )
        )
    publish(result, args, started)


if __name__ == "__main__":
    main()
