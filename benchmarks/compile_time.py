"""What compiling costs once per device: seconds per route from a cold cache, and the cache's size beside weights.bin.

    python benchmarks/compile_time.py [--family resnet18-50 deit-ti-s] [--json FILE]        (deit-ti-s-b has 71 routes)

The peer is what a user pays at every start instead: loading a plain ONNX Runtime session of the same route. CPU time beside
wall time, because compiling waits for the disk too.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, Result, arguments, in_child, publish, timed_ms
from families import FAMILIES, QUICK, family

from restnet_runtime.manifest import WEIGHTS_FILE

PLAIN_ROUTES = 5


def compile_cold(path: Path, cache: Path) -> dict[str, Any]:
    from restnet_runtime import compose  # noqa: F401  # its import is no route's cost
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.executor import preparation_order
    from restnet_runtime.sessions import SessionSettings, plain_session

    bundle = open_bundle(path)
    compiler = Compiler.for_bundle(bundle, cache)
    cpu = time.process_time()
    times = [timed_ms(lambda: compiler.compile(bundle.route(name))) / 1e3 for name in preparation_order(bundle)]  # noqa: B023
    cpu = time.process_time() - cpu
    plain = [
        timed_ms(lambda: plain_session(bundle, route, SessionSettings())) / 1e3  # noqa: B023
        for route in bundle.routes[:: max(1, len(bundle.routes) // PLAIN_ROUTES)]
    ]
    files = {file: file.stat().st_size for file in cache.rglob("*") if file.is_file()}
    weights = bundle.manifest.files[WEIGHTS_FILE].bytes
    return {
        "family": path.name,
        "routes": len(bundle.routes),
        "total_s": sum(times),
        "route_s": statistics.median(times),
        "slowest_s": max(times),
        "first_s": times[0],
        "last_s": times[-1],
        "cpu_s": cpu,
        "plain_load_s": statistics.median(plain),
        "cache_bytes": sum(files.values()),
        "graphs_bytes": sum(size for file, size in files.items() if file.suffix == ".onnx"),
        "weights_bytes": weights,
        "cache_over_weights": sum(files.values()) / weights,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        "Compiling all routes, cold cache",
        ("family", "routes", "all", "CPU", "a route", "first", "last", "slowest", "plain load", "cache", "of weights.bin", "graphs"),
    )
    for name in args.family:
        bundle = family(name)
        cache = Path(tempfile.mkdtemp(prefix="cold-", dir=ROOT))
        try:
            row = in_child(compile_cold, bundle.path, cache)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        result.rows.append(row)
        taken = (f"{row[key]:.2f} s" for key in ("total_s", "cpu_s", "route_s", "first_s", "last_s", "slowest_s", "plain_load_s"))
        sizes = (f"{row['cache_bytes'] / 1e6:.0f} MB", f"{row['cache_over_weights']:.2f}x", f"{row['graphs_bytes'] / 1e6:.1f} MB")
        result.cells.append((name, str(row["routes"]), *taken, *sizes))
    publish(result, args, started)


if __name__ == "__main__":
    main()
