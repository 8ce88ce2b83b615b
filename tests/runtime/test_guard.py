"""What a real server refuses before anything else: foreign hosts and pages, missing tokens, endless headers, idle connections."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from restnet_runtime.access import Access, Token
from restnet_runtime.bundle import Bundle
from restnet_runtime.connections import bounded_protocol
from restnet_runtime.guard import is_change

SECRET = "a-secret-of-thirty-characters."
BEARER = {"Authorization": f"Bearer {SECRET}"}
HEALTH = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
PAGES = ("/", "/docs", "/openapi.json", "/web/dashboard.js", "/web/style.css")
READ = ("/budget", "/pin", "/routes", "/status", "/metrics", "/v2", "/v2/models/shapes", "/v2/models/shapes/ready")
CHANGES = (
    ("PUT", "/budget", {"budget": "none"}),
    ("PUT", "/pin", {"route": "small"}),
    ("DELETE", "/pin", None),
    ("POST", "/v2/repository/models/shapes/load", None),
    ("POST", "/v2/repository/models/shapes/unload", None),
    ("POST", "/v2/repository/models/infer/load", None),
    ("POST", "/budget", None),
    ("PATCH", "/nothing", None),
)
X = np.zeros((1, 1, 8, 8), np.float32)
V2 = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(X.shape), "data": X.ravel().tolist()}]}
ASKED = (("/predict", {"inputs": X.tolist()}), ("/v2/models/shapes/infer", V2), ("/v2/models/shapes/versions/1/infer", V2))


@pytest.fixture(scope="module")
def client(family_bundle: Bundle, cache_root: Path, serve) -> Iterator[httpx.Client]:
    with serve(family_bundle, cache_root) as server:
        yield server.client


@pytest.fixture(scope="module")
def guarded(family_bundle: Bundle, cache_root: Path, serve) -> Iterator[httpx.Client]:
    """Changes need a token; two origins may use it."""
    access = Access(token=Token(SECRET), cors_origins=("https://app.example",), trusted_hosts=("pi.local",))
    with serve(family_bundle, cache_root, access=access) as server:
        yield server.client


@pytest.fixture(scope="module")
def closed(family_bundle: Bundle, cache_root: Path, serve) -> Iterator[httpx.Client]:
    """Everything needs a token."""
    with serve(family_bundle, cache_root, access=Access(token=Token(SECRET), require="all")) as server:
        yield server.client


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_changes_need_the_token(guarded: httpx.Client, method: str, path: str, body: dict | None) -> None:
    without = guarded.request(method, path, json=body)
    assert (without.status_code, without.headers["www-authenticate"]) == (401, 'Bearer realm="restnet-runtime"')
    assert "Authorization: Bearer" in without.json()["error"]
    for wrong in (f"Bearer {SECRET}x", f"Basic {SECRET}", SECRET, "Bearer", "Bearer\t" + SECRET):
        answer = guarded.request(method, path, json=body, headers={"Authorization": wrong})
        assert (answer.status_code, 'error="invalid_token"' in answer.headers["www-authenticate"]) == (401, True)
    twice = guarded.request(method, path, json=body, headers=[("Authorization", f"Bearer {SECRET}"), ("Authorization", "Bearer x")])
    assert twice.status_code == 401
    assert guarded.request(method, path, json=body, headers=BEARER).status_code != 401
    assert guarded.request(method, path, json=body, headers={"Authorization": f"bearer  {SECRET}"}).status_code != 401


def test_what_is_only_read_or_asked_needs_none(guarded: httpx.Client) -> None:
    for path in (*READ, *HEALTH, *PAGES):
        assert guarded.get(path).status_code == 200, path
    for path, body in ASKED:
        assert guarded.post(path, json=body).status_code == 200, path
    assert guarded.post("/v2/repository/index").status_code == 200


def test_with_all_only_health_and_pages_are_open(closed: httpx.Client) -> None:
    for path in (*HEALTH, *PAGES):
        assert closed.get(path).status_code == 200, path
    for path in (*READ, "/events", "/nothing"):
        assert closed.get(path).status_code == 401, path
        assert closed.head(path).status_code == 401, path
    for path, body in (*ASKED, ("/v2/repository/index", None)):
        assert closed.post(path, json=body).status_code == 401, path
        assert closed.post(path, json=body, headers=BEARER).status_code == 200, path
    assert closed.get("/status", headers=BEARER).status_code == 200


def test_a_server_that_is_read_only_takes_no_changes_of_anything(family_bundle: Bundle, cache_root: Path, serve) -> None:
    with serve(family_bundle, cache_root, read_only=True, access=Access(token=Token(SECRET))) as server:
        for method, path, body in CHANGES:
            assert server.client.request(method, path, json=body).status_code == 401
            answer = server.client.request(method, path, json=body, headers=BEARER)
            assert (answer.status_code, "read-only" in answer.json()["error"]) == (403, True)
        for path, body in ASKED:
            assert server.client.post(path, json=body).status_code == 200


def test_no_path_that_changes_something_is_taken_for_another(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    asked = {path for path, methods in paths.items() if "post" in methods and not is_change("POST", path)}
    assert asked == {
        "/predict",
        "/v2/models/{model_name}/infer",
        "/v2/models/{model_name}/versions/{model_version}/infer",
        "/v2/repository/index",
    }
    for path in ("/v2/repository/models/a/infer", "/predict/", "/v2/models/a/b/infer", "//predict", "/v2/models//infer"):
        assert is_change("POST", path)
    assert all(is_change(method, "/predict") for method in ("PUT", "PATCH", "DELETE", "BREW"))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", ""])
def test_a_name_that_was_made_to_mean_this_server_is_refused(client: httpx.Client, host: str) -> None:
    for method, path in (("GET", "/status"), ("POST", "/predict"), ("PUT", "/budget"), ("GET", "/"), ("GET", "/nothing")):
        answer = client.request(method, path, headers={"Host": host})
        assert (answer.status_code, "is not served here" in answer.json()["error"]) == (421, True)
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_names_that_are_trusted(client: httpx.Client, guarded: httpx.Client) -> None:
    for host in ("localhost", "127.0.0.1:1", "[::1]", "192.168.0.9:8080"):
        assert client.get("/status", headers={"Host": host}).status_code == 200
    assert client.get("/status", headers={"Host": "pi.local"}).status_code == 421
    assert guarded.get("/status", headers={"Host": "pi.local:8080"}).status_code == 200


def test_two_hosts_are_refused(client: httpx.Client) -> None:
    answer = _raw(client, b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_pages_of_elsewhere_read_nothing_and_change_nothing(client: httpx.Client) -> None:
    foreign = {"Origin": "https://evil.example"}
    answer = client.get("/status", headers=foreign)  # the browser keeps it from the page
    assert not [name for name in answer.headers if name.startswith("access-control")]
    for method, path, body in (*CHANGES, *(("POST", path, body) for path, body in ASKED)):
        refused = client.request(method, path, json=body, headers=foreign)
        assert (refused.status_code, "may not use this server" in refused.json()["error"]) == (403, True)
    assert client.post("/predict", json=ASKED[0][1], headers={"Origin": "null"}).status_code == 403
    preflight = client.options("/budget", headers={**foreign, "Access-Control-Request-Method": "PUT"})
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_its_own_page_may(client: httpx.Client) -> None:
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.put("/budget", json={"budget": "none"}, headers=own).status_code == 200
    assert client.post("/predict", json=ASKED[0][1], headers=own).status_code == 200


def test_an_origin_that_is_allowed(guarded: httpx.Client) -> None:
    friend = {"Origin": "https://app.example"}
    preflight = guarded.options(
        "/budget", headers={**friend, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    for answer, status in (
        (guarded.get("/status", headers=friend), 200),
        (guarded.put("/budget", json={"budget": "none"}, headers={**friend, **BEARER}), 200),
        (guarded.put("/budget", json={"budget": "none"}, headers=friend), 401),
        (guarded.get("/nothing", headers=friend), 404),
    ):
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in preflight.headers
    assert guarded.get("/status", headers={"Origin": "https://other.example"}).headers.get("access-control-allow-origin") is None


def test_headers_without_end(client: httpx.Client) -> None:
    many = {f"x-{index}": "y" for index in range(100)}
    for path in ("/status", "/healthz"):
        assert client.get(path, headers=many).status_code == 431
        assert client.get(path, headers={"x": "y" * 17_000}).status_code == 431
    answer = _raw(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/../cli.py",
        "/web/%2e%2e/cli.py",
        "/web/..%2fcli.py",
        "/../../etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/style.css%00",
        "//etc/passwd",
    ],
)
def test_no_path_leads_to_the_file_system(client: httpx.Client, path: str) -> None:
    answer = _raw(client, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 ", b"HTTP/1.1 400 "))
    assert b"root:" not in answer


def test_names_of_models_and_routes_are_looked_up_in_lists_only(client: httpx.Client) -> None:
    for name in ("..%2f..%2fetc%2fpasswd", "shapes%00", "..", "%2e%2e"):
        for path in (f"/v2/models/{name}", f"/v2/models/shapes/versions/{name}"):
            assert _raw(client, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode()).startswith(
                b"HTTP/1.1 404 "
            )
    assert client.put("/pin", json={"route": "../../etc/passwd"}).status_code == 422


# Connections


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server of four connections whose headers may take 0.4 s, or the parameter; yields its port."""
    header_s = getattr(request, "param", 0.4)

    async def app(scope, receive, send) -> None:
        while scope["path"] != "/refused" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, port=0, http=bounded_protocol(4, header_s), log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def _until_closed(connection: socket.socket) -> tuple[bytes, float]:
    started, received = time.monotonic(), b""
    connection.settimeout(15)
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received, time.monotonic() - started


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_connection_whose_headers_do_not_come_is_closed(small: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        connection.sendall(sent)
        received, seconds = _until_closed(connection)
    assert not received.startswith(b"HTTP/1.1 200")
    assert 0.3 < seconds < 3


def test_headers_that_trickle_do_not_hold_it_open(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        started = time.monotonic()
        head = itertools.chain(b"GET / HTTP/1.1\r\nx: ", itertools.repeat(ord("y")))
        with suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - started < 4:
                connection.sendall(bytes([next(head)]))
                time.sleep(0.02)
    assert 0.3 < time.monotonic() - started < 3


@pytest.mark.parametrize("small", [60.0], indirect=True)
def test_headers_that_never_end_are_not_kept(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nx: ")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(100):
                connection.sendall(b"y" * 10_000)
        received, seconds = _until_closed(connection)
    assert received[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")  # nothing where the reset was quicker than the answer
    assert seconds < 10


def test_the_body_of_a_refused_request_is_taken_for_no_headers(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        for _ in range(3):
            connection.sendall(b"POST /refused HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400000\r\n\r\n")
            received = b""
            while not received.endswith(b"ok"):
                received += connection.recv(1000)
            assert received.startswith(b"HTTP/1.1 200")
            for _ in range(40):
                connection.sendall(b"x" * 10_000)
                time.sleep(0.002)


def test_the_second_request_has_the_same_time(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
            time.sleep(0.6)  # a body has a time of its own
            connection.sendall(b"body")
            received = b""
            while not received.endswith(b"ok"):
                received += connection.recv(1000)
            time.sleep(0.6)  # idle, which is uvicorn's to end
        connection.sendall(b"GET / HT")
        received, seconds = _until_closed(connection)
    assert (received, 0.3 < seconds < 3) == (b"", True)


@pytest.mark.parametrize("small", [60.0], indirect=True)
def test_more_connections_than_may_be_are_told_so(small: int) -> None:
    held = [socket.create_connection(("127.0.0.1", small)) for _ in range(4)]
    time.sleep(0.1)  # those before are accepted first
    with socket.create_connection(("127.0.0.1", small)) as connection:
        received, seconds = _until_closed(connection)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in received
    head, body = received.split(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert seconds < 10
    for one in held:
        one.close()
    deadline, text = time.monotonic() + 20, ""
    while text != "ok":  # their ends have to be seen first
        assert time.monotonic() < deadline
        with suppress(httpx.TransportError):
            text = httpx.get(f"http://127.0.0.1:{small}/", trust_env=False).text


def _raw(client: httpx.Client, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as connection:
        connection.sendall(request)
        return _until_closed(connection)[0]
