"""Claim: a switch costs nothing that a request notices.

    python benchmarks/switching.py [--family resnet18-50 deit-ti-s] [--switches 200] [--json FILE]

With all routes of a family loaded, random switches, each followed by five requests at batch 1: the first against the median of
all later ones on the same route. The switch itself against what a reload does: loading a plain ONNX Runtime session of the
route from its own file. And routes against the same stitched network in PyTorch eager, same weights, in turns in one process.
"""

import random
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
    plain_file,
    publish,
    quantile,
    timed_ms,
)
from families import FAMILIES, QUICK, family

FIRST_FLOOR, FIRST_P99_FLOOR, RELOAD_FLOOR = 1.2, 1.5, 50
MOST_RUNS = 300
LATER_RUNS = 4


def switch_at_random(path: Path, threads: int, switches: int) -> dict[str, Any]:
    from restnet_runtime.bundle import open_bundle

    bundle = open_bundle(path)
    executor, x, draw = load_all(bundle, threads), noise(bundle), random.Random(0)
    executor.run(x)
    switch_ms: list[float] = []
    first: list[tuple[str, float]] = []
    later: dict[str, list[float]] = {}
    for _ in range(switches):
        target = draw.choice([name for name in executor.loaded if executor.current is None or name != executor.current.name])
        switch_ms.append(timed_ms(lambda: executor.switch(target)))  # noqa: B023
        first.append((target, timed_ms(lambda: executor.run(x))))
        later.setdefault(target, []).extend(timed_ms(lambda: executor.run(x)) for _ in range(LATER_RUNS))
    steady = {name: statistics.median(times) for name, times in later.items()}
    ratios = [taken / steady[name] for name, taken in first]
    return {
        "family": path.name,
        "loaded": len(executor.loaded),
        "switches": switches,
        "first_ratio_median": statistics.median(ratios),
        "first_ratio_p99": quantile(ratios, 0.99),
        "steady_ratio_p99": quantile([taken / steady[name] for name, times in later.items() for taken in times], 0.99),
        "switch_us": statistics.median(switch_ms) * 1e3,
        "steady_ms": statistics.median(steady.values()),
    }


def reload_and_eager(path: Path, threads: int, seconds: float) -> list[dict[str, Any]]:
    import onnxruntime as ort
    import torch
    from eager import StitchedNetwork

    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.turns import median_and_p95, take_turns

    bundle = open_bundle(path)
    executor, x = load_all(bundle, threads), noise(bundle)
    torch.set_num_threads(threads)
    network, tensor = StitchedNetwork(bundle).eval(), torch.from_numpy(x)
    rows = []
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for name in chosen_routes(bundle, 2):
        file = str(plain_file(bundle, name))
        loads = [timed_ms(lambda: ort.InferenceSession(file, options, ["CPUExecutionProvider"])) for _ in range(5)]  # noqa: B023
        stitch_id = bundle.routes.index(bundle.route(name))
        with torch.inference_mode():
            check_same(f"{name} in eager", network(tensor, stitch_id).numpy(), executor.run(x, name).logits)
            turns = take_turns(lambda: executor.run(x, name), lambda: network(tensor, stitch_id), MOST_RUNS, max_s=seconds)  # noqa: B023
        rows.append(
            {
                "family": path.name,
                "route": name,
                "load_ms": statistics.median(loads),
                "latency_ms": median_and_p95(turns.ours_ms)[0],
                "eager_ms": median_and_p95(turns.theirs_ms)[0],
                "eager_ratio": turns.quickest_ratio,
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4, help="for each route against eager (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        f"Switching, all routes loaded, batch 1, {args.threads} threads",
        ("route", "switch", "first answer / steady", "p99", "steady p99", "plain load", "load / switch", "ours", "eager", "ours / eager"),
    )
    for name in args.family:
        bundle = family(name)
        in_child(compile_all, bundle.path)
        switched = in_child(switch_at_random, bundle.path, args.threads, args.switches)
        compared = in_child(reload_and_eager, bundle.path, args.threads, args.seconds)
        factor = min(row["load_ms"] for row in compared) * 1e3 / switched["switch_us"]
        result.rows += [switched, *compared]
        figures = (f"{switched[key]:.2f}x" for key in ("first_ratio_median", "first_ratio_p99", "steady_ratio_p99"))
        result.cells.append((f"{name}, {args.switches} switches", f"{switched['switch_us']:.1f} us", *figures, *[""] * 5))
        for row in compared:
            result.cells.append(
                (
                    row["route"],
                    *[""] * 4,
                    f"{row['load_ms']:.0f} ms",
                    f"{row['load_ms'] * 1e3 / switched['switch_us']:.0f}x",
                    f"{row['latency_ms']:.1f} ms",
                    f"{row['eager_ms']:.1f} ms",
                    f"{row['eager_ratio']:.2f}x",
                )
            )
        worst = max(row["eager_ratio"] for row in compared)
        median, p99 = switched["first_ratio_median"], switched["first_ratio_p99"]
        result.floors += [
            Floor(
                f"first answer after a switch, {name}",
                "steady median of the target route",
                f"<= {FIRST_FLOOR}x median, <= {FIRST_P99_FLOOR}x p99",
                f"{median:.2f}x median, {p99:.2f}x p99 (steady runs: {switched['steady_ratio_p99']:.2f}x p99)",
                median <= FIRST_FLOOR and p99 <= FIRST_P99_FLOOR,
            ),
            Floor(
                f"a switch, {name}",
                "loading a plain session",
                f">= {RELOAD_FLOOR}x cheaper",
                f"{switched['switch_us']:.1f} us, {factor:,.0f}x cheaper than the quickest load",
                factor >= RELOAD_FLOOR,
            ),
            Floor(
                f"route latency, {name}",
                "PyTorch eager stitched network",
                "faster",
                f"{worst:.2f}x of eager at worst over {len(compared)} routes",
                worst < 1,
            ),
        ]
    publish(result, args, started)


if __name__ == "__main__":
    main()
