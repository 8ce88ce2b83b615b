"""Claim: one look at the device costs under 2 ms, and at one a second under 0.5 % of one core.

    python benchmarks/sensing.py [--family deit-ti-s] [--reads 300] [--seconds 30] [--json FILE]

`Sensors.read` and `Controller.tick`, which also completes the reading and decides, in a process that has every route of a family loaded,
because reading how long threads wait takes a file for each thread. Times of one tick are of the processor (its own work) and
by the clock, which other processes lengthen. Then the same process ticks once a second with nothing else to do, and what its
processor time grows by is compared with the same while it only sleeps.
"""

import time
from multiprocessing.connection import Connection
from pathlib import Path

from common import Child, Floor, Result, arguments, compile_all, load_all, noise, publish, quantile
from families import FAMILIES, family

TICK_MS, SHARE = 2.0, 0.005


def serve(connection: Connection, path: Path) -> None:
    """`("reads", count)`: milliseconds (processor, clock) of two calls; `("ticking", seconds)`, `("idle", seconds)`: share of a core."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.controller import Controller
    from restnet_runtime.sensors import Sensors
    from restnet_runtime.threads import affinity_cores

    bundle = open_bundle(path)
    executor = load_all(bundle, affinity_cores())
    sensors = Sensors()
    controller = Controller(executor, sensors)
    controller.tick()
    for _ in range(20):
        controller.observe(executor.loaded[0], executor.run(noise(bundle), executor.loaded[0]).latency_ms)
    threads = len(list(Path("/proc/self/task").iterdir()))
    connection.send((len(executor.loaded), threads))
    while True:
        what, amount = connection.recv()
        if what == "reads":
            times: dict[str, list[tuple[float, float]]] = {"Sensors.read": [], "Controller.tick": []}
            for _ in range(amount):
                for name, call in (("Sensors.read", sensors.read), ("Controller.tick", controller.tick)):
                    cpu, clock = time.process_time(), time.perf_counter()
                    call()
                    times[name].append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3))
                    time.sleep(0.01)
            connection.send(times)
            continue
        if what == "ticking":
            controller.start()
        cpu, clock = time.process_time(), time.monotonic()
        time.sleep(amount)
        share = (time.process_time() - cpu) / (time.monotonic() - clock)
        controller.stop()
        connection.send(share)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", choices=sorted([*FAMILIES, "digits"]), default="deit-ti-s")
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    started = time.monotonic()
    bundle = family(args.family)
    compile_all(bundle.path)
    with Child(serve, bundle.path) as child:
        routes, threads = child.receive()
        times = child.ask("reads", args.reads)
        idle, ticking = child.ask("idle", args.seconds), child.ask("ticking", args.seconds)
    result = Result(
        f"What looking at the device costs, {args.family} ({routes} routes loaded, {threads} threads)",
        ("call", "processor, median", "p99", "clock, median", "p99"),
    )
    for name, pairs in times.items():
        cpu, clock = [one for one, _ in pairs], [one for _, one in pairs]
        row = {
            "call": name,
            "cpu_ms": quantile(cpu, 0.5),
            "cpu_p99_ms": quantile(cpu, 0.99),
            "clock_ms": quantile(clock, 0.5),
            "clock_p99_ms": quantile(clock, 0.99),
        }
        result.rows.append(row)
        result.cells.append((name, *(f"{row[key]:.2f} ms" for key in ("cpu_ms", "cpu_p99_ms", "clock_ms", "clock_p99_ms"))))
    tick = result.rows[1]["cpu_ms"]
    share = ticking - idle
    result.floors += [
        Floor("one tick of the controller (processor time, median)", "-", f"< {TICK_MS:g} ms", f"{tick:.2f} ms", tick < TICK_MS),
        Floor("ticks once a second, of one core", "the same process asleep", f"< {SHARE:.1%}", f"{share:.2%}", share < SHARE),
    ]
    result.rows.append({"idle_share": idle, "ticking_share": ticking})
    publish(result, args, started)


if __name__ == "__main__":
    main()
