"""Claim: further routes of a bundle cost a few megabytes each, because all of them map the same weights.

    python benchmarks/route_memory.py [--family resnet18-50 deit-ti-s] [--routes 8] [--json FILE]

Loads routes one after the other and runs each once; PSS of the process after each. Then, in a process of its own, plain
ONNX Runtime sessions of the same routes. Prints both per further route, and their factor. What a further route adds is its
own blocks that no route before it had, and anonymous memory (activations, session); the latter is shown by itself too.
"""

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np
from families import FAMILIES, ROOT, family

from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.machine import describe_machine
from restnet_runtime.memory import Footprint, footprint
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
from restnet_runtime.tables import table


def grow(path: Path, names: list[str], plain: bool, queue: "multiprocessing.Queue[list[Footprint]]") -> None:
    """The footprint before the first and after each route."""
    bundle = open_bundle(path)
    compiler = Compiler.for_bundle(bundle, ROOT / "cache")
    x = np.zeros((1, *bundle.manifest.input.shape), np.float32)
    sessions, sizes = [], []
    for name in [None, *names]:
        if name is not None:
            route = bundle.route(name)
            sessions.append(
                plain_session(bundle, route, SessionSettings()) if plain else load_session(compiler.compile(route), SessionSettings())
            )
            infer(sessions[-1], x)
        sizes.append(footprint())
    queue.put(sizes)


def measure(path: Path, names: list[str], plain: bool) -> list[Footprint]:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[Footprint]] = context.Queue()
    process = context.Process(target=grow, args=(path, names, plain, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process that loads the routes ended with {process.exitcode}")
    return queue.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=sorted(FAMILIES))
    parser.add_argument("--routes", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.family:
        bundle = family(name)
        compiler = Compiler.for_bundle(bundle, ROOT / "cache")
        names = [route.name for route in sorted(bundle.routes, key=lambda route: -route.macs)][: args.routes]
        for route in names:
            compiler.compile(bundle.route(route))
        ours, theirs = measure(bundle.path, names, plain=False), measure(bundle.path, names, plain=True)
        further = len(names) - 1
        rows.append(
            {
                "family": name,
                "routes": len(names),
                "first_bytes": ours[1].pss_bytes - ours[0].pss_bytes,
                "further_bytes": (ours[-1].pss_bytes - ours[1].pss_bytes) / further,
                "further_anonymous_bytes": (ours[-1].anonymous_bytes - ours[1].anonymous_bytes) / further,
                "plain_first_bytes": theirs[1].pss_bytes - theirs[0].pss_bytes,
                "plain_further_bytes": (theirs[-1].pss_bytes - theirs[1].pss_bytes) / further,
                "factor": (theirs[-1].pss_bytes - theirs[0].pss_bytes) / (ours[-1].pss_bytes - ours[0].pss_bytes),
            }
        )
    print(
        table(
            ("family", "routes", "first", "each further", "of it anonymous", "plain first", "plain each further", "plain / ours, all"),
            (
                (
                    row["family"],
                    str(row["routes"]),
                    *(
                        f"{row[f'{key}_bytes'] / 1e6:.1f} MB"
                        for key in ("first", "further", "further_anonymous", "plain_first", "plain_further")
                    ),
                    f"{row['factor']:.1f}x",
                )
                for row in rows
            ),
        )
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
