"""Claim: the executor adds a few microseconds of Python to a request.

    python benchmarks/executor_overhead.py [--rounds 60] [--json FILE]

`Executor.run` against `session.run` of the very session that serves the route, in turns, on the smallest route of the digits
bundle, where nothing hides behind arithmetic. `Engine.run`, which also chooses the route and observes the latency, beside it.
Each figure is the median over rounds of the difference of two means over 200 calls.
"""

import statistics
import time
from collections.abc import Callable

from common import CACHE, Floor, Result, arguments, check_same, noise, publish

CALLS = 200
FLOOR_US = 30


def mean_us(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> None:
    from restnet_runtime.engine import Engine

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    started = time.monotonic()
    with Engine.open(cache_root=CACHE, threads=1) as engine:
        engine.loader.join()
        executor = engine.executor
        route = min(executor.bundle.routes, key=lambda route: route.macs).name
        session, x = executor.load(route).session, noise(executor.bundle)
        check_same(route, executor.run(x, route).logits, session.run(["y"], {"x": x})[0])
        calls = {
            "session.run": lambda: session.run(["y"], {"x": x}),
            "Executor.run": lambda: executor.run(x, route),
            "Engine.run": lambda: engine.run(x),
        }
        engine.controller.budget = type(engine.controller.budget)(macs=executor.bundle.route(route).macs)  # so that it runs the same route
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                times[name].append(mean_us(call))
        loaded = len(executor.loaded)
    bare = times["session.run"]
    rows = [
        {
            "call": name,
            "mean_us": statistics.median(taken),
            "overhead_us": statistics.median(mine - other for mine, other in zip(taken, bare, strict=True)),
        }
        for name, taken in times.items()
    ]
    result = Result(
        f"Executor overhead per request, digits ({route}, {loaded} routes loaded)",
        ("call", "per request", "over session.run"),
        [(str(row["call"]), f"{row['mean_us']:.1f} us", f"{row['overhead_us']:.1f} us") for row in rows],
        rows,
    )
    overhead = statistics.median(mine - other for mine, other in zip(times["Executor.run"], bare, strict=True))
    result.floors.append(
        Floor("executor overhead per request (Python)", "bare session.run", f"<= {FLOOR_US} us", f"{overhead:.1f} us", overhead <= FLOOR_US)
    )
    publish(result, args, started)


if __name__ == "__main__":
    main()
