"""Documentation of the Open Inference Protocol's messages for OpenAPI: their bodies are read and written without FastAPI."""

from typing import Any

from restnet_runtime.bodies import BUDGET_EXAMPLE

_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_TENSOR: dict[str, Any] = {
    "name": {"type": "string"},
    "datatype": {"type": "string", "enum": ["FP32", "UINT8", "BYTES"]},
    "shape": _SHAPE,
    "parameters": _PARAMETERS,
    "data": {"type": "array", "items": {}, "description": "flat, or nested in the shape; left out where it is binary"},
}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_REQUEST = _object(
    {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _object(_TENSOR, "name", "shape", "datatype")},
        "outputs": {"type": "array", "items": _object({"name": {"type": "string"}, "parameters": _PARAMETERS}, "name")},
    },
    "inputs",
)
_RESPONSE = _object(
    {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _object(_TENSOR, "name", "shape", "datatype")},
    },
    "model_name",
    "outputs",
)
_BINARY: dict[str, Any] = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "JSON, then binary data; Inference-Header-Content-Length says where",
    }
}
INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": _REQUEST,
            "examples": {
                "pixels": {
                    "summary": "one image of 2 x 2 grey pixels, preprocessed here",
                    "value": {
                        "id": "42",
                        "parameters": {"budget": BUDGET_EXAMPLE},
                        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 1], "data": [0, 128, 128, 255]}],
                        "outputs": [{"name": "class"}, {"name": "probabilities", "parameters": {"classification": 3}}],
                    },
                }
            },
        },
        "application/octet-stream": _BINARY,
    },
}
INFER_RESPONSE: dict[str, Any] = {
    "description": "Output tensors, and in parameters route, macs, latency_ms and budget_met",
    "content": {"application/json": {"schema": _RESPONSE}, "application/octet-stream": _BINARY},
}
