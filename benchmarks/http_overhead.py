"""Claims: HTTP adds little to the executor; what is accepted under overload is answered nearly as quickly as without; others are slower.

    python benchmarks/http_overhead.py [--bundle DIR] [--seconds 5] [--rounds 3] [--parts overhead ...] [--json FILE]

`wrk` posts one binary request of the Open Inference Protocol, a float32 image of the network's input, to `restnet-serve` on loopback.
Overhead: the median over one connection less that of `Engine.run` in a process of its own, in turns. Overload: four times the rate that
is answered with as many connections as are let in, offered evenly by 16 connections to a server that lets few requests in
(`--max-in-flight`, one and as many as there are cores) and runs them one after the other (`--workers 1`), because one run takes all
cores. LitServe and MLServer serve the same network through a plain session (`litserve_app.py`, `mlserver_app.py`), in turns with us:
LitServe is sent plain bytes, MLServer the same JSON as we, because it takes nothing else over HTTP. Each has an environment of its own,
since it brings another server:

    python -m venv build/litserve && build/litserve/bin/pip install litserve onnxruntime numpy
    python -m venv build/mlserver && build/mlserver/bin/pip install mlserver 'uvloop<0.22' onnxruntime numpy

Needs wrk (on Debian: apt-get install wrk).
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import CACHE, ROOT, Child, Floor, Result, arguments, compile_all, noise, publish

FLOOR_MS = 1.5
FLOOR_TIMES = 2.0
OVERLOAD = 4
OFFERING = 16
SCRIPT = Path(__file__).with_name("http_overhead.lua")


@dataclass(frozen=True)
class Load:
    """What wrk saw: seconds of accepted requests, how many were refused or failed, and how long it took.

    runs_ms: of the network alone, as the answers of `restnet-serve` tell it, in the order of the times; empty for others
    """

    times_s: list[float]
    refused: int
    failed: int
    seconds: float
    runs_ms: list[float] = field(default_factory=list)

    @property
    def around_ms(self) -> float:
        """The median of what a request took beside its run."""
        return statistics.median(1e3 * took - run for took, run in zip(self.times_s, self.runs_ms, strict=True))

    def ms(self, share: float) -> float:
        return sorted(self.times_s)[min(len(self.times_s) - 1, int(share * len(self.times_s)))] * 1e3

    @property
    def rate(self) -> float:
        return len(self.times_s) / self.seconds


def wrk(url: str, body: Path, headers: dict[str, str], *, connections: int, seconds: float, rate: float = 0.0) -> Load:
    """rate: requests per second that all connections offer together; 0 for as quick as answers come."""
    command = [
        "wrk",
        f"-t{connections}",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "10s",
        "-s",
        str(SCRIPT),
        url,
        "--",
    ]
    command += [str(body), f"{rate / connections:.6f}", *(f"{name}={value}" for name, value in headers.items())]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times = [float(one) for line in re.findall(r"TIMES (.*)", told) for one in line.split(",") if one]
    runs = [float(one) for line in re.findall(r"RUNS (.*)", told) for one in line.split(",") if one]
    counts = [(int(refused), int(failed)) for refused, failed in re.findall(r"refused=(\d+) errors=(\d+)", told)]
    ended = re.search(r"SECONDS ([\d.]+) SOCKET (\d+)", told)
    assert ended, told
    if not times:
        raise SystemExit(f"http_overhead.py: nothing was answered:\n{told[-2000:]}")
    return Load(times, sum(one for one, _ in counts), sum(one for _, one in counts) + int(ended[2]), float(ended[1]), runs)


@contextmanager
def serving(command: list[str], port: int, ready: str) -> Iterator[str]:
    """A server in a process group of its own, which is ended with all that it started."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if urllib.request.urlopen(url + ready, timeout=5).status == 200:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"http_overhead.py: this did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_engine(connection: Any, path: Path, route: str) -> None:
    """In a process of its own: (median, 99th percentile) ms of `Engine.run` over the seconds that are asked for."""
    from restnet_runtime.engine import Engine

    with Engine.open(path, cache_root=CACHE) as engine:
        engine.loader.join()
        engine.controller.pin = route
        x = noise(engine.executor.bundle)
        connection.send("ready")
        while True:
            (seconds,) = connection.recv()
            times, ended = [], time.perf_counter() + seconds
            while time.perf_counter() < ended:
                started = time.perf_counter()
                engine.run(x)
                times.append(time.perf_counter() - started)
            load = Load(times, 0, 0, seconds)
            connection.send((load.ms(0.5), load.ms(0.99)))


def binary_request(folder: Path, x: Any) -> tuple[Path, Path, dict[str, str]]:
    """The body of a V2 request for the logits in binary, the plain bytes of x, and the headers of the former."""
    document = {
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}],
        "outputs": [{"name": "logits"}],
    }
    head = json.dumps(document).encode()
    folder.mkdir(parents=True, exist_ok=True)
    v2, plain = folder / "v2.bin", folder / "plain.bin"
    v2.write_bytes(head + x.tobytes())
    plain.write_bytes(x.tobytes())
    return v2, plain, {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


def json_request(folder: Path, x: Any) -> Path:
    """The body of a V2 request in JSON."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": [round(float(value), 6) for value in x.ravel()]}
    path = folder / "v2.json"
    path.write_text(json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}))
    return path


def main() -> None:
    from families import family

    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.threads import usable_cores

    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path, help="instead of MobileNetV2 with random weights")
    parser.add_argument("--route", help="which is pinned (default: the cheapest)")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, nargs="+", help="requests that are let in under overload (default: one, and the cores)")
    parser.add_argument("--litserve", type=Path, default=Path("build/litserve/bin/python"), help="its environment (%(default)s)")
    parser.add_argument("--mlserver", type=Path, default=Path("build/mlserver/bin/python"), help="its environment (%(default)s)")
    parts = ("overhead", "overload", "litserve", "mlserver")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("http_overhead.py: there is no wrk here: apt-get install wrk")
    started = time.monotonic()
    bundle = open_bundle(args.bundle) if args.bundle else family("mobilenetv2")
    route = args.route or min(bundle.routes, key=lambda one: one.macs).name
    compile_all(bundle.path)
    x = noise(bundle)
    body, plain, headers = binary_request(ROOT / "http", x)
    path = f"/v2/models/{bundle.manifest.name}/infer"
    shape, kilobytes = "x".join(map(str, bundle.manifest.input.shape)), body.stat().st_size / 1e3
    result = Result(
        f"HTTP on loopback, {bundle.manifest.name} ({route}), input {shape}, {kilobytes:.0f} kB a request",
        ("what", "p50", "p99", "answered/s", "refused/s", "failed"),
    )

    def add(what: str, load: Load) -> None:
        result.rows.append(
            {
                "what": what,
                "p50_ms": load.ms(0.5),
                "p99_ms": load.ms(0.99),
                "rate": load.rate,
                "refused": load.refused,
                "failed": load.failed,
            }
        )
        cells = (
            f"{load.ms(0.5):.2f} ms",
            f"{load.ms(0.99):.2f} ms",
            f"{load.rate:.0f}",
            f"{load.refused / load.seconds:.0f}",
            str(load.failed),
        )
        result.cells.append((what, *cells))

        print(f"... {what}: p50 {cells[0]}, p99 {cells[1]}, {cells[2]}/s, {cells[3]} refused/s", file=sys.stderr)

    def command(port: int, *options: object) -> list[str]:
        code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
        line = [sys.executable, "-c", code, str(bundle.path), "--cache", str(CACHE), "--pin", route, "--port", str(port)]
        return [*line, *map(str, options)]

    def warm(url: str, target: str, data: Path, fields: dict[str, str]) -> None:
        wrk(url + target, data, fields, connections=2, seconds=2)

    if "overhead" in args.parts:
        overheads, around, loads = [], [], []
        with Child(run_engine, bundle.path, route) as engine, serving(command(port := free_port()), port, "/readyz") as url:
            engine.receive()
            wait_loaded(url)
            warm(url, path, body, headers)
            for _ in range(args.rounds):
                own_ms, own_p99_ms = engine.ask(args.seconds / 2)
                loads.append(wrk(url + path, body, headers, connections=1, seconds=args.seconds / 2))
                overheads.append(loads[-1].ms(0.5) - own_ms)
                around.append(loads[-1].around_ms)
                print(f"... Engine.run: p50 {own_ms:.2f} ms, p99 {own_p99_ms:.2f} ms", file=sys.stderr)
                result.cells.append(("Engine.run", f"{own_ms:.2f} ms", f"{own_p99_ms:.2f} ms", "", "", ""))
                add("restnet-serve, 1 connection", loads[-1])
        overhead = statistics.median(overheads)
        result.floors.append(Floor("overhead of HTTP, p50", "Engine.run", f"<= {FLOOR_MS} ms", f"{overhead:.2f} ms", overhead <= FLOOR_MS))
        beside = statistics.median(around)
        what = "beside the run that the answer tells of, p50 by request"
        result.floors.append(Floor(what, "its own run", f"<= {FLOOR_MS} ms", f"{beside:.2f} ms", beside <= FLOOR_MS))
    if "overload" in args.parts:
        for allowed in args.in_flight or sorted({1, usable_cores()}):
            overload(args, result, add, command, (path, body, headers), allowed)
    model, raw = ROOT / "http" / "plain.onnx", {"Content-Type": "application/octet-stream"}
    json_body, app = json_request(ROOT / "http", x), Path(__file__).parent
    for name, python, ready, arguments_, ours, theirs in (
        (
            "LitServe",
            args.litserve,
            "/health",
            [app / "litserve_app.py", model, "PORT", *bundle.manifest.input.shape],
            Way(path, body, headers),
            Way("/predict", plain, raw),
        ),
        (
            "MLServer",
            args.mlserver,
            "/v2/models/network/ready",
            [app / "mlserver_app.py", model, "PORT", ROOT / "http" / "mlserver"],
            Way(path, json_body, {"Content-Type": "application/json"}),
            Way("/v2/models/network/infer", json_body, {"Content-Type": "application/json"}),
        ),
    ):
        if name.lower() not in args.parts:
            continue
        if not python.exists():
            result.notes.append(f"no {name} in {python}: its part was left out")
            continue
        write_plain(bundle, route, model)
        line = [str(python.absolute()), *map(str, arguments_)]
        compare(args, result, add, name, line, ready, command, ours, theirs)
    publish(result, args, started)


def overload(args: Any, result: Result, add: Any, command: Any, asked: tuple[str, Path, dict[str, str]], allowed: int) -> None:
    """Four times the rate that is answered, of which so many are let in at once."""
    path, body, headers = asked
    with serving(command(port := free_port(), "--max-in-flight", allowed, "--workers", 1, "--batching", "off"), port, "/readyz") as url:
        wait_loaded(url)
        wrk(url + path, body, headers, connections=2, seconds=2)
        ratios = []
        for _ in range(args.rounds):
            unloaded = wrk(url + path, body, headers, connections=1, seconds=args.seconds)
            full = wrk(url + path, body, headers, connections=allowed, seconds=args.seconds) if allowed > 1 else unloaded
            loaded = wrk(url + path, body, headers, connections=OFFERING, seconds=args.seconds, rate=OVERLOAD * full.rate)
            add(f"1 connection, {allowed} let in", unloaded)
            if allowed > 1:
                add(f"{allowed} connections, as quick as they are answered", full)
            add(f"{OVERLOAD} times that rate offered, {allowed} let in", loaded)
            ratios.append(loaded.ms(0.99) / unloaded.ms(0.99))
    ratio = statistics.median(ratios)
    what = f"p99 of accepted requests at {OVERLOAD}x overload, {allowed} let in"
    result.floors.append(Floor(what, "p99 unloaded", f"<= {FLOOR_TIMES:g}x", f"{ratio:.2f}x", ratio <= FLOOR_TIMES))


@dataclass(frozen=True)
class Way:
    """How a server is asked: path, body, headers."""

    path: str
    body: Path
    headers: dict[str, str]


def compare(args: Any, result: Result, add: Any, name: str, app: list[str], ready: str, command: Any, ours: Way, theirs: Way) -> None:
    """The two servers in turns. app: the other's command, its port to be put in for PORT."""
    port, other_port = free_port(), free_port()
    app = [one.replace("PORT", str(other_port)) for one in app]
    with serving(command(port), port, "/readyz") as url, serving(app, other_port, ready) as other:
        wait_loaded(url)
        check(post(url + ours.path, ours.body, ours.headers), post(other + theirs.path, theirs.body, theirs.headers))
        wrk(url + ours.path, ours.body, ours.headers, connections=2, seconds=2)
        wrk(other + theirs.path, theirs.body, theirs.headers, connections=2, seconds=2)
        for connections in (1, 4):
            pairs = []
            for _ in range(args.rounds):
                mine = wrk(url + ours.path, ours.body, ours.headers, connections=connections, seconds=args.seconds)
                load = wrk(other + theirs.path, theirs.body, theirs.headers, connections=connections, seconds=args.seconds)
                add(f"restnet-serve beside {name}, {connections} connections", mine)
                add(f"{name}, {connections} connections", load)
                pairs.append((mine, load))
            for quantile, share in (("p50", 0.5), ("p99", 0.99)):
                mine_ms = statistics.median(mine.ms(share) for mine, _ in pairs)
                their_ms = statistics.median(load.ms(share) for _, load in pairs)
                figure = f"{mine_ms:.2f} ms against {their_ms:.2f} ms"
                result.floors.append(Floor(f"{quantile}, {connections} connections", name, "less", figure, mine_ms < their_ms))


def write_plain(bundle: Any, route: str, path: Path) -> None:
    """The route as one ONNX file with its weights."""
    import onnx

    from restnet_runtime.compose import compose

    model = compose(bundle, bundle.route(route))
    weights = path.with_name("weights.bin")
    shutil.copyfile(bundle.path / "weights.bin", weights)  # onnx refuses files that have a second name
    onnx.load_external_data_for_model(model, str(path.parent))
    onnx.save(model, path)


def post(url: str, body: Path, headers: dict[str, str]) -> Any:
    """The logits, from JSON, from binary tensors or from nothing but them."""
    import numpy as np

    with urllib.request.urlopen(urllib.request.Request(url, body.read_bytes(), headers), timeout=30) as answer:
        data, length = answer.read(), answer.headers.get("Inference-Header-Content-Length", "0")
        if answer.headers.get_content_type() == "application/json" and length == "0":
            return np.array(json.loads(data)["outputs"][0]["data"], np.float32)
    return np.frombuffer(data[int(length) :], "<f4")


def check(ours: Any, theirs: Any) -> None:
    import numpy as np

    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if ours.shape != theirs.shape or difference > 1e-4:
        raise SystemExit(f"http_overhead.py: the two servers answer otherwise, by {difference:.1e} of the largest logit")


def wait_loaded(url: str) -> None:
    while True:
        with urllib.request.urlopen(url + "/status", timeout=10) as answer:
            routes = json.load(answer)["routes"]
        if routes["loading"] is None and len(routes["loaded"]) + len(routes["outdone"]) + len(routes["left_out"]) >= routes["known"]:
            return
        time.sleep(0.2)


if __name__ == "__main__":
    main()
