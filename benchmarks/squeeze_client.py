"""A client that does not wait: requests go out at even times, whatever became of those before, and lateness counts from those times."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import quantiles
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
MOST = 128
"""Requests under way at once. Beyond that one waits for another to end, which counts as its latency."""


@dataclass(frozen=True)
class Asked:
    """One request. due_s: when it was to go out, on the client's clock; latency_ms: from then to the last byte of the answer."""

    due_s: float
    latency_ms: float
    status: int  # 0: no answer
    route: str | None = None
    run_ms: float | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


class Client:
    """Sends `body` to `/predict` `rate_per_s` times a second from `start` to `stop`."""

    def __init__(self, url: str, body: bytes, content_type: str, rate_per_s: float) -> None:
        self._host = urlsplit(url).netloc
        self._body, self._headers, self._rate = body, {"Content-Type": content_type}, rate_per_s
        self._pool = ThreadPoolExecutor(MOST, thread_name_prefix="ask")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send, name="send")
        self.asked: list[Asked] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Asked]:
        """Wait for the answers that are under way; all requests in the order in which they were due."""
        self._stopping.set()
        self._thread.join()
        self._pool.shutdown()
        return sorted(self.asked, key=lambda one: one.due_s)

    def _send(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
            self._pool.submit(self._ask, due_s)
            due_s += 1 / self._rate

    def _ask(self, due_s: float) -> None:
        one = Asked(due_s, 0.0, 0)
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)  # a new one: a kept one may end as it is used
        try:
            connection.request("POST", "/predict", self._body, self._headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            one = replace(one, status=answer.status, route=said.get("route"), run_ms=said.get("latency_ms"), problem=said.get("error", ""))
        except (OSError, ValueError, http.client.HTTPException) as error:
            one = replace(one, problem=repr(error)[:200])
        finally:
            connection.close()
        self.asked.append(replace(one, latency_ms=(time.monotonic() - due_s) * 1e3))


def p95_ms(latencies_ms: list[float]) -> float:
    return latencies_ms[0] if len(latencies_ms) == 1 else quantiles(latencies_ms, n=20, method="inclusive")[-1]
