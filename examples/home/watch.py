"""What a camera sees, told to a home: `python watch.py --snapshot http://CAMERA/snapshot.jpg --post http://HOME:8123/api/webhook/ID`.

Fetches a snapshot every second or so, has it classified by `restnet-serve`, and says so when the class has changed: one line of JSON on
standard output, and where `--post` is given the same to that address (a webhook of Home Assistant, Node-RED, or anything else). A class
counts once it was the most probable one, and probable enough, several times in a row, so that one odd frame rings no bell.

Needs the standard library alone.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Cameras and servers of a home are asked directly."""


@dataclass
class Steady:
    """Tells when the class has really changed.

    sure:   the least probability that counts
    times:  so many frames in a row must agree
    """

    sure: float
    times: int
    current: str | None = None
    _next: str | None = None
    _seen: int = 0

    def changed(self, name: str, probability: float) -> bool:
        """Take one frame's answer; is its class the new current one?"""
        if probability < self.sure or name == self.current:
            self._next, self._seen = None, 0
            return False
        self._seen = self._seen + 1 if name == self._next else 1
        self._next = name
        if self._seen < self.times:
            return False
        self.current, self._next, self._seen = name, None, 0
        return True


def fetch(url: str, timeout_s: float = 5.0) -> bytes:
    """A snapshot of the camera."""
    with NO_PROXY.open(url, timeout=timeout_s) as response:
        body: bytes = response.read()
    return body


def predict(server: str, image: bytes, budget: str | None = None, timeout_s: float = 5.0) -> dict[str, Any]:
    """The answer of `POST /predict` to one image file."""
    headers = {"Content-Type": "application/octet-stream", **({"X-Restnet-Budget": budget} if budget else {})}
    with NO_PROXY.open(urllib.request.Request(f"{server}/predict?top_k=1", image, headers), timeout=timeout_s) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def post(url: str, event: dict[str, Any], timeout_s: float = 5.0) -> None:
    """Send an event as JSON."""
    request = urllib.request.Request(url, json.dumps(event).encode(), {"Content-Type": "application/json"})
    with NO_PROXY.open(request, timeout=timeout_s) as response:
        response.read()


def watch(
    look: Callable[[], dict[str, Any]], tell: Callable[[dict[str, Any]], None], steady: Steady, every_s: float, count: int | None
) -> None:
    """Look again and again, `count` times or for ever; a camera or a server that is away for a while is no reason to end."""
    looked = 0
    while count is None or looked < count:
        began = time.monotonic()
        looked += 1
        try:
            answer = look()
            if steady.changed(answer["class"], answer["probability"]):
                tell({key: answer[key] for key in ("class", "probability", "route", "latency_ms", "budget_met")})
        except (OSError, ValueError) as error:  # refused, timed out, an error status, or no JSON
            print(f"watch.py: {error}", file=sys.stderr)
        if count is None or looked < count:
            time.sleep(max(0.0, every_s - (time.monotonic() - began)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Say what a camera sees when that changes.")
    parser.add_argument(
        "--snapshot", required=True, metavar="URL", help="where the camera, Frigate or another program has its latest image"
    )
    parser.add_argument("--server", default="http://127.0.0.1:8080", metavar="URL", help="restnet-serve (default: %(default)s)")
    parser.add_argument("--post", metavar="URL", help="send each change there, as JSON")
    parser.add_argument("--budget", metavar="LIMITS", help="of each request, as 200ms")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks (default: %(default)g)")
    parser.add_argument("--sure", type=float, default=0.8, metavar="P", help="least probability that counts (default: %(default)g)")
    parser.add_argument("--times", type=int, default=2, metavar="N", help="frames in a row that must agree (default: %(default)s)")
    parser.add_argument("--count", type=int, metavar="N", help="looks, then end (default: for ever)")
    args = parser.parse_args()

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)
        if args.post:
            post(args.post, event)

    steady = Steady(args.sure, args.times)
    watch(lambda: predict(args.server, fetch(args.snapshot), args.budget), tell, steady, args.every, args.count)


if __name__ == "__main__":
    main()
