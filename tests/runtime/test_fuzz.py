"""A little of what `make fuzz` does for minutes: hostile input for a real server must never be our fault. Seeds are fixed here."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compose import compose

from .fuzz_targets import Tally, fuzz_bundles, fuzz_images, fuzz_other_bodies, fuzz_v2, mutated, real_images


@pytest.fixture(scope="module")
def client(family_bundle: Bundle, cache_root: Path, serve) -> Iterator[httpx.Client]:
    with serve(family_bundle, cache_root, max_pixels=100_000, max_batch=4, max_body_bytes=500_000) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of damaged files
        yield server.client


def check(tally: Tally, tried: int) -> None:
    assert not tally.faults, tally.faults[:3]
    assert tally.tried == tried
    assert tally.statuses[200] > tried / 100  # some got through: it is not all refused at the door
    assert sum(count for status, count in tally.statuses.items() if 400 <= status < 500) > tried / 10


@pytest.mark.parametrize("fuzz", [fuzz_images, fuzz_v2, fuzz_other_bodies])
def test_nothing_that_is_sent_is_our_fault(client: httpx.Client, fuzz) -> None:
    check(fuzz(client, 240), 240)
    assert client.post("/predict", content=real_images()[1]).status_code == 200


def test_a_fault_is_counted_as_one() -> None:
    tally = Tally()
    tally.answered(httpx.Response(500, json={"error": "internal error"}), b"x")
    tally.answered(httpx.Response(400, json={"detail": "of another kind"}), b"y")
    tally.answered(httpx.Response(503, json={"error": "full"}), b"z")
    assert [data for _, data in tally.faults] == [b"x", b"y"]
    assert str(tally) == "3 inputs, 2 5xx, 2 faults (1 x 400, 1 x 500, 1 x 503)"


def test_damaged_bundles_are_refused_or_right(family_path: Path, tmp_path: Path) -> None:
    def use(path: Path) -> None:
        bundle = open_bundle(path)
        for route in bundle.routes:
            compose(bundle, route)

    check(fuzz_bundles(family_path, tmp_path, 60, use=use), 60)


@pytest.mark.untraced
def test_requests_made_of_our_description_are_answered_as_it_says(client: httpx.Client) -> None:
    pytest.importorskip("schemathesis", reason="requests are made by schemathesis, of the dev extra")
    from .fuzz_openapi import fuzz_openapi

    tallies = fuzz_openapi(str(client.base_url).rstrip("/"), examples=5)
    assert {"POST /predict", "PUT /budget", "PUT /pin", "POST /v2/models/{model_name}/infer", "GET /metrics"} <= set(tallies)
    faults = {operation: tally.faults[:2] for operation, tally in tallies.items() if tally.faults}
    assert not faults


def test_the_files_that_are_damaged_are_whole_before(client: httpx.Client) -> None:
    for data in real_images():
        answer = client.post("/predict", content=data)
        assert answer.status_code == 200, (data[:16], answer.text)
    rng = np.random.default_rng(0)
    assert len({mutated(data, rng) for data in real_images() * 3}) > 100


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_decompression_bombs_are_refused_by_their_headers(client: httpx.Client, kind: str) -> None:
    """Small files of 30000 x 30000 pixels and more; none may be decoded."""
    side = 30_000
    if kind == "png":
        rows = zlib.compress(b"\0" * 1000)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
        data = b"\x89PNG\r\n\x1a\n"
        data += b"".join(struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one)) for name, one in chunks)
    elif kind == "gif":
        data = (
            b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02L\x01\0;"
        )
    elif kind == "webp":
        stream = io.BytesIO()
        Image.new("RGB", (16, 16)).save(stream, "WEBP", lossless=True)
        whole = bytearray(stream.getvalue())
        whole[21:25] = struct.pack("<I", 0x0FFFFFFF & ((16383 - 1) | (16383 - 1) << 14))
        data = bytes(whole)
    else:
        stream = io.BytesIO()
        Image.new("L", (16, 16)).save(stream, "TIFF")
        whole = bytearray(stream.getvalue())
        for tag in (b"\x00\x01\x04\x00\x01\x00\x00\x00\x10\x00\x00\x00", b"\x01\x01\x04\x00\x01\x00\x00\x00\x10\x00\x00\x00"):
            at = whole.index(tag)
            whole[at + 8 : at + 12] = struct.pack("<I", side)
        data = bytes(whole)
    answer = client.post("/predict", content=data)
    assert (answer.status_code, "the limit is 100000" in answer.json()["error"]) == (400, True), answer.text
