"""What a service manager hears: real datagrams from a real `restnet-serve`, and from one whose loop or workers are stuck."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.notifier import Notifier

PLAIN = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
SERVE = """
import signal, sys, threading, time
from restnet_runtime.cli import serve
from restnet_runtime.executor import Executor

run = Executor.run
stuck = threading.Event()

def stick(*arguments):
    if stuck.is_set():
        threading.Event().wait()
    return run(*arguments)

Executor.run = stick
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))  # handlers run in the thread of the event loop
signal.signal(signal.SIGUSR2, lambda *_: stuck.set())
sys.exit(serve())
"""
"""restnet-serve, with two faults that signals bring about."""
FAILING = SERVE.replace(
    "        threading.Event().wait()\n",
    "        if stuck.once:\n            stuck.clear()\n        print('failed', flush=True)\n        raise RuntimeError('no more')\n",
)
"""restnet-serve whose runs do not hang, but fail; only one of them where `stuck.once` is set."""

WATCHDOG_S = 1.6


class Manager:
    """The end of the socket that systemd has."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[str] = []

    def fill(self) -> None:
        """Let others say so much that nothing more is taken until something is heard."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
            other.setblocking(False)
            while True:
                other.sendto(b"STATUS=of another", self.socket.getsockname())

    def hear(self, seconds: float) -> list[str]:
        """The fields that come within so many seconds."""
        heard, deadline = [], time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                heard += self.socket.recv(4096).decode().split("\n")
            except TimeoutError:
                break
        self.heard += heard
        return heard

    def until(self, field: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while field not in self.hear(0.05):
            assert time.monotonic() < deadline, self.heard

    def silent(self, seconds: float = 30) -> bool:
        """Whether signs of life stay away for as long as a manager would wait, at some time within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if "WATCHDOG=1" not in self.hear(1.5 * WATCHDOG_S):
                return True
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(str(tmp_path / "notify"))
    yield it
    it.socket.close()


@pytest.fixture
def start(family_path: Path, cache_root: Path, manager: Manager) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def start(
        code: str = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())", **environment: str
    ) -> subprocess.Popen[str]:
        told = {"NOTIFY_SOCKET": manager.socket.getsockname(), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        line = [sys.executable, "-c", code, str(family_path), "--port", "0", "--threads", "1", "--cache", str(cache_root)]
        processes.append(subprocess.Popen(line, env={**os.environ, **told, **environment}, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(line.removeprefix("listening on ").strip() for line in process.stdout if line.startswith("listening on "))


def test_a_manager_hears_when_it_is_ready_what_serves_that_it_lives_and_that_it_stops(
    start: Callable[..., subprocess.Popen[str]], manager: Manager, family_bundle: Bundle
) -> None:
    process = start()
    url = url_of(process)
    manager.until("READY=1")
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    manager.until("WATCHDOG=1")
    manager.until("WATCHDOG=1")
    macs = family_bundle.route("small").macs
    httpx.put(f"{url}/budget", json={"budget": f"{macs}MACs"}, trust_env=False).raise_for_status()
    manager.until("STATUS=small serves shapes, 4 of 4 routes loaded")
    assert "STOPPING=1" not in manager.heard
    process.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")
    assert process.wait(timeout=60) == 0
    assert manager.heard.count("READY=1") == 1


def test_a_manager_that_took_nothing_when_the_server_was_ready_is_told_later(
    start: Callable[..., subprocess.Popen[str]], manager: Manager
) -> None:
    manager.fill()
    url = url_of(start())
    deadline = time.monotonic() + 60
    while len(httpx.get(f"{url}/status", trust_env=False).json()["routes"]["loaded"]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(3 * WATCHDOG_S)  # nothing is heard meanwhile, as by a manager that is busy itself
    manager.until("READY=1", 10)
    assert "STATUS=large serves shapes, 4 of 4 routes loaded" in manager.heard, "in the same datagram"
    manager.until("WATCHDOG=1", 10)
    manager.until("WATCHDOG=1", 10)
    assert manager.heard.count("READY=1") == 1


@pytest.mark.parametrize("fault", [signal.SIGUSR1, signal.SIGUSR2], ids=["event loop", "workers"])
def test_a_server_that_is_stuck_gives_no_sign_of_life(start: Callable[..., subprocess.Popen[str]], manager: Manager, fault: int) -> None:
    process = start(SERVE)
    url = url_of(process)
    manager.until("WATCHDOG=1")
    process.send_signal(fault)
    assert manager.silent()
    if fault == signal.SIGUSR2:  # the loop answers, and the server is of no use all the same
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    assert process.poll() is None


@pytest.mark.parametrize("once", [True, False])
def test_an_idle_server_of_which_one_run_failed_lives_and_one_of_which_all_fail_does_not(
    start: Callable[..., subprocess.Popen[str]], manager: Manager, once: bool
) -> None:
    process = start(FAILING.replace("sys.exit", f"stuck.once = {once}\nsys.exit"))
    url_of(process)
    manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGUSR2)
    assert process.stdout is not None
    assert process.stdout.readline() == "failed\n"
    assert manager.silent(8 * WATCHDOG_S) is not once
    assert process.poll() is None


def test_signs_of_life_come_as_long_as_requests_are_answered_however_many_wait(
    start: Callable[..., subprocess.Popen[str]], manager: Manager
) -> None:
    """With one worker that is never idle, what the watchdog asks for waits among the requests."""
    slow = SERVE.replace("    if stuck", "    time.sleep(0.1)\n    if stuck").replace(
        "(serve())", '(serve([*sys.argv[1:], "--workers", "1"]))'
    )
    url = url_of(start(slow))
    manager.until("READY=1")
    body = b"\x93NUMPY\x01\x00F\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 8), }".ljust(69) + b"\n" + bytes(256)
    headers = {"Content-Type": "application/x-npy"}
    with httpx.Client(trust_env=False, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(40) as crowd:
        asked = [crowd.submit(client.post, f"{url}/predict", content=body, headers=headers) for _ in range(40)]
        heard = manager.hear(3)
        assert {answer.result().status_code for answer in asked} == {200}
    assert heard.count("WATCHDOG=1") >= 2


def test_without_a_watchdog_only_state_is_told(start: Callable[..., subprocess.Popen[str]], manager: Manager) -> None:
    start(WATCHDOG_USEC="0")
    manager.until("READY=1")
    assert "WATCHDOG=1" not in manager.hear(2)


def test_what_was_said_to_the_server_is_not_said_to_its_children() -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}
    assert notifier is not None
    assert notifier.watchdog_s == 3.0
    assert not notifier.send("READY=1")  # nobody is there: nothing happens
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None),
        ({"NOTIFY_SOCKET": "/s"}, (None,)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, (None,)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, (None,)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, (None,)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "500000"}, (0.5,)),
    ],
)
def test_who_is_told_and_how_often(environ: dict[str, str], expected: tuple[float | None] | None) -> None:
    notifier = Notifier.from_environment(environ)
    assert (notifier and (notifier.watchdog_s,)) == expected
    if notifier is not None:
        notifier.close()


def test_an_address_in_the_abstract_namespace() -> None:
    address = f"@restnet-{os.getpid()}"
    manager, notifier = Manager(address), Notifier(address)
    assert notifier.send("STATUS=one", "READY=1")
    assert manager.hear(0.2) == ["STATUS=one", "READY=1"]
    manager.fill()
    assert not notifier.send("STATUS=two")
    assert "STATUS=two" not in manager.hear(0.2)
    assert notifier.send("STATUS=two")
    notifier.close()
    manager.socket.close()
