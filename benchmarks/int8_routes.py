"""Claim: a resident int8 route costs its bookkeeping, and runs like a plain ONNX Runtime session of the same int8 graph.

    python benchmarks/int8_routes.py BUNDLE [--without-tiles] [--runs 60] [--json FILE]

BUNDLE has int8 routes (`restnet-export --precision fp32 int8`). For each choice of quantised filters that sessions share
(`precision.shared_filters`): none, those that are no larger than a point, the others, all. Memory is what each int8 route after the
first adds to a process (PSS, median), loaded and run twice. Time is processor time of one thread, compiled and plain in turns, so that
a busy machine disturbs it least; quartiles of the largest int8 route and of a stitched one. Outputs are compared first, bit for bit.

--without-tiles: as on a processor whose dot products come without tiles (AMX): the process asks the kernel to refuse them, x86 only
"""

import ctypes
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Floor, Result, arguments, in_child, noise, publish

CHOICES: dict[str, tuple[str, ...]] = {
    "none": (),
    "pointwise": ("pointwise",),
    "spatial": ("spatial",),
    "all": ("pointwise", "spatial", "depthwise"),
}
_ARCH_PRCTL, _ASK_FOR_TILES = 158, 0x1023
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


def refuse_tiles() -> None:
    """Let the kernel refuse this process what it needs for AMX, as if the processor had none. Linux on x86-64."""

    def line(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    program = b"".join(
        [
            line(0x20, 0, 0, 0),  # the number of the system call
            line(0x15, 0, 3, _ARCH_PRCTL),
            line(0x20, 0, 0, 16),  # its first argument
            line(0x15, 0, 1, _ASK_FOR_TILES),
            line(0x06, 0, 0, 0x00050001),  # EPERM
            line(0x06, 0, 0, 0x7FFF0000),  # allowed
        ]
    )
    lines = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    whole = Program(len(program) // 8, ctypes.cast(lines, ctypes.c_void_p))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0):
        raise SystemExit("this system does not let a process do without tiles")


def compiled_by(path: Path, cache: Path, filters: tuple[str, ...]) -> Any:
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler

    return Compiler.for_bundle(open_bundle(path), cache, filters=filters)  # type: ignore[arg-type]


def prepare(path: Path, cache: Path, filters: tuple[str, ...], tiles: bool) -> None:
    """Compile and measure every int8 route, as a first start does."""
    if not tiles:
        refuse_tiles()
    from restnet_runtime.executor import Executor
    from restnet_runtime.sessions import SessionSettings

    compiler = compiled_by(path, cache, filters)
    executor = Executor(compiler.bundle, compiler, SessionSettings(1))
    for route in compiler.bundle.routes:
        if route.precision == "int8":
            executor.load(route.name)


def added_bytes(path: Path, cache: Path, filters: tuple[str, ...], tiles: bool) -> list[int]:
    """What each int8 route adds to the process, the largest first."""
    if not tiles:
        refuse_tiles()
    from restnet_runtime.executor import Executor
    from restnet_runtime.memory import footprint
    from restnet_runtime.sessions import SessionSettings

    compiler = compiled_by(path, cache, filters)
    executor = Executor(compiler.bundle, compiler, SessionSettings(1))
    x, added, before = noise(compiler.bundle), [], footprint().pss_bytes
    for route in sorted(compiler.bundle.routes, key=lambda route: -route.weight_bytes):
        if route.precision == "int8":
            executor.load(route.name)
            for _ in range(2):
                executor.run(x, route.name)
            now = footprint().pss_bytes
            added.append(now - before)
            before = now
    return added


def processor_ms(path: Path, cache: Path, filters: tuple[str, ...], tiles: bool, runs: int) -> list[tuple[str, float, float]]:
    """Route, and the lower quartile of processor milliseconds of the compiled and the plain session."""
    if not tiles:
        refuse_tiles()
    import numpy as np

    from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

    compiler = compiled_by(path, cache, filters)
    bundle, settings = compiler.bundle, SessionSettings(1)
    x, found = noise(bundle), []
    int8 = sorted((route for route in bundle.routes if route.precision == "int8"), key=lambda route: -route.weight_bytes)
    for route in [*int8[:1], *[route for route in int8 if ">" in route.name][-1:], *int8[-1:]]:
        sessions = [load_session(compiler.compile(route), settings), plain_session(bundle, route, settings)]
        ours, plain = (infer(session, x) for session in sessions)
        if not np.array_equal(ours, plain):
            raise SystemExit(f"{route.name}: outputs differ")
        times: tuple[list[float], list[float]] = ([], [])
        for index in range(runs):
            for one in (0, 1) if index % 2 else (1, 0):
                started = time.process_time()
                infer(sessions[one], x)
                times[one].append((time.process_time() - started) * 1e3)
        quartiles = [statistics.quantiles(taken, n=4)[0] for taken in times]
        found.append((route.name, quartiles[0], quartiles[1]))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--without-tiles", action="store_true")
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    started, tiles = time.monotonic(), not args.without_tiles
    result = Result(
        "Resident int8 routes by what their sessions share" + ("" if tiles else ", without tiles"),
        ("shared filters", "route", "a route more adds", "compiled", "plain", "ratio"),
    )
    for choice, filters in CHOICES.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            in_child(prepare, args.bundle, cache, filters, tiles)
            more = statistics.median(in_child(added_bytes, args.bundle, cache, filters, tiles)[1:] or [0])
            for name, ours, plain in in_child(processor_ms, args.bundle, cache, filters, tiles, args.runs):
                result.rows.append({"shared": choice, "route": name, "added_bytes": more, "ms": ours, "plain_ms": plain})
                figures = (f"{more / 1e6:.1f} MB", f"{ours:.2f} ms", f"{plain:.2f} ms", f"{ours / plain:.3f}")
                result.cells.append((choice, name, *figures))
    worst = max(row["ms"] / row["plain_ms"] for row in result.rows if row["shared"] == ("spatial" if tiles else "none"))
    what = "latency of an int8 route, filters shared that cost nothing"
    result.floors.append(Floor(what, "plain session", "<= 1.02x", f"worst {worst:.3f}", worst <= 1.02))
    publish(result, args, started)


if __name__ == "__main__":
    main()
