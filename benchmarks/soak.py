"""Claim: a server under a constant load for a long time does not grow, does not slow down and fails nothing.

    python benchmarks/soak.py [--minutes 20] [--rate 20] [--json FILE]

A real `restnet-serve` with the digits. Its clients send images, V2 requests in JSON and in binary, and now and then a body that is refused;
one listens to events, one scrapes metrics, the budget is another one every few seconds, so routes change all the time. Memory is the
proportional set size (PSS) of the process; its slope is a straight line through all but the first quarter, during which caches and pools
of threads fill.
"""

import argparse
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil
from common import ROOT, Floor, Result, arguments, publish, quantile
from http_overhead import binary_request, json_request
from squeeze import SERVE, picture_to_send

SLOPE_MB, GROWTH_MB = 5.0, 4.0
"""An hour; and between the second quarter and the last."""
SLOWER = 1.5
BUDGETS = ("none", "0.2MFLOPs", "1.5MFLOPs", "5ms")
EVERY_S = 4.0
"""Seconds between two budgets."""


@dataclass
class Seen:
    """What the clients and the watcher saw: (seconds since the start, ms), statuses by kind of request, (seconds, bytes)."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    events: int = 0


def ask(host: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def listen(host: str, over: threading.Event, seen: Seen) -> None:
    """Events, as an open dashboard does."""
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", "/events", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    while not over.is_set() and answer.readline():
        seen.events += 1
    connection.close()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=20, help="requests per second (%(default)s)")
    args = parser.parse_args()
    started, seen, over = time.monotonic(), Seen(), threading.Event()
    process = subprocess.Popen([sys.executable, "-c", SERVE, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = next(line.split()[-1] for line in process.stdout if line.startswith("listening on "))
        run(urlsplit(url).netloc, process.pid, args, seen, over)
    finally:
        over.set()
        process.terminate()
        process.wait(30)
    result = Result(f"{args.minutes:g} minutes of {args.rate:g} requests a second", ("minute", "p50", "p99", "requests", "memory"))
    report(result, seen, args)
    publish(result, args, started)


def run(host: str, pid: int, args: argparse.Namespace, seen: Seen, over: threading.Event) -> None:
    x = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    with_model = json.loads(fetch(host, "/v2/models/digits"))
    assert with_model["inputs"][0]["shape"][1:] == [1, 8, 8], with_model
    binary, _, headers = binary_request(ROOT / "soak", x)
    kinds = itertools.cycle(
        [
            ("image", 200, "/predict", picture_to_send(32), {"Content-Type": "image/jpeg"}),
            ("V2 in binary", 200, "/v2/models/digits/infer", binary.read_bytes(), headers),
            (
                "V2 in JSON",
                200,
                "/v2/models/digits/infer",
                json_request(ROOT / "soak", x).read_bytes(),
                {"Content-Type": "application/json"},
            ),
            ("image with a budget", 200, "/predict?budget=0.2MFLOPs", picture_to_send(32), {"Content-Type": "image/jpeg"}),
            ("no image", 400, "/predict", b"GIF89a and no more", {"Content-Type": "image/gif"}),
        ]
    )
    threading.Thread(target=listen, args=(host, over, seen), daemon=True).start()
    budgets, server = itertools.cycle(BUDGETS), psutil.Process(pid)
    began = time.monotonic()
    due_s, next_budget_s, next_look_s, last_s = began, began, began, began + 60 * args.minutes
    while due_s < last_s:
        time.sleep(max(0.0, due_s - time.monotonic()))
        name, expected, path, body, fields = next(kinds)
        asked_s = time.monotonic()
        status = ask(host, "POST", path, body, fields)
        seen.statuses[name, status] += 1
        if status == expected == 200:
            seen.answered.append((asked_s - began, (time.monotonic() - asked_s) * 1e3))
        if asked_s >= next_budget_s:
            next_budget_s += EVERY_S
            budget = json.dumps({"budget": next(budgets)}).encode()
            seen.statuses["a new budget", ask(host, "PUT", "/budget", budget, {"Content-Type": "application/json"})] += 1
        if asked_s >= next_look_s:
            next_look_s += 5.0
            seen.statuses["metrics", ask(host, "GET", "/metrics")] += 1
            seen.memory.append((asked_s - began, server.memory_full_info().pss))
        due_s += 1 / args.rate


def fetch(host: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", path)
    return connection.getresponse().read()


def report(result: Result, seen: Seen, args: argparse.Namespace) -> None:
    seconds = 60 * args.minutes
    for minute in range(int(seconds // 60)):
        taken = [ms for at_s, ms in seen.answered if minute <= at_s / 60 < minute + 1]
        memory = [size for at_s, size in seen.memory if minute <= at_s / 60 < minute + 1]
        if taken and memory:
            cells = f"{quantile(taken, 0.5):.1f} ms", f"{quantile(taken, 0.99):.1f} ms", str(len(taken)), f"{memory[-1] / 1e6:.1f} MB"
            result.cells.append((str(minute + 1), *cells))
    result.rows += [{"at_s": at_s, "pss_bytes": size} for at_s, size in seen.memory]
    expected = {"no image": 400}
    wrong = {f"{name}: {status}": count for (name, status), count in seen.statuses.items() if status != expected.get(name, 200)}
    total = sum(seen.statuses.values())
    later = [(at_s, size) for at_s, size in seen.memory if at_s >= seconds / 4]
    slope = float(np.polyfit([at_s / 3600 for at_s, _ in later], [size / 1e6 for _, size in later], 1)[0])
    second = [size / 1e6 for at_s, size in seen.memory if seconds / 4 <= at_s < seconds / 2]
    last = [size / 1e6 for at_s, size in seen.memory if at_s >= seconds * 3 / 4]
    grown = quantile(last, 0.5) - quantile(second, 0.5)
    early = quantile([ms for at_s, ms in seen.answered if seconds / 4 <= at_s < seconds / 2], 0.5)
    late = quantile([ms for at_s, ms in seen.answered if at_s >= seconds * 3 / 4], 0.5)
    result.floors += [
        Floor("answers that were not what they should be", f"{total} requests", "none", str(sum(wrong.values())), not wrong),
        Floor("slope of memory", "a straight line", f"<= {SLOPE_MB:g} MB an hour", f"{slope:+.1f} MB an hour", slope <= SLOPE_MB),
        Floor("memory, last quarter", "the second", f"<= +{GROWTH_MB:g} MB", f"{grown:+.1f} MB", grown <= GROWTH_MB),
        Floor("p50, last quarter", "the second", f"<= {SLOWER:g}x", f"{late / early:.2f}x", late <= SLOWER * early),
    ]
    result.notes.append(f"{seen.events} lines of events heard; {', '.join(f'{n} {s}: {c}' for (n, s), c in sorted(seen.statuses.items()))}")
    if wrong:
        result.notes.append(f"not as they should be: {wrong}")


if __name__ == "__main__":
    main()
