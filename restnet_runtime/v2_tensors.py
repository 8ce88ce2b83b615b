"""Tensors of the Open Inference Protocol: from their JSON or binary form to arrays or strings of bytes, and back.

Binary is little-endian and in row-major order; elements of BYTES have their length before them, in four bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from restnet_runtime.errors import InputError
from restnet_runtime.v2_request import InputTensor

DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
"""Numbers that inputs may be; BYTES are the third kind."""
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class OutputTensor:
    """One output: an array of float32, or for BYTES a flat list of texts of that shape."""

    name: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.float32] | Sequence[str]

    @property
    def datatype(self) -> str:
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"


def read_numbers(tensor: InputTensor) -> npt.NDArray[Any]:
    """The array of a tensor whose datatype is one of `DTYPES`, in its shape; of binary data a read-only view.

    Raises `InputError` where data and shape do not agree, and for JSON that holds something else than such numbers.
    """
    dtype = DTYPES[tensor.datatype]
    if tensor.raw is not None:
        if len(tensor.raw) != tensor.count * dtype.itemsize:
            raise InputError(
                f"input {tensor.name[:60]!r} of {tensor.datatype} {list(tensor.shape)} takes {tensor.count * dtype.itemsize} bytes; "
                f"it has {len(tensor.raw)}"
            )
        return np.frombuffer(tensor.raw, dtype).reshape(tensor.shape)
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError, TypeError) as error:  # rows of different lengths, say
        raise _no_numbers(tensor, "is no array of numbers") from error
    _check_count(tensor, values.size)
    if values.ndim > 1 and values.shape != tensor.shape:
        raise InputError(f"input {tensor.name[:60]!r} has data of shape {list(values.shape)}; its shape is {list(tensor.shape)}")
    if values.dtype.kind not in ("iuf" if tensor.datatype == "FP32" else "iu"):
        raise _no_numbers(tensor, f"has other data than {tensor.datatype}")
    if tensor.datatype == "UINT8" and values.size and not (values.min() >= 0 and values.max() <= 255):
        raise _no_numbers(tensor, "has numbers outside 0 to 255")
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite, and refused as such
        return values.astype(dtype).reshape(tensor.shape)


def read_strings(tensor: InputTensor) -> list[bytes | str]:
    """The elements of a tensor of BYTES: bytes of the binary form, text of JSON. Raises `InputError`."""
    if tensor.raw is None:
        texts = _flattened(tensor.data or [])
        _check_count(tensor, len(texts))
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"input {tensor.name[:60]!r} of BYTES has data that are no strings")
        return texts
    raw, start = tensor.raw, 0
    made: list[bytes | str] = []
    while start < len(raw):
        if len(raw) - start < _LENGTH.size:
            raise InputError(f"input {tensor.name[:60]!r} of BYTES ends in the middle of a length")
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if length > len(raw) - start:
            raise InputError(f"input {tensor.name[:60]!r} has an element of {length} bytes, and {len(raw) - start} are left")
        made.append(bytes(raw[start : start + length]))
        start += length
        if len(made) > tensor.count:
            break
    _check_count(tensor, len(made))
    return made


def write_json(tensor: OutputTensor) -> list[Any]:
    """The elements of an output as one flat list, as the protocol recommends."""
    return tensor.values.ravel().tolist() if isinstance(tensor.values, np.ndarray) else list(tensor.values)


def write_binary(tensor: OutputTensor) -> bytes:
    """The binary form of an output."""
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype("<f4", copy=False).tobytes()
    encoded = [text.encode() for text in tensor.values]
    return b"".join(part for one in encoded for part in (_LENGTH.pack(len(one)), one))


def _flattened(data: list[Any]) -> list[Any]:
    """Of strings: one level of nesting is taken too, as in [["a"], ["b"]]."""
    return [one for row in data for one in (row if isinstance(row, list) else (row,))]


def _check_count(tensor: InputTensor, count: int) -> None:
    if count != tensor.count:
        more = "more" if count > tensor.count else str(count)
        raise InputError(f"input {tensor.name[:60]!r} of shape {list(tensor.shape)} takes {tensor.count} elements; it has {more}")


def _no_numbers(tensor: InputTensor, problem: str) -> InputError:
    return InputError(f"input {tensor.name[:60]!r} {problem}: give {tensor.datatype}, flat or nested in the shape {list(tensor.shape)}")
