"""Claim: a thousand switches under four concurrent clients lose no answer, mix none up, and leave no memory behind.

    python benchmarks/churn.py [--bundle digits resnet18-50] [--switches 1000] [--clients 4] [--json FILE]

Clients ask without a pause while the current route is switched at random to another one, each switch after at least one more answer.
Every output is compared, bit for bit, with what its route's session gives when nothing else runs. Memory is taken once every client has
been answered on every route, which the arena that all of them share grows for, and then after every fiftieth switch. Growth is that
of anonymous memory, which other processes do not change: the median of the last quarter of the samples less that of the second quarter;
the slope is that of a line through PSS in the second half (least squares).
"""

import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from common import Floor, Result, arguments, compile_all, in_child, load_all, noise, publish
from families import DIGITS, FAMILIES, family

FLOOR_SWITCHES = 1000
GROWTH_FLOOR_BYTES = 2e6
SAMPLES = 20


def churn(path: Path, threads: int, switches: int, clients: int) -> dict[str, Any]:
    import numpy as np

    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.memory import footprint

    executor = load_all(open_bundle(path), threads)
    x = noise(executor.bundle)
    expected = {name: executor.load(name).session.run(["y"], {"x": x})[0] for name in executor.loaded}
    answers, wrong, failures, done = [0] * clients, [0] * clients, [0] * clients, threading.Event()

    def ask(client: int) -> None:
        while not done.is_set():
            try:
                answer = executor.run(x)
                wrong[client] += not np.array_equal(answer.logits, expected[answer.route.name])
            except Exception:  # whatever it is, a client had no answer
                failures[client] += 1
            answers[client] += 1

    workers = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for worker in workers:
        worker.start()
    for name in executor.loaded:
        executor.switch(name)
        # One answer may be of a request that began before the switch.
        seen = list(answers)
        while min(now - then for now, then in zip(answers, seen, strict=True)) < 2:
            time.sleep(0.0002)
    draw, sizes, before, warm = random.Random(0), [footprint()], time.monotonic(), sum(answers)
    for count in range(1, switches + 1):
        executor.switch(draw.choice([name for name in executor.loaded if executor.current is None or name != executor.current.name]))
        so_far = sum(answers)
        while sum(answers) == so_far:
            time.sleep(0.0002)
        if count % max(1, switches // SAMPLES) == 0:
            sizes.append(footprint())
    took_s = time.monotonic() - before
    done.set()
    for worker in workers:
        worker.join()
    pss, anonymous = [size.pss_bytes for size in sizes], [size.anonymous_bytes for size in sizes]
    half, quarter = pss[len(pss) // 2 :], len(pss) // 4
    slope = float(np.polyfit(range(len(half)), half, 1)[0]) * SAMPLES * 1000 / switches
    return {
        "bundle": path.name,
        "routes": len(executor.loaded),
        "switches": switches,
        "clients": clients,
        "seconds": took_s,
        "answers": sum(answers) - warm,
        "failed": sum(failures),
        "wrong": sum(wrong),
        "pss_bytes": pss,
        "slope_bytes_per_1000": slope,
        "growth_bytes": statistics.median(anonymous[-quarter:]) - statistics.median(anonymous[quarter : 2 * quarter]),
    }


def _held(row: dict[str, Any], switches: int) -> bool | None:
    if row["failed"] or row["wrong"] or row["growth_bytes"] > GROWTH_FLOOR_BYTES:
        return False
    return True if switches >= FLOOR_SWITCHES else None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", nargs="+", choices=[DIGITS, *sorted(FAMILIES)], default=[DIGITS, "resnet18-50"])
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of one request (%(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    result = Result(
        f"Churn: {args.switches} switches under {args.clients} clients",
        ("bundle", "routes", "answers", "failed", "wrong", "PSS first", "PSS last", "slope per 1,000 switches", "seconds"),
    )
    for name in args.bundle:
        path = family(name).path
        in_child(compile_all, path)
        row = in_child(churn, path, args.threads, args.switches, args.clients)
        result.rows.append(row)
        sizes = (f"{size / 1e6:.1f} MB" for size in (row["pss_bytes"][0], row["pss_bytes"][-1], row["slope_bytes_per_1000"]))
        counts = (str(row[key]) for key in ("routes", "answers", "failed", "wrong"))
        result.cells.append((name, *counts, *sizes, f"{row['seconds']:.1f}"))
        result.floors.append(
            Floor(
                f"{args.switches:,} switches under {args.clients} concurrent clients, {name}",
                "each route's direct run, bit for bit",
                f"0 failed, 0 wrong, growth <= {GROWTH_FLOOR_BYTES / 1e6:.0f} MB",
                f"{row['failed']} failed, {row['wrong']} wrong of {row['answers']:,}, grew by {row['growth_bytes'] / 1e6:.1f} MB",
                _held(row, args.switches),
            )
        )
    publish(result, args, started)


if __name__ == "__main__":
    main()
