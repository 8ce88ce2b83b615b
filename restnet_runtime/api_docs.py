"""Documentation of the request bodies for OpenAPI: FastAPI cannot derive it, since one path takes several kinds of body."""

from typing import Any

from restnet_runtime.bodies import BUDGET_EXAMPLE, BudgetRequest, PinRequest, PredictRequest

_PNG_BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_BINARY = {"type": "string", "format": "binary"}

PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "array", "items": _BINARY, "description": "an image file; several make a batch"},
                    "file": {"type": "array", "items": _BINARY, "description": "the same under another name"},
                    "top_k": {"type": "integer", "minimum": 1},
                    "budget": {"type": "string"},
                },
                "additionalProperties": False,
            },
            "examples": {"upload": {"summary": "curl -F image=@seven.png", "value": {"image": ["(the bytes of seven.png)"]}}},
        },
        "image/*": {
            "schema": _BINARY,
            "examples": {
                "raw": {"summary": "curl -H 'Content-Type: image/png' --data-binary @seven.png", "value": "(the bytes of seven.png)"}
            },
        },
        "application/json": {
            "schema": PredictRequest.model_json_schema(),
            "examples": {
                "image": {"summary": "one image in base64", "value": {"image": _PNG_BASE64, "top_k": 3}},
                "images": {"summary": "a batch of images", "value": {"images": [_PNG_BASE64, _PNG_BASE64]}},
                "inputs": {
                    "summary": "preprocessed numbers, here for an input of shape (1, 2, 2)",
                    "value": {"inputs": [[[0.0, 0.5], [0.5, 1.0]]], "budget": BUDGET_EXAMPLE},
                },
            },
        },
        "application/x-npy": {
            "schema": _BINARY,
            "examples": {
                "array": {
                    "summary": "float (C, H, W) or (B, C, H, W) is preprocessed; uint8 (H, W), (H, W, C) or (B, H, W, C) is pixels",
                    "value": "(the bytes of seven.npy)",
                }
            },
        },
        "application/octet-stream": {
            "schema": _BINARY,
            "examples": {
                "either": {"summary": "an image or .npy file, told apart by its first bytes", "value": "(the bytes of seven.png)"}
            },
        },
    },
}

MODEL_PARAMETER: dict[str, Any] = {
    "name": "model",
    "in": "query",
    "description": "which model, where several are served; by default the first",
    "schema": {"type": "string"},
}

PREDICT_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "top_k",
        "in": "query",
        "description": "how many classes to list",
        "schema": {"type": "integer", "minimum": 1},
        "example": 3,
    },
    {
        "name": "budget",
        "in": "query",
        "description": "narrows the standing budget for this request only",
        "schema": {"type": "string"},
        "example": BUDGET_EXAMPLE,
    },
    MODEL_PARAMETER,
    {
        "name": "X-Restnet-Deadline",
        "in": "header",
        "description": "what has waited so long since its headers came is not run: 504",
        "schema": {"type": "string"},
        "example": "200ms",
    },
    {
        "name": "X-Restnet-Budget",
        "in": "header",
        "description": "the same as a header; the lower limit of each kind counts",
        "schema": {"type": "string"},
        "example": BUDGET_EXAMPLE,
    },
]

PIN_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": PinRequest.model_json_schema(),
            "examples": {"route": {"summary": "by the name that /routes has", "value": {"route": "cnn-s"}}},
        }
    },
}

BUDGET_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": BudgetRequest.model_json_schema(),
            "examples": {
                "text": {"summary": "as people write it", "value": {"budget": BUDGET_EXAMPLE}},
                "numbers": {"summary": "limit by limit", "value": {"macs": 200_000_000, "latency_ms": 30.0, "memory_bytes": 150_000_000}},
                "none": {"summary": "no limit", "value": {"budget": "none"}},
            },
        }
    },
}
