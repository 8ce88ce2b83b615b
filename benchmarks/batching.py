"""Claim: requests that meet share a run where that pays, and are left alone where it does not (`--batching auto`).

    python benchmarks/batching.py [--routes resnet18-50-32px/resnet50 ...] [--clients 1 2 4 8] [--seconds 0.8] [--json FILE]

Client threads ask for one image after the other, as fast as they are answered. Peers, in turns in one process over the same sessions: off
(each client runs its own request), off with as many at once as there are cores (what `restnet-serve` does without batching), on, and
auto after it has had time to learn. Outputs are compared with those of single runs throughout. Prints answers per second over those of
`off`, and the 95th percentile of what a caller waits; medians of the rounds.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from families import FAMILIES, ROOT, family

from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.batching import Batcher
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.engine import SHIPPED_BUNDLE
from restnet_runtime.executor import Executor
from restnet_runtime.machine import describe_machine
from restnet_runtime.profile import percentile
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.tables import table
from restnet_runtime.threads import usable_cores

ROUTES = ("digits/cnn-s", "digits/cnn-l", "resnet18-50-32px/resnet18", "resnet18-50-32px/resnet50", "deit-ti-s/deit-tiny-patch16-224")
LEARNING_ANSWERS = 400
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
):
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


def measure(executor: Executor, route: str, inputs: list[np.ndarray], clients: int, args: argparse.Namespace) -> dict[str, object]:
    expected = [executor.run(x, route).logits for x in inputs]
    if len({logits.argmax() + round(float(logits.max()), 4) for logits in expected}) < len(inputs):
        raise SystemExit(f"{route} answers different inputs alike: nothing could be told from its outputs")
    cores = usable_cores()
    peers = [
        Peer("off", executor, route, BatchSettings()),
        Peer(f"off, {cores} at once", executor, route, BatchSettings(), cores),
        Peer("on", executor, route, BatchSettings("on")),
        Peer("auto", executor, route, BatchSettings("auto")),
    ]
    drive(peers[-1].run, inputs, expected, clients, 0.3, LEARNING_ANSWERS if clients > 1 else 1)
    for number in range(args.rounds):
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            rate, p95_ms = drive(peer.run, inputs, expected, clients, args.seconds)
            peer.rates.append(rate)
            peer.p95_ms.append(p95_ms)
    off = percentile(peers[0].rates, 0.5)
    return {
        "route": route,
        "clients": clients,
        "peers": {
            peer.name: {
                "per_s": percentile(peer.rates, 0.5),
                "ratio": percentile(peer.rates, 0.5) / off,
                "p95_ms": percentile(peer.p95_ms, 0.5),
                "mean_batch": counts.requests / counts.runs if (counts := peer.batcher.counts()).runs else 1.0,
            }
            for peer in peers
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", nargs="+", default=ROUTES, metavar="FAMILY/ROUTE", help=f"families: digits, {', '.join(FAMILIES)}")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of one run (default: the usable cores)")
    parser.add_argument("--seconds", type=float, default=0.8, help="of each round of each peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows, bundles = [], dict[str, Bundle]()
    for wanted in args.routes:
        name, _, route = wanted.partition("/")
        if name not in bundles:
            bundles[name] = open_bundle(SHIPPED_BUNDLE) if name == "digits" else family(name)
        bundle = bundles[name]
        executor = Executor(bundle, Compiler.for_bundle(bundle, ROOT / "cache"), SessionSettings(args.threads))
        executor.load(route)
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal((1, *bundle.manifest.input.shape)).astype(np.float32) for _ in range(13)]
        for clients in args.clients:
            rows.append({"family": name, "threads": args.threads, **measure(executor, route, inputs, clients, args)})
            peers = rows[-1]["peers"]
            print(f"{wanted}, {clients} clients: " + ", ".join(f"{peer} {got['ratio']:.2f}" for peer, got in peers.items()), flush=True)
        executor.close()
    cells = (
        (
            row["route"],
            str(row["clients"]),
            f"{row['peers']['off']['per_s']:.0f}/s",
            *(f"{got['ratio']:.2f}" for peer, got in row["peers"].items() if peer != "off"),
            *(f"{got['p95_ms']:.3g} ms" for got in row["peers"].values()),
            f"{row['peers']['auto']['mean_batch']:.1f}",
        )
        for row in rows
    )
    names = list(rows[0]["peers"])
    print(table(("route", "clients", "off", *(f"{n} / off" for n in names[1:]), *(f"{n}, p95" for n in names), "auto: mean batch"), cells))
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
