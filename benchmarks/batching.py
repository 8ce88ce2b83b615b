"""Claim: requests that meet share a run where that pays, and are left alone where it does not (`--batching auto`).

    python benchmarks/batching.py [--routes resnet18-50-32px/resnet50 ...] [--clients 1 2 4 8] [--seconds 0.8]
                                  [--rounds 5] [--json FILE]

Each route in a process of its own. Client threads ask for one image after the other, as fast as they are answered. Peers, in turns over
the same session: off (each client runs its own request), off with as many at once as there are cores (what `restnet-serve` does without
batching), on, and auto after it has had time to learn. Outputs are compared with those of single runs throughout. Prints answers per
second over those of `off`, the median of the ratios of the rounds, and the 95th percentile of what a caller waits, the median of the
rounds.
"""

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from common import CACHE, Floor, Result, arguments, in_child, noise, publish
from families import DIGITS, FAMILIES, family

from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.batching import Batcher
from restnet_runtime.compile import Compiler
from restnet_runtime.executor import Executor
from restnet_runtime.profile import percentile
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.threads import usable_cores

ROUTES = ("digits/cnn-s", "digits/cnn-l", "resnet18-50-32px/resnet18", "resnet18-50-32px/resnet50", "deit-ti-s/deit-tiny-patch16-224")
FLOOR = 0.95
INPUTS = 13
LEARNING_S, LEARNING_ANSWERS = 1.0, 400
"""What mode auto takes to learn with eight clients, rounded up."""


class Peer:
    """One way to run requests on one route, with what came of it: a rate and a 95th percentile for each round."""

    def __init__(self, name: str, executor: Executor, route: str, settings: BatchSettings, at_once: int | None = None) -> None:
        self.name, self.route, self.executor = name, route, executor
        self.batcher = Batcher(executor, settings, runs=lambda: max(1, usable_cores() // executor.settings.threads))
        self.gate = nullcontext() if at_once is None else threading.BoundedSemaphore(at_once)
        self.rates: list[float] = []
        self.p95_ms: list[float] = []

    def run(self, x: np.ndarray) -> np.ndarray:
        with self.gate:
            return self.batcher.run(x, self.route).answer.logits


def drive(
    run: Callable[[np.ndarray], np.ndarray],
    inputs: list[np.ndarray],
    expected: list[np.ndarray],
    clients: int,
    seconds: float,
    least: int = 0,
) -> tuple[float, float]:
    """(answers per second, 95th percentile in ms) of so many clients, for so long and `least` answers at least.

    Ends the process where an answer is not its input's.
    """
    times: list[list[float]] = [[] for _ in range(clients)]
    wrong: list[str] = []
    start, end = threading.Barrier(clients + 1), threading.Event()

    def client(number: int) -> None:
        i = number
        start.wait()
        while not end.is_set():
            began = time.perf_counter()
            logits = run(inputs[i % len(inputs)])
            times[number].append((time.perf_counter() - began) * 1e3)
            if len(times[number]) % 8 == 1 and not np.allclose(logits, expected[i % len(inputs)], rtol=1e-3, atol=1e-3):
                wrong.append(f"client {number} got another answer for input {i % len(inputs)}")
            i += clients + 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    while sum(map(len, times)) < least:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(wrong[0])
    every = [one for mine in times for one in mine]
    return len(every) / (time.perf_counter() - began), percentile(every, 0.95)


def measure(name: str, route: str, threads: int, clients: list[int], seconds: float, rounds: int) -> list[dict[str, Any]]:
    bundle = family(name)
    executor = Executor(bundle, Compiler.for_bundle(bundle, CACHE), SessionSettings(threads))
    executor.load(route)
    inputs = np.split(noise(bundle, INPUTS), INPUTS)
    expected = [executor.run(x, route).logits for x in inputs]
    if len({logits.argmax() + round(float(logits.max()), 4) for logits in expected}) < len(inputs):
        raise SystemExit(f"{route} answers different inputs alike: nothing could be told from its outputs")
    return [
        {"family": name, "route": route, "threads": threads, **beside(executor, route, inputs, expected, count, seconds, rounds)}
        for count in clients
    ]


def beside(
    executor: Executor, route: str, inputs: list[np.ndarray], expected: list[np.ndarray], clients: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """The peers in turns: who begins changes from round to round."""
    cores = usable_cores()
    peers = [
        Peer("off", executor, route, BatchSettings()),
        Peer(f"off, {cores} at once", executor, route, BatchSettings(), cores),
        Peer("on", executor, route, BatchSettings("on")),
        Peer("auto", executor, route, BatchSettings("auto")),
    ]
    drive(peers[-1].run, inputs, expected, clients, LEARNING_S, LEARNING_ANSWERS if clients > 1 else 1)
    for number in range(rounds):
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            rate, p95_ms = drive(peer.run, inputs, expected, clients, seconds)
            peer.rates.append(rate)
            peer.p95_ms.append(p95_ms)
    off = peers[0].rates
    return {
        "clients": clients,
        "peers": {
            peer.name: {
                "per_s": statistics.median(peer.rates),
                "ratio": statistics.median(rate / other for rate, other in zip(peer.rates, off, strict=True)),
                "p95_ms": statistics.median(peer.p95_ms),
                "mean_batch": counts.requests / counts.runs if (counts := peer.batcher.counts()).runs else 1.0,
            }
            for peer in peers
        },
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--routes", nargs="+", default=ROUTES, metavar="FAMILY/ROUTE", help=f"families: {DIGITS}, {', '.join(FAMILIES)}")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of one run (default: the usable cores)")
    parser.add_argument("--seconds", type=float, default=0.8, help="of each round of each peer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for wanted in args.routes:
        name, _, route = wanted.partition("/")
        family(name)  # made here, if need be, and not where it is measured
        rows += in_child(measure, name, route, args.threads, args.clients, args.seconds, args.rounds)
    names = list(rows[0]["peers"])
    result = Result(
        "Requests that meet: answers per second with batching over those without",
        ("route", "clients", "off", *(f"{peer} / off" for peer in names[1:]), *(f"{peer}, p95" for peer in names), "auto: mean batch"),
        rows=rows,
    )
    for row in rows:
        peers = row["peers"]
        ratios = (f"{got['ratio']:.2f}" for peer, got in peers.items() if peer != "off")
        waits = (f"{got['p95_ms']:.3g} ms" for got in peers.values())
        result.cells.append(
            (
                f"{row['family']}/{row['route']}",
                str(row["clients"]),
                f"{peers['off']['per_s']:.0f}/s",
                *ratios,
                *waits,
                f"{peers['auto']['mean_batch']:.1f}",
            )
        )
    ordered = sorted(rows, key=lambda row: row["peers"]["auto"]["ratio"])
    worst, ratio, best = ordered[0], ordered[0]["peers"]["auto"]["ratio"], ordered[-1]["peers"]["auto"]["ratio"]
    result.floors.append(
        Floor(
            "answers per second, `--batching auto`",
            "batching off",
            f">= {FLOOR}x, each",
            f"worst {ratio:.2f} ({worst['route']}, {worst['clients']} clients), best {best:.2f}",
            ratio >= FLOOR,
        )
    )
    publish(result, args, started)


if __name__ == "__main__":
    main()
