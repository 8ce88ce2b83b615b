"""Payload of one prediction request: whatever form the client chose, an input batch and its wishes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from restnet_runtime.base64_text import decode_base64
from restnet_runtime.bodies import PredictRequest, read_json
from restnet_runtime.budget import Budget
from restnet_runtime.errors import InputError
from restnet_runtime.forms import read_form
from restnet_runtime.npy import read_npy
from restnet_runtime.preprocess import Preprocessor

BodyKind = Literal["form", "json", "npy", "image"]
FORM_FILES = ("image", "file")
FORM_FIELDS = (*FORM_FILES, "top_k", "budget")


@dataclass(frozen=True)
class Payload:
    """inputs: float32 (B, C, H, W); single: the client sent one input, not a batch of one; the rest narrows this request."""

    inputs: npt.NDArray[np.float32]
    single: bool
    top_k: int | None = None
    budget: Budget = field(default_factory=Budget)


def parse_top_k(text: str) -> int:
    """Read `top_k` from a query or a form. Raises `InputError`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise InputError(f"top_k is {text[:60]!r}: give a whole number above 0")
    return int(text)


@dataclass(frozen=True)
class PayloadReader:
    """Reads bodies for one bundle."""

    preprocessor: Preprocessor
    max_batch: int

    def read(self, kind: BodyKind, content_type: str, body: bytes) -> Payload:
        """Decode `body`. Raises `RequestError` and its kin, or `UnitError` for a budget that cannot be read."""
        if kind == "image":
            return Payload(self.preprocessor.from_files([body]), single=True)
        if kind == "npy":
            return self._from_array(read_npy(body))
        if kind == "form":
            return self._from_form(content_type, body)
        return self._from_json(body)

    def _from_form(self, content_type: str, body: bytes) -> Payload:
        files: list[bytes] = []
        fields: dict[str, str] = {}
        for part in read_form(content_type, body, max_parts=self.max_batch + len(FORM_FIELDS)):
            if part.name in FORM_FILES:
                files.append(part.data)
            elif part.name not in FORM_FIELDS:
                raise InputError(f"unknown field {part.name[:60]!r}: allowed are {', '.join(FORM_FIELDS)}")
            elif part.name in fields:
                raise InputError(f"field {part.name} is given twice")
            else:
                fields[part.name] = part.data.decode("utf-8", "replace")
        if not files:
            raise InputError(f"the form carries no image: give it in the field {' or '.join(FORM_FILES)}")
        top_k = parse_top_k(fields["top_k"]) if "top_k" in fields else None
        return Payload(self._from_files(files), len(files) == 1, top_k, Budget.parse(fields.get("budget", "")))

    def _from_json(self, body: bytes) -> Payload:
        request = read_json(PredictRequest, body)
        given = [name for name in ("image", "images", "inputs") if getattr(request, name) is not None]
        if len(given) != 1:
            raise InputError(f"{' and '.join(given) or 'no input'} given: give exactly one of image, images, inputs")
        budget = Budget.parse(request.budget or "")
        if request.inputs is not None:
            read = self._from_array(_as_array(request.inputs))
            return Payload(read.inputs, read.single, request.top_k, budget)
        texts = [request.image] if request.image is not None else request.images or []
        self._check_count(len(texts))
        files = [decode_base64(text, index) for index, text in enumerate(texts)]
        return Payload(self._from_files(files), request.image is not None, request.top_k, budget)

    def _from_array(self, values: npt.NDArray[Any]) -> Payload:
        single = values.ndim < 4
        if not single:
            self._check_count(len(values))
        pixels = values.dtype == np.uint8
        return Payload(self.preprocessor.from_pixels(values) if pixels else self.preprocessor.from_inputs(values), single)

    def _from_files(self, files: Sequence[bytes]) -> npt.NDArray[np.float32]:
        self._check_count(len(files))
        return self.preprocessor.from_files(files)

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.max_batch:
            raise InputError(f"the batch has {count} inputs: give 1 to {self.max_batch}")


def _as_array(nested: list[Any]) -> npt.NDArray[Any]:
    if not nested:
        raise InputError("inputs is empty: give 1 input or more")
    try:
        return np.asarray(nested)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"inputs is no array: {error}") from error
