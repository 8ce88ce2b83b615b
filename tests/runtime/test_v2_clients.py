"""The official clients of the Open Inference Protocol, `tritonclient[http]`, sync and asyncio, against a real server."""

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as sync
import tritonclient.http.aio as aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from restnet_runtime.bundle import Bundle
from restnet_runtime.preprocess import Preprocessor

ENCODINGS = (None, "gzip", "deflate")


@pytest.fixture(scope="module")
def server(family_bundle: Bundle, cache_root: Path, serve) -> Iterator:
    with serve(family_bundle, cache_root) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[sync.InferenceServerClient]:
    with sync.InferenceServerClient(server.url, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((60, 1, 8, 8)).astype(np.float32)


def given(values: np.ndarray, name: str = "input", datatype: str = "FP32", *, binary: bool = True) -> sync.InferInput:
    tensor = sync.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_what_there_is(client: sync.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shapes")
    assert client.is_model_ready("shapes", "1")
    assert not client.is_model_ready("shapes", "2")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    (tensor,) = client.get_model_metadata("shapes", "1")["inputs"]
    assert tensor == {"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
    assert [(model["name"], model["state"]) for model in client.get_model_repository_index()] == [("shapes", "READY")]


@pytest.mark.parametrize("into", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("out", [True, False, None], ids=["binary out", "JSON out", "all out"])
def test_infer(server, client: sync.InferenceServerClient, x: np.ndarray, into: bool, out: bool | None) -> None:
    outputs = None if out is None else [sync.InferRequestedOutput(name, binary_data=out) for name in ("probabilities", "logits", "class")]
    result = client.infer("shapes", [given(x, binary=into)], outputs=outputs, request_id="42")
    expected = server.executor.run(x).logits
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(-1), 1, rtol=1e-5)
    names = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("class")]
    assert names == [server.executor.bundle.manifest.classes[index] for index in expected.argmax(-1)]
    response = result.get_response()
    assert (response["id"], response["parameters"]["route"], response["parameters"]["budget_met"]) == ("42", "large", True)


@pytest.mark.parametrize("request_encoding", ENCODINGS)
@pytest.mark.parametrize("response_encoding", ENCODINGS)
def test_compressed(
    server, client: sync.InferenceServerClient, x: np.ndarray, request_encoding: str | None, response_encoding: str | None
) -> None:
    result = client.infer(
        "shapes",
        [given(x)],
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )
    np.testing.assert_array_equal(result.as_numpy("logits"), server.executor.run(x).logits)


def test_images(server, client: sync.InferenceServerClient) -> None:
    manifest = server.executor.bundle.manifest
    pixels = np.random.default_rng(2).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    files = [encoded(one) for one in pixels]
    expected = server.executor.run(Preprocessor(manifest.preprocessing, manifest.input.shape).from_files(files)).logits
    for tensor in (given(np.array(files, object), "image", "BYTES"), given(pixels, "pixels", "UINT8")):
        np.testing.assert_allclose(client.infer("shapes", [tensor]).as_numpy("logits"), expected, atol=1e-6)


def test_classification(client: sync.InferenceServerClient, x: np.ndarray) -> None:
    result = client.infer("shapes", [given(x)], outputs=[sync.InferRequestedOutput("logits", class_count=2)])
    best = result.as_numpy("logits")
    assert best.shape == (60, 2)
    value, index, label = best[0][0].decode().split(":")
    assert float(value) > float(best[0][1].decode().split(":")[0])
    assert label == ("circle", "cross", "square")[int(index)]


def test_a_budget(server, client: sync.InferenceServerClient, x: np.ndarray) -> None:
    small = server.executor.bundle.route("small")
    for more in ({"parameters": {"budget": f"{small.macs}FLOPs"}}, {"headers": {"X-Restnet-Budget": f"{small.macs}FLOPs"}}):
        result = client.infer("shapes", [given(x)], **more)
        assert result.get_response()["parameters"]["route"] == "small"
        np.testing.assert_array_equal(result.as_numpy("logits"), server.executor.run(x, "small").logits)


def test_errors_have_their_status_and_say_why(client: sync.InferenceServerClient, x: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match=r"\[404\] there is no model 'other' here"):
        client.infer("other", [given(x)])
    with pytest.raises(InferenceServerException, match=r"\[400\] unknown input 'y'"):
        client.infer("shapes", [given(x, "y")])
    with pytest.raises(InferenceServerException, match=r"\[400\] the bundles of this server are not replaced"):
        client.load_model("shapes")


def test_many_at_once(server, x: np.ndarray) -> None:
    def ask(index: int) -> np.ndarray:
        with sync.InferenceServerClient(server.url) as client:
            return client.infer("shapes", [given(x[index : index + 1])]).as_numpy("logits")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    np.testing.assert_allclose(np.concatenate(answers), server.executor.run(x[:40]).logits, rtol=1e-4, atol=1e-5)


def test_asyncio(server, x: np.ndarray) -> None:
    async def visit() -> None:
        async with aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("shapes")
            assert (await client.get_server_metadata())["name"] == "restnet-runtime"
            assert (await client.get_model_metadata("shapes"))["versions"] == ["1"]
            assert [model["name"] for model in await client.get_model_repository_index()] == ["shapes"]
            expected = server.executor.run(x).logits
            for encoding in ENCODINGS:
                result = await client.infer(
                    "shapes", [given(x)], request_compression_algorithm=encoding, response_compression_algorithm=encoding
                )
                np.testing.assert_array_equal(result.as_numpy("logits"), expected)
            results = await asyncio.gather(*(client.infer("shapes", [given(x[i : i + 1])], request_id=str(i)) for i in range(30)))
            for index, result in enumerate(results):
                assert result.get_response()["id"] == str(index)
                np.testing.assert_allclose(result.as_numpy("logits"), expected[index : index + 1], rtol=1e-4, atol=1e-5)
            with pytest.raises(InferenceServerException, match=r"\[404\]"):
                await client.infer("other", [given(x)])

    asyncio.run(visit())
