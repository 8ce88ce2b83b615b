"""Encodings: bodies compressed with gzip or deflate, within the limit that bodies have."""

import zlib

from restnet_runtime.errors import RequestError, TooLongError

ENCODINGS = ("gzip", "deflate")
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15  # as zlib counts them
_WORTH_BYTES = 1024  # a body below fits one packet as it is
_LEVEL = 1  # tensors hardly shrink; a device has better to do


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """`body`, or what it is compressed from: at most `limit` bytes of it are ever held.

    encoding:  identity, gzip or deflate; deflate is zlib's format, as HTTP has it, or without its frame, as some send it
    Raises `TooLongError`, and `RequestError` for a body that is damaged, cut short, or followed by something else.
    """
    if encoding == "identity":
        return body
    raw = encoding == "deflate" and not _has_zlib_header(body)
    bits = _GZIP_BITS if encoding == "gzip" else _RAW_BITS if raw else _ZLIB_BITS
    pieces: list[bytes] = []
    left, rest = limit, body
    while rest:
        decoder = zlib.decompressobj(bits)
        try:
            piece = decoder.decompress(rest, left + 1)
        except zlib.error as error:
            raise RequestError(f"the body is not {encoding}, as its Content-Encoding says: {error}") from error
        if len(piece) > left:
            raise TooLongError(f"the body exceeds {limit} bytes once it is decompressed, which is the limit")
        if not decoder.eof:
            raise RequestError(f"the body ends in the middle of its {encoding}")
        pieces.append(piece)
        left, rest = left - len(piece), decoder.unused_data
        if rest and encoding != "gzip":  # which alone may come in several members
            raise RequestError(f"{len(rest)} bytes follow the end of the {encoding}")
        if rest and not piece:
            raise RequestError("the body has empty members of gzip")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def compress(body: bytes, encoding: str) -> bytes:
    """`body` in one of `ENCODINGS`."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_BITS if encoding == "gzip" else _ZLIB_BITS)
    return compressor.compress(body) + compressor.flush()


def choose_encoding(accepted: str, size: int) -> str | None:
    """The encoding to answer in, by an Accept-Encoding header and the bytes of the body; `None` for as it is."""
    if not accepted or size < _WORTH_BYTES:
        return None
    weights = dict(_weighed(part) for part in accepted.lower().split(","))
    best = max(ENCODINGS, key=lambda name: weights.get(name, weights.get("*", 0.0)))
    weight = weights.get(best, weights.get("*", 0.0))
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weighed(part: str) -> tuple[str, float]:
    name, _, options = part.partition(";")
    key, _, value = options.partition("=")
    if key.strip() != "q":
        return name.strip(), 1.0
    try:
        return name.strip(), float(value)
    except ValueError:
        return name.strip(), 0.0


def _has_zlib_header(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
