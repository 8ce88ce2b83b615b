"""Claim: all routes of a family at once cost about the price of its weights.

    python benchmarks/route_memory.py [--family resnet18-50 deit-ti-s] [--json FILE]

Proportional set size (PSS) of a process with all routes loaded and each run once, above that of the same process before the first
was loaded; and the same with one plain ONNX Runtime session per route, in a process of its own. Smaller of the two allowances:
weights.bin x 1.05 + 20 MB + 3 MB per route. Anonymous memory, which the kernel cannot take back, beside it. And the whole process
beside what the loader reckons with when it keeps a memory limit: the process without routes, as weighed when the first was loaded, and
what all routes need together, as an earlier start measured it.
"""

import time
from pathlib import Path

from common import Floor, Result, arguments, compile_all, in_child, load_all, noise, publish
from families import FAMILIES, QUICK, family

from restnet_runtime.manifest import WEIGHTS_FILE

OVER_WEIGHTS, FIXED_BYTES, ROUTE_BYTES = 1.05, 20e6, 3e6


def measure_once(path: Path, threads: int) -> None:
    """What a first start does, so that the next one finds every route measured."""
    from restnet_runtime.bundle import open_bundle

    load_all(open_bundle(path), threads)


def ours(path: Path, threads: int) -> tuple[int, int, int, int]:
    """Growth in PSS, and of it anonymous memory; PSS of the process, and what was predicted for it before all routes had run."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.memory import footprint
    from restnet_runtime.residency import together
    from restnet_runtime.sessions import SessionSettings  # noqa: F401  # imported before, so that libraries count as idle

    bundle = open_bundle(path)
    x = noise(bundle)
    idle = footprint()
    executor = load_all(bundle, threads)
    predicted = executor.overhead_bytes + together(executor.need(name) for name in executor.loaded)
    for name in executor.loaded:
        executor.run(x, name)
    full = footprint()
    return full.pss_bytes - idle.pss_bytes, full.anonymous_bytes - idle.anonymous_bytes, full.pss_bytes, predicted


def plain(path: Path, threads: int) -> tuple[int, int]:
    from restnet_runtime import compose  # noqa: F401  # as above
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.memory import footprint
    from restnet_runtime.sessions import SessionSettings, plain_session

    bundle = open_bundle(path)
    x = noise(bundle)
    idle = footprint()
    sessions = []
    for route in bundle.routes:
        sessions.append(plain_session(bundle, route, SessionSettings(threads)))
        sessions[-1].run(["y"], {"x": x})
    full = footprint()
    return full.pss_bytes - idle.pss_bytes, full.anonymous_bytes - idle.anonymous_bytes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        "Memory (PSS) of all routes, loaded and run once, above the idle process",
        (
            "family",
            "routes",
            "weights.bin",
            "ours",
            "of it anonymous",
            "allowance",
            "plain sessions",
            "plain / ours",
            "whole process",
            "predicted",
            "measured / predicted",
        ),
    )
    for name in args.family:
        bundle = family(name)
        in_child(compile_all, bundle.path)  # compiling takes memory that loading does not
        in_child(measure_once, bundle.path, args.threads)
        mine, mine_anonymous, whole, predicted = in_child(ours, bundle.path, args.threads)
        theirs, _ = in_child(plain, bundle.path, args.threads)
        weights = bundle.manifest.files[WEIGHTS_FILE].bytes
        allowance = weights * OVER_WEIGHTS + FIXED_BYTES + ROUTE_BYTES * len(bundle.routes)
        row = {
            "family": name,
            "routes": len(bundle.routes),
            "weights_bytes": weights,
            "pss_bytes": mine,
            "anonymous_bytes": mine_anonymous,
            "allowance_bytes": allowance,
            "plain_pss_bytes": theirs,
            "factor": theirs / mine,
            "process_pss_bytes": whole,
            "predicted_bytes": predicted,
            "predicted_ratio": whole / predicted,
        }
        result.rows.append(row)
        sizes = (f"{size / 1e6:.0f} MB" for size in (weights, mine, mine_anonymous, allowance, theirs))
        process = (f"{whole / 1e6:.0f} MB", f"{predicted / 1e6:.0f} MB", f"{whole / predicted:.2f}")
        result.cells.append((name, str(len(bundle.routes)), *sizes, f"{theirs / mine:.1f}x", *process))
        result.floors.append(
            Floor(
                f"memory, all {len(bundle.routes)} routes of {name} loaded and run once (PSS)",
                f"weights.bin; plain sessions take {theirs / 1e6:.0f} MB, {theirs / mine:.1f}x as much",
                f"<= {allowance / 1e6:.0f} MB (1.05 x {weights / 1e6:.0f} + 20 + 3 per route)",
                f"{mine / 1e6:.0f} MB",
                mine <= allowance,
            )
        )
    publish(result, args, started)


if __name__ == "__main__":
    main()
