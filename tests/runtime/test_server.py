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
import uvicorn
from PIL import Image

from restnet_runtime.errors import AddressError
from restnet_runtime.server import listen, run_server, url_of

SERVE = """
import sys
from pathlib import Path

from restnet_runtime.api import create_app
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.models import Backend
from restnet_runtime.sensors import Sensors
from restnet_runtime.server import listen, run_server, url_of
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

bundle_path, cache_root, graceful_s = sys.argv[1:]
listener = listen("127.0.0.1", 0)
bundle = open_bundle(bundle_path)
executor = Executor(bundle, Compiler.for_bundle(bundle, Path(cache_root)), SessionSettings(threads=1))
for route in bundle.routes:
    executor.load(route.name)
controller = Controller(executor, Sensors())
controller.start()
print(url_of(listener), flush=True)
app = create_app(Backend(executor, controller), ServeSettings())
run_server(app, listener, graceful_s=int(graceful_s), stopping=app.state.events.close)
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
    """A factory of servers. What is still running at the end is killed."""
    processes = []

    def start(graceful_s=30):
        command = [sys.executable, "-c", SERVE, str(bundle.path), str(cache_root), str(graceful_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def port_of(process):
    """Waits until every route is loaded."""
    line = process.stdout.readline()
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)\n", line)
    assert found, (line, *process.communicate())
    port = int(found[1])
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=20).status_code == 200
    return port


def png():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def upload_in_progress(port):
    """A connection that has sent all but the last 100 bytes of a request, and the bytes that are missing."""
    data = png()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(data)
        connection.sendall(head + data[:-100])
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/status", trust_env=False).json()["queue"]["receiving_bytes"] == len(data) - 100)
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


def test_listeners_to_events_do_not_hold_the_server(start):
    process = start(graceful_s=600)
    port = port_of(process)
    with httpx.stream("GET", f"http://127.0.0.1:{port}/events", trust_env=False, timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: decision"
        process.send_signal(signal.SIGTERM)
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


def test_an_answer_does_not_wait_for_an_acknowledgement(start):
    """Without TCP_NODELAY each answer on a connection that is kept takes 40 ms more."""
    port = port_of(start())
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        times = []
        for _ in range(60):
            started = time.perf_counter()
            client.get("/healthz").raise_for_status()
            times.append(time.perf_counter() - started)
    assert sorted(times[20:])[4] < 0.03, "a few quick ones are enough: without it none is, but for the first on a connection"


def test_a_port_that_is_listened_on_cannot_be_had_until_it_is_free():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"cannot listen on host 127.0.0.1, port {port}: Address already in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["no such host", "x" * 70, "192.0.2.1"], ids=["spaces", "long", "not of this machine"])
def test_a_host_that_cannot_be_listened_on(host):
    with pytest.raises(AddressError, match=f"cannot listen on host {host}, port 0: [A-Za-z]"):
        listen(host, 0)


def test_the_address_is_told_with_the_port_that_was_taken():
    with listen("localhost", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert url_of(listener) == f"http://127.0.0.1:{port}"


def test_an_ipv6_address():
    try:
        listener = listen("::1", 0)
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        url = url_of(listener)
        assert url == f"http://[::1]:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()[:2], timeout=20), listener.accept()[0] as accepted:
            assert accepted.getpeername()[0] == "::1"


def test_it_returns_on_sigterm_and_puts_the_handlers_back():
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

    listener = listen("127.0.0.1", 0)
    url = url_of(listener)

    def visit():
        statuses.append(httpx.get(url, trust_env=False, timeout=20).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    visitor = threading.Thread(target=visit)
    visitor.start()
    run_server(app, listener, log_level="warning")
    visitor.join()
    assert statuses == [204]
    assert listener.fileno() == -1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_application_that_does_not_start_is_an_error(capfd):
    async def app(_, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no bundle"})

    with listen("127.0.0.1", 0) as listener, pytest.raises(SystemExit) as ended:
        run_server(app, listener)
    assert ended.value.code > 0
    assert "no bundle" in capfd.readouterr().err


def test_a_signal_before_the_server_has_its_own_handlers_stops_it(monkeypatch) -> None:
    """Not lost, or a supervisor would have to kill it."""
    serve = uvicorn.Server.serve

    async def told_early(server, sockets=None):
        signal.raise_signal(signal.SIGTERM)
        await serve(server, sockets)

    async def application(scope, receive, send):
        assert scope["type"] == "lifespan"
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    monkeypatch.setattr(uvicorn.Server, "serve", told_early)
    before = signal.getsignal(signal.SIGTERM)
    with listen("127.0.0.1", 0) as listener:
        run_server(application, listener)
    assert signal.getsignal(signal.SIGTERM) == before
