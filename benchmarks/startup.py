"""Claim: with a warm compiled cache all routes are ready sooner than the two plain anchors are loaded.

    python benchmarks/startup.py [--bundle digits resnet18-50] [--repeats 5] [--json FILE]

Each start is a new process, ours and plain in turns; medians. Ours: `Engine` opened and started, all routes loaded (measured at an
earlier start). Plain: numpy and onnxruntime imported, an ONNX Runtime session of each anchor loaded from its own file. In the column
"and run" every session has run once as well. Both from the start of the process, and from the moment when the imports are done.
Both find Python's bytecode of everything that they import, as after an installation by pip, whatever PYTHONDONTWRITEBYTECODE says.
Before, the anchors are asked once in both ways, and have to answer alike.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import CACHE, ROOT, Floor, Result, arguments, check_same, in_child, noise, plain_file, publish
from families import DIGITS, FAMILIES, family

from restnet_runtime.bundle import Bundle

DIGITS_FLOOR_S = 1.0

OURS = """
import sys, time
from pathlib import Path
from restnet_runtime.engine import Engine
print(time.monotonic())
engine = Engine.open(sys.argv[1], cache_root=Path(sys.argv[2]), threads=int(sys.argv[3]))
engine.start()
engine.wait_ready()
print(time.monotonic())
engine.loader.join()
print(time.monotonic())
while engine.executor.cold:
    time.sleep(0.002)
print(time.monotonic())
progress = engine.loader.progress()
assert progress.loaded == progress.total, progress
engine.stop()
"""
PLAIN = """
import sys, time
import numpy as np
import onnxruntime as ort
print(time.monotonic())
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[1])
sessions = [ort.InferenceSession(file, options, ["CPUExecutionProvider"]) for file in sys.argv[2:]]
print(time.monotonic())
for session in sessions:
    session.run(None, {"x": np.zeros((1, *session.get_inputs()[0].shape[1:]), np.float32)})
print(time.monotonic())
"""


def start(code: str, *args: str) -> list[float]:
    """Seconds from the start of a process to each moment that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(ROOT / "bytecode")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"the started process ended with {done.returncode}: {done.stderr}")
    return [float(line) - began for line in done.stdout.split()]


def same_answers(path: Path, threads: int) -> None:
    """Exits where an anchor, as it is served, answers otherwise than the plain session that is started beside it."""
    import onnxruntime as ort

    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.executor import Executor
    from restnet_runtime.sessions import SessionSettings

    bundle = open_bundle(path)
    executor, x = Executor(bundle, Compiler.for_bundle(bundle, CACHE), SessionSettings(threads)), noise(bundle)
    for anchor in bundle.manifest.anchors:
        executor.load(anchor.name)
        plain = ort.InferenceSession(str(plain_file(bundle, anchor.name)), providers=["CPUExecutionProvider"])
        check_same(anchor.name, executor.run(x, anchor.name).logits, plain.run(None, {"x": x})[0])


def measure(name: str, bundle: Bundle, threads: int, repeats: int) -> dict[str, object]:
    files = [str(plain_file(bundle, anchor.name)) for anchor in bundle.manifest.anchors]
    in_child(same_answers, bundle.path, threads)
    ours, plain = [], []
    start(OURS, str(bundle.path), str(CACHE), str(threads))  # what is missing is compiled and profiled; fills the page cache
    start(PLAIN, str(threads), *files)
    for _ in range(repeats):
        ours.append(start(OURS, str(bundle.path), str(CACHE), str(threads)))
        plain.append(start(PLAIN, str(threads), *files))
    middle = [statistics.median(column) for column in zip(*ours, strict=True)]
    plain_middle = [statistics.median(column) for column in zip(*plain, strict=True)]
    return {
        "bundle": name,
        "routes": len(bundle.routes),
        "imports_s": middle[0],
        "first_s": middle[1],
        "ready_s": middle[2],
        "run_s": middle[3],
        "after_imports_s": statistics.median(times[2] - times[0] for times in ours),
        "plain_imports_s": plain_middle[0],
        "plain_ready_s": plain_middle[1],
        "plain_run_s": plain_middle[2],
        "plain_after_imports_s": statistics.median(times[1] - times[0] for times in plain),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", nargs="+", choices=[DIGITS, *sorted(FAMILIES)], default=[DIGITS, "resnet18-50", "deit-ti-s"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        "Start with a warm compiled cache: seconds from the start of the process",
        ("bundle", "program", "imports done", "first route", "all ready", "after imports", "and run"),
    )
    for name in args.bundle:
        bundle = family(name)
        row = measure(name, bundle, args.threads, args.repeats)
        result.rows.append(row)

        def seconds(*keys: str) -> tuple[str, ...]:
            return tuple(f"{row[key]:.2f} s" if key else "" for key in keys)  # noqa: B023

        result.cells += [
            (name, f"ours, {row['routes']} routes", *seconds("imports_s", "first_s", "ready_s", "after_imports_s", "run_s")),
            (name, "plain, 2 anchors", *seconds("plain_imports_s", "", "plain_ready_s", "plain_after_imports_s", "plain_run_s")),
        ]
        if name == DIGITS:
            floors = [("", "ready_s", f"<= {DIGITS_FLOOR_S:.0f} s in all", row["ready_s"] <= DIGITS_FLOOR_S)]
        elif name == "resnet18-50":
            floors = [
                (", imports done", "after_imports_s", "faster", row["after_imports_s"] < row["plain_after_imports_s"]),
                (", imports of Python packages included", "ready_s", "faster", row["ready_s"] < row["plain_ready_s"]),
            ]
        else:
            continue  # no floor was set: 36 routes against 2 sessions
        for which, key, asked, met in floors:
            what = f"start to ready, warm compiled cache, {name}, {row['routes']} routes{which}"
            plain_s = f"plain sessions of the two anchors: {row['plain_' + key]:.2f} s"
            result.floors.append(Floor(what, plain_s, asked, f"{row[key]:.2f} s", bool(met)))
    publish(result, args, started)


if __name__ == "__main__":
    main()
