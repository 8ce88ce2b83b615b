"""Claim: what a route that is not running would take is predicted within 20 % (median), while other work comes and goes.

    python benchmarks/prediction.py [--family digits deit-ti-s resnet18-50] [--rounds 12] [--threads N ...] [--json FILE]

One process has a family loaded and puts its profiles right as a server does in its first minutes (`--as-loaded`: does not). It serves one
route at a time, in a loop, for a second; the other routes do not run. Then it reads its sensors as the controller does, predicts what
another route takes (its profile times the slowdown that the served one shows), and at once measures that other route. The error is
|predicted / measured - 1|. Phases follow one another in one process, so the first rounds of each are those in which the load has just
changed: no neighbour, one that only counts, two, one, none, and a CPU quota where a cgroup is writable. Which route is served changes
from round to round. `unscaled` is the same with the profile alone. Then the served route itself is measured once more: as far as what it
takes now differs from what it took a second ago, the load has changed meanwhile, and no prediction can be better.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from common import CACHE, Child, Floor, Result, arguments, compile_all, neighbours, noise, publish, quantile, timed_ms
from families import FAMILIES, family
from thread_count import quota

if TYPE_CHECKING:
    from restnet_runtime.executor import Executor
    from restnet_runtime.reading import Reading
    from restnet_runtime.sensors import Sensors

FLOOR = 0.20
SERVE_S, MEASURE_S = 1.0, 0.7
LOOKS = 100
"""Of a server, for each route, until its profiles are put right: in them it times routes again, as `refinement.py` says."""
PHASES: tuple[tuple[str, int, float | None], ...] = (
    ("quiet", 0, None),
    ("1 busy neighbour", 1, None),
    ("2 busy neighbours", 2, None),
    ("1 again", 1, None),
    ("quiet again", 0, None),
    ("quota of 1.5 cores", 0, 1.5),
    ("quota of half a core", 0, 0.5),
)
"""Name, neighbours, cores of quota."""


def serve(connection: Connection, path: Path, threads: int, most: int, refined: bool, mixed: bool) -> None:
    """Answers `("rounds", count)` by one row for each: what was predicted, by what, and what was measured."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.executor import Executor
    from restnet_runtime.sensors import Sensors
    from restnet_runtime.served import Served
    from restnet_runtime.sessions import SessionSettings
    from restnet_runtime.threads import affinity_cores

    bundle = open_bundle(path)
    order = sorted(bundle.routes, key=lambda route: route.macs)
    step = max(1, math.ceil(len(order) / most))
    names = [route.name for route in (*order[:-1:step], order[-1])]
    executor = Executor(bundle, Compiler.for_bundle(bundle, CACHE), SessionSettings(threads))
    for index, name in enumerate(names):
        executor.settings = SessionSettings(1 if mixed and index % 2 else threads)
        executor.load(name, warm=True)
    sensors, served, x = Sensors(), Served(affinity_cores()), noise(bundle)
    sensors.read()
    if refined:
        put_right(executor, sensors)
    connection.send(names)
    turn = 0
    while True:
        _, count = connection.recv()
        rows: list[dict[str, Any]] = []
        for _ in range(count):
            # Pairs (served, other) in an order that meets near and far ones alike.
            here, there = names[turn % len(names)], names[(turn * 3 + 1 + turn // len(names)) % len(names)]
            turn += 1
            if here == there:
                there = names[(names.index(there) + len(names) // 2) % len(names)]
            here_profile, profile = executor.profile(here), executor.profile(there)
            assert here_profile is not None
            assert profile is not None
            observed: list[float] = []
            sensors.read()  # from here on
            until = time.monotonic() + SERVE_S
            while time.monotonic() < until:
                latency_ms = timed_ms(lambda: executor.run(x, here))  # noqa: B023
                observed.append(latency_ms)
                served.slowdown.observe(latency_ms / here_profile.latency_ms, here_profile.threads)
            value = served.slowdown.tick()
            reading = served.complete(replace(sensors.read(), slowdown=value), time.monotonic())
            slowdowns = reading.slowdown_by_threads or {}
            measured: dict[str, list[float]] = {there: [], here: []}
            for route, times in measured.items():
                until = time.monotonic() + MEASURE_S
                while time.monotonic() < until or len(times) < 3:
                    times.append(timed_ms(lambda: executor.run(x, route)))  # noqa: B023
            rows.append(
                {
                    "served": here,
                    "served_profile_ms": here_profile.latency_ms,
                    "served_ms": quantile(observed, 0.5),
                    "served_threads": here_profile.threads,
                    "other": there,
                    "threads": profile.threads,
                    "profile_ms": profile.latency_ms,
                    "predicted_ms": profile.latency_ms * slowdowns.get(profile.threads, 1.0),
                    "measured_ms": quantile(measured[there], 0.5),
                    "served_again_ms": quantile(measured[here], 0.5),
                    "served_predicted_ms": here_profile.latency_ms * (value or 1.0),
                    "slowdown": value,
                    "others_cpu_cores": reading.others_cpu_cores,
                    "waiting_share": reading.waiting_share,
                    "quota_throttled_share": reading.quota_throttled_share,
                    "quota_stopped_cores": reading.quota_stopped_cores,
                    "cpu_quota_cores": reading.cpu_quota_cores,
                }
            )
        connection.send(rows)


def put_right(executor: "Executor", sensors: "Sensors") -> None:
    """Look as often as a server does in its first minutes, but without pauses; the device is read once a second."""
    from restnet_runtime.refinement import Refiner
    from restnet_runtime.threads import affinity_cores

    time.sleep(1)
    reading, at_s = sensors.read(), time.monotonic()

    def look() -> "Reading":
        nonlocal reading, at_s
        if time.monotonic() - at_s > 1:
            reading, at_s = sensors.read(), time.monotonic()
        return reading

    refiner = Refiner(executor, look, affinity_cores())
    for _ in range(len(executor.loaded) * LOOKS):
        refiner.step()


def errors(rows: list[dict[str, Any]], what: str, measured: str = "measured_ms") -> list[float]:
    return [abs(row[what] / row[measured] - 1) for row in rows]


def summary(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """The figures of one line of the table."""
    scaled = errors(rows, "predicted_ms")
    return (
        f"{median(row['measured_ms'] / row['profile_ms'] for row in rows):.2f}",
        f"{median(scaled):.0%}",
        f"{quantile(scaled, 0.9):.0%}",
        f"{median(errors(rows, 'profile_ms')):.0%}",
        f"{median(errors(rows, 'served_predicted_ms', 'served_again_ms')):.0%}",
    )


@contextmanager
def phase(pid: int, busy: int, cores: float | None) -> Iterator[None]:
    with quota(pid, cores), neighbours(busy):
        time.sleep(0.3)
        yield


def measure(name: str, threads: int, args: argparse.Namespace, result: Result) -> list[dict[str, Any]]:
    """Every phase with one family; the rows of all of them."""
    bundle = family(name)
    compile_all(bundle.path)
    found: list[dict[str, Any]] = []
    with Child(serve, bundle.path, threads, args.routes, not args.as_loaded, args.mixed) as child:
        child.receive()
        for what, busy, cores in PHASES:
            try:
                with phase(child.process.pid or 0, busy, cores):
                    rows = child.ask("rounds", args.rounds)
            except OSError as error:
                result.notes.append(f"{name}, {what}: not measured, no cgroup can be made here ({error.strerror})")
                continue
            print(f"{name}, {threads} threads, {what}: {len(rows)} predictions", file=sys.stderr)
            found += [{"family": name, "phase": what, "of_threads": threads, **row} for row in rows]
            title = f"{name}, {'1 or ' if args.mixed else ''}{threads} thread{'s' if threads > 1 else ''}"
            result.cells.append((title, what, *summary(rows)))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted([*FAMILIES, "digits"]), default=["digits", "deit-ti-s", "resnet18-50"])
    parser.add_argument("--rounds", type=int, default=12, help="in each phase (%(default)s)")
    parser.add_argument("--routes", type=int, default=8, help="about so many routes take part (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))], help="of a request (%(default)s)")
    parser.add_argument("--as-loaded", action="store_true", help="with the profiles as they are after loading, not put right afterwards")
    parser.add_argument("--mixed", action="store_true", help="every second route runs on one thread")
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        "Predicted latency of routes that are not running",
        ("family", "phase", "measured / profile", "error, median", "90th percentile", "unscaled, median", "served route itself, median"),
    )
    for name in args.family:
        for threads in args.threads:
            result.rows += measure(name, threads, args, result)
    every = errors(result.rows, "predicted_ms")
    by_phase = {
        (row["family"], row["of_threads"], row["phase"]): [other for other in result.rows if _group(other) == _group(row)]
        for row in result.rows
    }
    worst = max(median(errors(rows, "predicted_ms")) for rows in by_phase.values())
    figure = median(every)
    result.floors.append(
        Floor("error of predicted latency, median", "measured right after", f"<= {FLOOR:.0%}", f"{figure:.1%}", figure <= FLOOR)
    )
    result.notes.append(
        f"over all {len(every)} predictions: 90th percentile of the error {quantile(every, 0.9):.0%}; its median in the worst phase "
        f"{worst:.0%}; of the served route itself {median(errors(result.rows, 'served_predicted_ms', 'served_again_ms')):.0%}"
    )
    publish(result, args, started)


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["family"], row["of_threads"], row["phase"]


if __name__ == "__main__":
    main()
