"""A camera that has its frames classified as they come, and never falls behind: `python camera.py --fps 15 --frames DIR`.

It works out the latency budget from the frame rate, sends it with each frame, and takes the newest frame after each answer: what came in
between is skipped, not queued. Frames are image files of a directory, over and over, as a stand-in for a real camera: replace `frames`.

Needs the standard library alone, so it can run on a device beside `restnet-serve` or on another machine.
"""

import argparse
import http.client
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SHARE = 0.8
"""Of the time between two frames: what is left over absorbs a frame that takes longer."""


def latency_budget_ms(fps: float, beside_ms: float, share: float = SHARE) -> float:
    """What the network may take of each frame: a share of the frame's time, less what passes beside the server.

    Raises ValueError where that leaves nothing.
    """
    left = share * 1000 / fps - beside_ms
    if left <= 0:
        raise ValueError(
            f"{fps:g} frames a second leave {share * 1000 / fps:.1f} ms for each, and {beside_ms:.1f} ms pass beside the server"
        )
    return left


def frames(folder: Path) -> Iterator[bytes]:
    """Image files of a directory, over and over."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"camera.py: no .jpg or .png in {folder}")
    return itertools.cycle(file.read_bytes() for file in files)


class Server:
    """One connection to `restnet-serve`, kept open: a new one for each frame would cost a millisecond or more."""

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def predict(self, image: bytes, budget_ms: float | None = None, deadline_ms: float | None = None) -> dict[str, Any]:
        """The answer to one image. Raises `RefusedError` for an answer other than 200."""
        headers = {"Content-Type": "application/octet-stream"}
        if budget_ms is not None:
            headers["X-Restnet-Budget"] = f"{budget_ms:.3f}ms"
        if deadline_ms is not None:
            headers["X-Restnet-Deadline"] = f"{deadline_ms:.3f}ms"
        self._connection.request("POST", "/predict?top_k=1", image, headers)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RefusedError(f"{response.status}: {answer['error']}")
        return answer


class RefusedError(Exception):
    """The server would not answer this frame: too many requests wait, its deadline has passed, or no route fits."""


@dataclass
class Counts:
    """What became of the frames."""

    answered: int = 0
    late: int = 0
    skipped: int = 0
    refused: int = 0
    over_budget: int = 0
    took_ms: list[float] = field(default_factory=list)
    routes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        median = f"{statistics.median(self.took_ms):.1f} ms" if self.took_ms else "-"
        routes = ", ".join(f"{route} {count}" for route, count in self.routes.most_common())
        return (
            f"{self.answered} answered, {self.late} late, {self.skipped} skipped, {self.refused} refused, "
            f"{self.over_budget} over budget; median {median}; routes: {routes or '-'}"
        )


def beside_ms(server: Server, images: Iterator[bytes], count: int = 10) -> float:
    """What passes beside the network for each frame: transport, decoding, and this program; the median of a few frames."""
    differences = []
    for image in itertools.islice(images, count):
        began = time.perf_counter()
        answer = server.predict(image)
        differences.append(1000 * (time.perf_counter() - began) - answer["latency_ms"])
    return statistics.median(differences)


def watch(
    server: Server,
    images: Iterator[bytes],
    fps: float,
    budget_ms: float,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Counts:
    """Take frames at a rate for some seconds. A frame is late when its answer comes after the next frame."""
    counts, period_s, began = Counts(), 1 / fps, clock()
    number, last = 0, int(seconds * fps)
    while number < last:
        due = began + number * period_s
        if (early_s := due - clock()) > 0:
            sleep(early_s)
        try:
            answer = server.predict(next(images), budget_ms, 1000 * period_s)
        except RefusedError:
            counts.refused += 1
        else:
            took_s = clock() - due
            counts.answered += 1
            counts.late += took_s > period_s
            counts.over_budget += not answer["budget_met"]
            counts.took_ms.append(1000 * took_s)
            counts.routes[answer["route"]] += 1
        newest = max(number + 1, int((clock() - began) * fps))
        skipped = min(newest, last) - number - 1
        counts.skipped += skipped
        for _ in range(skipped):
            next(images)
        number = newest
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify frames as they come, within the time that each has.")
    parser.add_argument("--server", default="http://127.0.0.1:8080", metavar="URL", help="(default: %(default)s)")
    parser.add_argument("--frames", type=Path, required=True, metavar="DIR", help="image files, taken over and over")
    parser.add_argument("--fps", type=float, default=15.0, metavar="N", help="frames a second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="(default: %(default)g)")
    args = parser.parse_args()
    server, images = Server(args.server), frames(args.frames)
    beside = beside_ms(server, images)
    try:
        budget = latency_budget_ms(args.fps, beside)
    except ValueError as error:
        raise SystemExit(f"camera.py: {error}") from None
    print(f"{1000 / args.fps:.1f} ms for each frame, {beside:.1f} ms of it beside the network: budget {budget:.1f} ms")
    print(watch(server, images, args.fps, budget, args.seconds))


if __name__ == "__main__":
    main()
