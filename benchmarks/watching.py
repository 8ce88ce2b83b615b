"""What being watched costs the device: the metrics on each request, one scrape, and an open dashboard.

The dashboard: CPU time of `restnet-serve` over a while with the page open in Chromium, against the same server without it, in turns.
Metrics and request ids: microseconds that a request costs more, in the same process and in turns, and of a scrape.

    python benchmarks/watching.py [--seconds 60] [--json FILE]

Needs Chromium and playwright (the dev extra) for the first; without them only the second is measured.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from starlette.types import ASGIApp, Message

from restnet_runtime.metrics import Metrics
from restnet_runtime.observing import Observing

FLOOR_CORE, FLOOR_US = 0.01, 20.0
SERVE = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"


@contextmanager
def server() -> Iterator[tuple[psutil.Process, str]]:
    """restnet-serve with the digits, in a process of its own, once every route is ready; and its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        url = process.stdout.readline().rpartition(" ")[2].strip()
        while "routes ready" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(3)
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.communicate()


def cores_used(process: psutil.Process, seconds: float) -> float:
    """CPU time over time, children included."""

    def taken() -> float:
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    before, began_s = taken(), time.perf_counter()
    time.sleep(seconds)
    return (taken() - before) / (time.perf_counter() - began_s)


def watch_page(seconds: float, rounds: int) -> dict[str, Any] | None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    alone, watched = [], []
    with server() as (process, url), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(rounds):
            alone.append(cores_used(process, seconds / rounds))
            page = chromium.new_page()
            page.goto(url)
            page.wait_for_selector('#connection[data-state="live"]')
            page.wait_for_timeout(1000)
            watched.append(cores_used(process, seconds / rounds))
            assert "restnet_event_listeners 1.0" in urlopen(f"{url}/metrics").read().decode(), "the page has stopped listening"
            page.close()
            time.sleep(1)
        chromium.close()
    return {"cores_alone": statistics.mean(alone), "cores_watched": statistics.mean(watched), "seconds": seconds}


async def _endpoint(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


def request_cost(rounds: int = 200, requests: int = 200) -> dict[str, float]:
    """Median microseconds of a request through the middleware with its counters, and without; of a scrape of 36 served routes."""
    metrics = Metrics()
    routes = [f"route-{index}" for index in range(36)]
    for route in routes:
        metrics.answered("m", route, met=True, inputs=1, run_s=1e-3, total_s=2e-3)

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        metrics.answered("m", "route-7", met=True, inputs=1, run_s=1e-3, total_s=2e-3)
        await _endpoint(scope, receive, send)

    observed = Observing(counting, lambda *_: None)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        pass

    async def time_of(app: ASGIApp) -> float:
        began_s = time.perf_counter()
        for _ in range(requests):
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"host", b"device"), (b"content-length", b"99")]}
            await app(scope, receive, send)
        return (time.perf_counter() - began_s) / requests * 1e6

    async def turns() -> tuple[list[float], list[float]]:
        plain, counted = [], []
        for _ in range(rounds):
            plain.append(await time_of(_endpoint))
            counted.append(await time_of(observed))
        return plain, counted

    plain, counted = asyncio.run(turns())
    scrapes = []
    for _ in range(20):
        began_s = time.perf_counter()
        metrics.expose()
        scrapes.append((time.perf_counter() - began_s) * 1e3)
    return {
        "request_us": statistics.median(counted) - statistics.median(plain),
        "quiet_request_us": statistics.quantiles(counted, n=10)[0] - statistics.quantiles(plain, n=10)[0],
        "scrape_ms": statistics.median(scrapes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="with the page open, and as long without it (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="turns that this time is shared among (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cost = request_cost()
    median, quiet = cost["request_us"], cost["quiet_request_us"]
    print(f"metrics and request id: {median:.1f} us more a request, {quiet:.1f} us in the quickest tenth; floor {FLOOR_US:.0f} us")
    print(f"a scrape with 36 routes served: {cost['scrape_ms']:.1f} ms")
    page = watch_page(args.seconds, args.rounds)
    met = cost["quiet_request_us"] < FLOOR_US
    if page is None:
        print("an open dashboard: not measured, there is no Chromium or no playwright")
    else:
        more = page["cores_watched"] - page["cores_alone"]
        met = met and more < FLOOR_CORE
        both = f"{page['cores_alone']:.2%} of a core alone, {page['cores_watched']:.2%} with an open dashboard"
        print(f"restnet-serve for {args.seconds:.0f} s each: {both}: {more:.2%} more; floor {FLOOR_CORE:.0%}")
    if args.json is not None:
        with suppress(FileExistsError):
            args.json.parent.mkdir(parents=True)
        args.json.write_text(json.dumps({**cost, "page": page}, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
