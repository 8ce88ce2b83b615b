"""Bodies of multipart/form-data (RFC 7578), parsed in memory: bodies are bounded, and a device should not write uploads to its flash."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from restnet_runtime.errors import RequestError


@dataclass(frozen=True)
class FormPart:
    """One part: the field's name, and what it carries."""

    name: str
    data: bytes


def read_form(content_type: str, body: bytes, max_parts: int) -> list[FormPart]:
    """The parts of `body`, in order. Raises `RequestError` when it is damaged, cut short, or has more than `max_parts` parts."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(f"content type {content_type!r} has no boundary: a multipart body needs one")
    reader = _Reader(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_headers_finished": reader.on_headers_finished,
                "on_part_data": reader.on_part_data,
                "on_part_end": reader.on_part_end,
                "on_end": reader.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the multipart body cannot be read: {error}") from error
    if not reader.ended:
        raise RequestError("the multipart body is cut short: its closing boundary is missing")
    return reader.parts


class _Reader:
    """Collects what the parser reports."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[FormPart] = []
        self.ended = False
        self._max_parts = max_parts

    def on_part_begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise RequestError(f"the multipart body has more than {self._max_parts} parts, which is the limit")
        self._field = self._value = self._disposition = b""
        self._name = ""
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name")
        if name is None:
            raise RequestError("a part of the multipart body has no name: give Content-Disposition: form-data; name=...")
        self._name = name.decode("utf-8", "replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        self.parts.append(FormPart(self._name, bytes(self._data)))

    def on_end(self) -> None:
        self.ended = True
