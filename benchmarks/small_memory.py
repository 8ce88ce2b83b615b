"""Claim: in a memory cgroup smaller than the large anchor's weights the server starts, serves what fits, and is not killed.

    python benchmarks/small_memory.py [--share 0.9] [--minutes 5] [--cold-minutes 1] [--json FILE]      (as root, or in a group of your own)

The limit is `share` of the bytes of weights that ResNet-50 reads. In the same limit, each in a memory cgroup of its own that is
removed afterwards: plain ONNX Runtime sessions of both anchors, loaded from their own files and run once; `restnet-serve` with an
empty compiled cache; and `restnet-serve` with a warm one, whose budget is changed two times a second while a client asks. The kernel's
own counter says who was killed. Ends with a reason where no memory cgroup can be made (version 1 or 2).
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import CACHE, ROOT, Floor, Result, arguments, compile_all, in_child, noise, plain_file, publish
from families import family
from startup import PLAIN

from restnet_runtime.bundle import Bundle
from restnet_runtime.cgroups import parse_membership, parse_mounts, visible_groups

FAMILY, LARGE = "resnet18-50", "resnet50"
SERVE = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
SWITCH_EVERY_S = 0.5
READY_S = 90
FLOOR_MINUTES = 5


class NoGroupError(Exception):
    """Here no memory cgroup can be made."""


class Group:
    """A memory cgroup, version 1 or 2."""

    def __init__(self, path: Path, version: int) -> None:
        self.path, self.version = path, version

    def limit(self, count: int) -> None:
        (self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")).write_text(str(count))
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def killed(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        text = (self.path / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def peak_bytes(self) -> int | None:
        try:
            return int((self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")).read_text())
        except OSError:
            return None


@contextmanager
def group(limit_bytes: int) -> Iterator[Group]:
    """A new group below this process's own, or below its nearest parent that allows it; removed afterwards. Raises `NoGroupError`."""
    membership = parse_membership(Path("/proc/self/cgroup").read_text())
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    version = 1 if "memory" in membership else 2
    fitting = [mount for mount in mounts if mount.version == version and (version == 2 or "memory" in mount.controllers)]
    reason = "no memory cgroup is mounted"
    for parent in visible_groups(membership.get("memory", membership.get("", "/")), fitting):
        path = Path(parent) / f"restnet-benchmark-{os.getpid()}"
        try:
            path.mkdir()
            made = Group(path, version)
            made.limit(limit_bytes)
            break
        except OSError as error:  # not ours to write, or without the memory controller
            reason = str(error)
            if path.exists():
                path.rmdir()
    else:
        raise NoGroupError(reason)
    try:
        yield made
    finally:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:  # its last process is still going
                time.sleep(0.1)


def inside(where: Group, code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Python in the group from its first instruction on."""
    shell = f'echo $$ > "{where.path}/cgroup.procs" && exec "$@"'
    return subprocess.Popen(["sh", "-c", shell, "sh", sys.executable, "-c", code, *args], text=True, **options)


def plain_anchors(bundle: Bundle, limit_bytes: int) -> dict[str, Any]:
    files = [str(plain_file(bundle, anchor.name)) for anchor in bundle.manifest.anchors]
    with group(limit_bytes) as where:
        process = inside(where, PLAIN, "2", *files, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.communicate()
        return {"program": "plain sessions of both anchors", "killed": bool(where.killed()), "status": process.returncode}


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
        self.problem = ""

    def call(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        kind = "application/x-npy" if path == "/predict" else "application/json"
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def ask(self) -> None:
        try:
            self.routes.add(self.call("/predict", "POST", self.body)["route"])
            self.answers += 1
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
    with group(limit_bytes) as where, tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = inside(where, SERVE, str(bundle.path), "--port", "0", "--cache", str(cache), stdout=subprocess.PIPE, stderr=log)
        try:
            client = Client(_address(process), bundle)
            ready_s = _ready(process, client, began)
            if ready_s is not None:
                _switch(process, client, bundle, minutes * 60)
            alive = process.poll() is None
            killed = process.poll() == -signal.SIGKILL
            workers_killed = where.killed() - killed  # processes that compiled: the kernel takes them first, and the server goes on
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
            "problem": client.problem,
            "routes_served": sorted(client.routes),
            "routes_loaded_at_the_end": loaded,
            "peak_bytes": where.peak_bytes(),
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
            macs = draw.choice(bundle.routes).macs
            try:
                client.call("/budget", "PUT", json.dumps({"budget": f"{macs}MACs"}).encode())
            except (OSError, ValueError) as error:
                client.problem = client.problem or f"PUT /budget: {error}"
            next_switch = time.monotonic() + SWITCH_EVERY_S
        client.ask()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--share", type=float, default=0.9, help="limit over the large anchor's weights (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="of switching with a warm cache (%(default)s)")
    parser.add_argument("--cold-minutes", type=float, default=1, help="of switching after a start with an empty cache (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    bundle = family(FAMILY)
    weights = bundle.route(LARGE).weight_bytes
    limit = int(weights * args.share)
    result = Result(
        f"Memory cgroup of {limit / 1e6:.0f} MB: {args.share:.0%} of the {weights / 1e6:.0f} MB that {LARGE} reads",
        ("program", "killed by the kernel", "compilers killed", "ready", "answers", "failed", "routes served", "loaded at the end"),
    )
    try:
        measure(bundle, limit, args, result)
    except NoGroupError as error:
        result.notes.append(f"skipped: no memory cgroup can be made here: {error}")
        result.floors.append(
            Floor("memory cgroup smaller than the large anchor's weights", "plain sessions", "never killed", "skipped", None)
        )
    publish(result, args, started)


def measure(bundle: Bundle, limit: int, args: argparse.Namespace, result: Result) -> None:
    in_child(compile_all, bundle.path)  # outside of the limit: the warm cache
    plain = plain_anchors(bundle, limit)
    empty = Path(tempfile.mkdtemp(prefix="cold-", dir=ROOT))
    try:
        cold = server(bundle, limit, empty, args.cold_minutes, "restnet-serve, empty cache")
    finally:
        shutil.rmtree(empty, ignore_errors=True)
    warm = server(bundle, limit, CACHE, args.minutes, "restnet-serve, warm cache")
    result.rows = [plain, cold, warm]
    result.cells.append((plain["program"], "yes" if plain["killed"] else "no", *[""] * 6))
    for row in (cold, warm):
        ready = "never" if row["ready_s"] is None else f"{row['ready_s']:.1f} s"
        counts = (str(row["answers"]), str(row["failed"]), str(len(row["routes_served"])), str(len(row["routes_loaded_at_the_end"])))
        result.cells.append((row["program"], "yes" if row["killed"] else "no", str(row["workers_killed"]), ready, *counts))
        if row["problem"]:
            result.notes.append(f"{row['program']}: first problem: {row['problem']}")
    for row, minutes in ((warm, args.minutes), (cold, args.cold_minutes)):
        held = row["alive"] and not row["killed"] and row["ready_s"] is not None and row["answers"] > 0 and not row["failed"]
        figure = "killed" if row["killed"] else "ended" if not row["alive"] else f"alive after {minutes:g} minutes of switching"
        result.floors.append(
            Floor(
                f"memory cgroup smaller than the large anchor's weights ({limit / 1e6:.0f} MB), {row['program']}",
                f"plain sessions of both anchors: {'killed by the kernel' if plain['killed'] else 'not killed'}",
                "starts, serves the routes that fit, never killed in 5 minutes of switching",
                f"{figure}; {row['answers']} answers on {len(row['routes_served'])} routes, {row['failed']} failed",
                False if not held else True if minutes >= FLOOR_MINUTES else None,
            )
        )


if __name__ == "__main__":
    main()
