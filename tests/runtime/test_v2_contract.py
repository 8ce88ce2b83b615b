"""What we answer, held against the published OpenAPI descriptions of the Open Inference Protocol (tests/data/open_inference)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from restnet_runtime.bundle import Bundle

DATA = Path(__file__).parents[1] / "data" / "open_inference"
DATA_PLANE, REPOSITORY = (json.loads((DATA / name).read_text()) for name in ("dataplane.json", "model_repository.json"))
_NOT_OURS = ("infer_stream", "generate", "generate_stream")  # of models that make text
PATHS = [
    (document, path, method)
    for document in (DATA_PLANE, REPOSITORY)
    for path, operations in document["paths"].items()
    for method in operations
    if method != "parameters" and path.rsplit("/", 1)[-1] not in _NOT_OURS
]
X = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)
REQUEST = {"id": "7", "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": X.ravel().astype(float).tolist()}]}
# The description has `"type": "bytes"` beside arrays for the data of tensors, which is no type of JSON.
CHECKER = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("bytes", lambda _, value: isinstance(value, bytes))
VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=CHECKER)


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """Raise `jsonschema.ValidationError` unless `value` is as `schema`, which refers to parts of `document`, has it."""
    VALIDATOR({"components": document["components"], **schema}).validate(value)


def schema_of(answers: dict[str, Any], status: int) -> dict[str, Any] | None:
    """What an operation answers with that status, by the description; `None` where it does not say."""
    content = answers[str(status)].get("content", {})
    return content["application/json"]["schema"] if content else None


@pytest.fixture(scope="module")
def client(family_bundle: Bundle, cache_root: Path, serve) -> Iterator[httpx.Client]:
    with serve(family_bundle, cache_root) as server:
        yield server.client


def test_the_descriptions_are_those_that_are_meant() -> None:
    assert (DATA_PLANE["info"]["title"], REPOSITORY["info"]["title"]) == ("Data Plane", "Model Repository")
    assert len(PATHS) == 12
    with pytest.raises(jsonschema.ValidationError, match="'outputs' is a required property"):
        check(DATA_PLANE, {"$ref": "#/components/schemas/InferenceResponse"}, {"model_name": "m"})
    with pytest.raises(jsonschema.ValidationError, match="'FP3' is not one of"):
        check(DATA_PLANE, {"$ref": "#/components/schemas/MetadataTensor"}, {"name": "x", "datatype": "FP3", "shape": []})


@pytest.mark.parametrize(("document", "path", "method"), PATHS, ids=[f"{method} {path}" for _, path, method in PATHS])
def test_every_path_is_there_and_answers_as_described(client: httpx.Client, document: dict, path: str, method: str) -> None:
    described = document["paths"][path][method]["responses"]
    ours = client.get("/openapi.json").json()["paths"]
    assert method in ours[path]
    body = REQUEST if path.endswith("/infer") else None
    address = path.format(model_name="shapes", model_version="1")
    answer = client.request(method, address, json=body)
    refuses = path.endswith(("/load", "/unload"))
    assert answer.status_code == (400 if refuses else 200), answer.text
    schema = schema_of(described, answer.status_code)
    if schema is not None:
        check(document, schema, answer.json())
    if "{model_name}" in path and "404" in described:
        missing = client.request(method, path.format(model_name="other", model_version="1"), json=body)
        assert missing.status_code == 404
        wanted = schema_of(described, 404)
        assert wanted is not None
        check(document, wanted, missing.json())


def test_requests_and_their_errors_are_as_described(client: httpx.Client) -> None:
    operation = DATA_PLANE["paths"]["/v2/models/{model_name}/infer"]["post"]
    check(DATA_PLANE, operation["requestBody"]["content"]["application/json"]["schema"], REQUEST)
    answer = client.post("/v2/models/shapes/infer", json={**REQUEST, "inputs": []})
    assert answer.status_code == 400
    schema = schema_of(operation["responses"], 400)
    assert schema is not None
    check(DATA_PLANE, schema, answer.json())
    assert re.search("0 inputs", answer.json()["error"])


def test_the_example_in_our_own_description_works(client: httpx.Client) -> None:
    ours = client.get("/openapi.json").json()["paths"]["/v2/models/{model_name}/infer"]["post"]
    content = ours["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        jsonschema.Draft202012Validator(content["schema"]).validate(example["value"])
        check(DATA_PLANE, {"$ref": "#/components/schemas/InferenceRequest"}, example["value"])
        answer = client.post("/v2/models/shapes/infer", json=example["value"])
        assert answer.status_code == 200, answer.text
        jsonschema.Draft202012Validator(ours["responses"]["200"]["content"]["application/json"]["schema"]).validate(answer.json())
