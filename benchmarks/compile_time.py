"""What compiling costs once per device: seconds per route from a cold cache, the memory of the process that compiles, and the
cache's size beside weights.bin.

    python benchmarks/compile_time.py [--family resnet18-50 deit-ti-s] [--json FILE]        (deit-ti-s-b has 71 routes)

Compiled as a server does it, in a worker. The peer is what a user pays at every start instead: loading a plain ONNX Runtime session
of the same route. Processor time beside wall time, because compiling waits for the disk too. The cache links the bundle's weights
where it can; its size is what it takes beside them.
"""

import resource
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import ROOT, Result, arguments, in_child, publish, timed_ms
from families import FAMILIES, QUICK, family

PLAIN_ROUTES = 5


class Watch:
    """Samples the memory of a compiler's worker until it is told to stop."""

    def __init__(self, compiler: Any) -> None:
        self._compiler, self._done = compiler, threading.Event()
        self.anonymous_bytes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        from restnet_runtime.memory import resident

        while not self._done.wait(0.005):
            worker = self._compiler.worker
            counted = resident(pid=worker.pid) if worker is not None and worker.pid is not None else None
            self.anonymous_bytes = max(self.anonymous_bytes, counted.anonymous_bytes if counted else 0)


def compile_cold(path: Path, cache: Path) -> dict[str, Any]:
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.executor import preparation_order
    from restnet_runtime.sessions import SessionSettings, joined_graph, plain_session

    bundle = open_bundle(path)
    compiler = Compiler.for_bundle(bundle, cache, apart=True)
    watch = Watch(compiler)
    times = [timed_ms(lambda: compiler.compile(bundle.route(name))) / 1e3 for name in preparation_order(bundle)]  # noqa: B023
    watch.stop()
    compiler.close()  # a child's processor time is known once it has ended
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    plain = []
    for route in bundle.routes[:: max(1, len(bundle.routes) // PLAIN_ROUTES)]:
        joined = joined_graph(bundle, route)
        plain.append(timed_ms(lambda: plain_session(bundle, route, SessionSettings(), joined)) / 1e3)  # noqa: B023
    graphs = sum(file.stat().st_size for file in cache.rglob("*.onnx"))
    return {
        "family": path.name,
        "routes": len(bundle.routes),
        "total_s": sum(times),
        "route_s": statistics.median(times),
        "slowest_s": max(times),
        "first_s": times[0],
        "cpu_s": used.ru_utime + used.ru_stime,
        "plain_load_s": statistics.median(plain),
        "worker_anonymous_bytes": watch.anonymous_bytes,
        "cache_bytes": compiler.cache.shelf.used_bytes(),
        "graphs_bytes": graphs,
        "cache_over_weights": compiler.cache.shelf.used_bytes() / bundle.weights.stat().st_size,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        "Compiling all routes, cold cache",
        ("family", "routes", "all", "CPU", "a route", "first", "slowest", "plain load", "its memory", "cache", "of weights.bin", "graphs"),
    )
    for name in args.family:
        bundle = family(name)
        cache = Path(tempfile.mkdtemp(prefix="cold-", dir=ROOT))
        try:
            row = in_child(compile_cold, bundle.path, cache)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        result.rows.append(row)
        taken = (f"{row[key]:.2f} s" for key in ("total_s", "cpu_s", "route_s", "first_s", "slowest_s", "plain_load_s"))
        sizes = (
            f"{row['worker_anonymous_bytes'] / 1e6:.0f} MB",
            f"{row['cache_bytes'] / 1e6:.0f} MB",
            f"{row['cache_over_weights']:.2f}x",
            f"{row['graphs_bytes'] / 1e6:.1f} MB",
        )
        result.cells.append((name, str(row["routes"]), *taken, *sizes))
    publish(result, args, started)


if __name__ == "__main__":
    main()
