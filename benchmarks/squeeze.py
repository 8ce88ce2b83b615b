"""Claim: squeezed in its own control group, a server is back inside its budget within seconds, climbs again, fails nothing, and lives.

    python benchmarks/squeeze.py [--family resnet18-50-96px] [--rate N] [--json FILE] [--page FILE] [--picture FILE]

A real `restnet-serve` in a group of its own (CPU and memory; version 1 or 2) answers a client outside of it, who sends JPEG images at even
times whatever became of those before, so that lateness counts. Peace; CPU quota 2 -> 0.5 -> 1 -> 2; a neighbour that burns both cores; the
memory limit falling, while the kernel reclaims, to less than the weights of the large anchor, and back. The same is done to what a user
would have without us: the large anchor, and the small one, each pinned. The budget is `--slack` times what the large anchor takes in peace
here, seen by the client. Bundles have random weights; each route counts with the accuracy published for it (`benchmarks/profiles/`).
To be run as root, or in groups of your own; ends with a reason where none can be made.
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import REPOSITORY, ROOT, Floor, Result, arguments, compile_all, in_child, publish
from control_groups import SHORT_SLICE, Box, NoGroupError, boxes
from families import family
from replay import read_table
from small_memory import SERVE, forget
from squeeze_client import Client, p95_ms
from squeeze_report import Course, Phase, Sample, report, write_page

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.manifest import MANIFEST_FILE

BURN = "import time\nwhile True: sum(range(10000))"
TABLES = {"resnet18-50": "resnet18-50.csv", "resnet18-50-96px": "resnet18-50.csv", "deit-ti-s-b": "deit-ti-s-b.csv"}
"""Of published accuracies, by family. Those of ResNet are of images of 224 pixels, whatever is served here."""
STEPS = 8
"""Of the memory limit on its way down."""
READY_S = 120
PEACE_S = 30
DEMAND_CORES = 0.5
"""What runs of the large anchor take: with what is beside them more than the half core that is left at the worst, which just about bears
the small one."""


@dataclass(frozen=True)
class Plan:
    """What is done to a server. limit_bytes: how far its memory is pressed; seconds: of the phases' lengths, 1 = as in the page."""

    limit_bytes: int
    seconds: float = 1.0
    cores: int = 2

    def phases(self, server: Box, neighbour: Box) -> list[tuple[str, float, Callable[[], Any]]]:
        """(name, seconds, what begins it)"""
        burning: list[subprocess.Popen[str]] = []

        def burn() -> None:
            burning.extend(neighbour.python(SHORT_SLICE + BURN) for _ in range(self.cores))

        def rest() -> None:
            for one in burning:
                one.kill()
                one.wait()
            burning.clear()

        def press() -> None:
            begin = server.used_bytes()
            for step in range(1, STEPS + 1):
                server.limit(int(begin + (self.limit_bytes - begin) * step / STEPS))
                time.sleep(0.25 * self.seconds)
            for _ in range(100):  # what version 1 could not reclaim at once
                if server.limit(self.limit_bytes):
                    break
                time.sleep(0.1)

        found = [
            ("peace", 6.0, lambda: None),
            ("0.5 cores", 8.0, lambda: server.quota(0.5)),
            ("1 core", 6.0, lambda: server.quota(1.0)),
            (f"{self.cores} cores again", 16.0, lambda: server.quota(None)),
            ("a neighbour", 8.0, burn),
            ("alone again", 16.0, rest),
            ("memory falls", 10.0, lambda: threading.Thread(target=press, daemon=True).start()),
            ("memory again", 16.0, lambda: server.limit(None)),
        ]
        return [(name, seconds * self.seconds, begin) for name, seconds, begin in found]


class Server:
    """`restnet-serve` in a group. args: after the bundle."""

    def __init__(self, box: Box, bundle: Bundle, *args: str) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed when the server has ended
        self.process = box.python(SHORT_SLICE + SERVE, str(bundle.path), "--port", "0", *args, stdout=subprocess.PIPE, stderr=self.log)
        self.url = next(line.split()[-1] for line in self.process.stdout or () if line.startswith("listening on "))

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def wait(self) -> None:
        """Until every route that fits is loaded and nothing is being loaded."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                routes = self.get("/status")["routes"]
                settled = len(routes["loaded"]) + len(routes["outdone"]) + len(routes["left_out"])
                if routes["loaded"] and not routes["loading"] and settled >= routes["known"]:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"the server was not ready in time: {self.end()}")

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        with self.log:
            self.log.seek(0)
            return self.log.read()


def squeeze(name: str, bundle: Bundle, plan: Plan, body: bytes, rate: float, *args: str) -> Course:
    """What became of a server under the plan."""
    with boxes("server", "neighbour", "client") as made:
        box = made["server"]
        made["client"].weight(8)
        made["client"].take(os.getpid())
        forget(bundle.path.parent)
        server = Server(box, bundle, *args)
        phases: list[Phase] = []
        samples: list[Sample] = []
        over = threading.Event()

        def sample() -> None:
            began = time.monotonic()
            while not over.wait(0.1):
                samples.append(
                    Sample(time.monotonic() - began, box.used_bytes(), box.limit_bytes(), box.anonymous_bytes(), box.throttled_s())
                )

        try:
            server.wait()
            client = Client(server.url, body, "image/jpeg", rate)
            client.start()
            time.sleep(6.0 * plan.seconds)  # what is known of the device begins here
            watcher = threading.Thread(target=sample)
            watcher.start()
            began = time.monotonic()
            for phase, seconds, begin in plan.phases(box, made["neighbour"]):
                at_s = time.monotonic() - began
                begin()
                time.sleep(max(0.0, began + at_s + seconds - time.monotonic()))
                phases.append(Phase(phase, at_s, at_s + seconds, server.process.poll() is None, box.killed()))
            asked = client.stop()
            status = server.get("/status") if server.process.poll() is None else {}
        finally:
            box.limit(None)
            box.quota(None)
            over.set()
            log = server.end()
    return Course.of(name, asked, phases, samples, began, status, log)


@dataclass(frozen=True)
class Peace:
    """With the large anchor pinned, nothing else going on.

    latency_ms:  of a request, as the client sees it: the 95th percentile
    own_bytes:   of the server; charged_bytes: of that, what counts for its group: libraries that others have loaded do not
    needs:       by route, what the server takes with it alone, as its profiles say
    rate:        requests per second
    """

    latency_ms: float
    own_bytes: int
    charged_bytes: int
    needs: dict[str, int]
    rate: float

    def limit_bytes(self, small: str, large: str, share: float) -> int:
        """For the group: that share of the way from what the server needs with the small anchor alone to what with the large one."""
        need = self.needs[small] + share * (self.needs[large] - self.needs[small])
        return int(need - (self.own_bytes - self.charged_bytes))


def in_peace(bundle: Bundle, route: str, body: bytes, rate: float | None, *options: str) -> Peace:
    """rate: requests per second; by default so many that their runs take `DEMAND_CORES`, as the route was profiled here"""
    forget(bundle.path.parent)
    with boxes("server", "client") as made:
        made["client"].weight(8)
        made["client"].take(os.getpid())
        server = Server(made["server"], bundle, "--pin", route, "--keep-all", *options)
        try:
            server.wait()
            if rate is None:
                profile = next(one["profile"] for one in server.get("/routes")["routes"] if one["name"] == route and one["profile"])
                rate = max(1, round(1e3 * DEMAND_CORES / (profile["latency_ms"] * profile["threads"])))
            client = Client(server.url, body, "image/jpeg", rate)
            client.start()
            time.sleep(PEACE_S)  # long enough to meet what a device that others share has of bad moments
            own_bytes, charged_bytes = server.get("/status")["reading"]["own_memory_bytes"], made["server"].used_bytes()
            needs = {one["name"]: one["profile"]["memory_bytes"] for one in server.get("/routes")["routes"] if one["profile"]}
            asked = client.stop()
        finally:
            server.end()
    taken = [one.latency_ms for one in asked if one.ok][int(4 * rate) :]
    run_ms = median(one.run_ms or 0.0 for one in asked)
    print(f"{route} in peace: median {median(taken):.1f} ms, p95 {p95_ms(taken):.1f} ms, its run alone {run_ms:.1f} ms", flush=True)
    return Peace(p95_ms(taken), own_bytes, charged_bytes, needs, rate)


def published(bundle: Bundle, path: Path, table: Path) -> Bundle:
    """A copy in which each route has the accuracy that was published for the one of its place, by cost."""
    accuracies = sorted(one.route.accuracy or 0.0 for one in read_table(table))
    shutil.copytree(bundle.path, path, copy_function=os.link)
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    routes = sorted(manifest["routes"], key=lambda route: route["macs"])
    if len(routes) != len(accuracies):
        raise SystemExit(f"{table} is of {len(accuracies)} routes, {bundle.path} has {len(routes)}")
    for route, accuracy in zip(routes, accuracies, strict=True):
        route.update(accuracy=accuracy, on_front=True)
    (path / MANIFEST_FILE).unlink()  # a link too
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return open_bundle(path)


def picture_to_send(side: int = 224) -> bytes:
    """A JPEG of soft colours, 20 kB."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    content = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(content, "JPEG", quality=85)
    return content.getvalue()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", choices=sorted(TABLES), default="resnet18-50-96px")
    parser.add_argument("--rate", type=float, help="requests per second; by default runs of the large anchor take half a core")
    parser.add_argument("--slack", type=float, default=1.5, help="budget over p95 of the large anchor in peace (%(default)s)")
    parser.add_argument("--budget-ms", type=float, help="instead of --slack")
    parser.add_argument(
        "--share", type=float, default=0.35, help="of the way from the small to the large anchor: the memory limit (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="times as long (%(default)s)")
    parser.add_argument("--threads", type=int, help="of a request, fixed; by default the server chooses as it does")
    parser.add_argument("--policies", nargs="+", choices=("restnet", "large", "small"), default=["restnet", "large", "small"])
    parser.add_argument("--rounds", type=int, default=1, help="of our own policy, of whose times the medians count (%(default)s)")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result("Live squeeze", ())
    try:
        courses, budget_ms, said = measure(args)
        report(result, courses, budget_ms)
        result.notes.insert(0, said)
        if args.picture:
            from squeeze_plot import plot

            plot([course for course in courses if ", round " not in course.name], budget_ms, args.picture)
        if args.page:
            write_page(args.page, result, courses, args.picture)
    except NoGroupError as error:
        result.notes.append(f"skipped: no control groups can be made here: {error}")
        result.floors.append(Floor("live squeeze", "pinned routes", "see there", "skipped", None))
    publish(result, args, started)


def measure(args: argparse.Namespace) -> tuple[list[Course], float, str]:
    made = family(args.family)
    ROOT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="squeeze-", dir=ROOT) as folder:
        bundle = published(made, Path(folder) / made.path.name, REPOSITORY / "benchmarks" / "profiles" / TABLES[args.family])
        cache = Path(folder) / "cache"  # of its own: what is measured in other runs is not known here
        in_child(compile_all, bundle.path, cache)
        small, large = bundle.manifest.anchors[0].name, bundle.manifest.anchors[-1].name
        body = picture_to_send(bundle.manifest.input.shape[-1])
        threads = () if args.threads is None else ("--threads", str(args.threads))
        peace = in_peace(bundle, large, body, args.rate, "--cache", str(cache), *threads)
        budget_ms = round(args.budget_ms or args.slack * peace.latency_ms, 1)
        plan = Plan(peace.limit_bytes(small, large, args.share), args.seconds)
        how_many = "as asked for" if args.rate else f"so that runs of {large} take {DEMAND_CORES:g} cores, as profiled"
        said = (
            f"{peace.rate:g} requests a second ({how_many}); "
            f"budget {budget_ms:g} ms, {args.slack:g} times the {peace.latency_ms:.1f} ms that {large} takes in peace (p95). "
            f"With {small} alone the server needs {peace.needs[small] / 1e6:.0f} MB, "
            f"with {large} {peace.needs[large] / 1e6:.0f} MB; the limit of the group falls to {plan.limit_bytes / 1e6:.0f} MB"
        )
        print(said, flush=True)
        given = {"restnet": [], "large": ["--pin", large, "--keep-all"], "small": ["--pin", small, "--keep-all"]}
        names = {"restnet": "restnet", "large": f"always large ({large})", "small": f"always small ({small})"}
        accuracies = {route.name: route.accuracy for route in bundle.routes}
        courses = []
        turns = [policy for policy in args.policies for _ in range(args.rounds if policy == "restnet" else 1)]
        for index, policy in enumerate(turns):
            options = ("--cache", str(cache), "--budget", f"{budget_ms}ms", *threads, *given[policy])
            again = turns[:index].count(policy)
            name = f"{names[policy]}, round {again + 1}" if again else names[policy]
            course = squeeze(name, bundle, plan, body, peace.rate, *options)
            course.accuracies.update(accuracies)
            courses.append(course)
            if args.json:
                told = f"{policy}{again + 1}" if again else policy
                log = args.json.with_suffix(f".{told}.log")
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(course.log)
                raw = {"asked": [asdict(one) for one in course.asked], "samples": [asdict(one) for one in course.samples]}
                args.json.with_suffix(f".{told}.json").write_text(json.dumps(raw))
        return courses, budget_ms, said


if __name__ == "__main__":
    main()
