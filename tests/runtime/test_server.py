"""The server as a process of its own: a real bundle, real HTTP, and signals that end it."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

from restnet_runtime.server import run_server

SERVE = """
import sys
from pathlib import Path

from restnet_runtime.api import create_app
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.sensors import Sensors
from restnet_runtime.server import run_server
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

bundle_path, cache_root, port, graceful_s = sys.argv[1:]
bundle = open_bundle(bundle_path)
executor = Executor(bundle, Compiler.for_bundle(bundle, Path(cache_root)), SessionSettings(threads=1))
for route in bundle.routes:
    executor.load(route.name)
controller = Controller(executor, Sensors())
controller.start()
run_server(create_app(executor, controller, ServeSettings()), "127.0.0.1", int(port), graceful_s=int(graceful_s))
controller.stop()
executor.close()
print("closed")
"""


@pytest.fixture(scope="module")
def bundle(family_bundle):
    """What is served in this file."""
    return family_bundle


@pytest.fixture
def start(bundle, cache_root):
    """A factory of servers: (process, its port). What is still running at the end is killed."""
    processes = []

    def start(port=0, graceful_s=30):
        command = [sys.executable, "-c", SERVE, str(bundle.path), str(cache_root), str(port), str(graceful_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def port_of(process):
    """Waits until the server listens."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError("".join(seen))


def png():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def upload_in_progress(port):
    """A connection that has sent all but the last 100 bytes of a request, and the bytes that are missing."""
    data = png()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(data)
        connection.sendall(head + data[:-100])
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/status", trust_env=False).json()["queue"]["in_flight"] == 1)
        yield connection, data[-100:]


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def receive_all(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_before_the_server_ends(start, bundle, number):
    process = start()
    port = port_of(process)
    url = f"http://127.0.0.1:{port}/predict"
    before = httpx.post(url, content=png(), trust_env=False)
    assert before.status_code == 200
    with upload_in_progress(port) as (connection, rest):
        process.send_signal(number)
        until(lambda: refused(port))
        assert process.poll() is None
        connection.sendall(rest)
        head, _, body = receive_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    answer = json.loads(body)
    assert answer["top"] == before.json()["top"]
    assert answer["class"] in bundle.manifest.classes
    assert process.wait(timeout=20) == 0
    assert process.stdout.read() == "closed\n"


def test_idle_connections_do_not_hold_the_server(start):
    process = start()
    port = port_of(process)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_a_request_that_never_ends_is_given_up(start):
    process = start(graceful_s=1)
    with upload_in_progress(port_of(process)) as (connection, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert b" 200 " not in receive_all(connection)


def test_a_taken_port_ends_with_an_error(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(port=taken.getsockname()[1])
        _, errors = process.communicate(timeout=60)
    assert process.returncode > 0
    assert "address already in use" in errors


def test_it_returns_on_sigterm_and_puts_the_handlers_back(free_port):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    statuses = []

    def visit():
        until(lambda: not refused(free_port))
        statuses.append(httpx.get(f"http://127.0.0.1:{free_port}", trust_env=False).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    visitor = threading.Thread(target=visit)
    visitor.start()
    run_server(app, "127.0.0.1", free_port, log_level="warning")
    visitor.join()
    assert statuses == [204]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_application_that_does_not_start_is_an_error(free_port, capfd):
    async def app(_, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no bundle"})

    with pytest.raises(SystemExit) as ended:
        run_server(app, "127.0.0.1", free_port)
    assert ended.value.code > 0
    assert "no bundle" in capfd.readouterr().err


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
