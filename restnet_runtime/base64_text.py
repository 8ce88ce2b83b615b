"""Base64 as clients send it: with line breaks in it, or as a data URL."""

import base64
import binascii

from restnet_runtime.errors import RequestError


def decode_base64(text: str, index: int) -> bytes:
    """The bytes of a base64 string or of a data URL with one. index: of the image, for the message of `RequestError`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"image {index} is not base64: {error}") from error
