"""Updates of a running server: real processes, real bundles, clients that never stop asking; none of their requests may fail."""

import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from restnet_export.writer import BundleSource, SegmentSource, write_bundle
from restnet_runtime.bundle import SHIPPED_BUNDLE, open_bundle
from restnet_runtime.install import install
from restnet_runtime.manifest import WEIGHTS_FILE
from restnet_runtime.versions import versions_of

SERVE = [sys.executable, "-c", "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"]
INSTALLED_MEANWHILE = """
import sys
from pathlib import Path
from restnet_runtime import served_models
from restnet_runtime.cli import serve
from restnet_runtime.install import install

open_models = served_models.open_models

def open_and_install(*arguments):
    opened = open_models(*arguments)
    install(Path({dest!r}), Path({new!r}))
    return opened

served_models.open_models = open_and_install
sys.exit(serve())
"""
"""restnet-serve: another bundle, `new`, is installed in `dest` once that which was there has been opened."""
LARGE_VALUE = 100.0
"""Of every number that clients send: noise, with which bundles are tried before they serve, never has it."""


class Serving:
    """A `restnet-serve` process and its clients."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process, self._log = process, log
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("listening on ")), None)
        assert line is not None, log.read_text()
        self.client = httpx.Client(base_url=line.split()[-1], trust_env=False, timeout=600)
        self.eventually(lambda: self.client.get("/readyz").status_code == 200)

    def eventually(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < deadline, self.client.get("/status").json()["update"]
            time.sleep(0.02)

    @property
    def told(self) -> str:
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.client.get("/status").json()
        return status

    def states(self) -> list[str]:
        return [step["state"] for step in self.status()["update"]["steps"]]

    def wait_for(self, state: str) -> str:
        """The reason of the latest step, once it is of that state."""
        self.eventually(lambda: self.states()[-1:] == [state])
        reason: str = self.status()["update"]["steps"][-1]["reason"]
        return reason

    def load(self, **parameters: object) -> httpx.Response:
        return self.client.post("/v2/repository/models/shapes/load", json={"parameters": parameters} if parameters else None)

    def predict(self) -> str:
        answer = self.client.post("/predict", content=INPUT, headers={"Content-Type": "application/x-npy"})
        assert answer.status_code == 200, answer.text
        name: str = answer.json()["class"]
        return name


def npy(x: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


INPUT = npy(np.full((1, 8, 8), LARGE_VALUE, np.float32))


class Load:
    """Clients that ask one request after the other, on both sets of paths, until the end. answers: class names, and how often each."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._url, self._stop = url, threading.Event()
        ask = [self._ask_predict, self._ask_v2, self._ask_predict]
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in ask]

    def _run(self, ask: Callable[[httpx.Client], str]) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=600) as client:
            while not self._stop.is_set():
                try:
                    self.answers[ask(client)] += 1
                except Exception as error:
                    self.failures.append(repr(error))
                time.sleep(0.002)

    @staticmethod
    def _ask_predict(client: httpx.Client) -> str:
        answer = client.post("/predict", content=INPUT, headers={"Content-Type": "application/x-npy"})
        if answer.status_code != 200:
            raise AssertionError(answer.text)
        name: str = answer.json()["class"]
        return name

    @staticmethod
    def _ask_v2(client: httpx.Client) -> str:
        data = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [LARGE_VALUE] * 64}
        answer = client.post("/v2/models/shapes/infer", json={"inputs": [data], "outputs": [{"name": "class"}]})
        if answer.status_code != 200:
            raise AssertionError(answer.text)
        name: str = answer.json()["outputs"][0]["data"][0]
        return name

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def fragile(segment: SegmentSource) -> SegmentSource:
    """A first segment that fails on inputs with a number of 50 or more, as a graph may that was exported wrongly."""
    model = type(segment.model)()
    model.CopyFrom(segment.model)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "y":
                node.output[place] = "act"
    constants = {"axes": np.array([1, 2, 3], np.int64), "fifty": np.array(50, np.float32), "table": np.zeros(1, np.float32)}
    model.graph.initializer.extend(helper.make_tensor(name, _type(one), one.shape, one.ravel()) for name, one in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["largest"], "largest"),
            helper.make_node("Div", ["largest", "fifty"], ["share"], "share"),
            helper.make_node("Floor", ["share"], ["floor"], "floor"),
            helper.make_node("Cast", ["floor"], ["index"], "index", to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["more"], "more"),
            helper.make_node("Add", ["act", "more"], ["y"], "add"),
        ]
    )
    return dataclasses.replace(segment, model=model)


def _type(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


@pytest.fixture
def bundles(family_source: BundleSource, tmp_path: Path) -> Callable[..., Path]:
    """A factory of bundles whose classes have a name of their own: `a-circle` and so on. broken: its routes fail on what clients send."""

    def make(name: str, *, broken: bool = False) -> Path:
        segments = tuple(fragile(one) if broken and one.name.endswith(".0") else one for one in family_source.segments)
        classes = tuple(f"{name}-{one}" for one in family_source.classes)
        return write_bundle(dataclasses.replace(family_source, classes=classes, segments=segments), tmp_path / "made" / name).path

    return make


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "device").mkdir()
    return tmp_path / "device" / "mine"


@pytest.fixture
def serve(tmp_path: Path, cache_root: Path) -> Callable[..., Any]:
    @contextmanager
    def start(*arguments: object, code: str | None = None) -> Iterator[Serving]:
        log = tmp_path / "server.log"
        command = SERVE if code is None else [sys.executable, "-c", code]
        line = [*command, "--port", "0", "--cache", str(cache_root), "--interval", "0.2", *map(str, arguments)]
        with log.open("a") as errors:
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            serving = Serving(process, log)
            with closing(serving.client):
                yield serving
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, (out, log.read_text())

    return start


def whose(counter: Counter[str]) -> set[str]:
    return {name.partition("-")[0] for name in counter}


def test_no_request_fails_while_bundles_are_swapped_refused_and_returned(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--trial-requests", "30") as server, Load(str(server.client.base_url)) as load:
        server.eventually(lambda: load.answers.total() > 50)
        assert whose(load.answers) == {"a"}

        # A good one, twice.
        for name in "bc":
            install(dest, bundles(name))
            answer = server.load()
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert (told["name"], told["state"], told["digest"]) == ("shapes", "READY", open_bundle(dest).digest)
            reason = server.wait_for("accepted")
            assert int(re.match(r"(\d+) requests answered", reason)[1]) >= 30  # type: ignore[index]
            assert server.predict().startswith(f"{name}-")
            assert server.status()["bundle"]["digest"] == open_bundle(dest).digest
        assert server.states() == ["verifying", "loading", "trial", "accepted"] * 2

        # One that fails on the first request of a client: whoever met it was answered by the old one.
        install(dest, bundles("d", broken=True))
        assert server.load().status_code == 200
        assert "after 0 answers" in server.wait_for("returned")
        assert server.predict().startswith("c-")
        assert server.status()["bundle"]["digest"] == open_bundle(versions_of(dest) / "previous").digest

        # One that is damaged, and one for which clients are not made.
        shutil.copytree(bundles("e"), dest.parent / "other")
        weights = dest.parent / "other" / WEIGHTS_FILE
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        dest.unlink()
        dest.symlink_to("other")
        answer = server.load()
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("weights.bin: has SHA-256 ")
        dest.unlink()
        dest.symlink_to(SHIPPED_BUNDLE)
        answer = server.load()
        assert answer.status_code == 400
        assert answer.json()["error"] == f"{dest}: has 10 classes, what is there has 3, and clients would not understand"
        dest.unlink()
        assert server.load().status_code == 400
        assert server.states()[-1] == "refused"
        assert server.predict().startswith("c-")
        metrics = server.client.get("/metrics").text
        before = load.answers.total()
        server.eventually(lambda: load.answers.total() > before + 50)
    assert load.failures == []
    assert whose(load.answers) == {"a", "b", "c"}
    for outcome, count in (("accepted", 2), ("returned", 1), ("refused", 3), ("unchanged", 0)):
        assert f'restnet_updates_total{{model="shapes",outcome="{outcome}"}} {count}.0' in metrics
    assert 'outcome="failed"} 0.0' in metrics
    assert "update of shapes: returned: after 0 answers" in server.told


def test_watched_path_is_changed_over_to_and_a_bundle_that_failed_is_not_tried_again(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--watch", "0.1", "--trial-requests", "5") as server, Load(str(server.client.base_url)) as load:
        install(dest, bundles("b"))
        server.wait_for("accepted")
        assert server.predict().startswith("b-")
        install(dest, bundles("d", broken=True))
        server.wait_for("returned")
        time.sleep(1.0)
        assert server.states().count("returned") == 1
        assert server.predict().startswith("b-")
        install(dest, bundles("c"))
        server.wait_for("accepted")
        assert server.predict().startswith("c-")
    assert load.failures == []
    assert whose(load.answers) == {"a", "b", "c"}


def test_watch_takes_what_was_installed_while_the_server_started(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    install(dest, bundles("a"))
    code = INSTALLED_MEANWHILE.format(dest=str(dest), new=str(bundles("b")))
    with serve(dest, "--watch", "0.1", "--trial-time", "300ms", code=code) as server:
        server.wait_for("accepted")
        assert server.predict().startswith("b-")


def test_quiet_server_trusts_a_bundle_after_some_time_and_says_when_there_is_nothing_new(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    shutil.copytree(bundles("a"), dest)  # a directory, as the exporter writes it
    with serve(dest, "--trial-time", "300ms") as server:
        assert server.load().json()["reason"] == f"unchanged: {dest} is the bundle that serves"
        install(dest, bundles("b"))
        with server.client.stream("GET", "/events") as stream:
            lines = stream.iter_lines()
            answer = server.load()
            assert answer.status_code == 200
            seen: list[dict[str, Any]] = []
            for line in lines:
                if line == "event: update":
                    seen.append(json.loads(next(lines).removeprefix("data: ")))
                    if seen[-1]["state"] == "accepted":
                        break
        assert [step["state"] for step in seen] == ["verifying", "loading", "trial", "accepted"]
        assert seen[-1]["reason"].startswith("0 requests answered")
        assert server.predict().startswith("b-")


def test_budget_and_pin_stay(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--trial-time", "300ms") as server:
        assert server.client.put("/budget", json={"budget": "200kFLOPs,90%"}).status_code == 200
        assert server.client.put("/pin", json={"route": "large"}).status_code == 200
        install(dest, bundles("b"))
        assert server.load().status_code == 200
        server.wait_for("accepted")
        status = server.status()
        assert (status["budget"]["macs"], status["budget"]["min_accuracy"], status["pin"]) == (200_000, 0.9, "large")


def test_other_interface_is_taken_where_it_is_asked_for(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--trial-time", "300ms") as server:
        install(dest, SHIPPED_BUNDLE, other_interface=True)
        assert server.load().status_code == 400
        for wrong in ({"parameters": {"path": "/etc"}}, {"parameters": {"other_interface": 1}}, [], "x"):
            assert server.client.post("/v2/repository/models/shapes/load", json=wrong).status_code == 400
        assert server.load(other_interface=True).status_code == 200
        server.wait_for("accepted")
        assert server.predict() in "0123456789"
        metadata = server.client.get("/v2/models/shapes").json()
        assert metadata["outputs"][0]["shape"] == [-1, 10]


def test_what_is_not_allowed_is_refused(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--read-only") as server:
        assert server.load().status_code == 403
    with serve(dest) as server:
        answer = server.client.post("/v2/repository/models/shapes/unload")
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("shapes is not unloaded: models stay as long as the server runs")
        assert server.client.post("/v2/repository/models/other/load").status_code == 404


def test_bundle_for_which_there_is_no_room_is_refused_and_one_for_which_the_old_one_can_make_room_is_not(
    serve: Callable[..., Any], dense_bundle_of: Callable[[int, int], Any], wide_path: Path, dest: Path
) -> None:
    """Routes of 25 and 28 MB; the other bundle has small ones too."""
    install(dest, dense_bundle_of(2500, 2501).path)
    with serve(dest, "--trial-time", "300ms") as server:
        memory = server.status()["memory"]
        limit = int(memory["overhead_bytes"] + 1.9 * memory["loaded_bytes"])
        assert server.client.put("/budget", json={"budget": f"{limit}B"}).status_code == 200
        install(dest, dense_bundle_of(2500, 2502).path)
        answer = server.load()
        assert answer.status_code == 400
        assert "no room in memory: dense, its cheapest route, takes" in answer.json()["error"]
        assert server.client.post("/predict", content=INPUT, headers={"Content-Type": "application/x-npy"}).status_code == 200
        install(dest, wide_path)
        answer = server.load()
        assert answer.status_code == 200, answer.text
        server.wait_for("accepted")
        answer = server.client.post("/predict", content=INPUT, headers={"Content-Type": "application/x-npy"})
        assert answer.status_code == 200
        server.eventually(lambda: server.status()["current"] != "small")  # once the old one has left


def test_signature_is_required_of_updates_too(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from restnet_runtime.signing import make_keys, signer

    make_keys(tmp_path / "k")
    sign = signer(tmp_path / "k")
    sign(open_bundle(bundles("a")))
    install(dest, tmp_path / "made" / "a")
    with serve(dest, "--trial-time", "300ms", "--require-signature", tmp_path / "k.pub") as server:
        install(dest, bundles("b"))
        answer = server.load()
        assert answer.status_code == 400
        assert "is not signed" in answer.json()["error"]
        assert server.predict().startswith("a-")
        sign(open_bundle(bundles("c")))
        install(dest, tmp_path / "made" / "c")
        assert server.load().status_code == 200
        server.wait_for("accepted")
        assert server.predict().startswith("c-")


def test_start_on_a_damaged_bundle_serves_the_version_before(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    (dest / "manifest.json").write_text("{")
    with serve(dest, "--trial-time", "300ms") as server:
        assert server.predict().startswith("a-")
        assert f"{dest} is not served: manifest.json: is not JSON" in server.told
        install(dest, bundles("b"))
        assert server.load().status_code == 200
        server.wait_for("accepted")
        assert server.predict().startswith("b-")


def test_start_with_damaged_weights_and_an_empty_cache_serves_the_version_before(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path, tmp_path: Path
) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    weights = dest / WEIGHTS_FILE
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    with serve(dest, "--cache", tmp_path / "empty") as server:
        assert server.predict().startswith("a-")
        assert f"{dest} is not served: {WEIGHTS_FILE}: " in server.told


def test_start_with_damaged_weights_and_no_version_before_ends(bundles: Callable[..., Path], dest: Path, tmp_path: Path) -> None:
    install(dest, bundles("a"))
    (dest / WEIGHTS_FILE).write_bytes(bytes((dest / WEIGHTS_FILE).stat().st_size))
    command = [*SERVE, str(dest), "--port", "0", "--cache", str(tmp_path / "empty")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{WEIGHTS_FILE}: has SHA-256" in done.stderr
    install(dest, bundles("b"))
    (dest / WEIGHTS_FILE).unlink()
    (versions_of(dest) / "previous").unlink(missing_ok=True)
    (versions_of(dest) / "previous").symlink_to(
        next(path.name for path in versions_of(dest).iterdir() if path.is_dir() and path != dest.resolve())
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{dest}: {WEIGHTS_FILE}: " in done.stderr
    assert "; nor can the version before it be served, " in done.stderr


def test_start_on_a_bundle_that_failed_before_serves_the_version_before(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    install(dest, bundles("a"))
    with serve(dest) as server:  # on trial for a minute, of which a request has to come
        install(dest, bundles("b", broken=True))
        assert server.load().status_code == 200
        assert server.predict().startswith("a-")  # which the new one could not answer
        server.wait_for("returned")
    with serve(dest, "--trial-time", "300ms") as server:
        assert server.predict().startswith("a-")
        assert f"{dest} is not served: " in server.told
        assert "failed when it served on trial: after 0 answers: " in server.told
        install(dest, bundles("c"))
        assert server.load().status_code == 200
        server.wait_for("accepted")
        assert server.predict().startswith("c-")


def test_start_with_a_pin_that_the_bundle_lacks_fails_and_does_not_serve_the_version_before(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path, cache_root: Path
) -> None:
    install(dest, bundles("a"))
    with serve(dest, "--pin", "large", "--trial-time", "300ms") as server:
        install(dest, SHIPPED_BUNDLE, other_interface=True)
        assert server.load(other_interface=True).status_code == 200
        server.wait_for("accepted")
        assert server.status()["pin"] is None, "there is no such route any more"
    line = [*SERVE, str(dest), "--port", "0", "--cache", str(cache_root), "--pin", "large"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{dest.resolve()}: has no route 'large'; it has 7: cnn-s, " in done.stderr
    with serve(dest, "--pin", "cnn-s") as server:
        server.eventually(lambda: server.predict() in "0123456789" and server.status()["current"] == "cnn-s")
        assert server.status()["pin"] == "cnn-s"


def test_start_on_a_damaged_bundle_keeps_the_pin_with_the_version_before(
    serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path
) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    (dest / "manifest.json").write_text("{")
    with serve(dest, "--pin", "small") as server:
        assert server.predict().startswith("a-")
        server.eventually(lambda: server.status()["current"] == "small")


def test_server_that_ends_during_a_trial_ends_well(serve: Callable[..., Any], bundles: Callable[..., Path], dest: Path) -> None:
    install(dest, bundles("a"))
    with serve(dest) as server:
        install(dest, bundles("b"))
        assert server.load().status_code == 200
        assert server.status()["update"]["running"]
        answer = server.load()
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("an update of shapes is under way: trial: ")
    assert "the server ends" in server.told
