"""Claim: compiling a family costs a fraction of a second a route, once; then all its routes start sooner than two plain sessions load.

    python benchmarks/compile_cost.py [--family resnet18-50 deit-ti-s deit-ti-s-b] [--json FILE]

Compiles every route of a family in a worker, into an empty cache: wall and processor time a route, the worker's largest anonymous
and resident memory, and the cache beside weights.bin. Then, in turns in one process whose imports are done, three times: a start from
that cache (open the bundle, check, load every route) and plain ONNX Runtime sessions of the anchors alone; the medians, and their ratio.
"""

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from families import FAMILIES, family

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.machine import describe_machine
from restnet_runtime.sessions import SessionSettings, load_session, plain_session
from restnet_runtime.tables import table

SETTINGS = SessionSettings()


class Watch:
    """Samples the memory of a compiler's worker until it is told to stop."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler, self._done = compiler, threading.Event()
        self.anonymous_bytes = self.resident_bytes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.005):
            worker = self._compiler.worker
            try:
                lines = Path(f"/proc/{worker.pid if worker else None}/status").read_text().splitlines()
            except OSError:
                continue
            fields = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")}
            self.anonymous_bytes = max(self.anonymous_bytes, int(fields.get("RssAnon", 0)) * 1024)
            self.resident_bytes = max(self.resident_bytes, int(fields.get("VmHWM", 0)) * 1024)


def processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compile_all(bundle: Bundle, root: Path) -> dict[str, float]:
    compiler = Compiler.for_bundle(bundle, root, apart=True)
    watch = Watch(compiler)
    started, before = time.perf_counter(), processor_s()
    for route in bundle.routes:
        compiler.compile(route)
    wall_s = time.perf_counter() - started
    watch.stop()
    compiler.close()  # a child's processor time is known once it has ended
    (weights,) = compiler.cache.path.glob("weights-*.bin")
    return {
        "wall_s": wall_s,
        "processor_s": processor_s() - before,
        "worker_anonymous_bytes": watch.anonymous_bytes,
        "worker_resident_bytes": watch.resident_bytes,
        "cache_bytes": compiler.cache.shelf.used_bytes(),
        "cache_weights_bytes": weights.stat().st_size,
    }


def start_s(path: Path, root: Path) -> float:
    started = time.perf_counter()
    bundle = open_bundle(path, weights_later=True)
    compiler = Compiler.for_bundle(bundle, root)
    sessions = [load_session(compiler.compile(route), SETTINGS) for route in bundle.routes]
    took = time.perf_counter() - started
    assert len(sessions) == len(bundle.routes)
    return took


def anchors_s(bundle: Bundle) -> float:
    anchors = [bundle.route(anchor.name) for anchor in bundle.manifest.anchors]
    started = time.perf_counter()
    sessions = [plain_session(bundle, route, SETTINGS) for route in anchors]
    took = time.perf_counter() - started
    assert len(sessions) == len(anchors)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=sorted(FAMILIES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.family:
        bundle = family(name)
        root = Path(tempfile.mkdtemp(dir=bundle.path.parent, prefix="compile-cost-"))
        try:
            row = compile_all(bundle, root)
            start_s(bundle.path, root), anchors_s(bundle)  # imports and page cache
            pairs = [(start_s(bundle.path, root), anchors_s(bundle)) for _ in range(3)]
        finally:
            shutil.rmtree(root)
        start, anchors = (statistics.median(times) for times in zip(*pairs, strict=True))
        weights_bytes = bundle.weights.stat().st_size
        rows.append(
            {
                "family": name,
                "routes": len(bundle.routes),
                **row,
                "weights_bytes": weights_bytes,
                "start_s": start,
                "plain_anchors_s": anchors,
            }
        )
    print(
        table(
            (
                "family",
                "routes",
                "a route",
                "processor",
                "worker anonymous",
                "resident",
                "cache",
                "weights.bin",
                "start",
                "plain anchors",
                "ratio",
            ),
            (
                (
                    row["family"],
                    str(row["routes"]),
                    f"{row['wall_s'] / row['routes']:.2f} s",
                    f"{row['processor_s'] / row['routes']:.2f} s",
                    f"{row['worker_anonymous_bytes'] / 1e6:.0f} MB",
                    f"{row['worker_resident_bytes'] / 1e6:.0f} MB",
                    f"{row['cache_bytes'] / 1e6:.0f} MB",
                    f"{row['weights_bytes'] / 1e6:.0f} MB",
                    f"{row['start_s']:.3f} s",
                    f"{row['plain_anchors_s']:.3f} s",
                    f"{row['start_s'] / row['plain_anchors_s']:.2f}",
                )
                for row in rows
            ),
        )
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
