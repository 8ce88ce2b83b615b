"""Models of the Open Inference Protocol: a bundle with its routes is one model, whose inputs and outputs are tensors.

Inputs, exactly one of them in a request:
    input   FP32  [-1, C, H, W]      preprocessed by the client, as the network takes it
    pixels  UINT8 [-1, H, W, C]      images of any size, also [H, W, C] and [H, W]; preprocessed here as `/predict` does it
    image   BYTES [-1]               encoded images (PNG, JPEG, ...); in JSON as base64
Outputs, all of them unless some are named:
    logits         FP32  [-1, classes]
    probabilities  FP32  [-1, classes]
    class          BYTES [-1]          the name of the most probable class
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from restnet_runtime.base64_text import decode_base64
from restnet_runtime.batching import Batcher
from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.deadline import Deadline
from restnet_runtime.encodings import choose_encoding, compress, decompress
from restnet_runtime.errors import InputError, UnitError
from restnet_runtime.executor import Executor
from restnet_runtime.inference import Answered, Inference, Verdict
from restnet_runtime.predictions import best_classes, softmax
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.settings import ServeSettings
from restnet_runtime.v2_request import InferRequest, InputTensor, WantedOutput, parse_header_length, parse_request
from restnet_runtime.v2_response import write_response
from restnet_runtime.v2_tensors import OutputTensor, read_numbers, read_strings

VERSION = "1"
"""Of every model: a server has one version of a bundle."""
PLATFORM = "restnet_onnx"
_INPUTS = {"input": "FP32", "pixels": "UINT8", "image": "BYTES"}
_OUTPUTS = ("logits", "probabilities", "class")
_INSTEAD = {
    "pixels": "instead of input: UINT8 [-1, height, width, channels], preprocessed here",
    "image": "instead of input: BYTES [-1], encoded images, in JSON as base64; preprocessed here",
    "timeout": "request parameter: microseconds after which the request is not run any more",
    "budget": "request parameter: limits that narrow the standing budget, as 30ms,200MFLOPs",
}


@dataclass(frozen=True)
class Posted:
    """An inference request as it arrived.

    encoding, accepted:  of Content-Encoding and Accept-Encoding
    header_length:       of Inference-Header-Content-Length, if it was there
    budget:              what came in a header
    facts:               where the route that answered is left for the request's trace, if there is one
    """

    body: bytes
    encoding: str = "identity"
    accepted: str = ""
    header_length: str | None = None
    budget: Budget = field(default_factory=Budget)
    facts: dict[str, Any] | None = None
    deadline: Deadline = field(default_factory=Deadline)


@dataclass(frozen=True)
class _Prepared:
    request: InferRequest
    wanted: tuple[WantedOutput, ...]
    inputs: npt.NDArray[np.float32]
    budget: Budget


class Model:
    """One bundle, as clients of the protocol see it. Thread safe; `infer` blocks, so call it off the event loop."""

    def __init__(
        self,
        name: str,
        executor: Executor,
        controller: Controller,
        settings: ServeSettings,
        batcher: Batcher,
        answered: Answered | None = None,
    ) -> None:
        """answered: as `Inference` has it."""
        manifest = executor.bundle.manifest
        self.name = name
        self._settings = settings
        self._classes, self._shape = manifest.classes, manifest.input.shape
        self._inference = Inference(executor, controller, batcher, strict=settings.strict, answered=answered)
        self._preprocessor = Preprocessor(manifest.preprocessing, manifest.input.shape, max_pixels=settings.max_pixels)

    def metadata(self) -> dict[str, Any]:
        """The inputs listed are those that every client can give; what may be given instead is told in `parameters`."""
        rows = [-1, len(self._classes)]
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *self._shape]}],
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": rows},
                {"name": "probabilities", "datatype": "FP32", "shape": rows},
                {"name": "class", "datatype": "BYTES", "shape": [-1]},
            ],
            "parameters": _INSTEAD,
        }

    def infer(self, posted: Posted, arrived_s: float | None = None) -> tuple[bytes, dict[str, str]]:
        """Answer one request: the body, and its headers. arrived_s: when it came, by `time.perf_counter`.

        Raises `RequestError` and its kin, `UnitError` for a budget that cannot be read, and what `Inference.run` does.
        """
        prepared, logits, verdict = self._inference.run(lambda: self._prepare(posted), posted.budget, arrived_s, posted.deadline)
        if posted.facts is not None:
            posted.facts.update(route=verdict.route, run_ms=verdict.latency_ms, budget_met=verdict.budget_met)
        response = write_response(
            self.name,
            VERSION,
            prepared.request.id,
            _parameters(verdict),
            [(self._output(wanted, logits), wanted.binary) for wanted in prepared.wanted],
        )
        encoding = choose_encoding(posted.accepted, len(response.body))
        if encoding is None:
            return response.body, response.headers
        return compress(response.body, encoding), {**response.headers, "Content-Encoding": encoding, "Vary": "Accept-Encoding"}

    def _prepare(self, posted: Posted) -> _Prepared:
        body = decompress(posted.body, posted.encoding, self._settings.max_body_bytes)
        request = parse_request(body, parse_header_length(posted.header_length, len(body)))
        budget = request.parameters.get("budget", "")
        if not isinstance(budget, str):
            raise UnitError("the parameter budget is no string: give limits, as 30ms,200MFLOPs")
        timeout_us = request.parameters.get("timeout", 0)
        if type(timeout_us) is not int or timeout_us < 0:
            raise UnitError(f"the parameter timeout is {str(timeout_us)[:60]}: give microseconds, a whole number, 0 for none")
        if timeout_us:
            posted.deadline.narrow(timeout_us / 1e3)
            posted.deadline.check()  # before anything is decoded
        wanted = request.outputs or tuple(WantedOutput(name, request.binary) for name in _OUTPUTS)
        self._check_outputs(wanted)
        return _Prepared(request, wanted, self._inputs(request.inputs), Budget.parse(budget))

    def _check_outputs(self, wanted: tuple[WantedOutput, ...]) -> None:
        names = [output.name for output in wanted]
        for output in wanted:
            if output.name not in _OUTPUTS:
                raise InputError(f"unknown output {output.name[:60]!r}: this model has {', '.join(_OUTPUTS)}")
            if names.count(output.name) > 1:
                raise InputError(f"the output {output.name} is asked for twice")
            if output.classes is not None and output.name == "class":
                raise InputError("the output class has names already: ask for the classification of logits or probabilities")

    def _inputs(self, tensors: tuple[InputTensor, ...]) -> npt.NDArray[np.float32]:
        """(B, C, H, W), of whichever input was given."""
        if len(tensors) != 1:
            raise InputError(f"{len(tensors)} inputs are given: give exactly one of {', '.join(_INPUTS)}")
        (tensor,) = tensors
        datatype = _INPUTS.get(tensor.name)
        if datatype is None:
            raise InputError(f"unknown input {tensor.name[:60]!r}: give one of {', '.join(_INPUTS)}")
        if tensor.datatype != datatype:
            raise InputError(f"the input {tensor.name} has datatype {tensor.datatype[:60]!r}: it is {datatype}")
        if math.prod(tensor.shape) == 0:
            raise InputError(f"the input {tensor.name} has shape {list(tensor.shape)}: an empty batch has no answer")
        read: dict[str, Callable[[InputTensor], npt.NDArray[np.float32]]] = {
            "input": self._from_prepared,
            "pixels": self._from_pixels,
            "image": self._from_files,
        }
        return read[tensor.name](tensor)

    def _from_prepared(self, tensor: InputTensor) -> npt.NDArray[np.float32]:
        self._check_batch(tensor.shape[0] if len(tensor.shape) == 4 else 1)
        # Views of a body need not begin at a multiple of four bytes, and not every processor reads such floats.
        return np.require(self._preprocessor.from_inputs(read_numbers(tensor)), requirements="A")

    def _from_pixels(self, tensor: InputTensor) -> npt.NDArray[np.float32]:
        self._check_batch(tensor.shape[0] if len(tensor.shape) == 4 else 1)
        return self._preprocessor.from_pixels(read_numbers(tensor))

    def _from_files(self, tensor: InputTensor) -> npt.NDArray[np.float32]:
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise InputError(f"the input image has shape {list(tensor.shape)}: give [batch], one string for each image")
        self._check_batch(tensor.shape[0])
        strings = read_strings(tensor)
        files = [one if isinstance(one, bytes) else decode_base64(one, index) for index, one in enumerate(strings)]
        return self._preprocessor.from_files(files)

    def _check_batch(self, count: int) -> None:
        if count > self._settings.max_batch:
            raise InputError(f"the batch has {count} inputs: give 1 to {self._settings.max_batch}")

    def _output(self, wanted: WantedOutput, logits: npt.NDArray[np.float32]) -> OutputTensor:
        if wanted.name == "class":
            return OutputTensor("class", (len(logits),), [best[0].name for best in best_classes(logits, self._classes, 1)])
        values = logits if wanted.name == "logits" else softmax(logits).astype(np.float32)
        if wanted.classes is None:
            return OutputTensor(wanted.name, values.shape, values)
        count = min(wanted.classes, len(self._classes))
        rows = zip(values, best_classes(logits, self._classes, count), strict=True)
        texts = [f"{row[one.index]:f}:{one.index}:{one.name}" for row, best in rows for one in best]
        return OutputTensor(wanted.name, (len(logits), count), texts)


def _parameters(verdict: Verdict) -> dict[str, Any]:
    return {name: value for name, value in vars(verdict).items() if value is not None}
