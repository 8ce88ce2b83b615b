"""Claim: in a memory cgroup smaller than the large anchor's weights the server starts, serves what fits, and is not killed.

    python benchmarks/small_memory.py [--family deit-ti-s-b] [--share 0.9] [--minutes 5] [--cold-minutes 1] [--json FILE]

The limit is `share` of the bytes of weights that the family's last anchor reads. In the same limit, each in a memory cgroup of its own
that is removed afterwards: plain ONNX Runtime sessions of all anchors, loaded from their own files and run once; `restnet-serve` with an
empty compiled cache; and `restnet-serve` with a warm one. While a client asks, the budget is changed two times a second: to the cost of
a route that is loaded, which switches, or of any, for which routes come and go. The bundle served has no accuracies, so that the dearest
route within the budget is chosen. A switch is an answer by another route than the one before. Python and its libraries take some 80 MB:
in a family whose last anchor is not much bigger, one route fits, and nothing is decided. The kernel's own counter says who was killed.
To be run as root, or in a group of your own; ends with a reason where no memory cgroup can be made (version 1 or 2).
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import ROOT, Floor, Result, arguments, compile_all, in_child, noise, plain_file, publish
from control_groups import Box, NoGroupError, boxes
from families import FAMILIES, family
from startup import PLAIN

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.manifest import MANIFEST_FILE

FAMILY = "deit-ti-s-b"
"""Of which several routes fit into a limit that the large anchor does not."""
SERVE = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
SWITCH_EVERY_S = 0.5
READY_S = 90
FLOOR_MINUTES = 5


@contextmanager
def limited(limit_bytes: int) -> Iterator[Box]:
    """A group that has so much memory. Raises `NoGroupError`."""
    with boxes("limited", controllers=("memory",)) as made:
        if not made["limited"].limit(limit_bytes):
            raise NoGroupError("no memory limit can be set here")
        yield made["limited"]


def plain_anchors(bundle: Bundle, limit_bytes: int) -> dict[str, Any]:
    files = [str(plain_file(bundle, anchor.name)) for anchor in bundle.manifest.anchors]
    with limited(limit_bytes) as box:
        process = box.python(PLAIN, "2", *files, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.communicate()
        return {"program": f"plain sessions of all {len(files)} anchors", "killed": bool(box.killed()), "status": process.returncode}


class Client:
    """Asks a server as long as it lives, and counts."""

    def __init__(self, url: str, bundle: Bundle) -> None:
        import numpy as np

        self.url = url
        content = io.BytesIO()
        np.save(content, noise(bundle))
        self.body = content.getvalue()
        self.answers, self.failed = 0, 0
        self.routes: set[str] = set()
        self.switches, self.last = 0, ""
        self.problem = ""

    def call(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        kind = "application/x-npy" if path == "/predict" else "application/json"
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def ask(self) -> None:
        try:
            route = self.call("/predict", "POST", self.body)["route"]
            self.answers += 1
            self.switches += self.last not in ("", route)
            self.last = route
            self.routes.add(route)
        except (OSError, ValueError) as error:
            self.failed += 1
            text = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            self.problem = self.problem or text[:200]

    def loaded(self) -> list[str]:
        try:
            return list(self.call("/status")["routes"]["loaded"])
        except (OSError, ValueError) as error:
            self.problem = self.problem or f"GET /status: {error}"
            return []


def server(bundle: Bundle, limit_bytes: int, cache: Path, minutes: float, name: str) -> dict[str, Any]:
    """Start the server in the limit, wait until it is ready, then switch and ask for `minutes`."""
    with limited(limit_bytes) as box, tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = box.python(SERVE, str(bundle.path), "--port", "0", "--cache", str(cache), stdout=subprocess.PIPE, stderr=log)
        try:
            client = Client(_address(process), bundle)
            ready_s = _ready(process, client, began)
            if ready_s is not None:
                _switch(process, client, bundle, minutes * 60)
            alive = process.poll() is None
            killed = process.poll() == -signal.SIGKILL
            workers_killed = box.killed() - killed  # processes that compiled: the kernel takes them first, and the server goes on
            loaded = client.loaded() if alive and ready_s is not None else []
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.seek(0)
        return {
            "program": name,
            "killed": killed,
            "workers_killed": workers_killed,
            "status": process.returncode,
            "ready_s": ready_s,
            "alive": alive,
            "answers": client.answers,
            "failed": client.failed,
            "switches": client.switches,
            "problem": client.problem,
            "routes_served": sorted(client.routes),
            "routes_loaded_at_the_end": loaded,
            "peak_bytes": box.peak_bytes(),
            "log_end": log.read()[-600:],
        }


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.split()[-1]
    return "http://127.0.0.1:9"  # it ended before; nobody answers there


def _ready(process: subprocess.Popen[str], client: Client, began: float) -> float | None:
    """Seconds until a route could be asked for; `None` if the server ended or took longer than `READY_S`."""
    while process.poll() is None and time.monotonic() - began < READY_S:
        try:
            client.call("/readyz")
            return time.monotonic() - began
        except (OSError, ValueError):
            time.sleep(0.1)
    return None


def _switch(process: subprocess.Popen[str], client: Client, bundle: Bundle, seconds: float) -> None:
    draw, end, next_switch = random.Random(0), time.monotonic() + seconds, 0.0
    while process.poll() is None and time.monotonic() < end:
        if time.monotonic() > next_switch:
            loaded = client.loaded() if draw.random() < 0.5 else []
            macs = bundle.route(draw.choice(loaded)).macs if loaded else draw.choice(bundle.routes).macs
            try:
                client.call("/budget", "PUT", json.dumps({"budget": f"{macs}MACs"}).encode())
            except (OSError, ValueError) as error:
                client.problem = client.problem or f"PUT /budget: {error}"
            next_switch = time.monotonic() + SWITCH_EVERY_S
        client.ask()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", choices=sorted(FAMILIES), default=FAMILY)
    parser.add_argument("--share", type=float, default=0.9, help="limit over the large anchor's weights (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="of switching with a warm cache (%(default)s)")
    parser.add_argument("--cold-minutes", type=float, default=1, help="of switching after a start with an empty cache (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    bundle = family(args.family)
    large = bundle.manifest.anchors[-1].name
    weights = bundle.route(large).weight_bytes
    limit = int(weights * args.share)
    result = Result(
        f"Memory cgroup of {limit / 1e6:.0f} MB: {args.share:.0%} of the {weights / 1e6:.0f} MB that {large} reads",
        (
            "program",
            "killed by the kernel",
            "compilers killed",
            "ready",
            "answers",
            "failed",
            "routes served",
            "switches",
            "loaded at the end",
        ),
    )
    try:
        measure(bundle, limit, args, result)
    except NoGroupError as error:
        result.notes.append(f"skipped: no memory cgroup can be made here: {error}")
        result.floors.append(
            Floor("memory cgroup smaller than the large anchor's weights", "plain sessions", "never killed", "skipped", None)
        )
    publish(result, args, started)


def unscored(bundle: Bundle, path: Path) -> Bundle:
    """A copy without accuracies. Those of random weights are all the same, and of equal routes the cheapest serves whatever the budget."""
    shutil.copytree(bundle.path, path, copy_function=os.link)
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    for route in manifest["routes"]:
        route.update(accuracy=None, on_front=True)
    (path / MANIFEST_FILE).unlink()  # a link too
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return open_bundle(path)


def forget(folder: Path) -> None:
    """Have the kernel drop what it keeps of files: pages count for the group that reads them first, and that is to be the server's."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(bundle: Bundle, limit: int, args: argparse.Namespace, result: Result) -> None:
    plain = plain_anchors(bundle, limit)
    with tempfile.TemporaryDirectory(prefix="small-memory-", dir=ROOT) as name:
        folder = Path(name)
        served = unscored(bundle, folder / bundle.path.name)
        forget(folder)
        cold = server(served, limit, folder / "cold", args.cold_minutes, "restnet-serve, empty cache")
        in_child(compile_all, served.path, folder / "warm")  # outside of the limit
        forget(folder)
        warm = server(served, limit, folder / "warm", args.minutes, "restnet-serve, warm cache")
    result.rows = [plain, cold, warm]
    result.cells.append((plain["program"], "yes" if plain["killed"] else "no", *[""] * 7))
    for row in (cold, warm):
        ready = "never" if row["ready_s"] is None else f"{row['ready_s']:.1f} s"
        sizes = (row["answers"], row["failed"], len(row["routes_served"]), row["switches"], len(row["routes_loaded_at_the_end"]))
        counts = (str(size) for size in sizes)
        result.cells.append((row["program"], "yes" if row["killed"] else "no", str(row["workers_killed"]), ready, *counts))
        if row["problem"]:
            result.notes.append(f"{row['program']}: first problem: {row['problem']}")
    asked = f"serves the routes that fit, never killed in {FLOOR_MINUTES} minutes of switching"
    for row, minutes, does in (
        (warm, args.minutes, "starts"),
        (cold, args.cold_minutes, "starts with nothing compiled, compiles within the limit while it serves (a compiler may be killed)"),
    ):
        result.floors.append(
            Floor(
                f"memory cgroup smaller than the large anchor's weights ({limit / 1e6:.0f} MB), {row['program']}",
                f"{plain['program']}: {'killed by the kernel' if plain['killed'] else 'not killed'}",
                f"{does}, {asked}",
                figure(row, minutes),
                met(row, minutes),
            )
        )


def figure(row: dict[str, Any], minutes: float) -> str:
    state = "killed" if row["killed"] else "ended" if not row["alive"] else f"alive after {minutes:g} minutes"
    switches = f"{row['switches']} switches among {len(row['routes_served'])} routes served"
    return f"{state}; {row['answers']} answers, {row['failed']} failed, {switches}"


def met(row: dict[str, Any], minutes: float) -> bool | None:
    """`None` where nothing was switched between, or not for long enough."""
    if row["killed"] or not row["alive"] or row["ready_s"] is None or not row["answers"] or row["failed"]:
        return False
    return True if row["switches"] and len(row["routes_served"]) > 1 and minutes >= FLOOR_MINUTES else None


if __name__ == "__main__":
    main()
