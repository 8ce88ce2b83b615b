"""Bodies compressed with gzip or deflate, as clients send them and as hostile ones do."""

import gzip
import tracemalloc
import zlib

import pytest

from restnet_runtime.encodings import ENCODINGS, choose_encoding, compress, decompress
from restnet_runtime.errors import RequestError, TooLongError

BODY = bytes(range(256)) * 40


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("identity", BODY),
        ("gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:100]) + gzip.compress(BODY[100:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
    ],
    ids=["identity", "gzip", "two members", "deflate", "without a frame"],
)
def test_what_clients_send(encoding: str, sent: bytes) -> None:
    assert decompress(sent, encoding, len(BODY)) == BODY


def test_nothing_compressed_is_nothing() -> None:
    assert decompress(gzip.compress(b""), "gzip", 10) == b""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_there_and_back(encoding: str) -> None:
    sent = compress(BODY, encoding)
    assert len(sent) < len(BODY)
    assert decompress(sent, encoding, len(BODY)) == BODY
    assert {"gzip": gzip, "deflate": zlib}[encoding].decompress(sent) == BODY


@pytest.mark.parametrize(
    ("encoding", "sent", "message"),
    [
        ("gzip", b"no gzip", "is not gzip"),
        ("deflate", b"\xff" * 20, "is not deflate"),
        ("gzip", gzip.compress(BODY)[:-1], "ends in the middle"),
        ("deflate", zlib.compress(BODY)[:50], "ends in the middle"),
        ("gzip", gzip.compress(BODY) + b"more", "is not gzip"),
        ("deflate", zlib.compress(BODY) + b"more", "4 bytes follow"),
        ("gzip", gzip.compress(b"") * 10, "empty members"),
    ],
)
def test_what_is_refused(encoding: str, sent: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decompress(sent, encoding, len(BODY))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_of_a_bomb_no_more_than_the_limit_is_held(encoding: str) -> None:
    bomb = compress(bytes(100_000_000), encoding)
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLongError, match="exceeds 100000 bytes"):
            decompress(bomb, encoding, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_many_members_count_together() -> None:
    with pytest.raises(TooLongError):
        decompress(gzip.compress(bytes(600)) * 2, "gzip", 1000)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("br, GZIP;q=0.1", "gzip"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("br", None),
        ("gzip;q=x", None),
        ("gzip;q=nan", None),
        (";;;,=,q", None),
    ],
)
def test_the_encoding_that_the_client_prefers(accepted: str, expected: str | None) -> None:
    assert choose_encoding(accepted, 5000) == expected


def test_small_bodies_stay_as_they_are() -> None:
    assert choose_encoding("gzip", 1023) is None
    assert choose_encoding("gzip", 1024) == "gzip"
