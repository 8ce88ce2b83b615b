"""The Open Inference Protocol on a real server and a real bundle: what plain HTTP sees. The official clients are in test_v2_clients.py."""

import base64
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from restnet_runtime import __version__
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import Bundle
from restnet_runtime.preprocess import Preprocessor

INFER = "/v2/models/shapes/infer"
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(family_bundle: Bundle, cache_root: Path, serve) -> Iterator:
    """One server for this file, with small limits."""
    with serve(family_bundle, cache_root, max_body_bytes=200_000, max_batch=4, max_pixels=10_000) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    yield server.client
    server.controller.budget = Budget()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)


def entry(x: np.ndarray, **changes: object) -> dict:
    return {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().astype(float).tolist(), **changes}


def binary_body(raw: bytes, tensor: dict, **more: object) -> tuple[bytes, dict[str, str]]:
    described = {key: value for key, value in tensor.items() if key != "data"}
    described["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [described], **more}).encode()
    return head + raw, {HEADER: str(len(head))}


def logits_of(server, x: np.ndarray, route: str | None = None) -> np.ndarray:
    return server.executor.run(x, route).logits


def output(answer: httpx.Response, name: str) -> dict:
    assert answer.status_code == 200, answer.text
    (found,) = [one for one in answer.json()["outputs"] if one["name"] == name]
    return found


def values(answer: httpx.Response, name: str) -> np.ndarray:
    found = output(answer, name)
    return np.array(found["data"], np.float32).reshape(found["shape"])


# What the server and its model are


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(client: httpx.Client, path: str) -> None:
    assert client.get(path).raise_for_status().json() == {
        "name": "restnet-runtime",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification", "model_repository", "parameters"],
    }


@pytest.mark.parametrize("path", ["/v2/models/shapes", "/v2/models/shapes/versions/1"])
def test_model_metadata(client: httpx.Client, path: str) -> None:
    answer = client.get(path).raise_for_status().json()
    assert set(answer.pop("parameters")) == {"pixels", "image", "budget", "timeout"}
    assert answer == {
        "name": "shapes",
        "versions": ["1"],
        "platform": "restnet_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "class", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").raise_for_status().json() == {"live": True}
    assert client.get("/v2/health/ready").raise_for_status().json() == {"ready": True}
    for path in ("/v2/models/shapes/ready", "/v2/models/shapes/versions/1/ready"):
        assert client.get(path).raise_for_status().json() == {"name": "shapes", "ready": True}
        assert client.head(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/v2/models/other", "there is no model 'other' here: there is shapes"),
        ("GET", "/v2/models/other/ready", "there is no model"),
        ("POST", "/v2/models/other/infer", "there is no model"),
        ("GET", "/v2/models/shapes/versions/2", "the model shapes has no version '2': it has 1"),
        ("GET", "/v2/models/shapes/versions/2/ready", "has no version"),
        ("POST", "/v2/models/shapes/versions/01/infer", "has no version"),
        ("POST", "/v2/repository/models/other/load", "there is no model"),
        ("GET", "/v2/models/..%2f..%2fetc", "there is no"),
        ("GET", "/v2/models", "there is no '/v2/models' here"),
    ],
)
def test_what_there_is_not(client: httpx.Client, method: str, path: str, message: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, set(answer.json())) == (404, {"error"})
    assert message in answer.json()["error"]


def test_the_repository_lists_the_model(client: httpx.Client) -> None:
    expected = [{"name": "shapes", "version": "1", "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready": true}', b'{"ready": false}'):
        assert client.post("/v2/repository/index", content=body).raise_for_status().json() == expected
    for body in (b"[]", b'{"ready": 1}', b"{"):
        assert client.post("/v2/repository/index", content=body).status_code == 400
    for action, reason in (
        ("load", "are not replaced while it runs"),
        ("unload", "models stay as long as the server runs"),
    ):
        answer = client.post(f"/v2/repository/models/shapes/{action}")
        assert answer.status_code == 400
        assert reason in answer.json()["error"]


def test_wrong_methods_name_the_right_ones(client: httpx.Client) -> None:
    answer = client.get(INFER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    answer = client.post("/v2/models/shapes")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_before_a_route_is_loaded(family_bundle: Bundle, cache_root: Path, serve, x: np.ndarray) -> None:
    with serve(family_bundle, cache_root, load=False) as server:
        assert server.client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/shapes/ready"):
            answer = server.client.get(path)
            assert answer.status_code == 400
            assert "no route is loaded yet" in answer.json()["error"]
        answer = server.client.post(INFER, json={"inputs": [entry(x)]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        (state,) = server.client.post("/v2/repository/index").json()
        assert (state["state"], state["reason"]) == ("UNAVAILABLE", "no route is loaded yet")
        assert server.client.post("/v2/repository/index", json={"ready": True}).json() == []
        server.executor.load("small")
        assert server.client.get("/v2/health/ready").status_code == 200


# Inference


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("path", [INFER, "/v2/models/shapes/versions/1/infer"])
def test_json(server, client: httpx.Client, x: np.ndarray, nested: bool, path: str) -> None:
    data = x.astype(float).tolist() if nested else x.ravel().astype(float).tolist()
    answer = client.post(path, json={"id": "a/b", "inputs": [entry(x, data=data)]})
    assert answer.headers["content-type"] == "application/json"
    expected = logits_of(server, x)
    np.testing.assert_array_equal(values(answer, "logits"), expected)
    powers = np.exp(expected - expected.max(-1, keepdims=True))
    np.testing.assert_allclose(values(answer, "probabilities"), powers / powers.sum(-1, keepdims=True), rtol=1e-5)
    classes = server.executor.bundle.manifest.classes
    assert output(answer, "class") == {
        "name": "class",
        "datatype": "BYTES",
        "shape": [2],
        "data": [classes[index] for index in expected.argmax(-1)],
    }
    document = answer.json()
    parameters = document["parameters"]
    assert (document["model_name"], document["model_version"], document["id"]) == ("shapes", "1", "a/b")
    assert parameters == {
        "route": "large",
        "macs": server.executor.bundle.route("large").macs,
        "latency_ms": parameters["latency_ms"],
        "budget_met": True,
    }
    assert parameters["latency_ms"] > 0


@pytest.mark.parametrize("pad", range(4))
def test_binary_wherever_it_begins(server, client: httpx.Client, x: np.ndarray, pad: int) -> None:
    body, headers = binary_body(x.tobytes(), entry(x), id="i" * pad, outputs=[{"name": "logits"}])
    np.testing.assert_array_equal(values(client.post(INFER, content=body, headers=headers), "logits"), logits_of(server, x))


def test_binary_outputs(server, client: httpx.Client, x: np.ndarray) -> None:
    outputs = [{"name": "class", "parameters": {"binary_data": True}}, {"name": "logits"}]
    for more, binary in (
        ({"outputs": outputs}, ["class"]),
        ({"parameters": {"binary_data_output": True}}, ["logits", "probabilities", "class"]),
        ({"parameters": {"binary_data_output": True}, "outputs": [{"name": "logits", "parameters": {"binary_data": False}}]}, []),
    ):
        answer = client.post(INFER, json={"inputs": [entry(x)], **more})
        assert answer.status_code == 200, answer.text
        length = int(answer.headers.get(HEADER, len(answer.content)))
        assert answer.headers["content-type"] == ("application/octet-stream" if binary else "application/json")
        head, rest = json.loads(answer.content[:length]), answer.content[length:]
        sizes = {one["name"]: one["parameters"]["binary_data_size"] for one in head["outputs"] if "data" not in one}
        assert list(sizes) == binary
        assert sum(sizes.values()) == len(rest)
        if binary and binary[0] == "logits":
            np.testing.assert_array_equal(np.frombuffer(rest[:24], "<f4").reshape(2, 3), logits_of(server, x))


def png(seed: int, size: tuple[int, int] = (30, 20)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pixels(seed: int, size: tuple[int, int] = (30, 20)) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(seed, size))))


def test_images_and_pixels_are_preprocessed_as_predict_does_it(server, client: httpx.Client) -> None:
    manifest = server.executor.bundle.manifest
    prepared = Preprocessor(manifest.preprocessing, manifest.input.shape).from_files([png(0), png(1)])
    expected = logits_of(server, prepared)
    wanted = {"outputs": [{"name": "logits"}]}
    texts = [base64.b64encode(png(seed)).decode() for seed in range(2)]
    both = np.stack([pixels(0), pixels(1)])
    strings = b"".join(len(one).to_bytes(4, "little") + one for one in (png(0), png(1)))
    image = {"name": "image", "datatype": "BYTES", "shape": [2]}
    raw = {"name": "pixels", "datatype": "UINT8", "shape": list(both.shape)}
    for sent in (
        {"json": {"inputs": [{**image, "data": texts}], **wanted}},
        {"json": {"inputs": [{**image, "shape": [2, 1], "data": [[text] for text in texts]}], **wanted}},
        {"json": {"inputs": [{**raw, "data": both.tolist()}], **wanted}},
        dict(zip(("content", "headers"), binary_body(strings, image, **wanted), strict=True)),
        dict(zip(("content", "headers"), binary_body(both.tobytes(), raw, **wanted), strict=True)),
    ):
        np.testing.assert_allclose(values(client.post(INFER, **sent), "logits"), expected, atol=1e-6)
    one = client.post(INFER, json={"inputs": [{**raw, "shape": list(both.shape[1:]), "data": both[0].ravel().tolist()}], **wanted})
    np.testing.assert_allclose(values(one, "logits"), expected[:1], atol=1e-6)


def test_classification(server, client: httpx.Client, x: np.ndarray) -> None:
    outputs = [{"name": name, "parameters": {"classification": count}} for name, count in (("logits", 2), ("probabilities", 99))]
    answer = client.post(INFER, json={"inputs": [entry(x)], "outputs": outputs})
    top, every = output(answer, "logits"), output(answer, "probabilities")
    assert (top["datatype"], top["shape"], every["shape"]) == ("BYTES", [2, 2], [2, 3])
    expected = logits_of(server, x)
    order = np.argsort(-expected, axis=-1)[:, :2]
    classes = server.executor.bundle.manifest.classes
    assert top["data"] == [f"{row[i]:f}:{i}:{classes[i]}" for row, best in zip(expected, order, strict=True) for i in best]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_both_ways(server, client: httpx.Client, x: np.ndarray, encoding: str) -> None:
    four = np.concatenate([x, x])
    body, headers = binary_body(four.tobytes(), entry(four), id="i" * 1000)
    packed = {"gzip": gzip, "deflate": zlib}[encoding].compress(body)
    sent = {**headers, "Content-Encoding": encoding, "Accept-Encoding": encoding}
    answer = client.post(INFER, content=packed, headers=sent)
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (encoding, "Accept-Encoding")
    assert int(answer.headers["content-length"]) < len(answer.content)  # httpx decompresses
    np.testing.assert_array_equal(values(answer, "logits"), logits_of(server, four))
    plain = client.post(INFER, content=packed, headers=sent | {"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert output(plain, "logits") == output(answer, "logits")


# Budgets


def test_limits_of_a_request_narrow_that_request_only(server, client: httpx.Client, x: np.ndarray) -> None:
    small = server.executor.bundle.route("small")
    limit = f"{small.macs}FLOPs"
    sent = {"inputs": [entry(x)]}
    for answer in (
        client.post(INFER, json={**sent, "parameters": {"budget": limit}}),
        client.post(INFER, json=sent, headers={"X-Restnet-Budget": limit}),
        client.post(INFER, json={**sent, "parameters": {"budget": "10s"}}, headers={"X-Restnet-Budget": limit}),
    ):
        parameters = answer.raise_for_status().json()["parameters"]
        assert (parameters["route"], parameters["macs"], parameters["budget_met"]) == ("small", small.macs, True)
        np.testing.assert_array_equal(values(answer, "logits"), logits_of(server, x, "small"))
    assert client.post(INFER, json=sent).json()["parameters"]["route"] == "large"


def test_a_budget_that_nothing_fits_is_told_or_refused(
    client: httpx.Client, family_bundle: Bundle, cache_root: Path, serve, x: np.ndarray
) -> None:
    sent = {"inputs": [entry(x)], "parameters": {"budget": "1FLOPs"}}
    parameters = client.post(INFER, json=sent).raise_for_status().json()["parameters"]
    assert (parameters["route"], parameters["budget_met"], parameters["budget"]) == ("small", False, "1 MACs")
    assert "small" in parameters["reason"]
    with serve(family_bundle, cache_root, strict=True) as strict:
        answer = strict.client.post(INFER, json=sent)
        assert answer.status_code == 503
        assert "no route fits the budget" in answer.json()["error"]


# What is refused


def refused(x: np.ndarray) -> dict[str, tuple[dict, int, str]]:
    nan = x.copy()
    nan[0, 0, 1, 1] = np.nan
    eight = np.concatenate([x] * 4)

    def js(**changes: object) -> dict:
        return {"json": {"inputs": [entry(x)], **changes}}

    def one(**changes: object) -> dict:
        return {"json": {"inputs": [entry(x, **changes)]}}

    def raw(data: bytes, tensor: dict) -> dict:
        return dict(zip(("content", "headers"), binary_body(data, tensor), strict=True))

    body, headers = binary_body(x.tobytes(), entry(x))
    image = {"name": "image", "datatype": "BYTES", "shape": [1]}
    return {
        "empty": ({"content": b""}, 400, "the body is empty"),
        "no JSON": ({"content": b"\x00\x01"}, 400, "cannot be read as JSON"),
        "NaN in JSON": ({"content": b'{"inputs": [{"data": [NaN]}]}'}, 400, "cannot be read as JSON"),
        "no input": (js(inputs=[]), 400, "0 inputs are given"),
        "two inputs": (js(inputs=[entry(x), entry(x)]), 400, "2 inputs are given"),
        "unknown input": (one(name="x"), 400, "unknown input 'x': give one of input, pixels, image"),
        "other type": (one(datatype="FP64"), 400, "has datatype 'FP64': it is FP32"),
        "other shape": (one(shape=[2, 8, 8, 1]), 400, "input has shape (2, 8, 8, 1)"),
        "no batch": (one(shape=[0, 1, 8, 8], data=[]), 400, "an empty batch"),
        "large batch": ({"json": {"inputs": [entry(eight)]}}, 400, "the batch has 8 inputs: give 1 to 4"),
        "overflow": (one(shape=[2**31 - 1] * 4), 400, "the batch has 2147483647 inputs"),
        "overflow in all": (one(shape=[1] + [2**31 - 1] * 3), 400, "takes 9903520300447984150353281023 elements"),
        "negative": (one(shape=[-1, 1, 8, 8]), 400, "-1 in its shape"),
        "too few": (one(data=[1.0]), 400, "it has 1"),
        "beyond float32": (one(data=[1e300] * 128), 400, "give finite float32 numbers"),
        "beyond float64": ({"content": json.dumps({"inputs": [entry(x, data=[7] * 128)]}).replace("7", "1e999", 1)}, 400, "finite"),
        "binary NaN": (raw(nan.tobytes(), entry(x)), 400, "the value nan at (0, 0, 1, 1)"),
        "header too long": ({"content": body, "headers": {HEADER: str(len(body) + 1)}}, 400, "and the body has"),
        "header negative": ({"content": body, "headers": {HEADER: "-1"}}, 400, "'-1': give the bytes"),
        "header short": ({"content": body, "headers": {HEADER: "10"}}, 400, "the first 10 bytes of the body cannot be read"),
        "header missing": ({"content": body}, 400, "cannot be read as JSON"),
        "cut short": ({"content": body[:-1], "headers": headers}, 400, "bytes are left of the body"),
        "too long": ({"content": body + b"x", "headers": headers}, 400, "account for 512"),
        "unknown output": (js(outputs=[{"name": "y"}]), 400, "this model has logits, probabilities, class"),
        "output twice": (js(outputs=[{"name": "class"}] * 2), 400, "the output class is asked for twice"),
        "class of class": (js(outputs=[{"name": "class", "parameters": {"classification": 1}}]), 400, "has names already"),
        "shared memory": (js(inputs=[entry(x, parameters={"shared_memory_region": "a"})]), 400, "shared memory"),
        "budget": (js(parameters={"budget": "fast"}), 400, "fast"),
        "budget number": (js(parameters={"budget": 30}), 400, "the parameter budget is no string"),
        "budget header": ({**js(), "headers": {"X-Restnet-Budget": "x"}}, 400, "x"),
        "no image": (raw(b"\x03\0\0\0abc", image), 400, "no image that is decoded here"),
        "no base64": ({"json": {"inputs": [{**image, "data": ["*"]}]}}, 400, "image 0 is not base64"),
        "image shape": ({"json": {"inputs": [{**image, "shape": [1, 2], "data": ["a", "b"]}]}}, 400, "one string for each image"),
        "pixels": (raw(bytes(64), {"name": "pixels", "datatype": "UINT8", "shape": [1, 4, 8, 2]}), 400, "with C one of 1, 3, 4"),
        "many pixels": (raw(bytes(10_201), {"name": "pixels", "datatype": "UINT8", "shape": [101, 101, 1]}), 400, "the limit is 10000"),
        "encoding": ({"content": body, "headers": {**headers, "Content-Encoding": "br"}}, 415, "send gzip or deflate"),
        "no gzip": ({"content": body, "headers": {**headers, "Content-Encoding": "gzip"}}, 400, "is not gzip"),
        "bomb": ({"content": gzip.compress(bytes(10**7)), "headers": {"Content-Encoding": "gzip"}}, 413, "exceeds 200000 bytes"),
        "long body": ({"content": bytes(200_001)}, 413, "exceeds 200000 bytes"),
    }


@pytest.mark.parametrize("case", refused(np.zeros((2, 1, 8, 8), np.float32)))
def test_what_is_refused(client: httpx.Client, x: np.ndarray, case: str) -> None:
    request, status, message = refused(x)[case]
    answer = client.post(INFER, **request)
    assert (answer.status_code, set(answer.json())) == (status, {"error"}), answer.text
    assert message in answer.json()["error"]


def test_bodies_with_bytes_changed_are_never_our_fault(client: httpx.Client, x: np.ndarray) -> None:
    """A thousand sound requests, each with a few bytes changed: answered or refused, and the server lives on."""
    rng = np.random.default_rng(7)
    body, headers = binary_body(x.tobytes(), entry(x), outputs=[{"name": "logits", "parameters": {"binary_data": True}}])
    plain = json.dumps({"inputs": [entry(x)], "parameters": {"budget": "30ms"}}).encode()
    statuses = set()
    for index in range(1000):
        changed = bytearray(body if index % 2 else plain)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed) if index % 4 > 1 else 250)] = rng.integers(256)
        answer = client.post(INFER, content=bytes(changed), headers=headers if index % 2 else {})
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400), answer.text
    assert statuses == {200, 400}
    assert client.post(INFER, content=body, headers=headers).status_code == 200


def test_requests_of_the_protocol_count_and_are_bounded_like_others(server, client: httpx.Client, x: np.ndarray) -> None:
    before = server.controller.arrived
    assert client.post(INFER, json={"inputs": [entry(x[:1])]}).status_code == 200
    assert server.controller.arrived == before + 1
    assert client.get("/status").json()["queue"]["in_flight"] == 0
