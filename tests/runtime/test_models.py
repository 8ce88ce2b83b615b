"""Several bundles in one process: names and paths, the official client, and one memory limit that is kept while all of them serve."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from restnet_runtime import Pool, Runtime
from restnet_runtime.api import create_app
from restnet_runtime.baseline import Common
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.engine import Engine
from restnet_runtime.engines import Engines
from restnet_runtime.errors import ModelError, NotLoadedError, RestnetError
from restnet_runtime.executor import Executor
from restnet_runtime.models import Backend, Models
from restnet_runtime.reading import Reading
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

MB = 10**6


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class Blind:
    """Sensors of a device that can read nothing about itself."""

    def read(self) -> Reading:
        return Reading()


def backend(bundle: Bundle, cache_root: Path, *, load: bool = True) -> Backend:
    executor = Executor(bundle, Compiler.for_bundle(bundle, cache_root), SessionSettings(threads=1))
    for route in bundle.routes if load else ():
        executor.load(route.name)
    controller = Controller(executor, Blind())
    controller.tick()
    return Backend(executor, controller)


# Names and paths, in this process


@pytest.fixture(scope="module")
def app(family_bundle: Bundle, int8_bundle: Bundle, cache_root: Path) -> Iterator[Any]:
    """`shapes`, and `eight`, which has the routes of `shapes8`."""
    backends = {"shapes": backend(family_bundle, cache_root), "eight": backend(int8_bundle, cache_root)}
    yield create_app(backends, ServeSettings(workers=2))
    for one in backends.values():
        one.executor.close()


@pytest.fixture(scope="module")
def client(app: Any, serve_app: Callable[..., Any]) -> Iterator[httpx.Client]:
    with serve_app(app) as client:
        yield client


def test_own_paths_speak_of_the_first_model_and_of_any_by_name(client: httpx.Client, app: Any) -> None:
    shapes, eight = app.state.models
    assert client.get("/status").json()["bundle"]["name"] == "shapes"
    assert client.get("/status?model=shapes").json()["bundle"]["name"] == "shapes"
    status = client.get("/status?model=eight").json()
    assert (status["model"], status["bundle"]["name"]) == ("eight", "shapes8")
    assert [(one["name"], one["ready"]) for one in status["models"]] == [("shapes", True), ("eight", True)]
    assert len(client.get("/routes").json()["routes"]) == 4
    assert len(client.get("/routes?model=eight").json()["routes"]) == 9
    assert client.get("/readyz?model=eight").status_code == 200

    client.put("/budget?model=eight", json={"budget": "1MACs"}).raise_for_status()
    assert (client.get("/budget").json()["budget"]["text"], client.get("/budget?model=eight").json()["budget"]["macs"]) == ("none", 1)
    assert client.post("/predict", content=png()).json()["budget_met"] is True
    assert client.post("/predict?model=eight", content=png()).json()["budget_met"] is False
    client.put("/budget?model=eight", json={"budget": "none"}).raise_for_status()

    client.put("/pin?model=eight", json={"route": "small@int8"}).raise_for_status()
    assert client.get("/pin").json()["pin"] is None
    assert client.post("/predict?model=eight&top_k=1", content=png()).json()["route"] == "small@int8"
    assert client.put("/pin", json={"route": "small@int8"}).status_code == 422, "the first model has no such route"
    client.delete("/pin?model=eight").raise_for_status()
    assert eight.backend.controller.pin is None
    assert shapes.in_flight == eight.in_flight == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        *(("GET", path) for path in ("/status", "/routes", "/budget", "/pin", "/events", "/readyz")),
        ("PUT", "/budget"),
        ("PUT", "/pin"),
        ("DELETE", "/pin"),
    ],
)
def test_a_model_that_there_is_not_is_404_with_the_names_of_those_that_there_are(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path, params={"model": "other"}, content=png() if method == "POST" else b"{}")
    assert (answer.status_code, answer.json()["error"]) == (404, "there is no model 'other' here: there is shapes, eight")
    twice = client.request(method, f"{path}?model=shapes&model=eight", content=png() if method == "POST" else b"{}")
    assert twice.status_code == 422
    assert "model is given 2 times" in twice.json()["error"]


def test_events_are_those_of_the_model(client: httpx.Client) -> None:
    for name, routes in (("shapes", 4), ("eight", 9)):
        with client.stream("GET", f"/events?model={name}") as stream:
            first = next(line for line in stream.iter_lines() if line.startswith("data:"))
        route = client.get(f"/status?model={name}").json()["current"]
        assert f'"route": "{route}"' in first
        assert len(client.get(f"/routes?model={name}").json()["routes"]) == routes


def test_metrics_tell_the_models_apart(client: httpx.Client) -> None:
    def count(text: str, line: str) -> float:
        return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line)), 0.0)

    lines = [f'restnet_requests_total{{model="{name}",outcome="{how}"}}' for name in ("shapes", "eight") for how in ("met", "invalid")]
    before = client.get("/metrics").text
    client.post("/predict?model=eight", content=png())
    client.post("/predict?model=eight", content=b"no image")
    client.post("/v2/models/eight/infer", content=b"{")
    client.post("/predict?model=other", content=png())  # of nobody: counted with the first, so that clients make no series
    after = client.get("/metrics").text
    assert [count(after, line) - count(before, line) for line in lines] == [0, 1, 1, 2]
    assert 'model="other"' not in after
    assert count(after, 'restnet_model_info{digest="') == 1
    assert after.count("restnet_requests_in_flight{") == 2


def test_a_replacement_serves_from_the_next_request_on(family_bundle: Bundle, cache_root: Path, serve_app: Callable[..., Any]) -> None:
    old, new = backend(family_bundle, cache_root), backend(family_bundle, cache_root, load=False)
    new.executor.load("small")
    new.controller.tick()
    app = create_app({"m": old}, ServeSettings())
    models: Models = app.state.models
    with serve_app(app) as client, client.stream("GET", "/events?model=m") as stream:
        told = (line for line in stream.iter_lines() if line.startswith("data:"))
        assert '"route": "large"' in next(told)
        assert client.post("/predict", content=png()).json()["route"] == "large"
        assert models.replace("m", new).backend is old
        assert client.post("/predict", content=png()).json()["route"] == "small"
        assert client.get("/status").json()["routes"]["loaded"] == ["small"]
        assert '"route": "small"' in next(told), "listeners go on with the new one"
        with pytest.raises(ModelError, match="there is m"):
            models.replace("n", new)
    for one in (old, new):
        one.executor.close()


# The official client


def test_the_official_client_finds_both(client: httpx.Client, app: Any) -> None:
    x = np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)
    tensor = triton.InferInput("input", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    with triton.InferenceServerClient(client.base_url.netloc.decode()) as official:
        assert official.is_server_ready()
        index = official.get_model_repository_index()
        assert [(one["name"], one["version"], one["state"]) for one in index] == [("shapes", "1", "READY"), ("eight", "1", "READY")]
        for entry in app.state.models:
            assert official.is_model_ready(entry.name, "1")
            assert official.get_model_metadata(entry.name)["name"] == entry.name
            answer = official.infer(entry.name, [tensor])
            assert answer.get_response()["model_name"] == entry.name
            route = answer.get_response()["parameters"]["route"]
            np.testing.assert_array_equal(answer.as_numpy("logits"), entry.backend.executor.run(x, route).logits)
        with pytest.raises(InferenceServerException, match="there is no model 'other' here: there is shapes, eight"):
            official.infer("other", [tensor])
        assert not official.is_model_ready("other")


def test_each_is_ready_for_itself_and_the_server_when_all_are(
    family_bundle: Bundle, int8_bundle: Bundle, cache_root: Path, serve_app: Callable[..., Any]
) -> None:
    backends = {"shapes": backend(family_bundle, cache_root), "later": backend(int8_bundle, cache_root, load=False)}
    with serve_app(create_app(backends, ServeSettings())) as client:
        with triton.InferenceServerClient(client.base_url.netloc.decode()) as official:
            assert (official.is_model_ready("shapes"), official.is_model_ready("later"), official.is_server_ready()) == (True, False, False)
            assert {one["name"]: one["state"] for one in official.get_model_repository_index()} == {
                "shapes": "READY",
                "later": "UNAVAILABLE",
            }
        assert "later: no route is loaded yet" in client.get("/v2/health/ready").json()["error"]
        assert (client.get("/readyz").status_code, client.get("/readyz?model=later").status_code) == (200, 503)
        assert client.post("/predict", content=png()).status_code == 200
        refused = client.post("/predict?model=later", content=png())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        backends["later"].executor.load("small")
        assert client.get("/v2/health/ready").status_code == 200
    for one in backends.values():
        one.executor.close()


# The command


def command(*arguments: object) -> list[str]:
    """What the console script `restnet-serve` runs."""
    return [sys.executable, "-c", "import sys; from restnet_runtime.cli import serve; sys.exit(serve())", *map(str, arguments)]


def refused(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)


class Server:
    """A `restnet-serve` that listens, and a client of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                self.client = httpx.Client(base_url=line.split()[-1], trust_env=False, timeout=150)
                return
        raise AssertionError(process.communicate())

    def end(self) -> tuple[int, str]:
        """(exit status, standard error) after SIGTERM."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def serve(cache_root: Path) -> Iterator[Callable[..., Server]]:
    """A factory of `restnet-serve` on free ports. What is still running at the end is killed."""
    processes = []

    def start(*arguments: object) -> Server:
        line = command("--port", 0, "--threads", 1, "--cache", cache_root, *arguments)
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return Server(processes[-1])

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_names_must_be_unique(family_path: Path, cache_root: Path) -> None:
    ended = refused(family_path, f"other={family_path}", family_path, "--port", 0, "--cache", cache_root)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith(f"restnet-serve: two models are called 'shapes': {family_path} and {family_path}; give")
    assert f"shapes2={family_path}" in ended.stderr


@pytest.mark.parametrize("given", ["=x", "two words=x", "a=", "é=x"])
def test_names_that_are_none_are_refused(given: str, family_path: Path) -> None:
    ended = refused(family_path, "--port", 0, given)
    assert ended.returncode == 2
    assert "is no NAME=BUNDLE" in ended.stderr


def test_a_bundle_that_cannot_be_opened_is_refused_at_the_start(family_path: Path, tmp_path: Path) -> None:
    ended = refused(family_path, f"gone={tmp_path / 'none'}", "--port", 0)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert str(tmp_path / "none") in ended.stderr
    assert "Traceback" not in ended.stderr


def until(condition: Callable[[], Any], timeout_s: float = 150.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_bundle_whose_routes_all_fail_leaves_the_others_alone(
    serve: Callable[..., Server], int8_path: Path, own_family: Callable[..., Path]
) -> None:
    """Damage in the weights shows where they are compiled, which is after the start."""
    damaged = own_family()
    weights = damaged / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[:] = bytes(255 - byte for byte in content)
    weights.write_bytes(content)
    server = serve(f"bad={damaged}", f"good={int8_path}", "--cache", damaged.parent / "cache")
    status = until(lambda: found if len((found := server.client.get("/status").json())["routes"]["failed"]) == 4 else None)
    assert all("weights.bin" in reason for reason in status["routes"]["failed"].values())
    until(lambda: server.client.get("/readyz?model=good").status_code == 200)
    assert server.client.post("/predict?model=good", content=png()).status_code == 200
    assert server.client.post("/predict?model=bad", content=png()).status_code == 503
    index = server.client.post("/v2/repository/index").json()
    assert {one["name"]: one["state"] for one in index} == {"bad": "UNAVAILABLE", "good": "READY"}
    assert server.end()[0] == 0


# One memory limit


class Watch:
    """Looks at a server every few milliseconds: (seconds since `lowered`, what is predicted of what is loaded, what is measured)."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=150)
        self._stop = threading.Event()
        self.seen: list[tuple[float, int, int]] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            status = self._client.get("/status").json()
            predicted = status["memory"]["overhead_bytes"] + status["memory"]["loaded_bytes"]
            self.seen.append((time.monotonic(), predicted, status["reading"]["own_memory_bytes"]))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._client.close()


class Asking:
    """Requests to one model, one after the other, and what came of each."""

    def __init__(self, url: str, model: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=150)
        self._path, self._stop = f"/predict?model={model}", threading.Event()
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        body = png()
        while not self._stop.wait(0.005):
            self.statuses.append(self._client.post(self._path, content=body).status_code)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._client.close()


def test_one_memory_limit_holds_for_both_while_they_serve(serve: Callable[..., Server], wide_paths: tuple[Path, Path]) -> None:
    server = serve(*wide_paths)
    client, url = server.client, str(server.client.base_url)

    def of(name: str) -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/status?model={name}").json()
        return found

    def routes() -> tuple[str | None, str | None]:
        return of("alpha")["current"], of("beta")["current"]

    until(lambda: all(len(of(name)["routes"]["loaded"]) == 3 for name in ("alpha", "beta")))
    assert until(lambda: routes() == ("wide", "wide"))
    memory = of("alpha")["memory"]
    assert 50 * MB < memory["loaded_bytes"] < 80 * MB, "two large networks of 28 MB and little else"

    with Watch(url) as watch, Asking(url, "alpha") as alpha, Asking(url, "beta") as beta:
        # Room for one large and one small network, and a tenth more; not for two large ones.
        one_large = round((memory["overhead_bytes"] + 36 * MB) * 1.1)
        client.put("/budget", json={"memory_bytes": one_large}).raise_for_status()
        lowered_s = time.monotonic()
        until(lambda: "wide" in routes() and routes() != ("wide", "wide"))
        time.sleep(3)
        assert "wide" in routes(), "it stays with whom it was left to"
        assert routes() != ("wide", "wide")
        beyond_s = max((at_s - lowered_s for at_s, predicted, _ in watch.seen if at_s > lowered_s and predicted > one_large), default=0.0)
        assert beyond_s < 5.0, "a quarter of a second, were the machine quiet"
        limits = [of(name)["decision"]["limits"]["memory_bytes"] for name in ("alpha", "beta")]
        assert all(limit < one_large for limit in limits), "of each, less what the other may take"

        # Room for two small ones.
        two_small = round(of("alpha")["memory"]["overhead_bytes"] * 1.15)
        client.put("/budget", json={"memory_bytes": two_small}).raise_for_status()
        lowered_s = time.monotonic()
        until(lambda: "wide" not in routes())
        time.sleep(2)
        late = [(at_s - lowered_s, predicted, own) for at_s, predicted, own in watch.seen if at_s > lowered_s + 5.0]
        assert all(predicted <= two_small for _, predicted, _ in late)
        assert "wide" not in routes()

        # And back: both large.
        client.put("/budget", json={"budget": "none"}).raise_for_status()
        until(lambda: routes() == ("wide", "wide"))
    assert min(len(alpha.statuses), len(beta.statuses)) > 20
    assert set(alpha.statuses) == set(beta.statuses) == {200}, "nobody was refused meanwhile"
    assert server.end()[0] == 0


def test_a_limit_for_one_alone_lets_the_other_rest_and_come_back(serve: Callable[..., Server], wide_paths: tuple[Path, Path]) -> None:
    server = serve(*wide_paths, "--budget", "1MB")
    client = server.client
    until(lambda: client.get("/readyz").status_code == 200)
    time.sleep(2)
    rests = client.get("/readyz?model=beta")
    assert rests.status_code == 503
    assert "no room in memory" in rests.json()["error"]
    assert "small, its cheapest route" in client.post("/predict?model=beta", content=png()).json()["error"]
    assert "no room in memory" in next(one for one in client.post("/v2/repository/index").json() if one["name"] == "beta")["reason"]
    answer = client.post("/predict", content=png()).json()
    assert (answer["route"], answer["budget_met"]) == ("small", False), "the first serves whatever it takes"
    assert client.get("/budget?model=beta").json()["budget"]["memory_bytes"] is None, "the limit was put at the first"
    client.put("/budget", json={"budget": "none"}).raise_for_status()
    until(lambda: client.get("/v2/health/ready").status_code == 200)
    assert client.post("/predict?model=beta", content=png()).status_code == 200
    client.put("/budget?model=beta", json={"budget": "1MB"}).raise_for_status()
    until(lambda: client.get("/readyz?model=beta").status_code == 503)
    assert client.get("/readyz").status_code == 200, "whose limit it is does not decide who rests"
    code, err = server.end()
    assert code == 0
    assert "beta: no route stays loaded" in err
    assert "Traceback" not in err


# In a program


def test_what_one_model_adds_is_no_overhead_of_the_other(wide_paths: tuple[Path, Path], cache_root: Path) -> None:
    def make(path: Path, common: Common | None) -> Executor:
        bundle = open_bundle(path)
        return Executor(bundle, Compiler.for_bundle(bundle, cache_root), SessionSettings(threads=1), common)

    common = Common()
    first, second, stranger = make(wide_paths[0], common), make(wide_paths[1], common), make(wide_paths[0], None)
    for executor in (first, second, stranger):
        executor.load("small", warm=True)
    before, strange = first.overhead_bytes, stranger.overhead_bytes
    second.load("wide", warm=True)
    second.switch("wide")
    first.weigh()
    stranger.weigh()
    assert first.overhead_bytes == second.overhead_bytes
    added, strangely = first.overhead_bytes - before, stranger.overhead_bytes - strange
    assert added < 20 * MB, "28 MB were loaded"
    assert strangely - added > 20 * MB, "who shares nothing takes them for overhead"
    second.run(np.zeros((1, 1, 8, 8), np.float32))
    assert first.busy_s == second.busy_s > 0 == stranger.busy_s
    second.rest()
    assert (second.current, second.loaded) == (None, ())
    with pytest.raises(NotLoadedError):
        second.run(np.zeros((1, 1, 8, 8), np.float32))
    second.load("small")
    assert second.current is not None
    for executor in (first, second, stranger):
        executor.close()


OWN_PROCESS = "RESTNET_TEST_OWN_PROCESS"


def test_runtimes_share_a_pool_in_a_small_process() -> None:
    """In the process of all tests, which has grown to hundreds of MB, the tenth that must stay free to begin is more than both networks."""
    name = f"{__file__}::test_runtimes_share_a_pool"
    command = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-p", "no:cacheprovider", name]
    done = subprocess.run(command, env={**os.environ, OWN_PROCESS: "1"}, capture_output=True, text=True, timeout=280)
    assert "1 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.skipif(OWN_PROCESS not in os.environ, reason="runs in a process of its own, by the test above")
def test_runtimes_share_a_pool(wide_paths: tuple[Path, Path], cache_root: Path) -> None:
    pool, options = Pool(), {"cache": cache_root, "threads": 1}
    with Runtime(wide_paths[0], pool=pool, **options) as alpha, Runtime(wide_paths[1], pool=pool, **options) as beta:
        alpha.wait_loaded(60)
        beta.wait_loaded(60)
        until(lambda: alpha.predict(png()).route == beta.predict(png()).route == "wide")
        overhead = alpha._engine.executor.overhead_bytes
        assert overhead == beta._engine.executor.overhead_bytes, "the process has one"
        alpha.budget = f"{round((overhead + 31 * MB) * 1.1)}B"  # one of 28 MB may come, and two may not stay
        until(lambda: sorted([alpha.predict(png()).route == "wide", beta.predict(png()).route == "wide"]) == [False, True])
        held = [rt._engine.place.reserved_bytes for rt in (alpha, beta)]
        assert None not in held
        reading = beta.status().reading
        assert reading is not None
        assert reading.others_memory_bytes is not None
    with Runtime(wide_paths[0], pool=pool, **options) as alone:
        assert alone.status().reading.others_memory_bytes is None  # type: ignore[union-attr]


def test_engines_of_one_name_are_refused_and_none_stays_open(wide_paths: tuple[Path, Path], cache_root: Path) -> None:
    opened: list[Engine] = []

    def open_one(name: str | None, path: Path) -> Engine:
        opened.append(Engine.open(path, cache_root=cache_root, threads=1, name=name, batching="on"))
        return opened[-1]

    with pytest.raises(ModelError, match="two models are called 'm'"):
        Engines.open([("m", wide_paths[0]), ("m", wide_paths[1])], open_one)
    assert len(opened) == 2
    for engine in opened:
        with pytest.raises(RestnetError, match="stopped"):
            engine.batcher.run(np.zeros((1, 1, 8, 8), np.float32), "small")
    with Engines.open([("m", wide_paths[0]), (None, wide_paths[1])], open_one) as both:
        assert list(both) == ["m", "beta"]
        for engine in both.values():
            engine.wait_ready(60)
