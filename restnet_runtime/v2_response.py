"""Responses of the Open Inference Protocol: from output tensors to the bytes of a body."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from restnet_runtime.v2_tensors import OutputTensor, write_binary, write_json

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Where binary data follow the JSON: the bytes of the JSON."""


@dataclass(frozen=True)
class InferResponse:
    """A body, and how many of its bytes are JSON; `None` where all are."""

    body: bytes
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        if self.header_length is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(self.header_length)}


def write_response(
    model: str, version: str, request_id: str | None, parameters: dict[str, Any], outputs: Iterable[tuple[OutputTensor, bool]]
) -> InferResponse:
    """outputs: each with whether it is wanted as binary data."""
    entries, pieces = [], []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            piece = write_binary(tensor)
            entry["parameters"] = {"binary_data_size": len(piece)}
            pieces.append(piece)
        else:
            entry["data"] = write_json(tensor)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        document["id"] = request_id
    head = to_json(document | {"parameters": parameters, "outputs": entries})
    return InferResponse(b"".join((head, *pieces)), len(head) if pieces else None)
