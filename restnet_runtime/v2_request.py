"""Requests of the Open Inference Protocol: from the bytes of a body to input tensors and what is wanted of the outputs.

Of a body, the first part is JSON. With the binary tensor extension the data of tensors follow it, in the order of the inputs, and the
header Inference-Header-Content-Length says where. Nothing is copied here, and nothing is allocated that the body does not fill.
"""

import math
import reprlib
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from restnet_runtime.errors import InputError, RequestError
from restnet_runtime.nesting import check_nesting

_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True)
class InputTensor:
    """One input as it was sent: either `data`, nested or flat lists from JSON, or `raw`, the binary form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None
    raw: memoryview | None

    @property
    def count(self) -> int:
        """Elements, as the shape says."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WantedOutput:
    """One output that was asked for. classes: not the tensor but so many of its highest values, as the classification extension has it."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """outputs: `None` where none are named, which means all; binary: how these are wanted."""

    id: str | None
    parameters: dict[str, Any]
    inputs: tuple[InputTensor, ...]
    outputs: tuple[WantedOutput, ...] | None
    binary: bool


def parse_header_length(text: str | None, body_bytes: int) -> int | None:
    """The header Inference-Header-Content-Length; `None` where there is none. Raises `RequestError`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError(f"Inference-Header-Content-Length is {text[:60]!r}: give the bytes of the JSON that begins the body")
    if int(text) > body_bytes:
        raise RequestError(f"Inference-Header-Content-Length is {text}, and the body has {body_bytes} bytes")
    return int(text)


def parse_request(body: bytes, header_length: int | None) -> InferRequest:
    """Read a body. header_length: of the JSON; `None` where the whole body is. Raises `RequestError` and its kin."""
    if not body:
        raise RequestError("the body is empty: send an inference request")
    json_bytes = body if header_length is None else bytes(memoryview(body)[:header_length])
    check_nesting(json_bytes)
    try:
        document = from_json(json_bytes, allow_inf_nan=False)
    except ValueError as error:
        where = "the body" if header_length is None else f"the first {header_length} bytes of the body"
        raise RequestError(f"{where} cannot be read as JSON: {error}") from error
    root = _object(document, "the request")
    parameters = _parameters(root, "the request")
    binary = _flag(parameters, "binary_data_output", "the request")
    outputs = _listed(root, "outputs", "the request")
    binary_part = None if header_length is None else memoryview(body)[header_length:]
    return InferRequest(
        id=None if root.get("id") is None else _text(root, "id", "the request"),
        parameters=parameters,
        inputs=_inputs(_listed(root, "inputs", "the request") or [], binary_part),
        outputs=tuple(_output(one, binary, f"output {index}") for index, one in enumerate(outputs)) if outputs else None,
        binary=binary,
    )


def _inputs(documents: list[Any], binary_part: memoryview | None) -> tuple[InputTensor, ...]:
    made, start = [], 0
    held = 0 if binary_part is None else len(binary_part)
    for index, document in enumerate(documents):
        where = f"input {index}"
        entry = _object(document, where)
        parameters = _parameters(entry, where)
        _refuse_shared_memory(parameters, where)
        size, data, raw = parameters.get("binary_data_size"), entry.get("data"), None
        if size is not None and data is not None:
            raise RequestError(f"{where} has both data and binary_data_size: give one of them")
        if size is not None:
            if type(size) is not int or size < 0:
                raise RequestError(f"{where} has binary_data_size {_shown(size)}: give its bytes, a whole number")
            if binary_part is None:
                raise RequestError(f"{where} has binary_data_size, and the header Inference-Header-Content-Length is missing")
            if size > held - start:
                raise RequestError(f"{where} has binary_data_size {_shown(size)}, and {held - start} bytes are left of the body")
            raw = binary_part[start : start + size]
            start += size
        elif not isinstance(data, list):
            raise RequestError(f"{where} has no data: give an array, or binary_data_size")
        made.append(InputTensor(_text(entry, "name", where), _text(entry, "datatype", where), _shape(entry, where), data, raw))
    if start != held:
        raise RequestError(f"{held} bytes follow the JSON, and the inputs account for {start} of them")
    return tuple(made)


def _output(document: Any, binary: bool, where: str) -> WantedOutput:
    entry = _object(document, where)
    parameters = _parameters(entry, where)
    _refuse_shared_memory(parameters, where)
    classes = parameters.get("classification")
    if classes is not None and (type(classes) is not int or classes < 0):
        raise RequestError(f"{where} has classification {_shown(classes)}: give how many classes, a whole number")
    wanted = _flag(parameters, "binary_data", where) if "binary_data" in parameters else binary
    return WantedOutput(_text(entry, "name", where), wanted, classes or None)


def _shape(entry: dict[str, Any], where: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise RequestError(f"{where} has shape {_shown(shape)}: give up to {_MAX_DIMENSIONS} whole numbers")
    for size in shape:
        if type(size) is not int or not 0 <= size <= _MAX_DIMENSION:
            raise InputError(f"{where} has {_shown(size)} in its shape: give whole numbers from 0 to {_MAX_DIMENSION}")
    return tuple(shape)


def _refuse_shared_memory(parameters: dict[str, Any], where: str) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise RequestError(f"{where} asks for shared memory, which is not supported: send binary data")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} is {_shown(value)}: give an object")
    return value


def _listed(entry: dict[str, Any], name: str, where: str) -> list[Any] | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, list):
        raise RequestError(f"{where} has {name} {_shown(value)}: give an array")
    return value


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    value = entry.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{where} has parameters {_shown(value)}: give an object")
    return value


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where} has {name} {_shown(value)}: give a string")
    return value


def _flag(parameters: dict[str, Any], name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"{where} has {name} {_shown(value)}: give true or false")
    return value


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)[:60]
    except ValueError:  # a number of more digits than Python writes
        return "a huge number"
