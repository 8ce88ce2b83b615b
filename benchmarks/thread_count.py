"""Claim: the number of threads that is chosen from quota and load is the better one, and under a CPU quota of half a core the p99 is
not worse than single-threaded. See docs/decisions/0004-threads.md.

    python benchmarks/thread_count.py [--family resnet18-50] [--route resnet18] [--seconds 12] [--json FILE]

For each situation (an idle machine, neighbours that only count, CPU quotas in a cgroup of their own) one process loads the route
with one thread and with one per core; both take turns of half a second, long enough to meet the quota's periods. What is
chosen is `choose_threads` on the readings of the turns with that number of threads in force: both should choose alike, because what is read
depends on what we take. Quotas are skipped where no cgroup is writable.
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from common import CACHE, Child, Floor, Result, arguments, check_same, neighbours, noise, publish, quantile, timed_ms
from families import FAMILIES, family

if TYPE_CHECKING:
    from restnet_runtime.reading import Reading

TURN_S = 0.5
PLAIN = 0
"""Stands for a plain single-threaded session, which takes turns with ours."""
SCATTER = 1.05
"""The p99 of a few hundred runs repeats within so much."""
SITUATIONS: dict[str, tuple[int, bool, float | None]] = {
    "idle": (0, False, None),
    "1 busy neighbour": (1, False, None),
    "2 busy neighbours": (2, False, None),
    "2 of other sessions": (2, True, None),
    "quota 0.5": (0, False, 0.5),
    "quota 1.5": (0, False, 1.5),
}
"""Neighbours, whether each is of a session of its own, which Linux's autogroups give a share as a whole, and cores of quota."""


def serve(connection: Connection, path: Path, route: str) -> None:
    """Answers `("run", seconds)` by milliseconds of each run, what others would take, and what would be chosen, per number of threads."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.contention import demand_cores
    from restnet_runtime.sensors import Sensors
    from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
    from restnet_runtime.threads import affinity_cores, choose_threads

    bundle = open_bundle(path)
    compiled = Compiler.for_bundle(bundle, CACHE).compile(bundle.route(route))
    counts = sorted({1, affinity_cores()})
    sessions = {count: load_session(compiled, SessionSettings(count)) for count in counts}
    sessions[PLAIN] = plain_session(bundle, bundle.route(route), SessionSettings(1))
    x = noise(bundle)
    expected = infer(sessions[PLAIN], x)
    for count, session in sessions.items():
        check_same(f"{route} on {count or 'a plain session of 1'} threads", infer(session, x), expected)
    connection.send("ready")
    while True:
        _, seconds = connection.recv()
        readings: dict[int, list[Reading]] = {count: [] for count in sessions}
        times: dict[int, list[float]] = {count: [] for count in sessions}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for count, session in sessions.items():
                time.sleep(0.02)
                sensors = Sensors()
                until = time.monotonic() + TURN_S
                while time.monotonic() < until:
                    times[count].append(timed_ms(lambda: infer(session, x)))  # noqa: B023
                readings[count].append(sensors.read())
        means = {count: mean(readings[count]) for count in counts}
        others = {count: demand_cores(one.others_cpu_cores or 0.0, one.waiting_share, 1.0) for count, one in means.items()}
        connection.send((times, others, {count: choose_threads(affinity_cores(), one, 1.0, count) for count, one in means.items()}))


def mean(readings: list["Reading"]) -> "Reading":
    """Of what others take and of our waiting; the rest as read last."""
    others = [one.others_cpu_cores or 0.0 for one in readings]
    waiting = [one.waiting_share or 0.0 for one in readings]
    return replace(readings[-1], others_cpu_cores=statistics.mean(others), waiting_share=statistics.mean(waiting))


@contextmanager
def quota(pid: int, cores: float | None) -> Iterator[None]:
    """Hold a process to a CPU quota. Raises `OSError` where no cgroup of ours can be made."""
    if cores is None:
        yield
        return
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root = Path("/sys/fs/cgroup") if v2 else Path("/sys/fs/cgroup/cpu")
    group = root / f"restnet-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        if v2:
            (group / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="resnet18-50")
    parser.add_argument("--route", default="resnet18")
    parser.add_argument("--seconds", type=float, default=12, help="for each situation (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    bundle = family(args.family)
    bundle.route(args.route)
    result = Result(
        f"{args.route}: one thread, one a core, and what is chosen",
        (
            "situation",
            "1 thread, median",
            "p99",
            "a core each, median",
            "p99",
            "others would take",
            "chosen",
            "its median / best",
            "its p99 / plain, 1 thread",
        ),
    )
    for situation, (count, apart, cores) in SITUATIONS.items():
        with Child(serve, bundle.path, args.route) as child:
            child.receive()
            try:
                with quota(child.process.pid or 0, cores), neighbours(count, apart):
                    time.sleep(0.3)
                    times, others, choices = child.ask("run", args.seconds)
            except OSError as error:
                result.notes.append(f"{situation}: not measured, no cgroup can be made here ({error.strerror})")
                continue
        plain_p99 = quantile(times.pop(PLAIN), 0.99)
        median = {number: quantile(values, 0.5) for number, values in times.items()}
        p99 = {number: quantile(values, 0.99) for number, values in times.items()}
        # Where the number in force decides, the worse of both.
        chosen = max((min(choice, max(times)) for choice in choices.values()), key=lambda number: p99[number])
        row = {
            "situation": situation,
            "median_ms": median,
            "p99_ms": p99,
            "others_cores": others,
            "choices": choices,
            "chosen": chosen,
            "median_ratio": median[chosen] / min(median.values()),
            "p99_ratio": p99[chosen] / plain_p99,
        }
        result.rows.append(row)
        most = max(times)
        result.cells.append(
            (
                situation,
                *(f"{value:.1f} ms" for value in (median[1], p99[1], median[most], p99[most])),
                " / ".join(f"{number:.1f}" for number in others.values()),
                " / ".join(dict.fromkeys(map(str, choices.values()))),
                f"{row['median_ratio']:.2f}",
                f"{row['p99_ratio']:.2f}",
            )
        )
        if situation == "quota 0.5":
            result.floors.append(
                Floor(
                    "p99 under a quota of half a core",
                    "plain session of one thread",
                    "not worse (5 % of scatter)",
                    f"{row['p99_ratio']:.2f}x",
                    row["p99_ratio"] <= SCATTER,
                )
            )
    publish(result, args, started)


if __name__ == "__main__":
    main()
