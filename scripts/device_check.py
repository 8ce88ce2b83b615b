"""Check an installation on a device: start `restnet-serve`, classify PNG files, tighten the budget, print what happened as JSON.

    python scripts/device_check.py IMAGES [--bundle DIR] [--budget 600kFLOPs]

IMAGES holds files named after their class (3.png). Needs nothing but the device install. Exits 1 if an answer is wrong,
the budget does not change the route, or the server does not end cleanly.
"""

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path


def request(url: str, method: str = "GET", body: bytes | None = None, content_type: str = "application/json") -> dict:
    message = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": content_type} if body else {})
    with urllib.request.urlopen(message, timeout=60) as answer:
        return json.load(answer)


def wait_until_loaded(url: str, server: subprocess.Popen, limit_s: float) -> dict:
    """The server's status once every route is loaded."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            status = request(f"{url}/status")
            if len(status["routes"]["loaded"]) == status["routes"]["known"]:
                return status
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"not ready within {limit_s:.0f} s, exit status {server.poll()}")


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel tells no PSS")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a device install.")
    parser.add_argument("images", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--budget", default="600kFLOPs")
    parser.add_argument("--limit", type=float, default=300, help="seconds to get ready in (default: %(default)s)")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    files = sorted(args.images.glob("*.png"))
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"]
        command += [str(args.bundle)] if args.bundle else []
        started = time.monotonic()
        server = subprocess.Popen([*command, "--port", str(port), "--cache", cache], stderr=subprocess.DEVNULL, env=os.environ)
        try:
            wait_until_loaded(url, server, args.limit)
            ready_s = time.monotonic() - started
            before = {file.stem: request(f"{url}/predict", "POST", file.read_bytes(), "image/png") for file in files}
            memory = pss_bytes(server.pid)
            request(f"{url}/budget", "PUT", json.dumps({"budget": args.budget}).encode())
            after = {file.stem: request(f"{url}/predict", "POST", file.read_bytes(), "image/png") for file in files}
        finally:
            server.send_signal(signal.SIGTERM)
            exit_status = server.wait(60)
    report = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "classes": {stem: answer["class"] for stem, answer in before.items()},
        "routes": sorted({answer["route"] for answer in before.values()}),
        "routes_under_budget": sorted({answer["route"] for answer in after.values()}),
        "classes_under_budget": {stem: answer["class"] for stem, answer in after.items()},
        "pss_mb": round(memory / 1e6, 1),
        "ready_s": round(ready_s, 1),
        "exit_status": exit_status,
    }
    print(json.dumps(report, indent=1))
    wrong = [stem for stem, name in report["classes"].items() if stem != name]
    sound = files and not wrong and exit_status == 0 and report["routes"] != report["routes_under_budget"]
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
