"""The HTTP interface on a real server, a real bundle, the real executor and controller; requests go over 127.0.0.1."""

import base64
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from restnet_runtime import intake
from restnet_runtime.api import create_app
from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.batching import Batcher
from restnet_runtime.bodies import BudgetRequest, PredictRequest, read_json
from restnet_runtime.budget import Budget
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.front import outdone
from restnet_runtime.models import Backend
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings
from restnet_runtime.units import format_macs

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
JSON, NPY = {"Content-Type": "application/json"}, {"Content-Type": "application/x-npy"}


@pytest.fixture(scope="module")
def bundle(family_bundle):
    """What is served in this file."""
    return family_bundle


class SteadyDevice:
    """Sensors of a device that can read nothing about itself."""

    def read(self):
        return Reading()


class GatedExecutor(Executor):
    """Waits in `run` until the gate opens, as a slow network would; may be given profiles to promise."""

    def __init__(self, *args, promise=None):
        super().__init__(*args)
        self.promise = promise
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def profile(self, name):
        return self.promise or super().profile(name)

    def run(self, x, route=None):
        self.waiting.set()
        assert self.gate.wait(20)
        return super().run(x, route)


class Served:
    """A server with what it is made of."""

    def __init__(self, bundle, cache_root, *, load=True, promise=None, batching=None, **settings):
        self.bundle = bundle
        self.executor = GatedExecutor(bundle, Compiler.for_bundle(bundle, cache_root), SessionSettings(threads=1), promise=promise)
        for route in bundle.routes if load else ():
            self.executor.load(route.name)
        self.controller = Controller(self.executor, SteadyDevice())
        self.controller.tick()
        self.batcher = Batcher(self.executor, batching)
        self.app = create_app(Backend(self.executor, self.controller, self.batcher), ServeSettings(**settings))


@pytest.fixture(scope="module")
def make(bundle, cache_root, serve_app):
    """A factory of servers; each is stopped when its `with` block ends."""

    @contextmanager
    def make(**options):
        served = Served(bundle, cache_root, **options)
        with serve_app(served.app) as client:
            served.client = client
            yield served
        served.executor.close()

    return make


@pytest.fixture(scope="module")
def shared(make):
    with make(max_body_bytes=200_000, max_pixels=90_000, max_batch=4, top_k=2, workers=2) as served:
        yield served


@pytest.fixture
def served(shared):
    """One server for all tests that leave it as it was; the budget is put back."""
    yield shared
    shared.controller.budget = Budget()


@pytest.fixture
def client(served):
    return served.client


def image(seed=0, size=(30, 20), mode="RGB"):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)


def png(seed=0, **options):
    stream = io.BytesIO()
    image(seed, **options).save(stream, "PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


def inputs_of(bundle, *files):
    return Preprocessor(bundle.manifest.preprocessing, bundle.manifest.input.shape).from_files(files)


def expected_top(served, inputs, top_k=2, route=None):
    """What the answer must list, computed from the executor's logits."""
    logits = served.executor.run(inputs, route).logits.astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    rows = (powers / powers.sum(-1, keepdims=True)).round(6)
    classes = served.bundle.manifest.classes
    return [
        [{"class": classes[i], "index": int(i), "probability": float(row[i])} for i in np.argsort(-row, kind="stable")[:top_k]]
        for row in rows
    ]


# Bodies


@dataclass(frozen=True)
class Given:
    """The same images in every form: encoded, as uint8 pixels (H, W, 3), and preprocessed (B, C, H, W)."""

    files: list[bytes]
    pixels: list[np.ndarray]
    x: np.ndarray


@pytest.fixture
def given(bundle):
    files = [png(seed) for seed in range(3)]
    return Given(files, [np.asarray(image(seed)) for seed in range(3)], inputs_of(bundle, *files))


ONE = {
    "multipart image": lambda it: {"files": {"image": ("a.png", it.files[0])}},
    "multipart file": lambda it: {"files": {"file": ("a.png", it.files[0], "image/png")}},
    "raw": lambda it: {"content": it.files[0], "headers": {"Content-Type": "image/png"}},
    "octets": lambda it: {"content": it.files[0], "headers": {"Content-Type": "application/octet-stream"}},
    "curl --data-binary": lambda it: {"content": it.files[0], "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "no type": lambda it: {"content": it.files[0]},
    "base64": lambda it: {"json": {"image": b64(it.files[0])}},
    "wrapped base64": lambda it: {"json": {"image": base64.encodebytes(it.files[0]).decode()}},
    "data URL": lambda it: {"json": {"image": f"data:image/png;base64,{b64(it.files[0])}"}},
    "numbers": lambda it: {"json": {"inputs": it.x[0].astype(float).tolist()}},
    "npy": lambda it: {"content": npy(it.x[0]), "headers": NPY},
    "npy float64": lambda it: {"content": npy(it.x[0].astype(np.float64)), "headers": NPY},
    "npy octets": lambda it: {"content": npy(it.x[0]), "headers": {"Content-Type": "application/octet-stream"}},
    "npy pixels": lambda it: {"content": npy(it.pixels[0]), "headers": NPY},
    "chunked": lambda it: {"content": iter([it.files[0][:100], it.files[0][100:]]), "headers": {"Content-Type": "image/png"}},
}


@pytest.mark.parametrize("form", ONE)
def test_one_input_in_every_form(served, given, form):
    answer = served.client.post("/predict", **ONE[form](given))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    top = expected_top(served, given.x[:1])[0]
    assert body == {
        **top[0],
        "top": top,
        "route": "large",
        "macs": served.bundle.route("large").macs,
        "latency_ms": body["latency_ms"],
        "budget_met": True,
    }
    assert body["latency_ms"] > 0


BATCH = {
    "multipart": lambda it: {"files": [("image", ("a", it.files[0])), ("file", ("b", it.files[1])), ("image", ("c", it.files[2]))]},
    "base64": lambda it: {"json": {"images": [b64(data) for data in it.files]}},
    "numbers": lambda it: {"json": {"inputs": it.x.astype(float).tolist()}},
    "npy": lambda it: {"content": npy(it.x), "headers": NPY},
    "npy pixels": lambda it: {"content": npy(np.stack(it.pixels)), "headers": NPY},
}


@pytest.mark.parametrize("form", BATCH)
def test_batch_in_every_form(served, given, form):
    answer = served.client.post("/predict", **BATCH[form](given))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"predictions", "route", "macs", "latency_ms", "budget_met"}
    assert body["predictions"] == [{**top[0], "top": top} for top in expected_top(served, given.x)]


@pytest.mark.parametrize(
    "request_",
    [{"json": {"images": [b64(png())]}}, {"content": npy(np.zeros((1, 1, 8, 8), np.float32)), "headers": NPY}],
    ids=["images", "npy"],
)
def test_a_batch_of_one_is_answered_as_a_batch(client, request_):
    assert len(client.post("/predict", **request_).json()["predictions"]) == 1


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        ({"params": {"top_k": 1}, "content": png()}, 1),
        ({"params": {"top_k": 100}, "content": png()}, 3),
        ({"json": {"image": b64(png()), "top_k": 3}}, 3),
        ({"params": {"top_k": 1}, "json": {"image": b64(png()), "top_k": 3}}, 3),
        ({"data": {"top_k": "3"}, "files": {"image": png()}}, 3),
        ({"content": png()}, 2),
    ],
    ids=["query", "more than there are", "json", "json before query", "form", "default"],
)
def test_top_k(client, request_, count):
    top = client.post("/predict", **request_).json()["top"]
    assert len(top) == count
    assert sorted(top, key=lambda entry: -entry["probability"]) == top


# Budgets


def test_limits_of_a_request_narrow_that_request_only(served):
    client, data = served.client, png()
    small = served.bundle.route("small")
    limit = f"{small.macs}MACs"
    for request in (
        {"params": {"budget": limit}, "content": data},
        {"headers": {"X-Restnet-Budget": limit}, "content": data},
        {"json": {"image": b64(data), "budget": limit}},
        {"data": {"budget": limit}, "files": {"image": data}},
        {"params": {"budget": "1GFLOPs"}, "headers": {"X-Restnet-Budget": f"{limit},10s"}, "content": data},
    ):
        answer = client.post("/predict", **request).json()
        assert (answer["route"], answer["macs"], answer["budget_met"]) == ("small", small.macs, True)
        assert answer["top"] == expected_top(served, inputs_of(served.bundle, data), route="small")[0]
        assert client.post("/predict", content=data).json()["route"] == "large"


def test_a_request_cannot_widen_the_standing_budget(served):
    served.controller.budget = Budget(macs=served.bundle.route("small").macs)
    assert served.client.post("/predict", params={"budget": "1TFLOPs"}, content=png()).json()["route"] == "small"


@pytest.mark.parametrize("by_number", [True, False])
def test_the_standing_budget_moves_the_next_answers(served, by_number):
    client = served.client
    nothing = {"macs": None, "latency_ms": None, "memory_bytes": None, "min_accuracy": None}
    assert client.get("/budget").json()["budget"] == {"text": "none", **nothing}
    for route in sorted(served.bundle.routes, key=lambda route: -route.macs):
        put = client.put("/budget", json={"macs": route.macs} if by_number else {"budget": f"{route.macs}FLOPs, 20s"})
        assert put.status_code == 200, put.text
        assert put.json()["budget"]["macs"] == route.macs
        assert put.json()["decision"]["route"] == route.name
        assert put.json()["decision"]["feasible"] is True
        assert client.get("/budget").json() == put.json()
        assert client.post("/predict", content=png()).json()["route"] == route.name
        assert [entry["name"] for entry in client.get("/routes").json()["routes"] if entry["current"]] == [route.name]
    cleared = client.put("/budget", json={"budget": "none"}).json()
    assert cleared["budget"]["text"] == "none"
    assert cleared["decision"]["route"] == "large"


def test_limits_left_out_are_lifted(client):
    client.put("/budget", json={"macs": 10**9, "latency_ms": 1e4, "memory_bytes": 10**12})
    left = client.put("/budget", json={"latency_ms": 5e3}).json()["budget"]
    assert left == {"text": "5 s", "macs": None, "latency_ms": 5000.0, "memory_bytes": None, "min_accuracy": None}
    assert client.put("/budget", json={"macs": None}).json()["budget"]["text"] == "none"


def test_when_nothing_fits_the_cheapest_answers_and_says_so(client):
    answer = client.post("/predict", params={"budget": "1MACs"}, content=png()).json()
    assert (answer["route"], answer["budget_met"], answer["budget"]) == ("small", False, "1 MACs")
    assert "over the limit of 1 MACs" in answer["reason"]
    assert client.put("/budget", json={"macs": 1}).json()["decision"]["feasible"] is False
    assert client.post("/predict", content=png()).json()["budget_met"] is False


def test_strict_refuses_when_nothing_fits(make):
    with make(strict=True) as served:
        answer = served.client.post("/predict", params={"budget": "1MACs"}, content=png())
        assert answer.status_code == 503
        small = format_macs(served.bundle.route("small").macs)
        assert answer.json() == {"error": f"no route fits the budget (1 MACs): small would have macs {small} over the limit of 1 MACs"}
        assert served.client.post("/predict", content=png()).status_code == 200


def test_measured_overrun_is_told(make):
    # Profiles that promise more than any device can keep.
    with make(promise=RouteProfile(latency_ms=1e-9, p95_ms=1e-9, memory_bytes=1)) as served:
        answer = served.client.post("/predict", params={"budget": "0.001us"}, content=png()).json()
        assert (answer["budget_met"], answer["budget"]) == (False, "0.001 us")
        assert "per input" in answer["reason"]
        assert answer["reason"].endswith("and the limit is 0.001 us")


# What cannot be used


ZEROS = np.zeros((1, 8, 8), np.float32)
REFUSED = {
    "no body": ({"content": b""}, 400, "the body is empty: send multipart/form-data, image/"),
    "untold": ({"content": b"hello"}, 415, "a body without Content-Type starting b'hello' is not taken here"),
    "empty image": ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400, "the body is empty"),
    "text": ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415, "'text/plain' starting b'hello' is not taken here"),
    "unknown octets": ({"content": b"hello", "headers": {"Content-Type": "application/octet-stream"}}, 415, "is not taken here"),
    "form fields": ({"data": {"image": "x"}}, 415, "x-www-form-urlencoded"),
    "compressed": ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "'gzip' is not taken here"),
    "no image": ({"content": b"hello", "headers": {"Content-Type": "image/png"}}, 400, "no image that is decoded here: give JPEG, PNG"),
    "cut image": ({"content": png()[:-900]}, 400, "cannot be decoded"),
    "large image": ({"content": png(size=(301, 300), mode="1")}, 400, "300 x 301 = 90300 pixels; the limit is 90000"),
    "large pixels": ({"content": npy(np.zeros((301, 300), np.uint8)), "headers": NPY}, 422, "90300 pixels an image; the limit is 90000"),
    "not JSON": ({"content": b"{'image'}", "headers": JSON}, 400, "the body is not JSON"),
    "deep JSON": ({"content": b"[" * 100_000, "headers": JSON}, 400, "the body is not JSON"),
    "JSON list": ({"json": [1]}, 422, r"the body is \[1\]: Input should be an object"),
    "unknown field": ({"json": {"image": "", "picture": ""}}, 422, "unknown field 'picture': allowed are image, images, inputs, top_k"),
    "no input": ({"json": {"top_k": 1}}, 422, "no input given: give exactly one of image, images, inputs"),
    "two inputs": ({"json": {"image": "", "inputs": [1]}}, 422, "image and inputs given: give exactly one"),
    "image of number": ({"json": {"image": 5}}, 422, "field image is 5: Input should be a valid string"),
    "not base64": ({"json": {"images": [b64(png()), "?"]}}, 400, "image 1 is not base64"),
    "not ascii": ({"json": {"image": "ä"}}, 400, "image 0 is not base64"),
    "bad in batch": ({"json": {"images": [b64(png()), b64(b"hello")]}}, 400, "image 1 of 2: .*no image"),
    "no images": ({"json": {"images": []}}, 422, "the batch has 0 inputs: give 1 to 4"),
    "many images": ({"json": {"images": [b64(png())] * 5}}, 422, "the batch has 5 inputs: give 1 to 4"),
    "many inputs": ({"content": npy(np.zeros((5, 1, 8, 8))), "headers": NPY}, 422, "the batch has 5 inputs: give 1 to 4"),
    "many files": ({"files": [("image", png())] * 5}, 422, "the batch has 5 inputs: give 1 to 4"),
    "no numbers": ({"json": {"inputs": []}}, 422, "inputs is empty"),
    "empty batch": ({"json": {"inputs": [[[[]]]]}}, 422, r"shape \(1, 1, 1, 0\): give \(1, 8, 8\) or \(batch, 1, 8, 8\)"),
    "ragged": ({"json": {"inputs": [[[1, 2], [3]]]}}, 422, "inputs is no array"),
    "strings": ({"json": {"inputs": [[["1"] * 8] * 8]}}, 422, "dtype <U1: give real numbers"),
    "wrong shape": ({"content": npy(np.zeros((3, 8, 8))), "headers": NPY}, 422, r"shape \(3, 8, 8\): give \(1, 8, 8\)"),
    "NaN": ({"content": npy(np.full((1, 8, 8), np.nan)), "headers": NPY}, 422, r"value nan at \(0, 0, 0, 0\)"),
    "JSON NaN": ({"content": json.dumps({"inputs": [[[float("nan")] * 8] * 8]}), "headers": JSON}, 422, "value nan at"),
    "infinite": ({"content": json.dumps({"inputs": [[[1e39] * 8] * 8]}), "headers": JSON}, 422, "value 1e.39 at"),
    "overflow": ({"content": npy(np.full((1, 8, 8), 3e38)), "headers": NPY}, 422, "does not give finite numbers"),
    "cut npy": ({"content": npy(ZEROS)[:-1], "headers": NPY}, 422, "255 bytes of data; it takes 256"),
    "pickle": ({"content": npy(np.array([[{}]], dtype=object)), "headers": NPY}, 422, "dtype object"),
    "not npy": ({"content": b"x", "headers": NPY}, 422, "header cannot be read"),
    "form without image": ({"files": {"picture": png()}}, 422, "unknown field 'picture': allowed are image, file, top_k, budget"),
    "form of nothing": ({"files": {"top_k": (None, "1")}}, 422, "the form carries no image: give it in the field image or file"),
    "form says it twice": ({"files": [("image", png()), ("top_k", (None, "1")), ("top_k", (None, "2"))]}, 422, "top_k is given twice"),
    "many parts": ({"files": [("image", png())] * 9}, 400, "more than 8 parts"),
    "no boundary": ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "has no boundary"),
    "bad form": ({"content": b"hello", "headers": FORM}, 400, "multipart body cannot be read"),
    "cut form": (
        {"content": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc', "headers": FORM},
        400,
        "closing boundary is missing",
    ),
    "nameless part": (
        {"content": b"--x\r\nContent-Type: image/png\r\n\r\nabc\r\n--x--\r\n", "headers": FORM},
        400,
        "has no name",
    ),
    "top_k 0": ({"params": {"top_k": "0"}, "content": png()}, 422, "top_k is '0': give a whole number above 0"),
    "top_k words": ({"params": {"top_k": "five"}, "content": png()}, 422, "top_k is 'five'"),
    "top_k of JSON": ({"json": {"image": "", "top_k": 0}}, 422, "field top_k is 0: Input should be greater"),
    "top_k true": ({"json": {"image": "", "top_k": True}}, 422, "field top_k is True"),
    "unknown parameter": ({"params": {"topk": "5"}, "content": png()}, 422, "unknown query parameter 'topk': allowed are top_k, budget"),
    "bad budget": ({"params": {"budget": "fast"}, "content": png()}, 422, "'fast' is not a quantity"),
    "bad header": ({"headers": {"X-Restnet-Budget": "5 apples"}, "content": png()}, 422, "unknown unit 'apples'"),
    "bad budget in JSON": ({"json": {"image": b64(png()), "budget": "0ms"}}, 422, "'0ms' must be above zero"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(client, case):
    request, status, message = REFUSED[case]
    answer = client.post("/predict", **request)
    assert_error(answer, status, message)
    assert client.post("/predict", content=png()).status_code == 200


def assert_error(answer, status, message):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert re.search(message, answer.json()["error"]), answer.text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"200MFLOPs", 400, "the body is not JSON"),
        (b"{}", 422, "sets no limit"),
        (b'{"budget": null}', 422, "sets no limit"),
        (b'{"budget": "1 parsec"}', 422, "unknown unit 'parsec'"),
        (b'{"budget": "1ms,2ms"}', 422, "limits latency_ms twice"),
        (b'{"budget": "1ms", "macs": 5}', 422, "both budget and macs are given"),
        (b'{"flops": 5}', 422, "unknown field 'flops': allowed are budget, macs, latency_ms, memory_bytes"),
        (b'{"macs": "many"}', 422, "field macs is 'many'"),
        (b'{"macs": 1.5}', 422, "field macs is 1.5"),
        (b'{"macs": -1}', 422, "macs=-1 must be above zero"),
        (b'{"latency_ms": Infinity}', 422, "latency_ms=inf must be above zero and finite"),
        (b'{"latency_ms": NaN}', 422, "latency_ms=nan must be above zero and finite"),
        (b"[" + b" " * 300_000, 413, "exceeds 200000 bytes"),
    ],
)
def test_budgets_that_cannot_be_read(client, body, status, message):
    assert_error(client.put("/budget", content=body), status, message)
    assert client.get("/budget").json()["budget"]["text"] == "none"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/web/", 404, "there is no '/web/' here: /openapi.json lists"),
        ("POST", "/predict/", 404, "there is no '/predict/' here"),
        ("GET", "/predict", 405, "GET is not allowed on '/predict': allowed is POST"),
        ("DELETE", "/budget", 405, "DELETE is not allowed on '/budget': allowed is GET, PUT"),
        ("POST", "/healthz", 405, "POST is not allowed on '/healthz': allowed is GET, HEAD"),
    ],
)
def test_paths_and_methods_that_there_are_not(client, method, path, status, message):
    answer = client.request(method, path)
    assert_error(answer, status, message)
    assert ("allow" in answer.headers) == (status == 405)


# Size limits on the wire


def chunks(total, piece=10_000):
    for _ in range(total // piece):
        yield b"\0" * piece


@pytest.mark.parametrize("content", [lambda: b"\0" * 200_001, lambda: chunks(300_000)], ids=["declared", "chunked"])
@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_a_body_over_the_limit_is_refused(client, content, kind):
    answer = client.post("/predict", content=content(), headers={"Content-Type": kind})
    assert_error(answer, 413, "the body exceeds 200000 bytes, which is the limit")


def test_a_body_at_the_limit_is_read(client):
    data = png()
    padded = data + b"\0" * (200_000 - len(data))
    assert client.post("/predict", content=padded).status_code == 200


def exchange(client, *pieces):
    """Send raw bytes, return all that comes back."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return receive_all(connection)


def receive_all(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def test_a_large_declared_length_is_refused_before_the_body_is_sent(client):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    for length in (200_001, 10**17):
        received = exchange(client, head % length)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b'{"error":"the body exceeds 200000 bytes' in received


def test_a_client_that_waits_for_100_continue_is_spared_the_body(client):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 200001\r\n\r\n"
    assert exchange(client, head).startswith(b"HTTP/1.1 413 ")


def test_more_bytes_than_declared_are_not_read_as_body(client):
    data = png()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(data)
    received = exchange(client, head, data, b"garbage \x01\x02 beyond\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in received
    assert client.get("/healthz").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body(client):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(HALF + b"abc")
        wait_for(client, receiving_bytes=3)
    wait_for(client, receiving_bytes=0)
    assert client.post("/predict", content=png()).status_code == 200


def wait_for(client, **expected):
    """Wait until `/status` shows this of the queue."""
    deadline = time.monotonic() + 20
    while not expected.items() <= client.get("/status").json()["queue"].items():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Bodies that do not come


HALF = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"


@contextmanager
def stalled(client, *pieces, every_s=0.0):
    """One connection for each piece, which sent its piece and then nothing more."""
    with ExitStack() as open_ones:
        connections = []
        for piece in pieces:
            time.sleep(every_s)
            connections.append(open_ones.enter_context(socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)))
            connections[-1].sendall(piece)
        yield connections


def test_stalled_bodies_take_no_place_from_others(make):
    with make(max_in_flight=2) as served, stalled(served.client, *[HALF + b"abc"] * 6, every_s=0.15):
        wait_for(served.client, in_flight=0, receiving_bytes=18)
        time.sleep(0.15)
        assert served.client.post("/predict", content=png()).status_code == 200


def test_bodies_are_not_begun_that_could_not_be_run(make, monkeypatch):
    """Two may run: of twenty that begin at once two are received, for as long as they come quickly."""
    monkeypatch.setattr(intake, "_FRESH_S", 30.0)
    with make(max_in_flight=2) as served, stalled(served.client, *[HALF + b"abc"] * 20) as connections:
        for connection in connections[2:]:
            assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert served.client.get("/status").json()["queue"]["receiving_bytes"] == 6


def test_a_flood_is_refused_little_by_little(make):
    """Who waits for a refusal asks less often: twenty take a quarter of a second, and a single one no time."""
    with make(workers=1, max_in_flight=1) as served, ThreadPoolExecutor(21) as clients:
        client = served.client
        served.executor.gate.clear()
        first = clients.submit(client.post, "/predict", content=png())
        wait_for(client, in_flight=1)

        def refused_s():
            began = time.monotonic()
            assert client.post("/predict", content=png()).status_code == 503
            return time.monotonic() - began

        alone_s = refused_s()
        time.sleep(0.3)
        began = time.monotonic()
        for future in [clients.submit(refused_s) for _ in range(20)]:
            future.result()
        flood_s = time.monotonic() - began
        served.executor.gate.set()
        assert first.result().status_code == 200
    assert flood_s >= 0.23
    assert alone_s < flood_s


def test_places_that_were_taken_while_the_body_came(make):
    data = png()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data)
    with make(max_in_flight=1) as served, ThreadPoolExecutor() as clients, stalled(served.client, head + data[:-1]) as (late,):
        wait_for(served.client, receiving_bytes=len(data) - 1)
        time.sleep(0.15)
        served.executor.gate.clear()
        first = clients.submit(served.client.post, "/predict", content=data)
        wait_for(served.client, in_flight=1)
        late.sendall(data[-1:])
        received = receive_all(late)
        served.executor.gate.set()
        assert first.result().status_code == 200
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"1 requests are in flight, which is the limit" in received


@pytest.mark.parametrize("head", [HALF, HALF.replace(b"POST /predict", b"PUT /budget")], ids=["predict", "budget"])
def test_a_body_that_stalls_is_given_up(make, head):
    with make(body_timeout_s=0.2) as served:
        received = exchange(served.client, head + b"abc")  # which ends when the server closes
        assert received.startswith(b"HTTP/1.1 408 ")
        assert received.endswith(b'{"error":"the body was not complete after 0.2 s, which is the limit"}')
        wait_for(served.client, receiving_bytes=0)
        assert served.client.post("/predict", content=png()).status_code == 200


def test_a_body_that_trickles_is_given_up(make):
    with make(body_timeout_s=0.2) as served, stalled(served.client, HALF) as (connection,):
        connection.settimeout(0.02)
        received = b""
        for _ in range(1000):
            try:
                received = connection.recv(65536)
                break
            except TimeoutError:
                connection.sendall(b"a")
        assert received.startswith(b"HTTP/1.1 408 ")


def test_unfinished_bodies_are_bounded_together(make):
    data = png(size=(3, 2))
    with make(max_body_bytes=1000, max_receiving_bytes=1000) as served:
        client = served.client
        room = 1000 - len(data)
        with stalled(client, HALF + b"a" * room) as (connection,):
            wait_for(client, receiving_bytes=room)
            assert client.post("/predict", content=data).status_code == 200
            connection.sendall(b"a")
            wait_for(client, receiving_bytes=room + 1)
            refused = client.post("/predict", content=data)
            assert_error(refused, 503, "the bodies being received exceed 1000 bytes, which is the limit: try again")
            assert refused.headers["retry-after"] == "1"
        wait_for(client, receiving_bytes=0)
        assert client.post("/predict", content=data).status_code == 200


# Many at once


def test_slow_requests_do_not_block_the_rest_and_keep_their_route(make):
    with make(workers=1, max_in_flight=3) as served, ThreadPoolExecutor() as clients:
        client = served.client
        served.executor.gate.clear()
        served.executor.waiting.clear()
        waiting = [clients.submit(client.post, "/predict", content=png(seed)) for seed in range(3)]
        wait_for(client, in_flight=3)
        assert served.executor.waiting.wait(20)
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        busy = client.post("/predict", content=png())
        assert_error(busy, 503, "3 requests are in flight, which is the limit")
        assert busy.headers["retry-after"] == "1"
        small = served.bundle.route("small")
        assert client.put("/budget", json={"macs": small.macs}).json()["decision"]["route"] == "small"
        served.executor.gate.set()
        answers = [future.result().json() for future in waiting]
        # The one that was being run started under the old budget; those that waited for a worker had not chosen yet.
        assert sorted(answer["route"] for answer in answers) == ["large", "small", "small"]
        for seed, answer in enumerate(answers):
            assert answer["top"] == expected_top(served, inputs_of(served.bundle, png(seed)), 5, answer["route"])[0]
        wait_for(client, in_flight=0)


def test_what_has_expired_is_not_run(make):
    with make(workers=1) as served, ThreadPoolExecutor(8) as clients:
        client = served.client
        served.executor.gate.clear()
        served.executor.waiting.clear()
        first = clients.submit(client.post, "/predict", content=png(0))
        assert served.executor.waiting.wait(20)
        runs = count_runs(served.executor)
        v2 = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png()).decode()]}]}
        hurried = [
            clients.submit(client.post, "/predict", content=png(1), headers={"X-Restnet-Deadline": "1s"}),
            clients.submit(client.post, "/predict", content=png(1), headers=[("X-Restnet-Deadline", v) for v in ("20s", "900ms")]),
            clients.submit(client.post, "/predict", content=b"no image", headers={"X-Restnet-Deadline": "1s", "Content-Type": "image/png"}),
            clients.submit(client.post, "/v2/models/shapes/infer", json={**v2, "parameters": {"timeout": 1_000_000}}),
            clients.submit(client.post, "/v2/models/shapes/infer", json=v2, headers={"X-Restnet-Deadline": "1s"}),
        ]
        patient = clients.submit(client.post, "/predict", content=png(2), headers={"X-Restnet-Deadline": "30s"})
        wait_for(client, in_flight=7)
        time.sleep(1.1)
        served.executor.gate.set()
        for answer in hurried:
            assert_error(answer.result(), 504, "the deadline has passed")
        assert first.result().status_code == patient.result().status_code == 200
        assert runs == [1]  # of the patient one
        assert 'restnet_request_errors_total{kind="expired",model="shapes"} 5.0' in client.get("/metrics").text


def test_what_expires_where_requests_wait_for_a_common_run_is_not_run(make):
    with make(workers=8, batching=BatchSettings("on", max_wait_ms=0)) as served, ThreadPoolExecutor(8) as clients:
        client, queue = served.client, served.batcher._queue
        served.controller.pin = served.executor.current.name
        served.executor.gate.clear()
        runs = count_runs(served.executor)
        asked = [
            clients.submit(client.post, "/predict", content=png(seed), headers={"X-Restnet-Deadline": "2s" if seed % 2 else "30s"})
            for seed in range(8)
        ]
        wait_for(client, in_flight=8)
        deadline = time.monotonic() + 20
        while queue._running + len(queue._waiting) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(2.1)
        served.executor.gate.set()
        statuses = [future.result().status_code for future in asked]
        assert statuses[::2] == [200] * 4
        # At most two were running before they expired: the first, and the first that had company.
        assert 2 <= statuses[1::2].count(504) <= 4
        assert sum(runs) == statuses.count(200)


def test_the_server_may_set_a_deadline_of_its_own(make):
    with make(workers=1, deadline_ms=1000) as served, ThreadPoolExecutor() as clients:
        served.executor.gate.clear()
        served.executor.waiting.clear()
        first = clients.submit(served.client.post, "/predict", content=png())
        assert served.executor.waiting.wait(20)
        second = clients.submit(served.client.post, "/predict", content=png(), headers={"X-Restnet-Deadline": "10s"})
        wait_for(served.client, in_flight=2)
        time.sleep(1.1)
        served.executor.gate.set()
        assert first.result().status_code == 200  # what runs is not broken off
        assert_error(second.result(), 504, "the deadline has passed")


@pytest.mark.parametrize("deadline", ["", "soon", "200", "-5ms", "0ms", "30MB", "2000000s", "nan ms", "1e999ms"])
def test_deadlines_that_cannot_be_read(client, deadline):
    answer = client.post("/predict", content=png(), headers={"X-Restnet-Deadline": deadline})
    assert_error(answer, 422, "X-Restnet-Deadline is '.*': give a time up to an hour, as 200ms")
    assert client.post("/v2/models/shapes/infer", content=b"{}", headers={"X-Restnet-Deadline": deadline}).status_code == 400


def test_many_clients_get_their_own_answers(served):
    files = [png(seed) for seed in range(12)]
    expected = [expected_top(served, inputs_of(served.bundle, data))[0] for data in files]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda i: served.client.post("/predict", content=files[i % 12]).json()["top"], range(120)))
    assert all(answer == expected[i % 12] for i, answer in enumerate(answers))


def test_requests_that_meet_share_a_run(make, monkeypatch):
    with make(workers=8, batching=BatchSettings("on", max_wait_ms=0)) as served, ThreadPoolExecutor(8) as clients:
        observed = []
        monkeypatch.setattr(served.controller, "observe", lambda *request: observed.append(request))
        # On a busy device some wait so long that they would be given a quicker route, and would share no run with the others.
        served.controller.pin = served.executor.current.name
        queue = served.batcher._queue
        served.executor.gate.clear()
        # At most two are run by themselves: the first, and the first that has company. The others wait for the latter.
        asked = [clients.submit(served.client.post, "/predict?budget=400ms", content=png(seed)) for seed in range(8)]
        deadline = time.monotonic() + 20
        while queue._running + len(queue._waiting) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.45)  # longer than the budget, which is longer than any waits for its decision
        served.executor.gate.set()
        answers = [future.result().raise_for_status().json() for future in asked]
        for seed, answer in enumerate(answers):
            assert answer["top"] == expected_top(served, inputs_of(served.bundle, png(seed)), 5, answer["route"])[0]
        batching = served.client.get("/status").json()["batching"]
        assert (batching["mode"], batching["requests"]) == ("on", 8)
        assert batching["batched"] >= 6
        assert batching["mean_batch"] == round(8 / batching["runs"], 2) > 2
        assert len(observed) == 8 - batching["batched"]  # a run of several says nothing of a single one
        late = [answer["reason"] for answer in answers if not answer["budget_met"]]
        assert len(late) >= 6
        assert all(re.fullmatch(r"it took .+ per input \(.+ of it waiting\), and the limit is 400 ms", reason) for reason in late)


def count_runs(executor):
    """A list to which each run from now on adds its inputs."""
    run, runs = executor.run, []

    def counted(x, route=None):
        runs.append(len(x))
        return run(x, route)

    executor.run = counted
    return runs


# About itself


def test_not_ready_until_a_route_is_loaded(make):
    with make(load=False) as served:
        client = served.client
        assert client.get("/healthz").status_code == 200
        assert_error(client.get("/readyz"), 503, "no route is loaded yet")
        unready = client.post("/predict", content=png())
        assert_error(unready, 503, "no route is loaded yet")
        assert unready.headers["retry-after"] == client.get("/readyz").headers["retry-after"] == "1"
        status = client.get("/status").json()
        assert (status["current"], status["decision"], status["routes"]["loaded"]) == (None, None, [])
        assert client.get("/budget").json()["decision"] is None
        listed = client.get("/routes").json()["routes"]
        assert not any(entry["loaded"] or entry["current"] or entry["profile"] for entry in listed)
        assert {entry["on_front_here"] for entry in listed} == {None}, "not measured yet"
        served.executor.load("small")
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post("/predict", content=png()).json()["route"] == "small"
        assert client.get("/status").json()["routes"] == {
            "known": 4,
            "loaded": ["small"],
            "loading": None,
            "compiled": 0,
            "failed_compiles": 0,
            "left_out": [],
            "outdone": {},
            "failed": {},
        }


def test_health_checks_answer_head(client):
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_routes(served):
    routes = served.client.get("/routes").json()["routes"]
    assert [entry["macs"] for entry in routes] == sorted(route.macs for route in served.bundle.routes)
    gone = outdone([(route, served.executor.profile(route.name)) for route in served.bundle.routes])
    for entry in routes:
        route, profile = served.bundle.route(entry["name"]), served.executor.profile(entry["name"])
        assert entry == {
            "name": route.name,
            "precision": "fp32",
            "macs": route.macs,
            "params": route.params,
            "weight_bytes": route.weight_bytes,
            "accuracy": route.accuracy,
            "on_front": route.on_front,
            "on_front_here": route.name not in gone,
            "outdone": gone[route.name].reason if route.name in gone else None,
            "loaded": True,
            "current": route.name == "large",
            "profile": {"latency_ms": profile.latency_ms, "p95_ms": profile.p95_ms, "memory_bytes": profile.memory_bytes, "threads": 1},
        }


def test_status(served):
    served.controller.budget = Budget(macs=served.bundle.route("small").macs)
    status = served.client.get("/status").json()
    assert set(status) == {
        *("version", "model", "models", "memory", "bundle", "routes", "sessions", "current", "budget", "decision", "wanted"),
        *("pin", "switched", "reading", "switches", "problem", "read_only", "controlling", "queue", "batching", "versions", "update"),
    }
    (listed,) = status["models"]
    assert status["model"] == listed["name"] == "shapes"
    assert (listed["ready"], listed["reason"], listed["current"]) == (True, None, "small")
    assert status["sessions"]["threads"] == 1
    assert status["sessions"]["route_threads"] == dict.fromkeys(status["routes"]["loaded"], 1)
    assert status["sessions"]["providers"] == ["CPUExecutionProvider"]
    assert status["sessions"]["levels"] == dict.fromkeys(status["routes"]["loaded"], "prepacked")
    assert status["bundle"] == {
        "name": "shapes",
        "digest": served.bundle.digest,
        "task": "classification",
        "classes": 3,
        "input_shape": [1, 8, 8],
    }
    assert status["current"] == status["decision"]["route"] == status["wanted"] == "small"
    assert status["reading"] == dict.fromkeys(Reading.__dataclass_fields__)
    assert status["switches"][-1]["after"] == "small"
    assert status["problem"] is None
    assert status["controlling"] is False
    assert status["queue"] == {"in_flight": 0, "max_in_flight": 256, "workers": 2, "receiving_bytes": 0}
    assert status["batching"] == {
        "mode": "off",
        "max_batch": 8,
        "max_wait_ms": 2.0,
        "requests": 0,
        "batched": 0,
        "runs": 0,
        "mean_batch": None,
    }
    assert {"python", "onnxruntime", "fastapi"} <= set(status["versions"])


def test_answers_tell_the_controller_how_long_they_took(served):
    answer = served.client.post("/predict", content=png())
    assert answer.status_code == 200
    served.controller.tick()
    reading = served.client.get("/status").json()["reading"]
    assert reading["slowdown"] > 0
    assert reading["slowdown_by_threads"]["1"] == reading["slowdown"]
    latency = reading["latencies"][answer.json()["route"]]
    assert latency["requests"] >= 1
    assert latency["threads"] == 1
    assert 0 < latency["median_ms"] <= latency["p95_ms"]
    assert reading["queue_depth"] == 0


def test_a_bug_is_answered_and_the_server_stays_up(make, monkeypatch):
    with make() as served:
        monkeypatch.setattr(served.executor, "run", lambda *_: 1 // 0)
        broken = served.client.post("/predict", content=png())
        assert_error(broken, 500, r"internal error \(ZeroDivisionError\)")
        monkeypatch.undo()
        assert served.client.post("/predict", content=png()).status_code == 200


def test_openapi_documents_every_body_with_examples_that_work(served):
    client = served.client
    paths = client.get("/openapi.json").json()["paths"]
    ours = {path for path in paths if not path.startswith("/v2")}  # these are in test_v2_contract.py
    assert ours == {
        "/predict",
        "/budget",
        "/pin",
        "/events",
        "/routes",
        "/status",
        "/metrics",
        "/healthz",
        "/readyz",
    }
    content = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "image/*", "application/json", "application/x-npy", "application/octet-stream"}
    assert all(entry["examples"] for entry in content.values())
    assert {entry["name"] for entry in paths["/predict"]["post"]["parameters"]} == {
        "model",
        "top_k",
        "budget",
        "X-Restnet-Budget",
        "X-Restnet-Deadline",
    }
    for name, example in content["application/json"]["examples"].items():
        assert read_json(PredictRequest, json.dumps(example["value"]).encode())
        if name != "inputs":  # its shape is of another bundle
            assert client.post("/predict", json=example["value"]).status_code == 200
    for example in paths["/budget"]["put"]["requestBody"]["content"]["application/json"]["examples"].values():
        read_json(BudgetRequest, json.dumps(example["value"]).encode()).limits()
        assert client.put("/budget", json=example["value"]).status_code == 200


def test_a_pinned_route_serves_until_it_is_let_go(served):
    client = served.client
    try:
        answer = client.put("/pin", json={"route": "small"}).raise_for_status().json()
        assert (answer["pin"], answer["decision"]["route"]) == ("small", "small")
        assert client.post("/predict", content=png()).json()["route"] == "small"
        assert client.get("/status").json()["pin"] == "small"
        unknown = client.put("/pin", json={"route": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]) == (
            422,
            "there is no route 'nobody' in this bundle: /routes lists what there is",
        )
        nothing = client.put("/pin", json={})
        assert (nothing.status_code, nothing.json()["error"]) == (422, "field route is missing: allowed are route")
    finally:
        free = client.delete("/pin").json()
    assert (free["pin"], free["decision"]["route"]) == (None, "large")
    assert client.get("/pin").json() == free


def test_below_the_floor_a_request_is_refused(served):
    client = served.client
    assert client.post("/predict", params={"budget": "95%"}, content=png()).json()["route"] == "large"
    macs = served.bundle.route("small").macs
    refused = client.post("/predict", headers={"X-Restnet-Budget": f"{macs}MACs,90%"}, content=png())
    assert refused.status_code == 503
    assert "below the floor of accuracy none is tried" in refused.json()["error"]
    client.put("/budget", json={"macs": macs, "min_accuracy": 0.9}).raise_for_status()
    assert client.post("/predict", content=png()).status_code == 503
    client.put("/budget", json={"macs": macs}).raise_for_status()
    assert client.post("/predict", content=png()).json()["route"] == "small"


def test_events_tell_each_switch_and_why(served):
    client, told = served.client, []
    with client.stream("GET", "/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                told.append((line.removeprefix("event: "), None))
            elif line.startswith("data: "):
                told[-1] = (told[-1][0], json.loads(line.removeprefix("data: ")))
                if told[-1][0] == "decision":
                    client.put("/budget", json={"macs": served.bundle.route("small").macs})
                if told[-1][0] == "switch":
                    break
    assert told[0][1]["route"] == "large"
    assert (told[-1][1]["before"], told[-1][1]["after"]) == ("large", "small")
    assert told[-1][1]["reason"] == "new budget: small is the most accurate that fits"


def test_listeners_are_bounded(served):
    served.app.state.events._most = 0
    try:
        assert served.client.get("/events").status_code == 503
    finally:
        served.app.state.events._most = 16


def test_a_read_only_server_takes_no_changes(make):
    with make(read_only=True) as served:
        client = served.client
        assert client.get("/status").json()["read_only"] is True
        for method, path, body in (("PUT", "/budget", b'{"macs": 1}'), ("PUT", "/pin", b'{"route": "small"}'), ("DELETE", "/pin", b"")):
            assert_error(client.request(method, path, content=body), 403, "this server is read-only")
        assert client.get("/budget").json()["budget"]["text"] == "none"
        assert client.post("/predict", content=png(), params={"budget": "1MACs"}).status_code == 200  # a wish of its own stays possible
