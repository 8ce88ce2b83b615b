"""Hostile input for `restnet-serve`, a process of its own, and for bundles, for minutes; `tests/runtime/test_fuzz.py` does a little of it.

    python scripts/fuzz.py [--minutes 5] [--seed 1]        # or make fuzz

Prints for each kind how many inputs were tried, how many answers were 5xx (503 and 504 may be right), and faults: another 5xx, an error
without its reason, an answer that the OpenAPI description does not have, no answer. Writes the inputs that showed them to build/fuzz and
ends with 1 where there was one, or where the server is gone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import httpx  # noqa: E402

from restnet_export.writer import write_bundle  # noqa: E402
from restnet_runtime.bundle import open_bundle  # noqa: E402
from restnet_runtime.compose import compose  # noqa: E402
from tests.runtime.conftest import family  # noqa: E402
from tests.runtime.fuzz_openapi import fuzz_openapi  # noqa: E402
from tests.runtime.fuzz_targets import Tally, fuzz_bundles, fuzz_images, fuzz_other_bodies, fuzz_v2  # noqa: E402

OUT = REPOSITORY / "build" / "fuzz"
SERVE = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"


def compose_all(path: Path) -> None:
    bundle = open_bundle(path)
    for route in bundle.routes:
        compose(bundle, route)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round (default: another at each start)")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder, (OUT / "server.log").open("w") as log:
        path = write_bundle(family(), Path(folder) / "shapes").path
        command = [sys.executable, "-c", SERVE, str(path), "--port", "0", "--max-body", "500000", "--cache", str(Path(folder) / "cache")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"PYTHONFAULTHANDLER": "1"})
        try:
            assert server.stdout is not None
            url = next(line for line in server.stdout if line.startswith("listening on ")).split()[-1]
            tallies = fuzz(server, url, path, Path(folder), args.minutes * 60, args.seed)
        finally:
            server.terminate()
            server.wait()
    return report(tallies, server.returncode)


def fuzz(server: "subprocess.Popen[str]", url: str, path: Path, folder: Path, seconds: float, seed: int) -> dict[str, Tally]:
    """Rounds with ever new seeds until the time is over, or the server is gone."""
    tallies: dict[str, Tally] = {}
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        targets: list[tuple[str, Callable[[int], Tally]]] = [
            ("images", lambda seed: fuzz_images(client, 400, seed)),
            ("V2, binary", lambda seed: fuzz_v2(client, 400, seed)),
            ("other bodies", lambda seed: fuzz_other_bodies(client, 400, seed)),
            ("bundles", lambda seed: fuzz_bundles(path, folder, 60, seed, compose_all)),
        ]
        while time.monotonic() < ends and server.poll() is None:
            for name, target in targets:
                add(tallies, name, target(seed))
            client.put("/budget", json={"budget": "none"}).raise_for_status()
            for tally in fuzz_openapi(url, 25, seed).values():
                add(tallies, "OpenAPI", tally)
            client.put("/budget", json={"budget": "none"}).raise_for_status()
            client.delete("/pin").raise_for_status()
            seed += 1
    return tallies


def add(tallies: dict[str, Tally], name: str, more: Tally) -> None:
    tally = tallies.setdefault(name, Tally())
    tally.tried += more.tried
    tally.statuses += more.statuses
    tally.faults += more.faults


def report(tallies: dict[str, Tally], code: int) -> int:
    total = Tally()
    for name, tally in tallies.items():
        print(f"{name:>13}: {tally}")
        add({"": total}, "", tally)
        for number, (reason, data) in enumerate(tally.faults[:20]):
            print(f"{'':>15}{reason[:300]}")
            (OUT / f"{name.split(',')[0].replace(' ', '-')}-{number}.bin").write_bytes(data)
    crashes = int(code not in (0, -15))
    print(f"{'all':>13}: {total}; crashes {crashes} (the server ended with {code})")
    return int(bool(total.faults) or crashes > 0)


if __name__ == "__main__":
    sys.exit(main())
